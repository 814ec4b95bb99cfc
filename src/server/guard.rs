//! Who may ask: the key, the pages of other sites, and how long a request may take to come.
//!
//! A page of any site can have a browser send requests to 127.0.0.1. Such requests name that site as their origin, and are refused
//! unless it was allowed; names that only lead here by a trick of DNS are no names of a server on this machine.

use super::answer::ApiError;
use super::routes::is_open;
use super::{Server, metrics};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Instant;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The routes with everything around them.
pub(super) fn around(routes: Router<Arc<Server>>, server: &Arc<Server>) -> Router<Arc<Server>> {
    let guarded = routes.layer(from_fn_with_state(server.clone(), check));
    let cors = &server.options.cors;
    if cors.is_empty() {
        return guarded;
    }
    let origins = match cors.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(cors.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let headers = [header::CONTENT_TYPE, header::AUTHORIZATION, HeaderName::from_static("x-api-key")];
    guarded.layer(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE, Method::PUT])
            .allow_headers(headers),
    )
}

async fn check(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = match refusal(&server, &request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    let status = response.status();
    metrics::count(&server.metrics, status, began.elapsed());
    tracing::debug!(%method, path, status = status.as_u16(), milliseconds = began.elapsed().as_millis() as u64, "request");
    response
}

fn refusal(server: &Server, request: &Request) -> Option<ApiError> {
    let forbidden = |what: &str| Some(ApiError::new(StatusCode::FORBIDDEN, what));
    let headers = request.headers();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = request.uri().authority().map(|host| host.as_str()).or_else(|| text(header::HOST));
    let options = &server.options;
    if options.listen.ip().is_loopback() && options.api_key.is_none() && !host.is_some_and(is_this_machine) {
        return forbidden("this server is reached as localhost or 127.0.0.1; --listen another address, with --api-key, for other names");
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let is_own = origin.split_once("://").map(|(_, origin)| origin) == host;
        if !is_own && !options.cors.iter().any(|allowed| allowed == "*" || allowed == origin) {
            return forbidden("pages of this origin may not use the server; --cors allows them");
        }
    }
    match &options.api_key {
        // What is open says nothing of anybody.
        Some(key) if !is_open(request.uri().path()) && request.method() != Method::OPTIONS && !has_key(headers, key) => {
            Some(ApiError::new(StatusCode::UNAUTHORIZED, "give the key as Authorization: Bearer KEY or X-Api-Key: KEY"))
        }
        _ => None,
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Compared by hashes: how much of a key was right takes no time of its own. Basic authentication is how A1111's clients say it.
fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let wanted = Sha256::digest(key);
    let is = |given: &str| Sha256::digest(given) == wanted;
    let by_header = headers.get("x-api-key").and_then(|value| value.to_str().ok()).is_some_and(is);
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, credentials) = authorization.split_once(' ').unwrap_or_default();
    by_header
        || scheme.eq_ignore_ascii_case("bearer") && is(credentials.trim())
        || scheme.eq_ignore_ascii_case("basic")
            && super::files::from_base64(credentials.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .is_some_and(|pair| pair.split_once(':').is_some_and(|(_, password)| is(password)))
}
