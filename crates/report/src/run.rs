//! A result of `powertrain bench`, read leniently: what is not there is absent, what is unknown is left alone.

use crate::{
    document::Document,
    figure::{Figure, Marks, Unit},
    metric::Metric,
};
use powertrain_load::{result::LoadResult, table::load_name};
use serde_json::Value;
use std::{
    cmp::Ordering,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where a result says what was asked.
pub const WORK: &str = "/work";

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The file.
    pub document: Arc<Document>,
    /// Its levels, in order.
    pub levels: Vec<Level>,
}

/// A level of a run.
#[derive(Clone, Debug)]
pub struct Level {
    document: Arc<Document>,
    /// Its place in the run.
    pub index: usize,
    /// How load was offered.
    pub load: Load,
    /// What its numbers are marked with.
    pub marks: Marks,
}

/// How load was offered. Equal are those that `powertrain compare` takes for the same: by all that defines them.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// So many clients that wait for their answers.
    Closed(f64),
    /// Requests due by a clock.
    Open {
        /// So many per second.
        rate: f64,
        /// How they arrive: `poisson`, `gamma of shape 2`, …
        arrivals: String,
    },
    /// In the words of `bench` and `compare`: stages, a trace.
    Other(String),
}

impl Run {
    /// Reads a run from its document.
    pub fn of(document: Document) -> Self {
        let document = Arc::new(document);
        let mut levels: Vec<Level> = (0..document.length("/levels")).map(|index| Level::of(&document, index)).collect();
        // What a run offers again is no run of its own: it stands apart, under the name that `compare` gives it.
        let bare: Vec<Load> = levels.iter().map(|level| level.load.clone()).collect();
        for (index, level) in levels.iter_mut().enumerate() {
            let before = bare[..index].iter().filter(|load| **load == bare[index]).count();
            if before > 0 {
                level.load = Load::Other(format!("{} ({})", bare[index].in_full(), before + 1));
            }
        }
        Self { document, levels }
    }

    /// Every level ran to its end.
    pub fn is_complete(&self) -> bool {
        self.document.is_set("/complete")
    }

    /// The file of raw events, beside the result.
    pub fn events_path(&self) -> Option<PathBuf> {
        let name = self.document.text("/events_file")?;
        // A name, not a path: a result does not choose what is read elsewhere.
        let name = Path::new(name).file_name()?;
        Some(Path::new(&self.document.path).with_file_name(name))
    }

    /// What ran, as well as the result tells: the server's own name and version.
    pub fn server(&self) -> String {
        let text = |pointer: &str| self.document.text(pointer);
        let owner = text("/server/models/data/0/owned_by");
        let version = text("/server/engine/version")
            .or_else(|| text("/server/version/version"))
            .or_else(|| text("/server/version"));
        [owner, version].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

impl Level {
    fn of(document: &Arc<Document>, index: usize) -> Self {
        let at = format!("/levels/{index}");
        let load = document.json.pointer(&format!("{at}/load")).map_or(Load::Other("unknown".to_owned()), Load::of);
        let marks = Marks {
            client_limited: document.length(&format!("{at}/client/client_limited")) > 0,
            interrupted: document.is_set(&format!("{at}/interrupted")),
            estimated: document.is_set(&format!("{at}/summary/throughput/estimated")),
        };
        Self { document: document.clone(), index, load, marks }
    }

    /// A number below this level, marked as the level is.
    pub fn number(&self, pointer: &str, unit: Unit) -> Option<Figure> {
        let mut marks = self.marks;
        // Only throughput and times per token depend on how tokens were counted.
        marks.estimated &= unit == Unit::TokensPerSecond || pointer.contains("tpot");
        Some(self.document.number(&self.pointer(pointer), unit)?.marked(marks))
    }

    /// A metric with the interval that the result carries for it.
    pub fn metric(&self, metric: &Metric) -> Option<Figure> {
        let figure = self.number(metric.pointer, metric.unit)?;
        let interval = metric.interval.and_then(|(low, high)| {
            let end = |pointer| Some(self.number(pointer, metric.unit)?.value);
            Some((end(low)?, end(high)?))
        });
        Some(figure.within(interval))
    }

    /// Requests by how they ended: `completed`, `failed`, …
    pub fn count(&self, name: &str) -> Option<Figure> {
        self.number(&format!("/summary/requests/{name}"), Unit::Count)
    }

    /// How many values a distribution has.
    pub fn values(&self, distribution: &str) -> Option<Figure> {
        self.number(&format!("/summary/latency/{distribution}/count"), Unit::Count)
    }

    /// Prompt tokens per second: all tokens less those of the output.
    pub fn input_tokens_per_s(&self) -> Option<Figure> {
        let total = self.number("/summary/throughput/total_tokens_per_s", Unit::TokensPerSecond)?;
        let output = self.number("/summary/throughput/output_tokens_per_s", Unit::TokensPerSecond)?;
        let value = (total.value - output.value).max(0.0);
        Some(Figure::computed(value, Unit::TokensPerSecond, "total − output tokens/s", &[&total, &output]))
    }

    /// Requests that failed or were cut off.
    pub fn lost(&self) -> Option<Figure> {
        let (failed, cut_off) = (self.count("failed")?, self.count("cut_off")?);
        Some(Figure::computed(failed.value + cut_off.value, Unit::Count, "failed + cut off", &[&failed, &cut_off]))
    }

    /// Part of the judged requests (not those that the user interrupted) that did not complete.
    pub fn failed_share(&self) -> Option<Figure> {
        let [completed, failed, cut_off] = ["completed", "failed", "cut_off"].map(|name| self.count(name));
        let (completed, failed, cut_off) = (completed?, failed?, cut_off?);
        let lost = failed.value + cut_off.value;
        let total = lost + completed.value;
        let rule = "(failed + cut off) / (completed + failed + cut off)";
        (total > 0.0).then(|| Figure::computed(lost / total, Unit::Share, rule, &[&failed, &cut_off, &completed]))
    }

    /// Most memory used on all GPUs together.
    pub fn gpu_memory(&self) -> Option<Figure> {
        let gpus = self.document.length(&self.pointer("/gpus"));
        let used = (0..gpus).map(|gpu| self.number(&format!("/gpus/{gpu}/memory_used_max_mib"), Unit::Mebibytes));
        let used: Vec<Figure> = used.collect::<Option<_>>()?;
        match used.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            several => {
                let sum = several.iter().map(|figure| figure.value).sum();
                Some(Figure::computed(sum, Unit::Mebibytes, "sum over GPUs", &several.iter().collect::<Vec<_>>()))
            }
        }
    }

    /// Why the client may have been the limit.
    pub fn client_limits(&self) -> Vec<String> {
        let at = self.pointer("/client/client_limited");
        let reasons = self.document.json.pointer(&at).and_then(Value::as_array);
        reasons.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Classes of failure with their counts and an example of each.
    pub fn failures(&self) -> Vec<(String, Option<Figure>, String)> {
        let at = self.pointer("/summary/failures");
        let Some(classes) = self.document.json.pointer(&at).and_then(Value::as_object) else { return Vec::new() };
        let class = |(name, failure): (&String, &Value)| {
            let count = self.number(&format!("/summary/failures/{}/count", escaped(name)), Unit::Count);
            let example = failure.get("example").and_then(Value::as_str).unwrap_or_default();
            (name.clone(), count, example.to_owned())
        };
        classes.iter().map(class).collect()
    }

    /// Its load as the result has it, with what does not make it another load.
    pub(crate) fn offered(&self) -> Value {
        self.value("/load").cloned().unwrap_or_default()
    }

    /// What stands below this level.
    pub(crate) fn value(&self, below: &str) -> Option<&Value> {
        self.document.json.pointer(&self.pointer(below))
    }

    /// What stands in the run that this level is of.
    pub(crate) fn of_run(&self, pointer: &str) -> Option<&Value> {
        self.document.json.pointer(pointer)
    }

    /// A number of the run that this level is of.
    pub(crate) fn run_number(&self, pointer: &str, unit: Unit) -> Option<Figure> {
        self.document.number(pointer, unit)
    }

    /// It measured at least one request.
    pub fn has_summary(&self) -> bool {
        self.document.json.pointer(&self.pointer("/summary")).is_some_and(Value::is_object)
    }

    /// The id of its file.
    pub fn document_id(&self) -> &str {
        &self.document.id
    }

    fn pointer(&self, below: &str) -> String {
        format!("/levels/{}{below}", self.index)
    }
}

/// A key as part of a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

impl Load {
    fn of(json: &Value) -> Self {
        let number = |key: &str| json.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        match json.get("kind").and_then(Value::as_str) {
            Some("closed") if number("concurrency").is_some() => {
                Self::Closed(number("concurrency").unwrap_or_default())
            }
            Some("open") if number("rate").is_some() => {
                let shape = number("burstiness").map(|shape| format!(" of shape {shape}")).unwrap_or_default();
                let arrivals = json.get("arrivals").and_then(Value::as_str).unwrap_or("arrivals not told");
                Self::Open { rate: number("rate").unwrap_or_default(), arrivals: format!("{arrivals}{shape}") }
            }
            Some(_) => match serde_json::from_value::<LoadResult>(json.clone()) {
                // What is not understood is the same only as its like: all of its fields are its name.
                Err(_) | Ok(LoadResult::Unknown) => Self::Other(json.to_string()),
                Ok(load) => Self::Other(load_name(&load)),
            },
            None => Self::Other("unknown".to_owned()),
        }
    }

    /// The pointer below the level at which the number stands that makes levels comparable.
    pub fn pointer(&self) -> Option<&'static str> {
        match self {
            Self::Closed(_) => Some("/load/concurrency"),
            Self::Open { .. } => Some("/load/rate"),
            Self::Other(_) => None,
        }
    }

    /// The load in the words of `bench` and `compare`.
    pub(crate) fn in_full(&self) -> String {
        match self {
            Self::Closed(1.0) => "closed loop, 1 client".to_owned(),
            Self::Closed(clients) => format!("closed loop, {clients} clients"),
            Self::Open { rate, arrivals } => format!("open loop, {rate} requests/s, {arrivals}"),
            Self::Other(name) => name.clone(),
        }
    }

    /// Closed loops by clients, then open ones by rate, then the rest by name.
    pub fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Closed(a), Self::Closed(b)) => a.total_cmp(b),
            (Self::Open { rate: a, arrivals: how_a }, Self::Open { rate: b, arrivals: how_b }) => {
                a.total_cmp(b).then_with(|| how_a.cmp(how_b))
            }
            (Self::Other(a), Self::Other(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Closed(_) => 0,
            Self::Open { .. } => 1,
            Self::Other(_) => 2,
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(1.0) => f.write_str("1 client"),
            Self::Closed(clients) => write!(f, "{clients} clients"),
            Self::Open { rate, arrivals } => write!(f, "{rate} requests/s, {arrivals}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}
