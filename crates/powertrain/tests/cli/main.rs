//! The binary as people run it: exit codes, one clear line, and the real model served, measured, and talked to.

mod commands;
mod measuring;
mod process;
mod real_model;
