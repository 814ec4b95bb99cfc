//! One error type, sorted by what the user can do about it.
//!
//! Every message is one sentence that says what is wrong, where (flag, file, key) and what to try.

use std::io::ErrorKind;
use std::path::PathBuf;

/// What went wrong; the kind decides the exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bad usage or bad input, found before any work. Exit code 2.
    #[error("{0}")]
    Input(String),
    /// A setting's value is bad, found before any work. Exit code 2.
    #[error("{name}{what}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// The rest of the sentence, with what stands between it and the name.
        what: String,
    },
    /// The model cannot be loaded. Exit code 3.
    #[error("{0}")]
    Model(String),
    /// An image failed although the request and the model were accepted. Exit code 1.
    #[error("{0}")]
    Image(String),
    /// The memory that is free now is too small. Exit code 1.
    #[error("{0}")]
    Memory(String),
    /// A file could not be written or read while work was under way. Exit code 1.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file that was being read or written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor operation failed: a defect of this program or of its backend. Exit code 1.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The user asked to stop. Exit code 130.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input(_) | Error::Setting { .. } => 2,
            Error::Model(_) => 3,
            Error::Image(_) | Error::Memory(_) | Error::Io { .. } | Error::Tensor(_) => 1,
            Error::Cancelled => 130,
        }
    }

    /// About a setting: `what` goes on with its value or with what is wrong.
    pub fn setting(name: &'static str, what: impl Into<String>) -> Self {
        let what: String = what.into();
        let space = if what.starts_with([':', ' ']) { "" } else { " " };
        Error::Setting { name, what: format!("{space}{what}") }
    }

    /// There is too little memory: the same in smaller pieces may work.
    pub fn is_out_of_memory(&self) -> bool {
        let error = match self {
            Error::Memory(_) => return true,
            Error::Tensor(error) => error,
            _ => return false,
        };
        let text = error.to_string().to_lowercase();
        // The last is what a GPU's kernels say of more numbers than they count.
        ["out of memory", "out_of_memory", "no memory for", "failed to allocate", "alloc_failed", "too many for one kernel"]
            .iter()
            .any(|words| text.contains(words))
    }

    /// The machine is too small, full or broken, and nothing is wrong with what was asked for: another time or on another machine the
    /// same may succeed.
    pub fn is_of_machine(&self) -> bool {
        match self {
            // These are about the file's name, which another machine would not like better.
            Error::Io { source, .. } => !matches!(
                source.kind(),
                ErrorKind::AlreadyExists | ErrorKind::InvalidFilename | ErrorKind::IsADirectory | ErrorKind::NotADirectory
            ),
            Error::Tensor(error) => self.is_out_of_memory() || is_of_device(error),
            error => error.is_out_of_memory(),
        }
    }

    /// Wraps a system error with the path that it is about.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

/// A GPU's driver failed, whatever the tensors were.
fn is_of_device(error: &candle_core::Error) -> bool {
    use candle_core::Error as Candle;
    match error {
        Candle::Cuda(_) | Candle::Metal(_) | Candle::Io(_) => true,
        Candle::WithBacktrace { inner, .. } | Candle::Context { inner, .. } | Candle::WithPath { inner, .. } => is_of_device(inner),
        _ => false,
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// "`file` `what`." as a reason why a model cannot be loaded.
pub(crate) fn model_error(file: impl std::fmt::Display, what: impl std::fmt::Display) -> Error {
    Error::Model(format!("{file} {what}"))
}

/// A name from a file as it may be shown: escaped, in quotes, and not endless.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_from_what_was_asked_for() {
        let io = |kind: ErrorKind| Error::io("x")(kind.into());
        let system = |code| Error::io("x")(std::io::Error::from_raw_os_error(code));
        for error in [
            io(ErrorKind::StorageFull),
            io(ErrorKind::FileTooLarge),
            io(ErrorKind::PermissionDenied),
            // Too many open files: here, and anywhere.
            system(24),
            system(23),
            Error::Memory("too small".into()),
            Error::Tensor(candle_core::Error::Msg("no memory for 268 MB of weights".into())),
            Error::Tensor(candle_core::Error::Cuda("the device is gone".into()).bt()),
        ] {
            assert!(error.is_of_machine(), "{error}");
        }
        for error in [
            io(ErrorKind::AlreadyExists),
            io(ErrorKind::InvalidFilename),
            Error::Image("not numbers".into()),
            Error::Tensor(candle_core::Error::Msg("shape mismatch".into())),
        ] {
            assert!(!error.is_of_machine(), "{error}");
        }
    }
}
