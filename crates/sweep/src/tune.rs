//! Successive halving: all configurations run shortly, the better part runs longer, until one is left or the time is spent.
//!
//! A configuration's score is the requests per second that met the objectives, at the best load at which enough of them
//! did; without objectives, output tokens per second. (Jamieson and Talwalkar, "Non-stochastic best arm identification
//! and hyperparameter optimization", AISTATS 2016.)

use crate::{
    configuration::Configuration,
    failure::ServerFailure,
    matrix::Matrix,
    proposal::briefer,
    server::StartError,
    sweep::{Event, SweepError, destination, measured, seed, start},
    table::Numbers,
};
use powertrain_load::{Random, Stop, Summary, files::write_result, result::RunResult};
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Of each round's configurations one in so many goes on, and runs so many times longer.
const HALVING: usize = 3;
/// A round may spend this share of the time that is left; the last needs the rest.
const ROUND_SHARE: f64 = 0.5;
/// Time to start that even an exhausted budget leaves, so that its first configuration has a chance.
const READY_MIN_S: f64 = 10.0;

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Time for all of it, starts included.
    pub budget: Duration,
    /// Seconds of each load in the first round.
    pub first_s: f64,
    /// In which order configurations have their turn, and so which ones are left out when time does not suffice for all.
    pub seed: u64,
}

/// What was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tuning {
    /// In order.
    pub rounds: Vec<Round>,
    /// Why it ended.
    pub stopped_because: String,
    /// The best of the last round that tried any that serves.
    pub chosen: Option<String>,
    /// Whether the chosen one met the objectives at some load.
    pub met: bool,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Round {
    /// Seconds of each load.
    pub seconds: f64,
    /// Best first.
    pub trials: Vec<Trial>,
    /// Configurations that the time did not suffice for.
    pub untried: Vec<String>,
}

/// One configuration's turn in a round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Which.
    pub configuration: String,
    /// Higher is better; 0 when no load met the objectives.
    pub score: f64,
    /// The load of the score, or the one that came nearest.
    pub load: Option<String>,
    /// Share of good requests there.
    pub good_share: Option<f64>,
    /// Output tokens per second there.
    pub output_tokens_per_s: f64,
    /// Mean TTFT there, in milliseconds.
    pub ttft_mean: Option<f64>,
    /// Of each workload, at its best load: the mean length of answers, and that as a share of the limit.
    pub answers: Vec<Answers>,
    /// Why it loses to all others: its answers are less work than theirs.
    pub left_out: Option<String>,
    /// From start to end, stopping included.
    pub spent_s: f64,
    /// Why there is no score.
    pub failure: Option<ServerFailure>,
}

/// How long answers were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answers {
    /// Under which load of which workload.
    pub load: String,
    /// Mean length in tokens.
    pub tokens: Option<f64>,
    /// As a share of the mean limit.
    pub share: Option<f64>,
}

/// Why tuning cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The matrix or this machine.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// The matrix.
    #[error(transparent)]
    Matrix(#[from] crate::MatrixError),
    /// A file.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Searches; results lie in `folder/round-N`.
///
/// # Errors
/// When the matrix cannot be used or files cannot be written. Servers that fail lose.
pub fn tune(
    matrix: &Matrix,
    search: Search,
    folder: &Path,
    stop: &Stop,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Tuning, TuneError> {
    let begun = Instant::now();
    let all = matrix.configurations()?;
    let mut field: Vec<&Configuration> = all.iter().collect();
    shuffle(&mut field, search.seed);
    let mut tuning = Tuning { rounds: Vec::new(), stopped_because: String::new(), chosen: None, met: false };
    let mut seconds = search.first_s;
    tuning.stopped_because = loop {
        let left = search.budget.saturating_sub(begun.elapsed());
        let deadline = begun.elapsed() + left.mul_f64(ROUND_SHARE);
        let mut round = Round { seconds, trials: Vec::new(), untried: Vec::new() };
        for (place, configuration) in field.iter().enumerate() {
            // The first of a round always has its turn: a budget that suffices for none was refused before.
            let late = place > 0 && tuning.rounds.is_empty() && begun.elapsed() >= deadline;
            if stop.is_requested() || late {
                round.untried.push(configuration.name.clone());
                continue;
            }
            tell(Event::Starting {
                configuration,
                place: place + 1,
                of: field.len(),
                repeat: tuning.rounds.len() as u32 + 1,
            });
            let at = folder.join(format!("round-{}", tuning.rounds.len() + 1)).join(&configuration.name);
            // A server that hangs at its start may not take more than what is left.
            let left = search.budget.saturating_sub(begun.elapsed()).as_secs_f64().max(READY_MIN_S);
            let mut hurried = (*configuration).clone();
            hurried.plan.ready_timeout_s = hurried.plan.ready_timeout_s.min(left);
            round.trials.extend(try_one(matrix, &hurried, seconds, &at, stop, tell)?);
        }
        leave_out_briefer(&mut round.trials);
        round.trials.sort_by(better);
        let serving: Vec<&Trial> = round.trials.iter().filter(|trial| trial.is_candidate()).collect();
        if let Some(best) = serving.first() {
            (tuning.chosen, tuning.met) = (Some(best.configuration.clone()), best.score > 0.0);
        }
        let serving_count = serving.len();
        let spent = serving.iter().map(|trial| trial.spent_s).fold(0.0, f64::max);
        let kept: Vec<String> = serving.iter().map(|trial| trial.configuration.clone()).collect();
        let untried = round.untried.len();
        tuning.rounds.push(round);
        if stop.is_requested() {
            break "the user ended it".to_owned();
        }
        match (serving_count, untried) {
            (0, _) => break "no configuration could be measured".to_owned(),
            (1, 0) => break "one configuration is left".to_owned(),
            (1, untried) => {
                break format!("time budget: one could be measured, {untried} configurations were never tried");
            }
            _ => {}
        }
        // A trial's cost beyond its loads (start, warm-up, stop) stays; its loads take longer.
        let loads: usize =
            matrix.workload.iter().map(|workload| workload.concurrency.len() + workload.request_rate.len()).sum();
        let next_s = seconds * HALVING as f64;
        let cost = spent + loads as f64 * (next_s - seconds);
        let left = search.budget.saturating_sub(begun.elapsed()).as_secs_f64();
        let affordable = (left / cost).floor() as usize;
        let wanted = serving_count.div_ceil(HALVING).max(2);
        let next = wanted.min(affordable);
        if next < 2 {
            let more = if untried > 0 { format!("; {untried} configurations were never tried") } else { String::new() };
            break format!(
                "time budget: a longer run of two would take about {:.0} s, {left:.0} s are left{more}",
                2.0 * cost
            );
        }
        if tuning.rounds.len() > 1 && next >= serving_count {
            break format!(
                "the best {serving_count} ran twice or more; longer runs are a matter for sweep with repeats"
            );
        }
        field.retain(|configuration| kept[..next].contains(&configuration.name));
        seconds = next_s;
    };
    Ok(tuning)
}

impl Trial {
    /// It can be chosen.
    fn is_candidate(&self) -> bool {
        self.failure.is_none() && self.left_out.is_none()
    }
}

/// Shorter answers meet more limits for that alone: by the longest of the round at each workload.
fn leave_out_briefer(trials: &mut [Trial]) {
    let places = trials.iter().map(|trial| trial.answers.len()).max().unwrap_or(0);
    for place in 0..places {
        let shares = trials.iter().filter(|trial| trial.failure.is_none());
        let longest = shares.filter_map(|trial| trial.answers.get(place)?.share).reduce(f64::max);
        for trial in &mut *trials {
            let Some(answers) = trial.answers.get(place) else { continue };
            let why = briefer(answers.tokens, answers.share, longest, &answers.load);
            trial.left_out = trial.left_out.take().or(why);
        }
    }
}

/// Best first: by score, then by the share of good requests, then by tokens; what was left out and failures last.
fn better(a: &Trial, b: &Trial) -> std::cmp::Ordering {
    let key = |trial: &Trial| {
        (
            f64::from(u8::from(trial.is_candidate())) + f64::from(u8::from(trial.failure.is_none())),
            trial.score,
            trial.good_share.unwrap_or(0.0),
            trial.output_tokens_per_s,
        )
    };
    let (a, b) = (key(a), key(b));
    b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.total_cmp(&a.2)).then(b.3.total_cmp(&a.3))
}

/// None when the user ended it.
fn try_one(
    matrix: &Matrix,
    configuration: &Configuration,
    seconds: f64,
    folder: &Path,
    stop: &Stop,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Trial>, TuneError> {
    let begun = Instant::now();
    fs::create_dir_all(folder).map_err(|error| TuneError::File { path: folder.to_owned(), error })?;
    let mut trial = Trial {
        configuration: configuration.name.clone(),
        score: 0.0,
        load: None,
        good_share: None,
        output_tokens_per_s: 0.0,
        ttft_mean: None,
        answers: Vec::new(),
        left_out: None,
        spent_s: 0.0,
        failure: None,
    };
    match start(configuration, &folder.join("server.log"), stop)? {
        Err(StartError::Stopped) => return Ok(None),
        Err(StartError::Failed(failure)) => {
            tell(Event::Failed(&failure));
            trial.failure = Some(failure);
        }
        Ok((mut server, ready)) => {
            tell(Event::Ready(&ready));
            let to = destination(configuration, server.url())?;
            if matrix.warmup_requests > 0 {
                let warming = matrix.workload[0].warming_up(matrix.warmup_requests).plan(&to, None, seed());
                _ = measured(&mut server, &warming, stop, None, &mut |_| {});
            }
            let mut scores = Vec::new();
            for workload in &matrix.workload {
                let plan = workload.lasting(seconds).plan(&to, matrix.objectives.as_ref(), seed());
                let path = folder.join(format!("{}.json", workload.name));
                let result = measured(&mut server, &plan, stop, Some(&path), &mut |event| tell(Event::Bench(event)));
                if stop.is_requested() {
                    return Ok(None);
                }
                let failure = match (result, server.ended()) {
                    (_, Some(status)) => server.died(status),
                    (Err(reason), None) => server.unusable(reason),
                    (Ok(result), None) => {
                        write_result(&path, &result).map_err(|error| TuneError::File { path, error })?;
                        let best = score(matrix, &result);
                        trial.answers.extend(best.iter().map(|best| Answers {
                            load: format!("{} of {}", best.load, workload.name),
                            tokens: best.numbers.answer_tokens,
                            share: best.numbers.answer_share,
                        }));
                        scores.extend(best);
                        continue;
                    }
                };
                tell(Event::Failed(&failure));
                trial.failure = Some(failure);
                break;
            }
            if let Some(left) = server.stop() {
                tell(Event::Bench(powertrain_load::Event::Note(left)));
            }
            // Over workloads: what is bad at one is bad.
            if trial.failure.is_none() && scores.len() == matrix.workload.len() {
                trial.score = scores.iter().map(|score| score.value).product::<f64>().powf(1.0 / scores.len() as f64);
                let worst = scores.into_iter().min_by(|a, b| a.value.total_cmp(&b.value));
                if let Some(worst) = worst {
                    trial.load = Some(worst.load);
                    trial.good_share = worst.numbers.good_share;
                    trial.output_tokens_per_s = worst.numbers.output_tokens_per_s;
                    trial.ttft_mean = worst.numbers.ttft_mean;
                }
            }
        }
    }
    trial.spent_s = begun.elapsed().as_secs_f64();
    Ok(Some(trial))
}

struct Score {
    value: f64,
    load: String,
    numbers: Numbers,
}

/// A run's best load; none when nothing was measured.
fn score(matrix: &Matrix, result: &RunResult) -> Option<Score> {
    let of_level =
        |summary: &Summary, load: String, limited: bool| {
            let numbers = Numbers::of(&[(summary, limited)]);
            let value =
                match (matrix.objectives, numbers.good_per_s) {
                    (Some(limits), Some(good)) => {
                        if numbers.good_share.is_some_and(|share| share >= limits.attainment) { good } else { 0.0 }
                    }
                    (Some(_), None) => 0.0,
                    (None, _) => numbers.output_tokens_per_s,
                };
            Score { value, load, numbers }
        };
    let levels = result.levels.iter().filter_map(|level| {
        let load = powertrain_load::table::load_name(&level.load);
        Some(of_level(level.summary.as_ref()?, load, !level.client.client_limited.is_empty()))
    });
    levels.max_by(|a, b| {
        let share = |score: &Score| score.numbers.good_share.unwrap_or(0.0);
        a.value.total_cmp(&b.value).then(share(a).total_cmp(&share(b)))
    })
}

fn shuffle(field: &mut [&Configuration], seed: u64) {
    let mut random = Random::new(seed);
    for last in (1..field.len()).rev() {
        field.swap(last, random.below(last as u64 + 1) as usize);
    }
}
