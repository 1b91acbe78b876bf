//! Prompts made to an exact length: token ids, or words of one token each around what the server adds.

use super::{BLOCK_TOKENS, Lengths, TraceRequest};
use crate::{openai::Prompt, random::Random};
use std::{ops::Range, sync::LazyLock};

/// Prompts of a drawn length, with a shared beginning if asked for.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Lengths of prompts as the server counts them, shared beginning and template included.
    pub input: Lengths,
    /// What tokens are made of.
    pub calibration: Calibration,
    /// Tokens at the beginning that prompts of one group share.
    pub prefix_tokens: u32,
    /// Groups of prompts with different shared beginnings.
    pub prefix_groups: u32,
}

/// What a prompt of a number of tokens is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Calibration {
    /// Ids drawn from a range; the server takes them as they are.
    Ids(Range<u32>),
    /// [`FIRST_WORD`], then words, each preceded by a space.
    Words {
        /// Words that the server's tokenizer counts as one token each, wherever they stand.
        words: Vec<String>,
        /// Tokens that the server adds to them: template, begin-of-text.
        overhead: u32,
        /// All lengths were checked against the server's own count. Otherwise they are a guess of one token a word.
        verified: bool,
    },
}

impl Synthetic {
    /// A prompt, and its length as it was asked for. But for their shared part prompts differ from the second
    /// word on: an accidental hit in a prefix cache would flatter the server.
    pub fn prompt(&self, seed: u64, random: &mut Random) -> (Prompt, u32) {
        let asked = self.input.draw(random);
        let group = random.below(u64::from(self.prefix_groups.max(1)));
        // A family of its own for each group, apart from those of requests.
        let mut shared = Random::of_item(seed.wrapping_add(1), group);
        match &self.calibration {
            Calibration::Ids(range) => {
                let width = u64::from(range.end - range.start);
                let ids = (0..asked).map(|place| {
                    let source = if place < self.prefix_tokens { &mut shared } else { &mut *random };
                    range.start + source.below(width) as u32
                });
                (Prompt::Tokens(ids.collect()), asked)
            }
            Calibration::Words { words, overhead, .. } => {
                // A prompt cannot be shorter than its template and one word: it is longer than asked then, and counted as such.
                let count = asked.saturating_sub(*overhead).max(1);
                let mut text = String::with_capacity(count as usize * 6);
                for place in 0..count {
                    let source = if place < self.prefix_tokens { &mut shared } else { &mut *random };
                    if place == 0 {
                        text.push_str(FIRST_WORD);
                        continue;
                    }
                    text.push(' ');
                    text.push_str(&words[source.below(words.len() as u64) as usize]);
                }
                (Prompt::Text(text), asked)
            }
        }
    }
}

impl Synthetic {
    /// What somebody says later in a conversation: as long as prompts are, without a shared beginning.
    pub(super) fn words(&self, random: &mut Random) -> Prompt {
        let asked = self.input.draw(random);
        let request = TraceRequest { input_tokens: asked, ..TraceRequest::default() };
        self.calibration.blocks(&request, 0, random).0
    }
}

impl Calibration {
    /// A prompt as long as a trace's, and that length. Blocks of one id are alike within a
    /// seed; what is beyond them is like nothing else.
    pub(super) fn blocks(&self, request: &TraceRequest, seed: u64, random: &mut Random) -> (Prompt, u32) {
        let mut within = request.blocks.iter().map(|&id| Random::of_item(seed.wrapping_add(2), id));
        let mut block = within.next();
        let mut draw = |place: u32, bound: u64| {
            if place > 0 && place.is_multiple_of(BLOCK_TOKENS) {
                block = within.next();
            }
            block.as_mut().unwrap_or(&mut *random).below(bound)
        };
        match self {
            Self::Ids(range) => {
                let width = u64::from(range.end - range.start);
                let ids = (0..request.input_tokens).map(|place| range.start + draw(place, width) as u32);
                (Prompt::Tokens(ids.collect()), request.input_tokens)
            }
            Self::Words { words, overhead, .. } => {
                let count = request.input_tokens.saturating_sub(*overhead).max(1);
                let mut text = String::with_capacity(count as usize * 6);
                for place in 0..count {
                    let word = draw(place, words.len() as u64) as usize;
                    if place == 0 {
                        text.push_str(FIRST_WORD);
                        continue;
                    }
                    text.push(' ');
                    text.push_str(&words[word]);
                }
                (Prompt::Text(text), request.input_tokens)
            }
        }
    }
}

/// How a prompt of words begins. A word without a space before it may be several tokens, so it is always this one.
pub const FIRST_WORD: &str = "the";

/// Common English words: one token each in most vocabularies; calibration keeps those that are in the server's.
pub static WORDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("words.txt").split_whitespace().collect());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::{Prompts, Work};
    use std::collections::HashSet;

    fn work(calibration: Calibration, prefix_tokens: u32) -> Work {
        let input = Lengths::Fixed(40);
        let prompts = Prompts::Synthetic(Synthetic { input, calibration, prefix_tokens, prefix_groups: 2 });
        Work { prompts, output: Lengths::Fixed(8), conversations: None, seed: 17 }
    }

    #[test]
    fn words_fill_what_the_template_leaves() {
        let words = WORDS.iter().map(|&word| word.to_owned()).collect();
        let work = work(Calibration::Words { words, overhead: 9, verified: true }, 0);
        let mut beginnings = HashSet::new();
        for number in 0..50 {
            let item = work.item(number);
            assert_eq!(item, work.item(number));
            let Prompt::Text(text) = item.prompt else { panic!("text") };
            assert_eq!((text.split(' ').count(), item.prompt_tokens), (31, Some(40)));
            beginnings.insert(text.split(' ').take(5).collect::<Vec<_>>().join(" "));
        }
        assert_eq!(beginnings.len(), 50, "prompts that begin alike hit a prefix cache");
    }

    #[test]
    fn what_is_shorter_than_its_template_is_told_as_asked() {
        let words = vec!["a".to_owned(), "b".to_owned()];
        let item = work(Calibration::Words { words, overhead: 60, verified: true }, 0).item(0);
        let Prompt::Text(text) = item.prompt else { panic!("text") };
        assert_eq!((text.as_str(), item.prompt_tokens), (FIRST_WORD, Some(40)), "61 tokens are sent");
    }

    #[test]
    fn shared_beginnings_are_shared_by_group_only() {
        let work = work(Calibration::Ids(100..50_000), 16);
        let prompts: Vec<Vec<u32>> = (0..40)
            .map(|number| match work.item(number).prompt {
                Prompt::Tokens(ids) => ids,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(prompts.iter().flatten().all(|id| (100..50_000).contains(id)));
        assert!(prompts.iter().all(|ids| ids.len() == 40));
        let heads: HashSet<&[u32]> = prompts.iter().map(|ids| &ids[..16]).collect();
        let tails: HashSet<&[u32]> = prompts.iter().map(|ids| &ids[16..]).collect();
        assert_eq!((heads.len(), tails.len()), (2, 40));
    }

    #[test]
    fn blocks_of_a_trace_are_alike_by_their_ids() {
        let calibration = Calibration::Ids(0..50_000);
        let ids = |blocks: &[u64], tokens, number| {
            let request = TraceRequest { input_tokens: tokens, blocks: blocks.to_vec(), ..TraceRequest::default() };
            match calibration.blocks(&request, 5, &mut Random::of_item(5, number)) {
                (Prompt::Tokens(ids), count) => {
                    assert_eq!(ids.len() as u32, count);
                    ids
                }
                other => panic!("{other:?}"),
            }
        };
        let (one, two) = (ids(&[0, 1], 1000, 1), ids(&[0, 2, 3], 1500, 2));
        assert_eq!(one[..512], two[..512]);
        assert_ne!(one[512..600], two[512..600]);
        assert_eq!(one, ids(&[0, 1], 1000, 3), "nothing but blocks: the same prompt");
        assert_ne!(ids(&[], 20, 1), ids(&[], 20, 2));
        assert_eq!(ids(&[0], 600, 1)[..512], one[..512]);
        assert_ne!(ids(&[0], 600, 1)[512..], ids(&[0], 600, 2)[512..]);
    }
}
