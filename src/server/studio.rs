//! What the server needs of whoever knows models and folders.

use crate::batch::{Load, Sizes};
use crate::metadata::GeneratedBy;
use crate::settings::{Draft, Request};
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A job with everything decided and checked.
#[derive(Debug)]
pub(crate) struct ResolvedJob {
    /// Which model, as the loader counts them.
    pub model: usize,
    /// What generates.
    pub generator: GeneratedBy,
    /// The images, each with its seed.
    pub images: Vec<(Arc<Request>, u64)>,
    /// What the user should know.
    pub remarks: Vec<String>,
}

/// Settings by name, each with its values.
pub(crate) type NamedSettings = Vec<(&'static str, Vec<String>)>;

/// What can be named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nameable {
    Model,
    Lora,
    Embedding,
    Vae,
    ControlNet,
    Upscaler,
}

/// A file or folder that can be named.
#[derive(Debug, Clone)]
pub(crate) struct NameableFile {
    /// What it is called in requests.
    pub name: String,
    /// Where it is; nothing for the model that is compiled in.
    pub path: Option<PathBuf>,
}

/// Opens models and finds files for jobs.
pub(crate) trait Studio: Send + Sync {
    /// What every job starts from: what the server was told.
    fn base(&self) -> &Draft;

    /// Whether a model of this name may be used by those who send requests.
    ///
    /// # Errors
    /// It may not; the sentence says what there is.
    fn check_model(&self, name: &str) -> Result<()>;

    /// Opens the model, finds the files, and resolves the requests of a draft. Every file that it names must be `permitted`, or lie in
    /// one of the folders of networks.
    ///
    /// # Errors
    /// Whatever is wrong with the draft.
    fn resolve(&self, draft: Draft, permitted: &dyn Fn(&Path) -> bool) -> Result<ResolvedJob>;

    /// Loads the models.
    fn loader(&self) -> Box<dyn Load>;

    /// How so many images like this one are generated.
    fn sizes(&self, model: usize, request: &Request, images: usize) -> Sizes;

    /// A model could not be loaded: it is opened anew for the next job.
    fn forget(&self, model: usize);

    /// There is nothing to do: what is kept for the next image goes back to the system, but for the models.
    fn rest(&self);

    /// What there is of a kind.
    fn list(&self, kind: Nameable) -> Vec<NameableFile>;

    /// The devices that are generated on.
    fn devices(&self) -> &[Device];

    /// What a request that names no model uses.
    fn default_model(&self) -> String;

    /// Enlarges an image by an upscaler of the folders, or by a plain filter: "None", "Lanczos" or "Nearest".
    ///
    /// # Errors
    /// There is no such upscaler, or the memory is too small.
    fn upscale(&self, image: &RgbImage, upscaler: &str, scale: f64) -> Result<RgbImage>;

    /// What the metadata of an image says, and what of it was not understood.
    ///
    /// # Errors
    /// The file says nothing that is understood.
    fn settings_of(&self, image: &Path) -> Result<(NamedSettings, Vec<String>)>;
}

/// An error as requests are answered: settings by their names.
pub(super) fn said(error: &Error) -> (Option<&'static str>, String) {
    match error {
        Error::Setting { name, what } => (Some(name), what.trim_start_matches([':', ' ']).to_owned()),
        error => (None, error.to_string()),
    }
}
