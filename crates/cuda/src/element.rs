//! The type of 16 bits that weights, activations and the KV cache have on the device.

#[cfg(any(feature = "cuda", test))]
use half::{bf16, f16};
use powertrain_model::{Model, spec::DecoderSpec, weights::WeightFormat};

/// Which type the kernels compute with. Sums are f32 in either, but for parts of one product's that cuBLASLt may leave in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 8 bits of exponent, 7 of fraction.
    Bf16,
    /// 5 bits of exponent, 10 of fraction: values end at 65,504.
    F16,
}

impl Element {
    /// f16 for a model whose matrices are all stored in it and whose residuals it holds: bf16 would round them to three bits less. Else bf16,
    /// which has the range of f32.
    pub fn of(model: &Model) -> Self {
        if model.is_dummy() || !Self::F16.holds_residuals(model.spec()) {
            return Self::Bf16;
        }
        let spec = model.spec();
        let is_stored = |slot| spec.shape(slot).0 == 1 || model.format(slot) == Some(WeightFormat::F16);
        if spec.slots().all(is_stored) { Self::F16 } else { Self::Bf16 }
    }

    /// Whether a model's residuals fit: those of models that scale their embedding by the root of its width (Gemma) grow beyond 65,504.
    pub fn holds_residuals(self, spec: &DecoderSpec) -> bool {
        self == Self::Bf16 || spec.embedding_scale == 1.0
    }

    /// `bf16` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

#[cfg(any(feature = "cuda", test))]
impl Element {
    /// Rounds to the nearest, ties to even; NaN stays NaN, and what f16 cannot hold becomes infinite.
    pub(crate) fn bits(self, value: f32) -> u16 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        }
    }

    /// Whether no finite one of these becomes infinite when it is rounded.
    pub(crate) fn holds(self, values: &[f32]) -> bool {
        // From half way between the largest f16 and the next power of two on.
        const OVERFLOWS: f32 = 65_520.0;
        self == Self::Bf16 || values.iter().all(|value| value.abs() < OVERFLOWS || !value.is_finite())
    }

    /// The value of these bits.
    pub(crate) fn value(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
            Self::F16 => f16::from_bits(bits).to_f32(),
        }
    }

    /// Whether a product of a residual that is not normalised yet can be stored: sums beyond f16's range would be infinite before the
    /// norm's factor brings them back.
    pub(crate) fn holds_unnormalised(self) -> bool {
        self == Self::Bf16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_what_the_type_holds_and_says_what_it_cannot() {
        for element in [Element::Bf16, Element::F16] {
            for value in [0.0, -0.0, 1.0, -1.5, 0.333_251_95, 2.0_f32.powi(-14), f32::INFINITY] {
                let once = element.value(element.bits(value));
                assert_eq!(element.value(element.bits(once)), once, "{element:?} {value}");
            }
            assert!(element.value(element.bits(f32::NAN)).is_nan());
            // Half way between two neighbours of 1: to the even one.
            let step = if element == Element::Bf16 { 2.0_f32.powi(-7) } else { 2.0_f32.powi(-10) };
            assert_eq!(element.value(element.bits(1.0 + 0.5 * step)), 1.0);
            assert_eq!(element.value(element.bits(1.0 + 1.5 * step)), 1.0 + 2.0 * step);
        }
        assert_eq!(Element::F16.value(Element::F16.bits(70_000.0)), f32::INFINITY);
        assert!(Element::Bf16.value(Element::Bf16.bits(70_000.0)).is_finite());
        for (value, fits) in [(65_519.0, true), (-65_520.0, false), (70_000.0, false), (f32::INFINITY, true)] {
            assert_eq!(Element::F16.holds(&[1.0, value]), fits, "{value}");
            assert_eq!(
                Element::F16.value(Element::F16.bits(value)).is_finite() || value.is_infinite(),
                fits,
                "{value}"
            );
            assert!(Element::Bf16.holds(&[1.0, value]));
        }
        for element in [Element::Bf16, Element::F16] {
            let sum = element.value(element.bits(1e6));
            assert_eq!(element.holds_unnormalised(), sum.is_finite(), "{element:?} and a sum of 1e6");
        }
    }

    #[test]
    fn weights_stored_in_f16_are_computed_in_it_where_residuals_fit() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
        let element_of = |name: &str| Element::of(&Model::open(&fixtures.join(name)).expect("a fixture"));
        assert_eq!(element_of("llama-linear-bias"), Element::F16, "safetensors in F16");
        assert_eq!(element_of("qwen3-F16.gguf"), Element::F16, "GGUF in F16");
        assert_eq!(element_of("gemma3-F16.gguf"), Element::Bf16, "scaled embeddings");
        assert_eq!(element_of("llama"), Element::Bf16, "BF16");
        assert_eq!(element_of("qwen2-yarn-F32.gguf"), Element::Bf16, "F32");
        assert_eq!(element_of("llama-Q8_0.gguf"), Element::Bf16, "quantised");
    }
}
