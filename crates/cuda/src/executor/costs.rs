//! What steps of some sizes cost, for the scheduler to weigh: measured on the idle row.

use super::{CudaExecutor, cache::prompt_tiles, graphs::decode_passes};
use crate::{
    CudaError,
    driver::Event,
    forward::Pass,
    shapes::{bucket, padded_tokens},
    staging::Layout,
};
use powertrain_step::{StepCost, StepCosts};

/// Positions of the steps with prompts.
const POSITIONS: [u32; 10] = [256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096];
/// So many of them are decodes, so that the kernels for those are in it.
const DECODES: u32 = 32;
/// Length of the prompts: attention is to be a small part.
const PROMPT: u32 = 512;
/// A step is run so often, the first time to find its kernels; the fastest of the others counts.
const RUNS: usize = 3;

impl CudaExecutor {
    /// Measures steps with prompts. Decode graphs are not needed for it.
    pub(super) fn measure_prompts(&mut self) -> Result<(), CudaError> {
        let measured = self.prompt_costs().map(|prompts| StepCosts { prompts, decodes: Vec::new() });
        self.keep_costs(measured)
    }

    /// Measures decodes, by their graphs as far as they are captured, unless the steps with prompts failed.
    pub(super) fn measure_decodes(&mut self) -> Result<(), CudaError> {
        let Some(costs) = self.facts.step_costs.take() else { return Ok(()) };
        let measured = self.decode_costs().map(|decodes| StepCosts { decodes, ..costs });
        if let Ok(costs) = &measured {
            tracing::info!(decodes = %told(&costs.decodes), prompts = %told(&costs.prompts), "what steps cost, ms by positions");
        }
        self.keep_costs(measured)
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
            let layout = Layout { tokens: padded_tokens(positions as usize), samples, tiles: tiles.len() };
            if layout.fixed_words() * 4 > self.forward.staged.bytes() {
                break;
            }
            let pass = Pass { layout, decodes, far: false, draws: false, extras: false, keeps_all: false };
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

    /// Device time of a pass that is staged, by its graph if there is one. It is run once before, to find its kernels.
    fn seconds(&mut self, pass: &Pass) -> Result<f64, CudaError> {
        let (begin, end) = (Event::create()?, Event::create()?);
        let mut times = [0.0; RUNS];
        for time in &mut times {
            begin.record(&self.stream)?;
            match self.graphs.get(pass) {
                Some(decode) => decode.launch(&self.stream)?,
                None => self.forward.run(&self.stream, pass)?,
            }
            end.record(&self.stream)?;
            end.wait()?;
            *time = end.milliseconds_since(&begin)?;
        }
        Ok(times[1..].iter().fold(f64::INFINITY, |fastest, &time| fastest.min(f64::from(time) * 1e-3)))
    }
}

fn told(costs: &[StepCost]) -> String {
    costs.iter().map(|cost| format!("{} {:.2}", cost.positions, cost.seconds * 1e3)).collect::<Vec<_>>().join(", ")
}
