//! `GET /v1/models` and `GET /v1/models/{name}`.

use crate::{
    reply::{self, Refusal},
    state::{App, State as Shared},
};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use powertrain_protocol::{ApiError, ModelCard, ModelList};

pub(crate) async fn list(State(app): State<App>) -> Response {
    let data = app.config.served_model_names.iter().map(|name| card(&app, name.clone())).collect();
    reply::json(&ModelList { object: "list", data })
}

/// Names may contain slashes, as those of the Hub do.
pub(crate) async fn show(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    // A path that is no UTF-8 once its escapes are resolved.
    let Path(name) = name.map_err(|rejection| ApiError::field("model", rejection.body_text()))?;
    let name = app.resolve_model(Some(&name))?;
    Ok(reply::json(&card(&app, name)))
}

fn card(app: &Shared, id: String) -> ModelCard {
    ModelCard {
        id,
        object: "model",
        created: app.started,
        owned_by: "powertrain",
        root: app.report.model.clone(),
        parent: None,
        max_model_len: app.report.max_model_len,
    }
}
