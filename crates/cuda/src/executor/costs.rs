//! What steps of some sizes cost, for the scheduler to weigh: measured on the idle row, and kept with the choices of kernels, so that the next
//! start measures nothing and spreads prompts alike.

use super::{CudaExecutor, cache::prompt_tiles, graphs::decode_passes};
use crate::{
    CudaError,
    driver::Event,
    forward::Pass,
    shapes::{bucket, padded_tokens, tiles_bucket},
    staging::Layout,
    tuned::fnv1a,
};
use powertrain_step::{StepCost, StepCosts};

/// Positions of the steps with prompts.
const POSITIONS: [u32; 10] = [256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096];
/// So many of them are decodes, so that kernels for those are in it, if not always those that more decodes take.
const DECODES: u32 = 32;
/// Length of the prompts: attention is to be a small part.
const PROMPT: u32 = 512;
/// A step is run so often; the first run does not count, of the others the fastest.
const RUNS: usize = 3;

impl CudaExecutor {
    /// Takes over what an earlier start of this model with these limits measured. Whether there is such.
    pub(super) fn recall_costs(&mut self) -> bool {
        self.facts.step_costs = self.forward.matmul.kept(&self.costs_name()).and_then(|text| parsed(&text));
        self.tell_of_costs();
        self.facts.step_costs.is_some()
    }

    /// Under which the costs are kept: all they depend on beside what the file is for.
    fn costs_name(&self) -> String {
        let how = (self.deterministic, self.enforce_eager, POSITIONS, DECODES, PROMPT, RUNS);
        let all = format!("{:?} {:?} {how:?}", self.forward.spec, self.limits);
        format!("steps {:016x}", fnv1a(all.as_bytes()))
    }

    fn tell_of_costs(&self) {
        let Some(costs) = &self.facts.step_costs else { return };
        let told = |costs: &[StepCost]| {
            costs
                .iter()
                .map(|cost| format!("{} {:.2}", cost.positions, cost.seconds * 1e3))
                .collect::<Vec<_>>()
                .join(", ")
        };
        tracing::info!(decodes = %told(&costs.decodes), prompts = %told(&costs.prompts), "what steps cost, ms by positions");
    }

    /// Measures steps with prompts. Decode graphs are not needed for it.
    pub(super) fn measure_prompts(&mut self) -> Result<(), CudaError> {
        let measured = self.prompt_costs().map(|prompts| StepCosts { prompts, decodes: Vec::new() });
        self.keep_costs(measured)
    }

    /// Measures decodes, by their graphs as far as they are captured, unless the steps with prompts failed.
    pub(super) fn measure_decodes(&mut self) -> Result<(), CudaError> {
        let Some(costs) = self.facts.step_costs.take() else { return Ok(()) };
        let measured = self.decode_costs().map(|decodes| StepCosts { decodes, ..costs });
        self.keep_costs(measured)?;
        self.tell_of_costs();
        // Decodes whose kernels are still to be chosen will be faster.
        if let Some(costs) = self.facts.step_costs.as_ref().filter(|_| self.to_capture.is_empty()) {
            self.forward.matmul.keep(self.costs_name(), text(costs));
            self.forward.matmul.save_choices();
        }
        Ok(())
    }

    /// A step that fails leaves the costs unknown, unless the device is lost: the step that needs it will report it.
    fn keep_costs(&mut self, measured: Result<StepCosts, CudaError>) -> Result<(), CudaError> {
        match measured {
            Ok(costs) => self.facts.step_costs = Some(costs),
            Err(error) if self.lost(&error).is_some() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what steps cost is unknown: prompts are not spread over steps");
            }
        }
        Ok(())
    }

    fn prompt_costs(&mut self) -> Result<Vec<StepCost>, CudaError> {
        let (idle, limits) = (self.arena.idle_row(), self.limits);
        let length = PROMPT.min(limits.max_model_len);
        // Each decode is a row's: where fewer can live, fewer are there.
        let decodes = if self.deterministic { 0 } else { DECODES.min(limits.max_num_seqs) };
        let mut costs = Vec::new();
        // No larger step than there can be.
        let most = u64::from(limits.max_num_seqs) * u64::from(limits.max_model_len);
        let most = most.min(u64::from(limits.max_num_batched_tokens));
        for positions in POSITIONS.into_iter().filter(|&count| u64::from(count) <= most) {
            let tiles: Vec<_> = prompt_tiles(idle, decodes..positions, length).collect();
            let decodes = decodes as usize;
            let samples = bucket(decodes.max(1)).min(self.samples_max());
            let tokens = padded_tokens(positions as usize);
            let layout = Layout { tokens, samples, tiles: tiles_bucket(tiles.len()) };
            if layout.fixed_words() * 4 > self.forward.staged.bytes() {
                break;
            }
            let pass =
                Pass { layout, decodes, prompts: true, far: false, draws: false, extras: false, keeps_all: false };
            let position = |at: usize| at.checked_sub(decodes).map_or(0, |at| at as u32 % length);
            self.stage_idle(&pass, position, &tiles)?;
            costs.push(StepCost { positions, seconds: self.seconds(&pass)? });
        }
        Ok(costs)
    }

    fn decode_costs(&mut self) -> Result<Vec<StepCost>, CudaError> {
        let (idle, rows) = (self.arena.idle_row(), self.limits.max_num_seqs as usize);
        let mut passes = decode_passes(rows, self.deterministic);
        passes.retain(|pass| !pass.draws && (pass.layout.tokens.is_power_of_two() || pass.layout.tokens >= rows));
        passes.sort_unstable_by_key(|pass| pass.layout.tokens);
        let mut costs = Vec::new();
        for pass in passes {
            let tiles: Vec<_> = (0..pass.layout.tiles as u32).map(|at| [idle, at, 0, 1]).collect();
            self.stage_idle(&pass, |_| 0, &tiles)?;
            costs.push(StepCost { positions: pass.layout.tokens as u32, seconds: self.seconds(&pass)? });
        }
        Ok(costs)
    }

    /// Device time of a pass that is staged, as it is launched when it comes often.
    fn seconds(&mut self, pass: &Pass) -> Result<f64, CudaError> {
        let (begin, end) = (Event::create()?, Event::create()?);
        let graph = match pass.prompts && !self.enforce_eager {
            true => {
                // To find its kernels.
                self.forward.run(&self.stream, pass)?;
                Some(self.stream.capture(|| self.forward.run(&self.stream, pass))?)
            }
            false => None,
        };
        let mut times = [0.0; RUNS];
        for time in &mut times {
            begin.record(&self.stream)?;
            match (&graph, self.graphs.get(pass)) {
                (Some(graph), _) => graph.launch(&self.stream)?,
                (None, Some(decode)) => decode.launch(&self.stream)?,
                (None, None) => self.forward.run(&self.stream, pass)?,
            }
            end.record(&self.stream)?;
            end.wait()?;
            *time = end.milliseconds_since(&begin)?;
        }
        Ok(times[1..].iter().fold(f64::INFINITY, |fastest, &time| fastest.min(f64::from(time) * 1e-3)))
    }
}

/// `1 0.00517 2 0.00524; 256 0.0078`: positions and seconds of decodes, then of steps with prompts.
fn text(costs: &StepCosts) -> String {
    let list = |costs: &[StepCost]| {
        costs.iter().map(|cost| format!("{} {}", cost.positions, cost.seconds)).collect::<Vec<_>>().join(" ")
    };
    format!("{}; {}", list(&costs.decodes), list(&costs.prompts))
}

/// What [`text`] wrote; `None` where it is not that, or not ascending.
fn parsed(text: &str) -> Option<StepCosts> {
    let list = |text: &str| -> Option<Vec<StepCost>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let cost = |pair: &[&str]| {
            let [positions, seconds] = pair else { return None };
            let cost = StepCost { positions: positions.parse().ok()?, seconds: seconds.parse().ok()? };
            Some(cost).filter(|cost| cost.seconds.is_finite() && cost.seconds > 0.0)
        };
        let costs = words.chunks(2).map(cost).collect::<Option<Vec<_>>>()?;
        costs.is_sorted_by(|a, b| a.positions < b.positions).then_some(costs)
    };
    let (decodes, prompts) = text.split_once(';')?;
    Some(StepCosts { decodes: list(decodes)?, prompts: list(prompts)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_as_they_were_written() {
        let cost = |positions, seconds| StepCost { positions, seconds };
        for costs in [
            StepCosts { decodes: vec![cost(1, 0.005_173), cost(256, 0.0077)], prompts: vec![cost(256, 1.0 / 3.0)] },
            StepCosts { decodes: vec![cost(1, 1e-4)], prompts: Vec::new() },
            StepCosts::default(),
        ] {
            assert_eq!(parsed(&text(&costs)), Some(costs));
        }
    }

    #[test]
    fn what_is_no_costs_is_none() {
        for text in [
            "",
            "1 0.1",
            "1 0.1 2; 3 0.2",
            "2 0.1 1 0.2; ",
            "1 0; ",
            "1 -0.1; ",
            "1 NaN; ",
            "1 inf; ",
            "x 0.1; ",
            "-1 0.1; ",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }
}
