//! Stable Diffusion as a library and a command line.

mod error;
pub mod models;
pub mod ops;
pub mod schedulers;
pub mod spec;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
