//! even.cu and best.cu against f64: the highest logit of each row and its token.

use super::{Finding, tolerance, widen};
use crate::{
    CudaError, Element,
    driver::{Buffer, Context, Stream},
    kernels::{Kernels, fill_random},
    matmul::Matmul,
    product::{Matrix, Norm, Output, Product},
};

const ROWS: usize = 520;
/// Up to 128 even.cu; then both blocks of a pair of best.cu, and more than a pair's rows.
const SIZES: [usize; 11] = [1, 17, 63, 64, 65, 100, 128, 129, 250, 256, 520];
/// A row of x that holds NaN, and one whose logits overflow.
const NAN_ROW: usize = 16;
const INFINITE_ROW: usize = 62;

/// What best.cu leaves for a row: the logit and its token, `None` where something is not finite.
fn unpacked(best: u64) -> Option<(f64, usize)> {
    let key = (best >> 32) as u32;
    let bits = if key & 0x8000_0000 == 0 { !key } else { key & 0x7fff_ffff };
    (best != u64::MAX).then(|| (f64::from(f32::from_bits(bits)), !(best as u32) as usize))
}

/// Heads of odd sizes, in two ways: with a second half of tokens that repeats the first, so that every highest logit comes twice and the lower token must
/// win; and with tokens planted at the borders of tiles and at the end, each the highest of some row. Each product twice into the same memory, which must
/// change nothing. Errors are those of the logit, in units of the largest of all; a token whose logit is lower than the highest by more than that has failed.
///
/// # Errors
/// When the device cannot be used.
pub fn best(element: Element) -> Result<Vec<Finding>, CudaError> {
    let context = Context::open(0)?;
    let kernels = Kernels::load(&context, element)?;
    let stream = Stream::create()?;
    let mut findings = Vec::new();
    // 28,690: tiles of 224. 38,032: two rounds and more of those of 144, and in pairs whole tiles, then halves.
    let shapes = [(2, 64), (16, 8), (254, 72), (514, 200), (1000, 1536), (17_040, 576), (28_690, 72), (38_032, 200)];
    for ((n, k), repeats) in shapes.into_iter().flat_map(|shape| [(shape, true), (shape, false)]) {
        let matmul = Matmul::without_library(&context, element, ROWS, k, n)?;
        let matrix = Matrix { buffer: Buffer::allocate(&context, n * k * 2, "check")?, rows: n, columns: k };
        let half = (n / 2 * k) as u64;
        for (at, seed) in [(0, 7), (half * 2, if repeats { 7 } else { 8 })] {
            fill_random(&kernels, &stream, matrix.buffer.pointer() + at, half, (3.0 / k as f32).sqrt(), seed)?;
        }
        let x = Buffer::allocate(&context, ROWS * k * 2, "check")?;
        fill_random(&kernels, &stream, x.pointer(), (ROWS * k) as u64, 2.0, 11)?;
        stream.wait()?;
        if !repeats {
            plant(&matrix, &x, element)?;
        }
        x.write((NAN_ROW * k + k / 2) * 2, &[element.bits(f32::NAN)])?;
        // Infinite, and of the same sign as what it meets in row 0.
        let first = matrix.buffer.read::<u16>(0, 1)?[0];
        x.write(INFINITE_ROW * k * 2, &[element.bits(f32::INFINITY) | first & 0x8000])?;
        let weights: Vec<f64> = matrix.buffer.read::<u16>(0, n * k)?.into_iter().map(widen(element)).collect();
        let rows: Vec<f64> = x.read::<u16>(0, ROWS * k)?.into_iter().map(widen(element)).collect();
        let norm_weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 7) as f32 * 0.125).collect();
        let norm_buffer = Buffer::of(&context, &norm_weight, "check")?;
        let picked: Vec<u32> = (0..ROWS as u32).map(|row| (row * 7 + 3) % ROWS as u32).collect();
        let picked_buffer = Buffer::of(&context, &picked, "check")?;
        let found = Buffer::allocate(&context, (ROWS + 1) * 8, "check")?;
        for (norm, softcap) in [(false, 0.0_f32), (true, 0.0), (false, 3.0)] {
            let logits = logits(&weights, &rows, k, norm.then_some(&norm_weight[..]), softcap);
            let largest = logits.iter().filter(|x| x.is_finite()).fold(0.0_f64, |largest, x| largest.max(x.abs()));
            for m in SIZES {
                let product = Product {
                    matrix: &matrix,
                    x: x.pointer(),
                    x_rows: if norm { picked_buffer.pointer() } else { 0 },
                    norm: norm.then_some(Norm { weight: norm_buffer.pointer(), epsilon: 1e-5 }),
                    bias: 0,
                    out: 0,
                    output: Output::Logits,
                    softcap,
                    m,
                };
                found.write(0, &[0_u64; ROWS + 1])?;
                matmul.fill_scratch(&stream, 0xff)?;
                let run = || -> Result<Vec<u64>, CudaError> {
                    matmul.best(&kernels, &stream, &product, found.pointer())?;
                    stream.wait()?;
                    found.read::<u64>(0, ROWS + 1)
                };
                let (once, again) = (run()?, run()?);
                let (got, past) = once.split_at(m);
                let spoiled = once != again || past.iter().any(|&best| best != 0);
                let error = |(row, &best): (usize, &u64)| {
                    let row = if norm { picked[row] as usize } else { row };
                    let logits = &logits[row * n..(row + 1) * n];
                    // A cap makes infinite logits finite.
                    if row == INFINITE_ROW && softcap > 0.0 {
                        return 0.0;
                    }
                    let damaged = [NAN_ROW, INFINITE_ROW].contains(&row);
                    match unpacked(best) {
                        None if damaged => 0.0,
                        Some((logit, token)) if !damaged && token < if repeats { n / 2 } else { n } => {
                            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                            (highest - logits[token]).abs().max((logit - logits[token]).abs()) / largest
                        }
                        _ => f64::INFINITY,
                    }
                };
                let worst = got.iter().enumerate().map(error).fold(0.0, f64::max);
                findings.push(Finding {
                    case: format!(
                        "best repeats {repeats} norm {norm} softcap {softcap} m {m} n {n} k {k}, spoiled: {spoiled}"
                    ),
                    relative_error: if spoiled { f64::INFINITY } else { worst },
                    allowed: tolerance(element),
                });
            }
        }
    }
    Ok(findings)
}

/// Makes a token at each border of tiles, and at the end, the highest of a row of its own: a multiple of it.
fn plant(matrix: &Matrix, x: &Buffer, element: Element) -> Result<(), CudaError> {
    let (n, k) = (matrix.rows, matrix.columns);
    let whole = n / 256 * 256;
    let borders = [64, 128, 144, 224, 256, 512, n / 2, n / 144 * 144, n / 224 * 224, whole, whole.saturating_sub(64)];
    let late = (1..=40).map(|part| n.saturating_sub(part * 112));
    let mut tokens: Vec<usize> = borders.into_iter().chain(late).flat_map(|at| [at.saturating_sub(1), at]).collect();
    tokens.extend([n - 1, n.saturating_sub(2), n.saturating_sub(3)]);
    tokens.retain(|&token| token < n);
    tokens.sort_unstable();
    tokens.dedup();
    for (row, token) in (0..ROWS).filter(|row| ![NAN_ROW, INFINITE_ROW].contains(row)).zip(tokens) {
        let row: Vec<f64> = x.read::<u16>(row * k * 2, k)?.into_iter().map(widen(element)).collect();
        // Some 8 where the highest of others is about 5.
        let scale = 8.0 / row.iter().map(|x| x * x).sum::<f64>();
        let weights: Vec<u16> = row.iter().map(|x| element.bits((x * scale) as f32)).collect();
        matrix.buffer.write(token * k * 2, &weights)?;
    }
    Ok(())
}

/// Of all rows, behind a norm with these weights.
fn logits(weights: &[f64], rows: &[f64], k: usize, norm: Option<&[f32]>, softcap: f32) -> Vec<f64> {
    let of_row = |row: &[f64]| -> Vec<f64> {
        let mut x = row.to_vec();
        if let Some(weight) = norm {
            let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / k as f64 + 1e-5).sqrt();
            x.iter_mut().zip(weight).for_each(|(x, &w)| *x *= factor * f64::from(w));
        }
        let dot = |w: &[f64]| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        let cap = f64::from(softcap);
        weights.chunks(k).map(dot).map(|y| if cap > 0.0 { cap * (y / cap).tanh() } else { y }).collect()
    };
    let mut all = vec![Vec::new(); rows.len() / k];
    std::thread::scope(|scope| {
        let each = all.len().div_ceil(8);
        for (rows, all) in rows.chunks(each * k).zip(all.chunks_mut(each)) {
            let of_row = &of_row;
            scope.spawn(move || rows.chunks(k).zip(all).for_each(|(row, to)| *to = of_row(row)));
        }
    });
    all.concat()
}
