//! Recommendations: each is a rule with its condition in words, a test on the data, and the evidence it fired on. Nothing is
//! recommended that no rule says.

use crate::{
    analysis::{Analysis, Assessed},
    change::Verdict,
    figure::{Figure, Unit},
    metric,
    quality::PERPLEXITY_INCREASE_MAX,
    requirement::Met,
    run::{Level, Load},
    same_work,
    scenario::PERPLEXITY_INCREASE,
    sentence::{Sentence, quoted, say},
    sweet_spot::FAILED_SHARE_MAX,
};
use serde::Serialize;

/// A rule.
pub struct Rule {
    /// Its name in the report.
    pub id: &'static str,
    /// When it fires, in words.
    pub when: &'static str,
    weight: Weight,
    /// Advice and evidence, if it fires.
    fires: fn(&Analysis) -> Option<(Sentence, Sentence)>,
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// The data do not carry a decision until this is seen to.
    First,
    /// To do.
    Act,
    /// To think about.
    Consider,
}

/// A rule that fired.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// The rule's condition.
    pub when: &'static str,
    /// How much it weighs.
    pub weight: Weight,
    /// What to do.
    pub advice: Sentence,
    /// The numbers it stands on.
    pub evidence: Sentence,
}

/// The last step of load gains less than this part of throughput: the server is full.
const SATURATED_GAIN_MAX: f64 = 0.05;
/// The highest level's throughput exceeds the one before by more than this: the end was not reached.
const UNSATURATED_GAIN_MIN: f64 = 0.10;
/// A 99th percentile of gaps this many times the median is a stall that readers see.
const STALL_RATIO: f64 = 5.0;
/// From this part of prompt tokens on, the prefix cache is part of the result.
const CACHED_SHARE_MIN: f64 = 0.2;

/// All rules, in the order of their weight.
pub const RULES: &[Rule] = &[
    Rule {
        id: "repeat-limited",
        when: "a level is stamped client-limited",
        weight: Weight::First,
        fires: client_limited,
    },
    Rule {
        id: "repeat-interrupted",
        when: "a level was interrupted, or a run is not complete",
        weight: Weight::First,
        fires: interrupted,
    },
    Rule {
        id: "find-failures",
        when: "more than 1 % of a level's requests failed or were cut off",
        weight: Weight::First,
        fires: failures,
    },
    Rule {
        id: "same-work",
        when: "the two sides were not asked the same (prompts, lengths, streaming, turns, request fields but for the model's name, bounds of a \
               load), or the mean length of the answers at a load differs by more than 20 %",
        weight: Weight::First,
        fires: other_work,
    },
    Rule {
        id: "measure-quality",
        when: "no measure of quality was made on the same material on both sides",
        weight: Weight::First,
        fires: quality_unknown,
    },
    Rule {
        id: "hold-for-quality",
        when: "perplexity rises by more than the scenario's limit, or 1 % where it sets none",
        weight: Weight::First,
        fires: quality_lost,
    },
    Rule {
        id: "adopt",
        when: "at the sweet spot's load output throughput is better beyond the noise, neither TTFT p50 nor ITL p50 is worse, and none of \
               same-work, hold-for-quality and requirements-missed fires",
        weight: Weight::Act,
        fires: adopt,
    },
    Rule {
        id: "do-not-adopt",
        when: "at the sweet spot's load output throughput is worse beyond the noise",
        weight: Weight::Act,
        fires: do_not_adopt,
    },
    Rule {
        id: "no-gain",
        when: "at the sweet spot's load output throughput shows no detectable difference",
        weight: Weight::Act,
        fires: no_gain,
    },
    Rule { id: "work-at", when: "there is a sweet spot", weight: Weight::Act, fires: work_at },
    Rule {
        id: "requirements-missed",
        when: "at the sweet spot a requirement is missed, or not shown to be met",
        weight: Weight::Act,
        fires: missed,
    },
    Rule {
        id: "over-budget",
        when: "every machine of the scenario costs more a month than the budget",
        weight: Weight::Act,
        fires: over_budget,
    },
    Rule {
        id: "buy",
        when: "an owned machine is paid by the rent it saves before it is written off",
        weight: Weight::Consider,
        fires: buy,
    },
    Rule {
        id: "full",
        when: "the highest load adds less than 5 % of throughput to the one before",
        weight: Weight::Consider,
        fires: full,
    },
    Rule {
        id: "measure-higher",
        when: "the highest load still adds more than 10 % of throughput to the one before",
        weight: Weight::Consider,
        fires: not_full,
    },
    Rule {
        id: "smooth-stalls",
        when: "at the sweet spot ITL p99 is more than five times ITL p50",
        weight: Weight::Consider,
        fires: stalls,
    },
    Rule {
        id: "cached-prompts",
        when: "more than 20 % of prompt tokens came from the prefix cache",
        weight: Weight::Consider,
        fires: cached,
    },
    Rule { id: "repeat", when: "a side has fewer than three runs", weight: Weight::Consider, fires: few_runs },
];

/// What follows from the data.
pub fn findings(analysis: &Analysis) -> Vec<Finding> {
    let fired = RULES.iter().filter_map(|rule| {
        let (advice, evidence) = (rule.fires)(analysis)?;
        Some(Finding { rule: rule.id, when: rule.when, weight: rule.weight, advice, evidence })
    });
    fired.collect()
}

fn sides(analysis: &Analysis) -> [&Assessed; 2] {
    [&analysis.before, &analysis.after]
}

fn all_levels(analysis: &Analysis) -> impl Iterator<Item = (&Assessed, &Level)> {
    sides(analysis).into_iter().flat_map(|side| {
        side.side.runs.iter().flat_map(move |measured| measured.run.levels.iter().map(move |level| (side, level)))
    })
}

/// `NAME (B1) at 8 clients`, as evidence.
fn place(side: &Assessed, level: &Level) -> Sentence {
    say![quoted(format!("{} ({}), {}", side.side.name, level.document_id(), level.load))]
}

fn client_limited(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let mut evidence = Sentence::default();
    for (side, level) in all_levels(analysis) {
        for reason in level.client_limits() {
            evidence.extend(place(side, level));
            evidence.extend(say![": ", quoted(reason), ". "]);
        }
    }
    let advice = say![
        "Repeat the marked levels with the client on a machine of its own, or with more client threads: their numbers are a lower bound of what the server can do."
    ];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn interrupted(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let mut evidence = Sentence::default();
    for (side, level) in all_levels(analysis).filter(|(_, level)| level.marks.interrupted || !level.has_summary()) {
        evidence.extend(place(side, level));
        let what = if level.marks.interrupted { " was interrupted. " } else { " measured no request. " };
        evidence.extend(say![what]);
    }
    for side in sides(analysis) {
        for measured in side.side.runs.iter().filter(|measured| !measured.run.is_complete()) {
            let document = &measured.run.document;
            evidence.extend(say![quoted(format!("{} ({})", side.side.name, document.id)), " did not run to its end. "]);
        }
    }
    let advice = say!["Run the interrupted levels again before deciding anything that rests on them."];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn failures(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let mut evidence = Sentence::default();
    for (side, level) in all_levels(analysis) {
        let Some(share) = level.failed_share().filter(|share| share.value > FAILED_SHARE_MAX) else { continue };
        evidence.extend(place(side, level));
        evidence.extend(say![": ", &share, " of requests"]);
        if let Some((class, _, example)) = level.failures().into_iter().next() {
            evidence.extend(say![" (", quoted(class), ": ", quoted(example), ")"]);
        }
        evidence.extend(say![". "]);
    }
    let advice = say![
        "Find out why requests fail before comparing speed: a server that drops work is not fast, and latencies are of the survivors."
    ];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn other_work(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (before, after) = (&analysis.before.side, &analysis.after.side);
    let mut evidence = same_work::asked(before, after).unwrap_or_default();
    for changes in &analysis.changes {
        evidence.extend(same_work::at(before, after, &changes.load).unwrap_or_default());
    }
    let advice = say!["Measure both sides with the same work; as it is, their numbers do not compare."];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn quality_unknown(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    if analysis.quality.iter().any(|row| row.comparable) {
        return None;
    }
    let advice = say![
        "Measure quality on both sides with the same material before moving: without it, nobody knows what the speed was paid with."
    ];
    let evidence = if analysis.quality.is_empty() {
        say!["No result of an evaluation was given."]
    } else {
        say!["The evaluations that were given are of one side, or of different material."]
    };
    Some((advice, evidence))
}

fn quality_lost(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let row = analysis.quality.iter().find(|row| row.name == "Perplexity" && row.comparable)?;
    let change = row.change.as_ref()?;
    let limit = analysis.scenario.number(&format!("/requirements/{PERPLEXITY_INCREASE}"), Unit::Share);
    let most = limit.as_ref().map_or(PERPLEXITY_INCREASE_MAX, |limit| limit.value);
    if change.value <= most {
        return None;
    }
    let mut evidence = say!["Perplexity ", row.before.as_ref()?, " before, ", row.after.as_ref()?, " after: ", change];
    match &limit {
        Some(limit) => evidence.extend(say![", and the scenario allows ", limit, "."]),
        None => evidence.extend(say!["."]),
    }
    Some((say!["Do not move before the loss of quality is understood and accepted."], evidence))
}

/// Throughput's verdict and evidence at the load of the second side's sweet spot.
fn throughput(analysis: &Analysis) -> Option<(Verdict, Sentence)> {
    let changes = analysis.changes_at_spot()?;
    let change = changes.changes.iter().find(|change| change.id == metric::OUTPUT.id)?;
    let (before, after, ratio) = (change.before.as_ref()?, change.after.as_ref()?, change.ratio.as_ref()?);
    let mut evidence = say![
        "Output throughput at ",
        quoted(changes.load.to_string()),
        ": ",
        before,
        " before, ",
        after,
        " after, ",
        ratio
    ];
    evidence.extend(say![" (", change.verdict.words(), ")."]);
    Some((change.verdict, evidence))
}

fn adopt(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (verdict, mut evidence) = throughput(analysis)?;
    let changes = analysis.changes_at_spot()?;
    let latencies =
        || changes.changes.iter().filter(|change| [metric::TTFT.0.id, metric::ITL.0.id].contains(&change.id));
    if verdict != Verdict::Better || latencies().any(|change| change.verdict == Verdict::Worse) {
        return None;
    }
    // Advice to move does not stand beside reasons not to.
    if [other_work, quality_lost, missed].iter().any(|reason| reason(analysis).is_some()) {
        return None;
    }
    for change in latencies() {
        let (Some(before), Some(after)) = (&change.before, &change.after) else { continue };
        evidence.extend(say![
            " ",
            change.name,
            ": ",
            before,
            " before, ",
            after,
            " after (",
            change.verdict.words(),
            ")."
        ]);
    }
    Some((
        say!["Move from ", quoted(&*analysis.before.side.name), " to ", quoted(&*analysis.after.side.name), "."],
        evidence,
    ))
}

fn do_not_adopt(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (verdict, evidence) = throughput(analysis)?;
    let advice = say!["Stay with ", quoted(&*analysis.before.side.name), " for this work."];
    (verdict == Verdict::Worse).then_some((advice, evidence))
}

fn no_gain(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (verdict, evidence) = throughput(analysis)?;
    let advice = say!["Do not move for speed: the difference is inside the noise of these runs."];
    (verdict == Verdict::NoDifference).then_some((advice, evidence))
}

fn work_at(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let spot = analysis.after.spot.as_ref()?;
    let load = spot.load_figure.as_ref()?;
    let unit = if matches!(spot.load, Load::Closed(_)) { " requests at a time" } else { " per second" };
    let advice = say![
        "Let each instance of ",
        quoted(&*analysis.after.side.name),
        " take up to ",
        load,
        unit,
        ", and queue or add instances beyond."
    ];
    let at_spot = analysis.after.side.point(&spot.load)?;
    let mut evidence = say!["Sweet spot: ", &spot.throughput];
    if let Some(ttft) = analysis.after.side.metric(at_spot, metric::TTFT.1) {
        evidence.extend(say![", TTFT p95 ", &ttft]);
    }
    evidence.extend(say!["."]);
    Some((advice, evidence))
}

fn missed(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let spot = analysis.after.spot.as_ref()?;
    let mut evidence = Sentence::default();
    for check in spot.checks.iter().filter(|check| check.verdict != Met::Yes) {
        evidence.extend(say![check.name, ": ", check.direction, " ", &check.limit, " required, "]);
        match &check.found {
            Some(found) => evidence.extend(say![found, " measured. "]),
            None => evidence.extend(say!["not measured (too few requests for it, or not in the result). "]),
        }
    }
    let advice = say![
        "Not every requirement is shown to be met at any load: spread the work over more machines, shorten prompts, or renegotiate the limit."
    ];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn over_budget(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let budget = analysis.scenario.number("/budget/per_month", Unit::Money)?;
    let months =
        || analysis.after.costs.iter().filter_map(|cost| Some((&cost.hardware, &cost.demand.as_ref()?.per_month)));
    let (name, cheapest) = months().min_by(|a, b| a.1.value.total_cmp(&b.1.value))?;
    let advice = say![
        "The demand does not fit the budget on any machine of the scenario: find a cheaper machine, a smaller model, or more budget."
    ];
    let evidence = say!["Cheapest: ", quoted(&**name), " at ", cheapest, " a month; budget ", &budget, "."];
    (cheapest.value > budget.value).then_some((advice, evidence))
}

fn buy(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let hardware = &analysis.scenario.content.hardware;
    let found = analysis.own_or_rent.iter().find_map(|(owned, rented, months)| {
        let months = months.as_ref()?;
        let place = hardware.iter().position(|hardware| hardware.name == *owned)?;
        let years = analysis.scenario.number(&format!("/hardware/{place}/amortisation_years"), Unit::Plain)?;
        (months.value < years.value * 12.0).then_some((owned, rented, months, years))
    });
    let (owned, rented, months, years) = found?;
    let advice = say!["If the demand lasts, buy ", quoted(&**owned), " rather than rent ", quoted(&**rented), "."];
    Some((advice, say!["The rent it saves pays it in ", months, "; it is written off over ", &years, " years."]))
}

/// Throughput of the two highest loads of the second side that ran to their end.
fn last_step(analysis: &Analysis) -> Option<(Figure, Figure, Figure)> {
    let side = &analysis.after.side;
    let closed =
        side.points.iter().filter(|point| matches!(point.load, Load::Closed(_)) && !side.marks(point).interrupted);
    let measured: Vec<Figure> = closed.filter_map(|point| side.metric(point, metric::OUTPUT)).collect();
    let [.., previous, last] = measured.as_slice() else { return None };
    let gain = (previous.value > 0.0).then(|| {
        Figure::computed(
            last.value / previous.value - 1.0,
            Unit::Change,
            "highest / the one before − 1",
            &[last, previous],
        )
    })?;
    Some((previous.clone(), last.clone(), gain))
}

fn full(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (previous, last, gain) = last_step(analysis)?;
    let advice = say!["More clients than measured only wait: capacity comes from more instances."];
    (gain.value < SATURATED_GAIN_MAX)
        .then(|| (advice, say!["The two highest loads reach ", &previous, " and ", &last, ": ", &gain, "."]))
}

fn not_full(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let (previous, last, gain) = last_step(analysis)?;
    let advice =
        say!["Measure higher loads: the end of the capacity was not reached, so costs here are an upper bound."];
    (gain.value > UNSATURATED_GAIN_MIN)
        .then(|| (advice, say!["The two highest loads reach ", &previous, " and ", &last, ": ", &gain, "."]))
}

fn stalls(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let spot = analysis.after.spot.as_ref()?;
    let point = analysis.after.side.point(&spot.load)?;
    let [median, tail] = ["itl_p50_ms", "itl_p99_ms"].map(|id| analysis.after.side.metric(point, metric::by_id(id)?));
    let (median, tail) = (median?, tail?);
    let advice = say![
        "Readers see text stall while other prompts are computed: try a smaller token budget per step and measure again."
    ];
    (tail.value > STALL_RATIO * median.value).then(|| (advice, say!["ITL p50 ", &median, ", p99 ", &tail, "."]))
}

fn cached(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let mut evidence = Sentence::default();
    for (side, level) in all_levels(analysis) {
        let share =
            level.number("/summary/prompts/cached_share", Unit::Share).filter(|share| share.value > CACHED_SHARE_MIN);
        let Some(share) = share else { continue };
        evidence.extend(place(side, level));
        evidence.extend(say![": ", &share, ". "]);
    }
    let advice =
        say!["Check that the client's prompts share as much as these did: the prefix cache is part of these numbers."];
    (!evidence.0.is_empty()).then_some((advice, evidence))
}

fn few_runs(analysis: &Analysis) -> Option<(Sentence, Sentence)> {
    let few = sides(analysis).into_iter().any(|side| side.side.runs.len() < 3);
    let advice = say![
        "Repeat both sides in turn, at least three times: how much one run differs from the next is not known from one."
    ];
    let evidence = say!["Runs are listed in the appendix; intervals of a single run hold for that run."];
    few.then_some((advice, evidence))
}
