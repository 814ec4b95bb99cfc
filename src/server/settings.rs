//! From JSON to a draft: any setting of the table under its name, each value checked, and everything that is wrong said at once.

use super::files::FileDesk;
use crate::settings::{Draft, Effect, Parts, Setting, ValueKind, find, table};
use serde_json::{Map, Value as Json};

/// What is wrong with a value, and where it stands in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SettingProblem {
    /// Such as `steps` or `lora[1]`.
    pub(super) path: String,
    /// A sentence without its beginning.
    pub(super) what: String,
}

impl SettingProblem {
    pub(super) fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into() }
    }
}

/// A setting with its values as they would be typed.
pub(super) type GivenSetting = (&'static Setting, Vec<String>);

/// Of the settings of what is loaded, those that a request may have.
const MODEL_SETTINGS: &[&str] = &["model", "dtype", "vae-dtype", "vae-tiling"];

/// Settings whose value is a file of the client's: uploaded, in the request itself, or inside an allowed folder.
pub(super) const CLIENT_FILES: &[&str] = &["init-image", "mask", "recreate", "scheduler-config"];

/// Settings whose value is a folder or file that must be inside an allowed folder.
pub(super) const ALLOWED_PATHS: &[&str] = &["wildcards", "styles-file"];

/// Settings that name a network and an image.
pub(super) const STEERING: &[&str] = &["control", "ip-adapter"];

/// Values of one setting: more are no request of a person's.
pub(super) const MOST_VALUES: usize = 64;

/// Why a request may not have a setting; the end of a sentence.
pub(super) fn refusal(row: &Setting) -> Option<&'static str> {
    match row.effect {
        Effect::File => Some("the server names its files itself; leave it out"),
        Effect::Run => Some("is the server's own; give it to `sd-gen serve`"),
        Effect::Model if !MODEL_SETTINGS.contains(&row.name) => Some("is the server's own; give it to `sd-gen serve`"),
        _ => None,
    }
}

/// The settings of a request, read but not yet held against each other, and what is wrong with the others.
pub(super) fn given(body: &Map<String, Json>, desk: &mut FileDesk<'_>) -> (Vec<GivenSetting>, Vec<SettingProblem>) {
    let (mut given, mut problems): (Vec<GivenSetting>, Vec<SettingProblem>) = (Vec::new(), Vec::new());
    for (key, value) in body {
        let Some(row) = find(key) else {
            problems.push(SettingProblem::new(key, unknown(key)));
            continue;
        };
        if value.is_null() {
            continue;
        }
        if let Some(why) = refusal(row) {
            problems.push(SettingProblem::new(key, why));
            continue;
        }
        if given.iter().any(|(known, _)| known.name == row.name) {
            problems.push(SettingProblem::new(key, format!("is {} by another name, which is there too; give one of them", row.name)));
            continue;
        }
        match values(row, value, key, desk) {
            Ok(values) => given.push((row, values)),
            Err(wrong) => problems.extend(wrong),
        }
    }
    (given, problems)
}

fn unknown(key: &str) -> String {
    let nearest = table()
        .iter()
        .map(|row| (strsim::jaro_winkler(&crate::settings::fold(key), row.name), row.name))
        .filter(|(like, _)| *like > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let advice = nearest.map_or("GET /v1/settings lists what there is".to_owned(), |(_, name)| format!("did you mean \"{name}\"?"));
    format!("there is no such setting; {advice}")
}

fn values(row: &'static Setting, value: &Json, path: &str, desk: &mut FileDesk<'_>) -> Result<Vec<String>, Vec<SettingProblem>> {
    let one = |problem: SettingProblem| vec![problem];
    let items = match value {
        // A list in one word, such as the noise levels.
        Json::Array(items) if !row.many && row.kind == ValueKind::Word => {
            let words: Option<Vec<String>> = items.iter().map(scalar).collect();
            let words = words.ok_or_else(|| one(SettingProblem::new(path, "give numbers in the list")))?;
            return Ok(vec![words.join(",")]);
        }
        Json::Array(items) if !row.many && items.len() != 1 => {
            return Err(one(SettingProblem::new(path, format!("takes one value, and {} were given", items.len()))));
        }
        Json::Array(items) if items.len() > MOST_VALUES => {
            return Err(one(SettingProblem::new(path, format!("takes at most {MOST_VALUES} values"))));
        }
        Json::Array(items) => items.iter().enumerate().map(|(at, item)| (format!("{path}[{at}]"), item)).collect(),
        value => vec![(path.to_owned(), value)],
    };
    let (mut read, mut problems) = (Vec::new(), Vec::new());
    for (path, item) in items {
        let typed = typed(row, item, &path, desk).and_then(|typed| {
            let typed = row.kind.tidied(&typed);
            check(row, &typed).map_err(|what| SettingProblem::new(&path, what))?;
            Ok(typed)
        });
        match typed {
            Ok(typed) => read.push(typed),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

/// A value by itself: that it can be read, and lies in its range.
fn check(row: &Setting, typed: &str) -> Result<(), String> {
    if typed.contains('\0') {
        return Err("holds a NUL character; it is not text".into());
    }
    if row.kind.is_switch() && typed != "true" && typed != "false" {
        return Err("give true or false".into());
    }
    let mut alone = Draft::default();
    (row.access.read)(&mut alone, &[typed.into()]).map_err(|(_, what)| what)?;
    let Some((least, most)) = row.range else { return Ok(()) };
    match (row.access.numbers)(&alone).into_iter().find(|number| !(least..=most).contains(number)) {
        Some(number) => Err(format!("{number} is out of range: from {least} to {most}")),
        None => Ok(()),
    }
}

/// A value as it would be typed.
fn typed(row: &'static Setting, value: &Json, path: &str, desk: &mut FileDesk<'_>) -> Result<String, SettingProblem> {
    let problem = |what: String| SettingProblem::new(path, what);
    if CLIENT_FILES.contains(&row.name) {
        return desk.file(value).map_err(problem);
    }
    if ALLOWED_PATHS.contains(&row.name) {
        let text = value.as_str().ok_or_else(|| problem("give a path inside an allowed folder".into()))?;
        return desk.allowed(text).map_err(problem);
    }
    if STEERING.contains(&row.name) {
        return steering(value, path, desk);
    }
    if row.name == "lora"
        && let Json::Object(object) = value
    {
        return lora(object).map_err(problem);
    }
    let typed = scalar(value).ok_or_else(|| problem("give a number, true, false or a text".into()))?;
    let mut alone = Draft::default();
    let holds_file = row.kind == ValueKind::File
        || ((row.access.read)(&mut alone, &[typed.as_str().into()]).is_ok() && !(row.access.files)(&mut alone).is_empty());
    if row.kind == ValueKind::Path {
        return Err(problem("the server names its files itself; leave it out".into()));
    }
    if holds_file {
        desk.name(&typed).map_err(problem)?;
    }
    Ok(typed)
}

fn scalar(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(switch) => Some(switch.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

/// `{"name": "detail", "weight": 0.8, "text_weight": 0.5}`.
fn lora(object: &Map<String, Json>) -> Result<String, String> {
    if let Some(key) = object.keys().find(|key| !["name", "weight", "text_weight"].contains(&key.as_str())) {
        return Err(format!("a LoRA has name, weight and text_weight, and no {key:?}"));
    }
    let name = object.get("name").and_then(Json::as_str).ok_or("give the LoRA's name")?;
    let number = |key: &str| match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(format!("{key} is a number such as 0.8")),
    };
    Ok(match (number("weight")?, number("text_weight")?) {
        (None, None) => name.to_owned(),
        (weight, None) => format!("{name}:{}", weight.unwrap_or_default()),
        (weight, Some(text)) => format!("{name}:{}:{text}", weight.unwrap_or_else(|| "1".into())),
    })
}

/// `{"model": "canny", "image": …, "weight": 0.5}`, or as it is typed.
fn steering(value: &Json, path: &str, desk: &mut FileDesk<'_>) -> Result<String, SettingProblem> {
    let problem = |what: String| SettingProblem::new(path, what);
    let mut parts = match value {
        Json::String(text) => Parts::read(text).map_err(problem)?,
        Json::Object(object) => {
            let mut parts = Parts::default();
            for (key, value) in object {
                match (key.as_str(), value) {
                    (_, Json::Null) => {}
                    ("model", value) => parts.head = value.as_str().map(str::to_owned),
                    ("image", value) => {
                        let file = desk.file(value).map_err(|what| SettingProblem::new(format!("{path}.image"), what))?;
                        parts.pairs.push(("image".into(), file));
                    }
                    (key, value) => {
                        let text = scalar(value).ok_or_else(|| SettingProblem::new(format!("{path}.{key}"), "give a number or a text"))?;
                        parts.pairs.push((key.to_owned(), text));
                    }
                }
            }
            parts
        }
        _ => return Err(problem("give an object with model and image".into())),
    };
    if let Some(model) = &parts.head {
        desk.name(model).map_err(|what| SettingProblem::new(format!("{path}.model"), what))?;
    }
    for (key, value) in &mut parts.pairs {
        match key.as_str() {
            // One that came as an object is a file already.
            "image" if value_is_text(value, desk) => {
                let file = desk.file(&Json::String(value.clone()));
                *value = file.map_err(|what| SettingProblem::new(format!("{path}.image"), what))?;
            }
            "encoder" => desk.name(value).map_err(|what| SettingProblem::new(format!("{path}.encoder"), what))?,
            _ => {}
        }
    }
    Ok(parts.write())
}

fn value_is_text(value: &str, desk: &FileDesk<'_>) -> bool {
    !desk.is_permitted(value.as_ref())
}

/// The draft of what was given over `base`, or how it does not go together. What is named and could not be read is not missing.
pub(super) fn draft(base: &Draft, given: &[GivenSetting], is_named: impl Fn(&str) -> bool) -> Result<Draft, Vec<SettingProblem>> {
    let mut draft = base.clone();
    let mut problems = Vec::new();
    let is_given = |name: &str| given.iter().any(|(row, _)| row.name == name);
    for (row, _) in given {
        let rivals = table().iter().filter(|other| row.conflicts.contains(&other.name) || other.conflicts.contains(&row.name));
        for rival in rivals {
            if is_given(rival.name) {
                if row.conflicts.contains(&rival.name) {
                    problems.push(SettingProblem::new(row.name, format!("does not go with {}; give one of them", rival.name)));
                }
            } else if rival.name != "size" && !["width", "height"].contains(&rival.name) {
                // What the server was told steps back.
                let _ = (rival.access.read)(&mut draft, &[]);
            }
        }
    }
    // What grows says itself how large it becomes.
    if is_given("outpaint") && !["size", "width", "height"].into_iter().any(is_given) {
        draft.canvas.width = None;
        draft.canvas.height = None;
    }
    for (row, values) in given {
        let values: Vec<std::ffi::OsString> = values.iter().map(Into::into).collect();
        if let Err((_, what)) = (row.access.read)(&mut draft, &values) {
            problems.push(SettingProblem::new(row.name, what));
        }
    }
    for (row, _) in given {
        if let Some(other) = row.requires
            && (is_given(other) || !is_named(other))
            && find(other).is_some_and(|other| (other.access.given)(&draft).is_empty())
        {
            problems.push(SettingProblem::new(row.name, format!("needs {other}, which is missing")));
        }
    }
    if problems.is_empty() { Ok(draft) } else { Err(problems) }
}

/// What a draft says of images and models, as it would be typed; it is all that a job needs to be resolved again.
pub(super) fn written(draft: &Draft) -> Map<String, Json> {
    let rows = table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File) && row.name != "size");
    rows.filter_map(|row| {
        let values = (row.access.given)(draft);
        (!values.is_empty()).then(|| (row.name.to_owned(), values.into()))
    })
    .collect()
}

/// The draft that [`written`] wrote; only the server's own journal is read so.
///
/// # Errors
/// A sentence: another version of the program wrote something else.
pub(super) fn from_written(written: &Map<String, Json>) -> Result<Draft, String> {
    let mut draft = Draft::default();
    for (name, values) in written {
        let values: Option<Vec<String>> = values.as_array().map(|all| all.iter().filter_map(scalar).collect());
        draft.set(name, values.ok_or("a setting without values")?).map_err(|error| error.to_string())?;
    }
    Ok(draft)
}

/// What a draft says, for those who ask: numbers as numbers, and of files their names alone.
pub(super) fn shown(draft: &Draft) -> Map<String, Json> {
    let mut shown = Map::new();
    for row in table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File) && row.name != "size") {
        if row.effect == Effect::Model && !MODEL_SETTINGS.contains(&row.name) {
            continue;
        }
        let names_files = !(row.access.files)(&mut draft.clone()).is_empty();
        let is_path = names_files || matches!(row.kind, ValueKind::File | ValueKind::Path);
        let values = (row.access.given)(draft).into_iter().map(|value| match row.kind {
            ValueKind::Switch => Json::Bool(value == "true"),
            ValueKind::Whole | ValueKind::Number => serde_json::from_str(&value).unwrap_or(Json::String(value)),
            _ if STEERING.contains(&row.name) => Json::String(without_folders(&value)),
            _ if is_path || row.name == "model" => Json::String(value.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()),
            _ => Json::String(value),
        });
        let mut values: Vec<Json> = values.collect();
        match (values.len(), row.many) {
            (0, _) => {}
            (1, false) => drop(shown.insert(row.name.into(), values.remove(0))),
            _ => drop(shown.insert(row.name.into(), values.into())),
        }
    }
    shown
}

fn without_folders(steering: &str) -> String {
    let name = |path: &str| path.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    let Ok(mut parts) = Parts::read(steering) else { return String::new() };
    parts.head = parts.head.as_deref().map(name);
    for (key, value) in &mut parts.pairs {
        if key == "image" || key == "encoder" {
            *value = name(value);
        }
    }
    parts.write()
}
