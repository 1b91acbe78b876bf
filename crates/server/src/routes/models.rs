//! `GET /v1/models` and `GET /v1/models/{name}`.

use crate::{
    reply::{self, Refusal},
    state::{App, State as Shared},
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use powertrain_protocol::{ModelCard, ModelList};

pub(crate) async fn list(State(app): State<App>) -> Response {
    let data = app.config.served_model_names.iter().map(|name| card(&app, name.clone())).collect();
    reply::json(&ModelList { object: "list", data })
}

/// Names may contain slashes, as those of the Hub do.
pub(crate) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Response, Refusal> {
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
