//! `powertrain compare A B`

use crate::print;
use anyhow::{Context, ensure};
use powertrain_compare::{Comparison, Gate, GateResult, Settings, Side, table};
use std::{path::PathBuf, process::ExitCode};

/// Ends with this code when a limit of `--fail-if` is exceeded.
const LIMIT_EXCEEDED: u8 = 1;

/// Compare two measured sides: better, worse, or no detectable difference, and what else differed.
///
/// A and B are files that `bench --output` wrote, or folders of repeats of such. Ends with 0 when no limit of --fail-if is
/// exceeded, with 1 when one is, with 2 when nothing could be compared.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The first side, what B is compared with: a result, or a folder of repeats
    a: PathBuf,
    /// The second side
    b: PathBuf,
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

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let confidence = arguments.confidence;
    ensure!((0.5..=0.9999).contains(&confidence), "--confidence {confidence}: write 0.5 to 0.9999");
    let settings = Settings { confidence, resamples: arguments.resamples as usize, seed: arguments.seed };
    let comparison = Comparison::of(&Side::open(&arguments.a)?, &Side::open(&arguments.b)?, settings);
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
