//! Published configurations and GGUF metadata become the right spec; what is not supported is refused by name.

mod support;

use powertrain_model::bytes::FileBytes;
use powertrain_model::config::Config;
use powertrain_model::family::{Described, describe_config, describe_gguf};
use powertrain_model::spec::*;
use powertrain_model::weights::{LayerSlot, Slot};
use powertrain_model::{Checkpoint, Model, ModelError};
use serde_json::{Value, json};
use std::path::Path;
use support::GgufWriter;

fn describe(config: &Value) -> Result<Described, ModelError> {
    describe_config(&parse(config), &|_| true)
}

fn parse(config: &Value) -> Config {
    Config::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap()
}

/// The object with these fields set over it; null removes one.
fn with(mut config: Value, changes: Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(field),
            value => config.as_object_mut().unwrap().insert(field.clone(), value.clone()),
        };
    }
    config
}

fn llama_3_2_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256
    })
}

fn mistral_7b_v0_1() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000
    })
}

fn qwen2_5_7b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2",
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "use_sliding_window": false,
        "vocab_size": 152064
    })
}

fn qwen3_0_6b() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    })
}

fn gemma_3_1b() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144
    })
}

/// As published: the text model's section says only what differs from transformers' defaults.
fn gemma_3_4b() -> Value {
    json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256,
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152}
    })
}

#[test]
fn llama() {
    let Described { spec, names } = describe(&llama_3_2_1b()).unwrap();
    let attention = &spec.layers[15].attention;
    assert_eq!((spec.architecture.as_str(), spec.layers.len(), spec.context_len), ("LlamaForCausalLM", 16, 131072));
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim, attention.scale), (32, 8, 64, 0.125));
    assert_eq!((attention.window, attention.qk_norm, attention.qkv_bias), (None, None, false));
    assert_eq!(attention.rope.pairing, RopePairing::Halves);
    assert!(spec.tied_head);
    assert_eq!(names[&Slot::Head], "model.embed_tokens.weight");
    assert_eq!(names[&Slot::Layer(3, LayerSlot::FeedForwardNorm)], "model.layers.3.post_attention_layernorm.weight");

    // Older files: no head_dim, no rope_theta, no key-value heads, an untied head.
    let old = with(
        llama_3_2_1b(),
        json!({"head_dim": null, "rope_theta": null, "rope_scaling": null, "num_key_value_heads": null,
            "tie_word_embeddings": null}),
    );
    let Described { spec, names } = describe(&old).unwrap();
    let attention = &spec.layers[0].attention;
    assert_eq!((attention.head_dim, attention.kv_heads), (64, 32));
    assert_eq!(attention.rope.inverse_frequencies[16], 0.01, "theta is 10,000");
    assert_eq!(names[&Slot::Head], "lm_head.weight");

    let biased = describe(&with(llama_3_2_1b(), json!({"attention_bias": true}))).unwrap().spec;
    assert!(biased.layers[0].attention.qkv_bias && biased.layers[0].attention.output_bias);
}

#[test]
fn mistral_windows() {
    let window = |changes: Value| {
        let spec = describe(&with(mistral_7b_v0_1(), changes)).unwrap().spec;
        assert!(spec.layers.iter().all(|layer| layer.attention.window == spec.layers[0].attention.window));
        spec.layers[0].attention.window
    };
    assert_eq!(window(json!({})), Some(4096));
    assert_eq!(window(json!({"sliding_window": 77})), Some(77));
    assert_eq!(window(json!({"sliding_window": null})), Some(4096), "transformers' default where the field is missing");
    let mut no_window = mistral_7b_v0_1();
    no_window["sliding_window"] = Value::Null;
    assert_eq!(describe(&no_window).unwrap().spec.layers[0].attention.window, None, "v0.2 and later say null");
}

#[test]
fn qwen2() {
    let spec = describe(&qwen2_5_7b()).unwrap().spec;
    let attention = &spec.layers[27].attention;
    assert_eq!((attention.qkv_bias, attention.output_bias, attention.window), (true, false, None));
    assert_eq!((attention.head_dim, spec.context_len), (128, 32768));
    let windowed = json!({"use_sliding_window": true, "max_window_layers": 20, "sliding_window": 4096});
    let spec = describe(&with(qwen2_5_7b(), windowed)).unwrap().spec;
    let windows: Vec<_> = spec.layers.iter().map(|layer| layer.attention.window).collect();
    assert_eq!(windows, [vec![None; 20], vec![Some(4096); 8]].concat());
    // The published recipe for 128k tokens.
    let yarn = json!({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}});
    let spec = describe(&with(qwen2_5_7b(), yarn)).unwrap().spec;
    assert_eq!(spec.context_len, 131072);
    assert!((spec.layers[0].attention.rope.magnitude - 1.138_629).abs() < 1e-6);
}

#[test]
fn qwen3() {
    let Described { spec, names } = describe(&qwen3_0_6b()).unwrap();
    let attention = &spec.layers[0].attention;
    assert_eq!((attention.qkv_bias, attention.head_dim), (false, 128));
    assert_eq!(attention.qk_norm.unwrap().weight_offset, 0.0);
    assert_eq!(spec.shape(Slot::Layer(0, LayerSlot::Query)), (2048, 1024));
    assert_eq!(names[&Slot::Layer(0, LayerSlot::KeyNorm)], "model.layers.0.self_attn.k_norm.weight");
}

#[test]
fn gemma3() {
    let Described { spec, names } = describe(&gemma_3_1b()).unwrap();
    let windows: Vec<_> = spec.layers.iter().map(|layer| layer.attention.window).collect();
    let expected: Vec<_> = (1..=26).map(|layer| (layer % 6 != 0).then_some(512)).collect();
    assert_eq!(windows, expected);
    assert_eq!(spec.embedding_scale, 1152f32.sqrt());
    assert_eq!((spec.final_norm.weight_offset, spec.layers[0].attention.scale), (1.0, 0.0625));
    assert_eq!(spec.layers[0].feed_forward.activation, Activation::GeluTanh);
    assert!(spec.tied_head);
    // Half-way through the pairs a frequency is theta^-0.5.
    let middle = |layer: usize| spec.layers[layer].attention.rope.inverse_frequencies[64];
    assert_eq!((middle(4), middle(5)), (0.01, 0.001));
    assert_eq!(names[&Slot::Layer(0, LayerSlot::FeedForwardNorm)], "model.layers.0.pre_feedforward_layernorm.weight");
    assert_eq!(names[&Slot::Layer(0, LayerSlot::PostAttentionNorm)], "model.layers.0.post_attention_layernorm.weight");
}

#[test]
fn gemma3_that_also_sees() {
    let spec = describe(&gemma_3_4b()).unwrap().spec;
    let attention = &spec.layers[0].attention;
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (8, 4, 256));
    assert_eq!((spec.vocab_size, spec.context_len, attention.window), (262208, 131072, Some(1024)));
    let middle = |layer: usize| spec.layers[layer].attention.rope.inverse_frequencies[64];
    assert_eq!((middle(0), middle(5)), (0.01, 0.001 / 8.0), "the factor is the global layers' alone");
    // Names as published, and as transformers 5 writes them.
    for (prefix, head) in [("language_model.model.", "language_model.lm_head"), ("model.language_model.", "lm_head")] {
        let mut untied = gemma_3_4b();
        untied["text_config"]["tie_word_embeddings"] = json!(false);
        let has_tensor = |name: &str| name.starts_with(prefix);
        let names = describe_config(&parse(&untied), &has_tensor).unwrap().names;
        assert_eq!(names[&Slot::FinalNorm], format!("{prefix}norm.weight"));
        assert_eq!(names[&Slot::Head], format!("{head}.weight"));
    }
}

#[test]
fn rope_frequencies_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope.json");
    let ropes: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (name, rope) in ropes.as_object().unwrap() {
        let model = with(llama_3_2_1b(), json!({"rope_scaling": null, "rope_theta": null, "head_dim": null}));
        let model = with(model, json!({"num_key_value_heads": null}));
        let found = describe(&with(model, rope["config"].clone())).unwrap().spec.layers[0].attention.rope.clone();
        let expected: Vec<f32> =
            rope["inverse_frequencies"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(found.inverse_frequencies.len(), expected.len(), "{name}");
        for (pair, (found, expected)) in found.inverse_frequencies.iter().zip(&expected).enumerate() {
            // A few units in the last place.
            let error = (found - expected).abs() / expected;
            assert!(error < 4e-7, "{name}: pair {pair} is {found}, not {expected}");
        }
        let magnitude = rope["magnitude"].as_f64().unwrap();
        assert!((f64::from(found.magnitude) - magnitude).abs() < 1e-6, "{name}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let check = |config: Value, changes: Value, expected: &str| {
        let message = describe(&with(config, changes)).unwrap_err().to_string();
        assert!(message.starts_with("config.json: ") && message.contains(expected), "{message:?}: no {expected:?}");
    };
    check(
        llama_3_2_1b(),
        json!({"architectures": ["GPT2LMHeadModel"]}),
        "architectures: found [\"GPT2LMHeadModel\"], expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
         Qwen3ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration",
    );
    check(
        llama_3_2_1b(),
        json!({"architectures": null, "model_type": "bert"}),
        "model_type: found \"bert\", expected one of llama, mistral, qwen2, qwen3, gemma3_text, gemma3",
    );
    check(llama_3_2_1b(), json!({"architectures": null, "model_type": null}), "model_type: found nothing");
    check(llama_3_2_1b(), json!({"mlp_bias": true}), "mlp_bias: found true, expected false");
    check(llama_3_2_1b(), json!({"hidden_act": "relu"}), "hidden_act: found \"relu\", expected \"silu\"");
    check(
        llama_3_2_1b(),
        json!({"quantization_config": {"quant_method": "gptq"}}),
        "quantization_config: found an object of 1 fields, expected none",
    );
    check(
        llama_3_2_1b(),
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        "rope_scaling.rope_type: found \"dynamic\", expected one of default, linear, llama3, yarn",
    );
    let nested = json!({"full_attention": {"rope_type": "default"}});
    check(
        llama_3_2_1b(),
        json!({"rope_scaling": {}, "rope_parameters": nested}),
        "rope_parameters.full_attention: found an object of 1 fields, expected one rope for all layers",
    );
    check(llama_3_2_1b(), json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: found 0.5, expected 1");
    check(qwen2_5_7b(), json!({"layer_types": ["full_attention"]}), "one entry for each of 28 layers, not 1");
    let types = vec!["sliding_attention"; 28];
    check(qwen2_5_7b(), json!({ "layer_types": types }), "no sliding_attention, as sliding_window is off");
    let types = vec!["chunked_attention"; 28];
    check(qwen2_5_7b(), json!({ "layer_types": types }), "only full_attention and sliding_attention");
    check(gemma_3_1b(), json!({"use_bidirectional_attention": true}), "use_bidirectional_attention: found true");
    check(gemma_3_1b(), json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping: found 50.0, expected null");
    check(gemma_3_1b(), json!({"hidden_activation": "gelu"}), "expected \"gelu_pytorch_tanh\"");
}

#[test]
fn impossible_sizes_are_refused_before_anything_is_allocated() {
    let check = |changes: Value, expected: &str| {
        let message = describe(&with(llama_3_2_1b(), changes)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not contain {expected:?}");
    };
    check(json!({"hidden_size": null}), "hidden_size: found nothing, expected an integer of at least 0");
    check(json!({"hidden_size": 0}), "hidden_size: found 0, expected an integer from 1 to 1048576");
    check(json!({"hidden_size": -5}), "hidden_size: found -5");
    check(
        json!({"num_hidden_layers": 1_000_000_000u64}),
        "num_hidden_layers: found 1000000000, expected an integer from 1",
    );
    check(json!({"vocab_size": u64::MAX}), "vocab_size: found 18446744073709551615");
    check(json!({"num_key_value_heads": 5}), "num_key_value_heads: found 5, expected a divisor of");
    check(json!({"num_key_value_heads": 0}), "num_key_value_heads: found 0");
    check(json!({"head_dim": 63}), "head_dim: found 63, expected an even size");
    check(
        json!({"head_dim": null, "num_attention_heads": 24}),
        "expected a size, as hidden_size 2048 is no multiple of 24",
    );
    check(json!({"rms_norm_eps": -1.0}), "rms_norm_eps: found -1.0");
    check(json!({"rope_theta": 0}), "rope_theta: found 0, expected a number from 1e-6 to 1e12");
    check(json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope_scaling.factor: found 0.0");
    let yarn = json!({"type": "yarn", "factor": 2.0, "beta_fast": -1.0});
    check(json!({ "rope_scaling": yarn }), "rope_scaling.beta_fast: found -1.0, expected a number from");
    check(json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor: found nothing");
    check(json!({"max_position_embeddings": 1u64 << 40}), "max_position_embeddings: found 1099511627776");
}

/// Whatever stands in a field, the answer is a spec of possible sizes or an error.
#[test]
fn no_value_of_any_field_panics() {
    let strange = [
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(1e-300),
        json!(u64::MAX),
        json!(1u64 << 20),
        json!(true),
        json!("yarn"),
        json!([]),
        json!([null, 1]),
        json!({}),
        json!({"rope_type": "yarn", "factor": 1e300}),
        json!({"rope_type": "llama3", "factor": 1e-300, "low_freq_factor": 1, "high_freq_factor": 1e300}),
    ];
    let fields = ["rope_parameters", "layer_types", "sliding_window_pattern", "final_logit_softcapping", "text_config"];
    for config in [llama_3_2_1b(), mistral_7b_v0_1(), qwen2_5_7b(), qwen3_0_6b(), gemma_3_1b(), gemma_3_4b()] {
        let known = config.as_object().unwrap().keys().cloned();
        for field in known.chain(fields.map(str::to_owned)) {
            for value in &strange {
                let mut config = config.clone();
                config[&field] = value.clone();
                if let Ok(described) = describe(&config) {
                    check_possible(&described, &format!("{field}: {value}"));
                }
            }
        }
    }
}

fn check_possible(Described { spec, names }: &Described, what: &str) {
    for slot in spec.slots() {
        let (rows, columns) = spec.shape(slot);
        assert!(rows.checked_mul(columns).is_some_and(|elements| elements > 0), "{what}: {slot:?}");
        assert!(names.contains_key(&slot), "{what}: {slot:?}");
    }
    for layer in &spec.layers {
        let attention = &layer.attention;
        assert!(attention.heads.is_multiple_of(attention.kv_heads), "{what}");
        assert!(attention.window != Some(0) && attention.scale.is_finite(), "{what}");
        let frequencies = &attention.rope.inverse_frequencies;
        assert!(frequencies.len() * 2 <= attention.head_dim, "{what}");
        assert!(frequencies.iter().all(|frequency| frequency.is_finite()), "{what}: {frequencies:?}");
        assert!(attention.rope.magnitude.is_finite(), "{what}");
    }
    assert!(spec.logit_softcap.is_none_or(|cap| cap.is_finite() && cap > 0.0), "{what}");
    assert!((1..=1 << 30).contains(&spec.context_len), "{what}");
}

/// Metadata of a model whose tensors are only an embedding (and what else is given).
fn gguf(architecture: &str) -> GgufWriter {
    gguf_of_layers(architecture, 2)
}

fn gguf_of_layers(architecture: &str, layers: u32) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    GgufWriter::new()
        .str("general.architecture", architecture)
        .u32(&key("block_count"), layers)
        .u32(&key("context_length"), 16)
        .u32(&key("embedding_length"), 8)
        .u32(&key("feed_forward_length"), 8)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32_tensor("token_embd.weight", &[8, 3], &[0.0; 24])
}

fn describe_file(file: &GgufWriter) -> Result<Described, ModelError> {
    let checkpoint = Checkpoint::from_gguf(FileBytes::Owned(file.bytes()), Path::new("m.gguf"))?;
    describe_gguf(checkpoint.metadata().unwrap(), &|name| checkpoint.tensor(name))
}

#[test]
fn gguf_keys() {
    let rope = |file: GgufWriter| describe_file(&file).unwrap().spec.layers[0].attention.rope.clone();
    let plain = rope(gguf("llama"));
    assert_eq!(plain.pairing, RopePairing::Adjacent);
    assert_eq!(*plain.inverse_frequencies, [1.0, 0.01]);
    assert_eq!(*rope(gguf("llama").f32("llama.rope.freq_base", 1e4)).inverse_frequencies, [1.0, 0.01]);
    assert_eq!(*rope(gguf("llama").u32("llama.rope.dimension_count", 2)).inverse_frequencies, [1.0]);
    let linear = gguf("llama").str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(*rope(linear).inverse_frequencies, [0.25, 0.0025]);
    assert_eq!(*rope(gguf("llama").f32("llama.rope.scale_linear", 2.0)).inverse_frequencies, [0.5, 0.005]);
    let divided = gguf("llama").f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]);
    assert_eq!(*rope(divided).inverse_frequencies, [1.0, 0.00125]);

    let windowed = describe_file(&gguf("llama").u32("llama.attention.sliding_window", 9)).unwrap();
    assert_eq!(windowed.spec.layers[1].attention.window, Some(9));
    let biased = gguf("llama").f32_tensor("blk.0.attn_q.bias", &[8], &[0.0; 8]);
    assert!(describe_file(&biased).unwrap().spec.layers[1].attention.qkv_bias);
    let untied = gguf("qwen2").f32_tensor("output.weight", &[8, 3], &[0.0; 24]);
    let Described { spec, names } = describe_file(&untied).unwrap();
    assert!(!spec.tied_head && spec.layers[0].attention.qkv_bias);
    assert_eq!(spec.layers[0].attention.rope.pairing, RopePairing::Halves);
    assert_eq!(names[&Slot::Head], "output.weight");
}

#[test]
fn gguf_of_gemma3() {
    let spec = |layers: u32| {
        let file = gguf_of_layers("gemma3", layers).u32("gemma3.attention.sliding_window", 5);
        let file = file.u32("gemma3.attention.key_length", 16).u32("gemma3.attention.value_length", 16);
        describe_file(&file).unwrap().spec
    };
    let small = spec(7);
    assert_eq!((small.final_norm.weight_offset, small.embedding_scale), (0.0, 8f32.sqrt()));
    let windows: Vec<_> = small.layers.iter().map(|layer| layer.attention.window).collect();
    assert_eq!(windows, [Some(5), Some(5), Some(5), Some(5), Some(5), None, Some(5)]);
    // Bases of 10,000 and a million without a key; pair 4 of 8 is their inverse root.
    let middle = |layer: usize| small.layers[layer].attention.rope.inverse_frequencies[4];
    assert_eq!((middle(0), middle(5)), (0.01, 0.001));
    // The 27B, known by its layers alone, scales by hidden size over heads: 4 here.
    assert_eq!((small.layers[0].attention.scale, spec(62).layers[0].attention.scale), (0.25, 0.5));
}

#[test]
fn gguf_refusals() {
    let check = |file: GgufWriter, expected: &str| {
        let message = describe_file(&file).unwrap_err().to_string();
        assert!(message.starts_with("m.gguf: ") && message.contains(expected), "{message:?}: no {expected:?}");
    };
    check(gguf("falcon"), "general.architecture: found \"falcon\", expected one of llama, qwen2, qwen3, gemma3");
    check(gguf("llama").u32("llama.expert_count", 8), "llama.expert_count: found 8, expected 0; a mixture of experts");
    check(gguf("llama").u32("llama.attention.value_length", 6), "llama.attention.value_length: found 6");
    check(gguf("llama").u32("llama.rope.dimension_count", 6), "expected an even size from 2 to the head's, which is 4");
    check(
        gguf("llama").str("llama.rope.scaling.type", "longrope"),
        "llama.rope.scaling.type: found \"longrope\", expected one of none, linear, yarn",
    );
    check(
        gguf("llama").f32_tensor("rope_freqs.weight", &[3], &[1.0; 3]),
        "tensor \"rope_freqs.weight\": found 1 x 3 of F32, expected 2 finite F32 numbers above 0",
    );
    check(gguf("llama").f32_tensor("rope_freqs.weight", &[2], &[1.0, 0.0]), "found 0, expected 2 finite F32 numbers");
    check(gguf("llama").f32_tensor("blk.0.ffn_gate.bias", &[8], &[0.0; 8]), "a bias of the feed-forward");
    check(gguf("gemma3"), "gemma3.attention.sliding_window: found nothing");
}

#[test]
fn no_value_of_any_gguf_key_panics() {
    const KEYS: [&str; 18] = [
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
        "expert_count",
        "vocab_size",
    ];
    for architecture in ["llama", "qwen2", "qwen3", "gemma3"] {
        for name in KEYS {
            let key = format!("{architecture}.{name}");
            let scaling = format!("{architecture}.rope.scaling.type");
            let base = match name {
                "rope.scaling.type" => gguf(architecture),
                _ => gguf(architecture).str(&scaling, "yarn"),
            };
            let window = format!("{architecture}.attention.sliding_window");
            let base = if name == "attention.sliding_window" { base } else { base.u32(&window, 4) };
            let files = [0, 1, 2, 3, 1 << 20, u32::MAX].map(|value| base.clone().u32(&key, value)).into_iter();
            let floats = [0.0, -1.0, 1e-38, 1e38, f32::INFINITY, f32::NAN].map(|value| base.clone().f32(&key, value));
            let others =
                [base.clone().str(&key, "yarn"), base.clone().bool(&key, true), base.clone().u32s(&key, &[1, 2])];
            for file in files.chain(floats).chain(others) {
                if let Ok(described) = describe_file(&file) {
                    check_possible(&described, &key);
                }
            }
        }
    }
}

#[test]
fn dummy_weights_have_every_slot_and_keep_activations_finite() {
    let folder = tempfile::tempdir().unwrap();
    let deep = with(
        gemma_3_1b(),
        json!({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 60, "vocab_size": 300, "head_dim": 16}),
    );
    std::fs::write(folder.path().join("config.json"), deep.to_string()).unwrap();
    let model = Model::dummy(folder.path()).unwrap();
    assert!(model.is_dummy());
    let prompt = [1, 299, 7, 150];
    let logits = powertrain_model::reference::logits(&model, &prompt);
    let spread = logits[3].iter().map(|logit| logit * logit).sum::<f32>() / 300.0;
    assert!((0.01..1e4).contains(&spread), "mean square of the logits: {spread}");
    for slot in model.spec().slots() {
        let tensor = model.tensor(slot).unwrap();
        assert_eq!((tensor.rows, tensor.columns), model.spec().shape(slot));
    }
    assert_eq!(model.summary().weight_bytes, 2 * model.summary().parameters);
    // The same in every run, and different from slot to slot.
    let again = Model::dummy(&folder.path().join("config.json")).unwrap();
    let query = |model: &Model, layer: usize| model.tensor(Slot::Layer(layer, LayerSlot::Query)).unwrap().data.to_vec();
    assert_eq!(query(&model, 3), query(&again, 3));
    assert_ne!(query(&model, 3), query(&model, 4));
}
