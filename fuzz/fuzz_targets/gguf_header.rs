//! Any bytes as a GGUF file: an error, or a checkpoint whose every tensor and value can be read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powertrain_model::Checkpoint;
use powertrain_model::bytes::FileBytes;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_gguf(FileBytes::Owned(bytes.to_vec()), Path::new("fuzz.gguf")) else {
        return;
    };
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.tensor(name).expect("it was just named");
        let row_bytes = tensor.format.row_bytes(tensor.columns).expect("rows are whole blocks");
        assert_eq!(tensor.data.len(), tensor.rows * row_bytes);
    }
    let metadata = checkpoint.metadata().expect("a GGUF file has metadata");
    for key in metadata.keys() {
        let _ = metadata.get_u32(key);
        let _ = metadata.get_u64(key);
        let _ = metadata.get_f32(key);
        let _ = metadata.get_bool(key);
        let _ = metadata.get_str(key);
        let _ = metadata.get_strs(key);
        let _ = metadata.get_u32s(key);
        let _ = metadata.get_f32s(key);
    }
});
