//! Sliding windows: their size, and which layers have one.

use super::ModelError;
use crate::config::Config;

/// `sliding_window`: positions a windowed layer sees; null is none.
pub(super) fn size(config: &Config) -> Result<Option<usize>, ModelError> {
    match config.count("sliding_window")? {
        Some(0) => Err(config.wrong("sliding_window", "null or an integer of at least 1", "correct the file")),
        window => Ok(window),
    }
}

/// Each layer's window: by `layer_types` where the config lists them, else by the family's own rule.
pub(super) fn per_layer(
    config: &Config,
    layers: usize,
    window: Option<usize>,
    is_windowed: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    const FIELD: &str = "layer_types";
    let Some(types) = config.texts(FIELD)? else {
        return Ok((0..layers).map(|layer| window.filter(|_| is_windowed(layer))).collect());
    };
    if types.len() != layers {
        let expected = format!("one entry for each of {layers} layers, not {}", types.len());
        return Err(config.wrong(FIELD, expected, "correct the file"));
    }
    let layer_window = |kind: &str| match (kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => {
            Err(config.wrong(FIELD, "no sliding_attention, as sliding_window is off", "correct the file"))
        }
        _ => Err(config.wrong(FIELD, "only full_attention and sliding_attention", "use another model")),
    };
    types.into_iter().map(layer_window).collect()
}
