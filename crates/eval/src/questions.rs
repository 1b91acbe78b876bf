//! Questions with exact answers: a file of JSON lines, one question each.
//!
//! ```text
//! {"kind": "arithmetic", "question": "What is 7 * 8? Answer with the number only.", "match": "number", "answers": ["56"]}
//! ```
//!
//! A small set shows that something broke, not which of two good models is better: the interval says how small it is.

use powertrain_compare::share_interval;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The questions that come with this program.
pub const OWN: &str = include_str!("questions.jsonl");
/// Most questions of a file.
const QUESTIONS_MAX: usize = 100_000;
/// Numbers this close are equal.
const NUMBER_TOLERANCE: f64 = 1e-6;

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// A group, for the result by kind.
    #[serde(default = "other")]
    pub kind: String,
    /// What is asked.
    pub question: String,
    /// How a reply is held against the answers.
    #[serde(rename = "match")]
    pub matching: Matching,
    /// Any of these is right.
    pub answers: Vec<String>,
}

/// How a reply is held against the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// The last number in the reply is the answer.
    Number,
    /// The answer's words stand in the reply, whatever the case.
    Words,
    /// The reply is the answer, but for space around it.
    Exact,
    /// The reply is this JSON, in a code fence or not.
    Json,
}

/// A reply, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The question's kind.
    pub kind: String,
    /// What was asked.
    pub question: String,
    /// What is right.
    pub answers: Vec<String>,
    /// What was said; null when the server failed.
    pub reply: Option<String>,
    /// Why there is no reply.
    pub error: Option<String>,
    /// It is right.
    pub right: bool,
}

/// Right answers of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Right ones.
    pub right: u64,
    /// Questions.
    pub questions: u64,
    /// Share of right ones.
    pub accuracy: f64,
    /// Wilson's 95 % interval, as if the questions had been drawn from many alike.
    pub accuracy_interval: (f64, f64),
}

/// Why a file cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionsError {
    /// A line.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Nothing in it.
    #[error("no questions; write one JSON object a line, with `question`, `match` and `answers`")]
    Empty,
    /// Too much in it.
    #[error("more than {QUESTIONS_MAX} questions")]
    TooMany,
}

/// Reads a file's text.
///
/// # Errors
/// The first line that is no question.
pub fn read(text: &str) -> Result<Vec<Question>, QuestionsError> {
    let mut questions = Vec::new();
    for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason: String| QuestionsError::Line { line: place + 1, reason };
        let question: Question = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if question.answers.is_empty() {
            return Err(wrong("no answers".to_owned()));
        }
        let unfit = question.answers.iter().find(|answer| match question.matching {
            Matching::Number => answer.parse::<f64>().is_err(),
            Matching::Json => serde_json::from_str::<Value>(answer).is_err(),
            Matching::Words => words(answer).is_empty(),
            Matching::Exact => false,
        });
        if let Some(answer) = unfit {
            return Err(wrong(format!("`{answer}` is no answer of this kind")));
        }
        questions.push(question);
        if questions.len() > QUESTIONS_MAX {
            return Err(QuestionsError::TooMany);
        }
    }
    if questions.is_empty() { Err(QuestionsError::Empty) } else { Ok(questions) }
}

impl Question {
    /// Whether a reply is right.
    pub fn is_right(&self, reply: &str) -> bool {
        self.answers.iter().any(|answer| match self.matching {
            Matching::Number => {
                let given = numbers(reply).pop();
                given
                    .zip(answer.parse().ok())
                    .is_some_and(|(given, right): (f64, f64)| (given - right).abs() < NUMBER_TOLERANCE)
            }
            Matching::Words => {
                let (said, right) = (words(reply), words(answer));
                said.windows(right.len()).any(|window| window == right)
            }
            Matching::Exact => reply.trim() == answer,
            Matching::Json => {
                let (said, right) =
                    (serde_json::from_str::<Value>(unfenced(reply)), serde_json::from_str::<Value>(answer));
                said.is_ok_and(|said| right.is_ok_and(|right| said == right))
            }
        })
    }

    /// Judges a reply, or the lack of one, which is wrong.
    pub fn judge(&self, reply: Result<String, String>) -> Judged {
        let right = reply.as_ref().is_ok_and(|reply| self.is_right(reply));
        let (reply, error) = match reply {
            Ok(reply) => (Some(reply), None),
            Err(error) => (None, Some(error)),
        };
        let Self { kind, question, answers, .. } = self.clone();
        Judged { kind, question, answers, reply, error, right }
    }
}

impl Score {
    /// Of some replies.
    pub fn of<'a>(judged: impl Iterator<Item = &'a Judged>) -> Self {
        let (right, questions) = judged.fold((0, 0), |(right, all), one| (right + u64::from(one.right), all + 1));
        let accuracy = if questions == 0 { 0.0 } else { right as f64 / questions as f64 };
        Self { right, questions, accuracy, accuracy_interval: share_interval(right, questions, 0.95) }
    }

    /// By kind.
    pub fn by_kind(judged: &[Judged]) -> BTreeMap<String, Self> {
        let kinds: std::collections::BTreeSet<&String> = judged.iter().map(|one| &one.kind).collect();
        let of = |kind: &String| Self::of(judged.iter().filter(|one| one.kind == *kind));
        kinds.into_iter().map(|kind| (kind.clone(), of(kind))).collect()
    }
}

fn other() -> String {
    "other".to_owned()
}

/// Numbers in the order of a text; commas between digits are thousands.
fn numbers(text: &str) -> Vec<f64> {
    let characters: Vec<char> = text.chars().collect();
    let (mut numbers, mut current) = (Vec::new(), String::new());
    for (place, &character) in characters.iter().enumerate() {
        let next_is_digit = characters.get(place + 1).is_some_and(char::is_ascii_digit);
        let after_digit = current.ends_with(|c: char| c.is_ascii_digit());
        let belongs = character.is_ascii_digit()
            || (character == '.' && after_digit && next_is_digit && !current.contains('.'))
            || (matches!(character, '-' | '\u{2212}') && current.is_empty() && next_is_digit);
        if belongs {
            current.push(if character == '\u{2212}' { '-' } else { character });
        } else if !(character == ',' && after_digit && next_is_digit) {
            numbers.extend(std::mem::take(&mut current).parse::<f64>());
        }
    }
    numbers.extend(current.parse::<f64>());
    numbers
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|character: char| !character.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// A reply without the fence that models put around code.
fn unfenced(reply: &str) -> &str {
    let reply = reply.trim();
    let Some(inside) = reply.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else { return reply };
    inside.split_once('\n').map_or(inside, |(_, code)| code).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(matching: Matching, answer: &str, reply: &str) -> bool {
        let question = Question { kind: other(), question: String::new(), matching, answers: vec![answer.to_owned()] };
        question.is_right(reply)
    }

    #[test]
    fn replies_are_held_against_answers() {
        use Matching::{Exact, Json, Number, Words};
        for (matching, answer, reply, expected) in [
            (Number, "56", "56", true),
            (Number, "56", "7 * 8 = 56.", true),
            (Number, "56", "56 is 7 * 8", false),
            (Number, "1234567", "The answer is **1,234,567**.", true),
            (Number, "-3", "It is \u{2212}3", true),
            (Number, "0.5", "0.50", true),
            (Number, "5", "no number", false),
            (Number, "-7", "10-7", false),
            (Words, "Paris", "The capital of France is PARIS.", true),
            (Words, "Paris", "Parish", false),
            (Words, "carbon dioxide", "Carbon  dioxide!", true),
            (Exact, "OK", " OK\n", true),
            (Exact, "OK", "OK.", false),
            (Json, "{\"a\": 1, \"b\": [2]}", "```json\n{\"b\": [2], \"a\": 1}\n```", true),
            (Json, "{\"a\": 1}", "{\"a\": 1} is it", false),
        ] {
            assert_eq!(right(matching, answer, reply), expected, "{matching:?} {answer}: {reply}");
        }
    }

    #[test]
    fn our_own_questions_can_be_answered() {
        let questions = read(OWN).unwrap();
        assert!(questions.len() >= 60, "{}", questions.len());
        for question in &questions {
            assert!(question.is_right(&question.answers[0]), "{}", question.question);
            assert!(!question.is_right(""), "{}", question.question);
        }
        let mut texts: Vec<&str> = questions.iter().map(|question| question.question.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), questions.len(), "a question stands twice");
    }

    #[test]
    fn bad_lines_are_named() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        assert!(error("\n{}").contains("line 2"));
        assert!(error(r#"{"question": "q", "match": "number", "answers": ["x"]}"#).contains("`x`"));
        assert!(error(r#"{"question": "q", "match": "number", "answers": []}"#).contains("no answers"));
        assert_eq!(read(""), Err(QuestionsError::Empty));
    }

    #[test]
    fn scores_carry_intervals() {
        let question = read(OWN).unwrap().remove(0);
        let judged = [
            question.judge(Ok(question.answers[0].clone())),
            question.judge(Ok("wrong".to_owned())),
            question.judge(Err("refused".to_owned())),
        ];
        let score = Score::of(judged.iter());
        assert_eq!((score.right, score.questions), (1, 3));
        assert!(score.accuracy_interval.0 < 1.0 / 3.0 && score.accuracy_interval.1 > 1.0 / 3.0);
        assert_eq!(Score::by_kind(&judged)[&question.kind].questions, 3);
    }
}
