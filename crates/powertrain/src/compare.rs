//! `powertrain compare A B`

use crate::{interrupt::stop_on_interrupt, print, sweep::Teller};
use anyhow::{Context, bail, ensure};
use powertrain_compare::{Comparison, Gate, GateResult, Settings, Side, table};
use powertrain_load::Stop;
use powertrain_sweep::{Limits, Side as Turn, Source, Turns, Workload, interleave};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Ends with this code when a limit of `--fail-if` is exceeded.
const LIMIT_EXCEEDED: u8 = 1;

/// Compare two measured sides: better, worse, or no detectable difference, and what else differed.
///
/// A and B are files that `bench --output` wrote, or folders of repeats of such. With --interleave they are servers, which
/// are measured in turns first. Ends with 0 when no limit of --fail-if is exceeded, with 1 when one is, with 2 when nothing
/// could be compared.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The first side, what B is compared with: a result, or a folder of repeats; with --interleave the address of a server,
    /// or a file with one configuration (as sweep's latency.toml) that is started for each run
    a: PathBuf,
    /// The second side
    b: PathBuf,
    /// Measure both first, in turns: A B B A A B …
    #[arg(long, requires = "output", help_heading = "Measuring in turns")]
    interleave: bool,
    /// Folder for the runs' results, in a/ and b/; new or empty
    #[arg(short, long, value_name = "FOLDER", requires = "interleave", help_heading = "Measuring in turns")]
    output: Option<PathBuf>,
    /// Runs of each side
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Measuring in turns")]
    pairs: u32,
    /// Clients that each wait for their answer; a list makes a level of each [default: as A's file says, or 1]
    #[arg(long, value_delimiter = ',', conflicts_with = "request_rate", help_heading = "Measuring in turns")]
    concurrency: Vec<u32>,
    /// Requests per second, whatever the answers do; a list makes a level of each
    #[arg(long, value_delimiter = ',', value_name = "PER_SECOND", help_heading = "Measuring in turns")]
    request_rate: Vec<f64>,
    /// Measured requests of each level and run
    #[arg(long, value_name = "REQUESTS", help_heading = "Measuring in turns")]
    num_requests: Option<u64>,
    /// Seconds of each level and run [default: as A's file says, or 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Measuring in turns")]
    duration: Option<f64>,
    /// Prompt tokens, as `bench` takes them [default: as A's file says, or 256]
    #[arg(long, value_name = "LENGTHS", help_heading = "Measuring in turns")]
    input_tokens: Option<String>,
    /// Most tokens of an answer [default: as A's file says, or 128]
    #[arg(long, value_name = "LENGTHS", help_heading = "Measuring in turns")]
    max_tokens: Option<String>,
    /// Model name for servers that run; by default the first each lists
    #[arg(long, help_heading = "Measuring in turns")]
    model: Option<String>,
    /// Key sent to servers that run
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, help_heading = "Measuring in turns")]
    api_key: Option<String>,
    /// Requests before each run
    #[arg(long, value_name = "REQUESTS", default_value_t = 4, help_heading = "Measuring in turns")]
    warmup_requests: u32,
    /// Limit on B's change that ends the command with 1 when it is exceeded and no chance: ttft_p95>+5%,
    /// output_tokens_per_s<-3%, failed_share>+1%; repeatable
    #[arg(long, value_name = "LIMIT")]
    fail_if: Vec<Gate>,
    /// Probability that an interval holds the truth
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    confidence: f64,
    /// How often runs and requests are resampled
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// Seed of the resampling: the same files and seed give the same intervals
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is asked of a server, and what makes a request good.
type Asked = (Workload, Option<Limits>);

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let confidence = arguments.confidence;
    ensure!((0.5..=0.9999).contains(&confidence), "--confidence {confidence}: write 0.5 to 0.9999");
    let settings = Settings { confidence, resamples: arguments.resamples as usize, seed: arguments.seed };
    let (a, b) = match &arguments.output {
        Some(folder) if arguments.interleave => arguments.measure(folder)?,
        _ => (arguments.a.clone(), arguments.b.clone()),
    };
    let comparison = Comparison::of(&Side::open(&a)?, &Side::open(&b)?, settings);
    let gates: Vec<GateResult> = arguments.fail_if.iter().map(|gate| gate.judge(&comparison)).collect();
    print(&if arguments.json { json(&comparison, &gates)? } else { text(&comparison, &gates) })?;
    ensure!(!comparison.levels.is_empty(), "no load was offered on both sides; compare runs of the same loads");
    if let Some(gate) = gates.iter().find(|gate| gate.guards_nothing()) {
        anyhow::bail!(
            "--fail-if {}: no load has this number on both sides; send more requests, or name another",
            gate.gate
        );
    }
    Ok(if gates.iter().any(GateResult::failed) { ExitCode::from(LIMIT_EXCEEDED) } else { ExitCode::SUCCESS })
}

impl Arguments {
    /// Measures both in turns; where their results lie.
    fn measure(&self, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (a, of_file) = self.source(&self.a)?;
        let (b, _) = self.source(&self.b)?;
        let (workload, limits) = self.workload(of_file)?;
        let command = crate::bench::command(std::env::args());
        let turns = Turns {
            a: &a,
            b: &b,
            workload: &workload,
            limits: limits.as_ref(),
            pairs: self.pairs,
            warmup_requests: self.warmup_requests,
            command: &command,
        };
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        let (mut teller, mut last) = (Teller::default(), None);
        let pairs = interleave(&turns, folder, &stop, &mut |side, event| {
            if last.replace(side) != Some(side) {
                eprintln!("{}", side.name());
            }
            teller.tell(&event);
        })?;
        drop(teller);
        if pairs < self.pairs {
            eprintln!("interrupted: {pairs} of {} pairs are whole and are compared", self.pairs);
        }
        ensure!(pairs > 0, "no pair of runs was finished");
        Ok((Turn::A.folder(folder), Turn::B.folder(folder)))
    }

    /// A server's address, or a file with how to start one and what to ask of it.
    fn source(&self, given: &Path) -> anyhow::Result<(Source, Option<Asked>)> {
        let text = given.to_string_lossy();
        if given.extension().is_some_and(|extension| extension == "toml") {
            let (source, workload, limits) = Source::open(given)?;
            return Ok((source, Some((workload, limits))));
        }
        if !text.contains("://") {
            bail!(
                "{text}: with --interleave give a server's address (http://HOST:PORT) or a .toml file with one configuration"
            );
        }
        let key = self.api_key.as_ref().map(|key| ("authorization".to_owned(), format!("Bearer {key}")));
        Ok((Source::running(text.parse()?, self.model.clone(), key.into_iter().collect()), None))
    }

    /// The file's workload where A is one, changed by the flags.
    fn workload(&self, of_file: Option<Asked>) -> anyhow::Result<Asked> {
        let (mut workload, limits) = of_file.unwrap_or_else(|| (Workload::closed("turns", 1), None));
        if !self.concurrency.is_empty() || !self.request_rate.is_empty() {
            workload.concurrency.clone_from(&self.concurrency);
            workload.request_rate.clone_from(&self.request_rate);
        }
        if self.num_requests.is_some() || self.duration.is_some() {
            (workload.num_requests, workload.duration_s) = (self.num_requests, self.duration);
        }
        workload.input_tokens = self.input_tokens.clone().unwrap_or(workload.input_tokens);
        workload.output_tokens = self.max_tokens.clone().unwrap_or(workload.output_tokens);
        workload.check(limits.as_ref())?;
        Ok((workload, limits))
    }
}

fn text(comparison: &Comparison, gates: &[GateResult]) -> String {
    let mut text = table::text(comparison);
    for gate in gates {
        for (load, outcome) in &gate.loads {
            text.push_str(&format!("--fail-if {} at {load}: {outcome}\n", gate.gate));
        }
    }
    text
}

fn json(comparison: &Comparison, gates: &[GateResult]) -> anyhow::Result<String> {
    let mut object = serde_json::to_value(comparison)?;
    object["gates"] = serde_json::to_value(gates)?;
    serde_json::to_string_pretty(&object).map(|text| text + "\n").context("cannot write the comparison")
}
