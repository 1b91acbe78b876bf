//! Plain numbers: F32, F16, BF16, little-endian, at any address.

use half::{bf16, f16};

pub(super) fn f32(stored: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(stored.as_chunks().0) {
        *out = f32::from_le_bytes(bytes);
    }
}

pub(super) fn f16(stored: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(stored.as_chunks().0) {
        *out = f16::from_le_bytes(bytes).to_f32();
    }
}

pub(super) fn bf16(stored: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(stored.as_chunks().0) {
        *out = bf16::from_le_bytes(bytes).to_f32();
    }
}
