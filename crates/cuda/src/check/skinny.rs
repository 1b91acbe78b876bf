//! skinny.cu against f64, and its times beside cuBLASLt's.

use super::{Finding, tolerance, widen};
use crate::{
    CudaError, Element,
    driver::{Buffer, Context, DevicePointer, Stream},
    kernels::{Kernels, fill_random},
    matmul::{Matmul, Way, time},
    product::{Matrix, Norm, Output, Product},
    skinny::Tiling,
};

/// Rows of x in a comparison: all that skinny.cu takes, and what stands past the end.
const ROWS: usize = 136;
const SIZES: [usize; 23] = [1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 100, 111, 127, 128];

/// What a product does beside multiplying.
#[derive(Clone, Copy)]
struct Mode {
    output: Output,
    norm: bool,
    bias: bool,
    softcap: f32,
}

/// A matrix, rows and vectors on the device, and all dot products of rows and matrix in f64.
struct Case {
    matrix: Matrix,
    x: Buffer,
    bias: Buffer,
    bias_values: Vec<f32>,
    dots: Vec<f64>,
    /// The norm's factor of each row.
    factors: Vec<f64>,
}

impl Case {
    fn new(
        context: &Context,
        kernels: &Kernels,
        stream: &Stream,
        element: Element,
        n: usize,
        k: usize,
    ) -> Result<Self, CudaError> {
        let matrix = Matrix { buffer: Buffer::allocate(context, n * k * 2, "check")?, rows: n, columns: k };
        let seed = (n * 31 + k) as u32;
        fill_random(kernels, stream, matrix.buffer.pointer(), (n * k) as u64, (3.0 / k as f32).sqrt(), seed)?;
        let x = Buffer::allocate(context, ROWS * k * 2, "check")?;
        fill_random(kernels, stream, x.pointer(), (ROWS * k) as u64, 2.0, seed + 1)?;
        stream.wait()?;
        let bias_values: Vec<f32> = (0..n).map(|i| (i % 5) as f32 * 0.3 - 0.6).collect();
        let weights: Vec<f64> = matrix.buffer.read::<u16>(0, n * k)?.into_iter().map(widen(element)).collect();
        let rows: Vec<f64> = x.read::<u16>(0, ROWS * k)?.into_iter().map(widen(element)).collect();
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let mut dots = vec![0.0; ROWS * n];
        std::thread::scope(|scope| {
            for (row, dots) in rows.chunks(k).zip(dots.chunks_mut(n)) {
                let weights = &weights;
                scope.spawn(move || {
                    weights.chunks(k).zip(dots).for_each(|(weights, to)| *to = dot(weights, row));
                });
            }
        });
        let factors = rows.chunks(k).map(|row| 1.0 / (dot(row, row) / k as f64 + 1e-5).sqrt()).collect();
        let bias = Buffer::of(context, &bias_values, "check")?;
        Ok(Self { matrix, x, bias, bias_values, dots, factors })
    }

    fn product(&self, mode: Mode, out: DevicePointer, m: usize) -> Product<'_> {
        Product {
            matrix: &self.matrix,
            x: self.x.pointer(),
            x_rows: 0,
            norm: mode.norm.then_some(Norm { weight: 0, epsilon: 1e-5 }),
            bias: if mode.bias { self.bias.pointer() } else { 0 },
            out,
            output: mode.output,
            softcap: mode.softcap,
            m,
        }
    }

    /// What `m` rows should give where 0.75 stood; without the norm's factor where it is left to the reader.
    fn reference(&self, mode: Mode, m: usize, leaves_norm: bool) -> Vec<f64> {
        let n = self.matrix.rows;
        let dot = |row: usize, i: usize| {
            let factor = if mode.norm && !leaves_norm { self.factors[row] } else { 1.0 };
            self.dots[row * n + i] * factor + if mode.bias { f64::from(self.bias_values[i]) } else { 0.0 }
        };
        let columns = if matches!(mode.output, Output::Gated { .. }) { n / 2 } else { n };
        let value = |row: usize, i: usize| match mode.output {
            Output::Store => dot(row, i),
            Output::Residual => 0.75 + dot(row, i),
            Output::Logits if mode.softcap > 0.0 => {
                let cap = f64::from(mode.softcap);
                cap * (dot(row, i) / cap).tanh()
            }
            Output::Logits => dot(row, i),
            Output::Gated { gelu } => {
                let (gate, up) = (dot(row, i / 8 * 16 + i % 8), dot(row, i / 8 * 16 + i % 8 + 8));
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                up * if gelu { 0.5 * gate * (1.0 + inner.tanh()) } else { gate / (1.0 + (-gate).exp()) }
            }
        };
        (0..m).flat_map(|row| (0..columns).map(move |i| (row, i))).map(|(row, i)| value(row, i)).collect()
    }
}

/// Products of 1 to 128 rows by skinny.cu, divided in every way, against f64; each twice, which must give the same bits, and with
/// nothing written past the end.
///
/// # Errors
/// When the device cannot be used.
pub fn skinny(element: Element) -> Result<Vec<Finding>, CudaError> {
    let plain = Mode { output: Output::Store, norm: false, bias: false, softcap: 0.0 };
    let modes = [
        plain,
        Mode { norm: true, bias: true, ..plain },
        Mode { output: Output::Residual, bias: true, ..plain },
        Mode { output: Output::Gated { gelu: false }, norm: true, ..plain },
        Mode { output: Output::Gated { gelu: true }, ..plain },
        Mode { output: Output::Logits, norm: true, softcap: 3.0, ..plain },
        Mode { output: Output::Logits, ..plain },
    ];
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let mut matmul = Matmul::without_library(&context, element, ROWS, 16384, 8192)?;
    let mut findings = Vec::new();
    for (n, k) in
        [(16, 8), (48, 48), (100, 72), (208, 520), (960, 576), (576, 1536), (272, 8960), (1536, 200), (4096, 1024)]
    {
        let case = Case::new(&context, &kernels, &stream, element, n, k)?;
        let out = Buffer::allocate(&context, ROWS * n * 4, "check")?;
        let steps = k.div_ceil(64);
        let tilings = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (2, 4), (1, 8), (2, 8)]
            .map(|(groups, splits)| Tiling { groups, splits: splits.min(1 << steps.ilog2()) });
        let mut turn = 0;
        for m in SIZES {
            for tiling in tilings {
                turn += 1;
                // Two modes a tiling, others for the next.
                for mode in [modes[turn % modes.len()], modes[(turn * 3 + m) % modes.len()]] {
                    if matches!(mode.output, Output::Gated { .. }) && n % 16 != 0 {
                        continue;
                    }
                    matmul.forced = Some(Way::Skinny(tiling));
                    let relative_error = compare(&matmul, &kernels, &stream, &case, mode, m, &out)?;
                    findings.push(Finding {
                        case: format!(
                            "skinny {tiling:?} {:?} norm {} bias {} m {m} n {n} k {k}",
                            mode.output, mode.norm, mode.bias
                        ),
                        relative_error,
                        allowed: tolerance(element),
                    });
                }
            }
        }
    }
    Ok(findings)
}

/// The relative error of a product; infinite when two runs differ, or when something is written past its end.
fn compare(
    matmul: &Matmul,
    kernels: &Kernels,
    stream: &Stream,
    case: &Case,
    mode: Mode,
    m: usize,
    out: &Buffer,
) -> Result<f64, CudaError> {
    let element = matmul.element;
    let product = case.product(mode, out.pointer(), m);
    let want = case.reference(mode, m, matmul.leaves_norm(&product));
    let (poison, words) = (element.bits(0.75), out.bytes() / 2);
    let run = || -> Result<Vec<u16>, CudaError> {
        out.write(0, &vec![poison; words])?;
        matmul.fill_scratch(stream, 0xff)?;
        matmul.run(kernels, stream, &product)?;
        stream.wait()?;
        out.read::<u16>(0, words)
    };
    let (first, second) = (run()?, run()?);
    let width = if mode.output == Output::Logits { 2 } else { 1 };
    let (written, past) = first.split_at(want.len() * width);
    if first != second || past.iter().any(|&bits| bits != poison) {
        return Ok(f64::INFINITY);
    }
    let got: Vec<f64> = match mode.output {
        Output::Logits => {
            let pairs = written.chunks_exact(2);
            pairs.map(|pair| f64::from(f32::from_bits(u32::from(pair[0]) | u32::from(pair[1]) << 16))).collect()
        }
        _ => written.iter().copied().map(widen(element)).collect(),
    };
    let difference: f64 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|b| b.powi(2)).sum();
    Ok((difference / size).sqrt())
}

/// What to time: gate and up with the activation, logits, or a sum with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// With a norm in front.
    Gated,
    /// With nothing in front.
    Logits,
    /// Likewise.
    Residual,
}

/// Microseconds of products of `m` rows with `n` rows of weights and `k` columns in a chain, each the fastest of five graphs: cuBLASLt tuned
/// and the kernels around it, the weight-streaming kernel where it takes them, then skinny.cu divided in each way that tuning tries.
///
/// # Errors
/// When the device cannot be used.
pub fn skinny_times(
    element: Element,
    m: usize,
    n: usize,
    k: usize,
    timed: Timed,
) -> Result<Vec<(String, f32)>, CudaError> {
    /// More than the cache holds.
    const BYTES: usize = 400 << 20;
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let mut matmul = Matmul::new(&context, element, m, k, n)?;
    matmul.skinny = false;
    let copies = (BYTES / (n * k * 2)).clamp(2, 32);
    let mut matrices = Vec::new();
    for seed in 0..copies as u32 {
        let matrix = Matrix { buffer: Buffer::allocate(&context, n * k * 2, "check")?, rows: n, columns: k };
        fill_random(&kernels, &stream, matrix.buffer.pointer(), (n * k) as u64, (3.0 / k as f32).sqrt(), seed)?;
        matrices.push(matrix);
    }
    let x = Buffer::allocate(&context, m * k * 2, "check")?;
    fill_random(&kernels, &stream, x.pointer(), (m * k) as u64, 2.0, 11)?;
    let out = Buffer::allocate(&context, m * n * 4, "check")?;
    out.clear(&stream)?;
    stream.wait()?;
    let output = match timed {
        Timed::Gated => Output::Gated { gelu: false },
        Timed::Logits => Output::Logits,
        Timed::Residual => Output::Residual,
    };
    let product = |matrix| Product {
        matrix,
        x: x.pointer(),
        x_rows: 0,
        norm: (timed == Timed::Gated).then_some(Norm { weight: 0, epsilon: 1e-5 }),
        bias: 0,
        out: out.pointer(),
        output,
        softcap: 0.0,
        m,
    };
    let products: Vec<_> = matrices.iter().map(product).collect();
    let each: Vec<_> = products.iter().collect();
    matmul.tune(&kernels, &stream, &products)?;
    let mut ways = vec![("cuBLASLt".to_owned(), Way::Library)];
    if matmul.streams(&products[0]) {
        ways.push(("streaming".to_owned(), Way::Streaming));
    }
    for tiling in matmul.tilings(&products[0]) {
        ways.push((format!("{}x64/{}", tiling.groups, tiling.splits), Way::Skinny(tiling)));
    }
    let mut times = Vec::new();
    for (name, way) in ways {
        matmul.forced = Some(way);
        let milliseconds = time(&stream, &each, |p| matmul.run(&kernels, &stream, p))?;
        times.push((name, milliseconds * 1e3 / copies.max(8) as f32));
    }
    Ok(times)
}
