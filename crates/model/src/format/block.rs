//! What all block formats share: the walk over blocks and the f16 scale.

use half::f16;

/// Each stored block with the elements it becomes.
pub(super) fn blocks<'a, const BYTES: usize, const ELEMENTS: usize>(
    stored: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; ELEMENTS])> {
    stored.as_chunks().0.iter().zip(out.as_chunks_mut().0)
}

/// The f16 at that byte.
pub(super) fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
