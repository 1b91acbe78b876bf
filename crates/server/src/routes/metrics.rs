//! `GET /metrics`.

use crate::{metrics::CONTENT_TYPE, state::App};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

pub(crate) async fn show(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.expose(&app.engine.snapshot())).into_response()
}
