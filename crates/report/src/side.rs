//! One side of a comparison: its runs, and what several runs of one load come to.

use crate::{
    document::{Document, Kind},
    error::Error,
    events::{Events, LevelEvents},
    figure::{Figure, Marks, Unit},
    metric::{self, Metric},
    run::{Level, Load, Run},
};
use powertrain_load::{events::EventsError, statistics::student_95};
use std::path::Path;

/// `before` or `after`.
#[derive(Debug)]
pub struct Side {
    /// For people, from the scenario.
    pub name: String,
    /// Runs of the load generator.
    pub runs: Vec<Measured>,
    /// Measures of quality.
    pub evals: Vec<Document>,
    /// Memory of the server.
    pub memory: Vec<Document>,
    /// Loads in ascending order, with the levels that were measured under each.
    pub points: Vec<Point>,
}

/// A run with its raw events, or why there are none.
#[derive(Debug)]
pub struct Measured {
    /// The result.
    pub run: Run,
    /// The raw events, or why there are none.
    pub events: Result<Events, String>,
}

/// A load, and where it was measured.
#[derive(Debug)]
pub struct Point {
    /// The load.
    pub load: Load,
    /// Run and level, by their places.
    levels: Vec<(usize, usize)>,
}

impl Side {
    /// Sorts documents into runs and measures of quality, and reads the runs' raw events.
    ///
    /// # Errors
    /// When there is no run, or one run was given twice.
    pub fn of(side: &'static str, name: &str, documents: Vec<Document>) -> Result<Self, Error> {
        let (mut runs, mut evals, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for document in documents {
            match document.kind {
                Kind::Bench => runs.push(Measured::of(document)),
                Kind::Eval => evals.push(document),
                Kind::Memory => memory.push(document),
                Kind::Compare | Kind::Sweep | Kind::Scenario => {}
            }
        }
        if runs.is_empty() {
            return Err(Error::NoRun { side });
        }
        if let Some((path, other, began_at)) = same_run(&runs) {
            return Err(Error::SameRun { side, path, other, began_at });
        }
        let points = points(&runs);
        Ok(Self { name: name.to_owned(), runs, evals, memory, points })
    }

    /// Every document of this side, runs first.
    pub fn documents(&self) -> Vec<&Document> {
        let runs = self.runs.iter().map(|measured| measured.run.document.as_ref());
        runs.chain(&self.evals).chain(&self.memory).collect()
    }

    /// The point of that load.
    pub fn point(&self, load: &Load) -> Option<&Point> {
        self.points.iter().find(|point| point.load == *load)
    }

    /// The levels that count at a point: those that ran to their end, or all if none did.
    pub fn levels(&self, point: &Point) -> Vec<&Level> {
        let all = || point.levels.iter().map(|&(run, level)| &self.runs[run].run.levels[level]);
        let whole: Vec<&Level> = all().filter(|level| !level.marks.interrupted && level.has_summary()).collect();
        if whole.is_empty() { all().collect() } else { whole }
    }

    /// The raw events of the levels that count at a point.
    pub fn events(&self, point: &Point) -> Vec<(&Level, &LevelEvents)> {
        self.levels(point).into_iter().filter_map(|level| Some((level, self.level_events(level)?))).collect()
    }

    /// A metric at a point: the level's own, or the mean over runs with the interval between them.
    pub fn metric(&self, point: &Point, metric: &Metric) -> Option<Figure> {
        let own = |level: &Level| {
            let figure = level.metric(metric)?;
            let spread = || self.level_events(level)?.throughput_spread;
            match figure.interval {
                None if metric.id == metric::OUTPUT.id => {
                    let reach = spread().map(|spread| spread * figure.value);
                    let interval = reach.map(|reach| ((figure.value - reach).max(0.0), figure.value + reach));
                    Some(figure.within(interval))
                }
                _ => Some(figure),
            }
        };
        mean(self.levels(point).into_iter().map(own))
    }

    /// The number of a point's load, as the first of its results has it.
    pub fn load_figure(&self, point: &Point) -> Option<Figure> {
        let level = self.levels(point).into_iter().next()?;
        let unit = if matches!(level.load, Load::Open { .. }) { Unit::RequestsPerSecond } else { Unit::Count };
        // The load was offered as asked, whatever came of the level: no marks.
        Some(Figure { marks: Marks::default(), ..level.number(level.load.pointer()?, unit)? })
    }

    /// Any number of a level at a point, as the mean over runs.
    pub fn number(&self, point: &Point, of: impl Fn(&Level) -> Option<Figure>) -> Option<Figure> {
        mean(self.levels(point).into_iter().map(of))
    }

    /// A count at a point, summed over runs.
    pub fn count(&self, point: &Point, name: &str) -> Option<Figure> {
        let counts: Vec<Figure> =
            self.levels(point).into_iter().map(|level| level.count(name)).collect::<Option<_>>()?;
        let from: Vec<&Figure> = counts.iter().collect();
        match from.as_slice() {
            [] => None,
            [only] => Some((*only).clone()),
            several => Some(Figure::computed(
                several.iter().map(|figure| figure.value).sum(),
                Unit::Count,
                "sum over runs",
                several,
            )),
        }
    }

    /// Marks of any level at a point.
    pub fn marks(&self, point: &Point) -> Marks {
        self.levels(point).into_iter().fold(Marks::default(), |marks, level| marks.and(level.marks))
    }

    fn level_events(&self, level: &Level) -> Option<&LevelEvents> {
        let measured = self.runs.iter().find(|measured| measured.run.document.id == level.document_id())?;
        measured.events.as_ref().ok()?.levels.get(&level.index)
    }
}

impl Measured {
    fn of(document: Document) -> Self {
        let run = Run::of(document);
        let events = match run.events_path() {
            None => Err("the result names no file of raw events".to_owned()),
            // Named without their folder: a page says nothing of where its files lay.
            Some(path) => Events::open(&path).map_err(|error| match error {
                EventsError::Read { error, .. } => format!("{}: {error}", name_of(&path)),
                line @ EventsError::Line { .. } => line.to_string(),
            }),
        };
        Self { run, events }
    }
}

/// Two files of one run: of one moment, or the same bytes.
fn same_run(runs: &[Measured]) -> Option<(String, String, String)> {
    runs.iter().enumerate().find_map(|(place, later)| {
        let later = &later.run.document;
        let began = later.text("/began_at");
        let same = |earlier: &&Measured| {
            let earlier = &earlier.run.document;
            earlier.sha256 == later.sha256 || (began.is_some() && earlier.text("/began_at") == began)
        };
        let earlier = runs[..place].iter().find(same)?;
        Some((earlier.run.document.path.clone(), later.path.clone(), began.unwrap_or("a time not told").to_owned()))
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn points(runs: &[Measured]) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for (run, measured) in runs.iter().enumerate() {
        for (index, level) in measured.run.levels.iter().enumerate() {
            match points.iter_mut().find(|point| point.load == level.load) {
                Some(point) => point.levels.push((run, index)),
                None => points.push(Point { load: level.load.clone(), levels: vec![(run, index)] }),
            }
        }
    }
    points.sort_by(|a, b| a.load.order(&b.load));
    points
}

/// The mean of one number over runs; its interval is Student's t between runs, which holds what a single run cannot know, cut where the number
/// itself ends: no time is below zero.
/// None when a run lacks the number.
fn mean(figures: impl Iterator<Item = Option<Figure>>) -> Option<Figure> {
    let figures: Vec<Figure> = figures.collect::<Option<_>>()?;
    let [first, rest @ ..] = figures.as_slice() else { return None };
    if rest.is_empty() {
        return Some(first.clone());
    }
    let count = figures.len() as f64;
    let mean = figures.iter().map(|figure| figure.value).sum::<f64>() / count;
    let variance = figures.iter().map(|figure| (figure.value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let reach = student_95(figures.len() as u32 - 1) * (variance / count).sqrt();
    let from: Vec<&Figure> = figures.iter().collect();
    // No further than the number itself can go.
    let (least, most) = match first.unit {
        Unit::Change => (f64::NEG_INFINITY, f64::INFINITY),
        Unit::Share => (0.0, 1.0),
        _ => (0.0, f64::INFINITY),
    };
    let interval = ((mean - reach).max(least.min(mean)), (mean + reach).min(most.max(mean)));
    Some(Figure::computed(mean, first.unit, "mean over runs", &from).within(Some(interval)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_load_become_a_mean_with_the_spread_between_them() {
        let figure = |value| Some(Figure::read(value, Unit::Milliseconds, "B1", "/a"));
        let three = mean([figure(10.0), figure(12.0), figure(14.0)].into_iter()).unwrap();
        assert_eq!(three.value, 12.0);
        // t(2) = 4.303, standard deviation 2, root of 3.
        let (low, high) = three.interval.unwrap();
        assert!((low - 7.032).abs() < 0.001 && (high - 16.968).abs() < 0.001, "{low} {high}");
        let wide = mean([figure(1.0), figure(20.0), figure(90.0)].into_iter()).unwrap().interval.unwrap();
        assert!(wide.0 == 0.0 && wide.1 > 100.0, "no time is below zero: {wide:?}");
        let share = |value| Some(Figure::read(value, Unit::Share, "B1", "/a"));
        let whole = mean([share(0.7), share(1.0)].into_iter()).unwrap().interval.unwrap();
        assert_eq!(whole, (0.0, 1.0), "no part is more than the whole");
        assert_eq!(mean([figure(10.0), None].into_iter()), None);
        assert_eq!(mean([figure(10.0)].into_iter()).unwrap().origin.rule, None);
    }
}
