//! A network that estimates depth: transformers' folder, a file of it, or a file under the names of its authors.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{Folder, PICKLE, is_pickle};
use super::{TensorSource, model_error, quoted};
use crate::Result;
use crate::family::ConfigFiles;
use crate::family::depth_anything::{self, ConfiguredDepth};
use crate::spec::DepthAnythingSpec;
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// Where one can be had.
const WHERE: &str = "Depth Anything V2 is one: depth-anything/Depth-Anything-V2-Small-hf on the hub";

/// An opened depth network.
#[derive(Debug)]
pub struct DepthFile {
    name: String,
    part: Part,
    spec: DepthAnythingSpec,
}

impl DepthFile {
    /// Opens a `.safetensors` file or a folder with `config.json`. A file's sizes are read off its tensors: those of version 2.
    ///
    /// # Errors
    /// [`crate::Error::Model`]: it is no depth network that is known, or one that measures metres.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        if path.is_dir() {
            let folder = Folder::Disk(path.to_owned());
            let said = (&folder as &dyn ConfigFiles).json("config.json")?;
            let said = said.map(|fields| depth_anything::configured(&fields)).transpose()?.unwrap_or_default();
            return Self::read(shown, folder.weights("", None)?, said);
        }
        if path.file_stem().is_some_and(|stem| stem.to_string_lossy().to_lowercase().contains("metric")) {
            let what = "measures metres by its name, and a ControlNet wants what is near to be white: take one that is not called metric";
            return Err(model_error(&shown, what));
        }
        Self::read(shown.clone(), vec![Arc::new(WeightFile::new(shown, Blob::open(path)?)?)], ConfiguredDepth::default())
    }

    /// Opens a file's bytes, as [`DepthFile::open`] does a file.
    ///
    /// # Errors
    /// As [`DepthFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        let file = WeightFile::new(name.to_owned(), Blob::Owned(bytes))?;
        Self::read(name.to_owned(), vec![Arc::new(file)], ConfiguredDepth::default())
    }

    fn read(name: String, files: Vec<Arc<WeightFile>>, said: ConfiguredDepth) -> Result<Self> {
        let [file] = files.as_slice() else {
            return Err(model_error(&name, format!("has its weights in {} files; a depth network is read from one", files.len())));
        };
        let layers = depth_anything::layers(&**file);
        if layers == 0 {
            let first = file.entries().first().map(|entry| format!(": its tensors have names like {}", quoted(&entry.name)));
            return Err(model_error(&name, format!("is no depth network that is known{}; {WHERE}", first.unwrap_or_default())));
        }
        let part = Part::new("the depth network", files, depth_anything::names(layers))?;
        let spec = depth_anything::sized(&name, &|name| part.shape(name), layers, said)?;
        part.check_left_out("")?;
        Ok(Self { name, part, spec })
    }

    /// What is said to who wants a map of depth and names no network.
    pub fn missing() -> String {
        format!("preprocess=depth needs a network: name its file, its folder or its hub id with depth-model=; {WHERE}")
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the network is.
    pub fn spec(&self) -> &DepthAnythingSpec {
        &self.spec
    }

    /// How many numbers its tensors have.
    pub fn parameters(&self) -> u64 {
        self.part.parameters()
    }
}

impl TensorSource for DepthFile {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        ComponentTensors::new(&self.part, "as the names and shapes of its tensors say").tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.part.shape(name)
    }
}
