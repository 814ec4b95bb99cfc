//! Two runs side by side: what became faster, what slower, and what is noise.

use super::report::{BenchReport, BenchRow, Phase};

/// How a phase of a row that both runs have has changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PhaseChange {
    /// The row, for people.
    pub row: String,
    /// The phase.
    pub phase: Phase,
    /// The old median in seconds.
    pub old: f64,
    /// The new one.
    pub new: f64,
    /// The spreads of both runs overlap: the difference may be chance.
    pub noise: bool,
}

impl PhaseChange {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let ratio = self.new / self.old;
        let verdict = match (self.noise, ratio < 1.0) {
            (true, _) => "noise",
            (false, true) => "faster",
            (false, false) => "slower",
        };
        format!("{}: {} {:.4} s, was {:.4} s: {:+.1} %, {verdict}", self.row, self.phase.name(), self.new, self.old, (ratio - 1.0) * 100.0)
    }
}

/// All phases that both runs have of the same combination.
pub(crate) fn compare(old: &BenchReport, new: &BenchReport) -> Vec<PhaseChange> {
    let mut changes = Vec::new();
    for row in &new.rows {
        let Some(before) = old.rows.iter().find(|before| same(before, row)) else { continue };
        for phase in Phase::ALL {
            let (Some(was), Some(is)) = (before.phases.get(&phase), row.phases.get(&phase)) else { continue };
            // A whole image of other steps is another thing.
            if phase == Phase::Image && before.steps != row.steps {
                continue;
            }
            let noise = is.min <= was.max && was.min <= is.max;
            changes.push(PhaseChange { row: title(row), phase, old: was.median, new: is.median, noise });
        }
    }
    changes
}

fn same(a: &BenchRow, b: &BenchRow) -> bool {
    (&a.model, &a.device, &a.dtype, a.width, a.height, a.batch_size) == (&b.model, &b.device, &b.dtype, b.width, b.height, b.batch_size)
}

/// A row's combination in a few words.
pub(super) fn title(row: &BenchRow) -> String {
    let batch = if row.batch_size > 1 { format!(" ×{}", row.batch_size) } else { String::new() };
    format!("{} {}x{}{batch} {} {}", row.model, row.width, row.height, row.device, row.dtype)
}

#[cfg(test)]
mod tests {
    use super::super::Machine;
    use super::super::report::Timing;
    use super::*;

    #[test]
    fn spreads_that_overlap_are_noise() {
        let report = |step: &[f64], decode: &[f64]| {
            let phases = [(Phase::Step, step), (Phase::Decode, decode)];
            let phases = phases.into_iter().filter_map(|(phase, samples)| Some((phase, Timing::of(samples.to_vec())?)));
            let row = BenchRow { model: "m".into(), phases: phases.collect(), ..BenchRow::default() };
            BenchReport { version: "1".into(), date: String::new(), machine: Machine::here(), warmups: 0, repeats: 3, rows: vec![row] }
        };
        let changes = compare(&report(&[1.0, 1.1, 1.2], &[2.0, 2.1, 2.2]), &report(&[1.15, 1.3, 1.4], &[1.0, 1.1, 1.2]));
        let found: Vec<_> = changes.iter().map(|change| (change.phase, change.noise)).collect();
        assert_eq!(found, [(Phase::Step, true), (Phase::Decode, false)]);
        assert!(changes[1].line().ends_with("faster"), "{}", changes[1].line());
    }
}
