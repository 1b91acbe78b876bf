//! `GET /health`: a step completed lately, or there is nothing to run. `GET /ready`: new requests are taken.

use crate::{
    reply::{self, Refusal},
    state::App,
};
use axum::{extract::State, response::Response};
use serde::Serialize;

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

pub(crate) async fn live(State(app): State<App>) -> Result<Response, Refusal> {
    app.healthy()?;
    Ok(reply::json(&Status { status: "live" }))
}

pub(crate) async fn ready(State(app): State<App>) -> Result<Response, Refusal> {
    app.accepts()?;
    Ok(reply::json(&Status { status: "ready" }))
}
