//! What follows the first pass: another network for the last steps, a second pass at a larger size, a network that enlarges the image.

use super::scheduler::with_sampler;
use super::{By, Draft, Heading, Request, Setting, Value, ValueKind};
use crate::inputs::InputFile;
use crate::sampling::{Sampler, Schedule, SchedulerConfig, plan};
use crate::spec::ModelSpec;
use crate::{Error, Result};
use serde_json::{Value as Json, json};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The bytes of an upscaler's file: the largest that are known have a tenth of it.
const LARGEST_UPSCALER: u64 = 4 << 30;

settings! {
    /// What follows the first pass.
    PassSettings, PassDraft, draft.passes, by By<'_>, of |request: &Request| Some(&request.passes);

    /// A second model for the last steps, such as SDXL's refiner: a file, a folder, or a name in the models folder
    refiner: maybe ModelFile => Setting {
        name: "refiner", hidden_aliases: &["refiner-checkpoint"], value: "FILE", heading: Heading::Passes, infotext: Some("Refiner"),
        ..Setting::IMAGE
    };

    /// The share of the steps after which the refiner takes over
    refiner_switch: maybe f64 => Setting {
        name: "refiner-switch", hidden_aliases: &["refiner-switch-at"], value: "X", default: "0.8", heading: Heading::Passes,
        range: Some((0.0, 1.0)), infotext: Some("Refiner switch at"), requires: Some("refiner"), ..Setting::IMAGE
    };

    /// Generate, enlarge so many times, and generate again over that
    hires: maybe f64 => Setting {
        name: "hires", aliases: &["hires-scale"], value: "X", heading: Heading::Passes, range: Some((1.0, 16.0)),
        infotext: Some("Hires upscale"), ..Setting::IMAGE
    };

    /// How much the second pass makes anew, from 0 to 1
    hires_strength: maybe f64 => Setting {
        name: "hires-strength", aliases: &["hires-denoising-strength"], value: "X", default: "0.7", heading: Heading::Passes,
        range: Some((0.0, 1.0)), infotext: Some("Hires strength"), requires: Some("hires"), ..Setting::IMAGE
    };

    /// Steps that the second pass takes, whatever its strength
    hires_steps: maybe usize => Setting {
        name: "hires-steps", value: "N", default: "as --steps", heading: Heading::Passes, range: Some((1.0, 1000.0)),
        infotext: Some("Hires steps"), requires: Some("hires"), ..Setting::IMAGE
    };

    /// The second pass's sampler
    hires_sampler: maybe HiresSampler => Setting {
        name: "hires-sampler", value: "NAME", default: "as --sampler", heading: Heading::Passes,
        words: || Sampler::all().map(Sampler::name).collect(), infotext: Some("Hires sampler"),
        requires: Some("hires"), ..Setting::IMAGE
    };

    /// What enlarges between the passes: latent or latent-bicubic (the latents), lanczos (the image), or an upscaler's file or name
    hires_upscaler: maybe HiresUpscaler => Setting {
        name: "hires-upscaler", value: "NAME", default: "latent", heading: Heading::Passes, words: || HiresUpscaler::WORDS.to_vec(),
        example: "latent", infotext: Some("Hires upscaler"), limit: LARGEST_UPSCALER, requires: Some("hires"), ..Setting::IMAGE
    };

    /// The second pass sees the image through windows of so many pixels a side that overlap, which keeps what was learned at that size
    hires_window: maybe usize => Setting {
        name: "hires-window", value: "PIXELS", default: "the whole image", heading: Heading::Passes, range: Some((64.0, 8192.0)),
        infotext: Some("Hires window"), requires: Some("hires"), ..Setting::IMAGE
    };

    /// Enlarge the finished image by an upscaler's file or name, so many times as it does or as is said
    upscale: maybe EnlargedBy => Setting {
        name: "upscale", hidden_aliases: &["upscale-model"], value: "FILE[:X]", heading: Heading::Passes, infotext: Some("Upscale"),
        limit: LARGEST_UPSCALER, ..Setting::IMAGE
    };
}

/// A model beside the first one: a file or folder. What it is by its content is found out by whoever opens it.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
    /// The digest of its content, where it was opened.
    pub identity: Option<String>,
    /// The numbers in its networks, where it was opened.
    pub numbers: u64,
}

impl ModelFile {
    /// Its path, for people and for telling it from others.
    pub fn name(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    /// One that was not opened.
    pub fn named(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), identity: None, numbers: 0 }
    }
}

impl PartialEq for ModelFile {
    /// By the content, where it is known; else by the name.
    fn eq(&self, other: &Self) -> bool {
        match (&self.identity, &other.identity) {
            (Some(one), Some(other)) => one == other,
            _ => self.path == other.path,
        }
    }
}

impl Value for ModelFile {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_os(text.as_ref())
    }

    fn parse_os(value: &OsStr) -> Result<Self, String> {
        if value.is_empty() { Err("give a model".into()) } else { Ok(Self::named(value)) }
    }

    fn typed(&self) -> String {
        self.path.display().to_string()
    }

    fn public(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    fn json(&self) -> Json {
        self.identity.clone().map_or(Json::Null, Into::into)
    }
}

/// The sampler of a second pass, by a name that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiresSampler(pub String);

words!(HiresSampler, HiresSampler::from_name, |sampler: &HiresSampler| sampler.0.clone());

impl HiresSampler {
    /// However another tool spells it; kept as it is spelt here.
    fn from_name(text: &str) -> Result<Self, String> {
        let (sampler, schedule) = Sampler::from_name(text).map_err(|error| error.to_string().replace("`sampler` ", ""))?;
        Ok(Self(schedule.map_or_else(|| sampler.name().to_owned(), |schedule| format!("{} {}", sampler.name(), schedule.name()))))
    }
}

/// What makes the first pass's result larger.
#[derive(Debug, Clone, PartialEq)]
pub enum HiresUpscaler {
    /// The latents, bilinear.
    Latent,
    /// The latents, bicubic.
    LatentBicubic,
    /// The image, by Lanczos' filter.
    Lanczos,
    /// The image, by a network.
    Network(InputFile),
}

impl HiresUpscaler {
    /// Those that are no file, as they are typed.
    pub const WORDS: [&str; 3] = ["latent", "latent-bicubic", "lanczos"];
    /// The same as A1111 calls them.
    const NAMES: [&str; 3] = ["Latent", "Latent (bicubic)", "Lanczos"];
    const PLAIN: [Self; 3] = [Self::Latent, Self::LatentBicubic, Self::Lanczos];

    /// The network's file.
    pub fn network(&self) -> Option<&InputFile> {
        if let Self::Network(file) = self { Some(file) } else { None }
    }

    fn name(&self, names: [&str; 3]) -> Option<String> {
        let at = Self::PLAIN.iter().position(|plain| plain == self);
        at.and_then(|at| names.get(at)).map(|name| (*name).to_owned())
    }
}

impl Value for HiresUpscaler {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("give latent, latent-bicubic, lanczos, or an upscaler's file".into());
        }
        let is = |name: &&str| name.eq_ignore_ascii_case(text);
        let at = Self::WORDS.iter().position(is).or_else(|| Self::NAMES.iter().position(is));
        let plain = at.and_then(|at| Self::PLAIN.get(at)).cloned();
        Ok(plain.unwrap_or_else(|| Self::Network(InputFile::named(Path::new(text)))))
    }

    fn typed(&self) -> String {
        match self {
            Self::Network(file) => file.typed(),
            plain => plain.name(Self::WORDS).unwrap_or_default(),
        }
    }

    fn public(&self) -> String {
        match self {
            Self::Network(file) => file.public(),
            plain => plain.name(Self::NAMES).unwrap_or_default(),
        }
    }

    fn json(&self) -> Json {
        match self {
            Self::Network(file) => file.json(),
            plain => plain.typed().into(),
        }
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        if let Self::Network(file) = self { vec![file] } else { vec![] }
    }
}

/// `FILE[:X]`: a network, and how many times larger the image becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct EnlargedBy {
    /// The network's file.
    pub file: InputFile,
    /// How many times; as the network itself does where nothing is said.
    pub scale: Option<f64>,
}

impl EnlargedBy {
    fn typed_scale(&self) -> String {
        self.scale.map(|scale| format!(":{scale}")).unwrap_or_default()
    }
}

impl Value for EnlargedBy {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        // A file's name may hold a colon itself.
        let (name, scale) = match text.rsplit_once(':').map(|(name, scale)| (name, scale.trim().parse::<f64>())) {
            Some((name, Ok(scale))) => (name, Some(scale)),
            _ => (text, None),
        };
        if scale.is_some_and(|scale| !(scale > 0.0 && scale <= 16.0)) {
            return Err("an image becomes up to 16 times larger, as in FILE:2".into());
        }
        if name.is_empty() {
            return Err("give a file, and how many times larger after it, as in FILE:2".into());
        }
        Ok(Self { file: InputFile::named(Path::new(name)), scale })
    }

    fn typed(&self) -> String {
        format!("{}{}", self.file.typed(), self.typed_scale())
    }

    fn public(&self) -> String {
        format!("{}{}", self.file.public(), self.typed_scale())
    }

    fn json(&self) -> Json {
        json!({ "file": self.file.json(), "scale": self.scale })
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        vec![&mut self.file]
    }
}

/// A second pass, everything decided.
#[derive(Debug, Clone)]
pub struct HiresPass {
    /// Width and height in pixels.
    pub size: (usize, usize),
    /// The steps that it takes; none where its strength is 0.
    pub schedule: Option<Schedule>,
    /// How many they are, as people count them.
    pub steps: usize,
}

impl PassSettings {
    /// The second pass's size for a first pass of another, in whole latents.
    fn hires_size(&self, (width, height): (usize, usize), multiple: usize) -> Option<(usize, usize)> {
        let scale = self.hires?;
        let side = |side: usize| ((side as f64 * scale) as usize / multiple * multiple).max(multiple);
        Some((side(width), side(height)))
    }
}

impl Request {
    /// The size in pixels of what the last pass generates: [`super::CanvasSettings`], or what hires makes of it.
    pub fn last_size(&self) -> (usize, usize) {
        let canvas = (self.canvas.width, self.canvas.height);
        self.passes.hires_size(canvas, 8).unwrap_or(canvas)
    }

    /// The noise schedule and the solver of the second pass.
    ///
    /// # Errors
    /// The sampler's name is not known.
    pub fn hires_scheduler(&self) -> Result<SchedulerConfig> {
        let mut scheduler = self.scheduler.clone();
        // Levels that were given are the first pass's.
        scheduler.levels = None;
        let (width, height) = self.last_size();
        let first = (self.canvas.width * self.canvas.height).max(1);
        scheduler.image_tokens = scheduler.image_tokens.map(|tokens| tokens * width * height / first);
        match &self.passes.hires_sampler {
            Some(HiresSampler(name)) => with_sampler(scheduler, name),
            None => Ok(scheduler),
        }
    }

    /// The second pass, where there is one.
    ///
    /// It takes as many steps as it is said to: the schedule is laid with so many more that the strength's share of them is that many.
    ///
    /// # Source
    /// `setup_img2img_steps` in stable-diffusion-webui@v1.10:modules/sd_samplers_common.py, as `sample_hr_pass` calls it.
    ///
    /// # Errors
    /// Sampler, steps and strength do not go together.
    pub fn hires_pass(&self) -> Result<Option<HiresPass>> {
        let passes = &self.passes;
        let Some(size) = passes.hires.map(|_| self.last_size()) else { return Ok(None) };
        let strength = passes.hires_strength.unwrap_or(DEFAULT_STRENGTH);
        let taken = passes.hires_steps.unwrap_or(self.sampling.steps);
        if strength == 0.0 {
            return Ok(Some(HiresPass { size, schedule: None, steps: 0 }));
        }
        let all = (taken as f64 / strength.min(0.999)) as usize;
        let scheduler = self.hires_scheduler()?;
        if all > scheduler.trained_steps() {
            let most = scheduler.trained_steps();
            let what = format!("{strength}: {taken} steps of it would be {all}, and there are {most}; give more, or fewer `hires-steps`");
            return Err(Error::setting("hires-strength", what));
        }
        let schedule = plan(&scheduler, all)?;
        let skipped = schedule.steps.len().saturating_sub(taken);
        Ok(Some(HiresPass { size, schedule: Some(schedule.starting_at(skipped)?), steps: taken }))
    }
}

/// How much of an enlarged image is made anew where nobody says: A1111's.
const DEFAULT_STRENGTH: f64 = 0.7;

impl Draft {
    /// With what belongs to passes that there are, and without what belongs to those that there are not.
    pub(super) fn with_passes(&self) -> Draft {
        let mut draft = self.clone();
        let passes = &mut draft.passes;
        passes.refiner_switch = passes.refiner.as_ref().map(|_| passes.refiner_switch.unwrap_or(0.8));
        if passes.hires.is_none() {
            let PassDraft { hires_strength, hires_steps, hires_sampler, hires_upscaler, hires_window, .. } = passes;
            (*hires_strength, *hires_steps, *hires_sampler, *hires_upscaler, *hires_window) = (None, None, None, None, None);
        } else {
            passes.hires_strength.get_or_insert(DEFAULT_STRENGTH);
            passes.hires_upscaler.get_or_insert(HiresUpscaler::Latent);
        }
        draft
    }
}

/// What does not go together is said before any work.
pub(super) fn check(request: &mut Request, spec: &ModelSpec) -> Result<()> {
    let refuse = |name, what: &str| Err(Error::setting(name, format!(": {what}")));
    let is_plain = spec.unet.in_channels == spec.vae.latent_channels;
    if request.passes.refiner.is_some() && !is_plain {
        return refuse("refiner", "takes over from a model of plain latents, and this one repaints or edits; leave it out");
    }
    if request.passes.hires.is_some() {
        if !is_plain || request.inputs.is_inpainting() {
            return refuse("hires", "does not go with repainting, growing or editing; enlarge the result with `init-image` or `upscale`");
        }
        // One that says nothing new is not said, so that the image has one key.
        let own = request.scheduler.clone();
        if let Some(HiresSampler(name)) = &request.passes.hires_sampler
            && with_sampler(own.clone(), name)? == own
        {
            request.passes.hires_sampler = None;
        }
        if request.passes.hires_steps == Some(request.sampling.steps) {
            request.passes.hires_steps = None;
        }
        let (width, height) = request.last_size();
        if width.max(height) > super::draft::LARGEST_SIDE {
            let most = super::draft::LARGEST_SIDE;
            return refuse("hires", &format!("{width}x{height} is too large; at most {most} pixels a side"));
        }
        if request.passes.hires_window.is_some() && request.canvas.tiling.is_some() {
            return refuse("hires-window", "an image that repeats is seen whole; leave it or `tiling` out");
        }
        if request.passes.hires_window.is_some() && !request.adapters.control.is_empty() {
            return refuse("hires-window", "a ControlNet sees an image whole; leave it or `control` out");
        }
        let multiple = spec.side_multiple();
        if !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            return refuse("hires", &format!("makes {width}x{height}, and sides are multiples of {multiple}; give another factor or size"));
        }
        request.hires_pass()?;
    }
    Ok(())
}
