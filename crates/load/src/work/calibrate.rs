//! Which words are one token for a server, and what it adds to them: found by asking it to count.

use super::{Calibration, FIRST_WORD, WORDS};

/// Fewer one-token words than this make poor prompts.
const WORDS_MIN: usize = 32;
/// Words whose count is asked for together.
const GROUP: usize = 64;

/// Finds the one-token words among [`WORDS`] and the tokens around them. `count` tells how many tokens the server sees
/// in a prompt, template included; none when it cannot.
///
/// Words are joined by spaces, which no common tokenizer merges across: a text has as many tokens as words only when
/// each word is one.
pub fn calibrate(mut count: impl FnMut(&str) -> Option<u32>) -> Calibration {
    calibrated(&mut count).unwrap_or_else(|| Calibration::Words {
        words: WORDS.iter().map(|&word| word.to_owned()).collect(),
        overhead: 0,
        verified: false,
    })
}

fn calibrated(count: &mut impl FnMut(&str) -> Option<u32>) -> Option<Calibration> {
    let one = count(FIRST_WORD)?;
    let two = count(&format!("{FIRST_WORD} {FIRST_WORD}"))?;
    let overhead = one.checked_sub(1).filter(|_| two == one + 1)?;
    let mut words = Vec::new();
    for group in WORDS.chunks(GROUP) {
        keep_single(group, overhead, count, &mut words)?;
    }
    (words.len() >= WORDS_MIN).then_some(Calibration::Words { words, overhead, verified: true })
}

/// Keeps the words of a group that are one token each, halving the group where it has more tokens than words.
fn keep_single(
    group: &[&str],
    overhead: u32,
    count: &mut impl FnMut(&str) -> Option<u32>,
    words: &mut Vec<String>,
) -> Option<()> {
    let tokens = count(&format!("{FIRST_WORD} {}", group.join(" ")))?;
    if tokens == overhead + 1 + group.len() as u32 {
        words.extend(group.iter().map(|&word| word.to_owned()));
    } else if group.len() > 1 {
        let (left, right) = group.split_at(group.len() / 2);
        keep_single(left, overhead, count, words)?;
        keep_single(right, overhead, count, words)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer that splits long words in two, behind a template of 11 tokens.
    fn count(text: &str) -> u32 {
        11 + text.split(' ').map(|word| if word.len() > 7 { 2 } else { 1 }).sum::<u32>()
    }

    #[test]
    fn words_of_several_tokens_are_left_out() {
        let mut calls = 0;
        let calibration = calibrate(|text| {
            calls += 1;
            Some(count(text))
        });
        let Calibration::Words { words, overhead, verified } = calibration else { panic!("words") };
        let expected: Vec<&str> = WORDS.iter().copied().filter(|word| word.len() <= 7).collect();
        assert_eq!(words, expected);
        assert_eq!((overhead, verified), (11, true));
        assert!(calls < WORDS.len(), "{calls} calls");
    }

    #[test]
    fn what_cannot_be_counted_is_a_guess_and_says_so() {
        let none = |calibration| matches!(calibration, Calibration::Words { verified: false, overhead: 0, .. });
        assert!(none(calibrate(|_| None)));
        // Characters are no tokens: nothing is left.
        assert!(none(calibrate(|text| Some(text.len() as u32))));
    }

    #[test]
    fn the_list_has_no_word_twice() {
        let mut words = WORDS.clone();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), WORDS.len());
        assert!(!WORDS.contains(&FIRST_WORD));
    }
}
