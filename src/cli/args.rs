//! What was typed: flags as clap reads them, in the order of `--help`.

use super::batch::{BatchArgs, MergeArgs};
use super::bench::BenchArgs;
use super::completions::{CompletionsArgs, NamedValues};
use super::devices::DevicesArgs;
use super::graphics::Graphics;
use super::inspect::InspectArgs;
use super::models::ModelsArgs;
use super::upscale::UpscaleArgs;
use crate::device::{DTypeChoice, DeviceChoice};
use crate::noise::Rng;
use crate::pipeline::VaeTiling;
use crate::request::RequestDraft;
use crate::sampling::{PredictionType, Sampler, SchedulerConfig, SigmaSchedule, TimestepSpacing};
use crate::weights::TinyAutoencoder;
use crate::{Error, Result};
use candle_core::DType;
use clap::builder::StringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
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
  sd-gen convert sd15.safetensors sd15                      and back as a diffusers folder")]
pub(super) struct ConvertArgs {
    /// The model: a folder, a .safetensors file, a name in the models folder, or a hub id
    pub(super) from: String,
    /// What to write: a name that ends in .safetensors is one file, any other a folder
    pub(super) to: PathBuf,
    /// Convert the weights too
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    pub(super) dtype: Option<DType>,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PromptSyntax {
    /// the text as it stands, as diffusers takes it
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressStyle {
    /// a bar on a terminal, else nothing
    Auto,
    /// a bar
    Bar,
    /// one event a line on standard error
    Json,
    /// nothing
    None,
}

#[derive(Debug, Clone, Args)]
pub(super) struct GenerateArgs {
    /// What to generate; repeat for more images; "-" reads standard input
    #[arg(short, long = "prompt", value_name = "TEXT", required = true, help_heading = "What to generate", allow_hyphen_values = true)]
    pub(super) prompts: Vec<String>,
    /// What not to generate
    #[arg(short, long, value_name = "TEXT", help_heading = "What to generate", allow_hyphen_values = true)]
    pub(super) negative_prompt: Option<String>,
    /// How the prompt is read
    #[arg(long, value_enum, default_value = "plain", value_name = "SYNTAX", help_heading = "What to generate")]
    pub(super) prompt_syntax: PromptSyntax,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'W', long, value_name = "PIXELS", help_heading = "What to generate", conflicts_with = "size")]
    pub(super) width: Option<usize>,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(short = 'H', long, value_name = "PIXELS", help_heading = "What to generate", conflicts_with = "size")]
    pub(super) height: Option<usize>,
    /// Width and height at once
    #[arg(long, value_name = "WxH", help_heading = "What to generate", value_parser = parse_size)]
    pub(super) size: Option<(usize, usize)>,
    /// Image i has seed + i; negative means random [default: random, and always reported]
    #[arg(short, long, value_name = "N", help_heading = "What to generate", allow_hyphen_values = true, value_parser = parse_seed)]
    pub(super) seed: Option<Seed>,
    /// Images for each prompt
    #[arg(long, aliases = ["count", "num-images-per-prompt", "batch-count", "n-iter"], value_name = "N", default_value = "1", help_heading = "What to generate")]
    pub(super) images: usize,
    /// The most images generated at once, or auto, by their size and the memory; does not change them
    #[arg(short, long, value_name = "N", default_value = "auto", value_parser = parse_batch_size, help_heading = "What to generate")]
    pub(super) batch_size: BatchSize,

    /// A path (folder or .safetensors file), a folder of models, a name in the models folder, or a hub id: org/name[@revision][:file]
    #[arg(short, long, aliases = ["sd-model", "ckpt-name", "checkpoint"], value_name = "WHAT", help_heading = "The model")]
    pub(super) model: Option<String>,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR", help_heading = "The model")]
    pub(super) models_dir: Option<PathBuf>,
    /// What the UNet predicts: epsilon or v [default: as detected]
    #[arg(long, value_name = "WHAT", hide_possible_values = true, help_heading = "The model",
          value_parser = NamedValues { names: vec!["epsilon", "v"], parser: PredictionType::from_name })]
    pub(super) prediction: Option<PredictionType>,
    /// Rescale the noise schedule to zero terminal SNR
    #[arg(long, help_heading = "The model")]
    pub(super) zero_snr: bool,
    /// Take the prompt from an earlier layer of the text encoder: 1 is the one that the model uses, 2 the one before
    #[arg(long, value_name = "N", help_heading = "The model")]
    pub(super) clip_skip: Option<usize>,

    /// Denoising steps [default: by model and sampler]
    #[arg(long, visible_alias = "num-inference-steps", value_name = "N", help_heading = "Sampling")]
    pub(super) steps: Option<usize>,
    /// How strongly the prompt is followed; 1 and less turns guidance off [default: by model]
    #[arg(short, long, visible_alias = "cfg-scale", alias = "cfg", value_name = "X", help_heading = "Sampling")]
    pub(super) guidance_scale: Option<f64>,
    /// Takes back contrast that guidance adds, 0 to 1 [default: 0]
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub(super) guidance_rescale: Option<f64>,
    /// However another tool spells it: "DPM++ 2M Karras", euler_a, DDIMScheduler [default: the model's own]
    #[arg(long, visible_aliases = ["scheduler", "sampling-method"], alias = "sampler-name", value_name = "NAME", help_heading = "Sampling", hide_possible_values = true,
          value_parser = NamedValues { names: Sampler::all().map(Sampler::name).collect(), parser: StringValueParser::new() })]
    pub(super) sampler: Option<String>,
    /// Which noise levels: discrete (also normal, uniform), karras, exponential or lu [default: the model's own]
    #[arg(long, alias = "schedule-type", value_name = "NAME", hide_possible_values = true, help_heading = "Sampling",
          value_parser = NamedValues { names: SigmaSchedule::NAMES.iter().map(|(name, _)| *name).collect(), parser: SigmaSchedule::from_name })]
    pub(super) schedule: Option<SigmaSchedule>,
    /// leading, linspace or trailing, as diffusers means it [default: the model's own]
    #[arg(long, value_name = "SPACING", hide_possible_values = true, help_heading = "Sampling",
          value_parser = NamedValues { names: TimestepSpacing::NAMES.iter().map(|(name, _)| *name).collect(), parser: TimestepSpacing::from_name })]
    pub(super) timestep_spacing: Option<TimestepSpacing>,
    /// A diffusers scheduler_config.json in place of the model's; the flags here still win
    #[arg(long, value_name = "FILE", help_heading = "Sampling")]
    pub(super) scheduler_config: Option<PathBuf>,
    /// Noise of ancestral samplers (1) and DDIM (0)
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub(super) eta: Option<f64>,
    /// Whose random numbers: torch-cpu or torch-cuda
    #[arg(long, value_name = "RNG", default_value = "torch-cpu", hide_possible_values = true, help_heading = "Sampling",
          value_parser = NamedValues { names: vec!["torch-cpu", "torch-cuda"], parser: Rng::from_name })]
    pub(super) rng: Rng,

    /// auto, cpu, cuda, cuda:N or metal; several, as in cuda:0,cuda:1, share the images out
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', default_value = "auto", help_heading = "The machine", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "cpu", "cuda", "metal"], parser: str::parse::<DeviceChoice> })]
    pub(super) device: Vec<DeviceChoice>,
    /// What UNet and text encoders compute in: auto, f32, f16 or bf16
    #[arg(long, visible_alias = "precision", value_name = "DTYPE", default_value = "auto", help_heading = "The machine", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "f32", "f16", "bf16"], parser: str::parse::<DTypeChoice> })]
    pub(super) dtype: DTypeChoice,
    /// What the VAE computes in [default: as --dtype, f32 where f16 would overflow]
    #[arg(long, value_name = "DTYPE", default_value = "auto", help_heading = "The machine", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "f32", "f16", "bf16"], parser: str::parse::<DTypeChoice> })]
    pub(super) vae_dtype: DTypeChoice,
    /// Decode images in tiles: auto (where the memory is too small for the whole), on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "The machine")]
    pub(super) vae_tiling: VaeTiling,
    /// Keep only the network at work in the device's memory; slower
    #[arg(long, help_heading = "The machine")]
    pub(super) low_memory: bool,
    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "N", help_heading = "The machine")]
    pub(super) threads: Option<usize>,

    /// A file, or a template such as "{date}/{seed}-{prompt:.40}.png"; "-" is standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(super) output: Option<String>,
    /// Where images go [default: here]
    #[arg(long, alias = "outpath-samples", value_name = "DIR", help_heading = "Output")]
    pub(super) output_dir: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, help_heading = "Output")]
    pub(super) overwrite: bool,
    /// Final latents as safetensors, f32, unscaled
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) save_latents: Option<PathBuf>,
    /// How progress is shown on standard error
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE", help_heading = "Output")]
    pub(super) progress: ProgressStyle,
    /// Draw the image in the terminal as it forms, and when it is finished; by the terminal's protocol, or as --preview=blocks
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, help_heading = "Output")]
    pub(super) preview: Option<Option<Graphics>>,
    /// Preview with a tiny autoencoder: taesd_decoder.safetensors, taesdxl_decoder.safetensors, or a folder of one
    #[arg(long, visible_alias = "tae", value_name = "FILE", requires = "preview", help_heading = "Output")]
    pub(super) taesd: Option<PathBuf>,
    /// Only errors, and the images' paths
    #[arg(short, long, help_heading = "Output", conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// What was concluded and chosen, and why; twice: what is read and how long it takes; thrice: every step; see SD_GEN_LOG
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Output")]
    pub(super) verbose: u8,
}

/// A seed as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seed {
    Random,
    Is(u64),
}

/// What is loaded, and where: lines with equal ones share a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelFlags {
    pub(super) model: Option<String>,
    pub(super) models_dir: Option<PathBuf>,
    pub(super) device: Vec<DeviceChoice>,
    pub(super) dtype: DTypeChoice,
    pub(super) vae_dtype: DTypeChoice,
    pub(super) vae_tiling: VaeTiling,
    pub(super) low_memory: bool,
}

/// The most images at once; `None` is auto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchSize(pub(super) Option<usize>);

fn parse_batch_size(text: &str) -> Result<BatchSize, String> {
    match text {
        "auto" => Ok(BatchSize(None)),
        _ => text.parse().map(|most| BatchSize(Some(most))).map_err(|_| "give a whole number, or auto".into()),
    }
}

fn parse_seed(text: &str) -> Result<Seed, String> {
    match text.parse::<i128>() {
        Ok(n) if n < 0 => Ok(Seed::Random),
        Ok(n) => u64::try_from(n).map(Seed::Is).map_err(|_| format!("at most {}", u64::MAX)),
        Err(_) => Err("give a whole number; a negative one means random".into()),
    }
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text.parse::<DTypeChoice>() {
        Ok(DTypeChoice::Is(dtype)) => Ok(dtype),
        _ => Err("give f32, f16 or bf16".into()),
    }
}

pub(super) fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once(['x', 'X', '×']);
    let parsed = parts.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    parsed.ok_or_else(|| "give width and height like 768x512".into())
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

impl GenerateArgs {
    /// The prompts, standard input read.
    pub(super) fn read_prompts(&self) -> Result<Vec<String>> {
        if self.prompts.iter().filter(|prompt| *prompt == "-").count() > 1 {
            return Err(Error::Input("--prompt -: standard input can be read only once".into()));
        }
        self.prompts.iter().map(|prompt| if prompt == "-" { read_standard_input() } else { Ok(prompt.clone()) }).collect()
    }

    /// The flags of [`Opened::new`](super::model::Opened::new) that choose and load a model.
    pub(super) fn model_flags(&self) -> ModelFlags {
        let &Self { dtype, vae_dtype, vae_tiling, low_memory, .. } = self;
        let (model, models_dir) = (self.model.clone(), self.models_dir.clone());
        ModelFlags { model, models_dir, device: self.device.clone(), dtype, vae_dtype, vae_tiling, low_memory }
    }

    /// What `--taesd` holds.
    pub(super) fn read_tiny_autoencoder(&self) -> Result<Option<TinyAutoencoder>> {
        self.taesd.as_deref().map(TinyAutoencoder::open).transpose()
    }

    /// What `--scheduler-config` holds.
    pub(super) fn read_scheduler_config(&self) -> Result<Option<SchedulerConfig>> {
        let Some(path) = &self.scheduler_config else { return Ok(None) };
        let wrong = |what: String| Error::Input(format!("--scheduler-config {}: {what}", path.display()));
        // A pipe or a device would be waited for, or never end.
        match std::fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => return Err(wrong("is not a file".into())),
            Ok(metadata) if metadata.len() > LONGEST_PROMPT => return Err(wrong("is too large to be a scheduler_config.json".into())),
            _ => {}
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        // The file was named on the command line: bad usage, not a bad model.
        SchedulerConfig::from_json(&text, &path.display().to_string())
            .map(Some)
            .map_err(|e| Error::Input(format!("--scheduler-config {e}")))
    }

    /// The draft for one prompt.
    pub(super) fn draft(&self, prompt: String, scheduler_config: Option<SchedulerConfig>, seed: u64) -> RequestDraft {
        let (width, height) = self.size.map_or((self.width, self.height), |(w, h)| (Some(w), Some(h)));
        RequestDraft {
            prompt,
            negative_prompt: self.negative_prompt.clone(),
            width,
            height,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            sampler: self.sampler.clone(),
            schedule: self.schedule,
            timestep_spacing: self.timestep_spacing,
            scheduler_config,
            prediction: self.prediction,
            zero_snr: self.zero_snr,
            eta: self.eta,
            seed,
            rng: self.rng,
            images: Some(self.images),
            batch_size: self.batch_size.0,
            clip_skip: self.clip_skip,
        }
    }
}
