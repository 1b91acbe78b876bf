//! [`FileBytes`]: a file's content as one slice, mapped rather than read. The crate's only `unsafe`.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::ModelError;

/// The bytes of a checkpoint file: mapped from disk, or already in memory.
#[derive(Debug)]
pub enum FileBytes {
    /// Pages come from the file as they are touched.
    Mapped(memmap2::Mmap),
    /// An empty file, which no system maps, or what a test made.
    Owned(Vec<u8>),
}

/// Opens a regular file: a pipe would be waited for, a device read without end.
pub(crate) fn open_regular(path: &Path) -> Result<File, ModelError> {
    // Before the open, which would wait for a pipe's other end.
    let metadata = path.metadata().map_err(|source| ModelError::io(path, "open", source))?;
    if !metadata.is_file() {
        let (found, expected) = ("something that is not a regular file", "a file that can be read whole");
        return Err(ModelError::invalid(path, "path", found, expected, "name the model's file"));
    }
    File::open(path).map_err(|source| ModelError::io(path, "open", source))
}

impl FileBytes {
    /// Maps the file, whole and read-only. Nothing is read yet.
    ///
    /// A file that shrinks while it is mapped kills the process with SIGBUS when a lost page is touched, as in every engine
    /// that maps its weights. We accept it: what we download appears by atomic rename and is never rewritten in place, and a
    /// read into memory would cost the start time and the page cache shared between processes.
    #[expect(unsafe_code, reason = "a map cannot be made safely; see SAFETY")]
    pub fn map(path: &Path) -> Result<Self, ModelError> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(|source| ModelError::io(path, "read the size of", source))?;
        if metadata.len() == 0 {
            // An empty map is an error on some systems; no bytes need no map.
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and owned by this value, so we never write through it, and a slice cannot outlive
        // it. What remains is another process writing the file in place, which the rule above excludes for files of ours.
        // For others nothing here turns such a change into wild access: header fields are copied out while they are checked,
        // every index into the map is bounds-checked, text is validated again at each access, and weights are plain numbers
        // of which every bit pattern is valid.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| ModelError::io(path, "map", source))?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
