//! The one table of routes: the router is built from it, and so is the OpenAPI document. A route is a row of its language's module.

use super::{Server, a1111, answer, comfyui, metrics, native, openai, openapi, page, streams};
use axum::Router;
use axum::routing::MethodRouter;
use std::sync::Arc;

/// Whose language a route speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiGroup {
    Native,
    A1111,
    OpenAi,
    ComfyUi,
    Server,
}

impl ApiGroup {
    pub(super) const ALL: &[ApiGroup] = &[ApiGroup::Native, ApiGroup::A1111, ApiGroup::OpenAi, ApiGroup::ComfyUi, ApiGroup::Server];

    /// The tag in the document, and what it says of itself.
    pub(super) fn tag(self) -> (&'static str, &'static str) {
        match self {
            Self::Native => ("jobs", "Jobs whose settings are those of the command line, by the same names"),
            Self::A1111 => ("a1111", "AUTOMATIC1111's API"),
            Self::OpenAi => ("openai", "OpenAI's images API"),
            Self::ComfyUi => ("comfyui", "ComfyUI's API for graphs of the standard nodes; each path is there behind /api too"),
            Self::Server => ("server", "The server itself"),
        }
    }

    /// The schema of its errors.
    pub(super) fn error(self) -> &'static str {
        match self {
            Self::Native | Self::Server => "Error",
            Self::A1111 => "WebUiError",
            Self::OpenAi => "OpenAiError",
            Self::ComfyUi => "ComfyError",
        }
    }
}

/// The methods that routes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Delete,
}

impl Verb {
    /// As OpenAPI writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }
}

/// What the body of a request can be; schemas by their names.
#[derive(Debug, Clone, Copy)]
pub(super) enum TakenBody {
    None,
    Json(&'static str),
    /// A body may be left out.
    OptionalJson(&'static str),
    Form(&'static str),
    /// Either of them.
    JsonOrForm(&'static str, &'static str),
}

/// What an answer holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum GivenBody {
    /// A schema by its name.
    Json(&'static str),
    /// JSON, or server-sent events where the request asks for a stream.
    JsonOrEvents(&'static str),
    /// An image of one of the types.
    Image(&'static [&'static str]),
    /// Text of a type.
    Text(&'static str),
    Nothing,
}

/// What a parameter of the query may say.
#[derive(Debug, Clone, Copy)]
pub(super) enum QueryKind {
    Text,
    Whole(u64, u64),
    Switch,
    Words(&'static [&'static str]),
}

/// A parameter of the query: its name, what it may say, and what it does.
pub(super) type QueryField = (&'static str, QueryKind, &'static str);

/// A route.
pub(super) struct ServerRoute {
    pub(super) verb: Verb,
    /// As axum writes it; `{*name}` takes the rest of the path.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) handler: fn() -> MethodRouter<Arc<Server>>,
    pub(super) query: &'static [QueryField],
    pub(super) takes: TakenBody,
    pub(super) gives: &'static [(u16, GivenBody)],
    /// Statuses of errors beside those that every route has.
    pub(super) fails: &'static [u16],
    /// It is answered without a key.
    pub(super) is_open: bool,
}

impl ServerRoute {
    const fn new(verb: Verb, path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<Arc<Server>>) -> Self {
        Self { verb, path, summary, handler, query: &[], takes: TakenBody::None, gives: &[], fails: &[], is_open: false }
    }

    pub(super) const fn get(path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<Arc<Server>>) -> Self {
        Self::new(Verb::Get, path, summary, handler)
    }

    pub(super) const fn post(path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<Arc<Server>>) -> Self {
        Self::new(Verb::Post, path, summary, handler)
    }

    pub(super) const fn delete(path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<Arc<Server>>) -> Self {
        Self::new(Verb::Delete, path, summary, handler)
    }

    pub(super) const fn query(self, query: &'static [QueryField]) -> Self {
        Self { query, ..self }
    }

    pub(super) const fn takes(self, takes: TakenBody) -> Self {
        Self { takes, ..self }
    }

    pub(super) const fn gives(self, gives: &'static [(u16, GivenBody)]) -> Self {
        Self { gives, ..self }
    }

    pub(super) const fn fails(self, fails: &'static [u16]) -> Self {
        Self { fails, ..self }
    }

    pub(super) const fn open(self) -> Self {
        Self { is_open: true, ..self }
    }
}

/// Every route with its language.
pub(super) fn all() -> impl Iterator<Item = (ApiGroup, &'static ServerRoute)> {
    let tables: [(ApiGroup, &'static [ServerRoute]); 8] = [
        (ApiGroup::Native, native::ROUTES),
        (ApiGroup::Native, streams::ROUTES),
        (ApiGroup::A1111, a1111::ROUTES),
        (ApiGroup::OpenAi, openai::ROUTES),
        (ApiGroup::ComfyUi, comfyui::ROUTES),
        (ApiGroup::Server, metrics::ROUTES),
        (ApiGroup::Server, openapi::ROUTES),
        (ApiGroup::Server, page::ROUTES),
    ];
    tables.into_iter().flat_map(|(group, routes)| routes.iter().map(move |route| (group, route)))
}

/// Whether a path is answered without a key.
pub(super) fn is_open(path: &str) -> bool {
    all().any(|(_, route)| route.is_open && route.path == path)
}

/// The router of all of them.
pub(super) fn router() -> Router<Arc<Server>> {
    let router = all().fold(Router::new(), |router, (group, route)| {
        let router = router.route(route.path, (route.handler)());
        // As ComfyUI's own page asks for it.
        if group == ApiGroup::ComfyUi { router.route(&format!("/api{}", route.path), (route.handler)()) } else { router }
    });
    router.fallback(answer::not_found).method_not_allowed_fallback(answer::not_allowed)
}
