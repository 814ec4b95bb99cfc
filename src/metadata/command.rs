//! From a recipe to the `sd-gen` command that generates it again, and what of the recipe it cannot say.

use super::recipe::{Field, Recipe};
use crate::noise::Rng;
use crate::sampling::{PredictionType, Sampler, SigmaSchedule, TimestepSpacing};

/// A command, and what it leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// What is typed after the program's name.
    pub arguments: Vec<String>,
    /// What could not be carried over, or must be known; one sentence each.
    pub notes: Vec<String>,
}

impl Command {
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

/// Whose numbers a tool draws its noise from where the image does not say.
const GENERATORS: &[(&str, Rng)] = &[
    ("AUTOMATIC1111", Rng::TorchCuda),
    ("Forge", Rng::TorchCuda),
    ("SD.Next", Rng::TorchCuda),
    ("stable-diffusion.cpp", Rng::TorchCuda),
    ("Easy Diffusion", Rng::TorchCuda),
    ("ComfyUI", Rng::TorchCpu),
    ("SwarmUI", Rng::TorchCpu),
    ("Fooocus", Rng::TorchCpu),
    ("InvokeAI", Rng::TorchCpu),
];

/// Schedules that other tools name by what is one schedule and one spacing here.
const SCHEDULES: &[(&str, SigmaSchedule, Option<TimestepSpacing>)] = &[
    ("sgmuniform", SigmaSchedule::Discrete, Some(TimestepSpacing::Trailing)),
    ("simple", SigmaSchedule::Discrete, None),
    ("ddim", SigmaSchedule::Discrete, Some(TimestepSpacing::Leading)),
    ("ddimuniform", SigmaSchedule::Discrete, Some(TimestepSpacing::Leading)),
    ("native", SigmaSchedule::Discrete, None),
];

/// What other tools write beside their settings and what changes no image.
const HARMLESS: &[&str] =
    &["User", "App", "Operations", "fooocus_scheme", "metadata_scheme", "created_by", "generation_mode", "date", "generation_time"];

/// The arguments that generate `recipe` again.
pub fn command(recipe: &Recipe) -> Command {
    let own = recipe.tool == "sd-gen";
    let mut command = Command::default();
    prompts(recipe, own, &mut command);
    if let Some(model) = recipe.get(Field::Model) {
        // Ours is what --model took, a hub id included.
        let name = if own { model } else { model_name(model) };
        if !name.is_empty() {
            command.flag("--model", name);
        }
    }
    size(recipe, &mut command);
    sampling(recipe, own, &mut command);
    for (field, flag) in [(Field::GuidanceRescale, "--guidance-rescale"), (Field::Eta, "--eta")] {
        let Some(text) = recipe.get(field) else { continue };
        match number(text) {
            // No rescaling is what everybody does who does not say so.
            Some(number) if number == 0.0 && !own => {}
            Some(number) => command.flag(flag, number.to_string()),
            None => command.note(format!("{flag}: {text:?} is no number")),
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
    settings(recipe, &mut command);
    left_out(recipe, own, &mut command);
    command
}

fn prompts(recipe: &Recipe, own: bool, command: &mut Command) {
    let prompt = recipe.get(Field::Prompt).unwrap_or_default();
    if prompt == "-" {
        command.note("the prompt is \"-\", which --prompt takes for standard input: write it there");
    }
    command.flag("--prompt", prompt);
    let negative = recipe.get(Field::NegativePrompt);
    if let Some(negative) = negative.filter(|text| own || !text.is_empty()) {
        command.flag("--negative-prompt", negative);
    }
    let has_syntax =
        [Some(prompt), negative].into_iter().flatten().any(|text| text.contains(['(', '[', '<', '{']) || text.contains("BREAK"));
    if has_syntax && !own {
        command
            .note(format!("the prompt may be written in the syntax of {} (emphasis, add-ons); it is generated as it stands", recipe.tool));
    }
}

/// A model as `--model` finds it: without folders and ending.
fn model_name(model: &str) -> &str {
    let name = model.rsplit(['/', '\\']).next().unwrap_or(model);
    [".safetensors", ".ckpt", ".pt", ".gguf"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

fn size(recipe: &Recipe, command: &mut Command) {
    let side = |field| recipe.get(field).and_then(whole);
    let (Some(width), Some(height)) = (side(Field::Width), side(Field::Height)) else { return };
    command.flag("--size", format!("{width}x{height}"));
    if width % 8 != 0 || height % 8 != 0 {
        command.note(format!("{width}x{height} is not a multiple of 8: choose a size near it"));
    }
}

fn sampling(recipe: &Recipe, own: bool, command: &mut Command) {
    for (field, flag) in [(Field::Steps, "--steps"), (Field::Seed, "--seed"), (Field::ClipSkip, "--clip-skip")] {
        let Some(text) = recipe.get(field) else { continue };
        // A1111 counts from 1, Invoke and others write 0 or less for none.
        match whole(text) {
            Some(0) if field == Field::ClipSkip => {}
            Some(1) if field == Field::ClipSkip && !own => {}
            Some(number) => command.flag(flag, number.to_string()),
            None => command.note(format!("{flag}: {text:?} is no whole number from 0 on")),
        }
    }
    if let Some(text) = recipe.get(Field::GuidanceScale) {
        match number(text) {
            Some(number) => command.flag("--guidance-scale", number.to_string()),
            None => command.note(format!("--guidance-scale: {text:?} is no number")),
        }
    }
    let mut sampler = None;
    let mut schedule = None;
    if let Some(name) = recipe.get(Field::Sampler) {
        // A schedule may stand behind the name: "euler_a karras".
        match Sampler::from_name(name) {
            Ok((known, fused)) => {
                command.flag("--sampler", known.name());
                (sampler, schedule) = (Some(known), fused);
            }
            Err(_) => {
                command.note(format!("the sampler {name:?} is not available; the model's own is taken, which generates another image"))
            }
        }
    }
    let mut spacing = None;
    if let Some(name) = recipe.get(Field::Schedule) {
        let folded: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        if let Some((_, known, spaced)) = SCHEDULES.iter().find(|(tool, ..)| *tool == folded) {
            (schedule, spacing) = (Some(*known), *spaced);
        } else if folded == "automatic" {
            schedule = sampler.and_then(Sampler::automatic_schedule);
        } else if let Ok(known) = SigmaSchedule::from_name(&folded) {
            schedule = Some(known);
        } else {
            command.note(format!("the schedule {name:?} is not available"));
        }
    }
    match (schedule, sampler) {
        (Some(schedule), Some(sampler)) if schedule != SigmaSchedule::Discrete && !sampler.takes_sigma_schedule() => {
            command.note(format!("the schedule {} does not go with {}", schedule.name(), sampler.name()));
        }
        (Some(schedule), _) => command.flag("--schedule", schedule.name()),
        (None, _) => {}
    }
    let said = recipe.get(Field::TimestepSpacing).and_then(|name| TimestepSpacing::from_name(name).ok());
    if let Some(spacing) = said.or(spacing) {
        command.flag("--timestep-spacing", spacing.name());
    }
}

fn generator(recipe: &Recipe, own: bool, command: &mut Command) {
    let usual = GENERATORS.iter().find(|(tool, _)| *tool == recipe.tool).map(|(_, rng)| *rng);
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

/// The settings that need no translation.
fn settings(recipe: &Recipe, command: &mut Command) {
    for (name, value) in recipe.settings() {
        let Some(row) = crate::settings::find(name) else { continue };
        let flag = format!("--{name}");
        let values: Vec<&str> = if row.many { value.lines().collect() } else { vec![value] };
        for value in values {
            match row.check(&[row.kind.tidied(value).into()]) {
                Ok(()) if row.kind.is_switch() && row.kind.tidied(value) == "true" => command.arguments.push(flag.clone()),
                Ok(()) if row.kind.is_switch() => {}
                Ok(()) => command.flag(&flag, value),
                Err((_, what)) => command.note(format!("{flag} {value:?}: {what}")),
            }
        }
    }
}

fn left_out(recipe: &Recipe, own: bool, command: &mut Command) {
    if let Some(config) = recipe.get(Field::SchedulerConfig) {
        command
            .note(format!("the image was generated with a --scheduler-config of its own: save this in a file and name it there: {config}"));
    }
    // The second pass of a "hires fix" has a strength too, and is named among the others.
    let is_second_pass = recipe.other.iter().any(|(name, _)| name.starts_with("Hires"));
    if let Some(strength) = recipe.get(Field::Strength).filter(|text| number(text) != Some(1.0) && !is_second_pass) {
        command.note(format!("the image was generated over another one (strength {strength}), which is not in the file"));
    }
    // More than one tool writes Python's word for nothing.
    let others = recipe.other.iter().filter(|(name, value)| !HARMLESS.contains(&name.as_str()) && !value.is_empty() && value != "None");
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

    fn of(keyword: &str, text: &str) -> Command {
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
            "sd-gen --prompt 'a cat' --size 512x512 --steps 8 --seed 42 --guidance-scale 7 --sampler euler-a --schedule karras --rng torch-cuda"
        );
    }

    #[test]
    fn what_cannot_be_carried_over_is_said() {
        let end = "Steps: x, Sampler: Restart, Schedule type: Beta, CFG scale: NaN, Seed: -3, Size: 511x512, Denoising strength: 0.5, Tiling: True";
        let notes = of("parameters", &format!("(a cat:1.2) <lora:x:1>\n{end}, RNG: dice, Nothing: None")).notes.join("\n");
        assert!(!notes.contains("Nothing"), "{notes}");
        for said in ["Restart", "Beta", "NaN", "\"x\"", "\"-3\"", "multiple of 8", "strength 0.5", "Tiling: True", "dice", "syntax"] {
            assert!(notes.contains(said), "{said:?} is not in {notes}");
        }
    }
}
