//! How a device's memory is shared out: weights and workspace take what they take, graphs what two of them took, the KV cache gets the rest.
//!
//! What cannot work is refused twice: before the weights are loaded, with what they will take, and after the largest steps have run, with what all
//! that took.

use crate::CudaError;

const MIB: u64 = 1 << 20;

/// Who has the memory when the KV cache is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Bytes of the device.
    pub(crate) total: u64,
    /// Bytes in use by other programs and by the driver's own context.
    pub(crate) others: u64,
    /// Bytes of weights.
    pub(crate) weights: u64,
    /// Bytes of everything else in use: kernels, libraries, the workspace of the largest step.
    pub(crate) workspace: u64,
    /// Bytes to leave for graphs and whatever the driver takes later.
    pub(crate) reserve: u64,
    /// Bytes of a block of KV cache over all layers.
    pub(crate) block: u64,
}

/// What the user asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// `--gpu-memory-utilization`.
    pub(crate) utilization: f32,
    /// `--kv-cache-memory`.
    pub(crate) kv_cache_bytes: Option<u64>,
    /// `--max-model-len`.
    pub(crate) max_model_len: u32,
    /// `--block-size`.
    pub(crate) block_size: u32,
}

impl Demand {
    /// Everything but the KV cache.
    fn fixed(&self) -> u64 {
        self.others + self.weights + self.workspace + self.reserve
    }

    /// How many blocks the scheduler may use; one more is the idle row's.
    ///
    /// # Errors
    /// When one sequence of the model's length would not fit: with the number to change.
    pub(crate) fn kv_blocks(&self, wish: Wish) -> Result<u32, CudaError> {
        let allowed = (self.total as f64 * f64::from(wish.utilization)) as u64;
        let free = self.total.saturating_sub(self.fixed());
        let budget = match wish.kv_cache_bytes {
            Some(bytes) if bytes > free => {
                return Err(CudaError::Setting(format!(
                    "--kv-cache-memory {} MiB does not fit: of {} MiB {}; set it to at most {}MiB",
                    bytes / MIB,
                    self.total / MIB,
                    self.words(),
                    free / MIB
                )));
            }
            Some(bytes) => bytes,
            None => allowed.saturating_sub(self.fixed()),
        };
        let blocks = (budget / self.block).min(u64::from(u32::MAX)).saturating_sub(1) as u32;
        let needed = wish.max_model_len.div_ceil(wish.block_size);
        if blocks >= needed {
            return Ok(blocks);
        }
        let kv = u64::from(needed + 1) * self.block;
        let mut remedies = Vec::new();
        if wish.kv_cache_bytes.is_some() {
            if kv <= free {
                remedies.push(format!("set --kv-cache-memory to at least {}MiB", kv.div_ceil(MIB)));
            }
        } else {
            // Two decimals, rounded up: the share that just suffices.
            let hundredths = ((self.fixed() + kv) as f64 / self.total as f64 * 100.0).ceil();
            if hundredths <= 100.0 {
                remedies.push(format!("set --gpu-memory-utilization to at least {:.2}", hundredths / 100.0));
            }
        }
        if blocks > 0 {
            remedies.push(format!("set --max-model-len to at most {}", u64::from(blocks) * u64::from(wish.block_size)));
        }
        if remedies.is_empty() {
            remedies.push("use a smaller model, lower --max-num-batched-tokens, or free the GPU".to_owned());
        }
        let given = match wish.kv_cache_bytes {
            Some(bytes) => format!("--kv-cache-memory is {} MiB", bytes / MIB),
            None => format!(
                "--gpu-memory-utilization {} of {} MiB allows {} MiB, and {}",
                wish.utilization,
                self.total / MIB,
                allowed / MIB,
                self.words()
            ),
        };
        Err(CudaError::Setting(format!(
            "the KV cache of one sequence of --max-model-len {} needs {} MiB; {given}; {}",
            wish.max_model_len,
            kv.div_ceil(MIB),
            remedies.join(", or ")
        )))
    }

    fn words(&self) -> String {
        format!(
            "the driver and other programs hold {} MiB, weights take {} MiB, workspace {} MiB, graphs and driver {} MiB",
            self.others / MIB,
            self.weights / MIB,
            self.workspace / MIB,
            self.reserve / MIB
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const DEMAND: Demand =
        Demand { total: 80 * GIB, others: GIB, weights: 15 * GIB, workspace: 3 * GIB, reserve: GIB, block: 2 * MIB };

    fn wish(utilization: f32, kv_cache_bytes: Option<u64>, max_model_len: u32) -> Wish {
        Wish { utilization, kv_cache_bytes, max_model_len, block_size: 16 }
    }

    #[track_caller]
    fn refused(wish: Wish, expected: &[&str], absent: &[&str]) {
        let said = DEMAND.kv_blocks(wish).expect_err("it cannot work").to_string();
        expected.iter().for_each(|part| assert!(said.contains(part), "{said:?} lacks {part:?}"));
        absent.iter().for_each(|part| assert!(!said.contains(part), "{said:?} has {part:?}"));
    }

    #[test]
    fn the_kv_cache_gets_what_the_share_leaves() {
        // 40 GiB less 20 GiB of all else; one block is the idle row's.
        assert_eq!(DEMAND.kv_blocks(wish(0.5, None, 4096)).expect("it fits"), 10 * 1024 - 1);
        assert_eq!(DEMAND.kv_blocks(wish(0.5, Some(GIB), 4096)).expect("it fits"), 511);
        assert_eq!(DEMAND.kv_blocks(wish(0.1, Some(GIB), 4096)).expect("the share does not count"), 511);
    }

    #[test]
    fn what_cannot_work_names_the_number_that_would() {
        refused(
            wish(0.3, None, 40_960),
            &["--max-model-len 40960 needs 5122 MiB", "to at least 0.32", "to at most 32752", "weights take 15360 MiB"],
            &[],
        );
        refused(wish(0.2, None, 4096), &["to at least 0.26"], &["--max-model-len to at most"]);
        // A block less than 0.9 would leave: as an f32 it is a little less.
        refused(
            wish(0.9, None, 1_000_000),
            &["--max-model-len to at most 425952"],
            &["--gpu-memory-utilization to at"],
        );
        refused(
            wish(0.9, Some(70 * GIB), 4096),
            &["--kv-cache-memory 71680 MiB does not fit", "at most 61440MiB"],
            &[],
        );
        refused(wish(0.9, Some(GIB), 10_000), &["set --kv-cache-memory to at least 1252MiB", "at most 8176"], &[]);
    }

    #[test]
    fn the_number_named_suffices() {
        for hundredths in 1..100 {
            let asked = wish(hundredths as f32 / 100.0, None, 40_960);
            let Err(error) = DEMAND.kv_blocks(asked) else { continue };
            let said = error.to_string();
            let number = said.split("--gpu-memory-utilization to at least ").nth(1).expect("one is named");
            let share: f32 = number.split([',', ';', ' ']).next().expect("a number").parse().expect("a number");
            DEMAND.kv_blocks(Wish { utilization: share, ..asked }).expect("the number named works");
        }
    }
}
