//! How many images, and how many at once.

use super::{By, Request, Setting, Value, ValueKind};

settings! {
    /// How many images a request is.
    OutputSettings, OutputDraft, draft.output, by By<'_>, of |request: &Request| Some(&request.output);

    /// Images for each prompt
    images: one usize = |_| 1 => Setting {
        name: "images", hidden_aliases: &["count", "num-images-per-prompt", "batch-count", "n-iter"], value: "N", default: "1",
        // More than a disk holds.
        range: Some((1.0, 10_000_000.0)), ..Setting::BATCH
    };

    /// The most images generated at once, or auto, by their size and the memory; does not change them
    batch_size: one BatchSize = |_| BatchSize(None) => Setting {
        name: "batch-size", short: Some('b'), value: "N", default: "auto",
        // More than any device holds.
        range: Some((1.0, 1024.0)), ..Setting::BATCH
    };
}

/// The most images at once; `None` leaves it to their size and the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchSize(pub Option<usize>);

impl Value for BatchSize {
    const KIND: ValueKind = ValueKind::Whole;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(BatchSize(None)),
            _ => text.parse().map(|most| BatchSize(Some(most))).map_err(|_| "give a whole number, or auto".into()),
        }
    }

    fn typed(&self) -> String {
        self.0.map_or_else(|| "auto".into(), |most| most.to_string())
    }

    fn number(&self) -> Option<f64> {
        self.0.map(|most| most as f64)
    }
}
