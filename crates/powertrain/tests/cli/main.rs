//! The binary as people run it: exit codes, one clear line, and the real model served, measured, and talked to.

mod commands;
mod death;
#[cfg(target_os = "linux")]
mod idle;
mod interrupted;
mod killed;
mod measuring;
mod process;
mod real_model;
