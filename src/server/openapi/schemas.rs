//! The schemas of requests and answers, by their names.

use super::setting;
use crate::server::RequestLimits;
use crate::server::a1111::PLAIN;
use serde_json::{Map, Value as Json, json};

fn refer(name: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object whose fields have these schemas; those before a `!` are always there.
fn object(fields: &[(&str, Json)]) -> Json {
    let required: Vec<&str> = fields.iter().filter_map(|(name, _)| name.strip_suffix('!')).collect();
    let properties: Map<String, Json> =
        fields.iter().map(|(name, schema)| (name.trim_end_matches('!').to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn list(item: Json) -> Json {
    json!({ "type": "array", "items": item })
}

fn or_null(kind: &str) -> Json {
    json!({ "type": [kind, "null"] })
}

fn text() -> Json {
    json!({ "type": "string" })
}

fn whole() -> Json {
    json!({ "type": "integer", "minimum": 0 })
}

fn number() -> Json {
    json!({ "type": "number" })
}

fn switch() -> Json {
    json!({ "type": "boolean" })
}

fn anything() -> Json {
    json!({ "type": "object" })
}

fn binary() -> Json {
    json!({ "type": "string", "format": "binary" })
}

/// All of them.
pub(super) fn all(limits: &RequestLimits) -> Map<String, Json> {
    let mut schemas = Map::new();
    let groups = [errors(), native(limits), a1111(), openai(), comfyui()];
    schemas.extend(groups.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)));
    schemas
}

type Schemas = Vec<(&'static str, Json)>;

fn errors() -> Schemas {
    let problem = object(&[("path!", text()), ("message!", text())]);
    let error = object(&[("status!", whole()), ("message!", text()), ("problems!", list(problem))]);
    let openai = object(&[("message!", text()), ("type!", text()), ("param!", or_null("string")), ("code!", or_null("string"))]);
    vec![
        ("Anything", anything()),
        ("ObjectOrNull", or_null("object")),
        ("ObjectList", list(anything())),
        ("Error", object(&[("error!", error)])),
        ("WebUiError", object(&[("error!", text()), ("detail!", text()), ("errors!", text()), ("body!", text())])),
        ("ComfyError", object(&[("error!", anything()), ("node_errors!", anything())])),
        ("OpenAiError", object(&[("error!", openai)])),
    ]
}

fn native(limits: &RequestLimits) -> Schemas {
    let state = json!({ "type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"] });
    let image = object(&[
        ("index!", whole()),
        ("state!", state.clone()),
        ("seed!", whole()),
        ("width!", whole()),
        ("height!", whole()),
        ("url", text()),
        ("parameters", text()),
        ("reason", text()),
    ]);
    let progress = object(&[
        ("fraction!", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        ("image!", or_null("integer")),
        ("stage!", or_null("string")),
        ("step!", or_null("integer")),
        ("steps!", or_null("integer")),
        ("seconds_left!", or_null("number")),
        ("previews!", whole()),
    ]);
    let job = object(&[
        ("id!", text()),
        ("state!", state.clone()),
        ("position!", or_null("integer")),
        ("origin!", text()),
        ("created!", number()),
        ("started!", or_null("number")),
        ("ended!", or_null("number")),
        ("progress!", progress),
        ("images!", list(image)),
        ("settings!", anything()),
        ("remarks!", list(text())),
        ("error!", or_null("string")),
    ]);
    let links = object(&[("self!", text()), ("events!", text()), ("ws!", text()), ("preview!", text())]);
    let file = json!({ "anyOf": [
        { "type": "string", "description": "A data URL, or a path inside an allowed folder" },
        { "type": "object", "properties": { "data": { "type": "string", "contentEncoding": "base64" } }, "required": ["data"], "additionalProperties": false },
        { "type": "object", "properties": { "part": { "type": "string" } }, "required": ["part"], "additionalProperties": false },
        { "type": "object", "properties": { "path": { "type": "string" } }, "required": ["path"], "additionalProperties": false },
    ] });
    let lora = json!({
        "type": "object", "required": ["name"], "additionalProperties": false,
        "properties": { "name": { "type": "string" }, "weight": { "type": "number" }, "text_weight": { "type": "number" } },
    });
    let names = || list(text());
    vec![
        ("Settings", setting::settings(limits)),
        ("SettingsForm", setting::form()),
        ("FileValue", file),
        ("SteeringValue", object(&[("model!", text()), ("image", refer("FileValue")), ("weight", number())])),
        ("LoraValue", lora),
        ("AcceptedJob", object(&[("id!", text()), ("state!", text()), ("position!", whole()), ("links!", links)])),
        ("Job", job),
        ("JobList", object(&[("jobs!", list(refer("Job")))])),
        ("CancelledJob", object(&[("id!", text()), ("state!", state), ("forgotten!", switch())])),
        ("SettingList", object(&[("settings!", list(anything())), ("defaults!", anything()), ("limits!", anything())])),
        (
            "NamedFiles",
            object(&[
                ("models!", names()),
                ("model!", text()),
                ("loras!", names()),
                ("embeddings!", names()),
                ("vaes!", names()),
                ("controls!", names()),
                ("upscalers!", names()),
            ]),
        ),
        (
            "EncodedImage",
            object(&[("image!", json!({ "type": "string", "description": "Base64, with or without a data URL's beginning" }))]),
        ),
        ("ImageForm", object(&[("image!", binary())])),
        (
            "InspectedImage",
            object(&[("settings!", anything()), ("notes!", list(text())), ("recipe!", or_null("object")), ("texts!", anything())]),
        ),
        ("Health", object(&[("status!", text()), ("version!", text())])),
        ("Ready", object(&[("status!", text()), ("waiting!", whole()), ("at_work!", whole()), ("loading!", or_null("object"))])),
    ]
}

fn a1111() -> Schemas {
    // Fields that are settings by another name have their schema.
    let plain = PLAIN.iter().map(|(field, setting)| {
        let schema = match *field {
            "seed" => json!({ "type": "integer", "minimum": -1 }),
            _ => crate::settings::find(setting).map_or_else(anything, |row| setting::schema(row, None)),
        };
        ((*field).to_owned(), schema)
    });
    let more = [
        ("sampler_name", text()),
        ("scheduler", text()),
        ("batch_size", json!({ "type": "integer", "minimum": 1 })),
        ("n_iter", json!({ "type": "integer", "minimum": 1 })),
        ("subseed", json!({ "type": "integer", "minimum": -1 })),
        ("subseed_strength", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        ("tiling", switch()),
        ("denoising_strength", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        ("override_settings", anything()),
        ("alwayson_scripts", anything()),
        ("send_images", switch()),
        ("save_images", switch()),
    ];
    let mut from_text: Map<String, Json> = plain.chain(more.map(|(name, schema)| (name.to_owned(), schema))).collect();
    let mut from_image = from_text.clone();
    for (name, schema) in [
        ("enable_hr", switch()),
        ("hr_scale", number()),
        ("hr_resize_x", whole()),
        ("hr_resize_y", whole()),
        ("hr_second_pass_steps", whole()),
    ] {
        from_text.insert(name.into(), schema);
    }
    for (name, schema) in [
        ("init_images", json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 1 })),
        ("mask", or_null("string")),
        ("inpainting_fill", json!({ "type": "integer", "minimum": 0, "maximum": 3 })),
        ("inpaint_full_res", switch()),
        ("inpainting_mask_invert", json!({ "type": "integer", "minimum": 0, "maximum": 1 })),
    ] {
        from_image.insert(name.into(), schema);
    }
    let state = object(&[("job_count!", whole()), ("job_no!", whole()), ("sampling_step!", whole()), ("sampling_steps!", whole())]);
    vec![
        ("TextToImageRequest", json!({ "type": "object", "properties": from_text })),
        ("ImageToImageRequest", json!({ "type": "object", "properties": from_image, "required": ["init_images"] })),
        ("WebUiImages", object(&[("images!", list(text())), ("parameters!", anything()), ("info!", text())])),
        (
            "WebUiProgress",
            object(&[("progress!", number()), ("eta_relative!", number()), ("current_image!", or_null("string")), ("state!", state)]),
        ),
        (
            "EnlargeRequest",
            object(&[
                ("image!", text()),
                ("upscaler_1", text()),
                ("resize_mode", json!({ "type": "integer", "minimum": 0, "maximum": 1 })),
                ("upscaling_resize", json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 8 })),
                ("upscaling_resize_w", whole()),
                ("upscaling_resize_h", whole()),
            ]),
        ),
    ]
}

fn openai() -> Schemas {
    let common = [
        ("prompt!", text()),
        ("model", text()),
        ("n", json!({ "type": "integer", "minimum": 1, "maximum": 10 })),
        ("size", json!({ "type": "string", "description": "WIDTHxHEIGHT, or auto" })),
        ("output_format", json!({ "type": "string", "enum": ["png", "jpeg", "webp"] })),
        ("output_compression", json!({ "type": "integer", "minimum": 0, "maximum": 100 })),
        ("response_format", json!({ "type": "string", "enum": ["b64_json", "url"] })),
        ("background", json!({ "type": "string", "enum": ["auto", "opaque"] })),
        ("quality", text()),
        ("stream", switch()),
        ("partial_images", json!({ "type": "integer", "minimum": 0, "maximum": 3 })),
        ("user", text()),
    ];
    let data_url = object(&[("image_url!", json!({ "type": "string", "description": "A data URL" }))]);
    let mut edit = common.to_vec();
    edit.extend([("images!", list(data_url.clone())), ("mask", data_url)]);
    let mut form = common.to_vec();
    form.extend([("image!", binary()), ("mask", binary())]);
    let image = object(&[("b64_json", text()), ("url", text())]);
    let model = object(&[("id!", text()), ("object!", text()), ("created!", whole()), ("owned_by!", text())]);
    vec![
        ("GenerationRequest", object(&common)),
        ("EditRequest", object(&edit)),
        ("EditForm", object(&form)),
        (
            "GeneratedImages",
            object(&[("created!", whole()), ("data!", list(image)), ("output_format!", text()), ("size!", text()), ("usage!", anything())]),
        ),
        ("Model", model),
        ("ModelList", object(&[("object!", text()), ("data!", list(refer("Model")))])),
    ]
}

fn comfyui() -> Schemas {
    let node = object(&[("class_type!", text()), ("inputs", anything())]);
    let graph = json!({ "type": "object", "additionalProperties": node });
    let exec = object(&[("queue_remaining!", whole())]);
    let entry = json!({ "type": "array", "description": "number, prompt_id, graph, extra_data, outputs" });
    let numbers = [("vram_total!", or_null("integer")), ("vram_free!", or_null("integer")), ("index!", or_null("integer"))];
    let mut device = vec![("name!", text()), ("type!", text())];
    device.extend(numbers);
    vec![
        (
            "GraphRequest",
            object(&[
                ("prompt!", graph),
                ("client_id", text()),
                ("prompt_id", json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" })),
                ("front", switch()),
                ("number", number()),
                ("extra_data", anything()),
            ]),
        ),
        ("AcceptedGraph", object(&[("prompt_id!", text()), ("number!", number()), ("node_errors!", anything())])),
        ("QueueRemaining", object(&[("exec_info!", exec)])),
        ("GraphQueue", object(&[("queue_running!", list(entry.clone())), ("queue_pending!", list(entry))])),
        ("GraphChange", object(&[("clear", switch()), ("delete", list(text()))])),
        ("UploadForm", object(&[("image!", binary()), ("overwrite", json!({ "type": "string", "enum": ["true", "false"] }))])),
        (
            "MaskForm",
            object(&[("image!", binary()), ("original_ref!", json!({ "type": "string", "contentMediaType": "application/json" }))]),
        ),
        ("UploadedImage", object(&[("name!", text()), ("subfolder!", text()), ("type!", text())])),
        ("SystemStats", object(&[("system!", anything()), ("devices!", list(object(&device)))])),
        ("Names", list(text())),
    ]
}
