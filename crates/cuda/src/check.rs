//! Every way a product is computed, against f64 on the CPU, on the device at hand.
//!
//! Attention and sampling are checked through the executor, by `examples/cuda_check.rs`.

mod sampling;
pub use sampling::{SamplingFindings, sampling};

use crate::{
    CudaError, CudaOptions, Element,
    driver::{Buffer, Context, Stream},
    even::EVEN_ROWS,
    executor::CudaExecutor,
    kernels::{GATED_WIDTHS, Kernels, fill_random},
    matmul::{Matmul, Way, time},
    product::{Matrix, Norm, Output, Product},
};
use powertrain_model::Model;
use powertrain_step::{BlockId, Executor, ExecutorFacts, StepError, StepLimits, StepPlan, StepResult};

mod best;
mod skinny;

pub use best::best;
pub use skinny::{Timed, skinny, skinny_times};

/// Device time of the last of some steps by class of kernel: pairs of name and microseconds per step.
///
/// `tune` times what can compute the products first.
#[derive(Debug)]
pub struct Profiler(CudaExecutor);

impl Profiler {
    /// Loads a model as [`load`](crate::load) does.
    ///
    /// # Errors
    /// As there.
    pub fn load(model: &Model, limits: &StepLimits, options: &CudaOptions) -> Result<Self, CudaError> {
        CudaExecutor::load(model, limits, options).map(Self)
    }

    /// The executor.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut self.0
    }

    /// Launches that waited for a row the host samples.
    pub fn waits(&self) -> u64 {
        self.0.waits
    }

    /// Seconds of the last launch: staging, copy, kernels, the rest.
    pub fn launch_seconds(&self) -> [f64; 4] {
        self.0.launch_seconds
    }

    /// Makes all of the first layer's key at `offset` of a block of KV cache NaN. No step may be in flight.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn damage_key(&mut self, block: BlockId, offset: u32) -> Result<(), CudaError> {
        self.0.damage_key(block, offset)
    }

    /// Runs steps one after another, then profiles the last.
    ///
    /// # Errors
    /// When a step or a launch fails.
    pub fn profile(&mut self, plans: &[StepPlan], tune: bool) -> Result<Vec<(&'static str, f32)>, CudaError> {
        for plan in plans {
            let result = self.0.launch(plan).and_then(|()| self.0.collect());
            result.map_err(|error| CudaError::Call { call: "step", reason: error.to_string() })?;
        }
        self.0.profile(tune)
    }
}

/// A fault that really happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// The device's memory is filled to the last 2 MiB: no graph can be captured any more.
    Exhaust,
    /// The KV cache is given back under the next step, which reads and writes it all the same.
    FreeCache,
    /// The stream waits for a value that nobody writes.
    Hang,
}

/// An executor that spoils itself before one of its steps.
#[derive(Debug)]
pub struct Spoiled {
    inner: CudaExecutor,
    step: u64,
    how: Spoil,
}

impl Spoiled {
    /// Loads a model as [`load`](crate::load) does, to be spoilt before step `step`.
    ///
    /// # Errors
    /// As there.
    pub fn load(
        model: &Model,
        limits: &StepLimits,
        options: &CudaOptions,
        step: u64,
        how: Spoil,
    ) -> Result<Self, CudaError> {
        CudaExecutor::load(model, limits, options).map(|inner| Self { inner, step, how })
    }
}

impl Executor for Spoiled {
    fn facts(&self) -> &ExecutorFacts {
        self.inner.facts()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        if plan.step == self.step {
            let reason = |error: CudaError| format!("could not be spoilt: {error}");
            let failed = |error| StepError::Failed { step: plan.step, executor: "cuda", reason: reason(error) };
            self.inner.spoil(self.how).map_err(failed)?;
        }
        self.inner.launch(plan)
    }

    fn collect(&mut self) -> Result<StepResult, StepError> {
        self.inner.collect()
    }
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was compared.
    pub case: String,
    /// `|out - reference| / |reference|` over all elements.
    pub relative_error: f64,
    /// What it may be at most.
    pub allowed: f64,
}

impl Finding {
    /// Whether it is within bounds; NaN is not.
    pub fn passes(&self) -> bool {
        self.relative_error <= self.allowed
    }
}

/// What a product may be off by at most, as a share of its size: its result is rounded to 8 bits, or to 11.
fn tolerance(element: Element) -> f64 {
    match element {
        Element::Bf16 => 6e-3,
        Element::F16 => 1e-3,
    }
}

fn widen(element: Element) -> impl Fn(u16) -> f64 {
    move |bits| f64::from(element.value(bits))
}

/// Computes products of many shapes in every mode, with and without cuBLASLt.
///
/// # Errors
/// When the device cannot be used.
pub fn products(element: Element) -> Result<Vec<Finding>, CudaError> {
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let rows_max = 144;
    let matmul = Matmul::new(&context, element, rows_max, 16384, 8192)?;
    let alone = Matmul::without_library(&context, element, rows_max, 16384, 8192)?;
    let mut findings = Vec::new();
    for (n, k) in [(48, 48), (96, 32), (104, 72), (256, 512), (960, 576), (576, 1536), (272, 8960), (4096, 1024)] {
        let matrix = Matrix { buffer: Buffer::allocate(&context, n * k * 2, "check")?, rows: n, columns: k };
        let half_width = (3.0 / k as f32).sqrt();
        fill_random(&kernels, &stream, matrix.buffer.pointer(), (n * k) as u64, half_width, 7)?;
        let x = Buffer::allocate(&context, rows_max * k * 2, "check")?;
        fill_random(&kernels, &stream, x.pointer(), (rows_max * k) as u64, 2.0, 11)?;
        stream.wait()?;
        let norm_weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 7) as f32 * 0.2).collect();
        let bias: Vec<f32> = (0..n).map(|i| (i % 5) as f32 * 0.3 - 0.6).collect();
        let (norm_buffer, bias_buffer) =
            (Buffer::of(&context, &norm_weight, "check")?, Buffer::of(&context, &bias, "check")?);
        let out = Buffer::allocate(&context, rows_max * n * 4, "check")?;
        let shape = Shape {
            weights: matrix.buffer.read::<u16>(0, n * k)?.into_iter().map(widen(element)).collect(),
            x: x.read::<u16>(0, rows_max * k)?.into_iter().map(widen(element)).collect(),
            norm_weight: &norm_weight,
            bias: &bias,
            n,
            k,
        };
        let picked: Vec<u32> = (0..rows_max as u32).map(|i| (i * 5 + 3) % rows_max as u32).collect();
        let picked_buffer = Buffer::of(&context, &picked, "check")?;
        for m in [1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 130] {
            let modes = [
                (Output::Store, false, false, false),
                (Output::Store, true, true, false),
                (Output::Store, true, true, true),
                (Output::Gated { gelu: false }, true, false, true),
                (Output::Residual, false, true, false),
                (Output::Gated { gelu: false }, true, false, false),
                (Output::Gated { gelu: true }, false, false, false),
                (Output::Logits, true, false, true),
                (Output::Logits, true, false, false),
            ];
            for (output, norm, with_bias, pick) in modes {
                if matches!(output, Output::Gated { .. }) && (n % 16 != 0 || with_bias) {
                    continue;
                }
                for (name, matmul) in [("", &matmul), (" (no cuBLASLt)", &alone)] {
                    if n * k > 1 << 20 && m > 40 && name.is_empty() {
                        continue;
                    }
                    let poison = vec![element.bits(0.75); rows_max * n * 2];
                    out.write(0, &poison)?;
                    matmul.fill_scratch(&stream, 0xff)?;
                    let product = Product {
                        matrix: &matrix,
                        x: x.pointer(),
                        x_rows: if pick { picked_buffer.pointer() } else { 0 },
                        // Picked rows try the norm whose weights are in the matrix: they are 1.
                        norm: norm.then_some(Norm {
                            weight: if pick && output != Output::Logits { 0 } else { norm_buffer.pointer() },
                            epsilon: 1e-5,
                        }),
                        bias: if with_bias { bias_buffer.pointer() } else { 0 },
                        out: out.pointer(),
                        output,
                        softcap: if output == Output::Logits && k == 72 { 3.0 } else { 0.0 },
                        m,
                    };
                    matmul.run(&kernels, &stream, &product)?;
                    stream.wait()?;
                    let want = shape.reference(&product, norm, with_bias, if pick { Some(&picked) } else { None });
                    let got: Vec<f64> = match output {
                        Output::Logits => out.read::<f32>(0, want.len())?.into_iter().map(f64::from).collect(),
                        _ => out.read::<u16>(0, want.len())?.into_iter().map(widen(element)).collect(),
                    };
                    let difference: f64 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
                    let size: f64 = want.iter().map(|b| b.powi(2)).sum();
                    findings.push(Finding {
                        case: format!("{output:?} norm {norm} bias {with_bias} m {m} n {n} k {k}{name}"),
                        relative_error: (difference / size).sqrt(),
                        allowed: tolerance(element),
                    });
                }
            }
        }
    }
    Ok(findings)
}

/// What becomes of sums of 128,000: in f16, which ends at 65,504, all kernels must store NaN, that the row be refused; bf16 holds them.
///
/// # Errors
/// When the device cannot be used.
pub fn overflow(element: Element) -> Result<Vec<Finding>, CudaError> {
    const N: usize = 256;
    const K: usize = 128;
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let rows_max = 300;
    let mut matmul = Matmul::without_library(&context, element, rows_max, K, N)?;
    let matrix = Matrix { buffer: Buffer::of(&context, &[element.bits(1.0); N * K], "check")?, rows: N, columns: K };
    let x = Buffer::of(&context, &vec![element.bits(1000.0); rows_max * K], "check")?;
    let mut findings = Vec::new();
    for (m, forced) in [(1, None), (12, None), (40, None), (40, Some(Way::Even)), (300, Some(Way::Fused))] {
        for output in [Output::Store, Output::Residual, Output::Gated { gelu: false }] {
            if forced.is_some() && !matches!(output, Output::Gated { .. }) {
                continue;
            }
            matmul.forced = forced;
            let out = Buffer::of(&context, &vec![element.bits(0.75); rows_max * N], "check")?;
            let product = Product {
                matrix: &matrix,
                x: x.pointer(),
                x_rows: 0,
                norm: None,
                bias: 0,
                out: out.pointer(),
                output,
                softcap: 0.0,
                m,
            };
            matmul.run(&kernels, &stream, &product)?;
            stream.wait()?;
            let width = if matches!(output, Output::Gated { .. }) { N / 2 } else { N };
            let stored = out.read::<u16>(0, m * width)?;
            let right = |&bits: &u16| match element {
                Element::F16 => element.value(bits).is_nan(),
                Element::Bf16 => element.value(bits) > 120_000.0 && element.value(bits).is_finite(),
            };
            let wrong = stored.iter().filter(|bits| !right(bits)).count();
            let case = format!(
                "{output:?} {forced:?} m {m}: sums of 128,000, {wrong} of {} not as they must be",
                stored.len()
            );
            findings.push(Finding { case, relative_error: wrong as f64, allowed: 0.0 });
        }
    }
    Ok(findings)
}

/// Gate and up of many rows by the kernel that fuses the activation, against f64.
///
/// # Errors
/// When the device cannot be used.
pub fn gated(element: Element) -> Result<Vec<Finding>, CudaError> {
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let rows_max = 1100;
    let mut matmul = Matmul::new(&context, element, rows_max, 2048, 4096)?;
    let mut findings = Vec::new();
    let sizes = [1, 17, 64, 65, 100, 127, 128, 129, 256, 300, 640, 1100];
    let few = sizes.into_iter().filter(|&m| m <= EVEN_ROWS).map(|m| (m, Way::Even, None));
    let fused = sizes.into_iter().flat_map(|m| (0..GATED_WIDTHS.len()).map(move |which| (m, Way::Fused, Some(which))));
    let cases: Vec<_> = fused.chain(few).collect();
    // 17,936: whole tiles, then halves or quarters. The last two: tiles of 224 rows of weights, and three rounds of those of 144, for few rows of x.
    for (n, k) in
        [(16, 64), (256, 64), (272, 72), (528, 200), (1040, 1536), (3072, 576), (17936, 72), (28_688, 72), (38_032, 16)]
    {
        let matrix = Matrix { buffer: Buffer::allocate(&context, n * k * 2, "check")?, rows: n, columns: k };
        fill_random(&kernels, &stream, matrix.buffer.pointer(), (n * k) as u64, (3.0 / k as f32).sqrt(), 7)?;
        let x = Buffer::allocate(&context, rows_max * k * 2, "check")?;
        fill_random(&kernels, &stream, x.pointer(), (rows_max * k) as u64, 2.0, 11)?;
        stream.wait()?;
        let out = Buffer::allocate(&context, rows_max * n, "check")?;
        let shape = Shape {
            weights: matrix.buffer.read::<u16>(0, n * k)?.into_iter().map(widen(element)).collect(),
            x: x.read::<u16>(0, rows_max * k)?.into_iter().map(widen(element)).collect(),
            norm_weight: &vec![1.0; k],
            bias: &[],
            n,
            k,
        };
        for (m, way, width) in cases.iter().copied().filter(|&(m, ..)| n < 20_000 || m <= EVEN_ROWS) {
            matmul.forced = Some(way);
            matmul.gated_width = width;
            for (norm, gelu) in [(false, false), (true, true)] {
                out.write(0, &vec![element.bits(0.75); rows_max * n / 2])?;
                matmul.fill_scratch(&stream, 0xff)?;
                let product = Product {
                    matrix: &matrix,
                    x: x.pointer(),
                    x_rows: 0,
                    norm: norm.then_some(Norm { weight: 0, epsilon: 1e-5 }),
                    bias: 0,
                    out: out.pointer(),
                    output: Output::Gated { gelu },
                    softcap: 0.0,
                    m,
                };
                matmul.run(&kernels, &stream, &product)?;
                stream.wait()?;
                let want = shape.reference(&product, norm, false, None);
                let got = out.read::<u16>(0, rows_max * n / 2)?;
                let (got, past) = got.split_at(want.len());
                let difference: f64 = got.iter().zip(&want).map(|(&a, b)| (widen(element)(a) - b).powi(2)).sum();
                let size: f64 = want.iter().map(|b| b.powi(2)).sum();
                let spoiled = past.iter().any(|&bits| bits != element.bits(0.75));
                findings.push(Finding {
                    case: format!(
                        "gated {way:?} {width:?} gelu {gelu} norm {norm} m {m} n {n} k {k}, written past the end: {spoiled}"
                    ),
                    relative_error: if spoiled { f64::INFINITY } else { (difference / size).sqrt() },
                    allowed: tolerance(element),
                });
            }
        }
    }
    Ok(findings)
}

/// Microseconds of gate and up of `m` rows with `n` rows of weights and `k` columns: by cuBLASLt and the activation kernel, by the kernel
/// that fuses both, and by that with tiles of 256, 224 and 192 rows of weights; each the fastest of five graphs of eight, cuBLASLt tuned.
///
/// # Errors
/// When the device cannot be used.
pub fn gated_times(element: Element, m: usize, n: usize, k: usize) -> Result<[f32; 5], CudaError> {
    const COPIES: usize = 3;
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let mut matmul = Matmul::new(&context, element, m, k, n)?;
    let mut matrices = Vec::new();
    for seed in 0..COPIES as u32 {
        let matrix = Matrix { buffer: Buffer::allocate(&context, n * k * 2, "check")?, rows: n, columns: k };
        fill_random(&kernels, &stream, matrix.buffer.pointer(), (n * k) as u64, (3.0 / k as f32).sqrt(), seed)?;
        matrices.push(matrix);
    }
    let x = Buffer::allocate(&context, m * k * 2, "check")?;
    fill_random(&kernels, &stream, x.pointer(), (m * k) as u64, 2.0, 11)?;
    let out = Buffer::allocate(&context, m * n, "check")?;
    stream.wait()?;
    let products: Vec<_> = matrices
        .iter()
        .map(|matrix| Product {
            matrix,
            x: x.pointer(),
            x_rows: 0,
            norm: None,
            bias: 0,
            out: out.pointer(),
            output: Output::Gated { gelu: false },
            softcap: 0.0,
            m,
        })
        .collect();
    let each: Vec<_> = products.iter().collect();
    let mut times = [0.0; 5];
    matmul.tune(&kernels, &stream, &products)?;
    let widths = (0..GATED_WIDTHS.len()).map(|which| (Way::Fused, Some(which)));
    for (slot, (way, width)) in
        times.iter_mut().zip([(Way::Library, None), (Way::Fused, None)].into_iter().chain(widths))
    {
        matmul.forced = Some(way);
        matmul.gated_width = width;
        *slot = time(&stream, &each, |p| matmul.run(&kernels, &stream, p))? * 1e3 / 8.0;
    }
    Ok(times)
}

struct Shape<'a> {
    weights: Vec<f64>,
    x: Vec<f64>,
    norm_weight: &'a [f32],
    bias: &'a [f32],
    n: usize,
    k: usize,
}

impl Shape<'_> {
    fn reference(&self, product: &Product<'_>, norm: bool, with_bias: bool, picked: Option<&[u32]>) -> Vec<f64> {
        let mut rows = vec![Vec::new(); product.m];
        let each = product.m.div_ceil(std::thread::available_parallelism().map_or(1, usize::from)).max(1);
        std::thread::scope(|scope| {
            for (part, rows) in rows.chunks_mut(each).enumerate() {
                scope.spawn(move || {
                    for (at, to) in rows.iter_mut().enumerate() {
                        *to = self.row(product, part * each + at, norm, with_bias, picked);
                    }
                });
            }
        });
        rows.concat()
    }

    /// What row `m` should give.
    fn row(&self, product: &Product<'_>, m: usize, norm: bool, with_bias: bool, picked: Option<&[u32]>) -> Vec<f64> {
        let row = picked.map_or(m, |picked| picked[m] as usize);
        let mut x = self.x[row * self.k..(row + 1) * self.k].to_vec();
        if norm {
            let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / self.k as f64 + 1e-5).sqrt();
            x.iter_mut().zip(self.norm_weight).for_each(|(x, &w)| {
                let folded = product.norm.is_some_and(|norm| norm.weight == 0);
                *x *= scale * if folded { 1.0 } else { f64::from(w) };
            });
        }
        let dot = |n: usize| -> f64 {
            let weights = &self.weights[n * self.k..(n + 1) * self.k];
            let sum: f64 = weights.iter().zip(&x).map(|(w, x)| w * x).sum();
            sum + if with_bias { f64::from(self.bias[n]) } else { 0.0 }
        };
        match product.output {
            Output::Store => (0..self.n).map(dot).collect(),
            Output::Residual => (0..self.n).map(|n| 0.75 + dot(n)).collect(),
            Output::Logits if product.softcap > 0.0 => {
                let cap = f64::from(product.softcap);
                (0..self.n).map(|n| cap * (dot(n) / cap).tanh()).collect()
            }
            Output::Logits => (0..self.n).map(dot).collect(),
            Output::Gated { gelu } => (0..self.n / 2)
                .map(|i| {
                    let at = i / 8 * 16 + i % 8;
                    let (gate, up) = (dot(at), dot(at + 8));
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                    up * if gelu { 0.5 * gate * (1.0 + inner.tanh()) } else { gate / (1.0 + (-gate).exp()) }
                })
                .collect(),
        }
    }
}
