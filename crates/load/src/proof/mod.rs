//! The client's proof of itself: a server whose every write is known, measured by the same code as any other.
//!
//! Both sides run in one process under one clock, so the error of each number is known, not estimated: a TTFT or gap as the
//! client measured it against the one that the server made.

mod cases;
mod errors;
mod remote;
mod script;
mod server;
mod wire;
mod writer;

pub use cases::{Case, CaseResult, Verdict, WRITTEN_SHARE_MIN, cases, prove};
pub use remote::RemoteTruth;
pub use script::{Ending, Script, Truth, Write};
pub use server::TruthServer;

#[cfg(test)]
mod loads;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble;
