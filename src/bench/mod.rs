//! Measures what generating costs: the time of every phase, memory, the share of what the machine can do, and how far the
//! image is from the reference path's.
//!
//! A [`Subject`] is what is measured, a [`Case`] one combination of it with device, dtype, size and batch, and a [`BenchRow`] what came
//! out, be it an error. Nothing here prints, and nothing is quoted from elsewhere: the machine's matrix peak is measured too.
//!
//! Counts of operations come from the spec (`flops`), and full-size models without a file from [`RandomModel`].

mod compare;
mod estimate;
mod flops;
mod likeness;
mod machine;
mod measure;
mod memory;
mod plot;
mod random_model;
mod record;
mod report;
mod table;

pub(crate) use compare::compare;
pub(crate) use estimate::{generating_speed, image_flop};
pub(crate) use likeness::{psnr, ssim};
pub(crate) use machine::Machine;
pub(crate) use measure::{Case, MeasureSettings, PeakRates, Subject, check_size, distance_of_one_step, measure, reference_image};
pub(crate) use random_model::RandomModel;
pub(crate) use record::record;
pub(crate) use report::{BenchReport, BenchRow};
pub(crate) use table::{aligned, csv, markdown};
