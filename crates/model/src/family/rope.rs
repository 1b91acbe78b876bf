//! [`Rope`]: rotary frequencies and their scaling, as the two kinds of checkpoint say them.

use super::shape::limit;
use super::{GgufModel, ModelError};
use crate::config::Config;
use crate::spec::{RopePairing, RopeSpec};
use crate::weights::WeightFormat;
use std::f64::consts::PI;
use std::sync::Arc;

/// Base and scaling of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// Each frequency is divided by its own factor (`rope_freqs.weight` of a GGUF file).
    pub(super) divisors: Option<Vec<f32>>,
}

/// Ways to stretch frequencies over a longer context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// All frequencies divided by the factor (arXiv:2306.15595).
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by the factor, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn(Yarn),
}

/// YaRN's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Yarn {
    factor: f64,
    original_context: f64,
    /// Rotations over the original context from which a frequency is kept.
    beta_fast: f64,
    /// Rotations over the original context below which a frequency is divided by the factor.
    beta_slow: f64,
    /// Multiplies sine and cosine.
    magnitude: f64,
    /// Whether the ends of the ramp are whole pairs.
    truncate: bool,
}

/// The base where a checkpoint names none.
const ROPE_THETA_DEFAULT: f64 = 10_000.0;

impl Rope {
    pub(super) fn unscaled(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::None, divisors: None }
    }

    /// The one rope of a model: transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters` with all
    /// of it.
    pub(super) fn from_config(config: &Config) -> Result<Self, ModelError> {
        // transformers 5 reads a `rope_scaling` it finds before `rope_parameters`, as so do we.
        let section = match config.section("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
            Some(scaling) => Some(scaling),
            None => config.section("rope_parameters")?,
        };
        let theta = theta(config, "rope_theta", ROPE_THETA_DEFAULT)?;
        for kind in ["full_attention", "sliding_attention"] {
            if let Some(section) = section.as_ref().filter(|section| section.contains(kind)) {
                let advice = "a rope of their own for some layers is not supported in this family: use another model";
                return Err(section.wrong(kind, "one rope for all layers", advice));
            }
        }
        match section {
            Some(section) => Self::from_section(&section, theta, config),
            None => Ok(Self::unscaled(theta)),
        }
    }

    /// From one object of rope fields; `theta` where it has none of its own.
    pub(super) fn from_section(section: &Config, theta: f64, config: &Config) -> Result<Self, ModelError> {
        let theta = self::theta(section, "rope_theta", theta)?;
        for section in [section, config] {
            if section.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
                let advice = "partial rotary embeddings are not supported in this family: use another model";
                return Err(section.wrong("partial_rotary_factor", "1", advice));
            }
        }
        let kind_field = if section.contains("rope_type") { "rope_type" } else { "type" };
        // In transformers' order of precedence.
        let original_context = || -> Result<f64, ModelError> {
            const FIELD: &str = "original_max_position_embeddings";
            if let Some(positions) = config.positive(FIELD)? {
                return Ok(positions);
            }
            match section.positive(FIELD)? {
                Some(positions) => Ok(positions),
                None => config.require_positive("max_position_embeddings"),
            }
        };
        let scaling = match section.text(kind_field)?.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: section.require_positive("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: section.require_positive("factor")?,
                low_freq_factor: section.require_positive("low_freq_factor")?,
                high_freq_factor: section.require_positive("high_freq_factor")?,
                original_context: original_context()?,
            },
            "yarn" => {
                let factor = section.require_positive("factor")?;
                RopeScaling::Yarn(Yarn {
                    factor,
                    original_context: original_context()?,
                    beta_fast: positive_or(section, "beta_fast", 32.0)?,
                    beta_slow: positive_or(section, "beta_slow", 1.0)?,
                    magnitude: yarn_magnitude(section, factor)?,
                    truncate: section.flag("truncate")?.unwrap_or(true),
                })
            }
            _ => {
                let advice = "this way to scale rotary embeddings is not supported: use another model";
                return Err(section.wrong(kind_field, "one of default, linear, llama3, yarn", advice));
            }
        };
        if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
            && low_freq_factor >= high_freq_factor
        {
            return Err(section.wrong("low_freq_factor", "less than high_freq_factor", "correct the file"));
        }
        Ok(Self { theta, scaling, divisors: None })
    }

    /// `rope.freq_base`, `rope.scaling.*` and `rope_freqs.weight`.
    pub(super) fn from_gguf(model: &GgufModel<'_>, rotary_dim: usize) -> Result<Self, ModelError> {
        let metadata = model.metadata;
        let advice = "this way to scale rotary embeddings is not supported: use another model";
        let number = |name: &str, default: f64| Ok(model.positive(name)?.unwrap_or(default));
        let theta = gguf_theta(model, "rope.freq_base", ROPE_THETA_DEFAULT)?;
        let type_key = model.key("rope.scaling.type");
        // Files from before `rope.scaling` say a linear factor alone.
        let kind = match metadata.get_str(&type_key)? {
            Some(kind) => kind,
            None if metadata.contains(&model.key("rope.scale_linear")) => "linear",
            None => "none",
        };
        let factor_key = "rope.scaling.factor";
        let scaling = match kind {
            "none" => RopeScaling::None,
            "linear" => {
                let old = number("rope.scale_linear", 1.0)?;
                RopeScaling::Linear { factor: number(factor_key, old)? }
            }
            "yarn" => {
                // DeepSeek's: the magnitude is not the paper's.
                let log_key = model.key("rope.scaling.yarn_log_multiplier");
                if metadata.get_f32(&log_key)?.is_some_and(|multiplier| multiplier != 0.0) {
                    return Err(metadata.wrong(&log_key, "0", advice));
                }
                let factor = number(factor_key, 1.0)?;
                let original = metadata.get_u32(&model.key("rope.scaling.original_context_length"))?;
                let original = original.map_or_else(|| metadata.require_u32(&model.key("context_length")), Ok)?;
                if original == 0 {
                    let key = model.key("rope.scaling.original_context_length");
                    return Err(metadata.wrong(&key, "an integer of at least 1", "convert the model again"));
                }
                RopeScaling::Yarn(Yarn {
                    factor,
                    original_context: f64::from(original),
                    beta_fast: number("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: number("rope.scaling.yarn_beta_slow", 1.0)?,
                    magnitude: paper_magnitude(factor) * number("rope.scaling.attn_factor", 1.0)?,
                    truncate: true,
                })
            }
            _ => return Err(metadata.wrong(&type_key, "one of none, linear, yarn", advice)),
        };
        Ok(Self { theta, scaling, divisors: rope_freqs(model, rotary_dim)? })
    }

    /// Positions the model can reach with this scaling, where it was made for `context_len` without.
    pub(super) fn context_len(&self, context_len: usize) -> usize {
        match self.scaling {
            // Published YaRN recipes leave `max_position_embeddings` at the original length.
            RopeScaling::Yarn(yarn) => {
                context_len.max((yarn.original_context * yarn.factor).min(limit::CONTEXT as f64) as usize)
            }
            _ => context_len,
        }
    }

    /// The frequencies of a head whose first `rotary_dim` elements rotate.
    ///
    /// Exponents, quotients and ramps are f32 as transformers computes them; at position 100,000 a frequency's last bit is
    /// visible.
    pub(super) fn spec(&self, pairing: RopePairing, rotary_dim: usize) -> RopeSpec {
        let unscaled = |pair: usize| {
            let exponent = (2 * pair) as f32 / rotary_dim as f32;
            1.0 / self.theta.powf(f64::from(exponent)) as f32
        };
        let mut magnitude = 1.0;
        let mut frequencies: Vec<f32> = (0..rotary_dim / 2).map(unscaled).collect();
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => frequencies.iter_mut().for_each(|frequency| *frequency /= factor as f32),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                for frequency in &mut frequencies {
                    let rotations = original_context * f64::from(*frequency) / (2.0 * PI);
                    let kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    *frequency = (f64::from(*frequency) * ((1.0 - kept) / factor + kept)) as f32;
                }
            }
            RopeScaling::Yarn(yarn) => {
                magnitude = yarn.magnitude as f32;
                for (pair, frequency) in frequencies.iter_mut().enumerate() {
                    let kept = yarn.kept(pair, rotary_dim, self.theta);
                    let stretched = *frequency / yarn.factor as f32;
                    *frequency = stretched * (1.0 - kept) + *frequency * kept;
                }
            }
        }
        for (frequency, divisor) in frequencies.iter_mut().zip(self.divisors.iter().flatten()) {
            *frequency /= divisor;
        }
        RopeSpec { pairing, inverse_frequencies: Arc::from(frequencies), magnitude }
    }
}

impl Yarn {
    /// How much of a pair's frequency is kept: 1 for the fast ones, 0 for the slow, a linear ramp between.
    fn kept(&self, pair: usize, rotary_dim: usize, theta: f64) -> f32 {
        let dim = rotary_dim as f64;
        // The (fractional) pair that makes this many rotations over the original context.
        let pair_of = |rotations: f64| dim * (self.original_context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        1.0 - ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)
    }
}

/// A base of frequencies, in the field of that name.
pub(super) fn theta(config: &Config, field: &str, default: f64) -> Result<f64, ModelError> {
    match config.positive(field)? {
        None => Ok(default),
        Some(theta) if theta > 1.0 => Ok(theta),
        Some(_) => Err(config.wrong(field, "a number above 1", "correct the file")),
    }
}

/// As [`theta`], of a GGUF file.
pub(super) fn gguf_theta(model: &GgufModel<'_>, name: &str, default: f64) -> Result<f64, ModelError> {
    match model.positive(name)? {
        None => Ok(default),
        Some(theta) if theta > 1.0 => Ok(theta),
        Some(_) => Err(model.metadata.wrong(&model.key(name), "a number above 1", "convert the model again")),
    }
}

/// transformers takes 0 for not given.
fn positive_or(config: &Config, field: &str, default: f64) -> Result<f64, ModelError> {
    match config.number(field)? {
        None | Some(0.0) => Ok(default),
        Some(_) => config.require_positive(field),
    }
}

/// `0.1 ln(factor) + 1`, the paper's attention factor.
fn paper_magnitude(factor: f64) -> f64 {
    scaled_magnitude(factor, 1.0)
}

fn scaled_magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

fn yarn_magnitude(section: &Config, factor: f64) -> Result<f64, ModelError> {
    if section.number("attention_factor")?.is_some() {
        return section.require_positive("attention_factor");
    }
    let given = |field: &str| Ok(section.number(field)?.filter(|scale| *scale != 0.0));
    Ok(match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(scale), Some(all)) => scaled_magnitude(factor, scale) / scaled_magnitude(factor, all),
        _ => paper_magnitude(factor),
    })
}

/// `rope_freqs.weight`: one divisor a pair.
fn rope_freqs(model: &GgufModel<'_>, rotary_dim: usize) -> Result<Option<Vec<f32>>, ModelError> {
    const NAME: &str = "rope_freqs.weight";
    let Some(view) = (model.tensor)(NAME) else { return Ok(None) };
    let expected = || format!("{} finite F32 numbers above 0", rotary_dim / 2);
    if view.format != WeightFormat::F32 || view.rows * view.columns != rotary_dim / 2 {
        let found = format!("{} x {} of {}", view.rows, view.columns, view.format);
        return Err(model.wrong_tensor(NAME, found, expected()));
    }
    let divisors: Vec<f32> = view.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match divisors.iter().find(|divisor| !divisor.is_finite() || **divisor <= 0.0) {
        Some(divisor) => Err(model.wrong_tensor(NAME, divisor.to_string(), expected())),
        None => Ok(Some(divisors)),
    }
}
