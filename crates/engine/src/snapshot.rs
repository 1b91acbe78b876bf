//! The engine's numbers, for metrics: written by the engine thread after each step, read by anyone without a lock.

use powertrain_scheduler::Stats;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the engine stands and what it did since it started. Each number is exact; together they may straddle a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Sequences that own a row.
    pub running: u64,
    /// Sequences waiting for one.
    pub waiting: u64,
    /// Blocks of KV cache held by sequences.
    pub kv_blocks_used: u64,
    /// Blocks of KV cache in all.
    pub kv_blocks_total: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_tokens_queried: u64,
    /// Of them, found.
    pub prefix_tokens_hit: u64,
    /// Times a running sequence was put back to be recomputed.
    pub preemptions: u64,
    /// Tokens of the prompts of requests scheduled.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps completed.
    pub steps: u64,
    /// Requests by how they ended.
    pub ended: RequestsEnded,
    /// Requests that leave the waiting queue per second, averaged over the last half minute in which any waited.
    pub queue_drain_per_second: f64,
}

/// Requests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestsEnded {
    /// By an end-of-sequence or stop token.
    pub stop: u64,
    /// By length.
    pub length: u64,
    /// By their deadline.
    pub deadline: u64,
    /// By shutdown.
    pub shutdown: u64,
    /// Their stream was dropped.
    pub cancelled: u64,
    /// The model or the executor failed.
    pub failed: u64,
}

macro_rules! counters {
    ($($field:ident),*) => {
        #[derive(Default)]
        pub(crate) struct Counters { $($field: AtomicU64,)* queue_drain_per_second: AtomicU64, ended: Ended }

        impl Counters {
            pub(crate) fn store(&self, stats: &Stats, ended: &RequestsEnded, queue_drain_per_second: f64) {
                $(self.$field.store(u64::from(stats.$field), Relaxed);)*
                self.ended.store(ended);
                self.queue_drain_per_second.store(queue_drain_per_second.to_bits(), Relaxed);
            }

            /// For the end, when the engine thread may not come to store its own count.
            pub(crate) fn add_failed(&self, requests: u64) {
                self.ended.failed.fetch_add(requests, Relaxed);
            }

            pub(crate) fn load(&self) -> Snapshot {
                Snapshot {
                    $($field: self.$field.load(Relaxed),)*
                    ended: self.ended.load(),
                    queue_drain_per_second: f64::from_bits(self.queue_drain_per_second.load(Relaxed)),
                }
            }
        }
    };
}

counters!(
    running,
    waiting,
    kv_blocks_used,
    kv_blocks_total,
    prefix_tokens_queried,
    prefix_tokens_hit,
    preemptions,
    prompt_tokens,
    generated_tokens,
    steps
);

macro_rules! ended {
    ($($field:ident),*) => {
        #[derive(Default)]
        struct Ended { $($field: AtomicU64,)* }

        impl Ended {
            fn store(&self, ended: &RequestsEnded) {
                $(self.$field.store(ended.$field, Relaxed);)*
            }
            fn load(&self) -> RequestsEnded {
                RequestsEnded { $($field: self.$field.load(Relaxed),)* }
            }
        }
    };
}

ended!(stop, length, deadline, shutdown, cancelled, failed);
