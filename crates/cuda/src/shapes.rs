//! Which shapes the executor takes: what it refuses of a model and of the settings, and to which sizes it rounds a step.

use crate::{CudaError, CudaOptions, Element, kernels::ROPE_REST_MAX, staging::SPAN_WORDS};
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
    if options.step_change_words <= SPAN_WORDS {
        return Err(CudaError::Setting(format!(
            "{} words of changes a step hold none; give more than {SPAN_WORDS}",
            options.step_change_words
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
        let rest = attention.head_dim - 2 * attention.rope.inverse_frequencies.len();
        if rest > ROPE_REST_MAX {
            return refuse(format!(
                "layer {index} leaves {rest} elements of a head of {} unrotated, more than {ROPE_REST_MAX}",
                attention.head_dim
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_model::{config::Config, family::describe_config};
    use std::path::Path;

    #[test]
    fn heads_are_refused_of_which_the_kernels_would_leave_a_part() {
        let json = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":512,"intermediate_size":512,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":256,"num_hidden_layers":1,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#;
        let config = Config::parse(Path::new("config.json"), json.as_bytes()).expect("valid");
        let mut spec = describe_config(&config, &|_| true).expect("a model").spec;
        let mut refused = |pairs: usize| {
            spec.layers[0].attention.rope.inverse_frequencies = vec![1.0; pairs].into();
            check_spec(&spec, Element::Bf16).err().map(|error| error.to_string())
        };
        assert_eq!([128, 64].map(&mut refused), [None, None], "128 elements are not rotated");
        let words = refused(63).expect("130 are too many");
        assert!(words.contains("layer 0") && words.contains("130 elements") && words.contains("than 128"), "{words}");
        assert!(refused(129).is_some_and(|words| words.contains("rotates more")));
    }

    #[test]
    fn buckets_hold_what_they_are_for() {
        for n in 1..2000 {
            assert!(bucket(n) >= n && bucket(bucket(n)) == bucket(n), "{n}");
            assert!(tiles_bucket(n) >= n && tiles_bucket(tiles_bucket(n)) == tiles_bucket(n), "{n}");
            assert!(padded_tokens(n) >= n && padded_tokens(padded_tokens(n)) == padded_tokens(n), "{n}");
        }
    }
}
