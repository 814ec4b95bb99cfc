//! A run as text: aligned for people, Markdown for a page, CSV for a spreadsheet.

use super::compare::title;
use super::report::{BenchReport, BenchRow, Phase, Profile, Timing};
use crate::ops::OpTime;
use std::collections::BTreeMap;

const HEADERS: [&str; 17] = [
    "model",
    "device",
    "dtype",
    "size",
    "batch",
    "open",
    "load",
    "text",
    "guided step",
    "VAE decode",
    "whole image",
    "step TFLOP/s",
    "VAE TFLOP/s",
    "peak memory",
    "on the GPU",
    "difference",
    "",
];

/// The cells of a row, with the spread written by `spread`; a missing value is "-".
fn cells(row: &BenchRow, spread: fn(&Timing) -> String) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rate = |rate: Option<f64>, share: Option<f64>| {
        or_dash(rate.map(|rate| {
            let share = share.map_or(String::new(), |share| format!(" ({:.0} %)", share * 100.0));
            format!("{:.3}{share}", rate / 1e12)
        }))
    };
    let mut cells =
        vec![row.model.clone(), row.device.clone(), row.dtype.clone(), format!("{}x{}", row.width, row.height), row.batch_size.to_string()];
    cells.extend(Phase::ALL.map(|phase| {
        or_dash(row.phases.get(&phase).map(|timing| {
            let spread = if timing.samples.len() > 1 { spread(timing) } else { String::new() };
            format!("{} s{spread}", seconds(timing.median))
        }))
    }));
    cells.push(rate(row.step_rate(), row.step_share()));
    cells.push(rate(row.decode_rate(), row.decode_share()));
    let of = row.memory_limit.map_or(String::new(), |limit| format!(" of {:.2}", limit as f64 / 1e9));
    for bytes in [row.peak_host_bytes, row.peak_device_bytes] {
        cells.push(or_dash(bytes.map(|bytes| format!("{:.2}{of} GB", bytes as f64 / 1e9))));
    }
    cells.push(or_dash(row.difference.map(|difference| format!("{:.4} %", difference * 100.0))));
    cells.push(row.error.as_ref().map_or(String::new(), |error| format!("error: {error}")));
    cells
}

/// The shortest and the longest.
fn range(timing: &Timing) -> String {
    format!(" ({}..{})", seconds(timing.min), seconds(timing.max))
}

/// Half of the way from the shortest to the longest, which is narrower to write.
fn per_cent(timing: &Timing) -> String {
    format!(" ±{:.0} %", (timing.max - timing.min) / 2.0 / timing.median * 100.0)
}

/// Three digits that matter.
fn seconds(seconds: f64) -> String {
    let digits = match seconds {
        s if s >= 100.0 => 0,
        s if s >= 10.0 => 1,
        s if s >= 1.0 => 2,
        s if s >= 0.1 => 3,
        s if s >= 0.01 => 4,
        _ => 5,
    };
    format!("{seconds:.digits$}")
}

/// What the columns mean, for below a table.
fn legend(report: &BenchReport, spread: &str) -> String {
    format!(
        "Medians with {spread}; runs that count: {}, warm-ups: {}, steps of the whole image: {}.\n\
         TFLOP/s: a multiplication with its addition is two, as the network is defined; in brackets the share of a plain matrix product's on\n\
         the same device, which is above 100 % where operations are saved.\n\
         difference: mean absolute difference of the image after one step, with guidance 7.5, from the portable ops' in f32 on the CPU,\n\
         over that image's standard deviation.\n",
        report.repeats,
        report.warmups,
        report.rows.iter().map(|row| row.steps).max().unwrap_or(0),
    )
}

/// The longest calls by shapes that are shown.
const LONGEST_CALLS: usize = 12;

/// Where the time went, for the rows and phases that were profiled: by op, and the longest by shapes.
fn profiles(report: &BenchReport) -> String {
    let of_row = |row: &BenchRow| row.profiles.iter().map(|(phase, profile)| of_phase(&title(row), *phase, profile)).collect::<String>();
    report.rows.iter().map(of_row).collect()
}

fn of_phase(title: &str, phase: Phase, profile: &Profile) -> String {
    let mut by_op: BTreeMap<&str, OpTime> = BTreeMap::new();
    for time in &profile.ops {
        by_op.entry(&time.op).or_insert_with(|| OpTime { op: time.op.clone(), ..OpTime::default() }).add(time);
    }
    let mut sums: Vec<OpTime> = by_op.into_values().collect();
    sums.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let between = (profile.seconds - sums.iter().map(|sum| sum.seconds).sum::<f64>()).max(0.0);
    sums.push(OpTime { op: "between the ops".into(), seconds: between, ..OpTime::default() });
    let mut text = format!("\n{title}: where a {} of {} s goes\n", phase.name(), seconds(profile.seconds));
    let longest = profile.ops.iter().take(LONGEST_CALLS);
    for (i, time) in sums.iter().chain(longest).enumerate() {
        if i == sums.len() {
            text.push_str("the longest, by shapes:\n");
        }
        let rate =
            if time.flop > 0.0 { format!("{:.3} TFLOP/s", time.flop / time.seconds.max(f64::MIN_POSITIVE) / 1e12) } else { String::new() };
        let share = 100.0 * time.seconds / profile.seconds.max(f64::MIN_POSITIVE);
        let what = format!("{} {}", time.op, time.shapes);
        text.push_str(&format!("{share:6.1} %  {:>8} s  {:6} calls  {rate:>16}  {}\n", seconds(time.seconds), time.calls, what.trim_end()));
    }
    text
}

/// Aligned columns.
pub(crate) fn aligned(report: &BenchReport) -> String {
    let mut lines = vec![HEADERS.map(str::to_owned).to_vec()];
    lines.extend(report.rows.iter().map(|row| cells(row, per_cent)));
    let widths: Vec<usize> = (0..HEADERS.len()).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = format!("sd-gen {} on {}\n\n", report.version, report.machine.line());
    for line in lines {
        // The last column holds sentences and is not padded.
        let padded = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text + "\n" + &legend(report, "half of the way from the shortest to the longest") + &profiles(report)
}

/// A Markdown table with its circumstances.
pub(crate) fn markdown(report: &BenchReport) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
    let mut text = format!("sd-gen {} on {}, {}\n\n", report.version, report.machine.line(), report.date);
    text.push_str(&line(&HEADERS.map(str::to_owned)));
    text.push_str(&line(&HEADERS.map(|_| "---".to_owned())));
    for row in &report.rows {
        text.push_str(&line(&cells(row, range)));
    }
    text.push('\n');
    text.push_str(&legend(report, "the shortest and the longest"));
    let profiles = profiles(report);
    if !profiles.is_empty() {
        text.push_str(&format!("\n```\n{}\n```\n", profiles.trim()));
    }
    text
}

/// One line a combination, numbers unrounded: seconds, bytes, operations a second.
pub(crate) fn csv(report: &BenchReport) -> String {
    let mut header: Vec<String> =
        ["model", "device", "dtype", "vae_dtype", "width", "height", "batch_size", "steps"].map(str::to_owned).to_vec();
    for phase in ["open", "load", "text", "step", "decode", "image"] {
        header.extend(["median", "min", "max"].map(|what| format!("{phase}_{what}")));
    }
    header.extend(
        [
            "step_flop_per_s",
            "step_share",
            "decode_flop_per_s",
            "decode_share",
            "peak_host_bytes",
            "peak_device_bytes",
            "memory_limit_bytes",
            "difference",
            "error",
        ]
        .map(str::to_owned),
    );
    let mut text = header.join(",") + "\r\n";
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for row in &report.rows {
        let mut line = vec![row.model.clone(), row.device.clone(), row.dtype.clone(), row.vae_dtype.clone()];
        line.extend([row.width, row.height, row.batch_size, row.steps].map(|n| n.to_string()));
        for phase in Phase::ALL {
            let timing = row.phases.get(&phase);
            line.extend([timing.map(|t| t.median), timing.map(|t| t.min), timing.map(|t| t.max)].map(number));
        }
        line.extend([row.step_rate(), row.step_share(), row.decode_rate(), row.decode_share()].map(number));
        let bytes = [row.peak_host_bytes, row.peak_device_bytes, row.memory_limit];
        line.extend(bytes.map(|bytes| bytes.map_or(String::new(), |bytes| bytes.to_string())));
        line.push(number(row.difference));
        line.push(row.error.clone().unwrap_or_default());
        text.push_str(&line.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(","));
        text.push_str("\r\n");
    }
    text
}

/// # Source
/// RFC 4180, section 2.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::Machine;
    use super::*;

    #[test]
    fn a_row_with_an_error_is_a_row() {
        let row = BenchRow { model: "a, \"b\"|c".into(), device: "cpu".into(), error: Some("it fails".into()), ..BenchRow::default() };
        let report =
            BenchReport { version: "1".into(), date: "d".into(), machine: Machine::here(), warmups: 1, repeats: 3, rows: vec![row] };
        assert!(aligned(&report).contains("error: it fails"));
        assert!(markdown(&report).contains("\\|c | cpu |"));
        let csv = csv(&report);
        let (header, line) = csv.split_once("\r\n").unwrap_or_default();
        assert!(line.starts_with("\"a, \"\"b\"\"|c\",cpu,"), "{line}");
        assert_eq!(header.split(',').count(), line.replace("\"a, \"\"b\"\"|c\"", "x").split(',').count());
    }
}
