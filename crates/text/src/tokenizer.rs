//! [`Tokenizer`]: text to token ids and back.

use crate::{
    TokenId,
    byte_level::ByteLevel,
    detokenizer::Detokenizer,
    hugging_face::HuggingFace,
    merge::Merger,
    sentence_piece::SentencePiece,
    special::{Piece, SpecialTokens},
    vocabulary::{TokenKind, Vocabulary},
};
use std::{io, path::PathBuf};

/// The longest text that [`Tokenizer::encode`] takes.
pub const TEXT_BYTES_MAX: usize = 256 << 20;

/// Whether the tokens that the model wants around a text (BOS, EOS) are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// As the model's files say.
    Yes,
    /// Never: a rendered chat template has its own.
    No,
}

/// Whether control tokens written out in the text (`<|im_start|>`) become those tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSpecial {
    /// They do: for rendered chat templates.
    Yes,
    /// They are plain text: for text of users, who must not forge a turn.
    No,
}

/// A model's tokenizer. Immutable; share it by `Arc`.
pub struct Tokenizer {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) specials: SpecialTokens,
    pub(crate) special_ids: SpecialIds,
    pub(crate) encoder: Encoder,
    /// Whether the first space of a text that starts with a text token is not the text's own.
    pub(crate) strip_leading_space: bool,
}

pub(crate) enum Encoder {
    ByteLevel(ByteLevel),
    SentencePiece(SentencePiece),
    HuggingFace(Box<HuggingFace>),
}

/// The ids with a meaning of their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    pub(crate) unknown: Option<TokenId>,
    pub(crate) padding: Option<TokenId>,
    /// Ascending.
    pub(crate) end_of_generation: Vec<TokenId>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
}

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A `tokenizer.ggml.model` that is not built in.
    #[error(
        "tokenizer.ggml.model is {model:?}; supported are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece); use another GGUF file, or a folder with tokenizer.json"
    )]
    UnknownModel {
        /// What the file says.
        model: String,
    },
    /// A `tokenizer.ggml.pre` that is not built in.
    #[error(
        "tokenizer.ggml.pre is {pre:?}, which this build does not know, and another rule would give wrong ids; known: {known}"
    )]
    UnknownPreTokenizer {
        /// What the file says.
        pre: String,
        /// What it could say.
        known: String,
    },
    /// A field is not there.
    #[error("{field} is missing or empty; the file has no usable tokenizer")]
    Missing {
        /// The key or file.
        field: &'static str,
    },
    /// A field does not hold what it must.
    #[error("{field}: {problem}")]
    Invalid {
        /// The key or file.
        field: String,
        /// What was found.
        problem: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] powertrain_model::ModelError),
    /// A file beside it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The special tokens are too many or too long for their finder.
    #[error("the special tokens cannot be searched for: {0}")]
    SpecialTokens(#[from] aho_corasick::BuildError),
}

impl TokenizerError {
    pub(crate) fn missing(field: &'static str) -> Self {
        Self::Missing { field }
    }

    pub(crate) fn invalid(field: impl Into<String>, problem: String) -> Self {
        Self::Invalid { field: field.into(), problem }
    }
}

/// Why a text has no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("the text has {bytes} bytes; the tokenizer takes at most {TEXT_BYTES_MAX}")]
    TextTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The rules of a tokenizer.json do not cover it.
    #[error("the tokenizer could not encode the text: {0}")]
    Failed(String),
}

impl Tokenizer {
    /// The ids of `text`.
    pub fn encode(&self, text: &str, add: AddSpecial, parse: ParseSpecial) -> Result<Vec<TokenId>, EncodeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(EncodeError::TextTooLong { bytes: text.len() });
        }
        let (add, parse) = (add == AddSpecial::Yes, parse == ParseSpecial::Yes);
        match &self.encoder {
            Encoder::HuggingFace(encoder) => encoder.encode(text, add, parse),
            Encoder::ByteLevel(encoder) => Ok(self.encode_pieces(text, add, parse, |text, _, merger, out| {
                encoder.encode(&self.vocabulary, text, merger, out);
            })),
            Encoder::SentencePiece(encoder) => {
                Ok(self.encode_pieces(text, add, parse, |text, after_special, merger, out| {
                    encoder.encode(&self.vocabulary, text, after_special, merger, out);
                }))
            }
        }
    }

    /// Cuts special tokens out and encodes what is between; `encode` is told whether a special token or nothing stands before.
    fn encode_pieces(
        &self,
        text: &str,
        add: bool,
        parse: bool,
        encode: impl Fn(&str, bool, &mut Merger, &mut Vec<TokenId>),
    ) -> Vec<TokenId> {
        let ids = &self.special_ids;
        let mut out = Vec::with_capacity(text.len() / 4 + 4);
        if add && ids.add_bos {
            out.extend(ids.bos);
        }
        let mut merger = Merger::default();
        let mut after_special = true;
        self.specials.partition(text, parse, |piece| match piece {
            Piece::Token(token) => {
                out.push(token);
                after_special = true;
            }
            Piece::Text(text) => {
                encode(text, after_special, &mut merger, &mut out);
                after_special = false;
            }
        });
        if add && ids.add_eos {
            out.extend(ids.eos);
        }
        out
    }

    /// The text of `ids`, from its beginning. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId], show_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::at_start(self, show_special);
        for &id in ids {
            detokenizer.push(self, id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes a token stands for: part of a character, maybe; of a control token, its name. None for an id the
    /// tokenizer does not have (models pad their embeddings).
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// What a token is for; `None` for an id the tokenizer does not have.
    pub fn token_kind(&self, id: TokenId) -> Option<TokenKind> {
        self.vocabulary.kind(id)
    }

    /// The control, unknown or user-defined token that is written exactly so.
    pub fn special_token(&self, text: &str) -> Option<TokenId> {
        let mut found = None;
        let mut pieces = 0;
        self.specials.partition(text, true, |piece| {
            pieces += 1;
            found = if let Piece::Token(token) = piece { Some(token) } else { None };
        });
        found.filter(|_| pieces == 1)
    }

    /// Number of tokens; ids are below it. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<TokenId> {
        self.special_ids.bos
    }

    /// The end-of-sequence token that the files name.
    pub fn eos(&self) -> Option<TokenId> {
        self.special_ids.eos
    }

    /// The padding token.
    pub fn padding(&self) -> Option<TokenId> {
        self.special_ids.padding
    }

    /// The special tokens' texts under the names that chat templates know.
    pub fn named_special_tokens(&self) -> Vec<(&'static str, String)> {
        let ids = &self.special_ids;
        let named =
            [("bos_token", ids.bos), ("eos_token", ids.eos), ("unk_token", ids.unknown), ("pad_token", ids.padding)];
        let text = |id| String::from_utf8_lossy(self.token_bytes(id)).into_owned();
        named.into_iter().filter_map(|(name, id)| Some((name, text(id?)))).collect()
    }

    /// All tokens that end a generation, ascending: end of sequence, of turn, of message.
    pub fn end_of_generation(&self) -> &[TokenId] {
        &self.special_ids.end_of_generation
    }

    /// Whether [`AddSpecial::Yes`] puts the beginning-of-sequence token first.
    pub fn adds_bos(&self) -> bool {
        self.special_ids.add_bos
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.encoder {
            Encoder::ByteLevel(_) => "byte-level BPE",
            Encoder::SentencePiece(_) => "SentencePiece",
            Encoder::HuggingFace(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer").field("kind", &kind).field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
