//! What A1111's clients send, as settings of the table. What is not understood is named.
//!
//! # Source
//! stable-diffusion-webui@v1.10:modules/api/models.py, modules/api/api.py, modules/processing.py; sd-webui-controlnet's `ControlNetUnit`.

use crate::server::files::{from_base64, to_base64};
use crate::server::settings::SettingProblem;
use ::image::ImageFormat;
use serde_json::{Map, Value as Json, json};
use std::io::Cursor;

/// A request of a client's, translated.
#[derive(Debug, Default)]
pub(super) struct TranslatedRequest {
    pub(super) settings: Map<String, Json>,
    /// Fields and values that have no meaning here.
    pub(super) not_understood: Vec<String>,
    pub(super) problems: Vec<SettingProblem>,
    /// The images are in the answer.
    pub(super) sends_images: bool,
    /// They are wanted on the server's disk too.
    pub(super) saves_images: bool,
    /// What the client calls its task.
    pub(super) task: Option<String>,
}

/// Fields with their settings, whose values are taken as they are.
pub(in crate::server) const PLAIN: &[(&str, &str)] = &[
    ("prompt", "prompt"),
    ("negative_prompt", "negative-prompt"),
    ("steps", "steps"),
    ("cfg_scale", "guidance-scale"),
    ("width", "width"),
    ("height", "height"),
    ("seed", "seed"),
    ("eta", "eta"),
    ("s_min_uncond", "ngms"),
    ("mask_blur", "mask-blur"),
    ("inpaint_full_res_padding", "inpaint-padding"),
    ("refiner_checkpoint", "refiner"),
    ("refiner_switch_at", "refiner-switch"),
    ("styles", "style"),
    ("hr_upscaler", "hires-upscaler"),
    ("hr_sampler_name", "hires-sampler"),
    ("image_cfg_scale", "image-guidance-scale"),
];

/// Fields that say how the web UI keeps its own house.
const HOUSEKEEPING: &[&str] = &[
    "do_not_save_samples",
    "do_not_save_grid",
    "override_settings_restore_afterwards",
    "comments",
    "include_init_images",
    "disable_extra_networks",
    "firstphase_width",
    "firstphase_height",
];

/// Values that are the same as none.
fn is_nothing(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(on) => !on,
        Json::String(text) => {
            text.is_empty()
                || matches!(
                    text.as_str(),
                    "None" | "none" | "Automatic" | "Use same sampler" | "Use same scheduler" | "Use same checkpoint"
                )
        }
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::Array(items) => items.is_empty(),
        Json::Object(object) => object.is_empty(),
    }
}

fn number(body: &Map<String, Json>, key: &str) -> f64 {
    body.get(key).and_then(Json::as_f64).unwrap_or_default()
}

/// Translates a request; `from_image` is `img2img`.
pub(super) fn translate(mut body: Map<String, Json>, from_image: bool) -> TranslatedRequest {
    let mut out = TranslatedRequest { sends_images: true, ..TranslatedRequest::default() };
    let set = |out: &mut TranslatedRequest, name: &str, value: Json| drop(out.settings.insert(name.to_owned(), value));
    set(&mut out, "like", "a1111".into());
    let mut take = |key: &str| body.remove(key).unwrap_or_default();
    for (field, setting) in PLAIN {
        let value = take(field);
        let may_be_nothing = matches!(
            *field,
            "steps" | "cfg_scale" | "width" | "height" | "prompt" | "negative_prompt" | "seed" | "mask_blur" | "inpaint_full_res_padding"
        );
        if value.is_null() || !may_be_nothing && is_nothing(&value) {
            continue;
        }
        // A negative seed is a random one.
        if *field == "seed" && value.as_f64().is_some_and(|seed| seed < 0.0) {
            continue;
        }
        set(&mut out, setting, value);
    }
    out.settings.entry("prompt").or_insert_with(|| "".into());
    // A model that a request does not name is the server's.
    let size_is_left = (out.settings.get("width").is_some(), out.settings.get("height").is_some()) == (false, false);
    let (sampler, index, schedule) = (take("sampler_name"), take("sampler_index"), take("scheduler"));
    for (name, value) in [("sampler", sampler), ("sampler", index)] {
        if !is_nothing(&value) && !out.settings.contains_key(name) {
            set(&mut out, name, value);
        }
    }
    match schedule.as_str().map(|name| name.trim().to_lowercase().replace([' ', '-'], "_")) {
        Some(name) if !name.is_empty() && name != "use_same_scheduler" => set(&mut out, "schedule", name.into()),
        _ => {}
    }
    if take("tiling") == Json::Bool(true) {
        set(&mut out, "tiling", "both".into());
    }
    let images = [take("batch_size"), take("n_iter")].iter().map(|n| n.as_u64().unwrap_or(1).max(1)).fold(1u64, u64::saturating_mul);
    set(&mut out, "images", images.into());
    let (subseed, strength) = (take("subseed"), take("subseed_strength"));
    if !is_nothing(&strength) {
        set(&mut out, "variation-strength", strength);
        if subseed.as_f64().is_some_and(|seed| seed >= 0.0) {
            set(&mut out, "variation-seed", subseed);
        }
    }
    let resize_from = (take("seed_resize_from_w"), take("seed_resize_from_h"));
    if let (Some(width @ 1..), Some(height @ 1..)) = (resize_from.0.as_i64(), resize_from.1.as_i64()) {
        set(&mut out, "seed-resize-from", format!("{width}x{height}").into());
    }
    churn(&mut take, &mut out);
    let strength = take("denoising_strength");
    let hires = take("enable_hr") == Json::Bool(true);
    let resize: Map<String, Json> = ["hr_scale", "hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_steps"]
        .into_iter()
        .map(|key| (key.to_owned(), take(key)))
        .collect();
    if from_image {
        if !strength.is_null() {
            set(&mut out, "strength", strength);
        }
        inputs(&mut take, &mut out);
    } else if hires {
        enlarge(&resize, size_is_left, &mut out);
        if !strength.is_null() {
            set(&mut out, "hires-strength", strength);
        }
    }
    if !hires {
        out.settings.remove("hires-upscaler");
        out.settings.remove("hires-sampler");
    }
    if !out.settings.contains_key("refiner") {
        out.settings.remove("refiner-switch");
    }
    if !(from_image && out.settings.contains_key("mask")) {
        out.settings.remove("mask-blur");
        out.settings.remove("inpaint-padding");
    }
    overrides(take("override_settings"), &mut out);
    scripts(take("alwayson_scripts"), &mut out);
    out.sends_images = take("send_images") != Json::Bool(false);
    out.saves_images = take("save_images") == Json::Bool(true);
    out.task = take("force_task_id").as_str().map(str::to_owned);
    for key in HOUSEKEEPING {
        take(key);
    }
    for (key, value) in &body {
        // What is off or empty asks for nothing.
        let usual = matches!((key.as_str(), value.as_f64()), ("resize_mode", Some(0.0)) | ("initial_noise_multiplier", Some(1.0)));
        if !is_nothing(value) && !usual {
            out.not_understood.push(key.clone());
        }
    }
    out
}

/// Options of samplers.
fn churn(take: &mut impl FnMut(&str) -> Json, out: &mut TranslatedRequest) {
    let mut options = Vec::new();
    for (key, usual) in [("s_churn", 0.0), ("s_tmin", 0.0), ("s_tmax", f64::INFINITY), ("s_noise", 1.0)] {
        match take(key).as_f64() {
            // A1111's own interface sends 0 for no end.
            Some(value) if value != usual && !(key == "s_tmax" && value == 0.0) => options.push(Json::String(format!("{key}={value}"))),
            _ => {}
        }
    }
    if !options.is_empty() {
        out.settings.insert("sampler-option".into(), options.into());
    }
}

/// The second pass.
fn enlarge(resize: &Map<String, Json>, size_is_left: bool, out: &mut TranslatedRequest) {
    let (width, height) = (number(resize, "hr_resize_x"), number(resize, "hr_resize_y"));
    let own = |key: &str| out.settings.get(key).and_then(Json::as_f64).unwrap_or(512.0);
    let scale = match (width > 0.0, height > 0.0) {
        (false, false) => number(resize, "hr_scale"),
        _ if size_is_left => {
            out.problems.push(SettingProblem::new("hr_resize_x", "give width and height with it, or hr_scale"));
            return;
        }
        (true, false) => width / own("width"),
        (false, true) => height / own("height"),
        (true, true) => {
            let (x, y) = (width / own("width"), height / own("height"));
            if (x - y).abs() > 0.01 * x {
                out.problems.push(SettingProblem::new(
                    "hr_resize_x",
                    "the second pass keeps the first one's proportions; give one side, or hr_scale",
                ));
            }
            x
        }
    };
    out.settings.insert("hires".into(), json!(if scale > 0.0 { scale } else { 2.0 }));
    let steps = number(resize, "hr_second_pass_steps").max(number(resize, "hr_steps"));
    if steps > 0.0 {
        out.settings.insert("hires-steps".into(), json!(steps as u64));
    }
}

/// Init image and mask.
fn inputs(take: &mut impl FnMut(&str) -> Json, out: &mut TranslatedRequest) {
    let (images, mask) = (take("init_images"), take("mask"));
    let fill = take("inpainting_fill");
    let (invert, whole) = (take("inpainting_mask_invert"), take("inpaint_full_res"));
    let (x, y) = (take("mask_blur_x"), take("mask_blur_y"));
    match images.as_array().map(Vec::as_slice) {
        Some([Json::String(image)]) => drop(out.settings.insert("init-image".into(), json!({ "data": image }))),
        Some([]) | None => out.problems.push(SettingProblem::new("init_images", "give an image in base64")),
        Some([_]) => out.problems.push(SettingProblem::new("init_images[0]", "give an image in base64")),
        Some(_) => out.problems.push(SettingProblem::new("init_images", "give one image; send a request for each")),
    }
    let Json::String(mask) = mask else { return };
    let image = images.get(0).and_then(Json::as_str).unwrap_or_default();
    match fitted(&mask, image) {
        Ok(mask) => drop(out.settings.insert("mask".into(), json!({ "data": mask }))),
        Err(what) => out.problems.push(SettingProblem::new("mask", what)),
    }
    let word = match fill.as_u64() {
        Some(0) => Some("blur"),
        Some(2) => Some("noise"),
        Some(3) => Some("zero"),
        None | Some(1) => None,
        Some(_) => {
            out.problems
                .push(SettingProblem::new("inpainting_fill", "give 0 (fill), 1 (original), 2 (latent noise) or 3 (latent nothing)"));
            None
        }
    };
    // What A1111 begins with where nothing is said.
    let word = if fill.is_null() { Some("blur") } else { word };
    if let Some(word) = word {
        out.settings.insert("inpaint-fill".into(), word.into());
    }
    if matches!(invert, Json::Bool(true)) || invert.as_f64() == Some(1.0) {
        out.settings.insert("invert-mask".into(), true.into());
    }
    // A1111's default is the masked part alone.
    if !(whole == Json::Bool(false) || whole.as_f64() == Some(0.0)) {
        out.settings.insert("inpaint-area".into(), "masked".into());
    }
    match (x.as_f64(), y.as_f64()) {
        (Some(x), Some(y)) if x != y => out.not_understood.push("mask_blur_x other than mask_blur_y".into()),
        (Some(blur), _) | (None, Some(blur)) if !out.settings.contains_key("mask-blur") => {
            out.settings.insert("mask-blur".into(), blur.into());
        }
        _ => {}
    }
}

/// A mask as large as its image, as A1111 lays it over.
fn fitted(mask: &str, image: &str) -> Result<String, String> {
    let decode = |text: &str| crate::image::decode(&from_base64(text)?).map_err(|error| error.to_string());
    let (decoded, image) = (decode(mask)?, decode(image).map_err(|what| format!("cannot be laid over the image, which {what}"))?);
    // A mask that is the image itself is grey too here, where the setting means its transparency: it is drawn anew.
    if decoded.rgb.dimensions() == image.rgb.dimensions() && decoded.alpha.is_none() && decoded.rgb != image.rgb {
        return Ok(mask.to_owned());
    }
    // Clients that draw on a transparent canvas mark by opacity.
    let luma = decoded.luma();
    let drawn = match &decoded.alpha {
        Some(alpha) if luma.pixels().all(|pixel| pixel.0[0] == 0) => alpha.clone(),
        _ => luma,
    };
    let (width, height) = image.rgb.dimensions();
    let resized = ::image::imageops::resize(&drawn, width, height, ::image::imageops::FilterType::Triangle);
    let mut png = Cursor::new(Vec::new());
    resized.write_to(&mut png, ImageFormat::Png).map_err(|error| format!("cannot be resized: {error}"))?;
    Ok(to_base64(png.get_ref()))
}

/// `override_settings`: options for one request.
fn overrides(value: Json, out: &mut TranslatedRequest) {
    let Json::Object(options) = value else { return };
    for (key, value) in options {
        match option(&key, &value) {
            Some(Some((setting, value))) => drop(out.settings.insert(setting.to_owned(), value)),
            Some(None) => {}
            None => out.not_understood.push(format!("override_settings.{key}")),
        }
    }
}

/// An option as a setting; nothing in it where it asks for nothing, nothing at all where it is not known.
pub(super) fn option(key: &str, value: &Json) -> Option<Option<(&'static str, Json)>> {
    if is_nothing(value) {
        return Some(None);
    }
    let text = || value.as_str().map(model_name);
    match key {
        "sd_model_checkpoint" => text().map(|name| Some(("model", name.into()))),
        "sd_vae" => text().map(|name| Some(("vae", name.into()))),
        "CLIP_stop_at_last_layers" => Some((value.as_f64() != Some(1.0)).then(|| ("clip-skip", value.clone()))),
        "eta_noise_seed_delta" => Some(Some(("ensd", value.clone()))),
        "randn_source" => Some(Some(("rng", if value == "CPU" { "torch-cpu".into() } else { "torch-cuda".into() }))),
        "samples_format" | "grid_save" | "samples_save" | "return_grid" | "save_images_add_number" | "live_previews_enable" => Some(None),
        _ => None,
    }
}

/// `name.safetensors [hash]` is a model's title.
pub(super) fn model_name(title: &str) -> String {
    let name = title.rsplit_once(" [").filter(|(_, hash)| hash.ends_with(']')).map_or(title, |(name, _)| name);
    name.trim().trim_end_matches(".safetensors").to_owned()
}

/// `alwayson_scripts`: the units of a ControlNet.
fn scripts(value: Json, out: &mut TranslatedRequest) {
    let Json::Object(scripts) = value else { return };
    let mut controls = Vec::new();
    for (name, script) in scripts {
        if !name.eq_ignore_ascii_case("controlnet") {
            if script.get("args").is_some_and(|args| !is_nothing(args)) {
                out.not_understood.push(format!("alwayson_scripts.{name}"));
            }
            continue;
        }
        let units = script.get("args").and_then(Json::as_array).cloned().unwrap_or_default();
        for (at, unit) in units.iter().enumerate() {
            let Json::Object(unit) = unit else { continue };
            if unit.get("enabled") == Some(&Json::Bool(false)) || !unit.contains_key("model") && !unit.contains_key("image") {
                continue;
            }
            controls.push(control(at, unit, out));
        }
    }
    if !controls.is_empty() {
        out.settings.insert("control".into(), controls.into());
    }
}

fn control(at: usize, unit: &Map<String, Json>, out: &mut TranslatedRequest) -> Json {
    let path = format!("alwayson_scripts.controlnet.args[{at}]");
    let mut made = Map::new();
    let text = |value: &Json| value.as_str().or_else(|| value.get("image")?.as_str()).map(str::to_owned);
    let image = ["image", "input_image"].iter().find_map(|key| text(unit.get(*key)?));
    match (image, out.settings.get("init-image")) {
        (Some(image), _) => drop(made.insert("image".into(), json!({ "data": image }))),
        // A unit without an image of its own takes the init image.
        (None, Some(init)) => drop(made.insert("image".into(), init.clone())),
        (None, None) => out.problems.push(SettingProblem::new(format!("{path}.image"), "give the image that the ControlNet follows")),
    }
    match unit.get("model").and_then(Json::as_str) {
        Some(model) if !is_nothing(&model.into()) => drop(made.insert("model".into(), model_name(model).into())),
        _ => out.problems.push(SettingProblem::new(format!("{path}.model"), "give the ControlNet's name")),
    }
    if let Some(module) = unit.get("module").and_then(Json::as_str).filter(|module| !is_nothing(&Json::from(*module))) {
        made.insert("preprocess".into(), module.into());
    }
    if let Some(kind) = unit.get("union_control_type").and_then(Json::as_str).filter(|kind| !kind.eq_ignore_ascii_case("unknown")) {
        made.insert("type".into(), kind.into());
    }
    for (key, to) in [("weight", "weight"), ("guidance_start", "start"), ("guidance_end", "end")] {
        if let Some(number) = unit.get(key).filter(|value| value.is_number()) {
            made.insert(to.into(), number.clone());
        }
    }
    const KNOWN: &[&str] = &[
        "image",
        "input_image",
        "model",
        "module",
        "weight",
        "guidance_start",
        "guidance_end",
        "enabled",
        "pixel_perfect",
        "lowvram",
        "low_vram",
        "processor_res",
        "threshold_a",
        "threshold_b",
        "resize_mode",
        "save_detected_map",
        "hr_option",
        "input_mode",
        "is_ui",
        "batch_images",
        "output_dir",
        "loopback",
        "use_preview_as_input",
        "generated_image",
        "advanced_weighting",
        "union_control_type",
        "inpaint_crop_input_image",
        "effective_region_mask",
    ];
    let usual = |key: &str, value: &Json| match key {
        "control_mode" => value.as_u64() == Some(0) || value == "Balanced",
        _ => KNOWN.contains(&key) || is_nothing(value),
    };
    out.not_understood.extend(unit.iter().filter(|(key, value)| !usual(key, value)).map(|(key, _)| format!("{path}.{key}")));
    Json::Object(made)
}
