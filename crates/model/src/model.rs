//! [`Model`]: an open model: what it computes, and a tensor for every place it needs one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointKind};
use crate::config::Config;
use crate::dummy::DummyWeights;
use crate::error::{ModelError, quoted};
use crate::family::{Described, describe_config, describe_gguf};
use crate::gguf;
use crate::spec::DecoderSpec;
use crate::weights::{Slot, TensorView, WeightFormat};

/// A model whose every slot is known to have its tensor, in the right shape. Weights stay in the mapped files.
#[derive(Debug)]
pub struct Model {
    spec: DecoderSpec,
    names: HashMap<Slot, String>,
    weights: Weights,
    /// The folder of `config.json`; `None` for a GGUF file, which says everything itself.
    folder: Option<PathBuf>,
    unused_tensors: Vec<String>,
}

#[derive(Debug)]
enum Weights {
    Stored(Checkpoint),
    Dummy(DummyWeights),
}

/// Where a model's tokenizer, chat template and generation defaults are to be read from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The metadata of the GGUF file.
    Gguf(&'a gguf::Metadata),
    /// A folder with `config.json`, `tokenizer.json` and so on.
    Folder(&'a Path),
}

/// The configuration of a Hugging Face folder.
const CONFIG_FILE: &str = "config.json";
/// Tensors that families read as parameters while they describe a model, so that no slot holds them.
const PARAMETER_TENSORS: [&str; 1] = ["rope_freqs.weight"];

impl Model {
    /// Opens a GGUF file, or a Hugging Face folder (or a safetensors file in one) with `config.json`. Reads headers only.
    ///
    /// # Errors
    /// When a file is missing or damaged, the architecture is unknown, or a slot's tensor is missing or misshapen.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        if let CheckpointKind::Gguf(metadata) = checkpoint.kind() {
            let described = describe_gguf(metadata, &|name| checkpoint.tensor(name))?;
            return Self::assemble(described, checkpoint, None);
        }
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let config = Config::open(&folder.join(CONFIG_FILE))?;
        let has_tensor = |name: &str| checkpoint.tensor(name).is_some() || checkpoint.unread_dtype(name).is_some();
        let described = describe_config(&config, &has_tensor)?;
        let folder = folder.to_owned();
        Self::assemble(described, checkpoint, Some(folder))
    }

    /// Puts a description and its tensors together; `folder` is where the rest of a Hugging Face model stands.
    ///
    /// # Errors
    /// When a slot's tensor is missing or misshapen.
    pub fn assemble(described: Described, checkpoint: Checkpoint, folder: Option<PathBuf>) -> Result<Self, ModelError> {
        let Described { spec, names } = described;
        for slot in spec.slots() {
            check_tensor(&spec, slot, &names[&slot], &checkpoint)?;
        }
        let used: HashSet<&str> = names.values().map(String::as_str).chain(PARAMETER_TENSORS).collect();
        let unused = checkpoint.tensor_names().filter(|name| !used.contains(name));
        let unused_tensors = unused.map(str::to_owned).collect();
        Ok(Self { spec, names, weights: Weights::Stored(checkpoint), folder, unused_tensors })
    }

    /// A model of random weights from a `config.json`, or from the folder that holds one (`--load-format dummy`).
    ///
    /// # Errors
    /// When the file is missing or damaged, or the architecture is unknown.
    pub fn dummy(path: &Path) -> Result<Self, ModelError> {
        let (folder, file) = match path.is_dir() {
            true => (path, path.join(CONFIG_FILE)),
            false => (path.parent().unwrap_or(Path::new("")), path.to_owned()),
        };
        let Described { spec, names } = describe_config(&Config::open(&file)?, &|_| true)?;
        let weights = Weights::Dummy(DummyWeights::new(&spec));
        Ok(Self { spec, names, weights, folder: Some(folder.to_owned()), unused_tensors: Vec::new() })
    }

    /// Whether the weights are random. Then an executor may fill its own memory with whatever keeps activations finite, by
    /// [`DecoderSpec::slots`] and [`DecoderSpec::shape`], and never ask for a tensor; one that asks gets bf16.
    pub fn is_dummy(&self) -> bool {
        matches!(self.weights, Weights::Dummy(_))
    }

    /// What the model computes.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The tensor of a slot; of a tied head, the embedding. `None` for a slot the spec does not have.
    pub fn tensor(&self, slot: Slot) -> Option<TensorView<'_>> {
        match &self.weights {
            Weights::Stored(checkpoint) => checkpoint.tensor(self.names.get(&slot)?),
            Weights::Dummy(weights) if slot == Slot::Head && self.spec.tied_head => weights.tensor(Slot::Embedding),
            Weights::Dummy(weights) => weights.tensor(slot),
        }
    }

    /// The encoding of a slot's tensor. Makes no dummy weights, as [`tensor`](Self::tensor) would.
    pub fn format(&self, slot: Slot) -> Option<WeightFormat> {
        match &self.weights {
            Weights::Stored(_) => self.tensor(slot).map(|tensor| tensor.format),
            Weights::Dummy(_) => self.names.contains_key(&slot).then_some(DummyWeights::FORMAT),
        }
    }

    /// The checkpoint's name for the tensor of a slot.
    pub fn tensor_name(&self, slot: Slot) -> Option<&str> {
        self.names.get(&slot).map(String::as_str)
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        match &self.weights {
            Weights::Stored(checkpoint) => checkpoint.path(),
            Weights::Dummy(_) => self.folder.as_deref().unwrap_or(Path::new("")),
        }
    }

    /// Where the rest of the model is to be read from.
    pub fn source(&self) -> Source<'_> {
        match (&self.weights, &self.folder) {
            (Weights::Stored(checkpoint), folder) => match checkpoint.metadata() {
                Some(metadata) => Source::Gguf(metadata),
                None => Source::Folder(folder.as_deref().unwrap_or(checkpoint.path())),
            },
            (Weights::Dummy(_), _) => Source::Folder(self.path()),
        }
    }

    /// Tensors of the checkpoint that no slot takes, sorted: worth a warning, as the model may compute less than its makers meant.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }
}

fn check_tensor(spec: &DecoderSpec, slot: Slot, name: &str, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let (rows, columns) = spec.shape(slot);
    let shape = |rows, columns| if rows == 1 { format!("[{columns}]") } else { format!("[{rows}, {columns}]") };
    let (found, advice) = match checkpoint.tensor(name) {
        Some(tensor) if (tensor.rows, tensor.columns) == (rows, columns) => return Ok(()),
        Some(tensor) => {
            let advice = "weights and configuration are not of one model: download or convert it again";
            (shape(tensor.rows, tensor.columns), advice)
        }
        None => match checkpoint.unread_dtype(name) {
            Some(dtype) => (quoted(dtype), "use a model in F32, F16 or BF16, or a GGUF file of it"),
            None => ("nothing".to_owned(), "weights are incomplete, or of another model: download or convert it again"),
        },
    };
    let field = format!("tensor {}", quoted(name));
    Err(ModelError::invalid(checkpoint.path(), field, found, shape(rows, columns), advice))
}
