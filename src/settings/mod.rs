//! Every setting, once: a row says its name, its short form, what other tools call it, its help, what values it takes, and what it
//! affects. From the rows come the draft and the request, the command line's flags, configuration files, the lines of batch files,
//! sweeps, an image's key in the manifest, what may be generated in one batch, the text in the PNG, the command that `inspect` prints,
//! and `docs/flags.md`.
//!
//! # How to add a setting
//! 1. **One row** in the group it belongs to (`canvas.rs`, `sampling.rs`, `guidance.rs`, `inputs.rs`, …), for example
//!
//!    ```text
//!    /// Takes back contrast that guidance adds, 0 to 1
//!    rescale: one f64 = |_| 0.0 => Setting {
//!        name: "guidance-rescale", value: "X", default: "0", heading: Heading::Sampling,
//!        range: Some((0.0, 1.0)), infotext: Some("CFG Rescale"), off: Some("0"), ..Setting::IMAGE
//!    };
//!    ```
//!
//!    The comment is the help. `one T = default` is always there in a request, `maybe T` is an `Option<T>`, `many T` a `Vec<T>` (a flag
//!    that may be repeated). `T` is anything that is a [`Value`]: numbers, `bool` (a switch), `String`, a [`PathBuf`](std::path::PathBuf)
//!    that is written to, an [`InputFile`] that is read (hashed into the key), [`WeightedFile`] for
//!    `FILE[:weight[:weight]]`, [`NumberList`], [`Parts`] for `HEAD,key=value,…`, or an enum with its words (`words!`).
//! 2. **Where its value is read**: `request.guidance.rescale`.
//!
//! A new group is a file with `settings! {}` in it, a field of [`Draft`] and [`Request`], and a line in [`table`]. Relations between
//! settings, and whatever depends on the model, are checked in [`Draft::resolve`].
//!
//! A row whose values are neither numbers, switches, texts nor `words` needs an `example`: the tests take every row through a PNG and
//! the command that is printed for it, and back.
//!
//! `off` is the value that changes nothing: it is neither in the key nor in the PNG, so that images of older versions keep their keys.
//! `together` says whether the images of one batch must agree in it; they must, where a row is silent.
//!
//! Nothing here knows clap, prints, or reads a model.

#[macro_use]
mod define;
#[macro_use]
mod value;

mod adapters;
mod cache;
mod canvas;
mod control;
mod control_kind;
mod docs;
mod draft;
mod guidance;
mod inputs;
mod load;
mod mmdit;
mod output;
mod parts;
mod passes;
mod request;
mod run;
mod sampling;
mod scheduler;
mod template;
mod text;

pub use adapters::{AdapterDraft, AdapterSettings};
pub use cache::StepCache;
pub use canvas::{CanvasDraft, CanvasSettings, PixelRounding, Tiling, parse_size};
pub use control::{ControlChoice, ImagePrompt};
pub use control_kind::ControlKind;
pub use docs::flag_table;
pub use draft::Draft;
pub use guidance::{FreeUFactors, GuidanceDraft, GuidanceSettings, ProjectedGuidance};
pub use inputs::{InpaintArea, InpaintFill, InputDraft, InputSettings, StrengthSteps};
pub use load::{LoadDraft, LoadSettings, ModelParts, VaeTiling};
pub use output::{BatchSize, OutputDraft, OutputSettings};
pub use parts::{NetworkFile, NumberList, Parts, WeightedFile};
pub use passes::{EnlargedBy, HiresPass, HiresUpscaler, ModelFile, PassDraft, PassSettings};
pub use request::{Request, Shape};
pub use run::{Graphics, MemorySize, PreviewStyle, ProgressStyle, RunDraft, RunSettings, Verbosity};
pub use sampling::{BatchNoise, BatchPlace, CanvasSize, FastLevel, SamplingDraft, SamplingSettings, Seed};
pub use scheduler::{SamplerOption, ScheduleChoice, SchedulerDraft};
pub use template::{DynamicPrompts, PromptExpander, TemplateDraft};
pub use text::{ClipSkipCount, EmptyNegative, TextDraft, TextSettings};
pub use value::{SourcePath, Value, ValueKind};

// What settings hold that is declared where it is worked with.
pub use crate::image::{Growth, InputImage, Preprocessor};
pub use crate::inputs::{InputFile, InputReader};
pub use crate::noise::Rng;

use crate::sampling::{Like, Sampler};
use crate::spec::ModelSpec;
use std::ffi::OsString;
use std::sync::LazyLock;

/// What a setting changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The pixels: it is part of an image's key.
    Image,
    /// The pixels, by the noise schedule and the solver, which the key holds as a whole.
    Scheduler,
    /// How many images there are, and which.
    Batch,
    /// What is loaded, and how it computes.
    Model,
    /// Where an image's file goes.
    File,
    /// The process: no line of a batch can have it for itself.
    Run,
}

/// Whether the images of one batch must agree in a setting.
#[derive(Debug, Clone, Copy)]
pub enum Together {
    /// In its value.
    Equal,
    /// Each may have its own.
    Free,
    /// In what this says of it.
    Class(fn(&Request) -> bool),
}

/// The part of the help that a setting stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Heading::title` says it")]
#[non_exhaustive]
pub enum Heading {
    What,
    Model,
    Sampling,
    Inputs,
    Passes,
    Adapters,
    Machine,
    Output,
}

impl Heading {
    /// As `--help` shows it.
    pub fn title(self) -> &'static str {
        match self {
            Heading::What => "What to generate",
            Heading::Model => "The model",
            Heading::Sampling => "Sampling",
            Heading::Inputs => "Images as inputs",
            Heading::Passes => "After the first pass",
            Heading::Adapters => "Adapters",
            Heading::Machine => "The machine",
            Heading::Output => "Output",
        }
    }
}

/// What defaults depend on.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// The sampler that was chosen, or the model's own.
    pub sampler: Sampler,
    /// The tool whose rules hold.
    pub like: Option<Like>,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name; a flag is this with two dashes.
    pub name: &'static str,
    /// The flag's letter.
    pub short: Option<char>,
    /// What other tools call it, shown in the help.
    pub aliases: &'static [&'static str],
    /// More names that are accepted.
    pub hidden_aliases: &'static [&'static str],
    /// What stands for the value in the help; empty for a switch.
    pub value: &'static str,
    /// One sentence without its full stop.
    pub help: &'static str,
    /// The default as people read it; empty where there is none to speak of.
    pub default: &'static str,
    /// Where it stands in the help.
    pub heading: Heading,
    /// The least and the largest number.
    pub range: Option<(f64, f64)>,
    /// Words that a shell completes.
    pub words: fn() -> Vec<&'static str>,
    /// A value, where the kind or the words do not give one.
    pub example: &'static str,
    /// The key in A1111's `parameters`.
    pub infotext: Option<&'static str>,
    /// The value that changes nothing.
    pub off: Option<&'static str>,
    /// Its default is the one of the tool that `--like` names: where a tool is named, it is written out whatever it is.
    pub follows_like: bool,
    /// What it changes.
    pub effect: Effect,
    /// Whether a batch's images agree in it.
    pub together: Together,
    /// Settings that it cannot stand beside.
    pub conflicts: &'static [&'static str],
    /// A setting that it makes no sense without.
    pub requires: Option<&'static str>,
    /// Between several values in one word.
    pub delimiter: Option<char>,
    /// Its value may be left out.
    pub bare: bool,
    /// The most bytes of a file that is read.
    pub limit: u64,
    /// How its value is spelled.
    pub kind: ValueKind,
    /// It may be given several times.
    pub many: bool,
    /// How its value is reached.
    pub access: Access,
}

/// Of the values that a setting was given, the number of the bad one, and a sentence's end: what to give instead.
pub type BadValue = (usize, String);

/// What reaches a setting's value; written by the macro that defines the row.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Puts values into a draft.
    pub read: fn(&mut Draft, &[OsString]) -> Result<(), BadValue>,
    /// The values of a draft as they would be typed.
    pub given: fn(&Draft) -> Vec<String>,
    /// The values of a draft that are numbers.
    pub numbers: fn(&Draft) -> Vec<f64>,
    /// The files of a draft.
    pub files: fn(&mut Draft) -> Vec<&mut InputFile>,
    /// A request's values as they would be typed; files by their names, without their folders.
    pub decided: fn(&Request) -> Vec<String>,
    /// A request's value in its key.
    pub json: fn(&Request) -> serde_json::Value,
}

impl Setting {
    /// A setting that changes the pixels; a row says what is different.
    pub const IMAGE: Setting = Setting {
        name: "",
        short: None,
        aliases: &[],
        hidden_aliases: &[],
        value: "",
        help: "",
        default: "",
        heading: Heading::What,
        range: None,
        words: Vec::new,
        example: "",
        infotext: None,
        off: None,
        follows_like: false,
        effect: Effect::Image,
        together: Together::Equal,
        conflicts: &[],
        requires: None,
        delimiter: None,
        bare: false,
        limit: 256 << 20,
        kind: ValueKind::Text,
        many: false,
        access: Access {
            read: |_, _| Ok(()),
            given: |_| Vec::new(),
            numbers: |_| Vec::new(),
            files: |_| Vec::new(),
            decided: |_| Vec::new(),
            json: |_| serde_json::Value::Null,
        },
    };
    /// A setting of the noise schedule or the solver.
    pub const SCHEDULER: Setting = Setting { effect: Effect::Scheduler, heading: Heading::Sampling, ..Setting::IMAGE };
    /// A setting of what is generated beside each other.
    pub const BATCH: Setting = Setting { effect: Effect::Batch, together: Together::Free, ..Setting::IMAGE };
    /// A setting of what is loaded.
    pub const MODEL: Setting = Setting { effect: Effect::Model, heading: Heading::Model, ..Setting::IMAGE };
    /// A setting of where an image's file goes.
    pub const FILE: Setting = Setting { effect: Effect::File, heading: Heading::Output, ..Setting::IMAGE };
    /// A setting of the process.
    pub const RUN: Setting = Setting { effect: Effect::Run, heading: Heading::Output, ..Setting::IMAGE };

    /// Whether the values can be read.
    ///
    /// # Errors
    /// The number of the bad value and a sentence's end: what to give instead.
    pub fn check(&self, values: &[OsString]) -> Result<(), BadValue> {
        (self.access.read)(&mut Draft::default(), values)
    }

    /// The values of a request, as they would be typed; nothing where they change nothing.
    pub fn written(&self, request: &Request) -> Vec<String> {
        let values = (self.access.decided)(request);
        let says_nothing = values.len() == 1 && Some(values[0].as_str()) == self.off;
        if says_nothing && !(self.follows_like && request.sampling.like.is_some()) { Vec::new() } else { values }
    }
}

/// Every setting, in the order of the help.
pub fn table() -> &'static [Setting] {
    static TABLE: LazyLock<Vec<Setting>> = LazyLock::new(|| {
        let groups = [
            text::PROMPT,
            text::ROWS,
            template::ROWS,
            canvas::ROWS,
            canvas::SIZE,
            sampling::SEED,
            sampling::ROWS,
            scheduler::ROWS,
            guidance::ROWS,
            inputs::ROWS,
            passes::ROWS,
            adapters::ROWS,
            output::ROWS,
            load::ROWS,
            run::ROWS,
        ];
        groups.into_iter().flatten().copied().collect()
    });
    &TABLE
}

/// A name as it is compared: case, `_`, `-` and spaces do not count.
pub fn fold(name: &str) -> String {
    name.trim().to_lowercase().replace(['_', ' '], "-")
}

/// The setting of a name, whatever tool it is from.
pub fn find(name: &str) -> Option<&'static Setting> {
    static NAMES: LazyLock<std::collections::HashMap<String, &'static Setting>> = LazyLock::new(|| {
        let names = |row: &'static Setting| [row.name].into_iter().chain(row.aliases.iter().chain(row.hidden_aliases).copied());
        table().iter().flat_map(|row| names(row).map(move |name| (fold(name), row))).collect()
    });
    NAMES.get(&fold(name)).copied()
}

/// The setting under a key of A1111's `parameters`; `LoRA 2` is the second value of `LoRA`.
pub fn of_infotext(key: &str) -> Option<&'static Setting> {
    let is = |row: &&Setting, key: &str| row.infotext == Some(key);
    let repeated = || key.rsplit_once(' ').filter(|(_, number)| number.parse::<u32>().is_ok()).map(|(key, _)| key);
    table().iter().find(|row| is(row, key)).or_else(|| {
        let key = repeated()?;
        table().iter().find(|row| row.many && is(row, key))
    })
}

#[cfg(test)]
mod tests;
