//! Where settings are said: flags, configuration files, the lines of batch files, sweeps.

pub(in crate::cli) mod args;
pub(in crate::cli) mod config;
pub(in crate::cli) mod flags;
pub(in crate::cli) mod lines;
pub(in crate::cli) mod recreate;
pub(in crate::cli) mod sweep;
