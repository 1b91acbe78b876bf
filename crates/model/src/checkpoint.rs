//! [`Checkpoint`]: stored tensors by name, whatever kind of file they stand in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bytes::FileBytes;
use crate::error::{ModelError, quoted};
use crate::gguf;
use crate::safetensors::{self, INDEX_FILE, Index, SINGLE_FILE};
use crate::tensors::{StoredTensor, TensorTable};
use crate::weights::TensorView;

/// An open checkpoint. Tensor data stays in the mapped files; opening reads headers only.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Arc<FileBytes>>,
    tensors: TensorTable,
    /// Name and dtype of tensors that are there in a dtype we do not read.
    unread: BTreeMap<Box<str>, Box<str>>,
    kind: CheckpointKind,
}

/// What a checkpoint was opened from.
#[derive(Debug)]
pub enum CheckpointKind {
    /// One GGUF file, with its metadata.
    Gguf(gguf::Metadata),
    /// A safetensors file, or a folder with one or more.
    Safetensors,
}

const ADVICE_NAME_A_MODEL: &str =
    "name a GGUF file, a safetensors file, or a folder with model.safetensors or model.safetensors.index.json";

impl Checkpoint {
    /// Opens a GGUF file, a safetensors file, or a folder with `model.safetensors.index.json` or `model.safetensors`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = path.metadata().map_err(|source| ModelError::io(path, "open", source))?;
        if metadata.is_dir() {
            return Self::open_folder(path);
        }
        let file = FileBytes::map(path)?;
        if file.starts_with(&gguf::MAGIC) {
            Self::from_gguf(file, path)
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            Self::from_safetensors(file, path)
        } else {
            Err(not_a_checkpoint(&file, path))
        }
    }

    /// A GGUF file already in memory or mapped; `path` is for messages.
    pub fn from_gguf(file: FileBytes, path: &Path) -> Result<Self, ModelError> {
        let header = gguf::parse(&file, path)?;
        let file = Arc::new(file);
        let metadata = gguf::Metadata::new(path, file.clone(), header.values);
        if metadata.get_u32("split.count")?.is_some_and(|parts| parts > 1) {
            let advice = "merge the parts with llama.cpp's llama-gguf-split --merge";
            return Err(metadata.wrong("split.count", "a model in one file", advice));
        }
        Ok(Self {
            path: path.to_owned(),
            files: vec![file],
            tensors: table(header.tensors, path)?,
            unread: BTreeMap::new(),
            kind: CheckpointKind::Gguf(metadata),
        })
    }

    /// A safetensors file already in memory or mapped; `path` is for messages.
    pub fn from_safetensors(file: FileBytes, path: &Path) -> Result<Self, ModelError> {
        let header = safetensors::parse(&file, path)?;
        Ok(Self {
            path: path.to_owned(),
            files: vec![Arc::new(file)],
            tensors: table(header.tensors, path)?,
            unread: header.unread.into_iter().collect(),
            kind: CheckpointKind::Safetensors,
        })
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was opened from.
    pub fn kind(&self) -> &CheckpointKind {
        &self.kind
    }

    /// GGUF metadata; `None` for other kinds.
    pub fn metadata(&self) -> Option<&gguf::Metadata> {
        match &self.kind {
            CheckpointKind::Gguf(metadata) => Some(metadata),
            CheckpointKind::Safetensors => None,
        }
    }

    /// The tensor of that name, borrowed from the file.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|stored| self.view(stored))
    }

    /// Names of all tensors that can be read, sorted.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|stored| &*stored.name)
    }

    /// The tensor table: shapes and places.
    pub fn tensors(&self) -> &TensorTable {
        &self.tensors
    }

    /// The dtype of a tensor that is there but cannot be read (`F8_E4M3`, `I64`).
    pub fn unread_dtype(&self, name: &str) -> Option<&str> {
        self.unread.get(name).map(|dtype| &**dtype)
    }

    fn view(&self, stored: &StoredTensor) -> TensorView<'_> {
        let (rows, columns) = stored.rows_columns();
        TensorView { format: stored.format, rows, columns, data: &self.files[stored.file][stored.bytes.clone()] }
    }

    fn open_folder(path: &Path) -> Result<Self, ModelError> {
        let index = path.join(INDEX_FILE);
        if index.exists() {
            return Self::open_shards(path, &index);
        }
        let single = path.join(SINGLE_FILE);
        if single.exists() {
            let mut checkpoint = Self::from_safetensors(FileBytes::map(&single)?, &single)?;
            checkpoint.path = path.to_owned();
            return Ok(checkpoint);
        }
        Err(ModelError::invalid(
            path,
            "folder",
            weights_found(path)?,
            format!("{SINGLE_FILE} or {INDEX_FILE}"),
            ADVICE_NAME_A_MODEL,
        ))
    }

    fn open_shards(folder: &Path, index_path: &Path) -> Result<Self, ModelError> {
        let index = Index::read(index_path)?;
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        let mut unread = BTreeMap::new();
        for shard in index.shards() {
            let shard_path = folder.join(shard);
            if !shard_path.exists() {
                return Err(ModelError::invalid(
                    index_path,
                    format!("shard {}", quoted(shard)),
                    "no such file in the folder",
                    "every shard the index names",
                    "the download is incomplete: download the model again",
                ));
            }
            let file = FileBytes::map(&shard_path)?;
            let header = safetensors::parse(&file, &shard_path)?;
            // The index decides: what it places elsewhere, or nowhere, is not part of the model.
            let belongs = |name: &str| index.weight_map.get(name).is_some_and(|holder| **holder == *shard);
            let kept = header.tensors.into_iter().filter(|tensor| belongs(&tensor.name));
            tensors.extend(kept.map(|tensor| StoredTensor { file: files.len(), ..tensor }));
            unread.extend(header.unread.into_iter().filter(|(name, _)| belongs(name)));
            files.push(Arc::new(file));
        }
        let tensors = table(tensors, index_path)?;
        for (name, shard) in &index.weight_map {
            if tensors.get(name).is_none() && !unread.contains_key(name) {
                return Err(ModelError::invalid(
                    &folder.join(&**shard),
                    format!("tensor {}", quoted(name)),
                    "nothing",
                    format!("the tensor, as {INDEX_FILE} says it is here"),
                    "index and shards are of different versions: download the model again",
                ));
            }
        }
        Ok(Self { path: folder.to_owned(), files, tensors, unread, kind: CheckpointKind::Safetensors })
    }
}

fn table(tensors: Vec<StoredTensor>, path: &Path) -> Result<TensorTable, ModelError> {
    TensorTable::new(tensors).map_err(|twice| {
        ModelError::invalid(
            path,
            format!("tensor {}", quoted(&twice)),
            "two entries",
            "one",
            "the file is damaged: download it again",
        )
    })
}

/// Names of weight files in a folder that has none of the expected ones, for the message.
fn weights_found(folder: &Path) -> Result<String, ModelError> {
    const SHOWN_MAX: usize = 3;
    let entries = folder.read_dir().map_err(|source| ModelError::io(folder, "list", source))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| [".gguf", ".safetensors", ".bin", ".pth"].iter().any(|ending| name.ends_with(ending)))
        .collect();
    names.sort_unstable();
    Ok(match names.len() {
        0 => "no weight files".to_owned(),
        1..=SHOWN_MAX => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN_MAX].join(", "), more - SHOWN_MAX),
    })
}

/// The error for a file that is no checkpoint, with advice for the usual mistakes.
fn not_a_checkpoint(file: &[u8], path: &Path) -> ModelError {
    let start = &file[..file.len().min(4)];
    let advice = if file.starts_with(b"version https://git-lfs") {
        "this is a Git LFS pointer, not the model: run git lfs pull, or download the file itself"
    } else if file.trim_ascii_start().starts_with(b"<") {
        "this is a web page, not the model: download the file itself"
    } else {
        ADVICE_NAME_A_MODEL
    };
    ModelError::invalid(
        path,
        "first bytes",
        format!("\"{}\"", start.escape_ascii()),
        "\"GGUF\", or a file named .safetensors",
        advice,
    )
}
