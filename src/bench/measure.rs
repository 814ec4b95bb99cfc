//! One combination, phase by phase.

use super::report::{BenchRow, Phase, Profile, Timing};
use super::{flops, memory};
use crate::device;
use crate::ops::{Linear, profiled, with_reference};
use crate::pipeline::{BatchItem, Observer, Pipeline, SharedModel, Stage};
use crate::sampling::TimestepSpacing;
use crate::settings::{BatchSize, Draft, Request, Seed};
use crate::spec::ModelSpec;
use crate::weights::{Component, ModelSource};
use crate::{Error, Result};
use candle_core::{DType, Device, DeviceLocation, Tensor};
use std::time::Instant;

/// Guidance is on whatever the model: two rows an image, so that models can be compared.
const GUIDANCE_SCALE: f64 = 7.5;
const SEED: u64 = 1;

/// Opens a model anew.
type Opener<'a> = dyn Fn() -> Result<SharedModel> + 'a;

/// What is measured.
pub(crate) struct Subject<'a> {
    /// How it is called in the rows.
    pub name: String,
    /// Opens it; the phase [`Phase::Open`].
    pub open: Box<Opener<'a>>,
    /// Its weights are made, not read: loading it says nothing, and is done once.
    pub made: bool,
}

/// One combination.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Where it computes.
    pub device: Device,
    /// What UNet and text encoders compute in.
    pub dtype: DType,
    /// Width and height in pixels; the model's own where absent.
    pub size: Option<(usize, usize)>,
    /// Images at once.
    pub batch_size: usize,
}

/// How often, and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeasureSettings {
    /// Steps of the whole image.
    pub steps: usize,
    /// Runs of each phase before those that count.
    pub warmups: usize,
    /// Runs that count.
    pub repeats: usize,
    /// One more guided step and one more decode, op by op.
    pub profile: bool,
    /// One network is in memory at a time, and of it what fits.
    pub low_memory: bool,
}

fn request(spec: &ModelSpec, size: Option<(usize, usize)>, batch_size: usize, steps: usize) -> Result<Request> {
    let draft = Draft::new("a lighthouse at dusk").with(|draft| {
        draft.seed = Some(Seed::Is(SEED));
        draft.text.negative_prompt = Some("blurry".to_owned());
        draft.set_size(size);
        draft.sampling.steps = Some(steps);
        draft.guidance.scale = Some(GUIDANCE_SCALE);
        draft.scheduler.sampler = Some("euler".to_owned());
        // A single step then begins in pure noise, where the network decides all of the image.
        draft.scheduler.timestep_spacing = Some(TimestepSpacing::Trailing);
        draft.output.images = Some(batch_size);
        draft.output.batch_size = Some(BatchSize(Some(batch_size)));
    });
    draft.resolve(spec)
}

/// Whether a model can be asked for such an image at all.
///
/// # Errors
/// The size, the batch or the steps are out of their range.
pub(crate) fn check_size(spec: &ModelSpec, size: Option<(usize, usize)>, batch_size: usize, steps: usize) -> Result<()> {
    request(spec, size, batch_size, steps).map(drop)
}

/// The image after one guided step from the portable ops in f32 on the CPU, `(1, 3, height, width)`.
///
/// # Errors
/// The model cannot be loaded, or the observer stops it.
pub(crate) fn reference_image(subject: &Subject<'_>, size: Option<(usize, usize)>, observer: &mut dyn Observer) -> Result<Tensor> {
    with_reference(|| one_step_image(subject, size, (&Device::Cpu, DType::F32), observer))
}

/// How far the image after one guided step is from [`reference_image`]'s, as [`BenchRow::difference`] says it.
///
/// # Errors
/// The model cannot be loaded, a value stops being finite, or the observer stops it.
pub(crate) fn distance_of_one_step(
    subject: &Subject<'_>,
    place: (&Device, DType),
    size: Option<(usize, usize)>,
    reference: &Tensor,
    observer: &mut dyn Observer,
) -> Result<f64> {
    difference(&one_step_image(subject, size, place, observer)?, reference)
}

fn one_step_image(
    subject: &Subject<'_>,
    size: Option<(usize, usize)>,
    (device, dtype): (&Device, DType),
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    let model = (subject.open)()?;
    let pipeline = Pipeline::load(&*model, device, dtype, model.spec().vae.dtype_beside(dtype), observer)?;
    let request = request(model.spec(), size, 1, 1)?;
    let prompt = pipeline.encode_prompt(&request, observer)?;
    let latents = pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, &[SEED]), observer)?;
    observer.stage(Stage::Decode { done: 0, all: 1 })?;
    pipeline.decode(&latents)
}

/// Measures a combination into `row`, which keeps what was measured when an error ends it.
///
/// `reference` is [`reference_image`]'s for the same subject and size, where it is wanted.
///
/// # Errors
/// [`Error::Cancelled`] alone; every other error is written into the row.
pub(crate) fn measure(
    subject: &Subject<'_>,
    case: &Case,
    settings: MeasureSettings,
    reference: Option<&Tensor>,
    peaks: &mut PeakRates,
    observer: &mut dyn Observer,
) -> Result<BenchRow> {
    let mut row = BenchRow {
        model: subject.name.clone(),
        device: device::place(&case.device),
        dtype: case.dtype.as_str().to_owned(),
        batch_size: case.batch_size,
        steps: settings.steps,
        ..BenchRow::default()
    };
    (row.width, row.height) = case.size.unwrap_or_default();
    match fill(&mut row, subject, case, settings, reference, peaks, observer) {
        Err(Error::Cancelled) => return Err(Error::Cancelled),
        Err(error) => row.error = Some(error.to_string()),
        Ok(()) => {}
    }
    Ok(row)
}

fn fill(
    row: &mut BenchRow,
    subject: &Subject<'_>,
    case: &Case,
    settings: MeasureSettings,
    reference: Option<&Tensor>,
    peaks: &mut PeakRates,
    observer: &mut dyn Observer,
) -> Result<()> {
    let clock = Clock { device: &case.device, settings };
    let can_reset = memory::reset_peak();
    device::reset_peak(&case.device);
    let model = clock.time(row, Phase::Open, observer, |_| (subject.open)())?;
    let spec = model.spec();
    let vae_dtype = spec.vae.dtype_beside(case.dtype);
    row.vae_dtype = vae_dtype.as_str().to_owned();
    let whole = request(spec, case.size, case.batch_size, settings.steps)?;
    let one_step = request(spec, case.size, case.batch_size, 1)?;
    (row.width, row.height) = (whole.canvas.width, whole.canvas.height);
    let factor = spec.vae.factor();
    let (height, width) = (whole.canvas.height / factor, whole.canvas.width / factor);
    row.step_flop = 2.0 * case.batch_size as f64 * flops::denoiser_row(spec, height, width);
    row.decode_flop = case.batch_size as f64 * flops::vae_decode(&spec.vae, height, width);

    let once = MeasureSettings { warmups: 0, repeats: 1, ..settings };
    let loading = Clock { settings: if subject.made { once } else { settings }, ..clock };
    let in_turn = settings.low_memory || is_too_large(&*model, case);
    let load = |observer: &mut dyn Observer| match in_turn {
        true => Pipeline::in_turn(model.clone(), &case.device, case.dtype, vae_dtype),
        false => Pipeline::load(&*model, &case.device, case.dtype, vae_dtype, observer),
    };
    row.memory_limit = device::memory_limit();
    let pipeline = loading.time(row, Phase::Load, observer, load)?;
    let prompt = clock.time(row, Phase::Text, observer, |observer| pipeline.encode_prompt(&one_step, observer))?;
    let seeds: Vec<u64> = one_step.seeds().collect();
    let batch = BatchItem::of_seeds(&one_step, &prompt, &seeds);
    let latents = clock.time(row, Phase::Step, observer, |observer| pipeline.denoise(&batch, observer))?;
    let decoded = clock.time(row, Phase::Decode, observer, |observer| {
        observer.stage(Stage::Decode { done: 0, all: 1 })?;
        let images = (0..seeds.len()).map(|i| pipeline.decode(&latents.narrow(0, i, 1)?));
        images.collect::<Result<Vec<_>>>()
    })?;
    if let (Some(reference), Some(image)) = (reference, decoded.first()) {
        row.difference = Some(difference(image, reference)?);
    }
    drop((latents, decoded));
    clock.time(row, Phase::Image, observer, |observer| {
        let prompt = pipeline.encode_prompt(&whole, observer)?;
        pipeline.generate_batch(&BatchItem::of_seeds(&whole, &prompt, &seeds), observer)
    })?;
    row.peak_host_bytes = can_reset.then(memory::peak).flatten();
    row.peak_device_bytes = device::peak(&case.device);
    drop(pipeline);
    row.matrix_peak = peaks.of(&case.device, case.dtype)?;
    row.vae_matrix_peak = peaks.of(&case.device, vae_dtype)?;
    Ok(())
}

/// Whether a model's weights are more than the memory that is free.
fn is_too_large(model: &dyn ModelSource, case: &Case) -> bool {
    let numbers: u64 = Component::ALL.into_iter().filter_map(|component| model.parameters(component)).sum();
    device::free_memory(&case.device).is_some_and(|free| numbers * case.dtype.size_in_bytes() as u64 > free)
}

/// Mean absolute difference over the reference's standard deviation.
fn difference(image: &Tensor, reference: &Tensor) -> Result<f64> {
    let values = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (image, reference) = (values(image)?, values(reference)?);
    let n = reference.len().max(1) as f64;
    let mean = reference.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let deviation = (reference.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let apart = image.iter().zip(&reference).map(|(&a, &b)| f64::from(a - b).abs()).sum::<f64>() / n;
    // An image of one colour has nothing to compare with but itself.
    Ok(if deviation > 0.0 { apart / deviation } else { apart })
}

#[derive(Clone, Copy)]
struct Clock<'a> {
    device: &'a Device,
    settings: MeasureSettings,
}

impl Clock<'_> {
    /// Times `work` and gives what its last run made.
    fn time<T>(
        &self,
        row: &mut BenchRow,
        phase: Phase,
        observer: &mut dyn Observer,
        mut work: impl FnMut(&mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let mut once = || -> Result<(f64, T)> {
            self.device.synchronize()?;
            let start = Instant::now();
            let made = work(observer)?;
            self.device.synchronize()?;
            Ok((start.elapsed().as_secs_f64(), made))
        };
        // What a run made is dropped before the next begins: two models need not fit into the memory at once.
        for _ in 0..self.settings.warmups {
            once()?;
        }
        let mut samples = Vec::new();
        for _ in 1..self.settings.repeats {
            samples.push(once()?.0);
        }
        let (seconds, made) = once()?;
        samples.push(seconds);
        row.phases.extend(Timing::of(samples).map(|timing| (phase, timing)));
        if self.settings.profile && matches!(phase, Phase::Step | Phase::Decode) {
            drop(made);
            let (run, ops) = profiled(once);
            let (seconds, made) = run?;
            row.profiles.insert(phase, Profile { seconds, ops });
            return Ok(made);
        }
        Ok(made)
    }
}

/// The matrix peaks that were measured already.
#[derive(Debug, Default)]
pub(crate) struct PeakRates(Vec<(DeviceLocation, DType, Option<f64>)>);

impl PeakRates {
    /// The operations a second of a large matrix product; `None` where the device has no product in that dtype.
    fn of(&mut self, device: &Device, dtype: DType) -> Result<Option<f64>> {
        let known = self.0.iter().find(|(location, of, _)| *location == device.location() && *of == dtype);
        if let Some((_, _, peak)) = known {
            return Ok(*peak);
        }
        // What cannot be measured is absent, and takes nothing from the rest of the row.
        let peak = matrix_peak(device, dtype).ok();
        self.0.push((device.location(), dtype, peak));
        Ok(peak)
    }
}

/// The best of several sizes: a small product is over before all threads are awake, a large one may leave the caches.
fn matrix_peak(device: &Device, dtype: DType) -> Result<f64> {
    const SIDES: [usize; 4] = [1024, 2048, 4096, 8192];
    // Seconds after which a larger product can show nothing new.
    const LONG_ENOUGH: f64 = 0.05;
    let mut peak = 0f64;
    for side in SIDES {
        let random = || Tensor::randn(0f32, 1f32, (side, side), device)?.to_dtype(dtype);
        let linear = Linear::new(random()?, None)?;
        let x = random()?.unsqueeze(0)?;
        let mut best = f64::INFINITY;
        // The first run warms up; the best of the others is nearest to what the machine can do.
        for _ in 0..8 {
            device.synchronize()?;
            let start = Instant::now();
            linear.forward(&x)?;
            device.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        peak = peak.max(2.0 * (side as f64).powi(3) / best);
        if best >= LONG_ENOUGH {
            break;
        }
    }
    Ok(peak)
}
