//! The tokenizer and chat template of a Hugging Face folder: tokenizer.json by the `tokenizers` crate, and the small files
//! beside it.

use crate::{
    TokenId,
    byte_level::Alphabet,
    chat_template::ChatTemplateSources,
    gguf::parse_byte_token,
    sentence_piece::SPACE_SIGN,
    special::SpecialTokens,
    tokenizer::{EncodeError, Encoder, SpecialIds, Tokenizer, TokenizerError},
    vocabulary::{TokenKind, Vocabulary},
};
use serde_json::Value as Json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The largest file that is read; the largest tokenizer.json of today has 33 MB.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// The highest id; today's largest vocabularies have 262,144 tokens.
const TOKENS_MAX: usize = 1 << 24;

/// Encoding by the `tokenizers` crate.
pub(crate) struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    /// The same but for taking control tokens as text; the crate has no switch per call. Made when first needed.
    literal: OnceLock<Box<tokenizers::Tokenizer>>,
}

impl HuggingFace {
    pub(crate) fn encode(&self, text: &str, add: bool, parse: bool) -> Result<Vec<TokenId>, EncodeError> {
        let tokenizer = if parse {
            &self.tokenizer
        } else {
            self.literal.get_or_init(|| {
                let mut tokenizer = self.tokenizer.clone();
                tokenizer.set_encode_special_tokens(true);
                Box::new(tokenizer)
            })
        };
        let encoding = tokenizer.encode_fast(text, add).map_err(|error| EncodeError::Failed(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Tokenizer {
    /// The tokenizer of a folder with tokenizer.json; tokenizer_config.json, generation_config.json and config.json say which
    /// tokens begin and end a text.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let Some(bytes) = read(&path)? else {
            let found = ["tokenizer.model", "vocab.json"].into_iter().find(|name| folder.join(name).exists());
            let hint = found.map_or(String::new(), |name| format!("; {name} alone will not do"));
            return Err(TokenizerError::invalid(
                path.display().to_string(),
                format!(
                    "not found{hint}; save the tokenizer with transformers' PreTrainedTokenizerFast, which writes it"
                ),
            ));
        };
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let mut end = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let ids = read_json(&folder.join(name))?.unwrap_or_default();
            match &ids["eos_token_id"] {
                Json::Array(ids) => end.extend(ids.iter().filter_map(Json::as_u64)),
                id => end.extend(id.as_u64()),
            }
        }
        Self::from_tokenizer_json(&bytes, &config, &end)
            .map_err(|problem| TokenizerError::invalid(path.display().to_string(), problem))
    }

    /// From the contents of tokenizer.json and tokenizer_config.json, and the ids that end a generation.
    fn from_tokenizer_json(json: &[u8], config: &Json, end: &[u64]) -> Result<Self, String> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        let writing = Writing::of(&decoder)?;
        let vocabulary = vocabulary(&tokenizer, &writing)?;
        let named = |name: &str| {
            let text = config[name].as_str().or_else(|| config[name]["content"].as_str())?;
            tokenizer.token_to_id(text)
        };
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let mut end_of_generation: Vec<TokenId> = end
            .iter()
            .filter_map(|&id| TokenId::try_from(id).ok())
            .filter(|&id| (id as usize) < vocabulary.len())
            .collect();
        end_of_generation.extend(eos);
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        let around = tokenizer.encode_fast("", true).map_err(|error| error.to_string())?;
        let special_ids = SpecialIds {
            bos,
            eos,
            unknown: named("unk_token"),
            padding: named("pad_token"),
            add_bos: bos.is_some() && around.get_ids().first().copied() == bos,
            add_eos: eos.is_some() && around.get_ids().last().copied() == eos,
            end_of_generation,
        };
        let specials = SpecialTokens::new(&vocabulary).map_err(|error| error.to_string())?;
        let encoder = Encoder::HuggingFace(Box::new(HuggingFace { tokenizer, literal: OnceLock::new() }));
        Ok(Self { vocabulary, specials, special_ids, encoder, strip_leading_space: writing.strip_leading_space })
    }
}

impl ChatTemplateSources {
    /// The templates of a folder: chat_template.jinja, or the field of tokenizer_config.json (one, or a list with names);
    /// `None` if it has none.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        let text = |name: &str| -> Result<Option<String>, TokenizerError> {
            let path = folder.join(name);
            let text = read(&path)?.map(String::from_utf8).transpose();
            text.map_err(|error| TokenizerError::invalid(path.display().to_string(), error.to_string()))
        };
        if let Some(default) = text("chat_template.jinja")? {
            return Ok(Some(Self { default, tool_use: text("additional_chat_templates/tool_use.jinja")? }));
        }
        let path = folder.join("tokenizer_config.json");
        let config = read_json(&path)?.unwrap_or_default();
        let mut field = config["chat_template"].clone();
        if field.is_null() {
            field = read_json(&folder.join("chat_template.json"))?.unwrap_or_default()["chat_template"].clone();
        }
        let named = |name: &str| {
            let templates = field.as_array().into_iter().flatten();
            let template = templates.into_iter().find(|template| template["name"] == name)?;
            template["template"].as_str().map(str::to_owned)
        };
        match &field {
            Json::Null => Ok(None),
            Json::String(default) => Ok(Some(Self { default: default.clone(), tool_use: None })),
            Json::Array(_) if named("default").is_some() => {
                Ok(Some(Self { default: named("default").unwrap_or_default(), tool_use: named("tool_use") }))
            }
            _ => Err(TokenizerError::invalid(
                path.display().to_string(),
                "chat_template is neither a string nor a list with a template named \"default\"".to_owned(),
            )),
        }
    }
}

/// How tokens are written in tokenizer.json, by its decoder.
#[derive(Debug, PartialEq)]
struct Writing {
    /// In GPT-2's alphabet; otherwise as text with U+2581 for a space.
    byte_level: bool,
    /// Tokens like `<0x0A>` are bytes.
    byte_fallback: bool,
    strip_leading_space: bool,
}

impl Writing {
    fn of(decoder: &Json) -> Result<Self, String> {
        let mut writing = Self { byte_level: false, byte_fallback: false, strip_leading_space: false };
        let steps = if decoder["type"] == "Sequence" {
            decoder["decoders"].as_array().map(Vec::as_slice).unwrap_or_default()
        } else {
            std::slice::from_ref(decoder)
        };
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => writing.byte_level = true,
                Some("ByteFallback") => writing.byte_fallback = true,
                Some("Fuse") => {}
                Some("Replace") if step["pattern"]["String"] == SPACE_SIGN && step["content"] == " " => {}
                Some("Strip") if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                    writing.strip_leading_space = true;
                }
                Some("Metaspace") if step["replacement"] == SPACE_SIGN => {
                    writing.strip_leading_space = step["prepend_scheme"] != "never";
                }
                _ => {
                    return Err(format!(
                        "its decoder has the step {step}; supported are ByteLevel, ByteFallback, Fuse, Metaspace, and Replace and Strip of spaces"
                    ));
                }
            }
        }
        Ok(writing)
    }

    fn bytes(&self, alphabet: &Alphabet, token: &str, out: &mut Vec<u8>) {
        if self.byte_level {
            alphabet.decode(token, out);
        } else {
            out.extend_from_slice(token.replace(SPACE_SIGN, " ").as_bytes());
        }
    }
}

fn vocabulary(tokenizer: &tokenizers::Tokenizer, writing: &Writing) -> Result<Vocabulary, String> {
    let by_text = tokenizer.get_vocab(true);
    let added = tokenizer.get_added_tokens_decoder();
    let count = by_text.values().max().map_or(0, |&id| id as usize + 1);
    if count == 0 || count > TOKENS_MAX {
        return Err(format!(
            "its highest token id makes a vocabulary of {count}; from 1 to {TOKENS_MAX} are supported"
        ));
    }
    let mut texts: Vec<Option<&str>> = vec![None; count];
    for (text, &id) in &by_text {
        texts[id as usize] = Some(text);
    }
    let alphabet = Alphabet::new();
    let mut vocabulary = Vocabulary::with_capacity(count);
    let mut bytes = Vec::new();
    for (id, text) in texts.into_iter().enumerate() {
        bytes.clear();
        let kind = match (added.get(&(id as TokenId)), text) {
            (Some(token), _) => {
                bytes.extend_from_slice(token.content.as_bytes());
                if token.special { TokenKind::Control } else { TokenKind::UserDefined }
            }
            (None, Some(text)) => match parse_byte_token(text).filter(|_| writing.byte_fallback) {
                Some(byte) => {
                    bytes.push(byte);
                    TokenKind::Byte
                }
                None => {
                    writing.bytes(&alphabet, text, &mut bytes);
                    TokenKind::Normal
                }
            },
            (None, None) => TokenKind::Unused,
        };
        vocabulary.push(&bytes, kind);
    }
    Ok(vocabulary)
}

/// A file's bytes; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |error: io::Error| TokenizerError::Io { path: PathBuf::from(path), source: error };
    let refused = |problem: String| Err(TokenizerError::invalid(path.display().to_string(), problem));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        // A pipe would be waited for, a device read without end.
        Ok(metadata) if !metadata.is_file() => return refused("it is no regular file".to_owned()),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return refused(format!("it has {} bytes; at most {FILE_BYTES_MAX} are read", metadata.len()));
        }
        Ok(_) => {}
    }
    fs::read(path).map(Some).map_err(failed)
}

fn read_json(path: &Path) -> Result<Option<Json>, TokenizerError> {
    let json = read(path)?.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    json.map_err(|error| TokenizerError::invalid(path.display().to_string(), error.to_string()))
}
