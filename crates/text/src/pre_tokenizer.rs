//! [`PreTokenizer`]: cuts text into the words inside which byte-pair merges may happen.
//!
//! GGUF names the rules in `tokenizer.ggml.pre`; [`FAMILIES`] says what each name means. A family is a list of passes: each
//! cuts what the one before left, at every match of its pattern and at what lies between matches.

use regex_automata::{
    Anchored, Input,
    meta::{Cache, Regex},
    util::pool::Pool,
};

/// One pass. The patterns are those of the original tokenizers but for their common ending `\s+(?!\S)|\s+`, which needs a
/// look-ahead that a DFA cannot do: where `spaces` is set, a run of white space that nothing else took is a word, without its
/// last character if a word follows.
struct PassRule {
    pattern: &'static str,
    spaces: bool,
}

/// The rules under one or more names.
struct Family {
    names: &'static [&'static str],
    passes: &'static [PassRule],
    /// A word that is a token as a whole is taken without looking at merges.
    whole_words: bool,
    /// Whether a beginning-of-sequence token is added when the file does not say.
    add_bos: bool,
}

const GPT2: PassRule =
    PassRule { pattern: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+", spaces: true };
const LLAMA3: PassRule = PassRule {
    pattern: r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    spaces: true,
};
const QWEN2: PassRule = PassRule {
    pattern: r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    spaces: true,
};
const TEKKEN: PassRule = PassRule {
    pattern: r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    spaces: true,
};
const EACH_DIGIT: PassRule = PassRule { pattern: r"\p{N}", spaces: false };

const FAMILIES: &[Family] = &[
    Family {
        names: &["default"],
        passes: &[
            PassRule { pattern: r"[\p{P}\$\+<=>\^~\|]+", spaces: false },
            GPT2,
            PassRule { pattern: r"\p{N}+", spaces: false },
            PassRule { pattern: r"[0-9][0-9][0-9]", spaces: false },
        ],
        whole_words: false,
        add_bos: false,
    },
    Family {
        names: &["gpt-2", "mpt", "olmo", "jais", "phi-2", "exaone4"],
        passes: &[GPT2],
        whole_words: false,
        add_bos: false,
    },
    Family {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        passes: &[EACH_DIGIT, GPT2],
        whole_words: false,
        add_bos: false,
    },
    Family {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        passes: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    Family { names: &["dbrx", "smaug-bpe"], passes: &[LLAMA3], whole_words: false, add_bos: false },
    Family {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
        passes: &[QWEN2],
        whole_words: false,
        add_bos: false,
    },
    Family { names: &["tekken"], passes: &[TEKKEN], whole_words: true, add_bos: true },
];

/// The rules of one family, compiled.
pub(crate) struct PreTokenizer {
    passes: Vec<Pass>,
    caches: Pool<
        Vec<Cache>,
        Box<dyn Fn() -> Vec<Cache> + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>,
    >,
    pub(crate) whole_words: bool,
    pub(crate) add_bos: bool,
}

struct Pass {
    regex: Regex,
    /// A match of the second pattern, `\s+`, gives its last character back if a word follows; then also every character
    /// belongs to some match.
    spaces: bool,
}

impl PreTokenizer {
    /// The rules that `tokenizer.ggml.pre` calls `name`; `None` if it is not known.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let family = FAMILIES.iter().find(|family| family.names.contains(&name))?;
        let passes: Vec<Pass> = family.passes.iter().map(Pass::compile).collect();
        let regexes: Vec<Regex> = passes.iter().map(|pass| pass.regex.clone()).collect();
        Some(Self {
            passes,
            caches: Pool::new(Box::new(move || regexes.iter().map(Regex::create_cache).collect())),
            whole_words: family.whole_words,
            add_bos: family.add_bos,
        })
    }

    /// All names that [`Self::named`] knows.
    pub(crate) fn known_names() -> Vec<&'static str> {
        FAMILIES.iter().flat_map(|family| family.names).copied().collect()
    }

    /// Calls `word` with every piece of `text`, in order; together they are the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        cut(&self.passes, &mut self.caches.get(), text, &mut word);
    }
}

impl Pass {
    fn compile(rule: &PassRule) -> Self {
        let patterns: &[&str] = if rule.spaces { &[rule.pattern, r"\s+"] } else { &[rule.pattern] };
        let regex = Regex::new_many(patterns).expect("the patterns are constants, each compiled by a test");
        Self { regex, spaces: rule.spaces }
    }
}

fn cut<'t>(passes: &[Pass], caches: &mut [Cache], text: &'t str, word: &mut impl FnMut(&'t str)) {
    let (Some((pass, passes)), Some((cache, caches))) = (passes.split_first(), caches.split_first_mut()) else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut at = 0;
    while at < text.len() {
        let input = Input::new(text).range(at..).anchored(if pass.spaces { Anchored::Yes } else { Anchored::No });
        let Some(found) = pass.regex.search_with(cache, &input) else { break };
        let mut end = found.end();
        if pass.spaces && found.pattern().as_usize() == 1 && end < text.len() {
            let last = text[at..end].chars().next_back().map_or(0, char::len_utf8);
            if end - last > at {
                end -= last;
            }
        }
        cut(passes, caches, &text[at..found.start()], word);
        cut(passes, caches, &text[found.start()..end], word);
        at = end;
    }
    cut(passes, caches, &text[at..], word);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(family: &str, text: &str, expected: &[&str]) {
        let mut words = Vec::new();
        PreTokenizer::named(family).expect("known").split(text, |word| words.push(word));
        assert_eq!(words, expected, "{family} on {text:?}");
    }

    #[test]
    fn every_family_compiles_and_loses_nothing() {
        let text =
            "Hello  world's\t\t12345 x\n\n \r\n  tab\u{3000}\u{a0}  é́🙂🙂 '  ''s don'T $$ <|im_start|>\u{378} ٣٤٥٦ \n";
        for name in PreTokenizer::known_names() {
            let mut joined = String::new();
            PreTokenizer::named(name).expect("known").split(text, |word| {
                assert!(!word.is_empty());
                joined.push_str(word);
            });
            assert_eq!(joined, text, "{name}");
        }
        assert!(PreTokenizer::named("nonsense").is_none());
    }

    #[test]
    fn gpt2_words() {
        check("gpt-2", "it's 123  go!\n\n x", &["it", "'s", " 123", " ", " go", "!", "\n\n", " x"]);
        check("gpt-2", "a  ", &["a", "  "]);
        check("gpt-2", "IT'S", &["IT", "'", "S"]);
    }

    #[test]
    fn smollm_takes_each_digit_alone() {
        check("smollm", "in 2024  7x  y", &["in", " ", "2", "0", "2", "4", "  ", "7", "x", " ", " y"]);
    }

    #[test]
    fn llama3_words() {
        check(
            "llama-bpe",
            "IT'S 12345  a\n\n  b.\n\n(c",
            &["IT", "'S", " ", "123", "45", " ", " a", "\n\n", " ", " b", ".\n\n", "(c"],
        );
        check("qwen2", "x 12", &["x", " ", "1", "2"]);
    }

    #[test]
    fn tekken_cuts_before_a_capital() {
        check("tekken", "camelCase HTTPServer", &["camel", "Case", " HTTPServer"]);
    }
}
