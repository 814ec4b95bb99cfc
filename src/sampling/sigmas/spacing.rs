//! Which of the trained timesteps a run visits.

use super::{by_name, name_of};
use crate::Result;

/// How the timesteps of a run are spread over the trained ones.
///
/// # Source
/// Lin et al. 2023, arXiv:2305.08891, table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestepSpacing {
    /// Multiples of a whole ratio, from the clean end; misses the last trained timestep.
    Leading,
    /// From the first to the last trained timestep.
    Linspace,
    /// Multiples of a ratio from the noisy end.
    Trailing,
}

impl TimestepSpacing {
    /// Every spacing by its name.
    pub const NAMES: &[(&str, TimestepSpacing)] =
        &[("leading", TimestepSpacing::Leading), ("linspace", TimestepSpacing::Linspace), ("trailing", TimestepSpacing::Trailing)];

    /// The name in a `scheduler_config.json`.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--timestep-spacing` takes it.
    ///
    /// # Errors
    /// `Error::Input` for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }
}

/// The timesteps of a run, descending and not rounded, before a solver's own rounding.
///
/// `trained` is the table's length and `last` how many of its timesteps may be used. DPM-Solver spreads `points = steps + 1` and
/// leaves out the cleanest one; the others have `points = steps`. (For 62 of the 1000 step counts diffusers' trailing list is one too
/// long, for want of a last bit, and ends in timestep -1; this one is not.)
pub(in super::super) fn spaced(
    spacing: TimestepSpacing,
    trained: usize,
    last: usize,
    steps: usize,
    points: usize,
    offset: f64,
) -> Vec<f64> {
    let ascending: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => {
            let end = last.saturating_sub(1) as f64;
            let step = end / points.saturating_sub(1).max(1) as f64;
            (0..points).map(|i| if i + 1 == points && points > 1 { end } else { i as f64 * step }).collect()
        }
        TimestepSpacing::Leading => (0..points).map(|i| (i * (last / points)) as f64 + offset).collect(),
        TimestepSpacing::Trailing => {
            // numpy's arange multiplies by the difference of its first two values, and ties are decided by its last bit.
            let start = last as f64;
            let delta = (start - trained as f64 / steps as f64) - start;
            return (0..steps).map(|i| (start + i as f64 * delta).round_ties_even() - 1.0).collect();
        }
    };
    ascending.into_iter().rev().take(steps).collect()
}
