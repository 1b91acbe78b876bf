//! `powertrain`: serves large language models, and looks after them.
//!
//! Each subcommand is one file: its flags, then what it does with them.
#![forbid(unsafe_code)]

mod banner;
mod bench;
mod capacity;
mod compare;
mod divergence;
mod endpoint_divergence;
mod engine_flags;
mod eval;
mod inspect;
mod interrupt;
mod load;
mod memory;
mod models;
mod perplexity;
mod progress;
mod pull;
mod questions;
mod report;
mod serve;
mod size;
mod sweep;
mod text_side;
mod tune;

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::{io::Write, process::ExitCode};

/// Ends with this code when the command could not be carried out; clap uses the same for unknown flags.
const BAD_INPUT: u8 = 2;
/// Ends with this code when what was served broke down: the same command can be started again.
const ENGINE_DIED: u8 = 1;

/// Serves large language models from one binary: fetch, serve, measure.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::Arguments>),
    Pull(pull::Arguments),
    Models(models::Arguments),
    Inspect(inspect::Arguments),
    Bench(Box<bench::Arguments>),
    Compare(Box<compare::Arguments>),
    Sweep(sweep::Arguments),
    Tune(tune::Arguments),
    Eval(Box<eval::Arguments>),
    Report(report::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Models(arguments) => models::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Bench(arguments) => return ended(bench::run(&arguments)),
        Command::Compare(arguments) => return ended(compare::run(&arguments)),
        Command::Sweep(arguments) => sweep::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Eval(arguments) => eval::run(*arguments),
        Command::Report(arguments) => report::run(&arguments),
    };
    ended(done.map(|()| ExitCode::SUCCESS))
}

fn ended(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            // One line: what was tried, then why it failed.
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<serve::EngineDied>() { ENGINE_DIED } else { BAD_INPUT })
        }
    }
}

/// Writes a command's result to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(()),
    }
}
