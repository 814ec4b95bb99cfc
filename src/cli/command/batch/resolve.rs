//! From lines to jobs: every model opened, every request resolved, every name given, before a weight is read.

use crate::batch::{ImageNames, ImageTarget, Job, Key, Shard, seed_of};
use crate::cli::command::output::{ImageName, NamedBy, Output, check_confined};
use crate::cli::model::download::DownloadStyle;
use crate::cli::model::{self, Models, Opened};
use crate::cli::settings::lines::Line;
use crate::cli::settings::recreate::recreated;
use crate::device::{DeviceChoice, open_all};
use crate::disk::{folder_of, stays_inside};
use crate::hub::Missing;
use crate::inputs::{InputReader, STANDARD_INPUT};
use crate::settings::{Draft, LoadSettings, NetworkFile, PromptExpander, Seed};
use crate::{Error, Result};
use candle_core::Device;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Images of one file: more than anybody looks at, and what a list of them takes in memory is bounded.
pub(super) const MOST_IMAGES: usize = 1_000_000;

/// Turns lines into jobs, one after the other.
pub(super) struct Resolver {
    pub(super) models: Models,
    /// A model that could not be opened is said once.
    opened: HashMap<LoadSettings, Option<(usize, String)>>,
    devices: Vec<(Vec<DeviceChoice>, Vec<Device>)>,
    /// What was read for the lines so far.
    files: InputReader,
    expander: PromptExpander,
    /// Of each prompt without a seed, the last line and how many lines before it had it.
    prompts: HashMap<String, (usize, u32)>,
    /// How often each image was asked for.
    keys: HashMap<Key, u32>,
    pub(super) names: ImageNames,
    /// The folders of the images of this shard.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Images so far, those of other shards included.
    pub(super) images: usize,
    /// There were more, and there is no point in asking for any.
    pub(super) is_full: bool,
    shard: Option<Shard>,
    /// The folder of `./sd-gen.toml`, where that says where images go.
    pub(super) confined_to: Option<PathBuf>,
    /// The folder that the lines of a file may write to, unless the user allows them more.
    pub(super) lines_stay_in: Option<PathBuf>,
    /// The lines are read from standard input.
    pub(super) lines_are_input: bool,
    /// How a download is shown.
    pub(super) showing: DownloadStyle,
    /// What was said of adapters.
    applied: HashSet<String>,
    /// What the user should know.
    pub(super) remarks: Vec<String>,
    /// Where there is a list, models that are not here are noted in it and not fetched.
    pub(super) absent: Option<Vec<UncachedModel>>,
}

/// A line with its templates filled in.
pub(super) struct ExpandedLine {
    pub(super) output: Output,
    /// The id of its first image.
    pub(super) first: usize,
    /// How many images it stands for.
    images: usize,
    pub(super) made: Vec<Draft>,
    load: LoadSettings,
}

/// A model of the hub that is not here.
pub(super) struct UncachedModel {
    pub(super) model: String,
    pub(super) files: Vec<Missing>,
    /// Images that want it.
    pub(super) images: usize,
    flags: LoadSettings,
}

impl Resolver {
    /// Models will be on up to `devices` devices.
    pub(super) fn new(shard: Option<Shard>, devices: usize) -> Self {
        Self {
            models: Models::on(devices),
            opened: HashMap::new(),
            devices: Vec::new(),
            files: InputReader::default(),
            expander: PromptExpander::default(),
            prompts: HashMap::new(),
            keys: HashMap::new(),
            names: ImageNames::default(),
            folders: BTreeSet::new(),
            images: 0,
            is_full: false,
            shard,
            confined_to: None,
            lines_stay_in: None,
            lines_are_input: false,
            showing: DownloadStyle::default(),
            applied: HashSet::new(),
            remarks: Vec::new(),
            absent: None,
        }
    }

    /// What a line stands for: its templates filled in, its files each by itself. Ids are given to its images.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn expanded(&mut self, line: &Line) -> Result<ExpandedLine> {
        let (draft, understood) = recreated(line.draft.clone())?;
        self.remarks.extend(understood);
        let draft = &draft;
        let run = draft.run.decide(&());
        if let Some(path) = &run.save_latents {
            return Err(Error::Input(format!("--save-latents {}: a batch keeps images alone; leave it out", path.display())));
        }
        if run.output.as_deref() == Some("-") {
            return Err(Error::Input("--output -: the images of a batch go into files; give a template such as \"{seed}.png\"".into()));
        }
        if self.lines_stay_in.is_some() && run.overwrite && line.is_of_file() && line.sets("overwrite") {
            let what = "--overwrite: a line of a file may not allow it; give it on the command line, or --allow-outside";
            return Err(Error::Input(what.into()));
        }
        if self.lines_are_input && draft.inputs.init_image.as_ref().is_some_and(|file| file.path().as_os_str() == STANDARD_INPUT) {
            return Err(Error::Input("--init-image -: the lines come from standard input already; give a file".into()));
        }
        let output = Output::new(run.output.as_deref(), run.output_dir.as_deref(), run.overwrite)?;
        // First of all: the seeds and numbers of later lines do not depend on whether this one can be generated.
        let first = self.images;
        let images = draft.prompts.len().saturating_mul(draft.output.images.unwrap_or(1));
        if first.saturating_add(images) > MOST_IMAGES {
            self.is_full = true;
            return Err(Error::Input(format!("there are more than {MOST_IMAGES} images up to here; split the file")));
        }
        let mut seed_for = |prompt: &String| match draft.seed {
            Some(Seed::Is(seed)) => seed,
            Some(Seed::Random) | None => seed_of(prompt, self.earlier(prompt, line.number)),
        };
        let seeds: Vec<u64> = draft.prompts.iter().map(&mut seed_for).collect();
        let made = draft.prompts.iter().zip(seeds).map(|(prompt, seed)| self.expander.expand(draft, prompt, seed));
        let each = |made: Vec<Draft>| made.into_iter().map(Draft::each_init_image).collect::<Result<Vec<_>>>();
        let made = made.map(|made| made.and_then(each)).collect::<Result<Vec<_>>>();
        let made = made.map(|made| made.into_iter().flatten().flatten().collect::<Vec<_>>());
        // A prompt of which nothing can be made counts as it stands.
        let images = made.as_ref().map_or(images, |made| made.iter().map(|draft| draft.output.images.unwrap_or(1)).sum());
        self.images = self.images.saturating_add(images);
        let made = made?;
        self.remarks.extend(self.expander.remarks().into_iter().map(|remark| format!("warning: {remark}")));
        if self.images > MOST_IMAGES {
            self.is_full = true;
            return Err(Error::Input(format!("there are more than {MOST_IMAGES} images up to here; split the file")));
        }
        Ok(ExpandedLine { output, first, images, made, load: draft.load.decide(&()) })
    }

    /// The file of an image of a line; nothing where it belongs to another shard.
    ///
    /// # Errors
    /// The line may not write there.
    pub(super) fn place(&mut self, line: &Line, output: &Output, name: &ImageName<'_>) -> Result<Option<ImageTarget>> {
        // The images of all shards are planned, so that no two of them have the same name.
        let Some(target) = output.target(name).map(|target| self.names.plan(target)).transpose()? else { return Ok(None) };
        if self.shard.is_some_and(|shard| !shard.has(name.index)) {
            return Ok(None);
        }
        if !self.folders.contains(folder_of(&target.path)) {
            self.check_inside(line, &target.path)?;
            self.folders.insert(folder_of(&target.path).to_owned());
        }
        Ok(Some(target))
    }

    /// The key of an image, counted where it is asked for again.
    pub(super) fn counted(&mut self, key: Key) -> Key {
        let count = self.keys.entry(key).or_insert(0);
        let again = key.again(*count);
        *count += 1;
        again
    }

    /// The images of a line that belong to the shard; `None` where its model cannot be opened, which was said of an earlier line, or is
    /// absent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn jobs(&mut self, line: &Line) -> Result<Option<Vec<Job>>> {
        let ExpandedLine { output, first: mut id, images, made, load: flags } = self.expanded(line)?;
        let vae = made.first().and_then(|draft| draft.adapters.vae.clone());
        let Some((number, content)) = self.model(&flags, vae.as_ref())? else {
            if let Some(absent) = self.absent.iter_mut().flatten().find(|absent| absent.flags == flags) {
                absent.images += (id..id + images).filter(|id| self.shard.is_none_or(|shard| shard.has(*id))).count();
            }
            return Ok(None);
        };
        let opened = self.models.get(number).ok_or_else(|| Error::Model("a model that was not opened".into()))?;
        let label = opened.label.clone();
        let mut jobs = Vec::new();
        for mut draft in made {
            opened.finder.find(&mut draft)?;
            let (request, applied) = opened.request(draft, &mut self.files)?;
            for line in applied {
                if self.applied.insert(line.clone()) {
                    self.remarks.push(line);
                }
            }
            for (request, seed) in request.each() {
                let this = id;
                id += 1;
                let key = Key::of(&content, &opened.generator(), &request, seed)?;
                let key = self.counted(key);
                let name = ImageName { by: NamedBy::Request(&request), model: &label, seed, index: this };
                let Some(target) = self.place(line, &output, &name)? else { continue };
                jobs.push(Job { id: this, key, line: line.number, model: number, generator: opened.generator(), request, seed, target });
            }
        }
        Ok(Some(jobs))
    }

    /// That an image's path stays where its line may write, through no link.
    fn check_inside(&self, line: &Line, path: &Path) -> Result<()> {
        let own = line.is_of_file() && (line.sets("output") || line.sets("output-dir"));
        if let Some(folder) = self.confined_to.as_deref().filter(|_| !own) {
            check_confined(folder, path)?;
        }
        if let Some(folder) = self.lines_stay_in.as_deref().filter(|_| line.is_of_file())
            && !stays_inside(folder, folder_of(path))
        {
            let flag = if line.sets("output-dir") { "--output-dir" } else { "--output" };
            let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            return Err(Error::Input(format!(
                "{flag}: {} lies outside of the output folder {}; give another --output-dir on the command line, or --allow-outside",
                path.display(),
                shown.display()
            )));
        }
        Ok(())
    }

    /// Lines before this one with the same prompt. A line that a sweep made into several has one seed for all of them.
    fn earlier(&mut self, prompt: &str, line: usize) -> u32 {
        match self.prompts.get_mut(prompt) {
            Some((last, earlier)) => {
                *earlier += u32::from(*last != line);
                *last = line;
                *earlier
            }
            None => {
                self.prompts.insert(prompt.to_owned(), (line, 0));
                0
            }
        }
    }

    /// The number of a model and what it is by its content; a denoiser alone takes `vae`, the first that is asked for with it.
    fn model(&mut self, flags: &LoadSettings, vae: Option<&NetworkFile>) -> Result<Option<(usize, String)>> {
        if let Some(known) = self.opened.get(flags) {
            return Ok(known.clone());
        }
        // Until it is open, it is one that cannot be opened.
        self.opened.insert(flags.clone(), None);
        let devices = match self.devices.iter().find(|(choices, _)| choices == flags.devices()) {
            Some((_, devices)) => devices.clone(),
            None => {
                let (devices, remarks) = open_all(flags.devices())?;
                self.remarks.extend(remarks.into_iter().map(|remark| format!("warning: {remark}")));
                self.devices.push((flags.devices().to_vec(), devices.clone()));
                devices
            }
        };
        let (what, folder) = (flags.model.as_deref(), flags.models_dir.as_ref().map(AsRef::as_ref));
        let dtype = flags.dtype.on(devices.first().unwrap_or(&Device::Cpu));
        if let Some(absent) = &mut self.absent {
            let files = model::to_fetch(what, folder, dtype, self.showing)?;
            if !files.is_empty() {
                absent.push(UncachedModel { model: what.unwrap_or_default().to_owned(), files, images: 0, flags: flags.clone() });
                return Ok(None);
            }
        }
        let checkpoint = model::open_for(what, folder, dtype, self.showing, flags.beside(vae))?;
        let opened = Opened::new(checkpoint, devices, flags).downloading(self.showing);
        self.remarks.extend(opened.remark().map(str::to_owned));
        let content = opened.checkpoint.identity()?;
        let known = (self.models.add(opened), content);
        self.opened.insert(flags.clone(), Some(known.clone()));
        Ok(Some(known))
    }
}
