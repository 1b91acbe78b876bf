//! Sentences made of fixed words, numbers that know their origin, and words quoted from the input.

use crate::figure::Figure;
use serde::Serialize;

/// Part of a sentence.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Span {
    /// Words of ours; no digit that was measured stands in them.
    Words {
        /// The words.
        text: String,
    },
    /// A number.
    Number {
        /// With its origin.
        figure: Box<Figure>,
    },
    /// Words from a file of the user's: a name, an error message.
    Quoted {
        /// The words.
        text: String,
    },
}

/// A sentence, or a few.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Sentence(pub Vec<Span>);

/// Words from a file of the user's.
pub fn quoted(text: impl Into<String>) -> Span {
    Span::Quoted { text: text.into() }
}

impl From<&'static str> for Span {
    fn from(text: &'static str) -> Self {
        Self::Words { text: text.to_owned() }
    }
}

impl From<&Figure> for Span {
    fn from(figure: &Figure) -> Self {
        Self::Number { figure: Box::new(figure.clone()) }
    }
}

impl Sentence {
    /// Adds parts at the end.
    pub fn extend(&mut self, more: Sentence) {
        self.0.extend(more.0);
    }

    /// The plain text.
    pub fn text(&self) -> String {
        self.0
            .iter()
            .map(|span| match span {
                Span::Words { text } | Span::Quoted { text } => text.clone(),
                Span::Number { figure } => format!("{}{}", figure.with_unit(), figure.marks.sign()),
            })
            .collect()
    }
}
/// A [`Sentence`] of words, figures and quotations. Words are string literals, so that no number can be typed into them
/// at run time.
macro_rules! say {
    ($($part:expr),* $(,)?) => {
        $crate::sentence::Sentence(vec![$($crate::sentence::Span::from($part)),*])
    };
}
pub(crate) use say;
