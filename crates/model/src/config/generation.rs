//! [`GenerationConfig`]: the defaults that a model's makers recommend for sampling.

use super::Config;
use crate::error::ModelError;
use std::path::Path;

/// What of `generation_config.json` a server needs. A request's own values win over these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a sequence; empty when the file does not say.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// 0.0 where the file says `"do_sample": false`, which means greedy.
    pub temperature: Option<f32>,
    /// Keep this many of the highest logits; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens that reaches this probability.
    pub top_p: Option<f32>,
    /// Drop tokens less probable than this fraction of the best.
    pub min_p: Option<f32>,
    /// CTRL's penalty; 1.0 is off.
    pub repetition_penalty: Option<f32>,
    /// Tokens a continuation may have by default.
    pub max_new_tokens: Option<u32>,
}

impl GenerationConfig {
    /// Reads the file of this path.
    ///
    /// # Errors
    /// When it cannot be read, or a field has the wrong type or an impossible value.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::from_config(&Config::open(path)?)
    }

    /// Takes the fields from a `generation_config.json`, or from a `config.json` where there is no other file.
    ///
    /// # Errors
    /// When a field has the wrong type or an impossible value.
    pub fn from_config(config: &Config) -> Result<Self, ModelError> {
        let number = |field: &str, low: f64, high: f64| match config.number(field)? {
            Some(value) if !(low..=high).contains(&value) => {
                Err(config.wrong(field, format!("a number from {low} to {high}"), "correct the file"))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        let count = |field: &str| match config.count(field)? {
            Some(value) => u32::try_from(value)
                .map(Some)
                .map_err(|_| config.wrong(field, "an integer below 2^32", "correct the file")),
            None => Ok(None),
        };
        let greedy = config.flag("do_sample")? == Some(false);
        let temperature = number("temperature", 0.0, 100.0)?;
        Ok(Self {
            eos_token_ids: config.token_ids("eos_token_id")?.unwrap_or_default(),
            bos_token_id: config.token_ids("bos_token_id")?.and_then(|ids| ids.first().copied()),
            temperature: if greedy { Some(0.0) } else { temperature },
            top_k: count("top_k")?,
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            repetition_penalty: number("repetition_penalty", 0.01, 100.0)?,
            max_new_tokens: count("max_new_tokens")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<GenerationConfig, ModelError> {
        GenerationConfig::from_config(&Config::parse(Path::new("generation_config.json"), json.as_bytes())?)
    }

    #[test]
    fn published_forms() {
        let llama = parse(
            r#"{"bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128008, 128009],
                "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.42.3"}"#,
        );
        let expected = GenerationConfig {
            eos_token_ids: vec![128001, 128008, 128009],
            bos_token_id: Some(128000),
            temperature: Some(0.6),
            top_p: Some(0.9),
            ..GenerationConfig::default()
        };
        assert_eq!(llama.unwrap(), expected);
        let single = parse(r#"{"eos_token_id": 2, "do_sample": false, "temperature": 0.7}"#).unwrap();
        assert_eq!((single.eos_token_ids, single.temperature), (vec![2], Some(0.0)));
    }

    #[test]
    fn impossible_values_are_refused() {
        let check = |json: &str, expected: &str| {
            let message = parse(json).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(r#"{"top_p": 1.5}"#, "top_p: found 1.5, expected a number from 0 to 1");
        check(r#"{"eos_token_id": [-1]}"#, "eos_token_id: found [-1], expected a token id");
        check(r#"{"top_k": 5000000000}"#, "top_k: found 5000000000, expected an integer below 2^32");
    }
}
