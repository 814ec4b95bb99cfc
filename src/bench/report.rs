//! What was measured, as data that is written as JSON and read again as a baseline.

use super::machine::Machine;
use crate::ops::OpTime;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A part of the work that is timed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Finding the files, understanding them and mapping them.
    Open,
    /// Reading the weights onto the device and packing them.
    Load,
    /// Encoding prompt and negative prompt.
    Text,
    /// One denoising step with guidance: two rows of the UNet an image.
    Step,
    /// Decoding the images of a batch.
    Decode,
    /// From the prompt to the pixels, all steps.
    Image,
}

impl Phase {
    /// All, in the order of the work.
    pub(crate) const ALL: [Phase; 6] = [Phase::Open, Phase::Load, Phase::Text, Phase::Step, Phase::Decode, Phase::Image];

    /// The name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Open => "open",
            Phase::Load => "load",
            Phase::Text => "text",
            Phase::Step => "guided step",
            Phase::Decode => "VAE decode",
            Phase::Image => "whole image",
        }
    }
}

/// The times of one phase, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// The middle of the samples.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
    /// All, in the order of measuring; warm-ups are not among them.
    pub samples: Vec<f64>,
}

impl Timing {
    /// Summarises samples; `None` without any.
    pub(crate) fn of(samples: Vec<f64>) -> Option<Self> {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max, samples })
    }
}

/// Where the time of one run went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// Seconds of the run, every op waited for.
    pub seconds: f64,
    /// The ops, the longest first; what is missing from the whole is between them.
    pub ops: Vec<OpTime>,
}

/// One combination and what came out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct BenchRow {
    /// The model as it was named.
    pub model: String,
    /// `cpu`, `cuda:0`, …
    pub device: String,
    /// What UNet and text encoders computed in.
    pub dtype: String,
    /// What the VAE computed in.
    pub vae_dtype: String,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Images at once.
    pub batch_size: usize,
    /// Steps of the whole image.
    pub steps: usize,
    /// The times; a phase that was not reached is absent.
    pub phases: BTreeMap<Phase, Timing>,
    /// Where one run of a phase went, where that was asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profiles: BTreeMap<Phase, Profile>,
    /// The largest resident memory of the process from opening to the last image, in bytes.
    pub peak_host_bytes: Option<u64>,
    /// The most that tensors took on a GPU in that time, in bytes.
    #[serde(default)]
    pub peak_device_bytes: Option<u64>,
    /// What `--memory` allowed, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Floating-point operations of a guided step.
    pub step_flop: f64,
    /// Floating-point operations of decoding the batch.
    pub decode_flop: f64,
    /// The matrix peak of the device in `dtype`, in operations a second.
    pub matrix_peak: Option<f64>,
    /// The matrix peak of the device in `vae_dtype`, in operations a second.
    pub vae_matrix_peak: Option<f64>,
    /// Mean absolute difference of the image after one step from the portable reference path's in f32 on the CPU, as a share of
    /// that image's standard deviation.
    pub difference: Option<f64>,
    /// What ended the measurement early.
    pub error: Option<String>,
}

impl BenchRow {
    /// Operations a second of a guided step.
    pub(crate) fn step_rate(&self) -> Option<f64> {
        self.phases.get(&Phase::Step).map(|timing| self.step_flop / timing.median)
    }

    /// Operations a second of decoding.
    pub(crate) fn decode_rate(&self) -> Option<f64> {
        self.phases.get(&Phase::Decode).map(|timing| self.decode_flop / timing.median)
    }

    /// A guided step's share of the matrix peak.
    pub(crate) fn step_share(&self) -> Option<f64> {
        Some(self.step_rate()? / self.matrix_peak?)
    }

    /// Decoding's share of the matrix peak.
    pub(crate) fn decode_share(&self) -> Option<f64> {
        Some(self.decode_rate()? / self.vae_matrix_peak?)
    }
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BenchReport {
    /// Version of the program.
    pub version: String,
    /// Local date and time of the start.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// Runs before those that count.
    pub warmups: usize,
    /// Runs that count.
    pub repeats: usize,
    /// One for each combination.
    pub rows: Vec<BenchRow>,
}

impl BenchReport {
    /// As JSON with a line end.
    ///
    /// # Errors
    /// A number is not finite, which would be a defect.
    pub(crate) fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Image(format!("the results cannot be written as JSON: {e}")))?;
        Ok(text + "\n")
    }

    /// Reads what [`BenchReport::to_json`] wrote.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| {
            Error::Input(format!("`baseline` {}: {e}; give a file of JSON that sd-gen bench wrote", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        serde_json::from_str(&text).map_err(|e| wrong(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |samples: &[f64]| Timing::of(samples.to_vec()).map(|t| (t.median, t.min, t.max));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(of(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(of(&[]), None);
    }
}
