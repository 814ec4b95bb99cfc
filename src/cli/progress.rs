//! Progress on standard error: a bar for people, events for programs.

use super::args::ProgressStyle;
use super::{answer, cancelled, say};
use crate::pipeline::{Observer, Stage};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle as BarStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::time::Duration;

/// Shows what the pipeline does, and stops it when the user asks.
pub(super) struct Progress {
    style: ProgressStyle,
    quiet: bool,
    bar: Option<ProgressBar>,
    /// Where a run of many pictures is.
    run: Option<String>,
}

impl Progress {
    pub(super) fn new(style: ProgressStyle, quiet: bool) -> Self {
        let style = match style {
            ProgressStyle::Auto if !quiet && std::io::stderr().is_terminal() => ProgressStyle::Bar,
            ProgressStyle::Auto => ProgressStyle::None,
            chosen => chosen,
        };
        Self { style, quiet, bar: None, run: None }
    }

    fn event(&self, event: impl FnOnce() -> serde_json::Value) {
        if self.style == ProgressStyle::Json {
            say(&event().to_string());
        }
    }

    fn draw(&mut self, message: String, done: usize, all: usize) {
        if self.style != ProgressStyle::Bar {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(0);
            let style = BarStyle::with_template("{msg} {wide_bar} {pos}/{len} [{elapsed} < {eta}]")
                .or_else(|_| BarStyle::with_template("{msg} {pos}/{len}"));
            bar.set_style(style.unwrap_or_else(|_| BarStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        if done == 0 {
            bar.reset();
        }
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        bar.set_message(message);
    }

    /// Something that the user may want to know.
    pub(super) fn say(&self, message: &str) {
        if self.quiet {
            return;
        }
        self.event(|| json!({ "event": "message", "message": message }));
        match (&self.bar, self.style) {
            (_, ProgressStyle::Json) => {}
            (Some(bar), _) => bar.suspend(|| say(message)),
            (None, _) => say(message),
        }
    }

    /// Something that the user should know.
    pub(super) fn warn_of(&self, message: &str) {
        self.say(&format!("warning: {message}"));
    }

    /// Of a run of many pictures, `done` are done; `all` is not known of lines that are still being typed. Of one picture, the steps say
    /// it all.
    pub(super) fn pictures(&mut self, done: usize, all: Option<usize>, prompt: &str) {
        if all == Some(1) {
            return;
        }
        self.event(|| json!({ "event": "progress", "done": done, "all": all, "prompt": prompt }));
        let all = all.map(|all| format!("/{all}")).unwrap_or_default();
        self.run = Some(format!("{done}{all} {}", prompt.chars().take(30).collect::<String>()));
    }

    /// A picture was written.
    ///
    /// # Errors
    /// Its path cannot be said on standard output.
    pub(super) fn written(&self, path: Option<&std::path::Path>, seed: u64) -> Result<()> {
        self.event(|| json!({ "event": "picture", "path": path.map(|p| p.to_string_lossy()), "seed": seed }));
        let Some(path) = path else { return Ok(()) };
        match &self.bar {
            Some(bar) => bar.suspend(|| answer(&path.display().to_string())),
            None => answer(&path.display().to_string()),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match stage {
            Stage::Load { component } => {
                self.event(|| json!({ "event": "load", "component": component }));
                self.draw(format!("loading the {component}"), 0, 1);
            }
            Stage::EncodePrompt => self.event(|| json!({ "event": "encode" })),
            Stage::Denoise { step, steps, pictures } => {
                self.event(|| json!({ "event": "step", "step": step, "steps": steps, "seeds": pictures }));
                let seeds = || format!("seed {}", pictures.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
                self.draw(self.run.clone().unwrap_or_else(seeds), step, steps);
            }
            Stage::Decode => {
                self.event(|| json!({ "event": "decode" }));
                if let Some(bar) = &self.bar {
                    bar.set_message("decoding");
                }
            }
        }
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        self.warn_of(message);
    }
}
