//! Which shapes the executor takes: what it refuses of a model and of the settings, and to which sizes it rounds a step.

use crate::{CudaError, CudaOptions, Element};
use powertrain_model::spec::DecoderSpec;
use powertrain_step::StepLimits;

/// Batch sizes for which decode graphs are captured: the smallest that holds `sequences`.
pub(crate) fn bucket(sequences: usize) -> usize {
    match sequences {
        0..=2 => sequences.max(1),
        3..=4 => 4,
        5..=8 => 8,
        // The streaming kernel's ring holds more the fewer rows stand beside it.
        9..=16 => sequences.next_multiple_of(2),
        17..=32 => sequences.next_multiple_of(8),
        33..=128 => sequences.next_multiple_of(16),
        _ => sequences.next_multiple_of(32),
    }
}

/// Positions of a mixed step, padded so that few shapes of product occur.
pub(crate) fn padded_tokens(tokens: usize) -> usize {
    match tokens {
        0..=8 => tokens.max(1),
        9..=256 => tokens.next_multiple_of(16),
        257..=1024 => tokens.next_multiple_of(64),
        _ => tokens.next_multiple_of(128),
    }
}

/// Flash tiles that a step with prompts has room for, given how many it has.
pub(crate) fn tiles_bucket(tiles: usize) -> usize {
    if tiles == 0 { 0 } else { tiles.next_power_of_two() }
}

pub(crate) fn check_settings(limits: &StepLimits, options: &CudaOptions) -> Result<(), CudaError> {
    if !limits.block_size.is_multiple_of(16) || limits.block_size == 0 {
        return Err(CudaError::Setting(format!(
            "--block-size {} does not work on CUDA: it must be a multiple of 16",
            limits.block_size
        )));
    }
    let share = options.gpu_memory_utilization;
    if !(share > 0.0 && share <= 1.0) {
        return Err(CudaError::Setting(format!("--gpu-memory-utilization {share} must be above 0 and at most 1")));
    }
    Ok(())
}

/// What the kernels need of a model's shape.
pub(crate) fn check_spec(spec: &DecoderSpec, element: Element) -> Result<(), CudaError> {
    let refuse = |what: String| Err(CudaError::Unsupported(what));
    if element == Element::F16 && !Element::F16.holds_residuals(spec) {
        return refuse(
            "models that scale their embedding (Gemma) have residuals beyond float16's 65504: use --dtype bfloat16"
                .into(),
        );
    }
    if !spec.hidden_size.is_multiple_of(8) || spec.hidden_size > 16384 {
        return refuse(format!("hidden size {} is no multiple of 8 up to 16384", spec.hidden_size));
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let attention = &layer.attention;
        if attention.head_dim > 256 || !attention.head_dim.is_multiple_of(8) {
            return refuse(format!("layer {index} has head size {}, no multiple of 8 up to 256", attention.head_dim));
        }
        if !layer.feed_forward.hidden_size.is_multiple_of(8) {
            return refuse(format!(
                "layer {index} has feed-forward size {}, no multiple of 8",
                layer.feed_forward.hidden_size
            ));
        }
        if 2 * attention.rope.inverse_frequencies.len() > attention.head_dim {
            return refuse(format!("layer {index} rotates more elements than a head has"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_are_for() {
        for n in 1..2000 {
            assert!(bucket(n) >= n && bucket(bucket(n)) == bucket(n), "{n}");
            assert!(tiles_bucket(n) >= n && tiles_bucket(tiles_bucket(n)) == tiles_bucket(n), "{n}");
            assert!(padded_tokens(n) >= n && padded_tokens(padded_tokens(n)) == padded_tokens(n), "{n}");
        }
    }
}
