//! Before the engine runs: the largest steps run once on the idle row, so that the driver and cuBLASLt have taken what they take at first use, and two
//! graphs are captured to know what all of them will take. The KV cache is made of what is left.

use super::{CudaExecutor, graphs::decode_passes, prompt_graphs::PROMPT_GRAPHS_MAX};
use crate::{
    CudaError, CudaOptions,
    driver::{Buffer, Context},
    forward::Pass,
    kernels::TILE_QUERIES,
    memory::{Demand, Wish},
    row_sampling::Mode,
    shapes::{bucket, padded_tokens, tiles_bucket},
    staging::{Counts, Layout},
    tuned::Tuned,
};
use powertrain_model::spec::DecoderSpec;
use powertrain_step::{DeviceMemory, StepLimits};
use std::{ops::Range, sync::atomic::Ordering::Relaxed};

/// Device memory left to the driver: kernels that cuBLASLt loads when a shape is tuned, fragmentation. Measured for Llama-3.1-8B's shape: 30 MiB, its 40
/// graphs included.
const DRIVER_BYTES: u64 = 192 << 20;

/// What rows with penalties or bias take when they first come (row_sampling.rs).
pub(super) fn sampling_bytes(spec: &DecoderSpec, limits: &StepLimits) -> u64 {
    let rows = limits.max_num_seqs as usize;
    (spec.vocab_size * (4 * bucket(rows) + 2 * rows)) as u64
}

/// Bytes of a block of KV cache over all layers; every layer gets what the widest needs.
pub(super) fn block_bytes(spec: &DecoderSpec, limits: &StepLimits) -> usize {
    let widest = spec.layers.iter().map(|layer| layer.attention.kv_heads * layer.attention.head_dim * 2).max();
    widest.unwrap_or(0) * limits.block_size as usize * 2 * spec.layers.len()
}

pub(super) fn wish(limits: &StepLimits, options: &CudaOptions) -> Wish {
    Wish {
        utilization: options.gpu_memory_utilization,
        kv_cache_bytes: options.kv_cache_bytes,
        max_model_len: limits.max_model_len,
        block_size: limits.block_size,
    }
}

/// Who has the device's memory: `weights` bytes in use or to come, `later` bytes to be taken while it runs.
pub(super) fn demand(
    context: &Context,
    free_before: u64,
    weights: u64,
    later: u64,
    block: usize,
) -> Result<Demand, CudaError> {
    let (free, total) = context.memory()?;
    Ok(Demand {
        total,
        others: total - free_before,
        weights,
        workspace: free_before.saturating_sub(free),
        reserve: later + DRIVER_BYTES,
        block: block.max(1) as u64,
    })
}

impl CudaExecutor {
    /// Lets what tuning finds be kept on disk, and found there.
    pub(super) fn keep_kernel_choices(&mut self, options: &CudaOptions) {
        let Some(folder) = &options.kernel_choices else { return };
        let identity = format!(
            "{} ({} multiprocessors), {}, {}, {}, powertrain {}, kernels {}",
            self.context.name,
            self.context.multiprocessors,
            self.context.driver(),
            self.forward.matmul.library(),
            self.forward.matmul.element.name(),
            env!("CARGO_PKG_VERSION"),
            env!("POWERTRAIN_KERNELS")
        );
        self.forward.matmul.keep_choices(Tuned::open(folder, &identity));
    }

    /// Makes the KV cache of what weights, the largest steps and the graphs leave.
    pub(super) fn make_cache(&mut self, free_before: u64, options: &CudaOptions) -> Result<(), CudaError> {
        let later = self.rehearse()? + sampling_bytes(&self.forward.spec, &self.limits);
        let block = self.forward.cache.bytes();
        let mut demand = demand(&self.context, free_before, self.facts.weights_bytes, later, block)?;
        demand.workspace = demand.workspace.saturating_sub(demand.weights + block as u64);
        let kv_blocks = demand.kv_blocks(wish(&self.limits, options))?;
        // One block more than the scheduler knows: the idle row's.
        let bytes = block * (kv_blocks as usize + 1);
        self.forward.cache = Buffer::allocate(&self.context, bytes, "the KV cache")?;
        self.forward.cache_layer_bytes = bytes / (2 * self.forward.spec.layers.len());
        self.forward.cache.clear(&self.stream)?;
        self.stream.wait()?;
        let idle_blocks = vec![kv_blocks; self.arena.max_blocks];
        let idle_at = self.arena.blocks_at() + self.arena.idle_row() as usize * self.arena.max_blocks;
        self.state.write(idle_at * 4, &idle_blocks)?;
        self.facts.kv_blocks = kv_blocks;
        self.facts.kv_cache_bytes = u64::from(kv_blocks) * block as u64;
        self.facts.device_memory = Some(DeviceMemory {
            total: demand.total,
            others: demand.others,
            workspace: demand.workspace,
            reserved: demand.reserve,
        });
        Ok(())
    }

    /// Runs the largest steps there can be. Returns the bytes that all graphs together are expected to take.
    fn rehearse(&mut self) -> Result<u64, CudaError> {
        let rows = self.limits.max_num_seqs as usize;
        let (idle, max_len) = (self.arena.idle_row(), self.limits.max_model_len);
        let tiles: Vec<_> = prompt_tiles(idle, 0..largest_tokens(&self.limits) as u32, max_len).collect();
        self.run_idle(&largest_prefill(&self.limits, tiles.len()), |at| at as u32 % max_len, &tiles)?;
        // Of the sizes, the largest is the least likely.
        let passes = decode_passes(rows, self.deterministic);
        let decode = *passes.iter().max_by_key(|pass| pass.layout.tokens).expect("there is a row");
        // Where the rows stand changes what attention reads, not what it takes.
        let tiles: Vec<_> = (0..decode.layout.tiles as u32).map(|at| [idle, at, 0, 1]).collect();
        self.run_idle(&decode, |_| 0, &tiles)?;
        let planned = self.to_capture.len() as u64;
        if let Some(graphs) = &self.facts.graphs {
            graphs.planned.store(planned, Relaxed);
        }
        if planned == 0 {
            return Ok(0);
        }
        self.choose_kernels(&decode)?;
        self.forward.matmul.save_choices();
        let (mut each, mut captured) = (0, Vec::new());
        for draws in [false, true] {
            let (before, _) = self.context.memory()?;
            let pass = Pass { draws, ..decode };
            captured.push(self.stream.capture(|| self.forward.run(&self.stream, &pass))?);
            let (after, _) = self.context.memory()?;
            each = before.saturating_sub(after).max(each);
        }
        // Those of steps with prompts have a few kernels more.
        Ok(each * (planned + PROMPT_GRAPHS_MAX as u64) * 5 / 4)
    }

    /// Runs a pass whose every position is the idle row's, and waits for it.
    fn run_idle(
        &mut self,
        pass: &Pass,
        position_of: impl Fn(usize) -> u32,
        tiles: &[[u32; 4]],
    ) -> Result<(), CudaError> {
        self.stage_idle(pass, position_of, tiles)?;
        self.forward.run(&self.stream, pass)?;
        self.stream.wait()
    }

    /// Brings the arrays of a pass to the device whose every position is the idle row's. Nothing may be running.
    pub(super) fn stage_idle(
        &mut self,
        pass: &Pass,
        position_of: impl Fn(usize) -> u32,
        tiles: &[[u32; 4]],
    ) -> Result<(), CudaError> {
        let (layout, idle) = (pass.layout, self.arena.idle_row());
        let results_at = self.slots[0].results.device_address();
        let addresses = [results_at, results_at + 4 * self.samples_max() as u64, 0];
        let staged = self.slots[0].staged.words_mut();
        staged[layout.rows()..layout.positions()].fill(idle);
        for (at, position) in staged[layout.positions()..layout.modes()].iter_mut().enumerate() {
            *position = position_of(at);
        }
        staged[layout.modes()..layout.sample_rows()].fill(Mode::GREEDY.0);
        staged[layout.sample_rows()..layout.sample_positions()].fill(idle);
        staged[layout.sample_positions()..layout.sample_tokens()].fill(0);
        for (at, token) in staged[layout.sample_tokens()..][..layout.samples].iter_mut().enumerate() {
            *token = at as u32;
        }
        for (place, tile) in staged[layout.tile_words()..].chunks_exact_mut(4).zip(tiles) {
            place.copy_from_slice(tile);
        }
        self.changes.clear();
        let counts = Counts { decodes: pass.decodes, tiles: tiles.len() };
        let words = self.changes.write(&layout, counts, addresses, staged);
        self.stream.copy_to_device(&self.forward.staged, &self.slots[0].staged, words)?;
        self.stream.wait()
    }
}

/// Prompts that fill a step to `max_num_batched_tokens`, with as many tokens chosen as there can be.
fn largest_prefill(limits: &StepLimits, tiles: usize) -> Pass {
    let layout = Layout {
        tokens: padded_tokens(largest_tokens(limits)),
        samples: bucket(limits.max_num_seqs as usize).min(largest_tokens(limits)),
        tiles: tiles_bucket(tiles),
    };
    Pass { layout, decodes: 0, prompts: true, far: false, draws: true, extras: false, keeps_all: false }
}

fn largest_tokens(limits: &StepLimits) -> usize {
    (limits.max_num_batched_tokens as usize).min(limits.max_num_seqs as usize * limits.max_model_len as usize)
}

/// Flash tiles of prompts of a length, one after another at these of a step's positions, as if all were the idle row's.
fn prompt_tiles(idle: u32, at: Range<u32>, length: u32) -> impl Iterator<Item = [u32; 4]> + use<> {
    at.clone().step_by(length as usize).flat_map(move |begin| {
        let len = length.min(at.end - begin);
        let tile = move |done: u32| [idle, begin + done, done, TILE_QUERIES.min(len - done)];
        (0..len).step_by(TILE_QUERIES as usize).map(tile)
    })
}
