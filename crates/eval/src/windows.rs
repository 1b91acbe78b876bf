//! A text cut into the windows that a server is asked about.

use crate::{Endpoint, EndpointError};
use serde_json::json;

/// Longest text that is sent to be tokenized where the whole is refused: servers limit it by their longest sequence.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Where a server cannot tokenize, a window is so many characters per token asked for.
const CHARACTERS_PER_TOKEN: usize = 4;

/// A window as the server gets it.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
}

/// What windows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowsOf {
    /// The text's tokens, as in our own engine: numbers compare.
    Tokens,
    /// Tokens of pieces of the text, cut at line ends, since the server does not tokenize so long a text at once: some tokens
    /// at the cuts may differ from the text's own.
    TokensOfPieces,
    /// Characters: numbers compare with no others.
    Characters,
}

impl WindowsOf {
    /// As in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::TokensOfPieces => "tokens of pieces",
            Self::Characters => "characters",
        }
    }
}

/// A text as the server tokenizes it.
pub(crate) struct Tokenized {
    pub(crate) tokens: Vec<u32>,
    /// The token that the model wants first, if it does.
    pub(crate) bos: Option<u32>,
    pub(crate) windows_of: WindowsOf,
}

impl Endpoint {
    /// The text's tokens, by the server's own tokenizer; none where it has no such route. With the model's first tokens, or
    /// without.
    pub(crate) fn tokenize(&self, text: &str, add_special: bool) -> Option<Vec<u32>> {
        // vLLM's and ours; then llama.cpp's.
        let bodies = [
            json!({"model": self.model, "prompt": text, "add_special_tokens": add_special}),
            json!({"content": text, "add_special": add_special}),
        ];
        bodies.iter().find_map(|body| {
            let answer = self.ask("/tokenize", Some(body)).ok()?;
            let tokens = answer["tokens"].as_array()?.iter();
            let tokens: Option<Vec<u32>> = tokens.map(|token| u32::try_from(token.as_u64()?).ok()).collect();
            tokens.filter(|tokens| !tokens.is_empty())
        })
    }

    /// The text's tokens, with the first one that the model wants; none where the server cannot tokenize.
    pub(crate) fn tokens(&self, text: &str) -> Option<Tokenized> {
        let whole = self.tokenize(text, true);
        let windows_of = if whole.is_some() { WindowsOf::Tokens } else { WindowsOf::TokensOfPieces };
        let pieces = if whole.is_some() { vec![text] } else { pieces(text) };
        let (first, others) = pieces.split_first()?;
        let mut tokens = whole.or_else(|| self.tokenize(first, true))?;
        let bare = self.tokenize(first, false);
        let bos = bare.filter(|bare| bare.len() + 1 == tokens.len()).map(|_| tokens[0]);
        for piece in others {
            tokens.extend(self.tokenize(piece, false)?);
        }
        Some(Tokenized { tokens, bos, windows_of })
    }
}

impl Tokenized {
    /// Windows of `context` tokens that do not overlap. A beginning-of-sequence token takes the place of each one's first.
    pub(crate) fn windows(&self, context: usize) -> impl Iterator<Item = Vec<u32>> {
        self.tokens.chunks_exact(context).map(|window| {
            let mut window = window.to_vec();
            if let Some(bos) = self.bos {
                window[0] = bos;
            }
            window
        })
    }
}

/// No more text than the windows can take: tokens of sixteen bytes on average are unheard of, and one window is to spare.
pub(crate) fn beginning(text: &str, context: usize, windows_max: Option<usize>) -> &str {
    let enough = windows_max.and_then(|count| count.checked_add(1)?.checked_mul(context * 16)).unwrap_or(text.len());
    &text[..text.floor_char_boundary(enough)]
}

/// The windows of a text. A server that cannot tokenize gets windows of as many characters as such tokens usually have.
///
/// # Errors
/// When the text fills none.
pub(crate) fn windows(
    endpoint: &Endpoint,
    text: &str,
    context: usize,
    windows_max: Option<usize>,
) -> Result<(Vec<Prompt>, WindowsOf), EndpointError> {
    let text = beginning(text, context, windows_max);
    let most = windows_max.unwrap_or(usize::MAX);
    let (windows, windows_of): (Vec<Prompt>, WindowsOf) = match endpoint.tokens(text) {
        Some(found) => (found.windows(context).take(most).map(Prompt::Tokens).collect(), found.windows_of),
        None => {
            let characters: Vec<char> = text.chars().collect();
            let windows = characters.chunks_exact(context * CHARACTERS_PER_TOKEN).take(most);
            (windows.map(|window| Prompt::Text(window.iter().collect())).collect(), WindowsOf::Characters)
        }
    };
    if windows.is_empty() { Err(EndpointError::TooShort(context)) } else { Ok((windows, windows_of)) }
}

/// A text in pieces that end with lines, where lines are short enough.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while rest.len() > PIECE_BYTES_MAX {
        let most = rest.floor_char_boundary(PIECE_BYTES_MAX);
        let end = rest[..most].rfind('\n').map_or(most, |end| end + 1);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        let text = "a line of the text, ä\n".repeat(3000) + &"ö".repeat(40_000);
        let found = pieces(&text);
        assert!(found.len() > 5 && found.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES_MAX));
        assert!(found[0].ends_with('\n'));
        assert_eq!(found.concat(), text);
        assert_eq!(pieces("short"), ["short"]);
    }
}
