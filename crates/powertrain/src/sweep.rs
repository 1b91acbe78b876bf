//! `powertrain sweep FILE.toml`

use crate::{interrupt::stop_on_interrupt, print, progress::Progress};
use anyhow::Context;
use powertrain_load::Stop;
use powertrain_sweep::{
    Event, Folder, Matrix, Options,
    proposal::{self, Goal, Proposal},
    sweep,
    table::Table,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Measure many configurations of servers: each is started, measured under every workload, and stopped.
///
/// Gives the table of parameters against KV cache, throughput and latency (Markdown, CSV, JSON), and proposes two
/// configurations as files that can be run, one for latency and one for throughput. What fails to start, runs out of memory
/// or dies is a row with its reason. A sweep that was interrupted goes on where it was.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The matrix: servers with parameters to try, and workloads
    file: PathBuf,
    /// Folder for results [default: the file's name with .sweep]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// List every configuration with its command, and start none
    #[arg(long)]
    list: bool,
    /// Start again what failed before
    #[arg(long)]
    retry_failed: bool,
    /// Measure again what was measured under another matrix
    #[arg(long)]
    redo_changed: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let matrix = Matrix::open(&arguments.file)?;
    if arguments.list {
        let all = matrix.configurations()?;
        let lines = all
            .iter()
            .map(|found| format!("{}\n    {}\n", found.name, found.shell_line(found.plan.port.unwrap_or(8000))));
        return print(&lines.collect::<String>());
    }
    let output = arguments.output.clone().unwrap_or_else(|| arguments.file.with_extension("sweep"));
    let folder = Folder::open(&output)?;
    let options = Options {
        retry_failed: arguments.retry_failed,
        redo_changed: arguments.redo_changed,
        command: crate::bench::command(std::env::args()),
    };
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let mut teller = Teller::default();
    sweep(&matrix, &folder, &options, &stop, &mut |event| teller.tell(&event))?;
    drop(teller);
    let table = Table::read(&matrix, &folder)?;
    write(&matrix, &folder, &table)?;
    if stop.is_requested() {
        eprintln!("interrupted; the same command goes on where it was");
    }
    Ok(())
}

/// Writes and prints what the folder holds by now.
fn write(matrix: &Matrix, folder: &Folder, table: &Table) -> anyhow::Result<()> {
    let proposals = proposal::proposals(matrix, table);
    let mut text = table.markdown();
    for proposal in &proposals {
        text.push_str(&format!("\n{}: {}\n", goal_name(proposal.goal), proposal.configuration));
        for line in &proposal.because {
            text.push_str(&format!("- {line}\n"));
        }
    }
    if proposals.is_empty() {
        text.push_str("\nNothing is proposed: no configuration has every workload with the objectives met.\n");
    }
    let object =
        json!({"format": table.format, "parameters": table.parameters, "rows": table.rows, "proposals": proposals});
    folder.write("sweep.json", &(serde_json::to_string_pretty(&object)? + "\n"))?;
    folder.write("sweep.csv", &table.csv())?;
    folder.write("sweep.md", &text)?;
    print(&text)?;
    for proposal in &proposals {
        let name = goal_name(proposal.goal);
        let Proposal { configuration, because, .. } = proposal;
        write_configuration(matrix, folder.path(), name, configuration, because)?;
    }
    eprintln!("wrote sweep.md, sweep.csv, sweep.json and {} proposals to {}", proposals.len(), folder.path().display());
    Ok(())
}

/// A configuration as `NAME.toml` and `NAME.sh`.
pub(crate) fn write_configuration(
    matrix: &Matrix,
    folder: &Path,
    name: &str,
    configuration: &str,
    because: &[String],
) -> anyhow::Result<()> {
    let all = matrix.configurations()?;
    let found =
        all.iter().find(|other| other.name == configuration).context("a configuration that is not in the matrix")?;
    let files = proposal::files(matrix, found, because)?;
    for (extension, text) in [("toml", &files.toml), ("sh", &files.shell)] {
        let path = folder.join(format!("{name}.{extension}"));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn goal_name(goal: Goal) -> &'static str {
    match goal {
        Goal::Latency => "latency",
        Goal::Throughput => "throughput",
    }
}

/// Says what happens on standard error.
#[derive(Default)]
pub(crate) struct Teller {
    progress: Option<Progress>,
}

impl Teller {
    pub(crate) fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Starting { configuration, place, of, repeat } => {
                eprintln!("[{place}/{of}, run {repeat}] starting {}", configuration.name);
            }
            Event::Ready(ready) => {
                let fact = |name: &str, value: Option<String>| value.map(|value| format!(", {name} {value}"));
                let startup = &ready.startup;
                let facts = [
                    fact("KV GiB", startup.kv_gib.map(|gib| format!("{gib:.2}"))),
                    fact("KV tokens", startup.kv_tokens.map(|tokens| tokens.to_string())),
                    fact("concurrency", startup.max_concurrency.map(|most| format!("{most:.1}"))),
                ];
                eprintln!(
                    "    ready after {:.1} s{}",
                    ready.after.as_secs_f64(),
                    facts.into_iter().flatten().collect::<String>()
                );
            }
            Event::Failed(failure) => eprintln!("    {}: {}", failure.kind.name(), failure.reason),
            Event::Cell(cell) => eprintln!("    {}", cell.workload.name),
            Event::Resumed(finished) => eprintln!("{finished} runs are finished already"),
            Event::Bench(powertrain_load::Event::LevelBegins { load, live }) => {
                self.progress = Some(Progress::begin(load.clone(), live.clone()));
            }
            Event::Bench(powertrain_load::Event::LevelEnded { result, .. }) => {
                drop(self.progress.take());
                if let Some(summary) = &result.summary {
                    let ttft = summary.latency.get("ttft_ms").map(|ttft| format!(", TTFT mean {:.1} ms", ttft.mean));
                    eprintln!(
                        "        {}: {} requests, {:.1} output tok/s{}, {} failed",
                        powertrain_load::table::load_name(&result.load),
                        summary.requests.completed,
                        summary.throughput.output_tokens_per_s,
                        ttft.unwrap_or_default(),
                        summary.requests.failed + summary.requests.cut_off,
                    );
                }
            }
            Event::Bench(_) => {}
        }
    }
}
