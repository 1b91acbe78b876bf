//! Writers of tiny GGUF and safetensors files, right or wrong as a test wants them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod damage;

/// A GGUF file in pieces. Counts and offsets are right unless overridden.
#[derive(Clone)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub entry_count: Option<u64>,
    pub alignment: usize,
    entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<GgufTensor>,
}

/// One line of the tensor table, and its data.
#[derive(Clone)]
pub struct GgufTensor {
    pub name: String,
    /// Innermost first, as the file has them.
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl GgufWriter {
    pub fn new() -> Self {
        let (entries, tensors) = (Vec::new(), Vec::new());
        Self { magic: *b"GGUF", version: 3, tensor_count: None, entry_count: None, alignment: 32, entries, tensors }
    }

    /// A value given by its type number and bytes.
    pub fn raw(mut self, key: impl AsRef<[u8]>, kind: u32, payload: impl Into<Vec<u8>>) -> Self {
        self.entries.push((key.as_ref().to_vec(), kind, payload.into()));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, [u8::from(value)])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, string(value.as_bytes()))
    }

    /// An array given by its element type, claimed count and bytes.
    pub fn array(self, key: &str, element: u32, count: u64, elements: &[u8]) -> Self {
        let payload = [&element.to_le_bytes(), &count.to_le_bytes()[..], elements].concat();
        self.raw(key, 9, payload)
    }

    pub fn strs(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| string(value.as_bytes())).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    pub fn u32s(self, key: &str, values: &[u32]) -> Self {
        self.array(
            key,
            4,
            values.len() as u64,
            &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(),
        )
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(
            key,
            5,
            values.len() as u64,
            &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(),
        )
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(
            key,
            6,
            values.len() as u64,
            &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(),
        )
    }

    /// A tensor by its type number; `dims` innermost first.
    pub fn tensor(self, name: &str, dims: &[u64], kind: u32, data: impl Into<Vec<u8>>) -> Self {
        let tensor = GgufTensor { name: name.to_owned(), dims: dims.to_vec(), kind, offset: None, data: data.into() };
        self.table_line(tensor)
    }

    /// An F32 tensor; `dims` innermost first.
    pub fn f32_tensor(self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        self.tensor(name, dims, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn table_line(mut self, tensor: GgufTensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, payload) in &self.entries {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(payload);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// A GGUF string: its length, then its bytes.
pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A safetensors file of that header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A safetensors file of F32 tensors.
pub fn safetensors_f32(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut header = Vec::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let end = data.len();
        header.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
    }
    safetensors(&format!("{{{}}}", header.join(",")), &data)
}

/// A folder of its own, removed when dropped.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}
