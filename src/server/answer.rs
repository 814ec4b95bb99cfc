//! Answers: JSON, and errors as JSON.

use super::queue::Refusal;
use super::settings::SettingProblem;
use super::studio::said;
use crate::Error;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};

/// What a request is answered with instead of what it asked for.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// What is wrong, and where.
    pub(super) problems: Vec<SettingProblem>,
    /// Seconds after which it may go better.
    pub(super) retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), problems: Vec::new(), retry_after: None }
    }

    /// The request makes no sense.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Values of settings are wrong.
    pub(super) fn problems(problems: Vec<SettingProblem>) -> Self {
        let message = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what)).collect::<Vec<_>>().join("; ");
        Self { problems, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, message) }
    }

    pub(super) fn no_job() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such job; it may have been forgotten")
    }

    pub(super) fn json(&self) -> Json {
        let problems: Vec<Json> = self.problems.iter().map(|problem| json!({ "path": problem.path, "message": problem.what })).collect();
        json!({ "error": { "status": self.status.as_u16(), "message": self.message, "problems": problems } })
    }

    /// The answer with another body.
    pub(super) fn with_body(&self, body: &Json) -> Response {
        let mut response = json_response(self.status, body);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Input(_) | Error::Setting { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Error::Model(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Error::Memory(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        match said(&error) {
            (Some(name), what) => Self { status, ..Self::problems(vec![SettingProblem::new(name, what)]) },
            (None, what) => Self::new(status, what),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(seconds) => {
                Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full; try again later") }
            }
            Refusal::Wrong(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.with_body(&self.json())
    }
}

/// JSON with a status.
pub(super) fn json_response(status: StatusCode, body: &Json) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// JSON of what went well.
pub(super) fn ok(body: &Json) -> Response {
    json_response(StatusCode::OK, body)
}

/// Bytes of a type.
pub(super) fn bytes(kind: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing here; docs/serve.md lists what there is")
}

pub(super) async fn not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "there is no such method here; docs/serve.md lists what there is")
}
