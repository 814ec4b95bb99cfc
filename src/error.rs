//! One error type, sorted by what the user can do about it.
//!
//! Every message is one sentence that says what is wrong, where (flag, file, key) and what to try.

use std::path::PathBuf;

/// What went wrong; the kind decides the exit code.
#[derive(Debug, thiserror::Error)]
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
            Error::Image(_) | Error::Io { .. } | Error::Tensor(_) => 1,
            Error::Cancelled => 130,
        }
    }

    /// About a setting: `what` goes on with its value or with what is wrong.
    pub fn setting(name: &'static str, what: impl Into<String>) -> Self {
        let what: String = what.into();
        let space = if what.starts_with(':') { "" } else { " " };
        Error::Setting { name, what: format!("{space}{what}") }
    }

    /// The device has too little memory left: the same in smaller pieces may work.
    pub fn is_out_of_memory(&self) -> bool {
        let Error::Tensor(error) = self else { return false };
        let text = error.to_string().to_lowercase();
        // The last is what a GPU's kernels say of more numbers than they count.
        ["out of memory", "out_of_memory", "failed to allocate", "alloc_failed", "too many for one kernel"]
            .iter()
            .any(|words| text.contains(words))
    }

    /// Wraps a system error with the path that it is about.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
