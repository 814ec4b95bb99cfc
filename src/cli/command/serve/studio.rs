//! Models and folders for the server.

use crate::adapter::AdapterFolders;
use crate::batch::{Footprint, Load, Sizes, sizes};
use crate::cli::model::download::DownloadStyle;
use crate::cli::model::{self, BUILTIN, Models, Named, Opened, models_folder};
use crate::cli::process::cancelled;
use crate::cli::settings::recreate::{recreated, recreated_alone};
use crate::device::{open_all, release};
use crate::disk::stays_inside;
use crate::inputs::InputReader;
use crate::pipeline::{Observer, Pipeline, UpscalePipeline};
use crate::server::{Nameable, NameableFile, NamedSettings, ResolvedJob, Studio};
use crate::settings::{Draft, Effect, LoadSettings, PromptExpander, Request, Seed, table};
use crate::survey::{Kind, Survey};
use crate::weights::{CatalogKind, Found, UpscalerFile, find_models};
use crate::{Error, Result};
use ::image::RgbImage;
use ::image::imageops::FilterType;
use candle_core::{DType, Device};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The folders beside and inside the models folder in which upscalers are kept.
const UPSCALERS: &[&str] = &["upscalers", "upscale_models", "ESRGAN", "RealESRGAN", "SwinIR", "SPAN", "Compact"];

/// The server's models.
pub(super) struct ModelStudio {
    base: Draft,
    models: KeptModels,
    devices: Vec<Device>,
    /// Where models are looked for by name.
    folder: PathBuf,
    /// Models that were opened, by what was said of them.
    opened: Mutex<HashMap<LoadSettings, usize>>,
}

/// The models, of which several may stay loaded.
#[derive(Clone)]
struct KeptModels {
    models: Models,
    kept: usize,
}

impl Load for KeptModels {
    fn load(&mut self, model: usize, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        self.models.load(model, device, observer)
    }

    fn devices(&self, model: usize) -> usize {
        self.models.devices(model)
    }

    fn most_devices(&self) -> usize {
        self.models.most_devices()
    }

    fn fits_beside(&self, model: usize) -> bool {
        self.models.fits_beside(model)
    }

    fn kept(&self) -> usize {
        self.kept
    }
}

impl ModelStudio {
    /// Opens the model that requests use which name none.
    pub(super) fn new(base: Draft, kept: usize) -> Result<Self> {
        let load = base.load.decide(&());
        let (devices, remarks) = open_all(load.devices())?;
        for remark in remarks {
            crate::cli::terminal::screen::say(&format!("warning: {remark}"));
        }
        let (folder, _) = models_folder(load.models_dir.as_ref().map(AsRef::as_ref));
        let models = KeptModels { models: Models::on(devices.len()), kept };
        let studio = Self { base, models, devices, folder, opened: Mutex::default() };
        // What cannot be opened is said now, where nothing was chosen it is for the requests to say.
        match studio.open(&load) {
            Err(error) if load.model.is_some() => return Err(error),
            Err(error) => crate::cli::terminal::screen::say(&format!("warning: {error}")),
            Ok(_) => {}
        }
        Ok(studio)
    }

    fn open(&self, load: &LoadSettings) -> Result<usize> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = opened.get(load) {
            return Ok(*number);
        }
        let dtype = load.dtype.on(self.devices.first().unwrap_or(&Device::Cpu));
        let folder = load.models_dir.as_ref().map(AsRef::as_ref);
        let checkpoint = match load.model.as_deref() {
            Some(BUILTIN) if !is_in_base(&self.base, BUILTIN) && self.found(BUILTIN).is_none() => model::builtin()?,
            what => model::open_for(what, folder, dtype, DownloadStyle::default(), load.beside(None))?,
        };
        let number = self.models.models.add(Opened::new(checkpoint, self.devices.clone(), load));
        opened.insert(load.clone(), number);
        Ok(number)
    }

    /// The model of a name in the models folder.
    fn found(&self, name: &str) -> Option<Found> {
        let wanted = name.strip_suffix(".safetensors").unwrap_or(name).to_lowercase();
        let found = find_models(&self.folder);
        let named = |is: &dyn Fn(&str) -> bool| found.iter().find(|found| is(&found.name.to_lowercase())).cloned();
        named(&|own| own == wanted).or_else(|| named(&|own| own.rsplit('/').next() == Some(&wanted)))
    }

    /// A draft whose model is a path that the server found, or what it was told itself.
    fn with_model(&self, mut draft: Draft) -> Result<Draft> {
        let Some(name) = draft.load.model.clone() else { return Ok(draft) };
        if is_in_base(&self.base, &name) {
            return Ok(draft);
        }
        // A job of an earlier run has the path.
        let is_path = || find_models(&self.folder).into_iter().any(|found| found.path.to_str() == Some(&name));
        match self.found(&name) {
            Some(found) => draft.load.model = found.path.to_str().map(str::to_owned),
            None if name == BUILTIN || is_path() => {}
            None => {
                let there: Vec<String> = self.list(Nameable::Model).into_iter().take(40).map(|model| model.name).collect();
                return Err(Error::setting("model", format!(" {name:?}: this server has no such model; it has {}", there.join(", "))));
            }
        }
        Ok(draft)
    }

    /// The folders in which networks lie.
    fn roots(&self) -> Vec<PathBuf> {
        let load = self.base.load.decide(&());
        let of = |folder: &Option<crate::settings::SourcePath>| folder.as_ref().map(|folder| folder.0.clone());
        let beside = self.folder.parent().unwrap_or(Path::new("")).to_owned();
        let mut roots = vec![self.folder.clone()];
        roots.extend(UPSCALERS.iter().map(|name| beside.join(name)));
        roots.extend([of(&load.lora_dir), of(&load.embeddings_dir)].into_iter().flatten());
        for folders in [
            AdapterFolders::loras(None, &self.folder),
            AdapterFolders::embeddings(None, &self.folder),
            AdapterFolders::vaes(&self.folder),
            AdapterFolders::control_nets(&self.folder),
            AdapterFolders::ip_adapters(&self.folder),
        ] {
            roots.extend(folders.folders().iter().cloned());
        }
        roots
    }

    /// A file of a draft: where the owner of the server keeps networks, links included that he made there; or `permitted`.
    fn may_read(&self, path: &Path, permitted: &dyn Fn(&Path) -> bool) -> bool {
        let climbs = path.components().any(|part| part == Component::ParentDir)
            && !self.folder.components().any(|part| part == Component::ParentDir);
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_default();
        let is_network = !climbs && self.roots().iter().any(|root| absolute(path).starts_with(absolute(root)) || stays_inside(root, path));
        is_network || permitted(path)
    }

    /// Every file that a draft names may be read.
    fn check_files(&self, draft: &mut Draft, permitted: &dyn Fn(&Path) -> bool) -> Result<()> {
        let own: Vec<PathBuf> = table()
            .iter()
            .flat_map(|row| (row.access.files)(&mut self.base.clone()).into_iter().map(|file| file.path().to_owned()).collect::<Vec<_>>())
            .collect();
        for row in table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File)) {
            for file in (row.access.files)(draft) {
                if !own.iter().any(|path| path == file.path()) && !self.may_read(file.path(), permitted) {
                    let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Err(Error::setting(row.name, format!(" {name}: is not a file of this server's folders")));
                }
            }
        }
        let refiner = draft.passes.refiner.as_ref().map(|refiner| refiner.path.clone());
        match refiner {
            Some(path) if self.base.passes.refiner.as_ref().is_none_or(|own| own.path != path) && !self.may_read(&path, permitted) => {
                Err(Error::setting("refiner", ": is not a model of this server's folders"))
            }
            _ => Ok(()),
        }
    }
}

fn is_in_base(base: &Draft, name: &str) -> bool {
    base.load.model.as_deref() == Some(name)
}

impl Studio for ModelStudio {
    fn base(&self) -> &Draft {
        &self.base
    }

    fn check_model(&self, name: &str) -> Result<()> {
        let climbs = Path::new(name).components().any(|part| !matches!(part, Component::Normal(_))) || name.contains(['\\', '\0']);
        if climbs && !is_in_base(&self.base, name) {
            return Err(Error::setting("model", ": give the name of a model, not a path"));
        }
        self.with_model(Draft::default().with(|draft| draft.load.model = Some(name.to_owned()))).map(drop)
    }

    fn resolve(&self, draft: Draft, permitted: &dyn Fn(&Path) -> bool) -> Result<ResolvedJob> {
        let (draft, mut remarks) = recreated(draft)?;
        // The first is the command, with the folders of this server.
        remarks.drain(..remarks.len().min(1));
        let draft = self.with_model(draft)?;
        let number = self.open(&draft.load.decide(&()))?;
        let opened = self.models.models.get(number).ok_or_else(|| Error::Model("a model that was not opened".into()))?;
        remarks.extend(opened.remark().map(str::to_owned));
        let seed = match draft.seed {
            Some(Seed::Is(seed)) => seed,
            Some(Seed::Random) | None => u64::from(rand::random::<u32>()),
        };
        let (mut files, mut expander) = (InputReader::default(), PromptExpander::default());
        let finder = model::AdapterFinder::new(&draft.load.decide(&()));
        let mut images = Vec::new();
        for prompt in &draft.prompts {
            for mut made in expander.expand(&draft, prompt, seed)? {
                finder.find(&mut made)?;
                opened.find_words(&mut made);
                self.check_files(&mut made, permitted)?;
                let (request, applied) = opened.request(made, &mut files)?;
                remarks.extend(applied);
                if let Some(excess) = opened.excess(&request) {
                    return Err(Error::setting("size", format!(": {excess}")));
                }
                if images.len().saturating_add(request.output.images) > 10_000 {
                    return Err(Error::setting("images", ": are too many for one job"));
                }
                images.extend(request.each());
            }
        }
        // A job without an image would never begin, and who waits for it would wait for ever.
        if images.is_empty() {
            return Err(Error::setting("prompt", ": give one"));
        }
        remarks.extend(expander.remarks());
        let guided = images.first().is_none_or(|(request, _): &(Arc<Request>, u64)| request.is_guided());
        if draft.text.negative_prompt.as_ref().is_some_and(|text| !text.is_empty()) && !guided {
            remarks.push("the negative prompt does nothing without guidance; guidance-scale above 1 turns it on".into());
        }
        Ok(ResolvedJob { model: number, generator: opened.generator(), images, remarks })
    }

    fn loader(&self) -> Box<dyn Load> {
        Box::new(self.models.clone())
    }

    fn sizes(&self, model: usize, request: &Request, images: usize) -> Sizes {
        match self.models.models.get(model) {
            Some(opened) => {
                let footprint: Footprint = opened.footprint(request);
                sizes(&footprint, images.div_ceil(opened.devices()), request.output.batch_size.0)
            }
            None => Sizes { batch: 1, at_once: 1 },
        }
    }

    fn forget(&self, model: usize) {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, number| *number != model);
    }

    fn rest(&self) {
        release(&Device::Cpu);
    }

    fn list(&self, kind: Nameable) -> Vec<NameableFile> {
        let named = |found: &Found| NameableFile { name: found.name.clone(), path: Some(found.path.clone()) };
        let all = |folders: AdapterFolders| folders.all().iter().map(named).collect::<Vec<_>>();
        let load = self.base.load.decide(&());
        let of = |folder: &Option<crate::settings::SourcePath>| folder.as_ref().map(|folder| folder.0.clone());
        match kind {
            Nameable::Model => {
                let found = find_models(&self.folder);
                let is_model = |found: &&Found| {
                    found.holds != CatalogKind::Pickle && Survey::of(&found.path).is_ok_and(|survey| survey.kind == Kind::Model)
                };
                let mut models: Vec<NameableFile> = found.iter().filter(is_model).map(named).collect();
                if !models.iter().any(|model| model.name == BUILTIN) && model::builtin().is_ok() {
                    models.push(NameableFile { name: BUILTIN.into(), path: None });
                }
                if let Some(own) = self.base.load.model.as_ref().filter(|own| !models.iter().any(|model| model.name == **own)) {
                    models.insert(0, NameableFile { name: own.clone(), path: None });
                }
                models
            }
            Nameable::Lora => all(AdapterFolders::loras(of(&load.lora_dir).as_deref(), &self.folder)),
            Nameable::Embedding => all(AdapterFolders::embeddings(of(&load.embeddings_dir).as_deref(), &self.folder)),
            Nameable::Vae => all(AdapterFolders::vaes(&self.folder)),
            Nameable::ControlNet => all(AdapterFolders::control_nets(&self.folder)),
            Nameable::Upscaler => {
                let beside = self.folder.parent().unwrap_or(Path::new("")).to_owned();
                let folders = UPSCALERS.iter().flat_map(|name| [self.folder.join(name), beside.join(name)]);
                folders.flat_map(|folder| find_models(&folder)).filter(|f| f.holds == CatalogKind::File).map(|f| named(&f)).collect()
            }
        }
    }

    fn devices(&self) -> &[Device] {
        &self.devices
    }

    fn default_model(&self) -> String {
        if let Some(model) = &self.base.load.model {
            return model.clone();
        }
        match model::resolve(None, self.base.load.models_dir.as_ref().map(AsRef::as_ref)) {
            Ok(Named::Path(path)) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Ok(Named::Builtin) => BUILTIN.into(),
            Ok(Named::Hub(_)) | Err(_) => String::new(),
        }
    }

    fn upscale(&self, image: &RgbImage, upscaler: &str, scale: f64) -> Result<RgbImage> {
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let filter = match upscaler {
            "None" | "Lanczos" => FilterType::Lanczos3,
            "Nearest" => FilterType::Nearest,
            name => {
                let known = self.list(Nameable::Upscaler).into_iter().find(|file| file.name == name);
                let path = known.and_then(|file| file.path).ok_or_else(|| {
                    Error::setting("upscale", format!(" {name:?}: this server has no such upscaler; GET /v1/files lists what it has"))
                })?;
                let device = self.devices.first().unwrap_or(&Device::Cpu);
                let file = UpscalerFile::open(&path)?;
                let pipeline = UpscalePipeline::load(&file, name, device, DType::F32)?;
                return pipeline.run_to(image, scale, &mut |_, _| if cancelled() { Err(Error::Cancelled) } else { Ok(()) });
            }
        };
        Ok(::image::imageops::resize(image, side(image.width()), side(image.height()), filter))
    }

    fn settings_of(&self, image: &Path) -> Result<(NamedSettings, Vec<String>)> {
        let (draft, notes) = recreated_alone(image)?;
        let rows = table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File) && row.name != "size");
        let given = rows.map(|row| (row.name, (row.access.given)(&draft))).filter(|(_, values)| !values.is_empty());
        Ok((given.collect(), notes))
    }
}
