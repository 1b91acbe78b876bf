//! Families of models: how a checkpoint's own description becomes a [`DecoderSpec`], and what its tensors are called.
//!
//! **Invariant:** only this folder knows families. What one needs beyond the others is a switch in the spec; what the spec
//! cannot say is refused here with the field's name, never ignored.

mod gemma3;
mod llama;
mod names;
mod qwen2;
mod qwen3;
mod rope;
mod shape;
mod window;

use crate::config::Config;
use crate::error::{ModelError, quoted};
use crate::gguf::Metadata;
use crate::spec::DecoderSpec;
use crate::weights::{Slot, TensorView};
use names::Naming;
use shape::Shape;
use std::collections::HashMap;

/// A model understood: what it computes, and where its weights are.
#[derive(Clone, Debug)]
pub struct Described {
    /// What it computes.
    pub spec: DecoderSpec,
    /// The checkpoint's name for the tensor of every slot. A tied head has the embedding's.
    pub names: HashMap<Slot, String>,
}

/// A family: what the two kinds of checkpoint call it, and its file's two entries.
struct Family {
    /// `architectures[0]` of config.json.
    classes: &'static [&'static str],
    /// `model_type` of config.json, for files without `architectures`.
    model_types: &'static [&'static str],
    /// `general.architecture` of a GGUF file.
    gguf: Option<&'static str>,
    from_config: fn(&Config) -> Result<Decoder, ModelError>,
    from_gguf: fn(&GgufModel<'_>) -> Result<Decoder, ModelError>,
}

/// What a family's file makes: the spec, and how a kind of checkpoint names its layers.
struct Decoder {
    spec: DecoderSpec,
    naming: Naming,
}

/// A GGUF file as families see it.
struct GgufModel<'a> {
    metadata: &'a Metadata,
    /// `general.architecture`: the prefix of the model's own keys.
    architecture: &'a str,
    tensor: &'a dyn Fn(&str) -> Option<TensorView<'a>>,
}

static FAMILIES: [Family; 4] = [llama::FAMILY, qwen2::FAMILY, qwen3::FAMILY, gemma3::FAMILY];

/// Understands a `config.json`. `has_tensor` says whether the checkpoint holds a tensor of that name; where there is no
/// checkpoint (dummy weights) it is always true.
///
/// # Errors
/// When the architecture is unknown, a field is missing or impossible, or the model needs something that is not supported.
pub fn describe_config(config: &Config, has_tensor: &dyn Fn(&str) -> bool) -> Result<Described, ModelError> {
    let (family, architecture) = family_of_config(config)?;
    if config.section("quantization_config")?.is_some() {
        return Err(config.wrong(
            "quantization_config",
            "none: unquantised F32, F16 or BF16 weights",
            "use the unquantised model, or a GGUF file of it",
        ));
    }
    let decoder = (family.from_config)(config)?;
    Ok(finish(decoder, architecture, |naming| naming.find_prefix(has_tensor)))
}

/// Understands a GGUF file from its metadata and tensors.
///
/// # Errors
/// When the architecture is unknown, a key is missing or impossible, or the model needs something that is not supported.
pub fn describe_gguf<'a>(
    metadata: &'a Metadata,
    tensor: &'a dyn Fn(&str) -> Option<TensorView<'a>>,
) -> Result<Described, ModelError> {
    let architecture = metadata.require_str("general.architecture")?;
    let family = FAMILIES.iter().find(|family| family.gguf == Some(architecture)).ok_or_else(|| {
        let known = listed(FAMILIES.iter().filter_map(|family| family.gguf));
        metadata.wrong("general.architecture", format!("one of {known}"), "use a model of a supported architecture")
    })?;
    let decoder = (family.from_gguf)(&GgufModel { metadata, architecture, tensor })?;
    Ok(finish(decoder, architecture.to_owned(), |_| ""))
}

/// The family, and the checkpoint's word for it.
fn family_of_config(config: &Config) -> Result<(&'static Family, String), ModelError> {
    let classes = config.texts("architectures")?.unwrap_or_default();
    let (field, word) = match classes.first() {
        Some(class) => ("architectures", *class),
        None => ("model_type", config.text("model_type")?.unwrap_or_default()),
    };
    let names = |family: &'static Family| if field == "architectures" { family.classes } else { family.model_types };
    match FAMILIES.iter().find(|family| names(family).contains(&word)) {
        Some(family) => Ok((family, word.to_owned())),
        None => Err(config.wrong(
            field,
            format!("one of {}", listed(FAMILIES.iter().flat_map(|family| names(family).iter().copied()))),
            "use a model of a supported architecture",
        )),
    }
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

fn finish(decoder: Decoder, architecture: String, find_prefix: impl FnOnce(&Naming) -> &'static str) -> Described {
    let Decoder { mut spec, naming } = decoder;
    spec.architecture = architecture;
    let prefix = find_prefix(&naming);
    let mut names: HashMap<Slot, String> = spec.slots().map(|slot| (slot, naming.name(prefix, slot))).collect();
    if spec.tied_head {
        names.insert(Slot::Head, naming.name(prefix, Slot::Embedding));
    }
    Described { spec, names }
}

impl<'a> GgufModel<'a> {
    /// A key of the model's own: `block_count` is `llama.block_count`.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// `rope.dimension_count`: how many of a head's elements rotate.
    fn rotary_dim(&self, shape: &Shape) -> Result<usize, ModelError> {
        let key = self.key("rope.dimension_count");
        let rotary_dim = self.metadata.get_u32(&key)?.map_or(shape.head_dim, |dim| dim as usize);
        if rotary_dim == 0 || rotary_dim > shape.head_dim || !rotary_dim.is_multiple_of(2) {
            let expected = format!("an even size from 2 to the head's, which is {}", shape.head_dim);
            return Err(self.metadata.wrong(&key, expected, "convert the model again with a current converter"));
        }
        Ok(rotary_dim)
    }

    /// A number from 1e-6 to 1e12, as [`Config::positive`].
    fn positive(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let key = self.key(name);
        match self.metadata.get_f32(&key)? {
            Some(value) if !(1e-6..=1e12).contains(&value) => {
                Err(self.metadata.wrong(&key, "a number from 1e-6 to 1e12", "convert the model again"))
            }
            value => Ok(value.map(f64::from)),
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        (self.tensor)(name).is_some()
    }

    /// An error about a tensor.
    fn wrong_tensor(&self, name: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::invalid(
            self.metadata.path(),
            format!("tensor {}", quoted(name)),
            found,
            expected,
            "convert the model again with a current converter",
        )
    }

    /// Refuses a file that has a key whose meaning the spec cannot hold, unless it says 0.
    fn refuse_key(&self, name: &str, meaning: &str) -> Result<(), ModelError> {
        let key = self.key(name);
        match self.metadata.get_u32(&key)? {
            None | Some(0) => Ok(()),
            Some(_) => Err(self.metadata.wrong(&key, "0", format!("{meaning} is not supported: use another model"))),
        }
    }

    /// Refuses a file that holds a tensor no slot takes.
    fn refuse_tensor(&self, name: &str, meaning: &str) -> Result<(), ModelError> {
        if self.has_tensor(name) {
            return Err(ModelError::invalid(
                self.metadata.path(),
                format!("tensor {}", quoted(name)),
                meaning,
                "no such tensor",
                "this is not supported: use another model",
            ));
        }
        Ok(())
    }
}
