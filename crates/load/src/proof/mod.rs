//! The client's proof of itself: a server whose every write is known, measured by the same code as any other.
//!
//! Both sides run in one process under one clock, so the error of each instant is known, not estimated: the time from the
//! server's write to the client's stamp.

mod cases;
mod server;

pub use cases::{Case, CaseResult, Verdict, cases, prove};
pub use server::{Ending, Script, Truth, TruthServer};

#[cfg(test)]
mod tests;
