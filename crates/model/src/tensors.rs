//! [`TensorTable`]: a checkpoint's tensors by name, whatever file format they came from.

use std::ops::Range;

use crate::weights::WeightFormat;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// The checkpoint's name for it.
    pub name: Box<str>,
    /// Encoding.
    pub format: WeightFormat,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index of the checkpoint's file that holds it.
    pub file: usize,
    /// Its bytes in that file: exactly those of `shape` in `format`, and inside the file.
    pub bytes: Range<usize>,
}

/// Tensors by name, each once.
#[derive(Clone, Debug, Default)]
pub struct TensorTable {
    /// Sorted by name.
    tensors: Vec<StoredTensor>,
}

impl TensorTable {
    /// Sorts the tensors; a name that stands twice is the error.
    pub(crate) fn new(mut tensors: Vec<StoredTensor>) -> Result<Self, Box<str>> {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        match tensors.array_windows().find(|[a, b]| a.name == b.name) {
            Some([twice, _]) => Err(twice.name.clone()),
            None => Ok(Self { tensors }),
        }
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok().map(|index| &self.tensors[index])
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &StoredTensor> {
        self.tensors.iter()
    }
}

impl StoredTensor {
    /// Rows and columns as [`TensorView`](crate::weights::TensorView) counts them: a vector or scalar is one row, further
    /// outer dimensions multiply the rows.
    pub fn rows_columns(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&columns, outer)) => (outer.iter().product(), columns),
        }
    }
}
