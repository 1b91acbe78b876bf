//! [`GgufVocabulary`]: what a GGUF file says about its tokenizer, and the [`Tokenizer`] made of it.

use crate::{
    TokenId,
    byte_level::{Alphabet, ByteLevel},
    chat_template::ChatTemplateSources,
    pre_tokenizer::PreTokenizer,
    sentence_piece::{SPACE_SIGN, SentencePiece},
    special::SpecialTokens,
    tokenizer::{Encoder, SpecialIds, Tokenizer, TokenizerError},
    vocabulary::{TokenKind, Vocabulary},
};
use powertrain_model::{ModelError, gguf::Metadata};

/// The `tokenizer.ggml.*` keys of a file, as they stand there.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary<'f> {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: &'f str,
    /// `pre`: which words text is cut into; only for `gpt2`.
    pub pre: Option<&'f str>,
    /// `tokens`, by id.
    pub tokens: Vec<&'f str>,
    /// `merges`, by rank; for `gpt2`.
    pub merges: Vec<&'f str>,
    /// `scores`, by id; for `llama`.
    pub scores: Vec<f32>,
    /// `token_type`, by id; empty: all are normal.
    pub token_types: Vec<u32>,
    /// `bos_token_id`
    pub bos: Option<TokenId>,
    /// `eos_token_id`
    pub eos: Option<TokenId>,
    /// `eot_token_id`
    pub end_of_turn: Option<TokenId>,
    /// `eom_token_id`
    pub end_of_message: Option<TokenId>,
    /// `unknown_token_id`
    pub unknown: Option<TokenId>,
    /// `padding_token_id`
    pub padding: Option<TokenId>,
    /// `add_bos_token`
    pub add_bos: Option<bool>,
    /// `add_eos_token`
    pub add_eos: Option<bool>,
    /// `add_space_prefix`
    pub add_space_prefix: Option<bool>,
}

/// Tokens that end a turn in the models that have them, whatever else the file says (the list is llama.cpp's).
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
];

impl Tokenizer {
    /// The tokenizer in a GGUF file.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::from_gguf_vocabulary(&GgufVocabulary::read(metadata)?)
    }

    /// The tokenizer that a GGUF file's vocabulary describes.
    pub fn from_gguf_vocabulary(file: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        file.check()?;
        match file.model {
            "gpt2" => byte_level(file),
            "llama" => sentence_piece(file),
            model => Err(TokenizerError::UnknownModel { model: model.to_owned() }),
        }
    }
}

impl ChatTemplateSources {
    /// The templates in a GGUF file; `None` if it has none.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, ModelError> {
        let Some(default) = metadata.get_str("tokenizer.chat_template")? else { return Ok(None) };
        let tool_use = metadata.get_str("tokenizer.chat_template.tool_use")?;
        Ok(Some(Self { default: default.to_owned(), tool_use: tool_use.map(str::to_owned) }))
    }
}

impl<'f> GgufVocabulary<'f> {
    /// Reads the keys of a file.
    pub fn read(metadata: &'f Metadata) -> Result<Self, TokenizerError> {
        Ok(Self {
            model: metadata.get_str("tokenizer.ggml.model")?.ok_or(TokenizerError::missing("tokenizer.ggml.model"))?,
            pre: metadata.get_str("tokenizer.ggml.pre")?,
            tokens: metadata.get_strs("tokenizer.ggml.tokens")?.unwrap_or_default(),
            merges: metadata.get_strs("tokenizer.ggml.merges")?.unwrap_or_default(),
            scores: metadata.get_f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            token_types: metadata.get_u32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
            bos: metadata.get_u32("tokenizer.ggml.bos_token_id")?,
            eos: metadata.get_u32("tokenizer.ggml.eos_token_id")?,
            end_of_turn: metadata.get_u32("tokenizer.ggml.eot_token_id")?,
            end_of_message: metadata.get_u32("tokenizer.ggml.eom_token_id")?,
            unknown: metadata.get_u32("tokenizer.ggml.unknown_token_id")?,
            padding: metadata.get_u32("tokenizer.ggml.padding_token_id")?,
            add_bos: metadata.get_bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.get_bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.get_bool("tokenizer.ggml.add_space_prefix")?,
        })
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let tokens = self.tokens.len();
        let bytes: usize = self.tokens.iter().map(|token| token.len()).sum();
        if tokens == 0 {
            return Err(TokenizerError::missing("tokenizer.ggml.tokens"));
        }
        if bytes >= u32::MAX as usize {
            return Err(TokenizerError::invalid(
                "tokenizer.ggml.tokens",
                format!("its {tokens} tokens have {bytes} bytes in all, the limit is 4 GiB"),
            ));
        }
        if !self.token_types.is_empty() && self.token_types.len() < tokens {
            return Err(TokenizerError::invalid(
                "tokenizer.ggml.token_type",
                format!("it has {} entries for {tokens} tokens", self.token_types.len()),
            ));
        }
        let ids = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.end_of_turn),
            ("tokenizer.ggml.eom_token_id", self.end_of_message),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
            ("tokenizer.ggml.padding_token_id", self.padding),
        ];
        for (key, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                return Err(TokenizerError::invalid(key, format!("it is {id}, the vocabulary has {tokens} tokens")));
            }
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> TokenKind {
        // Files exist whose end-of-turn token is not marked as what it is.
        if END_OF_GENERATION.contains(&self.tokens[id]) {
            return TokenKind::Control;
        }
        match self.token_types.get(id) {
            Some(2) => TokenKind::Unknown,
            Some(3) => TokenKind::Control,
            Some(4) => TokenKind::UserDefined,
            Some(5) => TokenKind::Unused,
            Some(6) => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }

    fn vocabulary(&self, text_bytes: impl Fn(&str, &mut Vec<u8>)) -> Result<Vocabulary, TokenizerError> {
        let mut vocabulary = Vocabulary::with_capacity(self.tokens.len());
        let mut bytes = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kind(id);
            bytes.clear();
            match kind {
                TokenKind::Normal | TokenKind::Unused => text_bytes(token, &mut bytes),
                TokenKind::Byte => bytes.push(parse_byte_token(token).ok_or_else(|| {
                    TokenizerError::invalid(
                        "tokenizer.ggml.tokens",
                        format!("token {id} is marked as a byte but is {token:?}, not of the form <0x0A>"),
                    )
                })?),
                TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
                    bytes.extend_from_slice(token.as_bytes());
                }
            }
            vocabulary.push(&bytes, kind);
        }
        Ok(vocabulary)
    }

    fn special_ids(&self, vocabulary: &Vocabulary, add_bos: bool) -> Result<SpecialIds, TokenizerError> {
        let add_bos = self.add_bos.unwrap_or(add_bos);
        let add_eos = self.add_eos.unwrap_or(false);
        for (add, key, id_key, id) in [
            (add_bos, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", self.bos),
            (add_eos, "tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", self.eos),
        ] {
            if add && id.is_none() {
                return Err(TokenizerError::invalid(key, format!("the token is to be added but {id_key} is missing")));
            }
        }
        let mut end: Vec<TokenId> = [self.eos, self.end_of_turn, self.end_of_message].into_iter().flatten().collect();
        let control = vocabulary.of_kind(TokenKind::Control);
        end.extend(control.filter(|&id| END_OF_GENERATION.contains(&self.tokens[id as usize])));
        // Where <|return|> and <|call|> end a generation, <|end|> only ends one of its messages.
        let has = |text: &str| end.iter().any(|&id| self.tokens[id as usize] == text);
        if has("<|return|>") && has("<|call|>") {
            end.retain(|&id| self.tokens[id as usize] != "<|end|>");
        }
        end.sort_unstable();
        end.dedup();
        Ok(SpecialIds {
            bos: self.bos,
            eos: self.eos,
            unknown: self.unknown,
            padding: self.padding,
            end_of_generation: end,
            add_bos,
            add_eos,
        })
    }
}

fn byte_level(file: &GgufVocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let pre = file.pre.unwrap_or("default");
    let pre_tokenizer = PreTokenizer::named(pre).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        pre: pre.to_owned(),
        known: PreTokenizer::known_names().join(", "),
    })?;
    if file.merges.is_empty() {
        return Err(TokenizerError::missing("tokenizer.ggml.merges"));
    }
    let alphabet = Alphabet::new();
    let vocabulary = file.vocabulary(|token, bytes| alphabet.decode(token, bytes))?;
    let special_ids = file.special_ids(&vocabulary, pre_tokenizer.add_bos)?;
    let encoder = ByteLevel::new(&vocabulary, pre_tokenizer, file.merges.iter().copied()).map_err(|bad| {
        TokenizerError::invalid(
            "tokenizer.ggml.merges",
            format!("merge {} ({:?}) joins or makes something that is no token", bad.index, file.merges[bad.index]),
        )
    })?;
    let specials = SpecialTokens::new(&vocabulary)?;
    Ok(Tokenizer {
        vocabulary,
        specials,
        special_ids,
        encoder: Encoder::ByteLevel(encoder),
        strip_leading_space: false,
    })
}

fn sentence_piece(file: &GgufVocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let tokens = file.tokens.len();
    if file.scores.len() < tokens {
        return Err(TokenizerError::invalid(
            "tokenizer.ggml.scores",
            format!("it has {} entries for {tokens} tokens", file.scores.len()),
        ));
    }
    let scores = &file.scores[..tokens];
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(TokenizerError::invalid("tokenizer.ggml.scores", format!("the score of token {id} is NaN")));
    }
    let vocabulary = file.vocabulary(|token, bytes| {
        for (index, part) in token.split(SPACE_SIGN).enumerate() {
            bytes.extend_from_slice(if index > 0 { b" " } else { b"" });
            bytes.extend_from_slice(part.as_bytes());
        }
    })?;
    let special_ids = file.special_ids(&vocabulary, true)?;
    let add_space_prefix = file.add_space_prefix.unwrap_or(true);
    let encoder = SentencePiece::new(&vocabulary, scores, file.unknown, add_space_prefix);
    let specials = SpecialTokens::new(&vocabulary)?;
    Ok(Tokenizer {
        vocabulary,
        specials,
        special_ids,
        encoder: Encoder::SentencePiece(encoder),
        strip_leading_space: add_space_prefix,
    })
}

/// The byte of a token like `<0x0A>`.
pub(crate) fn parse_byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
