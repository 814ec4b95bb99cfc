//! Stable Diffusion as a library: a model becomes a pipeline, a pipeline generates what a draft says.
//!
//! ```
//! use sd_gen::{device::DeviceChoice, pipeline::Pipeline, settings::Draft};
//!
//! let draft = Draft::new("a red apple").with(|draft| draft.sampling.steps = Some(2));
//! let images = Pipeline::open("models/emoji")?.device(DeviceChoice::Cpu).build()?.generate(&draft)?;
//! assert_eq!(images[0].image.dimensions(), (128, 128));
//! # Ok::<(), sd_gen::Error>(())
//! ```
//!
//! What the draft leaves open is decided by the model ([`settings::Draft::resolve`]). Whoever wants to hear of every step, to
//! stop it, or to generate several requests at once encodes and generates by hand: [`pipeline::Pipeline::encode_prompt`],
//! [`pipeline::Pipeline::generate_batch`].
//!
//! `tests/architecture.rs` holds which module may use which; `ARCHITECTURE.md` tells why.

pub mod adapter;
#[cfg(feature = "cli")]
mod batch;
#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod device;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the program uses more of it"))]
mod disk;
mod error;
#[doc(hidden)]
pub mod extension;
pub mod family;
mod guidance;
pub mod hub;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the program uses more of it"))]
mod image;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the program uses more of it"))]
mod inputs;
pub mod metadata;
#[doc(hidden)]
pub mod models;
mod noise;
#[doc(hidden)]
pub mod ops;
pub mod pipeline;
pub mod prompt;
pub mod sampling;
#[cfg(feature = "serve")]
mod server;
pub mod settings;
#[cfg(feature = "cli")]
mod sheet;
pub mod spec;
pub mod survey;
#[doc(hidden)]
pub mod text;
pub mod weights;

/// The crate of the images that are generated.
pub use ::image as image_crate;
pub use candle_core;
pub use error::{Error, Result};
