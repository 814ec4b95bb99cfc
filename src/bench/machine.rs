//! What the program knows of the machine that it runs on.

use serde::{Deserialize, Serialize};

/// A machine, as far as it matters to a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that the program may use.
    pub cores: usize,
    /// Threads that it uses.
    pub threads: usize,
    /// The instruction set that the fast paths use.
    pub instructions: String,
    /// Memory in bytes, where the system says so.
    pub memory_bytes: Option<u64>,
    /// Operating system and its release.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cpu = value(&read("/proc/cpuinfo"), "model name");
        let memory = value(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let release = read("/proc/sys/kernel/osrelease");
        Self {
            cpu: cpu.unwrap_or_else(|| format!("unnamed {} processor", std::env::consts::ARCH)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            instructions: crate::ops::cpu_instructions().unwrap_or("unknown").to_owned(),
            memory_bytes: memory.map(|kilobytes| kilobytes * 1024),
            os: format!("{} {release}", std::env::consts::OS).trim().to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    /// A short name that can be a folder's.
    pub(crate) fn slug(&self) -> String {
        let mut slug = String::new();
        for c in format!("{} {} threads", self.cpu, self.threads).chars() {
            match c.is_ascii_alphanumeric() {
                true => slug.push(c.to_ascii_lowercase()),
                false if slug.ends_with('-') || slug.is_empty() => {}
                false => slug.push('-'),
            }
        }
        slug
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let memory = self.memory_bytes.map_or(String::new(), |bytes| format!(", {:.0} GB of memory", bytes as f64 / 1e9));
        format!("{}, {} threads on {} cores, {}{memory}, {}", self.cpu, self.threads, self.cores, self.instructions, self.os)
    }
}
