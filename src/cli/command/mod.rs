//! The commands, a file each.

pub(in crate::cli) mod batch;
pub(in crate::cli) mod bench;
pub(in crate::cli) mod completions;
pub(in crate::cli) mod convert;
pub(in crate::cli) mod devices;
pub(in crate::cli) mod doctor;
pub(in crate::cli) mod generate;
pub(in crate::cli) mod inspect;
pub(in crate::cli) mod models;
pub(in crate::cli) mod output;
pub(in crate::cli) mod preprocess;
#[cfg(feature = "serve")]
pub(in crate::cli) mod serve;
pub(in crate::cli) mod upscale;
