//! What a model's files say about text: tokenizer, chat template, end-of-sequence ids, sampling defaults.

use anyhow::Context;
use powertrain_model::{Model, config::GenerationConfig, model::Source};
use powertrain_server::SamplingDefaults;
use powertrain_text::{ChatTemplate, ChatTemplateSources, GgufVocabulary, TokenId, Tokenizer, TokenizerError};
use std::{path::Path, sync::Arc};

/// A model's text side.
pub(crate) struct TextSide {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<Arc<ChatTemplate>>,
    /// Tokens that end a generation.
    pub(crate) eos_token_ids: Vec<TokenId>,
    /// What the model's makers recommend.
    pub(crate) defaults: SamplingDefaults,
}

impl TextSide {
    /// Of a model; its chat template may be replaced by a file's.
    pub(crate) fn open(model: &Model, chat_template: Option<&Path>) -> anyhow::Result<Self> {
        let (tokenizer, own_template, generation) = match model.source() {
            Source::Gguf(metadata) => {
                let tokenizer = Tokenizer::from_gguf(metadata)?;
                (tokenizer, ChatTemplateSources::from_gguf(metadata)?, GenerationConfig::default())
            }
            Source::Folder(folder) => {
                let tokenizer = match folder.join("tokenizer.json").exists() || !model.is_dummy() {
                    true => Tokenizer::from_folder(folder)?,
                    false => bytes()?,
                };
                (tokenizer, ChatTemplateSources::from_folder(folder)?, generation_config(folder)?)
            }
        };
        let template = match chat_template {
            Some(path) => {
                let default = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read --chat-template {}", path.display()))?;
                Some(ChatTemplateSources { default, tool_use: None })
            }
            None => own_template,
        };
        let template = template.map(|sources| ChatTemplate::new(&sources, &tokenizer)).transpose()?;
        let mut eos_token_ids = tokenizer.end_of_generation().to_vec();
        eos_token_ids.extend(&generation.eos_token_ids);
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
            eos_token_ids,
            defaults: SamplingDefaults {
                temperature: generation.temperature,
                top_k: generation.top_k,
                top_p: generation.top_p,
                min_p: generation.min_p,
                repetition_penalty: generation.repetition_penalty,
            },
        })
    }
}

/// A token for each byte: for made-up weights without a tokenizer. Ids past them have no text.
fn bytes() -> Result<Tokenizer, TokenizerError> {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for the letters from U+0100 on.
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    let letter = |byte: u8| match is_printable(byte) {
        true => Some(char::from(byte)),
        false => others.next().and_then(char::from_u32),
    };
    let mut letters: Vec<String> = (0..=u8::MAX).filter_map(letter).map(String::from).collect();
    // A vocabulary has merges. This one is of two bytes that no UTF-8 text has.
    letters.push("\u{FE}\u{FF}".to_owned());
    Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: letters.iter().map(String::as_str).collect(),
        merges: vec!["\u{FE} \u{FF}"],
        ..GgufVocabulary::default()
    })
}

/// Models without the file have no recommendations.
fn generation_config(folder: &Path) -> anyhow::Result<GenerationConfig> {
    let path = folder.join("generation_config.json");
    if path.exists() { Ok(GenerationConfig::open(&path)?) } else { Ok(GenerationConfig::default()) }
}

#[cfg(test)]
mod tests {
    use super::bytes;
    use powertrain_text::{AddSpecial, ParseSpecial};

    #[test]
    fn bytes_are_tokens() {
        let tokenizer = bytes().unwrap();
        let text = "Grüße,\n\t\u{0}world 123";
        let ids = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}
