//! `--sweep guidance-scale=4,6,8 --sweep seed=1..16`: every line with every combination of values. A sweep's values are flags too: they
//! are laid over those of the line.

use crate::cli::settings::flags::{Flags, GENERATION, varies};
use crate::cli::settings::lines::{Line, LineError, Lines, cells_of, values_of};
use crate::settings::ValueKind;
use crate::{Error, Result};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// Values of one sweep; a range of more is a slip of the hand.
const MOST_VALUES: usize = 100_000;

/// One `--sweep`: a flag and the values that it takes in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct SweepAxis {
    /// The flag's own name, without dashes.
    pub(in crate::cli) name: String,
    /// The values as they were written.
    pub(in crate::cli) labels: Vec<String>,
    flag: usize,
    values: Vec<Vec<OsString>>,
}

impl SweepAxis {
    /// Reads `flag=value,value`, ranges `1..16` and `1..16:5`, and `flag=@file` with a value a line.
    ///
    /// # Errors
    /// An unknown flag, a value that it does not take, or a file that cannot be read.
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        let (name, list) = text.split_once('=').ok_or("give a flag and its values, such as steps=10,20,30")?;
        let flag = GENERATION.find(name)?;
        varies(flag)?;
        let known = &GENERATION.flags[flag];
        let labels = match list.strip_prefix('@') {
            Some(path) => values_of(Path::new(path), MOST_VALUES).map_err(|e| e.to_string())?,
            None => listed(list, known.kind)?,
        };
        if labels.is_empty() {
            return Err(format!("{} has no values; give some, such as steps=10,20,30", known.long));
        }
        if labels.len() > MOST_VALUES {
            return Err(format!("{} has more than {MOST_VALUES} values; give fewer", known.long));
        }
        let read = |label: &String| match label.as_str() {
            // Without any: `lora=,style.safetensors` compares with and without.
            "" if known.repeatable => Ok(Vec::new()),
            "none" if known.kind == ValueKind::File => Ok(Vec::new()),
            _ => GENERATION.read(flag, std::slice::from_ref(label)).map_err(|(_, what)| what),
        };
        let values = labels.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { name: known.long.clone(), labels, flag, values })
    }
}

/// The values of a list, ranges written out.
fn listed(list: &str, kind: ValueKind) -> Result<Vec<String>, String> {
    if list.is_empty() {
        return Ok(vec![String::new()]);
    }
    let cells =
        cells_of(list, b',').ok_or_else(|| format!("{list}: a quote is never closed, or there is a line break outside of quotes"))?;
    let mut values = Vec::new();
    for cell in cells {
        let cell = cell.trim();
        match cell.split_once("..") {
            Some((first, rest)) if matches!(kind, ValueKind::Whole | ValueKind::Number) => values.extend(range(cell, first, rest, kind)?),
            _ => values.push(cell.to_owned()),
        }
    }
    Ok(values)
}

/// A decimal number without rounding: its digits, and how many of them are behind the point.
fn decimal(text: &str) -> Option<(i128, usize)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    // More digits would overflow once they are brought to one scale.
    let plain = whole.len() <= 20 && fraction.len() <= 6 && !whole.is_empty();
    plain.then(|| format!("{whole}{fraction}").parse().ok()).flatten().map(|digits| (digits, fraction.len()))
}

fn range(cell: &str, first: &str, rest: &str, kind: ValueKind) -> Result<Vec<String>, String> {
    let (last, step) = rest.split_once(':').map_or((rest, None), |(last, step)| (last, Some(step)));
    let wrong = |why: &str| format!("the range {cell}: {why}");
    if kind == ValueKind::Number && step.is_none() {
        return Err(wrong("give a step for numbers with a fraction, such as 4..8:0.5"));
    }
    let parts = [first, last, step.unwrap_or("1")].map(|text| decimal(text.trim()));
    let [Some(first), Some(last), Some(step)] = parts else {
        return Err(wrong("give it as 1..16, or with a step as 1..16:5"));
    };
    let scale = first.1.max(last.1).max(step.1);
    let [first, last, step] = [first, last, step].map(|(digits, behind)| digits * 10i128.pow((scale - behind) as u32));
    if step <= 0 {
        return Err(wrong("the step must be more than 0; a range from high to low counts down by itself"));
    }
    let count = (last - first).abs() / step + 1;
    if count > MOST_VALUES as i128 {
        return Err(wrong(&format!("these are {count} values; at most {MOST_VALUES} are taken")));
    }
    let value = |n: i128| {
        let digits = first + n * step * (last - first).signum();
        let sign = if digits < 0 { "-" } else { "" };
        let one = 10i128.pow(scale as u32);
        let fraction = format!("{:0scale$}", digits.abs() % one);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{sign}{}{point}{fraction}", digits.abs() / one)
    };
    Ok((0..count).map(value).collect())
}

/// Several sweeps together, checked against each other.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Sweep {
    pub(in crate::cli) axes: Arc<[SweepAxis]>,
}

impl Sweep {
    /// # Errors
    /// Two sweeps set the same, or conflict.
    pub(in crate::cli) fn new(axes: Vec<SweepAxis>) -> Result<Self> {
        for (at, axis) in axes.iter().enumerate() {
            for before in &axes[..at] {
                if before.flag == axis.flag {
                    return Err(Error::Input(format!("--sweep {}: is given twice; put all values into one list", axis.name)));
                }
                if GENERATION.flags[axis.flag].rivals.contains(&before.flag) {
                    return Err(Error::Input(format!("--sweep {}: does not go with --sweep {}; give one of them", axis.name, before.name)));
                }
            }
        }
        Ok(Self { axes: axes.into() })
    }

    /// Combinations of all values; 1 without any sweep.
    pub(in crate::cli) fn points(&self) -> usize {
        self.axes.iter().fold(1, |product, axis| product.saturating_mul(axis.labels.len()))
    }

    /// The flags of the first combination. Below a line it lets the line do without what the sweep will set, its prompt above all.
    pub(in crate::cli) fn first(&self) -> Flags {
        self.flags(&vec![0; self.axes.len()])
    }

    fn flags(&self, at: &[usize]) -> Flags {
        let mut flags = Flags::default();
        for (axis, &value) in self.axes.iter().zip(at) {
            flags.set(axis.flag, axis.values[value].clone());
        }
        flags
    }

    /// Every line once for every combination.
    pub(in crate::cli) fn over(self, lines: Lines) -> impl Iterator<Item = Result<Line, LineError>> {
        lines.flat_map(move |line| -> Box<dyn Iterator<Item = Result<Line, LineError>>> {
            match line {
                Ok(line) if self.axes.is_empty() => Box::new(std::iter::once(Ok(line))),
                Ok(line) => Box::new(self.expand(line)),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        })
    }

    /// The line once for every combination, the last sweep's values changing fastest; `at` of [`Line::swept`] says which.
    fn expand(&self, line: Line) -> impl Iterator<Item = Result<Line, LineError>> + use<> {
        let sweep = self.clone();
        (0..self.points()).map(move |point| {
            let mut rest = point;
            let mut at = vec![0; sweep.axes.len()];
            for (axis, at) in sweep.axes.iter().zip(&mut at).rev() {
                *at = rest % axis.labels.len();
                rest /= axis.labels.len();
            }
            let labels = sweep.axes.iter().zip(&at).map(|(axis, value)| (axis.name.clone(), axis.labels[*value].clone())).collect();
            line.swept(&sweep.flags(&at), at, labels)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<String> {
        SweepAxis::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).labels
    }

    #[test]
    fn lists_and_ranges_are_written_out() {
        assert_eq!(labels("guidance-scale=4,6, 7.50"), ["4", "6", "7.50"]);
        assert_eq!(labels("seed=1..4,10"), ["1", "2", "3", "4", "10"]);
        assert_eq!(labels("steps=1..16:5"), ["1", "6", "11", "16"]);
        assert_eq!(labels("steps=3..1"), ["3", "2", "1"]);
        assert_eq!(labels("cfg_scale=1..2:0.25"), ["1", "1.25", "1.5", "1.75", "2"]);
        assert_eq!(labels("seed=-1..1"), ["-1", "0", "1"]);
        assert_eq!(labels("prompt=\"a cat, sitting\",\"a \"\"dog\"\"\",1..3"), ["a cat, sitting", "a \"dog\"", "1..3"]);
        assert_eq!(labels("negative-prompt=,blurry"), ["", "blurry"]);
        assert_eq!(labels("zero-snr=true,false"), ["true", "false"]);
        assert_eq!(SweepAxis::parse("cfg=1,2").unwrap().name, "guidance-scale");
    }

    #[test]
    fn errors_name_the_axis_and_the_value() {
        for (text, said) in [
            ("steps", "give a flag and its values, such as steps=10,20,30"),
            ("stpes=1", "there is no setting \"stpes\"; did you mean \"steps\"?"),
            ("steps=", "--steps \"\": give a whole number such as 20"),
            ("steps=10,abc", "--steps \"abc\": give a whole number such as 20"),
            ("steps=1..x", "the range 1..x: give it as 1..16, or with a step as 1..16:5"),
            ("steps=1..5:0", "the range 1..5:0: the step must be more than 0; a range from high to low counts down by itself"),
            ("cfg=1..5", "the range 1..5: give a step for numbers with a fraction, such as 4..8:0.5"),
            ("seed=1..10000000", "the range 1..10000000: these are 10000000 values; at most 100000 are taken"),
            ("prompt=\"a", "\"a: a quote is never closed, or there is a line break outside of quotes"),
            ("threads=1,2", "--threads is for the whole run; give it on the command line"),
            ("rng=torch-gpu", "--rng \"torch-gpu\": "),
        ] {
            let error = SweepAxis::parse(text).unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
        let axes = |texts: &[&str]| Sweep::new(texts.iter().map(|text| SweepAxis::parse(text).unwrap()).collect());
        assert!(axes(&["steps=1", "num-inference-steps=2"]).unwrap_err().to_string().contains("given twice"));
        assert!(axes(&["size=64x64", "width=64"]).unwrap_err().to_string().contains("does not go with --sweep size"));
    }

    #[test]
    fn values_are_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts");
        std::fs::write(&path, "\u{feff}a cat, \"quoted\"\r\n\n# not this\na dog --steps 5\n").unwrap();
        assert_eq!(labels(&format!("prompt=@{}", path.display())), ["a cat, \"quoted\"", "a dog --steps 5"]);
        assert!(SweepAxis::parse("prompt=@/no/such/file").unwrap_err().contains("/no/such/file"));
        std::fs::write(&path, b"a\n\xff\n").unwrap();
        assert!(SweepAxis::parse(&format!("prompt=@{}", path.display())).unwrap_err().contains(":2:1: byte 1"));
    }
}
