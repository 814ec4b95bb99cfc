//! A setting's row as a JSON schema.

use crate::server::RequestLimits;
use crate::server::settings::{ALLOWED_PATHS, CLIENT_FILES, MOST_VALUES, STEERING, refusal};
use crate::settings::{Setting, ValueKind, table};
use serde_json::{Map, Value as Json, json};

/// What may be said of an image, each setting under its name.
pub(super) fn settings(limits: &RequestLimits) -> Json {
    let rows = table().iter().filter(|row| refusal(row).is_none());
    let properties: Map<String, Json> = rows.map(|row| (row.name.to_owned(), schema(row, Some(limits)))).collect();
    json!({
        "type": "object", "properties": properties, "additionalProperties": false,
        "anyOf": [{ "required": ["prompt"] }, { "required": ["recreate"] }],
    })
}

/// The same as fields of a form: text, and files.
pub(super) fn form() -> Json {
    let rows = table().iter().filter(|row| refusal(row).is_none());
    let mut properties: Map<String, Json> = rows
        .map(|row| {
            let is_file = CLIENT_FILES.contains(&row.name);
            let field = if is_file { json!({ "type": "string", "format": "binary" }) } else { json!({ "type": "string" }) };
            (row.name.to_owned(), field)
        })
        .collect();
    let note = "Settings as JSON, beside the files that they name as {\"part\": FIELD}";
    properties.insert("settings".into(), json!({ "type": "string", "contentMediaType": "application/json", "description": note }));
    json!({ "type": "object", "properties": properties })
}

/// What a setting's value can be.
pub(super) fn schema(row: &Setting, limits: Option<&RequestLimits>) -> Json {
    let item = item(row, limits);
    let mut whole = if row.many { json!({ "anyOf": [item, { "type": "array", "items": item, "maxItems": MOST_VALUES }] }) } else { item };
    let Some(object) = whole.as_object_mut() else { return whole };
    let default = if row.default.is_empty() { String::new() } else { format!(". Default: {}", row.default) };
    object.insert("description".into(), format!("{}{default}", row.help).into());
    if let Ok(default) = serde_json::from_str::<serde_json::Number>(row.default)
        && matches!(row.kind, ValueKind::Whole | ValueKind::Number)
    {
        object.insert("default".into(), default.into());
    }
    whole
}

fn item(row: &Setting, limits: Option<&RequestLimits>) -> Json {
    let name = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    if CLIENT_FILES.contains(&row.name) {
        return json!({ "anyOf": [name("FileValue")] });
    }
    if ALLOWED_PATHS.contains(&row.name) {
        return json!({ "type": "string" });
    }
    if STEERING.contains(&row.name) {
        return json!({ "anyOf": [{ "type": "string" }, name("SteeringValue")] });
    }
    if row.name == "lora" {
        return json!({ "anyOf": [{ "type": "string" }, name("LoraValue")] });
    }
    let mut schema = match row.kind {
        ValueKind::Switch | ValueKind::Count => json!({ "type": "boolean" }),
        ValueKind::Whole => json!({ "type": "integer" }),
        ValueKind::Number => json!({ "type": "number" }),
        ValueKind::Path | ValueKind::File | ValueKind::Text => json!({ "type": "string" }),
        // Lists of numbers and words that are numbers are words here.
        ValueKind::Word => json!({ "type": ["string", "number", "boolean", "array"], "items": { "type": ["string", "number"] } }),
    };
    let Some(object) = schema.as_object_mut() else { return schema };
    let is_number = matches!(row.kind, ValueKind::Whole | ValueKind::Number);
    let (mut least, mut most) = row.range.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    // Numbers that cannot be negative say so when they are read.
    if row.kind == ValueKind::Whole && row.check(&["-1".into()]).is_err() {
        least = least.max(0.0);
    }
    match (row.name, limits) {
        ("steps", Some(limits)) => most = most.min(limits.steps as f64),
        ("images", Some(limits)) => most = most.min(limits.images as f64),
        _ => {}
    }
    if is_number && least.is_finite() {
        object.insert("minimum".into(), least.into());
    }
    if is_number && most.is_finite() {
        object.insert("maximum".into(), most.into());
    }
    let words = (row.words)();
    if !words.is_empty() {
        object.insert("examples".into(), words.into());
    } else if !row.example.is_empty() && matches!(row.kind, ValueKind::Text | ValueKind::Word) {
        object.insert("examples".into(), json!([row.example]));
    }
    schema
}
