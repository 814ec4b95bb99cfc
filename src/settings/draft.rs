//! What the user said, and what it becomes for a model.

use super::{
    AdapterDraft, BatchNoise, BatchPlace, By, CanvasDraft, Effect, GuidanceDraft, InputDraft, LoadDraft, OutputDraft, PassDraft, Request,
    RunDraft, SamplingDraft, SchedulerDraft, Seed, Setting, TemplateDraft, TextDraft, ValueKind, find, table,
};
use crate::inputs::InputReader;
use crate::prompt::PromptSyntax;
use crate::sampling::Like;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use std::ffi::OsString;

/// Pixels along one side that nobody means seriously.
pub(super) const LARGEST_SIDE: usize = 16_384;

/// What the user said; the rest is left to the model.
///
/// ```
/// let mut draft = sd_gen::settings::Draft::new("a red apple");
/// draft.sampling.steps = Some(20);
/// draft.set("guidance-scale", ["7.5"])?;
/// # Ok::<(), sd_gen::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Draft {
    /// What to generate; each is a request of its own.
    pub prompts: Vec<String>,
    /// The first image's seed.
    pub seed: Option<Seed>,
    /// The texts beside the prompt.
    pub text: TextDraft,
    /// What becomes of prompts before they are read; [`super::PromptExpander`] makes it of them.
    pub template: TemplateDraft,
    /// The image's size.
    pub canvas: CanvasDraft,
    /// Steps and noise.
    pub sampling: SamplingDraft,
    /// What takes the place of the model's own schedule and solver.
    pub scheduler: SchedulerDraft,
    /// Classifier-free guidance.
    pub guidance: GuidanceDraft,
    /// The images that it is made from.
    pub inputs: InputDraft,
    /// What follows the first pass.
    pub passes: PassDraft,
    /// LoRAs and textual inversions.
    pub adapters: AdapterDraft,
    /// How many images.
    pub output: OutputDraft,
    /// What is loaded, and how.
    pub load: LoadDraft,
    /// Where files go, and what is shown.
    pub run: RunDraft,
}

impl Draft {
    /// For one prompt.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompts: vec![prompt.into()], ..Self::default() }
    }

    /// With a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// With this prompt alone, and this seed.
    #[must_use]
    pub fn of_prompt(&self, prompt: impl Into<String>, seed: u64) -> Self {
        Self { prompts: vec![prompt.into()], seed: Some(Seed::Is(seed)), ..self.clone() }
    }

    /// The language of its prompts.
    pub fn prompt_syntax(&self) -> PromptSyntax {
        self.text.prompt_syntax.unwrap_or_else(|| super::text::syntax_of(self.sampling.like))
    }

    /// Sets a setting by its name, or another tool's name for it, as it would be typed. No value takes back what was said.
    ///
    /// # Errors
    /// [`Error::Setting`]: there is no such setting, or it does not take the value.
    pub fn set(&mut self, name: &str, values: impl IntoIterator<Item = impl Into<OsString>>) -> Result<()> {
        let row = find(name).ok_or_else(|| Error::Input(format!("there is no setting {name:?}")))?;
        let values: Vec<OsString> = values.into_iter().map(Into::into).collect();
        (row.access.read)(self, &values).map_err(|(at, what)| {
            let value = values.get(at).map(|value| format!("{:?}: ", value.to_string_lossy())).unwrap_or_default();
            Error::setting(row.name, format!("{value}{what}"))
        })
    }

    /// Reads and hashes the files that are inputs, as far as that was not done.
    ///
    /// # Errors
    /// [`Error::Setting`]: a file cannot be read, or is larger than its setting allows.
    pub fn read_files(&mut self, reader: &mut InputReader) -> Result<()> {
        for row in table() {
            for file in (row.access.files)(self) {
                reader.read(file, row.limit).map_err(|what| Error::setting(row.name, what))?;
            }
        }
        Ok(())
    }

    /// Decides what the draft leaves open by what the model is, and checks all of it. Files that were not read are read.
    ///
    /// # Errors
    /// A value is out of its range, or does not go with the model or with the others; the message names the setting.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Request> {
        let mut draft = self.clone();
        draft.read_files(&mut InputReader::default())?;
        draft.with_inputs(spec)?.with_passes().with_few_steps().with_fast(spec).resolve_read(spec)
    }

    fn resolve_read(&self, spec: &ModelSpec) -> Result<Request> {
        let prompt = match self.prompts.as_slice() {
            [prompt] => prompt.clone(),
            [] => return Err(Error::setting("prompt", ": give one")),
            all => return Err(Error::setting("prompt", format!(": {} were given, and a request has one", all.len()))),
        };
        for row in table() {
            in_range(row, self)?;
        }
        // A file named by the user is input, however alike it is to a model's own.
        let named = self.scheduler.config.is_some();
        let blame = |error| match error {
            Error::Model(what) if named => Error::Input(what),
            other => other,
        };
        let scheduler = self.scheduler_for(spec).map_err(blame)?;
        let by = By { spec, sampler: scheduler.sampler().map_err(blame)?, like: self.sampling.like };
        let seed = match self.seed {
            Some(Seed::Is(seed)) => seed,
            // 32 bits, so that it can be typed again and is a seed for every other tool too.
            Some(Seed::Random) | None => u64::from(rand::random::<u32>()),
        };
        let mut request = Request {
            prompt,
            seed,
            text: self.text.decide(&by),
            skip_layers: 0,
            canvas: self.canvas.decide(&by),
            sampling: self.sampling.decide(&by),
            guidance: self.guidance.decide(&by),
            guidance_is_embedded: spec.unet.guidance_embed_dim > 0,
            inputs: self.inputs.decide(&by),
            passes: self.passes.decide(&by),
            adapters: self.adapters.decide(&by),
            output: self.output.decide(&by),
            scheduler,
            scheduler_is_named: self.scheduler.config.is_some(),
        };
        request.skip_layers = request.text.skip_layers(spec);
        request.scheduler.first_noise = request.sampling.first_noise;
        request.scheduler.image_tokens = spec.mmdit.as_ref().map(|mmdit| {
            let side = (spec.vae.factor() * mmdit.patch_size).max(1);
            (request.canvas.width / side) * (request.canvas.height / side)
        });
        super::mmdit::settle(&mut request, spec)?;
        settle_noise(&mut request)?;
        if let Some(levels) = request.scheduler.levels()? {
            // Levels that were given are the steps.
            // A tool's schedules do not always have as many steps as were asked for.
            let strict = matches!(request.sampling.like, None | Some(Like::Diffusers));
            if let Some(steps) = self.sampling.steps.filter(|steps| strict && *steps != levels.len()) {
                return Err(Error::setting(
                    "steps",
                    format!("{steps}: the levels that were given make {} steps; leave it out", levels.len()),
                ));
            }
            request.sampling.steps = levels.len();
        }
        if request.guidance.ngms == 0.0 {
            request.guidance.ngms_all_steps = false;
        }
        let guidance = &request.guidance;
        if guidance.start > guidance.end {
            return Err(Error::setting("guidance-start", format!("{}: is after the end of guidance, {}", guidance.start, guidance.end)));
        }
        self.check_sides(&request, spec)?;
        // Planning finds out whether sampler, schedule and steps go together, before a weight is read.
        crate::sampling::plan(&request.scheduler, request.sampling.steps).map_err(blame)?;
        check_clip_skip(&request, spec)?;
        super::passes::check(&mut request, spec)?;
        super::guidance::settle_self_attention(&mut request, spec)?;
        super::cache::check(&request, spec)?;
        if request.guidance.apg.is_some() {
            let guidance = &request.guidance;
            let parts = request.part_weights().is_some();
            for (name, given) in [
                ("guidance-rescale", guidance.rescale != 0.0),
                ("pag-scale", guidance.pag_scale != 0.0),
                ("prompt", parts),
                ("edit", request.inputs.edit),
            ] {
                if given {
                    let what = if name == "prompt" { "a prompt with AND" } else { "this" };
                    return Err(Error::setting(name, format!(": {what} does not go with `apg`, which guides by a formula of its own")));
                }
            }
        }
        if request.inputs.edit {
            let guidance = &request.guidance;
            // The three rows of an edit have a formula of their own.
            for (name, given) in [
                ("guidance-rescale", guidance.rescale != 0.0),
                ("guidance-start", guidance.start > 0.0),
                ("guidance-end", guidance.end < 1.0),
                ("skip-early-cfg", guidance.skip_early > 0.0),
                ("ngms", guidance.ngms > 0.0),
                ("pag-scale", guidance.pag_scale != 0.0),
            ] {
                if given {
                    return Err(Error::setting(name, ": does not go with a model that edits by instruction; leave it out"));
                }
            }
        }
        if request.inputs.edit && request.part_weights().is_some() {
            return Err(Error::setting(
                "edit",
                ": an instruction has one part; leave AND out of the prompt, or take `prompt-syntax` plain",
            ));
        }
        if self.text.emphasis.is_some() && request.text.prompt_syntax != PromptSyntax::A1111 {
            let syntax = request.text.prompt_syntax.name();
            return Err(Error::setting("emphasis", format!(": `prompt-syntax` {syntax} has a rule of its own; leave one of them out")));
        }
        Ok(request)
    }

    fn check_sides(&self, request: &Request, spec: &ModelSpec) -> Result<()> {
        let multiple = spec.side_multiple();
        let both = self.canvas.width.is_some() && self.canvas.width == self.canvas.height;
        for (name, pixels) in [("width", request.canvas.width), ("height", request.canvas.height)] {
            let name = if both { "size" } else { name };
            if pixels == 0 || !pixels.is_multiple_of(multiple) {
                let near = (pixels.saturating_add(multiple / 2) / multiple * multiple).max(multiple);
                return Err(Error::setting(name, format!("{pixels}: must be a multiple of {multiple}; {near} is near")));
            }
            if pixels > LARGEST_SIDE {
                return Err(Error::setting(name, format!("{pixels}: at most {LARGEST_SIDE} pixels a side; generate smaller and enlarge")));
            }
            let most = spec.mmdit.as_ref().map_or(LARGEST_SIDE, |mmdit| mmdit.positions * mmdit.patch_size * spec.vae.factor());
            if pixels > most {
                return Err(Error::setting(
                    name,
                    format!("{pixels}: at most {most} pixels a side with this model; generate smaller and enlarge"),
                ));
            }
        }
        Ok(())
    }
}

/// The numbers of a setting are finite and in its range.
fn in_range(row: &Setting, draft: &Draft) -> Result<()> {
    // Where a process's settings are used, they are judged.
    if row.effect == Effect::Run {
        return Ok(());
    }
    let (least, most) = row.range.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    for (number, typed) in (row.access.numbers)(draft).into_iter().zip((row.access.given)(draft)) {
        let what = match (row.kind, row.range) {
            (ValueKind::Whole, _) if number < least => format!("{typed}: must be at least {least}"),
            (ValueKind::Whole, _) if number > most => format!("{typed}: at most {most}"),
            (ValueKind::Whole, _) => continue,
            _ if number.is_finite() && (least..=most).contains(&number) => continue,
            (_, Some(_)) if most.is_finite() => format!("{typed}: must be a number from {least} to {most}"),
            (_, Some(_)) => format!("{typed}: must be a number from {least} on"),
            (_, None) => format!("{typed}: must be a finite number"),
        };
        return Err(Error::setting(row.name, what));
    }
    Ok(())
}

/// What the noise is drawn by, as far as it changes anything.
fn settle_noise(request: &mut Request) -> Result<()> {
    let (images, sampling) = (request.output.images, &mut request.sampling);
    if sampling.variation_strength == 0.0 {
        sampling.variation_seed = None;
    } else if !matches!(sampling.variation_seed, Some(Seed::Is(_))) {
        sampling.variation_seed = Some(Seed::Is(u64::from(rand::random::<u32>())));
    }
    match (sampling.batch_place, sampling.batch_noise) {
        (Some(place), _) if images > 1 => {
            let place = format!("{}/{}", place.index + 1, place.images);
            Err(Error::setting(
                "batch-place",
                format!("{place}: is one image's, and `images` {images} makes several; leave one of them out"),
            ))
        }
        (Some(_), BatchNoise::Each) => {
            Err(Error::setting("batch-place", ": goes with `batch-noise` shared, where the noise of several images is one draw"))
        }
        (None, BatchNoise::Shared) if images > 1 && BatchPlace::of(0, images).is_none() => {
            Err(Error::setting("images", format!("{images}: are too many for one draw of noise; give fewer, or `batch-noise` each")))
        }
        _ => Ok(()),
    }
}

fn check_clip_skip(request: &Request, spec: &ModelSpec) -> Result<()> {
    let layers = spec.text_encoders.iter().map(|encoder| encoder.clip.layers.saturating_sub(encoder.skip_layers)).min().unwrap_or(0);
    let skip = request.text.clip_skip;
    if request.skip_layers + 1 > layers.max(1) {
        return Err(Error::setting("clip-skip", format!("{skip}: the text encoder has {layers} layers to choose from")));
    }
    Ok(())
}
