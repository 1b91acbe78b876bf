//! Which charts a case study has, and what each says below it.

use crate::{
    analysis::{Analysis, Assessed},
    chart::{Axis, Bar, Bars, Dot, HorizontalRule, Line, Lines, Scale, Side as Colour},
    events::LevelEvents,
    figure::{Figure, Unit},
    metric::{self, Metric},
    run::Load,
    sentence::{Sentence, quoted, say},
    side::Point,
    telemetry,
};
use powertrain_load::statistics::interpolated;
use serde::Serialize;

/// A chart with its words.
#[derive(Clone, Debug, Serialize)]
pub struct Drawing {
    /// Its anchor, and its file's name.
    pub id: &'static str,
    /// The section it stands in.
    pub section: &'static str,
    /// Above it.
    pub title: &'static str,
    /// Below it.
    pub caption: Sentence,
    /// The drawing.
    pub svg: String,
}

/// Points of a curve of a distribution.
const CURVE_POINTS: usize = 240;
/// Values that span more than this many times their smallest get a logarithmic scale.
const LOGARITHMIC_FROM: f64 = 20.0;

/// All charts for which there are data.
pub fn drawings(analysis: &Analysis) -> Vec<Drawing> {
    let all = [
        throughput(analysis),
        ttft(analysis),
        itl(analysis),
        trade(analysis),
        distribution(analysis, "ttft-distribution", "Time to first token at the sweet spot's load", |events| {
            &events.ttft_ms
        }),
        distribution(analysis, "itl-distribution", "Gaps between chunks at the sweet spot's load", |events| {
            &events.itl_ms
        }),
        memory(analysis),
        energy(analysis),
        cost(analysis),
    ];
    all.into_iter().flatten().collect()
}

fn sides(analysis: &Analysis) -> [(&Assessed, Colour); 2] {
    [(&analysis.before, Colour::Before), (&analysis.after, Colour::After)]
}

/// The loads that can stand on one axis: the closed ones, or the open ones where no two are closed.
fn loads(assessed: &Assessed, closed: bool) -> impl Iterator<Item = (&Point, f64)> {
    assessed.side.points.iter().filter_map(move |point| match point.load {
        Load::Closed(clients) if closed => Some((point, clients)),
        Load::Open { rate, .. } if !closed => Some((point, rate)),
        _ => None,
    })
}

/// The axis of loads; none where fewer than two were measured.
fn load_axis(analysis: &Analysis) -> Option<(Axis, bool)> {
    let of = |closed: bool| {
        let mut values: Vec<f64> =
            sides(analysis).iter().flat_map(|(side, _)| loads(side, closed)).map(|(_, load)| load).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        values
    };
    let closed = of(true).len() >= 2;
    let values = of(closed);
    let (first, last) = (*values.first()?, *values.last()?);
    if values.len() < 2 {
        return None;
    }
    let scale = if last / first >= 8.0 { Scale::Logarithmic } else { Scale::Linear };
    let label = if closed { "clients" } else { "requests offered per second" };
    Some((Axis { label, scale, ticks: Some(values), unit: Unit::Plain }, closed))
}

/// A metric over the load, both sides.
fn over_load(analysis: &Analysis, metrics: &[&'static Metric], closed: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for (assessed, colour) in sides(analysis) {
        for (place, metric) in metrics.iter().enumerate() {
            let dots: Vec<Dot> = loads(assessed, closed)
                .filter_map(|(point, load)| {
                    let figure = assessed.side.metric(point, metric)?;
                    let title = titled(&assessed.side.name, &point.load, metric.name, &figure);
                    let mut dot = Dot::of(load, &figure, title);
                    dot.ringed = place == 0 && assessed.spot.as_ref().is_some_and(|spot| spot.load == point.load);
                    Some(dot)
                })
                .collect();
            let name = match metrics {
                [_] => assessed.side.name.clone(),
                _ => format!("{} {}", assessed.side.name, metric.name.rsplit(' ').next().unwrap_or_default()),
            };
            if !dots.is_empty() {
                lines.push(Line { name, side: colour, dashed: place > 0, smooth: false, dots });
            }
        }
    }
    lines
}

/// What a point says when it is pointed at.
fn titled(side: &str, load: &Load, name: &str, figure: &Figure) -> String {
    let interval = figure.interval_text().map(|interval| format!(" (95 %: {interval})")).unwrap_or_default();
    format!("{side}, {load}: {name} {}{}{interval}", figure.with_unit(), figure.marks.sign())
}

/// A limit of the scenario as a line across.
fn limit(analysis: &Analysis, id: &str) -> Vec<HorizontalRule> {
    let Some(metric) = metric::by_id(id) else { return Vec::new() };
    let limit = analysis.scenario.number(&format!("/requirements/{id}"), metric.unit);
    let of = |limit: Figure| HorizontalRule {
        y: limit.value,
        label: format!("required: {} {}", metric.name, limit.with_unit()),
    };
    limit.map(of).into_iter().collect()
}

/// Linear, unless the values span too much for it.
fn scale_of(lines: &[Line]) -> Scale {
    let values = lines.iter().flat_map(|line| &line.dots).map(|dot| dot.y).filter(|&y| y > 0.0);
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if high > low * LOGARITHMIC_FROM { Scale::Logarithmic } else { Scale::Linear }
}

fn throughput(analysis: &Analysis) -> Option<Drawing> {
    let (x, closed) = load_axis(analysis)?;
    let lines = over_load(analysis, &[metric::OUTPUT], closed);
    let y = Axis { label: "output tokens per second", scale: Scale::Linear, ticks: None, unit: Unit::Plain };
    let rules = limit(analysis, metric::OUTPUT.id);
    let chart = Lines { title: "Output throughput over load".to_owned(), x, y, lines, rules };
    let mut caption = say!["Bars are 95 % intervals."];
    for (assessed, _) in sides(analysis) {
        if let Some(spot) = &assessed.spot {
            caption.extend(say![
                " Sweet spot of ",
                quoted(&*assessed.side.name),
                ": ",
                quoted(spot.load.to_string()),
                ", ",
                &spot.throughput
            ]);
            caption.extend(if spot.meets_requirements {
                say!["."]
            } else {
                say![" (the knee: requirements are not shown to be met)."]
            });
        }
    }
    Some(Drawing { id: "throughput", section: "speed", title: "Output throughput", caption, svg: chart.svg() })
}

fn latency(
    analysis: &Analysis,
    id: &'static str,
    title: &'static str,
    label: &'static str,
    (median, tail): (&'static Metric, &'static Metric),
) -> Option<Drawing> {
    let (x, closed) = load_axis(analysis)?;
    let lines = over_load(analysis, &[median, tail], closed);
    if lines.is_empty() {
        return None;
    }
    let scale = scale_of(&lines);
    let y = Axis { label, scale, ticks: None, unit: Unit::Plain };
    let rules = [limit(analysis, median.id), limit(analysis, tail.id)].concat();
    let chart = Lines { title: title.to_owned(), x, y, lines, rules };
    let mut caption =
        say!["Solid: p50; dashed: p95, where the number of requests supports it. Bars are 95 % intervals."];
    if scale == Scale::Logarithmic {
        caption.extend(say![" The scale is logarithmic."]);
    }
    Some(Drawing { id, section: "speed", title, caption, svg: chart.svg() })
}

fn ttft(analysis: &Analysis) -> Option<Drawing> {
    latency(analysis, "ttft", "Time to first token", "milliseconds", metric::TTFT)
}

fn itl(analysis: &Analysis) -> Option<Drawing> {
    latency(analysis, "itl", "Gaps between chunks of an answer", "milliseconds", metric::ITL)
}

/// What each user gets against what all get together.
fn trade(analysis: &Analysis) -> Option<Drawing> {
    let (_, closed) = load_axis(analysis)?;
    let mut lines = Vec::new();
    for (assessed, colour) in sides(analysis) {
        let mut dots: Vec<Dot> = loads(assessed, closed)
            .filter_map(|(point, load)| {
                let side = &assessed.side;
                let total = side.metric(point, metric::OUTPUT)?;
                let each =
                    side.number(point, |level| level.number("/summary/latency/tpot_ms/mean", Unit::Milliseconds))?;
                let title = format!(
                    "{}, {}: {}, {} for each",
                    side.name,
                    point.load,
                    total.with_unit(),
                    Figure::computed(1e3 / each.value, Unit::TokensPerSecond, "1000 / TPOT", &[&each]).with_unit()
                );
                let mut dot = Dot::of(1e3 / each.value, &Figure { interval: None, ..total }, title);
                dot.label = Some(load.to_string());
                dot.ringed = assessed.spot.as_ref().is_some_and(|spot| spot.load == point.load);
                Some(dot)
            })
            .filter(|dot| dot.x.is_finite())
            .collect();
        dots.sort_by(|a, b| a.x.total_cmp(&b.x));
        if !dots.is_empty() {
            lines.push(Line { name: assessed.side.name.clone(), side: colour, dashed: false, smooth: false, dots });
        }
    }
    if lines.is_empty() {
        return None;
    }
    let x = Axis {
        label: "output tokens per second of one user (1000 / mean TPOT)",
        scale: Scale::Linear,
        ticks: None,
        unit: Unit::Plain,
    };
    let y =
        Axis { label: "output tokens per second of all users", scale: Scale::Linear, ticks: None, unit: Unit::Plain };
    let chart = Lines { title: "Speed for one against speed for all".to_owned(), x, y, lines, rules: Vec::new() };
    let caption = say!["Beside each point stands its load; up and to the right is better."];
    Some(Drawing { id: "trade", section: "speed", title: "Speed for one, speed for all", caption, svg: chart.svg() })
}

/// The load at which distributions are shown: the second side's sweet spot, where both sides have raw events of it.
fn shown_load(analysis: &Analysis) -> Option<&Load> {
    let load = &analysis.after.spot.as_ref()?.load;
    let all_have = sides(analysis)
        .iter()
        .all(|(side, _)| side.side.point(load).is_some_and(|point| !side.side.events(point).is_empty()));
    all_have.then_some(load)
}

fn distribution(
    analysis: &Analysis,
    id: &'static str,
    title: &'static str,
    values: fn(&LevelEvents) -> &Vec<f64>,
) -> Option<Drawing> {
    let load = shown_load(analysis)?;
    let mut lines = Vec::new();
    let mut caption = say!["Share of values below; at ", quoted(load.to_string()), "."];
    for (assessed, colour) in sides(analysis) {
        let (sorted, leaves, marks) = pooled(assessed, load, id, values)?;
        let count = Figure {
            origin: crate::figure::Origin { rule: Some("values in the raw events".to_owned()), leaves },
            ..Figure::read(sorted.len() as f64, Unit::Count, "", "")
        };
        caption.extend(say![" ", quoted(&*assessed.side.name), ": ", &count.clone().marked(marks), " values."]);
        // A gap of zero (chunks of one read) has no place on a logarithmic scale; it stands at its left edge.
        let dots = (0..=CURVE_POINTS).map(|step| {
            let share = step as f64 / CURVE_POINTS as f64;
            let figure = Figure { value: share, unit: Unit::Share, ..count.clone() };
            Dot::of(interpolated(&sorted, share).max(0.01), &figure, String::new())
        });
        lines.push(Line {
            name: assessed.side.name.clone(),
            side: colour,
            dashed: false,
            smooth: true,
            dots: dots.collect(),
        });
    }
    let x = Axis { label: "milliseconds, logarithmic", scale: Scale::Logarithmic, ticks: None, unit: Unit::Plain };
    let y = Axis {
        label: "share of values below",
        scale: Scale::Linear,
        ticks: Some(vec![0.0, 0.25, 0.5, 0.75, 1.0]),
        unit: Unit::Share,
    };
    let chart = Lines { title: title.to_owned(), x, y, lines, rules: Vec::new() };
    Some(Drawing { id, section: "distributions", title, caption, svg: chart.svg() })
}

/// The values of all runs of a load, ascending, with where they lie and the marks of their levels.
fn pooled(
    assessed: &Assessed,
    load: &Load,
    id: &str,
    values: fn(&LevelEvents) -> &Vec<f64>,
) -> Option<(Vec<f64>, std::collections::BTreeSet<String>, crate::figure::Marks)> {
    let point = assessed.side.point(load)?;
    let events = assessed.side.events(point);
    let mut sorted: Vec<f64> = events.iter().flat_map(|(_, events)| values(events)).copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let name = id.strip_suffix("-distribution").unwrap_or(id);
    let leaves =
        events.iter().map(|(level, _)| format!("{}.events#/{}/{name}_ms", level.document_id(), level.index)).collect();
    (!sorted.is_empty()).then(|| (sorted, leaves, assessed.side.marks(point)))
}

fn memory(analysis: &Analysis) -> Option<Drawing> {
    let bars: Vec<Bar> = sides(analysis)
        .into_iter()
        .filter_map(|(assessed, side)| {
            Some(Bar { group: String::new(), name: assessed.side.name.clone(), side, figure: assessed.memory.clone()? })
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    let chart = Bars { title: "Most memory of the server".to_owned(), label: "MiB".to_owned(), bars };
    let caption = say!["Most memory that the server was seen to take; lower is better."];
    Some(Drawing { id: "memory", section: "memory", title: "Memory", caption, svg: chart.svg() })
}

/// What a token costs in energy, where both sides' GPUs were looked at or one's.
fn energy(analysis: &Analysis) -> Option<Drawing> {
    let (x, closed) = load_axis(analysis)?;
    let mut lines = Vec::new();
    for (assessed, colour) in sides(analysis) {
        let dot = |(point, load): (&Point, f64)| {
            let figure = telemetry::energy_per_token(assessed, point)?;
            let title = titled(&assessed.side.name, &point.load, "energy of an output token", &figure);
            Some(Dot::of(load, &figure, title))
        };
        let dots: Vec<Dot> = loads(assessed, closed).filter_map(dot).collect();
        if !dots.is_empty() {
            lines.push(Line { name: assessed.side.name.clone(), side: colour, dashed: false, smooth: false, dots });
        }
    }
    if lines.is_empty() {
        return None;
    }
    let y = Axis { label: "joules per output token", scale: scale_of(&lines), ticks: None, unit: Unit::Plain };
    let title = "Energy of an output token";
    let chart = Lines { title: title.to_owned(), x, y, lines, rules: Vec::new() };
    let caption = say!["Mean power of the GPUs over output tokens per second, prompts included; lower is better."];
    Some(Drawing { id: "energy", section: "gpus", title, caption, svg: chart.svg() })
}

fn cost(analysis: &Analysis) -> Option<Drawing> {
    // Of one kind: output tokens where every side's time is split, else all tokens.
    let split = sides(analysis).iter().all(|(assessed, _)| assessed.costs.is_empty() || assessed.split.is_ok());
    let mut bars = Vec::new();
    for hardware in &analysis.scenario.content.hardware {
        for (assessed, side) in sides(analysis) {
            let cost = assessed.costs.iter().find(|cost| cost.hardware == hardware.name);
            let Some(cost) = cost else { continue };
            let figure = if split { &cost.output_per_million } else { &cost.per_million };
            let Some(figure) = figure.clone() else { continue };
            bars.push(Bar { group: hardware.name.clone(), name: assessed.side.name.clone(), side, figure });
        }
    }
    if bars.is_empty() {
        return None;
    }
    let (title, what) = if split {
        ("Cost of a million output tokens", "output tokens")
    } else {
        ("Cost of a million tokens, prompts and answers together", "tokens in all")
    };
    let label = format!("{} for a million {what}, machine always busy", analysis.scenario.content.client.currency);
    let chart = Bars { title: title.to_owned(), label, bars };
    let caption = say!["At each side's sweet spot; lower is better. What idle hours add is in the table."];
    Some(Drawing { id: "cost", section: "cost", title, caption, svg: chart.svg() })
}
