//! How long an image will take, before one was generated.

use super::flops;
use crate::Result;
use crate::ops::Linear;
use crate::sampling::{Schedule, plan};
use crate::settings::{HiresPass, Request};
use crate::spec::ModelSpec;
use candle_core::{DType, Device, Tensor};
use std::time::Instant;

/// The share of a matrix product's speed that generating reaches, roughly: norms, activations and small products take the rest.
const SHARE: f64 = 0.5;

/// Floating-point operations of one image of a request.
///
/// # Errors
/// The request's schedule cannot be planned.
pub(crate) fn image_flop(spec: &ModelSpec, request: &Request) -> Result<f64> {
    let factor = spec.vae.factor().max(1);
    let denoising = |schedule: &Schedule, (width, height): (usize, usize)| {
        let calls: usize = schedule.steps.iter().map(|step| schedule.evaluations(step)).sum();
        (calls * request.rows()) as f64 * flops::denoiser_row(spec, height / factor, width / factor)
    };
    let mut flop = denoising(&plan(&request.scheduler, request.sampling.steps)?, (request.canvas.width, request.canvas.height));
    if let Some(HiresPass { size, schedule: Some(schedule), .. }) = request.hires_pass()? {
        flop += denoising(&schedule, size);
    }
    let (width, height) = request.last_size();
    Ok(flop + flops::vae_decode(&spec.vae, height / factor, width / factor))
}

/// Operations a second that generating will reach on a device, from a few matrix products.
///
/// # Errors
/// The device has no product in that dtype.
pub(crate) fn generating_speed(device: &Device, dtype: DType) -> Result<f64> {
    const SIDE: usize = 1024;
    let random = || Tensor::randn(0f32, 1f32, (SIDE, SIDE), device)?.to_dtype(dtype);
    let linear = Linear::new(random()?, None)?;
    let x = random()?.unsqueeze(0)?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        device.synchronize()?;
        let start = Instant::now();
        linear.forward(&x)?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(SHARE * 2.0 * (SIDE as f64).powi(3) / best.max(1e-9))
}
