//! [`StopMatcher`]: ends a text at the first stop string, and never shows part of one.

/// Most stop strings a request may have.
pub const STOP_STRINGS_MAX: usize = 64;
/// Most bytes a stop string may have.
pub const STOP_STRING_BYTES_MAX: usize = 4096;

/// Why stop strings were not taken: the caller's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// More than [`STOP_STRINGS_MAX`].
    #[error("{count} stop strings; at most {STOP_STRINGS_MAX} are allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// It would end every text before its first character.
    #[error("a stop string must not be empty")]
    Empty,
    /// More than [`STOP_STRING_BYTES_MAX`].
    #[error("a stop string has {bytes} bytes; at most {STOP_STRING_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// Watches a text for stop strings as it comes, by Knuth-Morris-Pratt for each: linear, and exact across any cuts.
///
/// The stop string that is complete first ends the text; of several complete at the same place, the longest.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include_stop: bool,
    /// The end of the text that may be the beginning of a stop string.
    held: String,
    matched: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// For each prefix (by its last index) the longest proper suffix of it that is a prefix too.
    fallback: Box<[u32]>,
    /// How many bytes of it the text ends with.
    progress: usize,
}

impl StopMatcher {
    /// `include_stop`: the stop string itself is shown.
    pub fn new<S: AsRef<str>>(stops: impl IntoIterator<Item = S>, include_stop: bool) -> Result<Self, StopError> {
        let patterns = stops.into_iter().map(|stop| Pattern::new(stop.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if patterns.len() > STOP_STRINGS_MAX {
            return Err(StopError::TooMany { count: patterns.len() });
        }
        Ok(Self { patterns, include_stop, held: String::new(), matched: None })
    }

    /// Takes the next piece of text and appends what may be shown. Returns the index of the stop string once one was found;
    /// whatever comes after it is dropped.
    pub fn push(&mut self, piece: &str, shown: &mut String) -> Option<usize> {
        if self.matched.is_some() {
            return self.matched;
        }
        let seen = self.held.len();
        self.held.push_str(piece);
        for (at, &byte) in piece.as_bytes().iter().enumerate() {
            // Every pattern must advance, so that all complete ones are known.
            let complete = self.patterns.iter_mut().enumerate().filter_map(|(index, pattern)| {
                pattern.advance(byte).then_some((pattern.bytes.len(), std::cmp::Reverse(index)))
            });
            if let Some((len, std::cmp::Reverse(index))) = complete.max() {
                let end = seen + at + 1;
                shown.push_str(&self.held[..if self.include_stop { end } else { end - len }]);
                self.held.clear();
                self.matched = Some(index);
                return self.matched;
            }
        }
        self.release(shown);
        None
    }

    /// Takes a piece of text in which no stop string may end; one that begins in it may end in the next. So what may be the
    /// beginning of one is held back all the same.
    pub fn pass(&mut self, piece: &str, shown: &mut String) {
        if self.matched.is_some() {
            return;
        }
        self.held.push_str(piece);
        for &byte in piece.as_bytes() {
            for pattern in &mut self.patterns {
                if pattern.advance(byte) {
                    pattern.decline();
                }
            }
        }
        self.release(shown);
    }

    /// Ends the text: what was held back is no stop string and may be shown.
    pub fn finish(&mut self, shown: &mut String) {
        shown.push_str(&std::mem::take(&mut self.held));
    }

    /// Shows what can be no part of a stop string any more.
    fn release(&mut self, shown: &mut String) {
        let undecided = self.patterns.iter().map(|pattern| pattern.progress).max().unwrap_or(0);
        shown.extend(self.held.drain(..self.held.len() - undecided));
    }

    /// The index of the stop string that ended the text.
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }
}

impl Pattern {
    fn new(stop: &str) -> Result<Self, StopError> {
        let bytes: Box<[u8]> = stop.as_bytes().into();
        match bytes.len() {
            0 => return Err(StopError::Empty),
            len if len > STOP_STRING_BYTES_MAX => return Err(StopError::TooLong { bytes: len }),
            _ => {}
        }
        let mut fallback = vec![0_u32; bytes.len()];
        let mut len = 0;
        for at in 1..bytes.len() {
            while len > 0 && bytes[at] != bytes[len] {
                len = fallback[len - 1] as usize;
            }
            if bytes[at] == bytes[len] {
                len += 1;
            }
            fallback[at] = len as u32;
        }
        Ok(Self { bytes, fallback: fallback.into(), progress: 0 })
    }

    /// Takes a byte; true when the text now ends with the whole pattern, after which no more may come before
    /// [`decline`](Self::decline).
    fn advance(&mut self, byte: u8) -> bool {
        while self.progress > 0 && self.bytes[self.progress] != byte {
            self.progress = self.fallback[self.progress - 1] as usize;
        }
        if self.bytes[self.progress] == byte {
            self.progress += 1;
        }
        self.progress == self.bytes.len()
    }

    /// The whole pattern does not count here; its end may still be another's beginning.
    fn decline(&mut self) {
        self.progress = self.fallback[self.progress - 1] as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by searching the whole text: the first end of any stop string behind `passed` bytes, of equals the longest.
    fn naive(text: &str, passed: usize, stops: &[String], include: bool) -> (String, Option<usize>) {
        for end in (passed + 1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let found = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
            if let Some((index, stop)) = found.max_by_key(|&(index, stop)| (stop.len(), std::cmp::Reverse(index))) {
                let cut = if include { end } else { end - stop.len() };
                return (text[..cut].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn equals_a_search_of_the_whole_text_under_any_cuts() {
        let alphabet = ["a", "b", "ab", "é", "\n", "🙂", "aé"];
        for seed in 0..20_000_u64 {
            let mut random = crate::testing::Random::new(seed);
            let mut word = |most: usize| -> String {
                let len = random.below(most + 1);
                (0..len).map(|_| alphabet[random.below(alphabet.len())]).collect()
            };
            let text = word(24);
            let stops: Vec<String> = (0..3).map(|_| word(4)).filter(|stop| !stop.is_empty()).collect();
            let include = random.below(2) == 0;
            // Half of the cases have text at their beginning where no stop string counts.
            let passing = if random.below(2) == 0 { 0 } else { random.below(text.len() + 1) };
            let passing = (passing..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let mut matcher = StopMatcher::new(&stops, include).expect("valid stops");
            let mut shown = String::new();
            let mut rest = text.as_str();
            let (expected, index) = naive(&text, passing, &stops, include);
            while !rest.is_empty() {
                let cut = (1 + random.below(5)).min(rest.len());
                let cut = (cut..=rest.len()).find(|&at| rest.is_char_boundary(at)).unwrap_or(rest.len());
                let passed = text.len() - rest.len();
                let cut = if passed < passing { cut.min(passing - passed) } else { cut };
                if passed < passing {
                    matcher.pass(&rest[..cut], &mut shown);
                } else {
                    matcher.push(&rest[..cut], &mut shown);
                }
                assert!(expected.starts_with(&shown), "seed {seed}: {shown:?} shown of {expected:?}");
                rest = &rest[cut..];
            }
            matcher.finish(&mut shown);
            assert_eq!((shown, matcher.matched()), (expected, index), "seed {seed}: {text:?} {stops:?}");
        }
    }

    #[test]
    fn holds_back_only_what_could_be_a_stop_string() {
        let mut matcher = StopMatcher::new(["</s>", "<|im_end|>"], false).expect("valid");
        let mut shown = String::new();
        assert_eq!(matcher.push("x < y <", &mut shown), None);
        assert_eq!(shown, "x < y ");
        assert_eq!(matcher.push("|im_", &mut shown), None);
        assert_eq!(shown, "x < y ");
        assert_eq!(matcher.push("start", &mut shown), None);
        assert_eq!(shown, "x < y <|im_start");
        assert_eq!(matcher.push("</s> more", &mut shown), Some(0));
        assert_eq!(matcher.push("and more", &mut shown), Some(0));
        matcher.finish(&mut shown);
        assert_eq!(shown, "x < y <|im_start");
    }

    #[test]
    fn refuses_what_cannot_be_a_stop_string() {
        assert_eq!(StopMatcher::new([""], false).expect_err("empty"), StopError::Empty);
        let many = vec!["x"; STOP_STRINGS_MAX + 1];
        assert_eq!(
            StopMatcher::new(many, false).expect_err("many"),
            StopError::TooMany { count: STOP_STRINGS_MAX + 1 }
        );
        let long = "x".repeat(STOP_STRING_BYTES_MAX + 1);
        assert!(matches!(StopMatcher::new([long], false), Err(StopError::TooLong { .. })));
    }
}
