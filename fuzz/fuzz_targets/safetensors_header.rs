//! Any bytes as a safetensors file: an error, or a checkpoint whose every tensor can be read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powertrain_model::Checkpoint;
use powertrain_model::bytes::FileBytes;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_safetensors(FileBytes::Owned(bytes.to_vec()), Path::new("fuzz.safetensors"))
    else {
        return;
    };
    for name in checkpoint.tensor_names() {
        let tensor = checkpoint.tensor(name).expect("it was just named");
        let row_bytes = tensor.format.row_bytes(tensor.columns).expect("rows are whole blocks");
        assert_eq!(tensor.data.len(), tensor.rows * row_bytes);
    }
});
