//! From a recipe to the `sd-gen` command that generates it again, and what of the recipe it cannot say.

use super::recipe::{Field, NamedLora, Recipe, file_stem, is_nothing};
use super::tool::Engine;
use crate::Result;
use crate::noise::Rng;
use crate::prompt::{NetworkTag, PromptSyntax};
use crate::sampling::{Like, PredictionType, Sampler, SchedulerConfig, SigmaSchedule, TimestepSpacing, plan};
use crate::settings::{HiresUpscaler, Value, ValueKind};

/// A command, and what it leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrintedCommand {
    /// What is typed after the program's name.
    pub arguments: Vec<String>,
    /// What could not be carried over, or must be known; one sentence each.
    pub notes: Vec<String>,
}

impl PrintedCommand {
    /// The command as a shell reads it.
    pub fn shell(&self) -> String {
        let words = std::iter::once("sd-gen").chain(self.arguments.iter().map(String::as_str));
        // A NUL cannot stand in an argument; none is put there.
        words.map(|word| shlex::try_quote(word).unwrap_or_default().into_owned()).collect::<Vec<_>>().join(" ")
    }

    fn flag(&mut self, flag: &str, value: impl Into<String>) {
        let value: String = value.into();
        // A NUL cannot stand in an argument, and other control characters would steer the terminal that shows the command.
        let plain: String = value.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        if plain != value {
            self.note(format!("control characters in {flag} were left out"));
        }
        let value = plain;
        // A value that looks like a flag is tied to its own.
        if value.starts_with('-') {
            self.arguments.push(format!("{flag}={value}"));
        } else {
            self.arguments.extend([flag.to_owned(), value]);
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// Words for noise levels that are one schedule and one spacing here, folded.
const SCHEDULES: &[(&str, SigmaSchedule, Option<TimestepSpacing>)] = &[
    ("trailing", SigmaSchedule::Discrete, Some(TimestepSpacing::Trailing)),
    ("native", SigmaSchedule::Discrete, None),
    ("default", SigmaSchedule::Discrete, None),
];

/// What other tools write beside their settings and what changes no image.
const HARMLESS: &[&str] = &[
    "User",
    "App",
    "Operations",
    "Pipeline",
    "Parser",
    "SDCPP",
    "Hashes",
    "Lora hashes",
    "TI hashes",
    "VAE hash",
    "Created Date",
    "Civitai metadata",
    "fooocus_scheme",
    "metadata_scheme",
    "created_by",
    "created_at",
    "generation_mode",
    "date",
    "generation_time",
    "generation_time_seconds",
    "full_prompt",
    "full_negative_prompt",
    "styles",
    "performance",
    "software",
    "app_id",
    "base",
    "sui_models",
    "Raw prompt",
    "Raw negative prompt",
    "Performance",
    "Styles",
    "images",
    "imageformat",
];
/// What tools write where they took what they always take.
const DEFAULTS: &[&str] = &["", "None", "none", "false", "Default (model)", "Automatic", "[]", "{}"];

/// The arguments that generate `recipe` again. Without a prompt there are none.
pub fn command(recipe: &Recipe) -> PrintedCommand {
    let own = recipe.tool == "sd-gen";
    let mut command = PrintedCommand::default();
    if recipe.get(Field::Prompt).is_none() {
        command.note("the prompt is not known, so there is no command");
        left_out(recipe, own, &mut command);
        return command;
    }
    prompts(recipe, own, &mut command);
    model(recipe, own, &mut command);
    size(recipe, &mut command);
    counts(recipe, &mut command);
    clip_skip(recipe, own, &mut command);
    sampling(recipe, own, &mut command);
    if let Some(rescale) = in_range(recipe, Field::GuidanceRescale, "--guidance-rescale", 1.0, &mut command) {
        // No rescaling is what everybody does who does not say so.
        if rescale != 0.0 || own {
            command.flag("--guidance-rescale", rescale.to_string());
        }
    }
    if let Some(text) = recipe.get(Field::Prediction) {
        match PredictionType::from_name(text) {
            Ok(prediction) => command.flag("--prediction", prediction.name()),
            Err(_) => command.note(format!("the prediction type {text:?} is not known")),
        }
    }
    if recipe.get(Field::ZeroSnr) == Some("True") {
        command.arguments.push("--zero-snr".into());
    }
    generator(recipe, own, &mut command);
    for (field, flag) in [(Field::Precision, "--dtype"), (Field::VaePrecision, "--vae-dtype")] {
        match recipe.get(field) {
            Some(dtype @ ("f32" | "f16" | "bf16")) => command.flag(flag, dtype),
            Some(other) => command.note(format!("{flag}: {other:?} is not known")),
            None => {}
        }
    }
    strength(recipe, &mut command);
    settings(recipe, own, &mut command);
    left_out(recipe, own, &mut command);
    command
}

fn prompts(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let prompt = recipe.get(Field::Prompt).unwrap_or_default();
    if prompt == "-" {
        command.note("the prompt is \"-\", which --prompt takes for standard input: write it there");
    }
    let mut text = prompt.to_owned();
    if !own && recipe.syntax() == Some(PromptSyntax::A1111) {
        // The files may not be here, and a command that is printed is one that is taken.
        for tag in NetworkTag::of_prompt(prompt, PromptSyntax::A1111).iter().map(NetworkTag::written).filter(|tag| prompt.contains(tag)) {
            text = text.replace(&tag, "");
            command.note(format!("{tag} is left out of the prompt: name the file with --lora"));
        }
    }
    command.flag("--prompt", &text);
    let negative = recipe.get(Field::NegativePrompt);
    if let Some(negative) = negative.filter(|text| own || !text.is_empty()) {
        command.flag("--negative-prompt", negative);
    }
    syntax(recipe, prompt, negative.unwrap_or_default(), command);
}

/// Texts up to this length are one chunk in every syntax.
const ONE_CHUNK: usize = 200;

/// Whose language the prompt is in, where it can matter.
fn syntax(recipe: &Recipe, prompt: &str, negative: &str, command: &mut PrintedCommand) {
    if recipe.get(Field::Setting("prompt-syntax")).is_some() {
        return;
    }
    let means_something = |text: &str| {
        let marks = text.contains(['(', ')', '[', ']', '<', '#', '\\']);
        marks || ["BREAK", "AND", "embedding:"].iter().any(|word| text.contains(word)) || text.len() > ONE_CHUNK
    };
    if !means_something(prompt) && !means_something(negative) {
        return;
    }
    match recipe.syntax() {
        Some(syntax) if syntax == PromptSyntax::default() => {}
        Some(syntax) => command.flag("--prompt-syntax", syntax.name()),
        None => {
            command.flag("--prompt-syntax", PromptSyntax::Plain.name());
            command.note(format!("the prompt may be written in the syntax of {}; it is generated as it stands", recipe.tool));
        }
    }
}

fn model(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let Some(model) = recipe.get(Field::Model) else { return };
    // Ours is what --model took, a hub id included.
    let name = if own { model } else { file_stem(model) };
    if model.starts_with("urn:") {
        command.note(format!("the model is {model}: give the file of it to --model"));
    } else if !name.trim().is_empty() && !is_nothing(name) {
        command.flag("--model", name);
    }
}

fn size(recipe: &Recipe, command: &mut PrintedCommand) {
    /// What a size is a multiple of, and the largest side.
    const MULTIPLE: u64 = 8;
    const LARGEST: u64 = 16_384;
    let side = |field| recipe.get(field).and_then(whole);
    let (Some(width), Some(height)) = (side(Field::Width), side(Field::Height)) else { return };
    if !(1..=LARGEST).contains(&width) || !(1..=LARGEST).contains(&height) {
        command.note(format!("{width}x{height} is no size that can be generated"));
        return;
    }
    let near = |side: u64| ((side + MULTIPLE / 2) / MULTIPLE * MULTIPLE).clamp(MULTIPLE, LARGEST);
    command.flag("--size", format!("{}x{}", near(width), near(height)));
    if (near(width), near(height)) != (width, height) {
        command.note(format!("{width}x{height} is not a multiple of {MULTIPLE}: the nearest size is taken"));
    }
}

/// Steps, seed and guidance.
fn counts(recipe: &Recipe, command: &mut PrintedCommand) {
    for (field, flag, least) in [(Field::Steps, "--steps", 1), (Field::Seed, "--seed", 0)] {
        let Some(text) = recipe.get(field) else { continue };
        match whole(text).filter(|number| *number >= least) {
            Some(number) => command.flag(flag, number.to_string()),
            None => command.note(format!("{flag}: {text:?} is no whole number from {least} on")),
        }
    }
    if let Some(guidance) = in_range(recipe, Field::GuidanceScale, "--guidance-scale", 1000.0, command) {
        command.flag("--guidance-scale", guidance.to_string());
    }
}

/// A number from 0 to `most`; what is none is said.
fn in_range(recipe: &Recipe, field: Field, flag: &str, most: f64, command: &mut PrintedCommand) -> Option<f64> {
    let text = recipe.get(field)?;
    let number = number(text).filter(|number| (0.0..=most).contains(number));
    if number.is_none() {
        command.note(format!("{flag}: {text:?} is no number from 0 to {most}"));
    }
    number
}

/// A1111 counts from the last layer, which is 1; here it is from the layer that the family takes, which for SDXL is the last but one.
fn clip_skip(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let Some(text) = recipe.get(Field::ClipSkip) else { return };
    let Some(layer) = whole(text.trim_start_matches('-')) else {
        if !matches!(text, "false" | "true") {
            command.note(format!("--clip-skip: {text:?} is no whole number from 0 on"));
        }
        return;
    };
    // Some write 0 or 1 for none.
    if layer == 0 || layer == 1 && !own {
        return;
    }
    let layer = match (recipe.is_xl() && !own, recipe.engine()) {
        (false, _) => layer,
        (true, Some(Engine::Comfy | Engine::Cpp)) => layer - 1,
        (true, _) => {
            let tool = &recipe.tool;
            command.note(format!("clip skip {layer} is left out: with SDXL {tool} takes the same layer whatever it says"));
            return;
        }
    };
    if layer > 1 || own {
        command.flag("--clip-skip", layer.to_string());
    }
}

/// The sampler and its noise levels. What cannot be planned together is said, and left out: first the eta, then the spacing, then the
/// schedule. All of them go with a named sampler only: whether they go with the model's own is not known.
fn sampling(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let name = recipe.get(Field::Sampler);
    // A schedule may stand behind the name: "euler_a karras". ComfyUI once had a prefix before it.
    let known = name.and_then(|name| Sampler::from_name(name.strip_prefix("sample_").unwrap_or(name)).ok());
    let (mut schedule, mut spacing) = (known.and_then(|(_, fused)| fused), None);
    let sampler = known.map(|(sampler, _)| match recipe.engine() {
        // ComfyUI's samplers of these names step through sigmas, by any schedule.
        Some(Engine::Comfy) if matches!(sampler.name(), "ddim" | "ddpm") => Like::ComfyUi.sampler(sampler).0,
        _ => sampler,
    });
    if let Some((named, sampler)) = known.map(|(named, _)| named).zip(sampler).filter(|(named, sampler)| named != sampler) {
        command.note(format!("{} of {} is {} here", named.name(), recipe.tool, sampler.name()));
    }
    let said = recipe.get(Field::TimestepSpacing).and_then(|name| TimestepSpacing::from_name(name).ok());
    if let Some(name) = recipe.get(Field::Schedule) {
        let folded: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        if let Some((_, known, spaced)) = SCHEDULES.iter().find(|(tool, ..)| *tool == folded) {
            (schedule, spacing) = (Some(*known), *spaced);
        } else if own && (folded == "uniform" || folded == "sgmuniform" && said == Some(TimestepSpacing::Trailing)) {
            // A1111's words for the trained timesteps, which its own schedules of these names do not keep to.
            schedule = Some(SigmaSchedule::Discrete);
        } else if folded == "automatic" {
            schedule = sampler.and_then(Sampler::automatic_schedule);
        } else if let Ok(known) = SigmaSchedule::from_name(name) {
            schedule = Some(known);
        } else {
            command.note(format!("the schedule {name:?} is not available"));
        }
    }
    let eta = in_range(recipe, Field::Eta, "--eta", 1.0, command).filter(|eta| *eta != 0.0 || own);
    let Some(sampler) = sampler else {
        if let Some(name) = name {
            command.note(format!("the sampler {name:?} is not available; the model's own is taken, which generates another image"));
        }
        let lost = [eta.map(|eta| format!("eta {eta}")), schedule.map(|schedule| format!("the schedule {}", schedule.name()))];
        lost.into_iter().flatten().for_each(|lost| command.note(format!("{lost} goes with the image's own sampler only")));
        return;
    };
    let whole_range = || (!own && starts_at_the_largest(recipe, sampler, schedule)).then_some(TimestepSpacing::Linspace);
    let mut levels = LevelRules { schedule, spacing: said.or(spacing).or_else(whole_range), eta };
    let steps = recipe.get(Field::Steps).and_then(whole).map_or(sampler.default_steps(), |steps| (steps as usize).clamp(1, MOST_STEPS));
    while let Err(why) = levels.plan(sampler, steps) {
        // Whatever is wrong with it, a name alone is always taken.
        let Some(lost) = levels.give_up() else { break };
        // Without the list of those that it goes with.
        let why = why.to_string();
        let why = why.split("; ").next().unwrap_or_default();
        command.note(format!("{lost} does not go with {} here ({why})", sampler.name()));
    }
    command.flag("--sampler", sampler.name());
    if let Some(schedule) = levels.schedule {
        command.flag("--schedule", schedule.name());
    }
    if let Some(spacing) = levels.spacing {
        command.flag("--timestep-spacing", spacing.name());
    }
    if let Some(eta) = levels.eta {
        command.flag("--eta", eta.to_string());
    }
}

/// Steps that are planned to find out whether settings go together; more make no difference.
const MOST_STEPS: usize = 200;

/// What goes with a sampler or not.
struct LevelRules {
    schedule: Option<SigmaSchedule>,
    spacing: Option<TimestepSpacing>,
    eta: Option<f64>,
}

impl LevelRules {
    /// Plans a run, as every request is before it is generated.
    fn plan(&self, sampler: Sampler, steps: usize) -> Result<()> {
        let mut config = SchedulerConfig::default().with_sampler(sampler.name())?;
        if let Some(schedule) = self.schedule {
            config = config.with_schedule(schedule);
        }
        if let Some(spacing) = self.spacing {
            config = config.with_spacing(spacing);
        }
        if let Some(eta) = self.eta {
            config = config.with_eta(eta);
        }
        config.check()?;
        plan(&config, steps).map(drop)
    }

    /// Leaves one out, the least important first.
    fn give_up(&mut self) -> Option<String> {
        let eta = self.eta.take().map(|eta| format!("eta {eta}"));
        let spacing = || self.spacing.take().map(|spacing| format!("the timestep spacing {}", spacing.name()));
        eta.or_else(spacing).or_else(|| self.schedule.take().map(|schedule| format!("the schedule {}", schedule.name())))
    }
}

/// k-diffusion and ComfyUI begin at the largest sigma that was trained, also where a schedule lays the others, and a model's own
/// configuration may begin below. Other schedules and the samplers that walk whole timesteps say themselves where they begin; DPM-Solver
/// lays a schedule over the whole range whatever the spacing.
///
/// # Source
/// ComfyUI@a125cd8:comfy/samplers.py `normal_scheduler`; k-diffusion: external.py `get_sigmas`; stable-diffusion.cpp: denoiser.hpp.
fn starts_at_the_largest(recipe: &Recipe, sampler: Sampler, schedule: Option<SigmaSchedule>) -> bool {
    use SigmaSchedule::{Discrete, Exponential, Karras, Normal, Polyexponential};
    let by_spacing = match schedule {
        None | Some(Discrete | Normal) => true,
        Some(Karras | Exponential | Polyexponential) => !sampler.class_name().starts_with("DPMSolver"),
        Some(_) => false,
    };
    let engine = matches!(recipe.engine(), Some(Engine::KDiffusion | Engine::Comfy | Engine::Cpp));
    engine && sampler.takes_sigma_schedule() && by_spacing
}

fn generator(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let usual = recipe.usual_rng();
    let rng = match recipe.get(Field::Rng).map(str::to_lowercase).as_deref() {
        Some("nv" | "gpu" | "cuda") => Some(Rng::TorchCuda),
        Some("cpu") => Some(Rng::TorchCpu),
        Some(other) => {
            command.note(format!("the random numbers of {other:?} are not available"));
            None
        }
        None => usual,
    };
    if let Some(rng) = rng.filter(|rng| own || *rng != Rng::default()) {
        command.flag("--rng", rng.name());
    }
}

/// A strength is that of the image to start from, or that of a second pass.
fn strength(recipe: &Recipe, command: &mut PrintedCommand) {
    let says = |name| recipe.get(Field::Setting(name)).is_some();
    let flag = match () {
        () if says("init-image") => "--strength",
        () if says("hires") && !says("hires-strength") => "--hires-strength",
        () => return,
    };
    if let Some(strength) = in_range(recipe, Field::Strength, flag, 1.0, command) {
        command.flag(flag, strength.to_string());
    }
}

/// Settings of files that another tool knows by names of its own; they may not be here, and a command that is printed is one that is taken.
const OTHERS_FILES: &[&str] = &["refiner", "refiner-switch", "upscale"];

/// The settings that need no translation.
fn settings(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    let has_hires = recipe.get(Field::Setting("hires")).is_some();
    for (name, value) in recipe.settings() {
        let Some(row) = crate::settings::find(name) else { continue };
        let is_network = || !matches!(HiresUpscaler::parse(value), Ok(plain) if plain.network().is_none());
        if !own && (OTHERS_FILES.contains(&name) || name == "hires-upscaler" && is_network()) {
            command.note(format!("--{name} {value:?} is left out: name the file of it"));
            continue;
        }
        if !has_hires && row.requires == Some("hires") {
            command.note(format!("--{name} {value:?} is left out: how much larger the image became is not said"));
            continue;
        }
        let flag = format!("--{name}");
        let values: Vec<&str> = if row.many { value.lines().collect() } else { vec![value] };
        for value in values {
            if !own && row.kind == ValueKind::File {
                // The file may not be here, and a command that is printed is one that is taken.
                command.note(format!("with {value}, which {flag} takes"));
                continue;
            }
            match row.check(&[row.kind.tidied(value).into()]) {
                Ok(()) if row.kind.is_switch() && row.kind.tidied(value) == "true" => command.arguments.push(flag.clone()),
                Ok(()) if row.kind.is_switch() => {}
                Ok(()) => command.flag(&flag, value),
                Err((_, what)) => command.note(format!("{flag} {value:?}: {what}")),
            }
        }
    }
}

fn left_out(recipe: &Recipe, own: bool, command: &mut PrintedCommand) {
    if let Some(config) = recipe.get(Field::SchedulerConfig) {
        command
            .note(format!("the image was generated with a --scheduler-config of its own: save this in a file and name it there: {config}"));
    }
    // The second pass of a "hires fix" has a strength too.
    let says = |name| recipe.get(Field::Setting(name)).is_some();
    let is_second_pass = says("hires") || says("init-image") || recipe.other.iter().any(|(name, _)| name.starts_with("Hires"));
    if let Some(strength) = recipe.get(Field::Strength).filter(|text| number(text) != Some(1.0) && !is_second_pass) {
        command.note(format!("the image was generated over another one (strength {strength}), which is not in the file"));
    }
    if !recipe.loras.is_empty() && !own {
        let weighed =
            |lora: &NamedLora| lora.weight.as_ref().map_or_else(|| lora.name.clone(), |weight| format!("{} ({weight})", lora.name));
        let loras: Vec<String> = recipe.loras.iter().map(weighed).collect();
        command.note(format!("with LoRA, which --lora takes: {}", loras.join(", ")));
    }
    // Defaults of more than one tool are written out as Python's word for nothing.
    let others = recipe.other.iter().filter(|(name, value)| !HARMLESS.contains(&name.as_str()) && !DEFAULTS.contains(&value.trim()));
    let others: Vec<String> = others.map(|(name, value)| format!("{name}: {}", shortened(value))).collect();
    if !others.is_empty() {
        command.note(format!("not carried over: {}", others.join("; ")));
    }
    if !own {
        command.note(format!("{} computes in its own way: the image will be alike, not the same", recipe.tool));
    }
}

/// A finite number.
fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// A whole number from 0 on; some tools write `20.0`.
fn whole(text: &str) -> Option<u64> {
    let text = text.trim();
    text.parse().ok().or_else(|| number(text).filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n)).map(|n| n as u64))
}

/// One line of a text, and not all of a long one.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Text, understand};
    use super::*;

    fn of(keyword: &str, text: &str) -> PrintedCommand {
        command(&understand(&[Text::new("PNG tEXt", keyword, text)]).expect("a recipe"))
    }

    #[test]
    fn commands_are_quoted_for_the_shell() {
        for (prompt, wanted) in [
            ("a red apple", "sd-gen --prompt 'a red apple'"),
            ("--model evil", "sd-gen '--prompt=--model evil'"),
            ("two\nlines", "sd-gen --prompt 'two\nlines'"),
            ("", "sd-gen --prompt ''"),
            ("$(ls)", "sd-gen --prompt '$(ls)'"),
        ] {
            let mut recipe = Recipe::of("sd-gen");
            recipe.set(Field::Prompt, prompt);
            assert_eq!(command(&recipe).shell(), wanted);
        }
        let mut recipe = Recipe::of("sd-gen");
        recipe.set(Field::Prompt, "it's \"$HOME\" `ls` \0 ü");
        let words = shlex::split(&command(&recipe).shell()).expect("a line that a shell reads");
        assert_eq!(words, ["sd-gen", "--prompt", "it's \"$HOME\" `ls`  ü"]);
    }

    #[test]
    fn each_tools_words_become_flags() {
        let end = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7.0, Seed: 5, Size: 512x768, Model: v1-5, RNG: NV";
        assert_eq!(
            of("parameters", &format!("a cat\nNegative prompt: dog\n{end}, Version: v1.10.1")).shell(),
            "sd-gen --prompt 'a cat' --negative-prompt dog --model v1-5 --size 512x768 --steps 20 --seed 5 --guidance-scale 7 \
             --sampler dpm++2m --schedule karras --rng torch-cuda"
        );
        let cpp = of(
            "parameters",
            "a cat\nSteps: 8, CFG scale: 7.000000, Seed: 42, Size: 512x512, Sampler: euler_a karras, RNG: cuda, Version: stable-diffusion.cpp",
        );
        assert_eq!(
            cpp.shell(),
            "sd-gen --prompt 'a cat' --size 512x512 --steps 8 --seed 42 --guidance-scale 7 --sampler euler-a --schedule karras \
             --timestep-spacing linspace --rng torch-cuda"
        );
    }

    #[test]
    fn what_cannot_be_carried_over_is_said() {
        let end = "Steps: x, Sampler: Nonesuch, Schedule type: Nowhere, CFG scale: NaN, Seed: -3, Size: 511x512, Denoising strength: 0.5, Face restoration: CodeFormer";
        let notes = of("parameters", &format!("(a cat:1.2) <lora:x:1>\n{end}, RNG: dice, Nothing: None")).notes.join("\n");
        assert!(!notes.contains("Nothing"), "{notes}");
        for said in
            ["Nonesuch", "Nowhere", "NaN", "\"x\"", "\"-3\"", "multiple of 8", "strength 0.5", "Face restoration: CodeFormer", "dice"]
        {
            assert!(notes.contains(said), "{said:?} is not in {notes}");
        }
    }
}
