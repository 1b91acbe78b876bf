//! Text on its way to a model and back: tokenizers, chat templates, incremental detokenisation, stop strings.
//!
//! Files in reading order: [`Tokenizer`] (`tokenizer.rs`) and where it comes from (`gguf.rs`, `hugging_face.rs`); what it is made of
//! (`vocabulary.rs`, `special.rs`, `pre_tokenizer.rs`, `merge.rs`, `byte_level.rs`, `sentence_piece.rs`); the way back
//! (`detokenizer.rs`, `stop.rs`); from messages to a prompt (`chat_template.rs`, `jinja.rs`).
#![forbid(unsafe_code)]

mod byte_level;
mod chat_template;
mod detokenizer;
mod gguf;
mod hugging_face;
mod jinja;
mod merge;
mod pre_tokenizer;
mod sentence_piece;
mod special;
mod stop;
#[cfg(test)]
mod testing;
mod tokenizer;
mod vocabulary;

pub use chat_template::{Chat, ChatTemplate, ChatTemplateError, ChatTemplateSources, ContentFormat};
pub use detokenizer::Detokenizer;
pub use gguf::GgufVocabulary;
pub use powertrain_sampling::TokenId;
pub use stop::{STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, StopError, StopMatcher};
pub use tokenizer::{AddSpecial, EncodeError, ParseSpecial, TEXT_BYTES_MAX, Tokenizer, TokenizerError};
pub use vocabulary::TokenKind;
