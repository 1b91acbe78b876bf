//! All routes, and what happens around each of them.

use crate::{
    connections::BindError,
    record::{REQUEST_ID, Record},
    reply::Refusal,
    routes::{chat, completions, engine, health, metrics, models, page, tokenize},
    state::App,
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use powertrain_protocol::ApiError;
use std::time::Duration;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// How long a browser may remember that another origin is allowed.
const CORS_MAX_AGE: Duration = Duration::from_secs(600);

/// The whole service.
pub(crate) fn router(app: App) -> Router {
    let cors = cors(&app.config.allowed_origins);
    let mut router = Router::new()
        .route("/", get(page::show))
        .route("/health", get(health::live))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::show))
        .route("/version", get(engine::version))
        .route("/tokenize", post(tokenize::encode))
        .route("/detokenize", post(tokenize::decode))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/engine", get(engine::show))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::show))
        .fallback(route_not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), authorize));
    // Outside of the keys: browsers ask whether they may ask without them.
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    router.layer(middleware::from_fn_with_state(app.clone(), record)).with_state(app)
}

/// Gives the request its id and its line in the log.
async fn record(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let record = Record::new(request.method().as_str(), request.uri().path(), request.headers());
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, record.header());
    let status = response.status().as_u16();
    record.status(status);
    app.metrics.response(status);
    response
}

/// Lets through who has a key.
async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let Err(error) = app.keys.check(path, request.headers()) else { return next.run(request).await };
    // A browser asks its user for a key where it is offered Basic, and sends it along from then on.
    let scheme = if path == "/" { "Basic realm=\"powertrain: any name, the API key as password\"" } else { "Bearer" };
    let mut response = Refusal(error).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    response
}

async fn route_not_found(request: Request) -> Refusal {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    Refusal(ApiError::RouteNotFound { method, path })
}

async fn method_not_allowed(request: Request) -> Refusal {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    Refusal(ApiError::MethodNotAllowed { method, path })
}

/// Whether all origins are such.
pub(crate) fn check_origins(origins: &[String]) -> Result<(), BindError> {
    match origins.iter().find(|origin| *origin != "*" && header_of(origin).is_none()) {
        Some(origin) => Err(BindError::Origin { origin: origin.clone() }),
        None => Ok(()),
    }
}

fn header_of(origin: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(origin).ok().filter(|_| origin.contains("://") && !origin.ends_with('/'))
}

/// `None` when no other origin may call.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| header_of(origin)))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // A plain * would not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::HeaderName::from_static(REQUEST_ID)])
        .max_age(CORS_MAX_AGE);
    Some(layer)
}
