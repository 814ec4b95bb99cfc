//! The API in OpenAPI 3.1's form, made from the table of routes and the table of settings, and a page that shows it.
//!
//! # Source
//! OpenAPI Specification 3.1.0; JSON Schema 2020-12.

mod schemas;
mod setting;

use super::Server;
use super::answer::ok;
use super::page::{html, policy};
use super::routes::{ApiGroup, GivenBody, QueryKind, ServerRoute, TakenBody, all};
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Map, Value as Json, json};
use std::sync::{Arc, LazyLock};

const PAGE: &str = include_str!("docs.html");
static POLICY: LazyLock<String> = LazyLock::new(|| policy(PAGE));

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::get("/openapi.json", "This document", || get(openapi)).gives(&[(200, GivenBody::Json("Anything"))]).open(),
    ServerRoute::get("/docs", "This document as a page", || get(|| async { html(PAGE, &POLICY) }))
        .gives(&[(200, GivenBody::Text("text/html"))])
        .open(),
];

async fn openapi(State(server): State<Arc<Server>>) -> Response {
    ok(&document(&schemas::all(&server.options.limits), server.options.api_key.is_some()))
}

/// The whole document.
fn document(schemas: &Map<String, Json>, needs_key: bool) -> Json {
    let mut paths: Map<String, Json> = Map::new();
    for (group, route) in all() {
        let path = route.path.replace("{*", "{");
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(route.verb.name().into(), operation(group, route));
        }
    }
    let tags: Vec<Json> =
        ApiGroup::ALL.iter().map(|group| group.tag()).map(|(name, is)| json!({ "name": name, "description": is })).collect();
    let security = if needs_key { json!([{ "bearer": [] }, { "key": [] }, { "basic": [] }]) } else { json!([]) };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "sd-gen", "version": env!("CARGO_PKG_VERSION"), "license": { "name": env!("CARGO_PKG_LICENSE") },
            "description": "Images by Stable Diffusion, on a server that keeps the model loaded.",
        },
        "servers": [{ "url": "/" }],
        "security": security,
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key" },
                "basic": { "type": "http", "scheme": "basic", "description": "The password is the key" },
            },
        },
    })
}

fn named(schema: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn operation(group: ApiGroup, route: &ServerRoute) -> Json {
    let in_path = route.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let in_path = in_path.map(|name| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } })
    });
    let in_query = route.query.iter().map(|(name, kind, what)| {
        let schema = match kind {
            QueryKind::Text => json!({ "type": "string" }),
            QueryKind::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            QueryKind::Switch => json!({ "type": "boolean" }),
            QueryKind::Words(words) => json!({ "type": "string", "enum": words }),
        };
        json!({ "name": name, "in": "query", "required": false, "description": what, "schema": schema })
    });
    let parameters: Vec<Json> = in_path.chain(in_query).collect();
    let mut operation = json!({
        "operationId": operation_id(route), "summary": route.summary, "tags": [group.tag().0], "responses": responses(group, route),
    });
    let Some(fields) = operation.as_object_mut() else { return operation };
    if !parameters.is_empty() {
        fields.insert("parameters".into(), parameters.into());
    }
    if let Some(body) = request_body(route.takes) {
        fields.insert("requestBody".into(), body);
    }
    if route.is_open {
        fields.insert("security".into(), json!([]));
    }
    operation
}

/// `post_v1_jobs`.
fn operation_id(route: &ServerRoute) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(route.verb.name()).chain(words).collect::<Vec<_>>().join("_")
}

fn request_body(takes: TakenBody) -> Option<Json> {
    let of = |kind: &str, schema: &str| (kind.to_owned(), json!({ "schema": named(schema) }));
    let (json, form) = ("application/json", "multipart/form-data");
    let (content, required): (Vec<(String, Json)>, bool) = match takes {
        TakenBody::None => return None,
        TakenBody::Json(schema) => (vec![of(json, schema)], true),
        TakenBody::OptionalJson(schema) => (vec![of(json, schema)], false),
        TakenBody::Form(schema) => (vec![of(form, schema)], true),
        TakenBody::JsonOrForm(schema, fields) => (vec![of(json, schema), of(form, fields)], true),
    };
    Some(json!({ "required": required, "content": content.into_iter().collect::<Map<_, _>>() }))
}

fn responses(group: ApiGroup, route: &ServerRoute) -> Json {
    let mut responses = Map::new();
    for (status, body) in route.gives {
        let content = match body {
            GivenBody::Json(schema) => json!({ "application/json": { "schema": named(schema) } }),
            GivenBody::JsonOrEvents(schema) => json!({
                "application/json": { "schema": named(schema) }, "text/event-stream": { "schema": { "type": "string" } },
            }),
            GivenBody::Image(kinds) => kinds.iter().map(|kind| ((*kind).to_owned(), json!({}))).collect::<Map<_, _>>().into(),
            GivenBody::Text(kind) => json!({ *kind: { "schema": { "type": "string" } } }),
            GivenBody::Nothing => Json::Null,
        };
        let mut response = json!({ "description": meaning(*status) });
        if let (false, Some(response)) = (content.is_null(), response.as_object_mut()) {
            response.insert("content".into(), content);
        }
        responses.insert(status.to_string(), response);
    }
    let mut fails: Vec<u16> = vec![403];
    if !route.is_open {
        fails.push(401);
    }
    if !matches!(route.takes, TakenBody::None) {
        fails.extend([400, 408, 413, 415]);
    }
    // A path or a query that is not UTF-8.
    if route.path.contains('{') || !route.query.is_empty() {
        fails.push(400);
    }
    fails.extend(route.fails);
    fails.sort_unstable();
    fails.dedup();
    for status in fails {
        // Whether anybody may ask at all is answered in one form for all languages.
        let schema = if [401, 403].contains(&status) { "Error" } else { group.error() };
        let mut content = json!({ "application/json": { "schema": named(schema) } });
        if let (400 | 426, Some(kinds)) = (status, content.as_object_mut()) {
            kinds.insert("text/plain".into(), json!({ "schema": { "type": "string" } }));
        }
        let mut response = json!({ "description": meaning(status), "content": content });
        if let (429, Some(response)) = (status, response.as_object_mut()) {
            response.insert(
                "headers".into(),
                json!({ "Retry-After": { "description": "Seconds", "schema": { "type": "integer", "minimum": 1 } } }),
            );
        }
        responses.insert(status.to_string(), response);
    }
    let default = json!({ "description": "Something failed that the request is not to blame for", "content": { "application/json": { "schema": named(group.error()) } } });
    responses.insert("500".into(), default);
    responses.into()
}

fn meaning(status: u16) -> &'static str {
    match status {
        101 => "The connection is a WebSocket from here on",
        200 => "As asked for",
        202 => "Accepted; it waits at the queue",
        204 => "There is nothing to send",
        400 => "The request makes no sense",
        401 => "The key is missing or another",
        403 => "Pages of this origin, or hosts of this name, may not ask",
        404 => "There is no such thing",
        408 => "The body took too long to come",
        409 => "The job was cancelled",
        413 => "The body is larger than the server takes",
        415 => "The body is of another type",
        422 => "Values are wrong; the answer says which",
        426 => "Ask for a WebSocket",
        429 => "The queue is full; Retry-After says when to come again",
        503 => "The server is stopping, or its memory does not suffice",
        _ => "Something else",
    }
}

#[cfg(test)]
mod tests {
    use super::super::RequestLimits;
    use super::*;

    fn made() -> Json {
        let limits = RequestLimits { body: 1 << 20, pixels: 1 << 20, steps: 150, images: 32, queue: 8 };
        document(&schemas::all(&limits), true)
    }

    /// Every reference of a document.
    fn references<'a>(json: &'a Json, found: &mut Vec<&'a str>) {
        match json {
            Json::Object(object) => object.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Json::String(to)) => found.push(to),
                _ => references(value, found),
            }),
            Json::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document = made();
        assert_eq!(document["openapi"], "3.1.0");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "{}", found.len());
        for to in &found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to} is nowhere");
        }
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        for name in schemas.keys() {
            assert!(found.iter().any(|to| to.rsplit('/').next() == Some(name)), "{name} is used nowhere");
        }
        let tags: Vec<&Json> = document["tags"].as_array().expect("tags").iter().map(|tag| &tag["name"]).collect();
        let mut ids = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            assert!(path.starts_with('/') && !path.contains("{*"), "{path}");
            for (verb, operation) in item.as_object().expect("an item") {
                assert!(["get", "post", "delete"].contains(&verb.as_str()), "{verb} {path}");
                assert!(tags.contains(&&operation["tags"][0]), "{verb} {path}");
                ids.push(operation["operationId"].as_str().expect("an id"));
                let responses = operation["responses"].as_object().expect("responses");
                assert!(responses.keys().any(|status| status.starts_with(['1', '2'])), "{verb} {path} is never answered");
                assert!(
                    responses.values().all(|response| response["description"].as_str().is_some_and(|text| text != "Something else")),
                    "{path}"
                );
                let in_path = path.matches('{').count();
                let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
                assert_eq!(parameters.iter().filter(|parameter| parameter["in"] == "path").count(), in_path, "{verb} {path}");
            }
        }
        ids.sort_unstable();
        assert!(ids.windows(2).all(|two| two[0] != two[1]), "an operation's id is there twice: {ids:?}");
    }

    #[test]
    fn every_route_is_in_it_and_none_is_invented() {
        let document = made();
        let operations =
            document["paths"].as_object().expect("paths").values().map(|item| item.as_object().map_or(0, Map::len)).sum::<usize>();
        assert_eq!(operations, all().count());
        assert!(operations > 40, "{operations}");
        // The router is built of the same rows; it panics where two say the same.
        drop(super::super::routes::router());
    }

    #[test]
    fn every_setting_is_a_field() {
        let document = made();
        let settings = &document["components"]["schemas"]["Settings"];
        let fields = settings["properties"].as_object().expect("fields");
        for row in crate::settings::table() {
            let may_be_said = super::super::settings::refusal(row).is_none();
            assert_eq!(fields.contains_key(row.name), may_be_said, "{}", row.name);
        }
        assert_eq!(fields["steps"]["maximum"], 150.0);
        assert!(fields["prompt"]["description"].as_str().is_some_and(|text| !text.is_empty()));
    }

    #[test]
    fn the_page_is_small_and_alone() {
        assert!(PAGE.len() < 10_000, "{}", PAGE.len());
        assert!(!PAGE.contains("innerHTML") && !PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains(" style=\""));
    }
}
