//! A ControlNet in the words of A1111's extension: `ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], …"`.
//!
//! A1111 does not say which image the network was shown; sd-gen adds the files' names.
//!
//! # Source
//! `infotext.serialize_unit` in Mikubill/sd-webui-controlnet@56cec5b:scripts/infotext.py

use super::read::pairs;
use super::write::quoted;
use crate::image::Preprocessor;
use crate::inputs::InputFile;
use crate::settings::{ControlChoice, Parts, Value};

/// What begins the keys; a number follows.
pub(super) const KEY: &str = "ControlNet ";
const MODEL_FILE: &str = "Model file";
const IMAGE_FILE: &str = "Image file";
const DEPTH_FILE: &str = "Depth model file";
const KIND: &str = "Control Type";

/// A1111's text for one network.
pub(super) fn written(choice: &ControlChoice) -> String {
    let hash = choice.model.sha256().and_then(|hash| Some(format!(" [{}]", hash.get(..8)?))).unwrap_or_default();
    let stem = choice.model.path().file_stem().unwrap_or_default().to_string_lossy();
    let mut pairs = vec![
        ("Module", choice.preprocess.map_or("none", Preprocessor::a1111_name).to_owned()),
        ("Model", format!("{stem}{hash}")),
        ("Weight", choice.weight.to_string()),
        ("Resize Mode", "Just Resize".into()),
        ("Guidance Start", choice.range.0.to_string()),
        ("Guidance End", choice.range.1.to_string()),
        ("Pixel Perfect", "True".into()),
        ("Control Mode", "Balanced".into()),
        (MODEL_FILE, InputFile::public(&choice.model)),
        (IMAGE_FILE, InputFile::public(&choice.image)),
    ];
    pairs.extend(choice.depth_model.as_ref().map(|file| (DEPTH_FILE, InputFile::public(file))));
    pairs.extend(choice.kind.map(|kind| (KIND, kind.name().to_owned())));
    pairs.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect::<Vec<_>>().join(", ")
}

/// What `--control` takes for such a text; `None` where it does not name the image.
pub(super) fn read(text: &str) -> Option<String> {
    let pairs = pairs(text);
    let get = |key: &str| pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone());
    let mut parts = Parts { head: Some(get(MODEL_FILE)?), pairs: vec![("image".into(), get(IMAGE_FILE)?)] };
    for (key, name) in [("Weight", "weight"), ("Guidance Start", "start"), ("Guidance End", "end")] {
        parts.pairs.extend(get(key).map(|value| (name.to_owned(), value)));
    }
    let module = get("Module").and_then(|name| Preprocessor::from_name(&name).ok());
    parts.pairs.extend(module.map(|how| ("preprocess".to_owned(), how.name().to_owned())));
    let is_depth = parts.pairs.iter().any(|(name, value)| name == "preprocess" && value == Preprocessor::Depth.name());
    parts.pairs.extend(get(DEPTH_FILE).filter(|_| is_depth).map(|file| ("depth-model".to_owned(), file)));
    parts.pairs.extend(get(KIND).map(|kind| ("type".to_owned(), kind)));
    // As it would be typed.
    ControlChoice::parse(&parts.write()).ok().map(|choice| choice.typed())
}
