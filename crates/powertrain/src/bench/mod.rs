//! `powertrain bench URL`

mod arguments;
mod itself;
mod plan;

pub(crate) use arguments::Arguments;
pub(crate) use plan::{command, objectives};

use crate::{interrupt::stop_on_interrupt, print, progress::Progress};
use anyhow::{Context, ensure};
use arguments::Subject;
use powertrain_load::{
    Event, Stop, bench,
    csv::write_csv,
    events::EventsFile,
    files::{self, SeriesFile},
    result::RunResult,
    table,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What is written while levels run.
struct Sidecars {
    events: EventsFile,
    series: SeriesFile,
}

impl Sidecars {
    fn create(result: &Path) -> anyhow::Result<Self> {
        let (events, series) = (files::events_path(result), files::series_path(result));
        let cannot = |path: &Path| format!("cannot write {}", path.display());
        Ok(Self {
            events: EventsFile::create(&events).with_context(|| cannot(&events))?,
            series: SeriesFile::create(&series).with_context(|| cannot(&series))?,
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let url = match &arguments.url {
        Subject::Server(url) => url,
        Subject::Itself => return itself::prove_itself(arguments),
        Subject::GroundTruth => return itself::serve_truth(arguments).map(|()| ExitCode::SUCCESS),
    };
    let plan = arguments.plan(url)?;
    ensure!(
        arguments.output.is_none() || arguments.output != arguments.csv,
        "--output and --csv name the same file; the second would replace the first"
    );
    let output = arguments.output.as_deref().map(result_path).transpose()?;
    if let Some(csv) = &arguments.csv {
        files::check_writable(csv).with_context(|| format!("cannot write --csv {}", csv.display()))?;
    }
    let mut sidecars = output.as_deref().map(Sidecars::create).transpose()?;
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    eprintln!("seed {}", plan.seed);
    let mut progress: Option<Progress> = None;
    let mut write_error = None;
    let mut level = 0;
    let result = bench(&plan, &stop, |event| match event {
        Event::Note(text) => eprintln!("{text}"),
        Event::LevelBegins { load, live } => progress = Some(Progress::begin(load, live)),
        Event::LevelEnded { result, records, series } => {
            drop(progress.take());
            // A reader that went away is no reason to stop measuring.
            _ = print(&table::level_table(result));
            let written = sidecars.as_mut().map(|sidecars| {
                sidecars.events.write_level(level, records)?;
                sidecars.series.write_level(level, series)
            });
            if let Some(Err(error)) = written {
                write_error.get_or_insert(error);
            }
            level += 1;
        }
    })?;
    if let Some(capacity) = &result.capacity {
        print(&table::capacity_text(capacity))?;
    }
    print(&table::definitions_text())?;
    if let Some(absent) = &result.gpus.absent {
        eprintln!("no GPU was looked at ({absent})");
    }
    if let Some(error) = write_error {
        return Err(error).context("cannot write the raw events or samples");
    }
    let served = served(&result);
    write(output.as_deref().zip(sidecars), arguments.csv.as_deref(), result)?;
    served.map(|()| ExitCode::SUCCESS)
}

/// Where the result goes: behind a link, so that its sidecars lie beside it; under a name whose sidecars are its own.
fn result_path(given: &Path) -> anyhow::Result<PathBuf> {
    let path = std::fs::canonicalize(given).unwrap_or_else(|_| given.to_owned());
    ensure!(
        files::has_own_sidecars(&path),
        "--output {}: a result's name ends in .json (its raw events go to the same name with .events.jsonl, and no other \
         result may share them)",
        path.display()
    );
    ensure!(
        !path.exists() || path.is_file(),
        "--output {}: it is there and no regular file; give another name",
        path.display()
    );
    Ok(path)
}

/// An error where requests failed and none was completed: a script must not take such a run for a measurement.
fn served(result: &RunResult) -> anyhow::Result<()> {
    let requests = || result.levels.iter().filter_map(|level| Some(&level.summary.as_ref()?.requests));
    let failed: u64 = requests().map(|requests| requests.failed + requests.cut_off).sum();
    if failed > 0 && requests().all(|requests| requests.completed == 0) {
        anyhow::bail!("all {failed} requests failed; how stands with each level above");
    }
    let (completed, empty) = requests().fold((0, 0), |(completed, empty), requests| {
        (completed + requests.completed, empty + requests.without_content)
    });
    if completed > 0 && completed == empty {
        anyhow::bail!("none of the {completed} answers had any content; see what the server sends, e.g. with curl");
    }
    Ok(())
}

fn write(output: Option<(&Path, Sidecars)>, csv: Option<&Path>, mut result: RunResult) -> anyhow::Result<()> {
    if let Some((path, sidecars)) = output {
        sidecars.events.finish().context("cannot write the raw events")?;
        sidecars.series.finish().context("cannot write the samples")?;
        let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        result.events_file = name(files::events_path(path));
        result.series_file = name(files::series_path(path));
        files::write_result(path, &result).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    if let Some(path) = csv {
        write_csv(path, &result).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
