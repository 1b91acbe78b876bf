//! The data of the page's interactive charts: every metric over the load, distributions of every load, and the course of each
//! level over time.

use crate::{
    analysis::{Analysis, Assessed},
    events::LevelEvents,
    metric::METRICS,
    run::Load,
};
use powertrain_load::statistics::interpolated;
use serde_json::{Value, json};

/// Points of a curve of a distribution.
const CURVE_POINTS: usize = 200;
/// Most seconds of a level's course; longer ones are summed into so many parts.
const COURSE_POINTS_MAX: usize = 600;

/// All of it, as the page's script reads it.
pub fn data(analysis: &Analysis) -> Value {
    let sides = [&analysis.before, &analysis.after];
    json!({
        "sides": sides.map(|side| side.side.name.clone()),
        "metrics": metrics(sides),
        "distributions": [
            {"name": "TTFT", "loads": distributions(sides, |events| &events.ttft_ms)},
            {"name": "ITL (gaps between chunks)", "loads": distributions(sides, |events| &events.itl_ms)},
        ],
        "courses": sides.iter().flat_map(|side| courses(side)).collect::<Vec<_>>(),
    })
}

/// Each metric at each closed load of either side.
fn metrics(sides: [&Assessed; 2]) -> Vec<Value> {
    let closed = |side: &Assessed| -> Vec<f64> {
        let loads = side.side.points.iter().filter_map(|point| match point.load {
            Load::Closed(clients) => Some(clients),
            Load::Open { .. } | Load::Other(_) => None,
        });
        loads.collect()
    };
    let mut loads: Vec<f64> = sides.iter().flat_map(|side| closed(side)).collect();
    loads.sort_unstable_by(f64::total_cmp);
    loads.dedup();
    let all = METRICS.iter().filter_map(|metric| {
        let values = sides.map(|side| {
            let at = |&load: &f64| {
                side.side.metric(side.side.point(&Load::Closed(load))?, metric).map(|figure| figure.value)
            };
            loads.iter().map(at).collect::<Vec<Option<f64>>>()
        });
        let any = values.iter().flatten().any(Option::is_some);
        any.then(|| json!({"name": metric.name, "unit": metric.unit.suffix(), "loads": loads, "values": values}))
    });
    all.collect()
}

/// Quantiles of each load that a side has raw events of.
fn distributions(sides: [&Assessed; 2], values: fn(&LevelEvents) -> &Vec<f64>) -> Vec<Value> {
    let mut loads: Vec<&Load> = Vec::new();
    for point in sides.iter().flat_map(|side| &side.side.points) {
        if !loads.contains(&&point.load) {
            loads.push(&point.load);
        }
    }
    let all = loads.into_iter().filter_map(|load| {
        let curves = sides.map(|side| {
            let point = side.side.point(load)?;
            let mut sorted: Vec<f64> =
                side.side.events(point).iter().flat_map(|(_, events)| values(events)).copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let at = |step: usize| rounded(interpolated(&sorted, step as f64 / CURVE_POINTS as f64));
            (!sorted.is_empty()).then(|| (0..=CURVE_POINTS).map(at).collect::<Vec<f64>>())
        });
        curves.iter().any(Option::is_some).then(|| json!({"name": load.to_string(), "quantiles": curves}))
    });
    all.collect()
}

/// Tokens that arrived in each second of each level.
fn courses(side: &Assessed) -> Vec<Value> {
    let mut all = Vec::new();
    for measured in &side.side.runs {
        let Ok(events) = &measured.events else { continue };
        for level in &measured.run.levels {
            let Some(events) = events.levels.get(&level.index).filter(|events| events.tokens_per_second.len() > 2)
            else {
                continue;
            };
            let step_s = events.tokens_per_second.len().div_ceil(COURSE_POINTS_MAX);
            let tokens = events.tokens_per_second.chunks(step_s);
            let tokens: Vec<f64> = tokens.map(|part| rounded(part.iter().sum::<f64>() / part.len() as f64)).collect();
            let name = format!("{} ({}), {}", side.side.name, level.document_id(), level.load);
            all.push(json!({"name": name, "step_s": step_s, "tokens_per_s": tokens}));
        }
    }
    all
}

/// To the microsecond, or the thousandth of a token: more digits only make the page longer.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
