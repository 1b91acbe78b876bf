//! The k highest of many numbers, without sorting them.

/// An entry of the vocabulary.
pub(crate) type Scored = (f32, u32);

/// Higher first, the lower index among equals. Not `total_cmp`: 0.0 and -0.0 are equal. There is no NaN here.
pub(crate) fn descending(a: &Scored, b: &Scored) -> std::cmp::Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1))
}

/// Leaves in `best` the `k` highest of `values` with their indices, highest first, lower indices first among equals.
///
/// One pass: a value enters a buffer of `2k` when it exceeds the k-th highest known so far; a full buffer is cut back to `k` by
/// partial selection. On logits in random order about `k ln(n / k)` values enter.
pub(crate) fn highest(values: &[f32], k: usize, best: &mut Vec<Scored>) {
    const CHUNK: usize = 16;
    best.clear();
    let k = k.min(values.len());
    if k == 0 {
        return;
    }
    let capacity = (2 * k).max(64);
    let mut floor = f32::NEG_INFINITY;
    let mut cut = false;
    for (index, chunk) in values.chunks(CHUNK).enumerate() {
        let highest_here = chunk.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
        // Equal values with higher indices lose against those already there.
        if cut && highest_here <= floor {
            continue;
        }
        for (offset, &value) in chunk.iter().enumerate() {
            if cut && value <= floor {
                continue;
            }
            if best.len() == capacity {
                best.select_nth_unstable_by(k - 1, descending);
                best.truncate(k);
                floor = best[k - 1].0;
                cut = true;
                if value <= floor {
                    continue;
                }
            }
            best.push((value, (index * CHUNK + offset) as u32));
        }
    }
    if best.len() > k {
        best.select_nth_unstable_by(k - 1, descending);
        best.truncate(k);
    }
    best.sort_unstable_by(descending);
}
