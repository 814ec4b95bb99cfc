//! The tree of commands, in the order of `--help`.

use crate::cli::command::batch::{BatchArgs, MergeArgs};
use crate::cli::command::bench::BenchArgs;
use crate::cli::command::completions::CompletionsArgs;
use crate::cli::command::convert::ConvertArgs;
use crate::cli::command::devices::DevicesArgs;
use crate::cli::command::doctor::DoctorArgs;
use crate::cli::command::inspect::InspectArgs;
use crate::cli::command::models::ModelsArgs;
use crate::cli::command::preprocess::PreprocessArgs;
#[cfg(feature = "serve")]
use crate::cli::command::serve::ServeArgs;
use crate::cli::command::upscale::UpscaleArgs;
use crate::cli::settings::args::GenerateArgs;
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  sd-gen --prompt \"a red apple\"                          the built-in model, or the one in ./models
  sd-gen -p \"a lighthouse at dusk\" -m sd15.safetensors --sampler \"DPM++ 2M Karras\" --steps 25
  sd-gen -p \"a lighthouse\" -m ./models --images 4 --batch-size 2 -o \"out/{date}/{seed}.png\"
  sd-gen -p \"a lighthouse\" -m stabilityai/sd-turbo --dtype bf16   downloaded once, into the hub's usual cache
  echo \"a green apple\" | sd-gen -p - -o - > apple.png
  sd-gen batch prompts.txt --output-dir out              a prompt a line; run it again to go on
  sd-gen serve --model sd15.safetensors                  http://127.0.0.1:7860/, for other programs and the browser
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
    /// Keep the model loaded and serve other programs and a page in the browser: jobs, A1111's, OpenAI's and ComfyUI's API
    #[cfg(feature = "serve")]
    Serve(Box<ServeArgs>),
    /// Time every phase of generating, for every combination of models, devices, dtypes, sizes and batch sizes
    Bench(Box<BenchArgs>),
    /// Enlarge images by a network of ESRGAN's family
    Upscale(Box<UpscaleArgs>),
    /// Make the image that a ControlNet is shown: edges, lines, an inverse
    Preprocess(PreprocessArgs),
    /// Say what a file is: a model, a LoRA, an embedding, an image (and the command that generates it again)
    Inspect(InspectArgs),
    /// List what can be named after --model: family, size, dtype, prediction
    Models(ModelsArgs),
    /// List what can compute here, and why something cannot
    Devices(DevicesArgs),
    /// Say what is missing on this machine and what mends it, and generate a small image on every device in every dtype
    Doctor(DoctorArgs),
    /// Write a shell's completions to standard output
    Completions(CompletionsArgs),
    /// Write the manual to standard output, as man reads it
    #[command(after_help = "Examples:\n  sd-gen man > ~/.local/share/man/man1/sd-gen.1")]
    Man,
}
