//! The page at `/`: one file, without anything from elsewhere. Its policy lets nothing run but its own script, and nothing that an image
//! says is ever markup.

use super::answer::bytes;
use super::files::to_base64;
use super::routes::{GivenBody, ServerRoute};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const PAGE: &str = include_str!("page.html");

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::get("/", "The page", || get(|| async { html(PAGE, &POLICY) })).gives(&[(200, GivenBody::Text("text/html"))]).open(),
    ServerRoute::get("/favicon.ico", "No icon", || get(|| async { StatusCode::NO_CONTENT.into_response() }))
        .gives(&[(204, GivenBody::Nothing)])
        .open(),
];

static POLICY: LazyLock<String> = LazyLock::new(|| policy(PAGE));

/// HTML with its policy.
pub(super) fn html(page: &'static str, policy: &str) -> Response {
    let mut response = bytes("text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    response
}

/// What a page may do: run and look as its own script and style say, show images, and ask this server.
pub(super) fn policy(page: &str) -> String {
    let hash = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inside = page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(inside, _)| inside);
        to_base64(&Sha256::digest(inside))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src 'self' data: blob:; connect-src 'self' blob:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_alone() {
        assert!(PAGE.len() < 200_000);
        assert!(!PAGE.contains("innerHTML") && !PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains(" style=\""));
        assert!(policy(PAGE).contains("script-src 'sha256-") && !policy(PAGE).contains("sha256-47DEQpj8HBSa"), "the hash of nothing");
    }
}
