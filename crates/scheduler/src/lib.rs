//! What runs next: sequences, one token budget, blocks of KV cache, prefix cache, preemption, priorities.
//!
//! A [`Scheduler`] is a pure state machine. It knows no clock, thread, socket, tensor or device: the engine thread, a
//! property test and a simulator drive the same code by the same calls.
//!
//! ```text
//!            submit                     admit: a row, cached blocks, the first chunk
//!  (refused) <----- caller ------> WAITING ---------------------------------------> RUNNING
//!                                  |  ^  ^                                          |  |  |
//!     a running sequence computes  |  |  |   preempted, nothing in flight           |  |  |
//!     the prefix it needs next     v  |  +------------------------------------------+  |  |
//!                               PARKED   ^                                             |  |
//!                                        |   its steps are in    preempted, in flight  |  |
//!                                        +---------------------- LEAVING <-------------+  |
//!                                                                 |  ^                    |
//!                                     its steps are in: vacated   v  | over, in flight    |
//!                                                                END <--------------------+
//!                                                                       stop, length, failure, `finish`
//! ```
//!
//! **One rule.** A sequence has `known` tokens and `planned` positions; a step gives it some of the missing ones. Prefill,
//! chunked prefill and decode are that; so is a prefix-cache hit (planned starts higher) and the return after preemption
//! (known starts higher). [`Scheduler::plan`] deals out one budget: first one position to each running sequence that
//! lacks one, then chunks to those that lack more, then rows to waiting ones, each in order of (priority, arrival). Only a
//! waiting sequence more urgent than the running prefills starts before those go on. Where it is known what steps cost
//! (`pace.rs`), chunks are no larger than is good for all.
//!
//! **Two steps in flight.** With depth 2 the next step is planned while the tokens of the last are still to come: they
//! count as known (`tokens_in_flight`), their ids are the executor's business. A sequence whose tokens in flight reach its
//! length is not planned again. One that stops early has a surplus token in flight, which is thrown away; its row and its
//! blocks go back only when no step in flight can write them (LEAVING). Depth 1 is the same code.
//!
//! **Blocks.** A sequence's table only grows. A full block is published under the hash of its contents when a completed
//! step has computed its last position, never before; from then on other sequences may hold it too, and nobody writes it.
//! Whoever waits for a prefix that a running sequence of its urgency is computing right now parks until that is
//! published or dropped, so that n completions of a prompt, or a crowd behind one system prompt, compute it once.
//!
//! **Preemption.** When blocks run out the running sequence whose turn is last gives up its own and returns to the queue at
//! its old turn. A waiting sequence takes row and blocks from a running one only of strictly lesser urgency.
//!
//! **Nothing starves.** The first running sequence in order can take every block, and any one sequence fits the cache
//! (checked on submission), so the first of all always advances; no later arrival of equal priority goes before it. A
//! sequence of lesser urgency waits as long as more urgent ones keep coming: that is what priorities are for.
#![forbid(unsafe_code)]

mod complete;
mod config;
mod hash;
mod output;
mod pace;
mod plan;
mod pool;
mod scheduler;
mod sequence;

pub use config::{ConfigError, SchedulerConfig};
pub use output::{FinishReason, Output, Outputs, Refusal, Stats, Summary};
pub use scheduler::Scheduler;
pub use sequence::{NewSequence, SequenceId, StopConditions};
