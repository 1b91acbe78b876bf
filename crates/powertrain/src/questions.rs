//! `powertrain eval questions`

use crate::eval::{Progress, ResultFlags, ServerFlags};
use anyhow::{Context, ensure};
use powertrain_eval::{
    FORMAT,
    questions::{self, Judged, Score},
};
use serde_json::json;
use std::{path::PathBuf, time::Instant};

/// Ask a server questions with exact answers, at temperature 0: does it still count, know and obey?
///
/// The own set is small: it shows that something broke, not which of two good models is better.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, e.g. http://localhost:8000
    url: String,
    /// Questions of your own, JSON lines: {"kind": "…", "question": "…", "match": "number|words|exact|json", "answers": ["…"]}
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: u32,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    result: ResultFlags,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.result.check()?;
    let (name, text) = match &arguments.questions {
        None => ("own questions".to_owned(), questions::OWN.to_owned()),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let all = questions::read(&text).with_context(|| name.clone())?;
    let endpoint = arguments.server.endpoint(&arguments.url)?;
    let (started, mut progress) = (Instant::now(), Progress::new(all.len()));
    let mut judged: Vec<Judged> = Vec::new();
    for question in &all {
        let reply = endpoint.chat(&question.question, arguments.max_tokens).map_err(|error| error.to_string());
        judged.push(question.judge(reply));
        progress.say(judged.len());
    }
    let failed = judged.iter().filter(|one| one.error.is_some()).count();
    if let Some(error) = judged.iter().find_map(|one| one.error.as_ref()).filter(|_| failed == judged.len()) {
        anyhow::bail!("no question was answered: {error}");
    }
    let (score, kinds) = (Score::of(judged.iter()), Score::by_kind(&judged));
    ensure!(score.questions > 0, "no questions");
    let object = json!({
        "format": FORMAT,
        "measure": "questions",
        "model": endpoint.model,
        "url": endpoint.url(),
        "file": name,
        "max_tokens": arguments.max_tokens,
        "questions": score.questions,
        "right": score.right,
        "failed": failed,
        "accuracy": score.accuracy,
        "accuracy_interval": score.accuracy_interval,
        "kinds": kinds,
        "replies": judged,
        "seconds": started.elapsed().as_secs_f64(),
    });
    let line = |name: &str, score: &Score| {
        let (low, high) = score.accuracy_interval;
        let (right, all) = (score.right, score.questions);
        let share = score.accuracy * 100.0;
        format!("{name:12}{right:4} of {all:<4} {share:5.1} %  ({:.1} to {:.1})\n", low * 100.0, high * 100.0)
    };
    let mut text = format!("{} at {}, {name}\n", endpoint.model, endpoint.url());
    kinds.iter().for_each(|(kind, score)| text.push_str(&line(kind, score)));
    text.push_str(&line("all", &score));
    if failed > 0 {
        text.push_str(&format!("{failed} requests failed and count as wrong\n"));
    }
    arguments.result.give(&object, &text)
}
