//! The choice of the step's tokens: which kernels of sample.cu run on which buffers.

use crate::{
    CudaError,
    driver::{Buffer, Context, DevicePointer, Stream},
    kernels::{Kernels, State, launch, shape},
    staging::Layout,
};

/// Blocks of the kernels that split rows.
const SPLIT_BLOCKS: usize = 264;
const SPLITS_MAX: usize = 32;

/// Scratch memory of the choice, a place for each of the step's samples.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// `[samples, vocabulary]` in f32.
    pub(crate) logits: Buffer,
    /// The highest logit and its token, as one number (best.cuh); zero between steps.
    best: Buffer,
    arrivals: Buffer,
    highest: Buffer,
    /// The likeliest token, then the chosen one.
    chosen: Buffer,
    vocab_size: usize,
}

/// What to choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Samples {
    pub(crate) state: State,
    /// The staged step.
    pub(crate) staged: DevicePointer,
    pub(crate) layout: Layout,
    /// Whether some row draws.
    pub(crate) draws: bool,
    /// Whether some row has its logits changed or reports log-probabilities.
    pub(crate) extras: bool,
}

impl Chooser {
    pub(crate) fn allocate(
        context: &Context,
        stream: &Stream,
        samples: usize,
        vocab_size: usize,
    ) -> Result<Self, CudaError> {
        let buffer = |bytes: usize| {
            let buffer = Buffer::allocate(context, bytes, "the workspace of a step")?;
            buffer.clear(stream).map(|()| buffer)
        };
        Ok(Self {
            logits: buffer(samples * vocab_size * 4)?,
            best: buffer(samples * 8)?,
            arrivals: buffer(samples * 4)?,
            highest: buffer(samples * 4)?,
            chosen: buffer(samples * 4)?,
            vocab_size,
        })
    }

    /// Where best.cu puts the highest logit and its token of each sample.
    pub(crate) fn best(&self) -> DevicePointer {
        self.best.pointer()
    }

    /// As between steps.
    pub(crate) fn forget_best(&self, stream: &Stream) -> Result<(), CudaError> {
        self.best.clear(stream)
    }

    /// Delivers what best.cu found.
    pub(crate) fn deliver_best(&self, kernels: &Kernels, stream: &Stream, samples: &Samples) -> Result<(), CudaError> {
        const THREADS: u32 = 128;
        let Samples { state, staged: header, layout, .. } = *samples;
        let staged_at = |word: usize| header + word as u64 * 4;
        let (modes, rows) = (staged_at(layout.modes()), staged_at(layout.sample_rows()));
        let positions = staged_at(layout.sample_positions());
        let (best, count) = (self.best.pointer(), layout.samples as i32);
        let shape = shape(((layout.samples as u32).div_ceil(THREADS), 1, 1), THREADS);
        launch!(stream, kernels.deliver_best, shape, state, header, modes, rows, positions, best, count)
    }

    pub(crate) fn run(&self, kernels: &Kernels, stream: &Stream, samples: &Samples) -> Result<(), CudaError> {
        let Samples { state, staged: header, layout, draws, extras } = *samples;
        let staged_at = |word: usize| header + word as u64 * 4;
        let (modes, rows) = (staged_at(layout.modes()), staged_at(layout.sample_rows()));
        let positions = staged_at(layout.sample_positions());
        let (logits, best, arrivals) = (self.logits.pointer(), self.best.pointer(), self.arrivals.pointer());
        let (highest, chosen) = (self.highest.pointer(), self.chosen.pointer());
        let vocab = self.vocab_size as i32;
        let count = layout.samples as u32;
        let splits = SPLIT_BLOCKS.div_ceil(layout.samples).clamp(1, SPLITS_MAX) as u32;
        let split = shape((splits, count, 1), 256);
        let whole = shape((count, 1, 1), 1024);
        if extras {
            launch!(stream, kernels.adjust_logits, split, state, header, modes, rows, positions, logits, vocab)?;
        }
        launch!(
            stream,
            kernels.choose_greedy,
            split,
            state,
            header,
            modes,
            rows,
            positions,
            logits,
            best,
            arrivals,
            highest,
            chosen,
            vocab
        )?;
        if draws {
            launch!(
                stream,
                kernels.choose_drawn,
                whole,
                state,
                header,
                modes,
                rows,
                positions,
                logits,
                highest,
                chosen,
                vocab
            )?;
        }
        if extras {
            launch!(stream, kernels.score_chosen, whole, header, modes, logits, chosen, vocab)?;
        }
        Ok(())
    }
}
