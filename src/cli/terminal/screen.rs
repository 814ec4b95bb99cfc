//! Standard error, which messages, the live lines and the image below them share without tearing one another.
//!
//! What is alive is drawn again and again in one place. Between two drawings the cursor waits in the first column of its first line, so that all of
//! it can be wiped by "erase from here on" whatever became of the lines below: a terminal that is made narrower breaks them anew, and
//! nobody could count them then. Messages wipe it, are written, and have it drawn again below. On a pipe nothing is ever alive.

use crate::cli::terminal::show::{harmless, json as as_json, with_dashes};
use console::Term;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An image as a terminal takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Drawing {
    /// What draws it, from the cursor to the right and down; where the cursor is afterwards does not matter.
    pub(in crate::cli) text: String,
    /// Lines of text that it covers.
    pub(in crate::cli) rows: usize,
    /// What removes it, where wiping the text does not.
    pub(in crate::cli) remove: String,
}

struct Screen {
    /// Programs listen: every line is an event.
    json: bool,
    lines: Vec<String>,
    image: Option<Drawing>,
    drawn: Option<Drawn>,
}

/// What is on the terminal.
struct Drawn {
    size: (u16, u16),
    lines: usize,
    remove: String,
}

static SCREEN: Mutex<Screen> = Mutex::new(Screen { json: false, lines: Vec::new(), image: None, drawn: None });

fn screen() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on every line on standard error is an event.
pub(in crate::cli) fn speak_json() {
    screen().json = true;
}

/// Whether programs listen.
pub(in crate::cli) fn is_json() -> bool {
    screen().json
}

/// Whether something can be drawn: standard error is a terminal that obeys.
pub(in crate::cli) fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Rows and columns of the terminal.
pub(in crate::cli) fn size() -> (u16, u16) {
    Term::stderr().size()
}

/// A line for people, or for programs a `message` event. What a file made part of it cannot steer the terminal.
pub(in crate::cli) fn say(line: &str) {
    let line = with_dashes(line);
    let mut screen = screen();
    if screen.json {
        return screen.write(&format!("{}\n", as_json(&json!({ "event": "message", "message": line }), false)));
    }
    screen.write(&format!("{}\n", harmless(&line)));
}

/// An event, where programs listen.
pub(in crate::cli) fn event(event: impl FnOnce() -> Value) {
    let mut screen = screen();
    if screen.json {
        screen.write(&format!("{}\n", as_json(&event(), false)));
    }
}

/// Does what writes to the terminal by another way, with nothing alive in its way.
pub(in crate::cli) fn aside<T>(write: impl FnOnce() -> T) -> T {
    let mut screen = screen();
    screen.write("");
    let wipe = screen.wipe();
    put(&wipe);
    let result = write();
    let drawing = screen.draw();
    put(&drawing);
    result
}

/// Shows `lines`, each cut to the terminal's width, until others are shown; none at all takes everything away, the image too.
pub(in crate::cli) fn show(lines: Vec<String>) {
    let mut screen = screen();
    let all_new = lines.is_empty();
    screen.lines = lines;
    if all_new {
        screen.image = None;
    }
    let wipe = if all_new { screen.wipe() } else { String::new() };
    let drawing = screen.draw();
    put(&(wipe + &drawing));
}

/// Shows an image below the lines, in the place of the last one.
pub(in crate::cli) fn show_image(image: Drawing) {
    let mut screen = screen();
    let wipe = screen.wipe();
    screen.image = Some(image);
    let drawing = screen.draw();
    put(&(wipe + &drawing));
}

/// Leaves an image above the lines for good, as a message is left.
pub(in crate::cli) fn leave_image(image: &Drawing) {
    let mut screen = screen();
    screen.image = None;
    let mut text = String::new();
    place(&mut text, image);
    let down = image.rows;
    let _ = write!(text, "\x1b[{down}B\r");
    screen.write(&text);
}

fn put(text: &str) {
    if !text.is_empty() {
        // Nobody listens any more: that is no reason to lose an image.
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

/// Makes room for an image at the cursor and draws it; the cursor is then where it was, in the first column.
fn place(text: &mut String, image: &Drawing) {
    let rows = image.rows;
    let _ = write!(text, "{}\x1b[{rows}A\r\x1b7{}\x1b8", "\r\n".repeat(rows), image.text);
}

impl Screen {
    /// Writes above what is alive.
    fn write(&mut self, text: &str) {
        let wipe = self.wipe();
        let drawing = self.draw();
        put(&format!("{wipe}{text}{drawing}"));
    }

    /// What takes away all that is alive.
    fn wipe(&mut self) -> String {
        self.drawn.take().map_or(String::new(), |drawn| format!("{}\r\x1b[J", drawn.remove))
    }

    /// What draws all that is alive, or the lines over the old ones where nothing else has changed.
    fn draw(&mut self) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        let size = size();
        let (rows, columns) = (usize::from(size.0), usize::from(size.1));
        let fresh = !matches!(&self.drawn, Some(drawn) if drawn.size == size && drawn.lines == self.lines.len());
        let mut text = if fresh { self.wipe() } else { String::new() };
        for (i, line) in self.lines.iter().enumerate() {
            // The last column stays free: what a terminal does after it is its own business.
            let line = console::truncate_str(line, columns.saturating_sub(1), "…");
            let _ = write!(text, "{}{line}\x1b[K", if i > 0 { "\r\n" } else { "\r" });
        }
        let mut up = self.lines.len() - 1;
        if fresh {
            let room = rows.saturating_sub(self.lines.len() + 1);
            let image = self.image.as_ref().filter(|image| image.rows <= room);
            if let Some(image) = image {
                text.push_str("\r\n");
                place(&mut text, image);
                up += 1;
            }
            let remove = image.map_or(String::new(), |image| image.remove.clone());
            self.drawn = Some(Drawn { size, lines: self.lines.len(), remove });
        }
        if up > 0 {
            let _ = write!(text, "\x1b[{up}A");
        }
        text.push('\r');
        text
    }
}
