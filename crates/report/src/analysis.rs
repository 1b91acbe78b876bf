//! Everything that a case study says, computed from its inputs before a word or a line is drawn.

use crate::{
    change::{self, Changes},
    comparison,
    configurations::{self, Sweep},
    cost::{self, Cost, Split},
    document::{Document, Kind},
    error::Error,
    figure::{Figure, Unit},
    quality,
    rules::{self, Finding},
    scenario::Scenario,
    side::Side,
    sweet_spot::{self, SweetSpot},
};
use std::path::Path;

/// The inputs and all that follows from them.
#[derive(Debug)]
pub struct Analysis {
    /// The client's scenario.
    pub scenario: Scenario,
    /// The first side.
    pub before: Assessed,
    /// The second.
    pub after: Assessed,
    /// Each load that both sides have.
    pub changes: Vec<Changes>,
    /// The comparison whose verdicts were taken, where one was given.
    pub comparison: Option<Document>,
    /// The files of sweeps.
    pub sweeps: Vec<Document>,
    /// Measures of quality.
    pub quality: Vec<quality::Row>,
    /// Owned against rented: names, and months until the purchase is paid.
    pub own_or_rent: Vec<(String, String, Option<Figure>)>,
    /// What follows, by [`rules::RULES`].
    pub findings: Vec<Finding>,
}

/// A side and what it is worth.
#[derive(Debug)]
pub struct Assessed {
    /// What was measured.
    pub side: Side,
    /// Where it is best used.
    pub spot: Option<SweetSpot>,
    /// Where its time goes there, or why that cannot be told.
    pub split: Result<Split, &'static str>,
    /// What it costs there on each machine of the scenario.
    pub costs: Vec<Cost>,
    /// Most memory the server was seen to take.
    pub memory: Option<Figure>,
}

impl Analysis {
    /// Reads the files and computes.
    ///
    /// # Errors
    /// When a file cannot be used, or a side has no run.
    pub fn of<P: AsRef<Path>>(
        scenario: &Path,
        before: &[P],
        after: &[P],
        comparison: Option<&Path>,
        sweeps: &[P],
    ) -> Result<Self, Error> {
        let scenario = Scenario::open(scenario)?;
        let open = |letter: &str, files: &[P]| -> Result<Vec<Document>, Error> {
            let files = files.iter().enumerate();
            files.map(|(index, path)| Document::open(&format!("{letter}{}", index + 1), path.as_ref())).collect()
        };
        let client = &scenario.content.client;
        let before = Side::of("before", &client.before, open("B", before)?)?;
        let after = Side::of("after", &client.after, open("A", after)?)?;
        let comparison = comparison.map(|path| Document::open("C", path)).transpose()?;
        if let Some(other) = comparison.as_ref().filter(|document| document.kind != Kind::Compare) {
            return Err(Error::NoComparison { path: other.path.clone() });
        }
        let sweeps = open("S", sweeps)?;
        if let Some(other) = sweeps.iter().find(|document| document.kind != Kind::Sweep) {
            return Err(Error::NoSweep { path: other.path.clone() });
        }
        let mut changes = change::changes(&before, &after);
        if let Some(comparison) = &comparison {
            comparison::check_sides(comparison, &before, &after)?;
            comparison::take_verdicts(comparison, &mut changes);
        }
        let mut analysis = Self {
            changes,
            comparison,
            sweeps,
            quality: quality::rows(&before, &after),
            own_or_rent: cost::own_or_rent(&scenario),
            before: Assessed::of(&scenario, before),
            after: Assessed::of(&scenario, after),
            scenario,
            findings: Vec::new(),
        };
        analysis.findings = rules::findings(&analysis);
        Ok(analysis)
    }

    /// The changes at the load of the second side's sweet spot.
    pub fn changes_at_spot(&self) -> Option<&Changes> {
        let load = &self.after.spot.as_ref()?.load;
        self.changes.iter().find(|changes| changes.load == *load)
    }

    /// The tables of the sweeps.
    pub fn configurations(&self) -> Vec<Sweep> {
        self.sweeps.iter().map(configurations::sweep).collect()
    }

    /// Every document that was read.
    pub fn documents(&self) -> Vec<&Document> {
        let sides = self.before.side.documents().into_iter().chain(self.after.side.documents());
        sides.chain(&self.comparison).chain(&self.sweeps).chain([&self.scenario.document]).collect()
    }
}

impl Assessed {
    fn of(scenario: &Scenario, side: Side) -> Self {
        let spot = sweet_spot::find(scenario, &side);
        let point = spot.as_ref().and_then(|spot| side.point(&spot.load));
        let rates = point.and_then(|point| cost::rates(&side, point));
        let split = match (point, &rates) {
            (None, _) => Err("there is no sweet spot"),
            (Some(_), None) => Err("no output was measured at the sweet spot"),
            (Some(_), Some(rates)) => cost::split(&side, rates),
        };
        let costs = rates.map(|rates| cost::costs(scenario, &rates, split.as_ref().ok())).unwrap_or_default();
        let memory = memory(&side);
        Self { side, spot, split, costs, memory }
    }
}

/// Most memory of the server: of its process where that was watched, else of the GPUs.
fn memory(side: &Side) -> Option<Figure> {
    let most = |figures: Vec<Figure>| {
        let highest = figures.iter().map(|figure| figure.value).max_by(f64::total_cmp)?;
        match figures.as_slice() {
            [only] => Some(only.clone()),
            several => Some(Figure::computed(highest, Unit::Mebibytes, "highest", &several.iter().collect::<Vec<_>>())),
        }
    };
    let watched = side.memory.iter().filter_map(|document| document.number("/peak_mib", Unit::Mebibytes)).collect();
    let gpus = || {
        let levels = side.runs.iter().flat_map(|measured| &measured.run.levels);
        levels.filter_map(|level| level.gpu_memory()).collect()
    };
    most(watched).or_else(|| most(gpus()))
}
