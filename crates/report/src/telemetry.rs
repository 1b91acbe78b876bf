//! What the GPUs did while a load ran: how busy, how much memory and power, at which clocks, and what held those back.

use crate::{
    analysis::Assessed,
    figure::{Figure, Unit},
    metric,
    run::Level,
    side::Point,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// One GPU under one load of one side: means over its runs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The side's name.
    pub side: String,
    /// The load.
    pub load: String,
    /// Which GPU, by NVML's count, and its name.
    pub gpu: String,
    /// Part of the time in which a kernel ran.
    pub busy: Option<Figure>,
    /// Most memory in use by anyone.
    pub memory: Option<Figure>,
    /// Power.
    pub power: Option<Figure>,
    /// The most it may draw.
    pub power_limit: Option<Figure>,
    /// Clock of its multiprocessors.
    pub clock: Option<Figure>,
    /// The lowest that was seen.
    pub clock_min: Option<Figure>,
    /// Highest temperature.
    pub temperature: Option<Figure>,
    /// What held the clocks back, and in which part of the looks.
    pub throttled: Vec<(String, Figure)>,
}

/// Every GPU that the results of a side tell of.
pub fn rows(side: &Assessed) -> Vec<Row> {
    let of_point = |point: &Point| -> Vec<Row> {
        let gpus = side.side.levels(point).iter().map(|level| level.gpus()).max().unwrap_or(0);
        (0..gpus).map(|gpu| row(side, point, gpu)).collect()
    };
    side.side.points.iter().flat_map(of_point).collect()
}

/// Energy of an output token at a point: power of all GPUs over output tokens per second.
pub fn energy_per_token(side: &Assessed, point: &Point) -> Option<Figure> {
    let tokens = side.side.metric(point, metric::OUTPUT).filter(|tokens| tokens.value > 0.0)?;
    let gpus = side.side.levels(point).iter().map(|level| level.gpus()).max().filter(|&gpus| gpus > 0)?;
    let power = |gpu: usize| side.side.number(point, |level| level.gpu(gpu, "power_mean_w", Unit::Watts));
    let powers: Vec<Figure> = (0..gpus).map(power).collect::<Option<_>>()?;
    let watts: f64 = powers.iter().map(|power| power.value).sum();
    let from: Vec<&Figure> = powers.iter().chain([&tokens]).collect();
    Some(Figure::computed(watts / tokens.value, Unit::Joules, "power of the GPUs / output tokens per second", &from))
}

fn row(side: &Assessed, point: &Point, gpu: usize) -> Row {
    let number = |name: &str, unit| side.side.number(point, |level| level.gpu(gpu, name, unit));
    let busy = number("utilisation_mean", Unit::Plain);
    let levels = side.side.levels(point);
    Row {
        side: side.side.name.clone(),
        load: point.load.to_string(),
        gpu: levels.first().map(|level| level.gpu_name(gpu)).unwrap_or_default(),
        busy: busy.map(|percent| Figure::computed(percent.value / 100.0, Unit::Share, "of 100", &[&percent])),
        memory: number("memory_used_max_mib", Unit::Mebibytes),
        power: number("power_mean_w", Unit::Watts),
        power_limit: side.side.number(point, |level| level.gpu_limit(gpu)),
        clock: number("sm_clock_mean_mhz", Unit::Megahertz),
        clock_min: number("sm_clock_min_mhz", Unit::Megahertz),
        temperature: number("temperature_max_c", Unit::Celsius),
        throttled: throttled(side, point, gpu, &levels),
    }
}

fn throttled(side: &Assessed, point: &Point, gpu: usize, levels: &[&Level]) -> Vec<(String, Figure)> {
    let reasons: BTreeSet<String> = levels.iter().flat_map(|level| level.throttle_reasons(gpu)).collect();
    let share = |reason: String| {
        let pointer = format!("throttled/{reason}");
        let of_level = |level: &Level| {
            // A reason that a run does not name held nothing back there.
            let none =
                || Some(Figure::computed(0.0, Unit::Share, "not named", &[&level.gpu(gpu, "samples", Unit::Count)?]));
            level.gpu(gpu, &pointer, Unit::Share).or_else(none)
        };
        Some((reason.replace('_', " "), side.side.number(point, of_level)?))
    };
    reasons.into_iter().filter_map(share).collect()
}

impl Level {
    /// How many GPUs were looked at.
    fn gpus(&self) -> usize {
        self.value("/gpus").and_then(Value::as_array).map_or(0, Vec::len)
    }

    fn gpu(&self, gpu: usize, name: &str, unit: Unit) -> Option<Figure> {
        self.number(&format!("/gpus/{gpu}/{name}"), unit)
    }

    /// NVML's number and the name that the run gives for it.
    fn gpu_name(&self, gpu: usize) -> String {
        let index = self.value(&format!("/gpus/{gpu}/index")).and_then(Value::as_u64).unwrap_or(gpu as u64);
        let name = self.device(gpu).and_then(|place| Some(self.of_run(&format!("{place}/name"))?.as_str()?.to_owned()));
        format!("{index}: {}", name.unwrap_or_else(|| "unnamed".to_owned()))
    }

    fn gpu_limit(&self, gpu: usize) -> Option<Figure> {
        self.run_number(&format!("{}/power_limit_w", self.device(gpu)?), Unit::Watts)
    }

    /// Where the run describes this GPU.
    fn device(&self, gpu: usize) -> Option<String> {
        let index = self.value(&format!("/gpus/{gpu}/index"))?;
        let devices = self.of_run("/gpus/devices")?.as_array()?;
        let place = devices.iter().position(|device| device.get("index") == Some(index))?;
        Some(format!("/gpus/devices/{place}"))
    }

    fn throttle_reasons(&self, gpu: usize) -> Vec<String> {
        let reasons = self.value(&format!("/gpus/{gpu}/throttled")).and_then(Value::as_object);
        reasons.into_iter().flatten().map(|(reason, _)| reason.clone()).collect()
    }
}
