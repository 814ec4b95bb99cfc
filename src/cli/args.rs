//! What was typed: flags as clap reads them, in the order of `--help`.

use super::batch::{BatchArgs, MergeArgs};
use super::bench::BenchArgs;
use super::completions::CompletionsArgs;
use super::devices::DevicesArgs;
use super::inspect::InspectArgs;
use super::models::ModelsArgs;
use super::upscale::UpscaleArgs;
use crate::device::DTypeChoice;
use crate::settings::{Draft, Heading, Setting, Value, ValueKind, WeightedFile, table};
use crate::{Error, Result};
use candle_core::DType;
use clap::builder::{ArgPredicate, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  sd-gen --prompt \"a red apple\"                          the built-in model, or the one in ./models
  sd-gen -p \"a lighthouse at dusk\" -m sd15.safetensors --sampler \"DPM++ 2M Karras\" --steps 25
  sd-gen -p \"a lighthouse\" -m ./models --images 4 --batch-size 2 -o \"out/{date}/{seed}.png\"
  sd-gen -p \"a lighthouse\" -m stabilityai/sd-turbo --dtype bf16   downloaded once, into the hub's usual cache
  echo \"a green apple\" | sd-gen -p - -o - > apple.png
  sd-gen batch prompts.txt --output-dir out              a prompt a line; run it again to go on
  sd-gen convert models/sd15 sd15.safetensors --dtype f16
  sd-gen upscale out/*.png --upscaler 4x-UltraSharp.safetensors
  sd-gen bench --random sd15 --dtypes f32,bf16
  sd-gen inspect apple.png                               how it was made, and the command that generates it again

Exit codes: 0 all written, 1 some image failed, 2 bad usage or input, 3 the model cannot be loaded, 130 cancelled.";

/// Stable Diffusion: generates what a prompt says and writes PNGs.
#[derive(Debug, Parser)]
#[command(name = "sd-gen", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, allow_negative_numbers = true, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) generate: GenerateArgs,
    /// Fetch nothing: models named by a hub id are taken from the cache; HF_HUB_OFFLINE=1 says the same
    #[arg(long, global = true, help_heading = "The model")]
    pub(super) offline: bool,
    /// Read no configuration file, neither ./sd-gen.toml nor the platform's
    #[arg(long, global = true, help_heading = "The machine")]
    pub(super) no_config: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Generate the lines of a file, thousands of them, and go on where an earlier run stopped
    Batch(Box<BatchArgs>),
    /// Join the manifests of shards
    Merge(MergeArgs),
    /// Write a model in the other layout: a diffusers folder as one file in the original layout, or back
    Convert(ConvertArgs),
    /// Time every phase of generating, for every combination of models, devices, dtypes, sizes and batch sizes
    Bench(Box<BenchArgs>),
    /// Enlarge images by a network of ESRGAN's family
    Upscale(Box<UpscaleArgs>),
    /// Say what a file is: a model, a LoRA, an embedding, an image (and the command that generates it again)
    Inspect(InspectArgs),
    /// List what can be named after --model: family, size, dtype, prediction
    Models(ModelsArgs),
    /// List what can compute here, and why something cannot
    Devices(DevicesArgs),
    /// Write a shell's completions to standard output
    Completions(CompletionsArgs),
    /// Write the manual to standard output, as man reads it
    #[command(after_help = "Examples:\n  sd-gen man > ~/.local/share/man/man1/sd-gen.1")]
    Man,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen convert models/sd15 sd15.safetensors --dtype f16   a folder as one file, half as large
  sd-gen convert sd15.safetensors sd15                      and back as a diffusers folder
  sd-gen convert sd15 detailed.safetensors --lora detail:0.8   with a LoRA in it")]
pub(super) struct ConvertArgs {
    /// The model: a folder, a .safetensors file, a name in the models folder, or a hub id
    pub(super) from: String,
    /// What to write: a name that ends in .safetensors is one file, any other a folder
    pub(super) to: PathBuf,
    /// Merge a LoRA into the weights: a file or a name in the LoRA folder; repeat for more
    #[arg(long, value_name = "FILE[:WEIGHT[:TEXT-WEIGHT]]", value_parser = WeightedFile::parse)]
    pub(super) lora: Vec<WeightedFile>,
    /// Where LoRAs are looked for by name [default: loras and Lora in the models folder, or beside it]
    #[arg(long, value_name = "DIR", alias = "lora-model-dir")]
    pub(super) lora_dir: Option<PathBuf>,
    /// Of a LoRA that does not fit the model as a whole, take what fits
    #[arg(long)]
    pub(super) lora_partial: bool,
    /// Convert the weights too
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    pub(super) dtype: Option<DType>,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
}

/// The settings, as flags.
#[derive(Debug, Clone)]
pub(super) struct GenerateArgs(pub(super) Draft);

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text.parse::<DTypeChoice>() {
        Ok(DTypeChoice::Is(dtype)) => Ok(dtype),
        _ => Err("give f32, f16 or bf16".into()),
    }
}

/// A prompt of a megabyte is a file given by mistake.
const LONGEST_PROMPT: u64 = 1 << 20;

fn read_standard_input() -> Result<String> {
    let wrong = |what: &str| Error::Input(format!("--prompt -: standard input {what}"));
    let mut bytes = Vec::new();
    std::io::stdin().take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > LONGEST_PROMPT {
        return Err(wrong("is longer than a megabyte; a prompt is a few sentences"));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text"))?;
    if text.contains('\0') {
        return Err(wrong("holds a NUL character; it is not text"));
    }
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The prompts, standard input read.
///
/// # Errors
/// It cannot be read, is no text, or is asked for twice.
pub(super) fn read_prompts(prompts: &[String]) -> Result<Vec<String>> {
    if prompts.iter().filter(|prompt| *prompt == "-").count() > 1 {
        return Err(Error::Input("--prompt -: standard input can be read only once".into()));
    }
    prompts.iter().map(|prompt| if prompt == "-" { read_standard_input() } else { Ok(prompt.clone()) }).collect()
}

/// A value that its setting has read, as it was typed.
#[derive(Debug, Clone)]
pub(super) struct Typed(#[expect(dead_code, reason = "clap keeps the raw value beside it")] OsString);

/// Reads a setting's value by its row.
#[derive(Debug, Clone, Copy)]
struct SettingParser(&'static Setting);

impl TypedValueParser for SettingParser {
    type Value = Typed;

    fn parse_ref(&self, command: &clap::Command, argument: Option<&Arg>, value: &OsStr) -> Result<Typed, clap::Error> {
        match self.0.check(&[value.to_owned()]) {
            Ok(()) => Ok(Typed(value.to_owned())),
            Err((_, what)) => {
                let refuse = move |_: &str| Err::<Typed, String>(what.clone());
                let shown = value.to_string_lossy();
                refuse.parse_ref(command, argument, OsStr::new(&*shown))
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = (self.0.words)();
        (!words.is_empty()).then(|| Box::new(words.into_iter().map(PossibleValue::new)) as Box<_>)
    }
}

/// The flag of a setting.
fn arg(row: &'static Setting) -> Arg {
    let default = if row.default.is_empty() { String::new() } else { format!(" [default: {}]", row.default) };
    let arg = Arg::new(row.name)
        .long(row.name)
        .short(row.short)
        .visible_aliases(row.aliases)
        .aliases(row.hidden_aliases)
        .help(format!("{}{default}", row.help))
        .help_heading(row.heading.title())
        .conflicts_with_all(row.conflicts)
        .requires_ifs(row.requires.map(|other| (ArgPredicate::IsPresent, other)));
    match row.kind {
        ValueKind::Switch => return arg.action(ArgAction::SetTrue),
        ValueKind::Count => return arg.action(ArgAction::Count),
        _ => {}
    }
    let arg = arg.value_name(row.value).value_parser(SettingParser(row)).hide_possible_values(true);
    let arg = arg.action(if row.many { ArgAction::Append } else { ArgAction::Set }).value_delimiter(row.delimiter);
    // A text may begin with a dash, and so may a number.
    let arg = arg.allow_hyphen_values(row.kind == ValueKind::Text && row.heading == Heading::What || row.name == "seed");
    if row.bare { arg.num_args(0..=1).require_equals(true) } else { arg }
}

impl Args for GenerateArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(table().iter().map(arg)).mut_arg("prompt", |arg| arg.required(true))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GenerateArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut draft = Draft::default();
        for row in table() {
            if let Some(values) = typed_values(row, matches) {
                (row.access.read)(&mut draft, &values)
                    .map_err(|(_, what)| clap::Error::raw(ErrorKind::ValueValidation, format!("--{}: {what}\n", row.name)))?;
            }
        }
        Ok(Self(draft))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What was typed after a setting's flag; `None` where the flag was not typed.
fn typed_values(row: &Setting, matches: &ArgMatches) -> Option<Vec<OsString>> {
    if matches.value_source(row.name) != Some(ValueSource::CommandLine) {
        return None;
    }
    Some(match row.kind {
        ValueKind::Switch => vec!["true".into()],
        ValueKind::Count => vec!["true".into(); usize::from(matches.get_count(row.name))],
        // A flag without its value is on.
        _ => match matches.get_raw(row.name) {
            Some(values) if values.len() > 0 => values.map(OsString::from).collect(),
            _ => vec!["true".into()],
        },
    })
}
