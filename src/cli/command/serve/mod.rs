//! `sd-gen serve`: the model stays loaded, and other programs and a page in the browser use it.

mod studio;
#[cfg(test)]
mod tests;

use crate::cli::process::{cancelled, set_memory, set_threads};
use crate::cli::settings::flags::{Flags, Wrong};
use crate::cli::terminal::{answer, listen_for_cancellation, screen};
use crate::server::{RequestLimits, ServerOptions, serve};
use crate::{Error, Result};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use studio::ModelStudio;

const EXAMPLES: &str = "\
The flags of an image are what a request leaves open. Jobs are on the disk before they are accepted: a server that was stopped or killed
goes on with its queue when it is started again. Ctrl-C and SIGTERM stop it; the job at work is put back.

Examples:
  sd-gen serve                                             http://127.0.0.1:7860/ is a page
  sd-gen serve --model sd15.safetensors --steps 25
  sd-gen serve --listen 0.0.0.0:7860 --api-key SECRET      for other machines
  curl -H 'Content-Type: application/json' -d '{\"prompt\": \"a red apple\"}' http://127.0.0.1:7860/v1/jobs";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct ServeArgs {
    /// Where to listen: ADDRESS:PORT, or a port of this machine alone
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7860", help_heading = "The server")]
    listen: String,
    /// What clients must say, as Authorization: Bearer KEY; SD_GEN_API_KEY says the same, and no list of processes shows it
    #[arg(long, value_name = "KEY", help_heading = "The server")]
    api_key: Option<String>,
    /// Let pages of this origin use the server, such as `https://example.org`, or * for all; repeat for more
    #[arg(long, value_name = "ORIGIN", help_heading = "The server")]
    cors: Vec<String>,
    /// A folder from which requests may name files; repeat for more
    #[arg(long, value_name = "DIR", help_heading = "The server")]
    allow_dir: Vec<PathBuf>,
    /// Models that stay loaded beside each other, where the memory allows it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "The server")]
    keep_models: u16,
    /// Ended jobs that are remembered; images stay in the output folder in any case
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "The server")]
    keep_jobs: usize,
    /// The most MiB of a request
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "The server")]
    max_body: u32,
    /// The most pixels of an image, as it is in the end
    #[arg(long, value_name = "N", default_value_t = 2048 * 2048, help_heading = "The server")]
    max_pixels: usize,
    /// The most steps of an image
    #[arg(long, value_name = "N", default_value_t = 150, help_heading = "The server")]
    max_steps: usize,
    /// The most images of a job
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "The server")]
    max_images: usize,
    /// The most images that wait; further jobs are told to come again later
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "The server")]
    max_queue: usize,
    #[command(flatten)]
    flags: Flags,
}

impl ServeArgs {
    /// How often `--verbose` was said, and whether `--quiet` was.
    pub(in crate::cli) fn loudness(&self) -> (u8, bool) {
        self.flags.draft().map_or((0, false), |base| crate::cli::settings::args::loudness(&base))
    }
}

/// Serves until it is told to stop.
pub(in crate::cli) fn run(args: ServeArgs) -> Result<()> {
    let wrong = |wrong: Vec<Wrong>| Error::Input(wrong.into_iter().map(|wrong| wrong.what).collect::<Vec<_>>().join("\n"));
    let mut base = args.flags.draft().map_err(wrong)?;
    if !base.prompts.is_empty() {
        return Err(Error::Input("--prompt: requests say it; leave it out".into()));
    }
    if base.run.output.is_some() || base.run.save_latents.is_some() || base.run.preview.is_some() {
        return Err(Error::Input(
            "--output, --save-latents and --preview are for images at a terminal; --output-dir says where jobs are kept".into(),
        ));
    }
    if let Some(threads) = base.run.threads {
        set_threads(threads)?;
    }
    if let Some(memory) = base.run.memory {
        set_memory(memory)?;
    }
    let listen = address(&args.listen)?;
    let from_environment = std::env::var("SD_GEN_API_KEY").ok();
    let api_key = args.api_key.or(from_environment).filter(|key| !key.is_empty());
    let mut allowed = Vec::new();
    for folder in &args.allow_dir {
        let found = folder.canonicalize().ok().filter(|found| found.is_dir());
        allowed.push(found.ok_or_else(|| Error::Input(format!("--allow-dir {}: there is no such folder", folder.display())))?);
    }
    let folder = base.run.output_dir.take().unwrap_or_else(|| PathBuf::from("sd-gen-server"));
    let options = ServerOptions {
        listen,
        cors: args.cors.iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect(),
        limits: RequestLimits {
            body: args.max_body as usize * (1 << 20),
            pixels: args.max_pixels,
            steps: args.max_steps,
            images: args.max_images,
            queue: args.max_queue,
        },
        // Jobs name their files by absolute paths, however the server is started the next time.
        folder: std::path::absolute(&folder).map_err(Error::io(&folder))?,
        allowed,
        kept: args.keep_jobs,
        api_key,
    };
    if !listen.ip().is_loopback() && options.api_key.is_none() {
        screen::say(&format!("warning: {listen} is open to every machine that reaches it; --api-key asks for a key"));
    }
    let studio = Arc::new(ModelStudio::new(base, usize::from(args.keep_models))?);
    listen_for_cancellation()?;
    serve(options, studio, cancelled, |address| {
        let _ = answer(&format!("http://{address}/"));
    })
}

fn address(text: &str) -> Result<SocketAddr> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| Error::Input(format!("--listen {text}: give an address and a port, such as 127.0.0.1:7860")))
}
