//! Stable Diffusion as a library and a command line.

mod error;
pub mod noise;
pub mod ops;
pub mod schedulers;
pub mod spec;
pub mod weights;

pub use error::{Error, Result};
