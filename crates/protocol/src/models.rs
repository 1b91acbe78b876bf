//! `GET /v1/models`.

use serde::Serialize;

/// All models of this server.
#[derive(Debug, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// One per served name.
    pub data: Vec<ModelCard>,
}

/// One served name.
#[derive(Debug, Serialize)]
pub struct ModelCard {
    /// What requests put into `model`.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When the server loaded it, in Unix seconds.
    pub created: u64,
    /// `powertrain`.
    pub owned_by: &'static str,
    /// What it was loaded from.
    pub root: String,
    /// Always null: no adapter.
    pub parent: Option<String>,
    /// Tokens of prompt and completion together.
    pub max_model_len: u32,
}
