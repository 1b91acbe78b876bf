//! `powertrain report SCENARIO --before FILES… --after FILES…` and `powertrain report index DIR`

use crate::print;
use anyhow::{Context, ensure};
use powertrain_report::{analysis::Analysis, case_study, index};
use std::path::PathBuf;

/// Write a case study from result files: charts, tables, verdicts, cost, recommendations by stated rules.
///
/// No number is typed: each is read from a file given here or computed from such numbers, and says so. The page holds all it
/// needs; print it for a PDF.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The client: company, use case, requirements, demand, prices (TOML; docs/case-study/scenario.toml is one)
    #[arg(required = true)]
    scenario: Option<PathBuf>,
    /// Results of how it was: of `bench --output`, `eval --json`; several runs of one load become their mean
    #[arg(long, num_args = 1.., required = true, value_name = "FILE")]
    before: Vec<PathBuf>,
    /// Results of how it is now
    #[arg(long, num_args = 1.., required = true, value_name = "FILE")]
    after: Vec<PathBuf>,
    /// Result of `compare --json` of the same runs: its verdicts count in place of overlapping intervals
    #[arg(long, value_name = "FILE")]
    comparison: Option<PathBuf>,
    /// Tables of sweeps (their sweep.json), to be shown with what they propose
    #[arg(long, num_args = 1.., value_name = "FILE")]
    sweep: Vec<PathBuf>,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "report")]
    out: PathBuf,
}

#[derive(clap::Subcommand)]
enum Command {
    Index(IndexArguments),
}

/// Write a page over a folder of results: a sortable table, and how each configuration went over time.
#[derive(clap::Args)]
struct IndexArguments {
    /// The folder, searched with its subfolders
    folder: PathBuf,
    /// The page [default: index.html in the folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Command::Index(arguments)) = &arguments.command {
        let page = arguments.out.clone().unwrap_or_else(|| arguments.folder.join("index.html"));
        let index = index::Index::of(&arguments.folder)?;
        ensure!(
            index.runs() > 0,
            "{}: no result of `powertrain bench --output` in it or below ({} JSON files); give the folder of the results",
            arguments.folder.display(),
            index.files()
        );
        index.write(&page)?;
        return print(&format!("{} runs of {} files in {}\n", index.runs(), index.files(), page.display()));
    }
    let scenario = arguments.scenario.as_ref().context("no scenario was given")?;
    let Arguments { before, after, comparison, sweep, .. } = arguments;
    let analysis = Analysis::of(scenario, before, after, comparison.as_deref(), sweep)?;
    let study = case_study::render(&analysis, &command_line(arguments, scenario))?;
    let mut text = String::new();
    for path in study.write(&arguments.out)? {
        text.push_str(&format!("{}\n", path.display()));
    }
    print(&text)
}

/// The command that makes the page again from the same folder.
fn command_line(arguments: &Arguments, scenario: &std::path::Path) -> String {
    let mut words = vec!["powertrain report".to_owned(), quoted(scenario)];
    let mut flag = |name: &str, files: &[PathBuf]| {
        words.push(format!("\\\n  {name}"));
        words.extend(files.iter().map(|file| quoted(file)));
    };
    flag("--before", &arguments.before);
    flag("--after", &arguments.after);
    if let Some(comparison) = &arguments.comparison {
        flag("--comparison", std::slice::from_ref(comparison));
    }
    if !arguments.sweep.is_empty() {
        flag("--sweep", &arguments.sweep);
    }
    flag("--out", std::slice::from_ref(&arguments.out));
    words.join(" ")
}

fn quoted(path: &std::path::Path) -> String {
    powertrain_report::document::shell_quoted(&path.display().to_string())
}
