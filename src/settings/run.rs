//! The process: where its files go, and what it shows. Only the command line has a use for these.

use super::{Heading, Setting, SourcePath, Value, ValueKind};
use std::path::PathBuf;

settings! {
    /// Where files go, and what is shown.
    RunSettings, RunDraft, draft.run, by (), of |_| None;

    /// Threads
    threads: maybe usize => Setting {
        name: "threads", short: Some('t'), value: "N", default: "as many as the machine has", heading: Heading::Machine,
        ..Setting::RUN
    };

    /// The most memory to take, such as 6GB: networks take turns, and what does not fit of one is read again at every step
    memory: maybe MemorySize => Setting {
        name: "memory", value: "SIZE", example: "6GB", default: "what is free", heading: Heading::Machine, ..Setting::RUN
    };

    /// A file, or a template such as "{date}/{seed}-{prompt:.40}.png"; "-" is standard output
    output: maybe String => Setting { name: "output", short: Some('o'), value: "FILE", ..Setting::FILE };

    /// Where images go
    output_dir: maybe PathBuf => Setting {
        name: "output-dir", hidden_aliases: &["outpath-samples"], value: "DIR", default: "here", ..Setting::FILE
    };

    /// Replace existing files
    overwrite: one bool = |()| false => Setting { name: "overwrite", ..Setting::FILE };

    /// Final latents as safetensors, f32, unscaled
    save_latents: maybe PathBuf => Setting { name: "save-latents", value: "FILE", ..Setting::FILE };

    /// How progress is shown on standard error: auto (a bar on a terminal), bar, json (one event a line) or none
    progress: one ProgressStyle = |()| ProgressStyle::Auto => Setting {
        name: "progress", value: "STYLE", default: "auto", words: || ProgressStyle::NAMES.iter().map(|(name, _)| *name).collect(),
        ..Setting::RUN
    };

    /// Draw the image in the terminal as it forms, and when it is finished: by the terminal's protocol, or by kitty, iterm2, sixel, blocks or blocks256
    preview: maybe PreviewStyle => Setting {
        name: "preview", value: "HOW", bare: true, words: || Graphics::NAMES.iter().map(|(name, _)| *name).collect(), ..Setting::RUN
    };

    /// Preview with a tiny autoencoder: taesd_decoder.safetensors, taesdxl_decoder.safetensors, or a folder of one
    taesd: maybe SourcePath => Setting { name: "taesd", aliases: &["tae"], value: "FILE", requires: Some("preview"), ..Setting::RUN };

    /// Only errors, and the images' paths
    quiet: one bool = |()| false => Setting { name: "quiet", short: Some('q'), conflicts: &["verbose"], ..Setting::RUN };

    /// Decisions and their reasons; -vv: files and timings; -vvv: every step; see SD_GEN_LOG
    verbose: one Verbosity = |()| Verbosity(0) => Setting { name: "verbose", short: Some('v'), conflicts: &["quiet"], ..Setting::RUN };
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the setting's help says it")]
pub enum ProgressStyle {
    Auto,
    Bar,
    Json,
    None,
}

impl ProgressStyle {
    /// Every style by its name.
    pub const NAMES: &[(&str, ProgressStyle)] =
        &[("auto", ProgressStyle::Auto), ("bar", ProgressStyle::Bar), ("json", ProgressStyle::Json), ("none", ProgressStyle::None)];
}

/// How a terminal takes images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphics {
    /// kitty, Ghostty.
    Kitty,
    /// iTerm2, WezTerm, mintty.
    Iterm2,
    /// xterm -ti vt340, foot, mlterm, Windows Terminal.
    Sixel,
    /// Any terminal with 24-bit colours: two pixels a character.
    Blocks,
    /// Any terminal with 256 colours.
    Blocks256,
}

impl Graphics {
    /// Every protocol by its name.
    pub const NAMES: &[(&str, Graphics)] = &[
        ("kitty", Graphics::Kitty),
        ("iterm2", Graphics::Iterm2),
        ("sixel", Graphics::Sixel),
        ("blocks", Graphics::Blocks),
        ("blocks256", Graphics::Blocks256),
    ];
}

/// How images are previewed; `None` is as the terminal takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviewStyle(pub Option<Graphics>);

/// How often `verbose` was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verbosity(pub u8);

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(pub u64);

/// Units of memory as they are typed.
const UNITS: [(&str, u64); 12] = [
    ("tb", 1_000_000_000_000),
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("g", 1_000_000_000),
    ("m", 1_000_000),
    ("k", 1_000),
    ("b", 1),
];

impl Value for MemorySize {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "give a size such as 6GB, 512MB or 4GiB".to_owned();
        let text = text.trim().to_ascii_lowercase();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim_start() {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
        // Beyond 2^53 a byte is less than what the number tells.
        if (1.0..9e15).contains(&bytes) { Ok(Self(bytes.round() as u64)) } else { Err(wrong()) }
    }

    fn typed(&self) -> String {
        let whole = [("GB", 1_000_000_000), ("GiB", 1 << 30), ("MB", 1_000_000), ("MiB", 1 << 20)];
        match whole.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", self.0 / unit),
            None => format!("{}B", self.0),
        }
    }
}

/// The value of a name.
fn named<T: Copy>(names: &[(&'static str, T)], text: &str) -> Result<T, String> {
    let names_of = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| format!("there are {}", names_of()))
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, known)| known == value).map_or("", |(name, _)| name)
}

words!(ProgressStyle, |text| named(ProgressStyle::NAMES, text), |style| name_of(ProgressStyle::NAMES, style));

impl Value for PreviewStyle {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(PreviewStyle(None)),
            _ => named(Graphics::NAMES, text).map(|graphics| PreviewStyle(Some(graphics))),
        }
    }

    fn typed(&self) -> String {
        self.0.map_or("true", |graphics| name_of(Graphics::NAMES, &graphics)).into()
    }
}

impl Value for Verbosity {
    const KIND: ValueKind = ValueKind::Count;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Verbosity).map_err(|_| "give true or false".into())
    }

    fn typed(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory_are_read_and_typed() {
        for (text, bytes, typed) in [
            ("6GB", 6_000_000_000, "6GB"),
            ("2.5 gb", 2_500_000_000, "2500MB"),
            ("4GiB", 4 << 30, "4GiB"),
            ("512m", 512_000_000, "512MB"),
            ("1000001", 1_000_001, "1000001B"),
        ] {
            assert_eq!(MemorySize::parse(text), Ok(MemorySize(bytes)), "{text}");
            assert_eq!((MemorySize(bytes).typed().as_str(), MemorySize::parse(typed)), (typed, Ok(MemorySize(bytes))));
        }
        for text in ["", "GB", "6 apples", "-1GB", "0", "1e9", "1.2.3GB", "99999999999TB", "NaN"] {
            assert!(MemorySize::parse(text).is_err(), "{text}");
        }
    }
}
