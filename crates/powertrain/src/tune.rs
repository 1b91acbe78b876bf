//! `powertrain tune FILE.toml`

use crate::{
    bench::objectives,
    interrupt::stop_on_interrupt,
    print,
    sweep::{Teller, write_configuration},
};
use anyhow::{Context, ensure};
use powertrain_load::Stop;
use powertrain_sweep::{
    Limits, Matrix,
    tune::{Search, Trial, Tuning, tune},
};
use std::{path::PathBuf, time::Duration};

/// Find the best configuration of a matrix within a time: all run shortly, the better third runs three times longer, and so
/// on.
///
/// Best is the highest rate of requests that meet the limits, at the best load at which enough of them do. The chosen
/// configuration is written as files that can be run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The matrix, as for `sweep`
    file: PathBuf,
    /// Limits that make a request good, over those of the file: ttft:MS, tpot:MS, e2e:MS
    #[arg(long, num_args = 1.., value_name = "LIMIT")]
    slo: Vec<String>,
    /// Share of requests that must be good at a load
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    attainment: f64,
    /// Minutes for all of it, starts of servers included
    #[arg(long, value_name = "MINUTES", default_value_t = 30.0)]
    budget: f64,
    /// Seconds of each load in the first round
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    first: f64,
    /// Order of the configurations; those that the budget does not suffice for are left out
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for results, which must be new [default: the file's name with .tune]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut matrix = Matrix::open(&arguments.file)?;
    let (attainment, budget, first) = (arguments.attainment, arguments.budget, arguments.first);
    ensure!((0.0..=1.0).contains(&attainment), "--attainment {attainment}: write 0 to 1");
    ensure!((0.01..=100_000.0).contains(&budget), "--budget {budget}: write minutes, 0.01 to 100000");
    ensure!((0.1..=100_000.0).contains(&first), "--first {first}: write seconds, 0.1 to 100000");
    if !arguments.slo.is_empty() {
        let limits = objectives("--slo", &arguments.slo)?;
        let (ttft_ms, tpot_ms, e2e_ms) = (limits.ttft_ms, limits.tpot_ms, limits.e2e_ms);
        matrix.objectives = Some(Limits { ttft_ms, tpot_ms, e2e_ms, attainment });
    }
    let folder = arguments.output.clone().unwrap_or_else(|| arguments.file.with_extension("tune"));
    ensure!(!folder.exists(), "{} is there already; give another folder with --output", folder.display());
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let search = Search { budget: Duration::from_secs_f64(budget * 60.0), first_s: first, seed: arguments.seed };
    let mut teller = Teller::default();
    let tuning = tune(&matrix, search, &folder, &stop, &mut |event| teller.tell(&event))?;
    drop(teller);
    let path = folder.join("tune.json");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(&path, serde_json::to_string_pretty(&tuning)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    print(&text(&tuning))?;
    let chosen = tuning.chosen.as_ref().context("no configuration could be measured; the reasons are above")?;
    let best =
        tuning.rounds.iter().rev().find_map(|round| round.trials.iter().find(|trial| trial.configuration == *chosen));
    let because: Vec<String> = vec![
        format!("Chosen by tune: {}", best.map_or(String::new(), trial_text)),
        format!("It ended because of this: {}.", tuning.stopped_because),
    ];
    write_configuration(&matrix, &folder, "chosen", chosen, &because)?;
    eprintln!("wrote tune.json, chosen.toml and chosen.sh to {}", folder.display());
    Ok(())
}

fn text(tuning: &Tuning) -> String {
    let mut text = String::new();
    for (number, round) in tuning.rounds.iter().enumerate() {
        text.push_str(&format!("round {}, {:.0} s of each load\n", number + 1, round.seconds));
        for trial in &round.trials {
            text.push_str(&format!("  {}\n", trial_text(trial)));
        }
        if !round.untried.is_empty() {
            text.push_str(&format!("  not tried: {}\n", round.untried.join(", ")));
        }
    }
    text.push_str(&format!("ended: {}\n", tuning.stopped_because));
    if let Some(chosen) = &tuning.chosen {
        let met = if tuning.met { "" } else { "; but no load met the limits, it only came nearest" };
        text.push_str(&format!("chosen: {chosen}{met}\n"));
    }
    text
}

fn trial_text(trial: &Trial) -> String {
    if let Some(failure) = &trial.failure {
        return format!("{}: {}: {}", trial.configuration, failure.kind.name(), failure.reason);
    }
    let good = trial.good_share.map_or(String::new(), |share| format!(", {:.1} % of requests good", share * 100.0));
    let ttft = trial.ttft_mean.map_or(String::new(), |ttft| format!(", TTFT mean {ttft:.1} ms"));
    let left_out = trial.left_out.as_ref().map_or(String::new(), |why| format!("; left out: {why}"));
    format!(
        "{}: score {:.2} at {}{good}, {:.1} output tok/s{ttft} ({:.0} s spent){left_out}",
        trial.configuration,
        trial.score,
        trial.load.as_deref().unwrap_or("no load"),
        trial.output_tokens_per_s,
        trial.spent_s,
    )
}
