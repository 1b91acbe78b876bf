//! `powertrain inspect MODEL`

use crate::{print, size::Bytes};
use powertrain_hub::{Hub, ModelReference, Settings};
use powertrain_model::{Model, model::Source, spec::DecoderSpec};
use powertrain_text::ChatTemplateSources;
use std::{collections::BTreeSet, fmt::Write};

/// Show what a model is: architecture, shapes, weight formats, KV cache per token, chat template.
///
/// Reads headers only; a model that is not cached is fetched first.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A GGUF file, a Hugging Face folder, `smollm2`, or a repository: org/repo, org/repo@revision, org/repo:file.gguf
    #[arg(default_value = "smollm2")]
    model: String,
    /// List every tensor with its shape and format
    #[arg(long)]
    tensors: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let reference: ModelReference = arguments.model.parse()?;
    let resolved = Hub::new(Settings::from_env()?).resolve(&reference)?;
    let model = Model::open(&resolved.path)?;
    let mut text = describe(&model);
    if arguments.tensors {
        text.push_str(&tensors(&model));
    }
    let template = match model.source() {
        Source::Gguf(metadata) => ChatTemplateSources::from_gguf(metadata)?,
        Source::Folder(folder) => ChatTemplateSources::from_folder(folder)?,
    };
    match template {
        Some(template) => _ = writeln!(text, "chat template:\n{}", template.default),
        None => text.push_str("chat template   none: /v1/chat/completions will be refused\n"),
    }
    print(&text)
}

fn describe(model: &Model) -> String {
    let (spec, summary) = (model.spec(), model.summary());
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:16}{value}");
    line("path", model.path().display().to_string());
    line("architecture", summary.architecture.clone());
    line("parameters", millions(summary.parameters));
    line("weights", Bytes(summary.weight_bytes).to_string());
    line("context", format!("{} positions", spec.context_len));
    line("vocabulary", format!("{}{}", spec.vocab_size, if spec.tied_head { ", head tied to it" } else { "" }));
    line("hidden size", spec.hidden_size.to_string());
    line("layers", spec.layers.len().to_string());
    each_kind(spec, |layer| layer_words(spec, layer)).into_iter().for_each(|words| line("  each", words));
    let kv = |bytes| Bytes(summary.kv_bytes_per_token(bytes) as u64);
    // A byte an element, and a scale in f32 for each head's key and value.
    let scales = spec.layers.iter().map(|layer| 2 * 4 * layer.attention.kv_heads as u64).sum::<u64>();
    let int8 = Bytes(summary.kv_bytes_per_token(1) as u64 + scales);
    line("KV per token", format!("{int8} in int8 (the default on CPUs), {} in f16 or bf16, {} in f32", kv(2), kv(4)));
    for format in &summary.formats {
        let (tensors, share) = (format.tensors, 100.0 * format.bytes as f64 / summary.weight_bytes.max(1) as f64);
        let size = Bytes(format.bytes);
        line(&format!("{:?}", format.format), format!("{tensors:4} tensors  {size:>10}  {share:5.1} % of the bytes"));
    }
    if !model.unused_tensors().is_empty() {
        line("not used", model.unused_tensors().join(", "));
    }
    text
}

/// What layers look like, with how many look so, in order of first appearance.
fn each_kind(spec: &DecoderSpec, words: impl Fn(usize) -> String) -> Vec<String> {
    let all: Vec<String> = (0..spec.layers.len()).map(words).collect();
    let mut seen = BTreeSet::new();
    let kinds: Vec<&String> = all.iter().filter(|kind| seen.insert(*kind)).collect();
    let counted = kinds.iter().map(|kind| format!("{} x {kind}", all.iter().filter(|other| *other == *kind).count()));
    counted.collect()
}

fn layer_words(spec: &DecoderSpec, layer: usize) -> String {
    let layer = &spec.layers[layer];
    let attention = &layer.attention;
    let mut words = format!(
        "{} heads, {} KV heads, head size {}, feed-forward {} ({:?})",
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        layer.feed_forward.hidden_size,
        layer.feed_forward.activation
    );
    if let Some(window) = attention.window {
        _ = write!(words, ", window {window}");
    }
    for (there, name) in [(attention.qkv_bias, "QKV bias"), (attention.qk_norm.is_some(), "QK norm")] {
        if there {
            _ = write!(words, ", {name}");
        }
    }
    words
}

fn tensors(model: &Model) -> String {
    let mut text = String::new();
    for slot in model.spec().slots() {
        if let (Some(name), Some(tensor)) = (model.tensor_name(slot), model.tensor(slot)) {
            let format = format!("{:?}", tensor.format);
            _ = writeln!(text, "{name:40} {format:5} {} x {}", tensor.rows, tensor.columns);
        }
    }
    text
}

fn millions(count: u64) -> String {
    format!("{:.1} million", count as f64 / 1e6)
}
