//! Progress on standard error: live lines for people, events for programs; `docs/progress.md` lists the events.

use crate::cli::process::cancelled;
use crate::cli::terminal::answer;
use crate::cli::terminal::pace::StepPace;
use crate::cli::terminal::preview::Preview;
use crate::cli::terminal::screen;
use crate::cli::terminal::show::steers;
use crate::pipeline::{Observer, Stage};
use crate::settings::{Graphics, ProgressStyle};
use crate::{Error, Result};
use ::image::RgbImage;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// CurrentWork that is over sooner shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the lines are drawn, and events about bytes are said.
const PERIOD: Duration = Duration::from_millis(250);

/// Shows what the pipeline does, and stops it when the user asks.
pub(in crate::cli) struct Progress {
    quiet: bool,
    status: Arc<Mutex<StatusLines>>,
    /// Draws while nothing happens, until the sender is gone.
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
    preview: Option<Preview>,
    last_bytes: Option<Instant>,
}

impl Progress {
    pub(in crate::cli) fn new(style: ProgressStyle, quiet: bool) -> Self {
        let status = Arc::new(Mutex::new(StatusLines::new()));
        let wanted = match style {
            ProgressStyle::Auto => !quiet,
            ProgressStyle::Bar => true,
            ProgressStyle::Json | ProgressStyle::None => false,
        };
        let ticker = (wanted && screen::is_terminal() && !screen::is_json()).then(|| {
            let (sender, stopped) = channel::<()>();
            let status = Arc::clone(&status);
            let tick = move || {
                let mut wait = PATIENCE;
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    screen::show(locked(&status).lines());
                    wait = PERIOD;
                }
            };
            (sender, std::thread::spawn(tick))
        });
        Self { quiet, status, ticker, preview: None, last_bytes: None }
    }

    /// Draws each image as it forms and when it is finished; on a pipe nothing is drawn.
    pub(in crate::cli) fn preview(&mut self, graphics: Option<Graphics>) {
        if self.ticker.is_some() {
            self.preview = Some(Preview::new(graphics.unwrap_or_else(Graphics::detect)));
        }
    }

    /// Whether there are live lines.
    pub(in crate::cli) fn is_live(&self) -> bool {
        self.ticker.is_some()
    }

    /// Whether images are drawn as they form.
    pub(in crate::cli) fn previews(&self) -> bool {
        self.preview.is_some()
    }

    /// The first of `all` images comes; `None` where nobody knows how many there are.
    pub(in crate::cli) fn begin_run(&mut self, all: Option<usize>) {
        screen::event(|| json!({ "event": "run", "images": all }));
        self.status().run =
            Some(RunProgress { started: Instant::now(), pace: StepPace::default(), all, written: 0, failed: 0, prompt: String::new() });
    }

    /// So many images come to the device, the first of them of `prompt`.
    pub(in crate::cli) fn batch_started(&mut self, prompt: &str, images: usize) {
        screen::event(|| json!({ "event": "prompt", "prompt": prompt }));
        self.status().begun(one_line(prompt), images);
    }

    /// An image was written; its path is said on standard output.
    ///
    /// # Errors
    /// Its path cannot be said on standard output.
    pub(in crate::cli) fn written(&mut self, path: Option<&Path>, seed: u64, image: &RgbImage) -> Result<()> {
        self.status().written();
        let (path, size) = (path.map(|path| path.display().to_string()), image.dimensions());
        screen::event(|| json!({ "event": "image", "path": path, "seed": seed, "width": size.0, "height": size.1 }));
        if let Some(preview) = &mut self.preview {
            screen::leave_image(&preview.finished(image));
        }
        match path {
            Some(path) => screen::aside(|| answer(&path)),
            None => Ok(()),
        }
    }

    /// An image of a prompt could not be made; the run goes on.
    pub(in crate::cli) fn failed(&mut self, prompt: &str, reason: &str) {
        self.status().failed();
        if screen::is_json() {
            return screen::event(|| json!({ "event": "failed", "prompt": prompt, "error": reason }));
        }
        let prompt = one_line(prompt);
        self.warn(&format!("\"{}\": {reason}", console::truncate_str(&prompt, 60, "…")));
    }

    /// An image needs no generating.
    pub(in crate::cli) fn known(&mut self) {
        if let Some(all) = self.status().run.as_mut().and_then(|run| run.all.as_mut()) {
            *all = all.saturating_sub(1);
        }
    }

    /// A look at what is forming is due.
    pub(in crate::cli) fn would_look(&self) -> bool {
        self.preview.as_ref().is_some_and(Preview::is_due)
    }

    /// Draws what is forming; `cost` is what it took to make.
    pub(in crate::cli) fn formed(&mut self, images: Result<Vec<RgbImage>>, cost: Duration) {
        let Some(preview) = &mut self.preview else { return };
        match images {
            Ok(images) => {
                let drawing = preview.forming(&images, cost);
                // The image hangs below the lines, so they are there from now on.
                screen::show(locked(&self.status).lines());
                screen::show_image(drawing);
            }
            Err(error) => {
                self.preview = None;
                self.warn(&format!("no preview: {error}"));
            }
        }
    }

    /// Bytes that come or go: `what` is said as "loading the UNet" is.
    pub(in crate::cli) fn bytes(&mut self, what: &str, done: u64, all: Option<u64>) {
        self.bytes_as(what, done, all, || json!({ "event": "bytes", "what": what, "done": done, "all": all }));
    }

    /// Bytes of a file that is fetched.
    pub(in crate::cli) fn download(&mut self, file: &str, done: u64, all: Option<u64>) {
        self.bytes_as(file, done, all, || json!({ "event": "download", "file": file, "bytes": done, "total": all }));
    }

    /// Tiles of an image that is enlarged.
    pub(in crate::cli) fn tiles(&mut self, what: &str, done: usize, all: usize) {
        screen::event(|| json!({ "event": "tiles", "what": what, "done": done, "all": all }));
        self.status().show(CurrentWork::Parts { what: what.to_owned(), done, all });
    }

    fn bytes_as(&mut self, what: &str, done: u64, all: Option<u64>, event: impl FnOnce() -> Value) {
        // Thousands of tensors are not thousands of events; the first and the last are always said.
        let due = done == 0 || Some(done) == all || self.last_bytes.is_none_or(|last| last.elapsed() >= PERIOD);
        if due {
            self.last_bytes = Some(Instant::now());
            screen::event(event);
        }
        self.status().show(CurrentWork::Bytes { what: what.to_owned(), done, all });
    }

    /// Something that the user may want to know.
    pub(in crate::cli) fn say(&self, message: &str) {
        if !self.quiet {
            screen::say(message);
        }
    }

    fn status(&self) -> MutexGuard<'_, StatusLines> {
        locked(&self.status)
    }
}

fn locked(status: &Mutex<StatusLines>) -> MutexGuard<'_, StatusLines> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.ticker.take() {
            drop(sender);
            let _ = thread.join();
            screen::show(Vec::new());
        }
        if let Some(RunProgress { started, written, failed, .. }) = self.status().run.take() {
            let seconds = started.elapsed().as_secs_f64();
            screen::event(|| json!({ "event": "end", "written": written, "failed": failed, "seconds": seconds }));
        }
    }
}

impl Observer for Progress {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match stage {
            Stage::Load { component, done, all } => {
                if done == 0 {
                    screen::event(|| json!({ "event": "load", "component": component, "bytes": all }));
                }
                self.bytes(&format!("loading the {component}"), done, all);
            }
            Stage::EncodePrompt => {
                screen::event(|| json!({ "event": "encode" }));
                self.status().show(CurrentWork::Words("encoding the prompt"));
            }
            Stage::Denoise { step, steps, images } => {
                screen::event(|| json!({ "event": "step", "step": step, "steps": steps, "seeds": images }));
                self.status().step(step, steps, images);
            }
            Stage::Decode { done, all } => {
                screen::event(|| json!({ "event": "decode", "done": done, "images": all }));
                self.status().show(CurrentWork::Decode { done, all });
            }
        }
        Ok(())
    }

    fn depth(&mut self, done: usize, all: usize) -> Result<()> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        screen::event(|| json!({ "event": "depth", "done": done, "all": all }));
        self.status().show(CurrentWork::Parts { what: "estimating depth".to_owned(), done, all });
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        if screen::is_json() && !self.quiet {
            return screen::event(|| json!({ "event": "warning", "message": message }));
        }
        self.say(&format!("warning: {message}"));
    }
}

/// What the lines say.
struct StatusLines {
    run: Option<RunProgress>,
    work: CurrentWork,
    /// The seeds of the batch whose steps are shown.
    shown: Vec<u64>,
}

/// All images.
struct RunProgress {
    started: Instant,
    pace: StepPace,
    all: Option<usize>,
    written: usize,
    failed: usize,
    prompt: String,
}

/// What is being done.
enum CurrentWork {
    Words(&'static str),
    Bytes {
        what: String,
        done: u64,
        all: Option<u64>,
    },
    /// Shown since it had done `from` steps.
    Denoise {
        step: usize,
        steps: usize,
        from: usize,
        since: Instant,
    },
    Decode {
        done: usize,
        all: usize,
    },
    Parts {
        what: String,
        done: usize,
        all: usize,
    },
}

impl StatusLines {
    fn new() -> Self {
        Self { run: None, work: CurrentWork::Words("starting"), shown: Vec::new() }
    }

    fn begun(&mut self, prompt: String, images: usize) {
        self.shown.clear();
        if let Some(run) = &mut self.run {
            run.prompt = prompt;
            run.pace.begun(images, Instant::now());
        }
    }

    /// Shows work, unless a batch is shown that is in the midst of its steps: beside it others generate and decode, and texts are encoded.
    fn show(&mut self, work: CurrentWork) {
        let is_amid = matches!(self.work, CurrentWork::Denoise { step, steps, .. } if step < steps);
        if self.shown.is_empty() || !is_amid {
            self.shown.clear();
            self.work = work;
        }
    }

    fn step(&mut self, number: usize, all: usize, seeds: &[u64]) {
        let now = Instant::now();
        if let Some(run) = &mut self.run {
            // Decoding is about one step more.
            run.pace.step(seeds.len(), number as f64 / (all + 1) as f64, now);
        }
        match &mut self.work {
            CurrentWork::Denoise { step, .. } if self.shown == seeds && *step < number => *step = number,
            _ => {
                self.show(CurrentWork::Denoise { step: number, steps: all, from: number, since: now });
                if self.shown.is_empty() {
                    self.shown = seeds.to_vec();
                }
            }
        }
    }

    fn written(&mut self) {
        if let Some(run) = &mut self.run {
            run.written += 1;
            run.pace.finished(Instant::now());
        }
    }

    fn failed(&mut self) {
        // The batch that is shown may be the one that failed.
        self.shown.clear();
        if let Some(run) = &mut self.run {
            run.failed += 1;
            run.pace.finished(Instant::now());
        }
    }

    fn lines(&self) -> Vec<String> {
        let width = usize::from(screen::size().1).saturating_sub(1);
        let of_run = self.run.as_ref().map(|run| run.line(Instant::now()));
        of_run.into_iter().chain([self.work.line(width)]).collect()
    }
}

impl RunProgress {
    fn line(&self, now: Instant) -> String {
        let finished = self.written + self.failed;
        let mut parts = Vec::new();
        match self.all {
            Some(1) => {}
            Some(all) => parts.push(format!("{finished}/{all} images")),
            None => parts.push(format!("{finished} images")),
        }
        if self.failed > 0 {
            parts.push(format!("{} failed", self.failed));
        }
        if self.all != Some(1) {
            parts.extend(self.pace.each().map(rate));
        }
        let left = self.all.and_then(|all| self.pace.left(all, now));
        parts.extend(left.map(|left| format!("{} left", duration(left))));
        if !self.prompt.is_empty() {
            parts.push(self.prompt.clone());
        }
        parts.join(" · ")
    }
}

impl CurrentWork {
    fn line(&self, width: usize) -> String {
        let (share, words) = match self {
            CurrentWork::Words(words) => return (*words).to_owned(),
            CurrentWork::Bytes { what, done, all: None } => return format!("{what} {}", size(*done)),
            CurrentWork::Bytes { what, done, all: Some(all) } => {
                (*done as f64 / (*all).max(1) as f64, format!("{what} {}/{}", size(*done), size(*all)))
            }
            CurrentWork::Denoise { step, steps, from, since } => {
                let each = since.elapsed().as_secs_f64() / (step - from).max(1) as f64;
                let pace = if step > from { format!(", {} a step", duration(each)) } else { String::new() };
                (*step as f64 / (*steps).max(1) as f64, format!("{step}/{steps} steps{pace}"))
            }
            CurrentWork::Parts { what, done, all } => (*done as f64 / (*all).max(1) as f64, format!("{what} {done}/{all}")),
            CurrentWork::Decode { all: 1, .. } => return "decoding".to_owned(),
            CurrentWork::Decode { done, all } => (*done as f64 / (*all).max(1) as f64, format!("decoding {done}/{all}")),
        };
        let room = width.saturating_sub(console::measure_text_width(&words) + 1);
        if room < 8 { words } else { format!("{} {words}", bar(share, room.min(50))) }
    }
}

/// A bar of `width` columns, filled by eighths of a column.
fn bar(share: f64, width: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (8 * width) as f64).round() as usize;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    let filled = "█".repeat(eighths / 8) + part;
    let empty = width - eighths.div_ceil(8);
    filled + &"░".repeat(empty)
}

/// As few words as say how fast it goes.
fn rate(seconds_each: f64) -> String {
    if seconds_each >= 6.0 { format!("{} an image", duration(seconds_each)) } else { format!("{:.0} images a minute", 60.0 / seconds_each) }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min", (whole + 30) / 60),
        _ => format!("{} h {:02} min", (whole + 30) / 3600, (whole + 30) % 3600 / 60),
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1_000_000_000 { format!("{:.0} MB", bytes as f64 / 1e6) } else { format!("{:.1} GB", bytes as f64 / 1e9) }
}

/// A text of anybody's as a part of a line: nothing in it moves the cursor or changes the terminal.
fn one_line(text: &str) -> String {
    let harmless: String = text.chars().map(|c| if steers(c) { ' ' } else { c }).collect();
    harmless.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_wide_as_asked_for() {
        for width in [8, 13, 50] {
            for share in [-1.0, 0.0, 0.01, 0.5, 0.999, 1.0, 7.0] {
                assert_eq!(console::measure_text_width(&bar(share, width)), width, "{share}");
            }
        }
        assert_eq!((bar(0.5, 8), bar(0.25, 2)), ("████░░░░".into(), "▌░".into()));
    }

    #[test]
    fn numbers_are_short() {
        let durations = [0.0, 1.234, 9.96, 119.4, 125.0, 7199.0, 7200.0, 90_000.0].map(duration);
        assert_eq!(durations, ["0.0 s", "1.2 s", "10 s", "119 s", "2 min", "120 min", "2 h 00 min", "25 h 00 min"]);
        assert_eq!([rate(12.3), rate(0.5)], ["12 s an image", "120 images a minute"]);
        assert_eq!([size(3_000_000), size(3_438_000_000)], ["3 MB", "3.4 GB"]);
    }

    #[test]
    fn a_prompt_cannot_move_the_cursor() {
        assert_eq!(one_line("a \x1b[2J cat\r\n\ton a\u{9b}2J mat\u{7}"), "a [2J cat on a 2J mat");
    }

    #[test]
    fn the_run_line_says_what_is_known() {
        let started = Instant::now();
        let later = started + Duration::from_secs(100);
        let run = |all, written, failed, share| {
            let mut pace = StepPace::default();
            pace.begun(written + failed, started);
            (0..written + failed).for_each(|_| pace.finished(later));
            if share > 0.0 {
                pace.begun(1, started);
                pace.step(1, share, later);
            }
            RunProgress { started, pace, all, written, failed, prompt: "赤いリンゴ".into() }.line(later)
        };
        assert_eq!(run(Some(40), 9, 1, 0.0), "10/40 images · 1 failed · 10 s an image · 5 min left · 赤いリンゴ");
        assert_eq!(run(None, 50, 0, 0.5), "50 images · 30 images a minute · 赤いリンゴ");
        assert_eq!(run(Some(1), 0, 0, 0.5), "100 s left · 赤いリンゴ");
        assert_eq!(run(Some(1), 0, 0, 0.0), "赤いリンゴ");
        assert_eq!(console::truncate_str(&run(Some(1), 0, 0, 0.0), 6, "…"), "赤い…");
    }

    #[test]
    fn of_two_batches_at_once_the_steps_of_one_are_shown() {
        let mut status = StatusLines::new();
        let step_of = |status: &StatusLines| match status.work {
            CurrentWork::Denoise { step, .. } => Some(step),
            _ => None,
        };
        for (step, seeds, shown) in [(0, [1], 0), (4, [2], 0), (1, [1], 1), (8, [2], 1), (8, [1], 8), (0, [3], 0), (1, [2], 0), (1, [3], 1)]
        {
            status.step(step, 8, &seeds);
            assert_eq!(step_of(&status), Some(shown), "after step {step} of {seeds:?}");
        }
        status.show(CurrentWork::Decode { done: 0, all: 1 });
        assert_eq!(step_of(&status), Some(1), "another batch is decoded");
        status.failed();
        status.step(2, 8, &[4]);
        assert_eq!(step_of(&status), Some(2), "the batch that was shown may be gone");
    }
}
