//! The executor: rows, steps in flight, graphs.
//!
//! A step costs the host one pass over its rows, one copy, and one launch of a captured graph (or, when it prefills in a way that has not come
//! often, the launches of a pass). Sampled tokens stay on the device, where the next step finds them; the host reads them one step late from pinned
//! memory. Only rows that need the host's sampler make the next launch wait.

use crate::{
    CudaError, CudaOptions, Element,
    decode::FAR_POSITIONS,
    driver::{Buffer, Context, Event, Graph, Pinned, Stream},
    forward::{Forward, Pass, Workspace, qkv_width},
    kernels::{Kernels, RECORD_WORDS, TILE_QUERIES},
    matmul::Matmul,
    results::{Entry, InFlight},
    row_sampling::{Mode, Modes, RowSampling},
    shapes::{bucket, check_settings, check_spec, padded_tokens, tiles_bucket},
    staging::{Arena, Changes, Counts, Layout, Tally, room},
    weights::DeviceWeights,
};
use powertrain_model::Model;
use powertrain_sampling::{History, Sampler};
use powertrain_step::*;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

mod cache;
mod costs;
mod faults;
mod graphs;
mod host;
mod prompt_graphs;

use cache::{block_bytes, demand, sampling_bytes, wish};
use graphs::{DecodeGraph, decode_passes};
use prompt_graphs::PromptGraphs;

const NAME: &str = "cuda";
/// Steps launched before the oldest is collected.
const DEPTH: usize = 2;

/// Runs steps on one GPU.
pub(crate) struct CudaExecutor {
    // In the order in which they are dropped: graphs and buffers before the context.
    graphs: HashMap<Pass, DecodeGraph>,
    prompt_graphs: PromptGraphs<Graph>,
    slots: Vec<StepSlot>,
    forward: Forward,
    state: Buffer,
    gather: Buffer,
    stream: Stream,
    context: Context,
    facts: ExecutorFacts,
    limits: StepLimits,
    arena: Arena,
    /// By row.
    rows: Vec<Option<Row>>,
    /// By row, apart from `rows`: all of a step's are read before it can be launched.
    modes: Vec<Modes>,
    row_sampling: RowSampling,
    in_flight: VecDeque<InFlight>,
    changes: Changes,
    /// Tokens the host's sampler chose, to be brought to the device: row, position, token.
    chosen: Vec<(u32, u32, TokenId)>,
    sampler: Sampler,
    /// Words of changes that one staged step holds.
    change_words_max: usize,
    enforce_eager: bool,
    deterministic: bool,
    /// Decodes whose kernels are still to be chosen and whose graphs captured while there is nothing else to do, the next one last.
    to_capture: Vec<Pass>,
    /// What was launched last, for [`profile`](Self::profile).
    last_pass: Option<Pass>,
    /// Launches that waited for a row the host samples.
    pub(crate) waits: u64,
    /// Seconds of the last launch: staging, copy, kernels, the rest.
    pub(crate) launch_seconds: [f64; 4],
}

impl std::fmt::Debug for CudaExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaExecutor").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What a step in flight uses on the host's side.
struct StepSlot {
    staged: Pinned,
    /// A token for each sample, then a record of log-probabilities for each.
    results: Pinned,
    /// Logits of rows the host samples; grown when first needed.
    logits: Pinned,
    done: Event,
}

/// A running sequence as the host sees it.
struct Row {
    prompt: Arc<[TokenId]>,
    prompt_len: u32,
    sampling: Arc<SamplingParams>,
    prompt_logprobs: Option<u8>,
    blocks: u32,
    /// Kept when the host samples this row.
    history: Option<History>,
}

impl CudaExecutor {
    pub(crate) fn load(model: &Model, limits: &StepLimits, options: &CudaOptions) -> Result<Self, CudaError> {
        let spec = model.spec();
        check_settings(limits, options)?;
        let element = options.element.unwrap_or_else(|| Element::of(model));
        check_spec(spec, element)?;
        let context = Context::open(options.ordinal)?;
        let (free_before, _) = context.memory()?;
        let kernels = Kernels::load(&context, element)?;
        let stream = Stream::create()?;
        let (sequences, tokens) = (limits.max_num_seqs as usize, limits.max_num_batched_tokens as usize);
        let tokens = padded_tokens(tokens.max(bucket(sequences)));
        let samples = bucket(sequences);
        let workspace = Workspace::allocate(&context, &stream, spec, tokens, samples, samples)?;
        let widest_output = spec.layers.iter().map(|l| (2 * l.feed_forward.hidden_size).max(qkv_width(l))).max();
        let widest_output = widest_output.unwrap_or(0).max(spec.hidden_size);
        let mut matmul = Matmul::new(&context, element, tokens, spec.hidden_size, widest_output)?;
        matmul.deterministic = options.deterministic;
        matmul.fill_scratch(&stream, 0)?;
        let arena = Arena::new(limits);
        let state = Buffer::allocate(&context, arena.words() * 4, "the token and block tables")?;
        state.clear(&stream)?;
        // At most one tile of each kind more than whole ones per row.
        let tiles = tiles_bucket(tokens / TILE_QUERIES as usize + samples + 1);
        let layout = Layout { tokens, samples, tiles };
        let staged_words = layout.fixed_words() + options.step_change_words;
        let staged = Buffer::allocate(&context, staged_words * 4, "the staged step")?;
        let slots = (0..DEPTH).map(|_| StepSlot::new(staged_words, samples)).collect::<Result<Vec<_>, _>>()?;

        // Before anything that takes long: whether it can work at all.
        let weights_bytes = DeviceWeights::expected_bytes(spec);
        demand(&context, free_before, weights_bytes, sampling_bytes(spec, limits), block_bytes(spec, limits))?
            .kv_blocks(wish(limits, options))?;
        let weights = DeviceWeights::load(&context, &kernels, &stream, model, element)?;
        // Until the largest steps have shown what is left: the idle row's block alone.
        let cache = Buffer::allocate(&context, block_bytes(spec, limits), "the KV cache")?;
        cache.clear(&stream)?;
        stream.wait()?;
        let position_bytes: usize = spec.layers.iter().map(|l| l.attention.kv_heads * l.attention.head_dim * 4).sum();

        let facts = ExecutorFacts {
            executor: NAME,
            device: format!(
                "{}, {}, {}{}",
                context.name,
                matmul.library(),
                element.name(),
                if options.deterministic { ", deterministic" } else { "" }
            ),
            threads: 1,
            simd: format!("sm_{}{}", context.capability.0, context.capability.1),
            weights_bytes: weights.bytes(),
            kv_cache_bytes: 0,
            kv_bytes_per_token: position_bytes as u64,
            kv_dtype: element.name(),
            kv_blocks: 0,
            depth: DEPTH as u32,
            device_memory: None,
            graphs: Some(Arc::default()),
            step_costs: None,
        };
        let forward = Forward {
            spec: spec.clone(),
            kernels,
            weights,
            matmul,
            workspace,
            state: arena.state(state.pointer()),
            staged,
            cache,
            cache_layer_bytes: block_bytes(spec, limits) / (2 * spec.layers.len()),
            block_size: limits.block_size as usize,
            multiprocessors: context.multiprocessors as usize,
        };
        let mut executor = Self {
            graphs: HashMap::new(),
            prompt_graphs: PromptGraphs::new(options.capture_prompts_at),
            slots,
            forward,
            state,
            gather: Buffer::allocate(&context, samples * 4, "the workspace of a step")?,
            stream,
            context,
            facts,
            limits: *limits,
            arena,
            rows: (0..sequences).map(|_| None).collect(),
            modes: vec![Modes::default(); sequences],
            row_sampling: RowSampling::new(spec.vocab_size, samples, sequences),
            in_flight: VecDeque::new(),
            changes: Changes::default(),
            chosen: Vec::new(),
            sampler: Sampler::new(spec.vocab_size),
            change_words_max: options.step_change_words,
            enforce_eager: options.enforce_eager,
            deterministic: options.deterministic,
            to_capture: match options.enforce_eager {
                true => Vec::new(),
                false => decode_passes(sequences, options.deterministic),
            },
            last_pass: None,
            waits: 0,
            launch_seconds: [0.0; 4],
        };
        executor.forward.matmul.best_forced = options.greedy_without_logits;
        executor.keep_kernel_choices(options);
        executor.make_cache(free_before, options)?;
        executor.prepare_for_serving(options.prepare_at_start)?;
        Ok(executor)
    }

    /// Microseconds of device time of the last step's launches, class by class, each as a graph of its own with the launches of all
    /// layers. Classes overlap less with each other than alone, so their sum is not the whole. Spoils the state of all rows.
    pub(crate) fn profile(&mut self, tune: bool) -> Result<Vec<(&'static str, f32)>, CudaError> {
        const REPLAYS: usize = 7;
        let sustained_us: f32 = if self.last_pass.is_some_and(|pass| pass.prompts) { 4e5 } else { 1e5 };
        let Some(pass) = self.last_pass else { return Ok(Vec::new()) };
        self.context.enter()?;
        match tune {
            true if pass.is_decode() => self.choose_for_staged(&pass)?,
            true => self.forward.matmul.tune(&self.forward.kernels, &self.stream, &self.forward.products(&pass))?,
            false => {}
        }
        let (begin, end) = (Event::create()?, Event::create()?);
        let median = |launch: &mut dyn FnMut() -> Result<(), CudaError>| {
            let mut times = Vec::new();
            for _ in 0..REPLAYS {
                begin.record(&self.stream)?;
                launch()?;
                end.record(&self.stream)?;
                end.wait()?;
                times.push(end.milliseconds_since(&begin)? * 1e3);
            }
            times.sort_by(f32::total_cmp);
            Ok(times[REPLAYS / 2])
        };
        let mut classes = Vec::new();
        // The whole step, which is first, comes last: by then the clocks have settled from the prefill before it.
        for (class, name) in crate::forward::CLASSES.iter().enumerate().rev() {
            self.forward.run_class(&self.stream, &pass, class)?;
            self.stream.wait()?;
            let graph = self.stream.capture(|| self.forward.run_class(&self.stream, &pass, class))?;
            graph.launch(&self.stream)?;
            classes.push((*name, median(&mut || graph.launch(&self.stream))?));
        }
        classes.reverse();
        let eagerly = median(&mut || self.forward.run(&self.stream, &pass))?;
        classes.push(("whole step, kernel by kernel", eagerly));
        // Steps one after another, as under load: at the power limit of the card what counts is energy, and other choices win.
        let whole = self.stream.capture(|| self.forward.run(&self.stream, &pass))?;
        let count = (sustained_us / classes[0].1).ceil().clamp(1.0, 1e4);
        whole.launch(&self.stream)?;
        begin.record(&self.stream)?;
        for _ in 0..count as usize {
            whole.launch(&self.stream)?;
        }
        end.record(&self.stream)?;
        end.wait()?;
        classes.push(("whole step, without rest", end.milliseconds_since(&begin)? * 1e3 / count));
        Ok(classes)
    }

    fn start(&mut self, plan: &StepPlan) -> Result<(), CudaError> {
        let began = Instant::now();
        // One that no step in flight uses: a launch that fails leaves none behind.
        let used = |slot: &usize| self.in_flight.iter().any(|step| step.slot == *slot);
        let slot = (0..DEPTH).find(|slot| !used(slot)).expect("fewer steps than slots are in flight");
        for &row in &plan.released {
            self.rows[row.0 as usize] = None;
        }
        self.changes.clear();
        // Rows that start over bring all their tokens; what was chosen for their earlier lives is void.
        for (row, position, token) in std::mem::take(&mut self.chosen) {
            let restarted = plan.started.iter().any(|start| start.row.0 == row);
            if !restarted && position < self.limits.max_model_len {
                self.changes.set(row as usize * self.arena.max_len + position as usize, [token]);
            }
        }
        for start in &plan.started {
            self.start_row(start)?;
            if self.changes.words() > self.change_words_max {
                self.send_changes_ahead(slot)?;
            }
        }
        for &(row, block) in &plan.appended {
            let place = self.rows[row.0 as usize].as_mut().expect("a block is appended to a row that lives");
            let at = self.arena.blocks_at() + row.0 as usize * self.arena.max_blocks + place.blocks as usize;
            assert!((place.blocks as usize) < self.arena.max_blocks && block.0 < self.facts.kv_blocks);
            place.blocks += 1;
            self.changes.set(at, [block.0]);
        }
        if self.changes.words() > self.change_words_max {
            self.send_changes_ahead(slot)?;
        }
        let (pass, counts, entries) = self.stage(plan, slot);
        let results_at = self.slots[slot].results.device_address();
        let records_at = results_at + 4 * self.samples_max() as u64;
        let staged = self.slots[slot].staged.words_mut();
        let addresses = [results_at, records_at, self.row_sampling.adjusted()];
        let words = self.changes.write(&pass.layout, counts, addresses, staged);
        let staged_at = Instant::now();
        self.stream.copy_to_device(&self.forward.staged, &self.slots[slot].staged, words)?;
        let copied_at = Instant::now();
        self.run(&pass)?;
        let ran_at = Instant::now();
        let mut in_flight = InFlight::new(plan.step, slot, entries);
        if in_flight.wants_host {
            self.fetch_host_logits(slot, &in_flight.entries)?;
        }
        self.score_prompts(plan, &mut in_flight)?;
        self.slots[slot].done.record(&self.stream)?;
        self.in_flight.push_back(in_flight);
        let parts = [staged_at - began, copied_at - staged_at, ran_at - copied_at, ran_at.elapsed()];
        self.launch_seconds = parts.map(|part| part.as_secs_f64());
        Ok(())
    }

    fn start_row(&mut self, start: &RowStart) -> Result<(), CudaError> {
        let row = start.row.0;
        assert!(start.tokens.len() <= self.arena.max_len, "a row starts with more tokens than --max-model-len");
        let (prompt, generated) = start.tokens.split_at(start.prompt_len as usize);
        self.rows[row as usize] = Some(Row {
            prompt: start.tokens.clone(),
            prompt_len: start.prompt_len,
            sampling: start.sampling.clone(),
            prompt_logprobs: start.prompt_logprobs,
            blocks: 0,
            history: None,
        });
        self.changes.set(row as usize * self.arena.max_len, start.tokens.iter().copied());
        let (arena, params) = (&self.arena, &start.sampling);
        let mut modes = self.row_sampling.start(&self.context, arena, &mut self.changes, row, params, start.prompt_len);
        if modes.is_host()
            && let Some(row) = &mut self.rows[row as usize]
        {
            row.history = Some(History::counting(params.uses_history(), prompt, generated));
        }
        modes.scores_prompt = start.prompt_logprobs.is_some();
        self.modes[row as usize] = modes;
        Ok(())
    }

    /// Sends the changes so far by themselves, through a slot that no step uses, and waits: only for steps that bring more than a slot holds.
    fn send_changes_ahead(&mut self, slot: usize) -> Result<(), CudaError> {
        let layout = Layout { tokens: 0, samples: 0, tiles: 0 };
        for piece in self.changes.pieces(self.change_words_max) {
            let staged = self.slots[slot].staged.words_mut();
            let count = piece.write(&layout, Counts::default(), [0; 3], staged);
            self.stream.copy_to_device(&self.forward.staged, &self.slots[slot].staged, count)?;
            self.forward.apply_changes(&self.stream)?;
            self.stream.wait()?;
        }
        self.changes.clear();
        Ok(())
    }

    /// Writes the step's arrays. Single positions come first: the decode kernel takes them as one batch.
    fn stage(&mut self, plan: &StepPlan, slot: usize) -> (Pass, Counts, Vec<Entry>) {
        let mut tally = Tally::default();
        for work in &plan.work {
            tally.add(work.len, work.sample, self.decodes_alone(work));
        }
        let (pure_decode, (layout, counts)) = (!tally.prompts(), tally.layout());
        let staged = self.slots[slot].staged.words_mut();
        // Padding: the idle row's first position, nothing to sample.
        staged[layout.rows()..layout.positions()].fill(self.arena.idle_row());
        staged[layout.positions()..layout.modes()].fill(0);
        staged[layout.modes()..layout.sample_rows()].fill(Mode::UNUSED.0);
        staged[layout.sample_rows()..layout.tile_words()].fill(0);

        let (mut next_decode, mut next_prefill) = (0, counts.decodes);
        let (mut next_sample, mut draws, mut extras, mut far, mut keeps_all) = (0, false, false, false, false);
        let mut flash: Vec<[u32; 4]> = Vec::with_capacity(counts.tiles);
        let mut entries = Vec::with_capacity(plan.work.len());
        for work in &plan.work {
            let alone = work.len == 1 && !self.deterministic;
            far |= alone && work.start >= FAR_POSITIONS;
            keeps_all |= !pure_decode && self.modes[work.row.0 as usize].scores_prompt;
            let first = if alone { &mut next_decode } else { &mut next_prefill };
            let begin = *first;
            *first += work.len as usize;
            for i in 0..work.len {
                staged[layout.rows() + begin + i as usize] = work.row.0;
                staged[layout.positions() + begin + i as usize] = work.start + i;
            }
            if !alone {
                flash.extend((0..work.len).step_by(TILE_QUERIES as usize).map(|done| {
                    let queries = TILE_QUERIES.min(work.len - done);
                    [work.row.0, begin as u32 + done, work.start + done, queries]
                }));
            }
            let last = work.start + work.len - 1;
            let sample = work.sample.then(|| {
                // In a pure decode every position has its logits, so that the graph depends on nothing but their number.
                let index = if pure_decode { begin } else { next_sample };
                next_sample += 1;
                let mode = self.modes[work.row.0 as usize].take(last);
                draws |= mode.draws();
                extras |= mode.is_extra();
                staged[layout.modes() + index] = mode.0;
                staged[layout.sample_rows() + index] = work.row.0;
                staged[layout.sample_positions() + index] = last;
                staged[layout.sample_tokens() + index] = (begin + work.len as usize - 1) as u32;
                (index, mode)
            });
            entries.push(Entry::new(work.row, last, sample));
        }
        // Longest first, so that the last blocks to finish are short ones.
        flash.sort_unstable_by_key(|tile| std::cmp::Reverse(tile[2] + tile[3]));
        // Padding of a decode by tiles: each padded position is its own.
        flash.extend((flash.len()..counts.tiles).map(|token| [self.arena.idle_row(), token as u32, 0, 1]));
        for (place, tile) in staged[layout.tile_words()..].chunks_exact_mut(4).zip(&flash) {
            place.copy_from_slice(tile);
        }
        let pass = Pass {
            layout,
            decodes: room(counts.decodes),
            prompts: tally.prompts(),
            far,
            draws: draws || extras,
            extras,
            keeps_all,
        };
        (pass, counts, entries)
    }

    /// Whether the decode kernel computes this, and not the one for many queries.
    fn decodes_alone(&self, work: &RowWork) -> bool {
        work.len == 1 && !self.deterministic
    }

    /// Samples there is room for.
    fn samples_max(&self) -> usize {
        self.gather.bytes() / 4
    }
}

impl Executor for CudaExecutor {
    fn facts(&self) -> &ExecutorFacts {
        &self.facts
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        assert!(self.in_flight.len() < DEPTH, "more steps launched than the executor holds");
        let resolved = self.context.enter().and_then(|()| self.resolve_waiting());
        let unsent = self.chosen.clone();
        resolved.and_then(|()| self.start(plan)).map_err(|error| {
            // Rows that this step does not hold live on, and their tokens still have to reach the device.
            self.chosen = unsent;
            self.chosen.retain(|(row, ..)| !plan.work.iter().any(|work| work.row.0 == *row));
            self.judge(plan.step, error)
        })
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        let step = self.in_flight.front().map(|step| step.step).expect("a step is in flight");
        let resolved = self.context.enter().and_then(|()| self.resolve(0));
        let done = self.in_flight.pop_front().expect("checked above");
        resolved.map_err(|error| self.judge(step, error))?;
        let results = self.slots[done.slot].results.words();
        Ok(StepResult { step, rows: done.outputs(results, self.samples_max()) })
    }

    fn preparations(&self) -> usize {
        self.to_capture.len()
    }

    fn prepare(&mut self) -> Result<(), ExecutorLost> {
        if !self.in_flight.is_empty() {
            return Ok(());
        }
        match self.prepare_next() {
            Ok(()) => {
                self.tell_of_graphs();
                Ok(())
            }
            Err(error) => match self.lost(&error) {
                Some(lost) => Err(lost),
                None => {
                    // The step that needs it will meet the same error, and report it.
                    self.to_capture.clear();
                    Ok(())
                }
            },
        }
    }
}

impl StepSlot {
    fn new(staged_words: usize, samples: usize) -> Result<Self, CudaError> {
        Ok(Self {
            staged: Pinned::allocate(staged_words)?,
            results: Pinned::allocate(samples * (1 + RECORD_WORDS))?,
            logits: Pinned::allocate(0)?,
            done: Event::untimed()?,
        })
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        // Nothing may be freed under a running step; an error here has been or will be seen elsewhere.
        let _ = self.context.enter();
        let _ = self.stream.wait();
    }
}
