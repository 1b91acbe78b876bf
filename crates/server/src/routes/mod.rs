//! One file a route.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod engine;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod page;
pub(crate) mod tokenize;
