//! What steps cost, for the scheduler to weigh: measured before the first request with steps as they come under load, one after another, and kept
//! with the choices of kernels, so that the next start measures nothing and spreads prompts alike.

mod steps;

use super::{CudaExecutor, prompt_graphs::PromptGraphs};
use crate::{CudaError, driver::Event, forward::Pass, kernels::fill_random, row_sampling::Modes, tuned::fnv1a};
use powertrain_step::{CostsBeside, StepCost, StepCosts};
use std::{
    mem,
    time::{Duration, Instant},
};
use steps::{LoadedStep, loaded_steps};

/// No step is begun that is expected to end later than this: all of them are reckoned to take some 1.9 s with Llama-3.1-8B.
const LIMIT: Duration = Duration::from_millis(1750);
/// A step is launched so often at least: the first does not count.
const LAUNCHES_MIN: usize = 2;
const LAUNCHES_MAX: usize = 1000;
/// It is launched for so long at least: so that its own power sets the clocks, and not that of what came before.
const LAUNCHED: Duration = Duration::from_millis(20);
/// A step takes about as long to measure as so many launches at least: the first is kernel by kernel, and finds its kernels.
const LAUNCHES_RECKONED: f64 = 4.0;

impl CudaExecutor {
    /// Takes over what an earlier start of this model with these limits measured. Whether there is such.
    pub(super) fn recall_costs(&mut self, prepare_at_start: Duration) -> bool {
        let name = self.costs_name(limit(prepare_at_start));
        self.facts.step_costs = self.forward.matmul.kept(&name).and_then(|text| parsed(&text));
        self.tell_of_costs();
        self.facts.step_costs.is_some()
    }

    /// Under which the costs are kept: all they depend on beside what the file is for.
    fn costs_name(&self, limit: Duration) -> String {
        let how = (self.deterministic, self.enforce_eager, limit, LAUNCHES_MIN, LAUNCHED);
        let steps = loaded_steps(&self.limits, self.facts.kv_blocks);
        let all = format!("{:?} {:?} {how:?} {steps:?}", self.forward.spec, self.limits);
        format!("steps {:016x}", fnv1a(all.as_bytes()))
    }

    fn tell_of_costs(&self) {
        let Some(costs) = &self.facts.step_costs else { return };
        tracing::info!(costs = %told(costs), "what steps take, ms, decodes alone and with prompts by all positions");
    }

    /// Measures steps, with the kernels and graphs that are known by now, for no longer than loading may take to prepare. Nothing may be running, and
    /// no row may live; afterwards the executor is as it was, but for what is in the KV cache. A step that fails leaves the costs unknown, unless the
    /// device is lost.
    pub(super) fn measure_costs(&mut self, prepare_at_start: Duration) -> Result<(), CudaError> {
        let limit = limit(prepare_at_start);
        let name = self.costs_name(limit);
        let before = (self.last_pass, self.launch_seconds);
        // None of these steps is a sighting of a kind that a load makes.
        let never = PromptGraphs::new(u32::MAX);
        let prompt_graphs = mem::replace(&mut self.prompt_graphs, never);
        let measured = self.costs_of_steps(limit);
        self.prompt_graphs = prompt_graphs;
        (self.last_pass, self.launch_seconds) = before;
        self.in_flight.clear();
        self.changes.clear();
        self.rows.fill_with(|| None);
        self.modes.fill(Modes::default());
        match measured {
            Ok(costs) => self.facts.step_costs = Some(costs).filter(|costs| !costs.beside.is_empty()),
            Err(error) if self.lost(&error).is_some() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what steps cost is unknown: prompts are not spread over steps");
            }
        }
        self.tell_of_costs();
        // Decodes whose kernels are still to be chosen will be faster, and steps for whose graphs there was no memory are slower than others will be.
        let as_later = self.to_capture.is_empty() && name == self.costs_name(limit);
        if let Some(costs) = self.facts.step_costs.as_ref().filter(|_| as_later) {
            self.forward.matmul.keep(name, text(costs));
            self.forward.matmul.save_choices();
        }
        Ok(())
    }

    fn costs_of_steps(&mut self, limit: Duration) -> Result<StepCosts, CudaError> {
        let began = Instant::now();
        let steps = loaded_steps(&self.limits, self.facts.kv_blocks);
        self.fill_blocks(&steps)?;
        let mut costs = StepCosts::default();
        // Seconds of a position of the last step with prompts, and steps left out.
        let (mut position_seconds, mut left_out) = (0.0, 0);
        for step in &steps {
            let expected = match step.has_prompts() {
                true => f64::from(step.positions()) * position_seconds,
                false => 0.0,
            };
            let expected = (expected * LAUNCHES_RECKONED).max(expected + LAUNCHED.as_secs_f64());
            let known = costs.beside.iter().position(|beside| beside.decodes == step.decodes);
            if began.elapsed().as_secs_f64() + expected > limit.as_secs_f64() || known.is_none() && step.has_prompts() {
                left_out += 1;
                continue;
            }
            let seconds = self.seconds(step)?;
            match known {
                Some(at) => {
                    position_seconds = seconds / f64::from(step.positions());
                    costs.beside[at].prompts.push(StepCost { positions: step.positions(), seconds });
                }
                None => {
                    costs.beside.push(CostsBeside { decodes: step.decodes, alone: seconds, prompts: Vec::new() });
                }
            }
        }
        // By now they stand in the order in which they were measured.
        costs.beside.sort_unstable_by_key(|beside| beside.decodes);
        costs.beside.iter_mut().for_each(|beside| beside.prompts.sort_unstable_by_key(|cost| cost.positions));
        let seconds = began.elapsed().as_secs_f64();
        if left_out > 0 {
            let measured = steps.len() - left_out;
            tracing::info!(measured, left_out, seconds, "there was no time to measure all sizes of step");
        } else {
            tracing::debug!(seconds, "sizes of step were measured");
        }
        Ok(costs)
    }

    /// Fills the blocks that decodes will read and nobody wrote: to read zeros and to multiply by them takes less power than what sequences have.
    fn fill_blocks(&self, steps: &[LoadedStep]) -> Result<(), CudaError> {
        let blocks = steps.iter().map(|step| step.blocks_of_decodes(self.limits.block_size)).max().unwrap_or(0);
        let forward = &self.forward;
        // One block more than the scheduler knows is in each layer's part: the idle row's.
        let block_bytes = forward.cache_layer_bytes / (self.facts.kv_blocks as usize + 1);
        let elements = (blocks as usize * block_bytes / 2) as u64;
        for part in 0..2 * forward.spec.layers.len() {
            let to = forward.cache.pointer() + (part * forward.cache_layer_bytes) as u64;
            fill_random(&forward.kernels, &self.stream, to, elements, 1.0, part as u32)?;
        }
        Ok(())
    }

    /// Seconds of device time that a step takes, launched as when it comes often, one after another.
    fn seconds(&mut self, step: &LoadedStep) -> Result<f64, CudaError> {
        let [rows, step] = step.plans(&self.limits, self.forward.spec.vocab_size);
        self.start(&rows)?;
        self.end_step()?;
        // What comes after leaves the staged step as it is, so that its pass can be launched again; it computes the same again.
        self.start(&step)?;
        let pass = self.last_pass.expect("a step was launched");
        let seconds = self.seconds_of(&pass)?;
        self.end_step()?;
        Ok(seconds)
    }

    fn end_step(&mut self) -> Result<(), CudaError> {
        self.resolve(0)?;
        self.in_flight.pop_front();
        Ok(())
    }

    /// Of a pass that is staged and was launched. The device hardly rests: while it computes a step, the next ones are recorded or launched.
    fn seconds_of(&self, pass: &Pass) -> Result<f64, CudaError> {
        let recorded = match pass.prompts && !self.enforce_eager {
            true => Some(self.stream.capture(|| self.forward.run(&self.stream, pass))?),
            false => None,
        };
        let launch = || match (&recorded, self.graphs.get(pass)) {
            (Some(graph), _) => graph.launch(&self.stream),
            (None, Some(decode)) => decode.launch(&self.stream),
            (None, None) => self.forward.run(&self.stream, pass),
        };
        let [begin, middle, end] = [Event::create()?, Event::create()?, Event::create()?];
        begin.record(&self.stream)?;
        launch()?;
        middle.record(&self.stream)?;
        launch()?;
        end.record(&self.stream)?;
        middle.wait()?;
        let launches = launches(f64::from(middle.milliseconds_since(&begin)?) * 1e-3);
        // The last half counts.
        let counted = launches / 2;
        if launches > LAUNCHES_MIN {
            (LAUNCHES_MIN..launches - counted).try_for_each(|_| launch())?;
            middle.record(&self.stream)?;
            (0..counted).try_for_each(|_| launch())?;
            end.record(&self.stream)?;
        }
        end.wait()?;
        Ok(f64::from(end.milliseconds_since(&middle)?) * 1e-3 / counted as f64)
    }
}

/// For how long steps are measured: a start that is to prepare little is not held up by this either.
fn limit(prepare_at_start: Duration) -> Duration {
    prepare_at_start.min(LIMIT)
}

/// How often a step is launched, given the seconds of its first launch.
fn launches(seconds: f64) -> usize {
    let enough = (LAUNCHED.as_secs_f64() / seconds).ceil();
    (enough as usize).clamp(LAUNCHES_MIN, LAUNCHES_MAX)
}

/// `8 decodes 5.91, 256 7.93, 384 10.42; 48 decodes 6.60, …`
fn told(costs: &StepCosts) -> String {
    let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
    let beside = |beside: &CostsBeside| {
        let prompts = beside.prompts.iter().map(|cost| format!(", {} {}", cost.positions, ms(cost.seconds)));
        format!("{} decodes {}{}", beside.decodes, ms(beside.alone), prompts.collect::<String>())
    };
    costs.beside.iter().map(beside).collect::<Vec<_>>().join("; ")
}

/// `8 0.0059 256 0.0079 384 0.0104; 48 0.0066`: by numbers of decodes, these and their seconds alone, then positions and seconds with prompts.
fn text(costs: &StepCosts) -> String {
    let beside = |beside: &CostsBeside| {
        let prompts = beside.prompts.iter().map(|cost| format!(" {} {}", cost.positions, cost.seconds));
        format!("{} {}{}", beside.decodes, beside.alone, prompts.collect::<String>())
    };
    costs.beside.iter().map(beside).collect::<Vec<_>>().join("; ")
}

/// What [`text`] wrote; `None` where it is not that, or not ascending.
fn parsed(text: &str) -> Option<StepCosts> {
    let beside = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let pair = |pair: &[&str]| {
            let [positions, seconds] = pair else { return None };
            let cost = StepCost { positions: positions.parse().ok()?, seconds: seconds.parse().ok()? };
            Some(cost).filter(|cost| cost.seconds.is_finite() && cost.seconds > 0.0)
        };
        let mut costs = words.chunks(2).map(pair).collect::<Option<Vec<_>>>()?;
        // Those of decodes alone come first, so that all ascend.
        let ascending = !costs.is_empty() && costs.is_sorted_by(|a, b| a.positions < b.positions);
        let alone = ascending.then(|| costs.remove(0))?;
        Some(CostsBeside { decodes: alone.positions, alone: alone.seconds, prompts: costs })
    };
    let all = text.split(';').map(beside).collect::<Option<Vec<_>>>()?;
    all.is_sorted_by(|a, b| a.decodes < b.decodes).then_some(StepCosts { beside: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> StepCosts {
        let cost = |positions, seconds| StepCost { positions, seconds };
        let prompts = vec![cost(256, 1.0 / 3.0), cost(4096, 0.089)];
        let beside = |decodes, alone, prompts| CostsBeside { decodes, alone, prompts };
        StepCosts { beside: vec![beside(1, 1e-4, Vec::new()), beside(8, 0.005_173, prompts)] }
    }

    #[test]
    fn costs_are_read_as_they_were_written() {
        let (one, two) = (StepCosts { beside: costs().beside[..1].to_vec() }, costs());
        for costs in [one, StepCosts { beside: two.beside[1..].to_vec() }, two] {
            assert_eq!(parsed(&text(&costs)), Some(costs));
        }
    }

    #[test]
    fn costs_are_told_in_a_line() {
        assert_eq!(told(&costs()), "1 decodes 0.10; 8 decodes 5.17, 256 333.33, 4096 89.00");
    }

    #[test]
    fn what_is_no_costs_is_none() {
        for text in [
            "",
            ";",
            "1",
            "1 0.1;",
            "1 0.1; 2",
            "1 0.1 2; 3 0.2",
            "2 0.1 1 0.2",
            "2 0.1 2 0.2",
            "1 0.1 3 0.1 2 0.2",
            "2 0.1; 1 0.1",
            "1 0.1; 1 0.1",
            "1 0",
            "1 -0.1",
            "1 NaN",
            "1 0.1 256 inf",
            "x 0.1",
            "-1 0.1",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn short_steps_are_launched_for_long_enough() {
        assert_eq!([1.0, 0.0101, 0.01, 0.0099, 0.001, 0.0].map(launches), [2, 2, 2, 3, 20, LAUNCHES_MAX]);
        assert_eq!(launches(f64::NAN), LAUNCHES_MIN);
        assert_eq!([0.2, 4.0].map(|seconds| limit(Duration::from_secs_f64(seconds)).as_millis()), [200, 1750]);
    }
}
