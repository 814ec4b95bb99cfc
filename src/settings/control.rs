//! Images that steer a run beside the texts: for a ControlNet, and as a prompt.

use super::{ControlKind, Parts, Value, ValueKind};
use crate::image::{InputImage, Preprocessor, decode};
use crate::inputs::InputFile;
use crate::{Error, Result};
use serde_json::{Value as Json, json};
use std::path::Path;

/// The largest weight that anybody means.
const MOST_WEIGHT: f64 = 100.0;

/// `MODEL,image=FILE,…`: a network, the image that it is shown, how strongly and when.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlChoice {
    /// The network's file or folder.
    pub model: InputFile,
    /// What it is shown.
    pub image: InputFile,
    /// How strongly; 0 is not at all.
    pub weight: f64,
    /// The shares of the steps from which and up to which it acts.
    pub range: (f64, f64),
    /// What is made of the image first.
    pub preprocess: Option<Preprocessor>,
    /// The network that does it, where one is needed: its file or folder.
    pub depth_model: Option<InputFile>,
    /// What it is shown, for a network that takes several kinds of images.
    pub kind: Option<ControlKind>,
}

impl ControlChoice {
    const KEYS: &str = "image, weight, start, end, preprocess, depth-model and type";

    /// The image that the network is shown, before anything is made of it.
    ///
    /// # Errors
    /// [`Error::Setting`]: it is no image that can be read.
    pub fn read_image(&self) -> Result<InputImage> {
        read("control", &self.image)
    }

    /// The kind of image that a network for several of them is shown: the one that was said, or the one that is made.
    pub fn shown_kind(&self) -> Option<ControlKind> {
        self.kind.or_else(|| self.preprocess.map(ControlKind::made_by))
    }

    fn parts(&self, name: impl Fn(&InputFile) -> String) -> Parts {
        let mut parts = steering(name(&self.model), name(&self.image), self.weight, self.range);
        parts.pairs.extend(self.preprocess.map(|how| ("preprocess".to_owned(), how.name().to_owned())));
        parts.pairs.extend(self.depth_model.as_ref().map(|file| ("depth-model".to_owned(), name(file))));
        parts.pairs.extend(self.kind.map(|kind| ("type".to_owned(), kind.name().to_owned())));
        parts
    }
}

/// `MODEL,image=FILE,…`: an IP-Adapter, the image that it is shown, how strongly and when.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePrompt {
    /// The adapter's file.
    pub model: InputFile,
    /// What it is shown.
    pub image: InputFile,
    /// How strongly; 0 is not at all.
    pub weight: f64,
    /// The shares of the steps from which and up to which it acts.
    pub range: (f64, f64),
    /// The folder of the image encoder, where it is not beside the adapter.
    pub encoder: Option<InputFile>,
}

impl ImagePrompt {
    const KEYS: &str = "image, weight, start, end and encoder";

    /// The image.
    ///
    /// # Errors
    /// [`Error::Setting`]: it is no image that can be read.
    pub fn read_image(&self) -> Result<InputImage> {
        read("ip-adapter", &self.image)
    }

    fn parts(&self, name: impl Fn(&InputFile) -> String) -> Parts {
        let mut parts = steering(name(&self.model), name(&self.image), self.weight, self.range);
        parts.pairs.extend(self.encoder.as_ref().map(|folder| ("encoder".to_owned(), name(folder))));
        parts
    }
}

fn read(name: &'static str, file: &InputFile) -> Result<InputImage> {
    let bytes = file.bytes().map_err(|what| Error::setting(name, format!(" {what}")))?;
    decode(&bytes).map_err(|what| Error::setting(name, format!(" {}: {what}", file.path().display())))
}

fn steering(model: String, image: String, weight: f64, (start, end): (f64, f64)) -> Parts {
    let mut pairs = vec![("image".to_owned(), image)];
    for (key, value, usual) in [("weight", weight, 1.0), ("start", start, 0.0), ("end", end, 1.0)] {
        if value != usual {
            pairs.push((key.to_owned(), value.to_string()));
        }
    }
    Parts { head: Some(model), pairs }
}

/// Model, image, weight and range.
fn steered(parts: &mut Parts) -> Result<(InputFile, InputFile, f64, (f64, f64)), String> {
    const HOW: &str = "give a model and an image, such as canny.safetensors,image=edges.png";
    let model = parts.head.take().filter(|model| !model.is_empty()).ok_or(HOW)?;
    let image = parts.take("image").filter(|image| !image.is_empty()).ok_or(HOW)?;
    let weight = parts.take_number("weight", -MOST_WEIGHT..=MOST_WEIGHT)?.unwrap_or(1.0);
    let start = parts.take_number("start", 0.0..=1.0)?.unwrap_or(0.0);
    let end = parts.take_number("end", 0.0..=1.0)?.unwrap_or(1.0);
    if start > end {
        return Err(format!("start={start} is after end={end}"));
    }
    Ok((InputFile::of_network(Path::new(&model)), InputFile::named(Path::new(&image)), weight, (start, end)))
}

impl Value for ControlChoice {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Parts::read(text)?;
        let (model, image, weight, range) = steered(&mut parts)?;
        let preprocess = parts.take("preprocess").filter(|name| name != "none");
        let preprocess = preprocess.map(|name| Preprocessor::from_name(&name)).transpose()?;
        let depth_model = parts.take("depth-model").filter(|path| !path.is_empty());
        if depth_model.is_some() && preprocess != Some(Preprocessor::Depth) {
            return Err("depth-model belongs to preprocess=depth; add that, or leave it out".into());
        }
        let depth_model = depth_model.map(|path| InputFile::of_network(Path::new(&path)));
        let kind = parts.take("type").map(|name| ControlKind::from_name(&name)).transpose()?;
        parts.finish(Self::KEYS)?;
        Ok(Self { model, image, weight, range, preprocess, depth_model, kind })
    }

    fn typed(&self) -> String {
        self.parts(InputFile::typed).write()
    }

    fn public(&self) -> String {
        self.parts(InputFile::public).write()
    }

    fn json(&self) -> Json {
        let mut json = json!({
            "model": self.model.json(),
            "image": self.image.json(),
            "weight": self.weight,
            "range": [self.range.0, self.range.1],
            "preprocess": self.preprocess.map(Preprocessor::name),
        });
        if let (Some(file), Some(fields)) = (&self.depth_model, json.as_object_mut()) {
            fields.insert("depth-model".into(), file.json());
        }
        if let (Some(kind), Some(fields)) = (self.kind, json.as_object_mut()) {
            fields.insert("type".into(), kind.name().into());
        }
        json
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        let Self { model, image, depth_model, .. } = self;
        [model, image].into_iter().chain(depth_model).collect()
    }
}

impl Value for ImagePrompt {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Parts::read(text)?;
        let (model, image, weight, range) = steered(&mut parts)?;
        let encoder = parts.take("encoder").filter(|path| !path.is_empty());
        let encoder = encoder.map(|path| InputFile::of_network(Path::new(&path)));
        parts.finish(Self::KEYS)?;
        Ok(Self { model: InputFile::named(model.path()), image, weight, range, encoder })
    }

    fn typed(&self) -> String {
        self.parts(InputFile::typed).write()
    }

    fn public(&self) -> String {
        self.parts(InputFile::public).write()
    }

    fn json(&self) -> Json {
        json!({
            "model": self.model.json(),
            "image": self.image.json(),
            "weight": self.weight,
            "range": [self.range.0, self.range.1],
            "encoder": self.encoder.as_ref().map(InputFile::json),
        })
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        let Self { model, image, encoder, .. } = self;
        [model, image].into_iter().chain(encoder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_is_typed_as_it_is_read() {
        for text in [
            "canny.safetensors,image=edges.png",
            "nets/canny,image=a\\,b.png,weight=0.5,start=0.25,end=0.75,preprocess=canny",
            "m,image=x.png,weight=-1",
            "m,image=x.png,preprocess=depth,depth-model=org/depth",
            "m,image=x.png,preprocess=depth",
            "union,image=x.png,type=openpose",
        ] {
            assert_eq!(ControlChoice::parse(text).unwrap().typed(), text);
        }
        let read = ControlChoice::parse("nets/m,image=in/x.png,weight=1.0,start=0,end=1").unwrap();
        assert_eq!((read.public().as_str(), read.weight, read.range), ("m,image=x.png", 1.0, (0.0, 1.0)));
        for (bad, said) in [
            ("", "give a model and an image"),
            ("m", "give a model and an image"),
            ("image=x.png", "give a model and an image"),
            ("m,image=x,weight=many", "weight=many"),
            ("m,image=x,start=0.5,end=0.2", "after end"),
            ("m,image=x,preprocess=openpose", "needs a network"),
            ("m,image=x,preprocess=canny,depth-model=d", "belongs to preprocess=depth"),
            ("m,image=x,type=edges", "openpose, depth"),
            ("m,image=x,preprocess=cany", "canny, invert"),
            ("m,image=x,mode=1", "there is no mode"),
        ] {
            let error = ControlChoice::parse(bad).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
        assert!(ImagePrompt::parse("ip,image=x.png,encoder=clip").unwrap().encoder.is_some());
    }
}
