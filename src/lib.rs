//! Stable Diffusion as a library: a checkpoint becomes a pipeline, a pipeline generates requests.
//!
//! ```no_run
//! use sd_gen::{candle_core::{DType, Device}, pipeline::{Pipeline, Silent, BatchItem}, settings::Draft, weights::Checkpoint};
//!
//! let checkpoint = Checkpoint::open("models/emoji".as_ref())?;
//! let pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32, DType::F32, &mut Silent)?;
//! let request = Draft::new("a red apple").resolve(pipeline.spec())?;
//! let prompt = pipeline.encode_prompt(&request, &mut Silent)?;
//! let seeds: Vec<u64> = request.seeds().collect();
//! for generated in pipeline.generate(&BatchItem::of_seeds(&request, &prompt, &seeds), &mut Silent)? {
//!     generated.image.save(format!("apple-{}.png", generated.seed)).map_err(|e| sd_gen::Error::Image(e.to_string()))?;
//! }
//! # Ok::<(), sd_gen::Error>(())
//! ```
//!
//! The dependencies point one way:
//!
//! ```text
//! main → cli → {batch, bench} → pipeline → weights → spec → {models, text} → ops
//!                                  └→ sampling, settings, noise, image, metadata, disk      error: leaf
//!   └→ hub → weights
//! ```

pub mod adapter;
pub mod allocator;
pub mod batch;
pub mod bench;
pub mod cli;
pub mod device;
pub mod disk;
mod error;
pub mod extension;
pub mod family;
pub mod guidance;
pub mod hub;
pub mod image;
pub mod inputs;
pub mod metadata;
pub mod models;
pub mod noise;
pub mod ops;
pub mod pipeline;
pub mod prompt;
pub mod sampling;
pub mod settings;
pub mod sheet;
pub mod spec;
pub mod survey;
pub mod text;
pub mod weights;

pub use candle_core;
pub use error::{Error, Result};
