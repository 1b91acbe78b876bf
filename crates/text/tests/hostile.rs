//! Vocabularies and chats that nobody would make on purpose: an error or ids, never a panic.

use powertrain_text::{AddSpecial, Chat, ChatTemplate, ChatTemplateSources, GgufVocabulary, ParseSpecial, Tokenizer};
use serde_json::{Value as Json, json};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn text(&mut self, most: usize) -> String {
        let len = self.below(most + 1);
        (0..len)
            .map(|_| {
                self.pick(&["a", "b", " ", "\u{2581}", "Ġ", "é", "🙂", "<0x41>", "<s>", "1", "\n", "\0", "\u{144}"])
            })
            .collect()
    }
}

#[test]
fn no_vocabulary_panics() {
    let mut made = 0;
    for seed in 0..4000 {
        let random = &mut Random(seed);
        let mut tokens: Vec<String> = (0..random.below(40)).map(|_| random.text(3)).collect();
        let mut merges: Vec<String> = (0..random.below(8).saturating_sub(6)).map(|_| random.text(4)).collect();
        for _ in 0..random.below(6) {
            if !tokens.is_empty() {
                let (left, right) = (random.below(tokens.len()), random.below(tokens.len()));
                merges.push(format!("{} {}", tokens[left], tokens[right]));
                tokens.push(format!("{}{}", tokens[left], tokens[right]));
            }
        }
        let ids = tokens.len() + 1;
        let id = |random: &mut Random| (random.below(3) == 0).then(|| random.below(ids) as u32);
        let file = GgufVocabulary {
            model: random.pick(&["gpt2", "llama", "bert"]),
            pre: random.pick(&[None, Some("smollm"), Some("llama-bpe"), Some("tekken"), Some("?")]),
            merges: merges.iter().map(String::as_str).collect(),
            scores: (0..tokens.len() + random.below(2))
                .map(|_| random.pick(&[0.0, -0.0, 1.0, -3.5, f32::INFINITY, f32::NEG_INFINITY]))
                .collect(),
            token_types: (0..random.pick(&[0, tokens.len()])).map(|_| random.below(9) as u32).collect(),
            bos: id(random),
            eos: id(random),
            end_of_turn: id(random),
            end_of_message: id(random),
            unknown: id(random),
            padding: id(random),
            add_bos: random.pick(&[None, Some(true), Some(false)]),
            add_eos: random.pick(&[None, Some(false)]),
            add_space_prefix: random.pick(&[None, Some(true), Some(false)]),
            tokens: tokens.iter().map(String::as_str).collect(),
        };
        let tokenizer = match Tokenizer::from_gguf_vocabulary(&file) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        made += 1;
        for _ in 0..4 {
            let text = random.text(30);
            for parse in [ParseSpecial::Yes, ParseSpecial::No] {
                let ids = tokenizer.encode(&text, AddSpecial::Yes, parse).expect("short enough");
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "seed {seed}");
                tokenizer.decode(&ids, true);
            }
        }
        let any: Vec<u32> = (0..30).map(|_| random.below(50) as u32).collect();
        tokenizer.decode(&any, false);
    }
    assert!(made > 300, "only {made} vocabularies were good enough to encode with");
}

#[test]
fn errors_name_the_field_and_the_way_out() {
    let check = |file: &GgufVocabulary<'_>, expected: &[&str]| {
        let error = Tokenizer::from_gguf_vocabulary(file).expect_err("a bad file").to_string();
        for part in expected {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    let file = |model, pre, tokens: &[&'static str]| GgufVocabulary {
        model,
        pre,
        tokens: tokens.to_vec(),
        ..GgufVocabulary::default()
    };
    check(&file("gpt2", None, &[]), &["tokenizer.ggml.tokens", "missing"]);
    check(&file("bert", None, &["a"]), &["tokenizer.ggml.model", "bert", "gpt2", "llama"]);
    check(&file("gpt2", Some("new"), &["a"]), &["tokenizer.ggml.pre", "\"new\"", "smollm", "qwen2", "llama-bpe"]);
    check(&file("gpt2", Some("qwen2"), &["a"]), &["tokenizer.ggml.merges", "missing"]);
    check(&file("llama", None, &["a", "b"]), &["tokenizer.ggml.scores", "0 entries for 2 tokens"]);
    check(&GgufVocabulary { scores: vec![f32::NAN], ..file("llama", None, &["a"]) }, &["scores", "token 0", "NaN"]);
    check(&GgufVocabulary { bos: Some(7), ..file("llama", None, &["a"]) }, &["bos_token_id", "7", "1 tokens"]);
    check(&GgufVocabulary { scores: vec![0.0], ..file("llama", None, &["a"]) }, &["add_bos_token", "bos_token_id"]);
    check(&GgufVocabulary { merges: vec!["a b"], ..file("gpt2", None, &["a", "b"]) }, &["merges", "merge 0", "a b"]);
    let types = GgufVocabulary { token_types: vec![6], scores: vec![0.0], ..file("llama", None, &["x"]) };
    check(&types, &["token 0", "byte", "<0x0A>"]);
}

#[test]
fn no_chat_panics() {
    let source = include_str!("fixtures/chat_templates/tools.jinja");
    let sources = ChatTemplateSources { default: source.to_owned(), tool_use: None };
    let template = ChatTemplate::with_clock(&sources, Vec::new(), jiff::Zoned::now).expect("valid");
    let mut rendered = 0;
    for seed in 0..3000 {
        let random = &mut Random(seed);
        let messages: Vec<Json> = (0..random.below(5)).map(|_| message(random)).collect();
        let tools: Vec<Json> = (0..random.below(3)).map(|_| any(random, 0)).collect();
        let chat = Chat {
            messages: &messages,
            tools: (random.below(2) == 0).then_some(&tools),
            documents: None,
            add_generation_prompt: random.below(2) == 0,
            continue_final_message: random.below(3) == 0,
            variables: None,
        };
        match template.render(&chat) {
            Ok(_) => rendered += 1,
            Err(error) => assert!(!error.to_string().is_empty(), "seed {seed}"),
        }
    }
    assert!(rendered > 100, "only {rendered} chats rendered");
}

/// As deep as a template of the longest that is read can go: an error or a text, not the end of the process.
#[test]
fn no_template_overflows_the_stack() {
    const MAX: usize = 256 << 10;
    let filled = |begin: &str, part: &str, end: &str| {
        let count = (MAX - begin.len() - end.len()) / part.len();
        format!("{begin}{}{end}", part.repeat(count))
    };
    // As often as the fuel allows, and a little less often.
    let nested = |times: u32| {
        let loops = format!("{{% for i in range({times}) %}}{{% for j in range(10000) %}}");
        format!("{{% set ns = namespace(x=1) %}}{loops}{{% set ns.x = [ns.x] %}}{{% endfor %}}{{% endfor %}}")
    };
    let around = |times: u32, value: &str| format!("{}{value}", nested(times));
    let sources = [
        filled("{{ 1", "+1", " }}"),
        filled("{{ x", ".a", " }}"),
        filled("{{ x", "|e", " }}"),
        filled("{{ ", "not ", "1 }}"),
        filled("{{ ", "-", "1 }}"),
        filled("{{ ", "(", "1 }}"),
        filled("{{ 1", " if 1 else 1", " }}"),
        filled("{{ 1", "**1", " }}"),
        filled("", "{%if 1%}", ""),
        filled("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
        nested(1000),
        // What a short rendering has fuel for, on this test's stack.
        "{% set ns = namespace(x=1) %}{% for i in range(700) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}"
            .to_owned(),
        around(10, "done"),
        around(45, "{{ ns.x }}"),
        around(10, "{{ ns.x | tojson }}"),
        around(10, "{{ ns.x == [ns.x] }}"),
        around(10, "{{ ns.x | string | length }}"),
    ];
    let (mut read, mut rendered) = (0, 0);
    for source in sources {
        let sources = ChatTemplateSources { default: source, tool_use: None };
        let Ok(template) = ChatTemplate::with_clock(&sources, Vec::new(), jiff::Zoned::now) else { continue };
        read += 1;
        let chat = Chat {
            messages: &[],
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: false,
            variables: None,
        };
        rendered += usize::from(template.render(&chat).is_ok());
    }
    assert!(read > 5 && rendered > 1, "{read} read, {rendered} rendered");
    let long = ChatTemplateSources { default: "x".repeat(MAX + 1), tool_use: None };
    let error = ChatTemplate::with_clock(&long, Vec::new(), jiff::Zoned::now).expect_err("too long").to_string();
    assert!(error.contains("262145") && error.contains("262144"), "{error}");
}

fn message(random: &mut Random) -> Json {
    let mut message =
        json!({"role": random.pick(&["user", "assistant", "tool", "system", "?"]), "content": random.text(8)});
    if random.below(4) == 0 {
        let field = random.pick(&["content", "role", "tool_calls", "reasoning_content", "name"]);
        message[field] = any(random, 0);
    }
    message
}

/// Any JSON, up to four deep.
fn any(random: &mut Random, depth: usize) -> Json {
    match random.below(if depth < 4 { 8 } else { 5 }) {
        0 => Json::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(random.below(1 << 40) as f64 / 8.0),
        3 => json!(random.below(1 << 40)),
        4 => json!(random.text(4)),
        5 => (0..random.below(3)).map(|_| any(random, depth + 1)).collect(),
        _ => {
            let names = ["type", "text", "function", "arguments", "name", "parameters", "properties", "enum"];
            let fields = (0..random.below(4)).map(|_| (random.pick(&names).to_owned(), any(random, depth + 1)));
            Json::Object(fields.collect())
        }
    }
}
