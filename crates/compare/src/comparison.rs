//! The verdicts: for each load that both sides offered, for each metric, whether they differ.

use crate::{
    differences::{Difference, differences},
    estimate::share_interval,
    interval::{Interval, Intervals, Resampling, between_runs, within_runs},
    level::{LevelRuns, levels},
    metric::{Latency, Metric, Statistic},
    sample::Measure,
    side::Side,
};
use serde::{Serialize, Serializer};

/// The version of the JSON.
pub const FORMAT: &str = "powertrain-compare/1";

/// Mean lengths of answers that differ by less than this share are alike.
const ANSWERS_ALIKE: f64 = 0.02;

/// How sides are compared.
pub type Settings = Resampling;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Where A is, and how many runs it has.
    pub a: SideSummary,
    /// Where B is.
    pub b: SideSummary,
    /// Probability that an interval holds the truth.
    pub confidence: f64,
    /// The runs came in pairs of one A and one B, and are compared in pairs.
    pub paired: bool,
    /// What a reader should know before believing a verdict.
    pub cautions: Vec<String>,
    /// What else was not alike.
    pub differences: Vec<Difference>,
    /// The loads that both sides offered.
    pub levels: Vec<LevelComparison>,
}

/// One side in a line.
#[derive(Clone, Debug, Serialize)]
pub struct SideSummary {
    /// File or folder.
    pub path: String,
    /// Its label, where the runs have one.
    pub config: String,
    /// Runs.
    pub runs: usize,
    /// When each began, in that order: tells a reader whether files are these runs.
    pub began_at: Vec<String>,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct LevelComparison {
    /// The load in words.
    pub load: String,
    /// Runs of A that offered it.
    pub runs_a: usize,
    /// Runs of B.
    pub runs_b: usize,
    /// Requests that did not complete.
    pub failed: Failed,
    /// What both sides have, in the order of [`Metric::all`].
    pub metrics: Vec<MetricComparison>,
}

/// Requests that failed or were cut off.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Failed {
    /// Of A: how many, of how many sent.
    pub a: (u64, u64),
    /// Of B.
    pub b: (u64, u64),
    /// Interval of the difference of the shares, B less A (Newcombe's, requests taken as independent).
    pub share_difference: (f64, f64),
    /// Whether they differ.
    pub verdict: Verdict,
}

/// One number.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricComparison {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub metric: Metric,
    /// A's, over all its runs.
    pub a: f64,
    /// B's.
    pub b: f64,
    /// B / A.
    pub ratio: f64,
    /// Interval of the ratio from run to run.
    pub between_runs: Option<Interval>,
    /// Interval of the ratio within these runs.
    pub within_runs: Option<Interval>,
    /// Which of the two the verdict stands on.
    pub basis: Basis,
    /// Whether they differ.
    pub verdict: Verdict,
}

/// What a verdict stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Differences from run to run.
    BetweenRuns,
    /// Differences within one run of each: how runs differ is unknown.
    WithinRuns,
    /// Nothing to estimate chance by.
    None,
}

/// What can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B is better.
    Better,
    /// B is worse.
    Worse,
    /// What was seen may be chance.
    NoDetectableDifference,
    /// Neither repeats nor raw events.
    Unknown,
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDetectableDifference => "no detectable difference",
            Self::Unknown => "unknown",
        }
    }
}

impl MetricComparison {
    /// The interval of the verdict.
    pub fn interval(&self) -> Option<Interval> {
        match self.basis {
            Basis::BetweenRuns => self.between_runs,
            Basis::WithinRuns => self.within_runs,
            Basis::None => None,
        }
    }

    /// The relative change of B from A.
    pub fn change(&self) -> f64 {
        self.ratio - 1.0
    }
}

impl Comparison {
    /// Compares two sides.
    pub fn of(a: &Side, b: &Side, settings: Settings) -> Self {
        let paired = ran_in_pairs(a, b);
        let (levels_a, levels_b) = (levels(a), levels(b));
        let both = levels_a.iter().filter_map(|(name, of_a)| {
            let (_, of_b) = levels_b.iter().find(|(other, _)| other == name)?;
            Some(compare_level(name, of_a, of_b, paired, settings))
        });
        let levels: Vec<LevelComparison> = both.collect();
        let mut cautions = cautions(a, b, paired);
        for (name, _) in levels_a.iter().chain(&levels_b) {
            if !levels.iter().any(|level| level.load == *name) {
                cautions.push(format!("{name} was offered on one side only and is not compared"));
            }
        }
        for (name, of_a) in &levels_a {
            let of_b = levels_b.iter().find(|(other, _)| other == name);
            cautions.extend(of_b.into_iter().flat_map(|(_, of_b)| other_answers(name, of_a, of_b)));
        }
        if levels.is_empty() {
            cautions.push("no load was offered on both sides: nothing is compared".to_owned());
        }
        Self {
            format: FORMAT,
            a: SideSummary::of(a),
            b: SideSummary::of(b),
            confidence: settings.confidence,
            paired,
            cautions,
            differences: differences(a, b),
            levels,
        }
    }
}

impl SideSummary {
    fn of(side: &Side) -> Self {
        let mut configs: Vec<&str> = side.runs.iter().map(|run| run.result.config.as_str()).collect();
        configs.dedup();
        Self {
            path: side.path.display().to_string(),
            config: configs.join(", "),
            runs: side.runs.len(),
            began_at: side.runs.iter().map(|run| run.result.began_at.clone()).collect(),
        }
    }
}

/// In the order in which they began, each two neighbours are one of A and one of B: A B B A A B ….
fn ran_in_pairs(a: &Side, b: &Side) -> bool {
    let mut all: Vec<(&str, bool)> = a.runs.iter().map(|run| (run.result.began_at.as_str(), true)).collect();
    all.extend(b.runs.iter().map(|run| (run.result.began_at.as_str(), false)));
    all.sort_unstable();
    a.runs.len() == b.runs.len() && a.runs.len() >= 2 && all.chunks(2).all(|pair| pair[0].1 != pair[1].1)
}

fn cautions(a: &Side, b: &Side, paired: bool) -> Vec<String> {
    let mut cautions = Vec::new();
    let (few, total) = (a.runs.len().min(b.runs.len()), a.runs.len() + b.runs.len());
    if few < 2 {
        cautions.push(
            "one run of a side: verdicts hold for these runs only, and how much runs differ by themselves is unknown; repeat \
             both, best in turn (--interleave)"
                .to_owned(),
        );
    } else if !paired {
        let ends = |side: &Side| {
            let began = |run: Option<&crate::Run>| run.map(|run| run.result.began_at.clone()).unwrap_or_default();
            (began(side.runs.first()), began(side.runs.last()))
        };
        let ((first_a, last_a), (first_b, last_b)) = (ends(a), ends(b));
        if last_a < first_b || last_b < first_a {
            cautions.push(
                "all runs of one side came before those of the other: a drift of the machine would look like a difference; \
                 take turns (--interleave)"
                    .to_owned(),
            );
        }
    }
    let all = || a.runs.iter().chain(&b.runs);
    let limited = all().filter(|run| run.result.levels.iter().any(|level| !level.client.client_limited.is_empty()));
    let limited = limited.count();
    if limited > 0 {
        cautions.push(format!(
            "in {limited} of {total} runs the client itself may have been the limit (client-limited; see their files)"
        ));
    }
    let incomplete = all().filter(|run| !run.result.complete).count();
    if incomplete > 0 {
        cautions.push(format!("{incomplete} of {total} runs were broken off; their unfinished levels are left out"));
    }
    for side in [a, b] {
        cautions.extend(
            side.repeated
                .iter()
                .map(|path| format!("{} is a copy of another run of its side and is left out", path.display())),
        );
    }
    let on_both = a.runs.iter().filter(|run| b.runs.iter().any(|other| other.json == run.json)).count();
    if on_both > 0 {
        cautions.push(format!(
            "{on_both} of the runs are on both sides: a run does not differ from itself, so what is said of chance is not true"
        ));
    }
    cautions.extend(all().filter_map(|run| {
        let why = run.events_unused.as_ref()?;
        Some(format!("{}: {why}; chance within this run is not known", run.path.display()))
    }));
    cautions
}

/// Answers that are no like work: of other lengths, or without content.
fn other_answers(name: &str, a: &LevelRuns<'_>, b: &LevelRuns<'_>) -> Vec<String> {
    let mut cautions = Vec::new();
    if let Some((of_a, of_b)) = a.answer_tokens().zip(b.answer_tokens())
        && (of_a - of_b).abs() > ANSWERS_ALIKE * of_a.max(of_b)
    {
        cautions.push(format!(
            "{name}: A's answers have {of_a:.1} tokens in the mean, B's {of_b:.1}: times of whole answers and rates compare other work"
        ));
    }
    for (side, runs) in [("A", a), ("B", b)] {
        let (empty, completed) = runs.without_content();
        if empty > 0 {
            cautions.push(format!(
                "{name}: {empty} of {completed} answers of {side} had no content; they count as completed"
            ));
        }
    }
    cautions
}

fn compare_level(
    name: &str,
    a: &LevelRuns<'_>,
    b: &LevelRuns<'_>,
    paired: bool,
    settings: Settings,
) -> LevelComparison {
    // A run that broke off may lack a level: then pairs no longer match.
    let paired = paired && a.runs.len() == b.runs.len();
    let mut metrics = Vec::new();
    let rates = Metric::RATES.into_iter().map(|metric| vec![metric]);
    let latencies =
        Latency::ALL.into_iter().map(|latency| Statistic::ALL.map(|number| Metric::Latency(latency, number)).to_vec());
    for group in rates.chain(latencies) {
        let Some((of_a, of_b)) = a.measure(group[0]).zip(b.measure(group[0])) else { continue };
        let between = between_runs(&of_a, &of_b, paired, settings);
        let within = within_runs(&of_a, &of_b, settings);
        metrics.extend(group.iter().filter_map(|&metric| compare_metric(metric, &of_a, &of_b, &between, &within)));
    }
    let failed = Failed::of(a.failed(), b.failed(), settings.confidence);
    LevelComparison { load: name.to_owned(), runs_a: a.runs.len(), runs_b: b.runs.len(), failed, metrics }
}

fn compare_metric(
    metric: Metric,
    a: &Measure,
    b: &Measure,
    between: &Intervals,
    within: &Intervals,
) -> Option<MetricComparison> {
    let statistic = match metric {
        Metric::Latency(_, statistic) => statistic,
        _ => Statistic::Mean,
    };
    if !a.supports(statistic) || !b.supports(statistic) {
        return None;
    }
    let place = Statistic::ALL.iter().position(|&other| other == statistic)?;
    let (a, b) = (a.numbers()[place], b.numbers()[place]);
    let ratio = b / a;
    let (between_runs, within_runs) = (between[place], within[place]);
    let basis = match (between_runs, within_runs) {
        (Some(_), _) => Basis::BetweenRuns,
        (None, Some(_)) => Basis::WithinRuns,
        (None, None) => Basis::None,
    };
    let verdict = match between_runs.or(within_runs) {
        // A rate of nothing has no logarithm to vary; it is no chance either.
        None if metric.higher_is_better() && a > 0.0 && b == 0.0 => Verdict::Worse,
        None => Verdict::Unknown,
        Some(interval) => verdict(interval.low, interval.high, 1.0, metric.higher_is_better()),
    };
    ratio.is_finite().then_some(MetricComparison { metric, a, b, ratio, between_runs, within_runs, basis, verdict })
}

impl Failed {
    /// Of B's requests none was answered whole, of A's some were.
    pub fn only_b_failed(&self) -> bool {
        self.b.0 == self.b.1 && self.a.0 < self.a.1
    }

    fn of(a: (u64, u64), b: (u64, u64), confidence: f64) -> Self {
        let share = |(count, of): (u64, u64)| if of == 0 { 0.0 } else { count as f64 / of as f64 };
        let (share_a, share_b) = (share(a), share(b));
        let (low_a, high_a) = share_interval(a.0, a.1, confidence);
        let (low_b, high_b) = share_interval(b.0, b.1, confidence);
        let difference = share_b - share_a;
        let low = difference - ((share_b - low_b).powi(2) + (high_a - share_a).powi(2)).sqrt();
        let high = difference + ((high_b - share_b).powi(2) + (share_a - low_a).powi(2)).sqrt();
        Self { a, b, share_difference: (low, high), verdict: verdict(low, high, 0.0, false) }
    }
}

fn verdict(low: f64, high: f64, equal: f64, higher_is_better: bool) -> Verdict {
    match (low > equal, high < equal) {
        (true, _) if higher_is_better => Verdict::Better,
        (true, _) => Verdict::Worse,
        (_, true) if higher_is_better => Verdict::Worse,
        (_, true) => Verdict::Better,
        _ => Verdict::NoDetectableDifference,
    }
}

fn as_text<S: Serializer>(metric: &Metric, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_failures_differ_only_when_they_must() {
        let verdict = |a, b| Failed::of(a, b, 0.95).verdict;
        assert_eq!(verdict((0, 100), (0, 100)), Verdict::NoDetectableDifference);
        assert_eq!(verdict((0, 100), (2, 100)), Verdict::NoDetectableDifference);
        assert_eq!(verdict((0, 100), (10, 100)), Verdict::Worse);
        assert_eq!(verdict((30, 100), (1, 100)), Verdict::Better);
        // Newcombe 1998, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339.
        let (low, high) = Failed::of((48, 80), (56, 70), 0.95).share_difference;
        assert!((low - 0.0524).abs() < 2e-3 && (high - 0.3339).abs() < 2e-3, "{low} {high}");
    }
}
