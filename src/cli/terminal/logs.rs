//! What the library logs, on standard error: `--verbose` and `SD_GEN_LOG` say how much, and `--progress json` makes events of it.

use crate::cli::terminal::screen;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::io::Write;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// Directives as tracing's `EnvFilter` reads them, such as `debug` or `sd_gen::weights=trace`.
const VARIABLE: &str = "SD_GEN_LOG";

/// Starts to log: `--verbose` once shows decisions (info), twice files and timings too (debug), three times every step (trace); the
/// directives of the variable come before it.
///
/// # Errors
/// The variable cannot be read.
pub(in crate::cli) fn start(verbose: u8, quiet: bool) -> Result<()> {
    let directives = std::env::var(VARIABLE).unwrap_or_default();
    // Without a subscriber a log line costs one comparison.
    if quiet || (verbose == 0 && directives.trim().is_empty()) {
        return Ok(());
    }
    let level = ["off", "sd_gen=info", "sd_gen=debug", "sd_gen=trace"][usize::from(verbose).min(3)];
    let wrong = |e: tracing_subscriber::filter::ParseError| {
        Error::Input(format!("{VARIABLE}={directives}: {e}; it takes levels such as debug or sd_gen::weights=trace"))
    };
    let mut filter = EnvFilter::new(level);
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        filter = filter.add_directive(directive.parse().map_err(wrong)?);
    }
    let registry = tracing_subscriber::registry().with(filter);
    let started = if screen::is_json() {
        registry.with(Events).try_init()
    } else {
        let plain = verbose < 2 && directives.is_empty();
        let lines = tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(false)
            .with_target(!plain)
            .with_level(!plain)
            .with_writer(|| AboveProgress);
        registry.with(lines).try_init()
    };
    started.map_err(|e| Error::Input(format!("the log cannot be started: {e}")))
}

/// Writes each log line above the live ones.
struct AboveProgress;

impl Write for AboveProgress {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        screen::say(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes a `log` event of each log line.
struct Events;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = LogFields(Map::new());
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_default();
        let spans: Vec<&str> = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root().map(|span| span.name())).collect();
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_lowercase();
        screen::event(
            || json!({ "event": "log", "level": level, "target": metadata.target(), "message": message.as_str().unwrap_or_default().trim(), "fields": fields.0, "spans": spans }),
        );
    }
}

/// A log line's fields.
struct LogFields(Map<String, Value>);

impl Visit for LogFields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), json!(value));
    }
}
