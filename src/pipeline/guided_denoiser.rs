//! The network as a [`Denoiser`]: scaling, the rows that guidance wants, what works beside the loop, and what the output means.

use super::BatchItem;
use super::finite::Checks;
use super::prompt::BatchConditioning;
use super::self_attention::SelfAttention;
use crate::extension::{Extension, RunContext};
use crate::guidance::{AdaptiveProjected, ClassifierFree, Conjunction, GuidanceScales, Guider, InstructionEdit, LeftOut, Projection};
use crate::models::{Backbone, Kept, ModelOutput};
use crate::ops::Wrap;
use crate::sampling::{Branch, Branches, CallPoint, Denoised, Denoiser, NoiseLevel, Schedule, Step};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

pub(super) struct GuidedDenoiser<'a> {
    backbone: &'a dyn Backbone,
    dtype: DType,
    schedule: &'a Schedule,
    guider: Box<dyn Guider>,
    self_attention: Option<SelfAttention>,
    conditioning: BatchConditioning<'a>,
    /// The guidance scale less 1 of each image, where the network is told it.
    embedded: Option<Vec<f64>>,
    extensions: Vec<Box<dyn Extension>>,
    /// The estimates of the branches are wanted beside the guided one.
    keeps_branches: bool,
    checks: &'a Checks,
    step: Option<Step>,
    /// Calls of the network until now.
    calls: usize,
    before: StepsBefore,
    wrap: Wrap,
}

/// What another network did of the run before this one took over.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepsBefore {
    /// Its steps.
    pub(super) steps: usize,
    /// Its calls.
    pub(super) calls: usize,
    /// Steps of both together; 0 where there was no other.
    pub(super) all: usize,
}

impl<'a> GuidedDenoiser<'a> {
    /// `calls` of the network are what shares of a pass are shares of.
    pub(super) fn new(
        backbone: &'a dyn Backbone,
        run: &RunContext<'a>,
        batch: &[BatchItem<'a>],
        calls: usize,
        mut extensions: Vec<Box<dyn Extension>>,
        checks: &'a Checks,
    ) -> Result<Self> {
        for extension in &mut extensions {
            extension.prepare(run)?;
        }
        Ok(Self {
            backbone,
            dtype: run.dtype,
            schedule: run.schedule,
            guider: guider(batch, calls, run.latents.device())?,
            self_attention: SelfAttention::of(&batch.iter().map(|item| item.request).collect::<Vec<_>>(), run.latents.device())?,
            embedded: (batch.first().is_some_and(|item| item.request.guidance_is_embedded))
                .then(|| batch.iter().map(|item| item.request.guidance.scale - 1.0).collect()),
            conditioning: BatchConditioning::new(batch.iter().map(|item| item.prompt).collect()),
            extensions,
            keeps_branches: run.schedule.reads_branches(),
            checks,
            step: None,
            calls: 0,
            before: StepsBefore::default(),
            wrap: batch.first().map_or(Wrap::default(), |item| item.request.wrap()),
        })
    }

    /// Takes over from another network: texts and guidance that change in the course of a run go on.
    pub(super) fn after(self, before: StepsBefore) -> Self {
        Self { before, ..self }
    }
}

impl GuidedDenoiser<'_> {
    /// The network's outputs for some branches of all images, and what it keeps; `at` is the call in this network's share of the run and
    /// in the whole of it. `attended` are the rows of which it tells what they attend to.
    fn call(
        &mut self,
        latents: &Tensor,
        branches: Vec<Branch>,
        (at, in_run): (&CallPoint, &CallPoint),
        attended: Option<Range<usize>>,
    ) -> Result<(Branches, Kept)> {
        let level = at.level;
        let scaled = latents.affine(self.schedule.process.input_scale(level.sigma), 0.0)?.to_dtype(self.dtype)?;
        let rows = if branches.len() == 1 { scaled } else { Tensor::cat(&vec![&scaled; branches.len()], 0)? };
        let mut call = self.conditioning.call(rows, &branches, in_run)?;
        call.wrap = self.wrap;
        call.reuse.attended = attended;
        if let Some(scales) = &self.embedded {
            call.guidance = scales.repeat(branches.len());
        }
        for extension in &mut self.extensions {
            extension.before_call(at, &branches, &mut call)?;
        }
        let ModelOutput { prediction, kept } = self.backbone.call(&call)?;
        let output = prediction.to_dtype(DType::F32)?;
        self.checks.check(&output, || {
            let (timestep, dtype) = (level.timestep, self.dtype.as_str());
            format!("the UNet at timestep {timestep:.0} in {dtype}; try `dtype` f32, another sampler or a lower `guidance-scale`")
        })?;
        let images = latents.dim(0)?;
        let part = |(i, branch)| Ok((branch, output.narrow(0, i * images, images)?));
        Ok((Branches::new(branches.into_iter().enumerate().map(part).collect::<Result<_>>()?), kept))
    }

    /// The estimate with self-attention guidance: the network is asked once more, about latents that are blurred where it attends to.
    /// `guided` is an estimate where the guider makes one, else an output.
    fn pushed(
        &mut self,
        latents: &Tensor,
        at: (&CallPoint, &CallPoint),
        guided: Tensor,
        outputs: &Branches,
        attended: &Tensor,
    ) -> Result<Tensor> {
        let missing = || Error::Image("the network was not asked about the row that is blurred".into());
        let branches: Vec<Branch> = outputs.iter().map(|(branch, _)| branch).collect();
        let branch = SelfAttention::branch(&branches);
        let plain = outputs.get(branch).ok_or_else(missing)?;
        let (process, sigma) = (&self.schedule.process, at.0.level.sigma);
        let alpha = process.alpha(sigma);
        let clean = process.denoised(latents, plain, sigma)?;
        let guidance = self.self_attention.as_ref().ok_or_else(missing)?;
        let blurred = guidance.blurred(&clean, attended)?;
        // The same noise, on what is blurred.
        let noisy = (latents + (&blurred - &clean)?.affine(alpha, 0.0)?)?;
        let (again, _) = self.call(&noisy, vec![branch], at, None)?;
        let again = again.get(branch).ok_or_else(missing)?;
        let guidance = self.self_attention.as_ref().ok_or_else(missing)?;
        let process = &self.schedule.process;
        let is_estimate = self.guider.reads_estimates();
        if !is_estimate && !guidance.is_of_estimates() {
            return process.denoised(latents, &guidance.push(&guided, plain, again)?, sigma);
        }
        let guided = if is_estimate { guided } else { process.denoised(latents, &guided, sigma)? };
        guidance.push(&guided, &blurred, &process.denoised(&noisy, again, sigma)?)
    }
}

/// The guidance of a batch, whose images agree in their shape.
fn guider(batch: &[BatchItem<'_>], calls: usize, device: &Device) -> Result<Box<dyn Guider>> {
    if batch.iter().all(|item| item.request.inputs.edit && item.request.is_guided()) {
        let scales: Vec<(f64, f64)> =
            batch.iter().map(|item| (item.request.guidance.scale, item.request.inputs.image_guidance_scale)).collect();
        return Ok(Box::new(InstructionEdit::new(&scales, device)?));
    }
    let scales = |item: &BatchItem<'_>| {
        let guidance = &item.request.guidance;
        // Parts that add up have a negative row also where nothing is guided.
        let scale = if item.request.part_weights().is_some() { guidance.scale.max(1.0) } else { guidance.scale };
        GuidanceScales {
            scale: item.request.is_guided().then_some(scale),
            rescale: guidance.rescale,
            interval: (guidance.start, guidance.end),
            left_out: LeftOut { early: guidance.skip_early, calls, below_sigma: guidance.ngms, all: guidance.ngms_all_steps },
            perturbed: guidance.pag_scale,
            skipped: guidance.skip_layers.as_ref().map_or(0.0, |_| guidance.skip_layer_scale),
            skipped_interval: (guidance.skip_layer_start, guidance.skip_layer_end),
        }
    };
    let images: Vec<GuidanceScales> = batch.iter().map(scales).collect();
    let guider = Box::new(ClassifierFree::new(&images, device)?);
    if let Some(apg) = batch.first().and_then(|item| item.request.guidance.apg).filter(|_| images.iter().any(|image| image.scale.is_some()))
    {
        let scales: Vec<f64> = images.iter().map(|image| image.scale.unwrap_or(1.0)).collect();
        let projection = Projection { eta: apg.eta, norm: apg.norm, momentum: apg.momentum };
        return Ok(Box::new(AdaptiveProjected::new(guider, &scales, projection, device)?));
    }
    if batch.iter().all(|item| item.request.part_weights().is_none()) {
        return Ok(guider);
    }
    let weights: Vec<Vec<f64>> = batch.iter().map(|item| item.request.part_weights().unwrap_or_else(|| vec![1.0])).collect();
    Ok(Box::new(Conjunction::new(guider, &weights, device)?))
}

impl Denoiser for GuidedDenoiser<'_> {
    fn begin_step(&mut self, step: &Step) -> Result<()> {
        self.step = Some(*step);
        Ok(())
    }

    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        let step = self.step.ok_or_else(|| Error::Image("the network was asked before the first step".into()))?;
        let at = CallPoint { step, steps: self.schedule.steps.len(), call: self.calls, level };
        self.calls += 1;
        let StepsBefore { steps, calls, all } = self.before;
        let in_run = CallPoint {
            step: Step { index: step.index + steps, ..step },
            steps: if all == 0 { at.steps } else { all },
            call: at.call + calls,
            level,
        };
        let mut latents = latents.clone();
        for extension in &mut self.extensions {
            latents = extension.before_denoise(&at, latents)?;
        }
        let branches = self.guider.branches(&in_run);
        let images = latents.dim(0)?;
        let attended = self.self_attention.as_ref().map(|_| SelfAttention::rows(&branches, images));
        let (outputs, kept) = self.call(&latents, branches, (&at, &in_run), attended)?;
        let process = &self.schedule.process;
        let denoised = |output: &Tensor| process.denoised(&latents, output, level.sigma);
        let reads_estimates = self.guider.reads_estimates();
        let guided = match reads_estimates {
            true => {
                let rows = outputs.iter().map(|(branch, output)| Ok((branch, denoised(output)?)));
                self.guider.combine(&in_run, &Branches::new(rows.collect::<Result<_>>()?))?
            }
            false => self.guider.combine(&in_run, &outputs)?,
        };
        let guided = match &kept.attended {
            Some(attended) => self.pushed(&latents, (&at, &in_run), guided, &outputs, attended)?,
            None if reads_estimates => guided,
            None => denoised(&guided)?,
        };
        let mut estimates = Denoised::plain(guided);
        if self.keeps_branches {
            let rows = outputs.iter().map(|(branch, output)| Ok((branch, denoised(output)?)));
            estimates.branches = Branches::new(rows.collect::<Result<_>>()?);
        }
        for extension in &mut self.extensions {
            estimates = extension.after_denoise(&at, estimates)?;
        }
        Ok(estimates)
    }

    fn pass_over(&mut self) {
        self.calls += 1;
    }

    fn end_step(&mut self, step: &Step, mut latents: Tensor) -> Result<Tensor> {
        for extension in &mut self.extensions {
            latents = extension.after_step(step, latents)?;
        }
        Ok(latents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelCall;
    use crate::pipeline::prompt::{Conditioning, ConditioningRow, Timeline};
    use crate::sampling::{Like, NoiseSource, plan, sample};
    use crate::settings::{Draft, Request};
    use std::sync::{Arc, Mutex};

    /// Predicts its context's first number for every row, and remembers its calls.
    #[derive(Debug, Default)]
    struct Echo(Mutex<Vec<ModelCall>>);

    impl Backbone for Echo {
        fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
            self.0.lock().unwrap().push(call.clone());
            let first = call.context.narrow(1, 0, 1)?.narrow(2, 0, 1)?.reshape((call.context.dim(0)?, 1, 1, 1))?;
            Ok(ModelOutput::of(call.latents.zeros_like()?.broadcast_add(&first)?))
        }

        fn weights_changed(&self) {}
    }

    struct NoNoise;

    impl NoiseSource for NoNoise {
        fn fresh(&mut self, latents: &Tensor) -> Result<Tensor> {
            Ok(latents.zeros_like()?)
        }
    }

    fn timeline(parts: &[(usize, f32)]) -> Timeline {
        let row =
            |value: f32| ConditioningRow { context: Tensor::full(value, (1, 2, 3), &Device::Cpu).unwrap(), pooled: None, time_ids: vec![] };
        Timeline::new(parts.iter().map(|(last, value)| (*last, Arc::new(row(*value)))).collect())
    }

    fn request(guidance_scale: f64) -> Request {
        let draft = Draft::new("").with(|draft| {
            draft.guidance.scale = Some(guidance_scale);
            draft.scheduler.sampler = Some("euler".into());
            draft.sampling.steps = Some(4);
        });
        draft.resolve(&crate::family::well_known("sd15").unwrap()).unwrap()
    }

    fn run(backbone: &Echo, batch: &[BatchItem<'_>], extensions: Vec<Box<dyn Extension>>) -> Result<Tensor> {
        let schedule = plan(&batch[0].request.scheduler, 4)?;
        let latents = Tensor::zeros((batch.len(), 4, 1, 1), DType::F32, &Device::Cpu)?;
        let checks = Checks::on(&Device::Cpu);
        let run = RunContext { schedule: &schedule, latents: &latents, dtype: DType::F32 };
        let mut denoiser = GuidedDenoiser::new(backbone, &run, batch, batch[0].request.sampling.steps, extensions, &checks)?;
        sample(&schedule, &latents, &mut denoiser, &mut NoNoise, &mut |_, _| Ok(()))
    }

    #[test]
    fn images_of_one_batch_keep_their_prompts_and_scales() {
        let (two, three) = (request(2.0), request(3.0));
        let first = Conditioning::new(vec![(Branch::Negative, timeline(&[(9, 1.0)])), (Branch::Prompt, timeline(&[(9, 2.0)]))]);
        let second = Conditioning::new(vec![(Branch::Negative, timeline(&[(9, 0.0)])), (Branch::Prompt, timeline(&[(9, -1.0)]))]);
        let batch = [BatchItem { request: &two, prompt: &first, seed: 0 }, BatchItem { request: &three, prompt: &second, seed: 1 }];
        let backbone = Echo::default();
        let latents: Vec<f32> = run(&backbone, &batch, vec![]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let calls = backbone.0.lock().unwrap();
        let contexts: Vec<f32> = calls[0].context.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(contexts.chunks(6).map(|row| row[0]).collect::<Vec<_>>(), [1.0, 0.0, 2.0, -1.0], "negatives first, then prompts");
        // A constant noise prediction e takes the latents from 0 at the first sigma to −e · sigma: here 3 and −3.
        assert!((latents[0] / latents[4] + 1.0).abs() < 1e-5 && latents[0] < 0.0, "{latents:?}");
    }

    #[test]
    fn the_conditioning_may_change_with_the_call() {
        let request = request(1.0);
        let prompt = Conditioning::new(vec![(Branch::Prompt, timeline(&[(1, 5.0), (2, 6.0), (2, 7.0)]))]);
        let backbone = Echo::default();
        run(&backbone, &[BatchItem { request: &request, prompt: &prompt, seed: 0 }], vec![]).unwrap();
        let first = |call: &ModelCall| call.context.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert_eq!(backbone.0.lock().unwrap().iter().map(first).collect::<Vec<_>>(), [5.0, 5.0, 6.0, 7.0]);
        let missing = Conditioning::new(vec![(Branch::Negative, timeline(&[(9, 1.0)]))]);
        let error = run(&backbone, &[BatchItem { request: &request, prompt: &missing, seed: 0 }], vec![]).unwrap_err();
        assert!(error.to_string().contains("Prompt"), "{error}");
    }

    /// Adds a channel to every call and 1 to the latents after every step.
    #[derive(Debug)]
    struct MarkingExtension;

    impl Extension for MarkingExtension {
        fn before_call(&mut self, at: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
            assert_eq!((branches, at.call, at.steps), (&[Branch::Prompt][..], at.step.index, 4));
            call.concat = Some(call.latents.narrow(1, 0, 1)?);
            Ok(())
        }

        fn after_denoise(&mut self, _: &CallPoint, denoised: Denoised) -> Result<Denoised> {
            Ok(Denoised::plain(denoised.guided.zeros_like()?))
        }

        fn after_step(&mut self, step: &Step, latents: Tensor) -> Result<Tensor> {
            Ok(if step.to.sigma == 0.0 { (latents + 1.0)? } else { latents })
        }
    }

    /// Predicts half of what it sees, and says that it attends to the left half.
    #[derive(Debug)]
    struct LooksLeft;

    impl Backbone for LooksLeft {
        fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
            let rows = call.reuse.attended.as_ref().map_or(0, Range::len);
            let attended = (rows > 0).then(|| Tensor::new(&[[[1.5f32, 0.5]]], &Device::Cpu)?.repeat((rows, 1, 1))).transpose()?;
            let prediction = call.latents.sqr()?.affine(0.1, 0.3)?;
            Ok(ModelOutput { prediction, kept: Kept { attended, ..Kept::default() } })
        }

        fn weights_changed(&self) {}
    }

    #[test]
    fn tools_agree_about_self_attention_where_noise_is_predicted() {
        let prompt = Conditioning::new(vec![(Branch::Negative, timeline(&[(9, 1.0)])), (Branch::Prompt, timeline(&[(9, 2.0)]))]);
        let latents: Vec<f32> = (0..36).map(|i| ((i * 7919) % 1009) as f32 / 100.0 - 5.0).collect();
        let latents = Tensor::from_vec(latents, (1, 1, 6, 6), &Device::Cpu).unwrap();
        let made = |model: &str, like: Like, sag: f64| {
            let draft = Draft::new("").with(|draft| {
                draft.sampling.like = Some(like);
                draft.scheduler.sampler = Some("euler".into());
                (draft.guidance.sag_scale, draft.guidance.sag_blur) = (Some(sag), Some(1.5));
            });
            let request = draft.resolve(&crate::family::well_known(model).unwrap()).unwrap();
            let (schedule, checks) = (plan(&request.scheduler, 4).unwrap(), Checks::on(&Device::Cpu));
            let run = RunContext { schedule: &schedule, latents: &latents, dtype: DType::F32 };
            let batch = [BatchItem { request: &request, prompt: &prompt, seed: 0 }];
            let mut denoiser = GuidedDenoiser::new(&LooksLeft, &run, &batch, 4, vec![], &checks).unwrap();
            let level = schedule.process.level(2.0);
            denoiser.begin_step(&Step { index: 0, from: level, to: level }).unwrap();
            denoiser.denoise(&latents, level).unwrap().guided.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (diffusers, comfyui) = (made("sd15", Like::Diffusers, 0.7), made("sd15", Like::ComfyUi, 0.7));
        assert!(apart(&diffusers, &comfyui) < 1e-4 && apart(&diffusers, &made("sd15", Like::Diffusers, 0.0)) > 0.1);
        // Where velocity is predicted, ComfyUI adds σ² / (σ² + 1) of what the blur takes away: here 0.8, and nothing on the right.
        let (diffusers, comfyui) = (made("sd21", Like::Diffusers, 0.7), made("sd21", Like::ComfyUi, 0.7));
        let right = |x: &[f32]| x.chunks(6).flat_map(|row| row[3..].to_vec()).collect::<Vec<_>>();
        assert!(apart(&right(&diffusers), &right(&comfyui)) < 1e-4 && apart(&diffusers, &comfyui) > 0.1);
    }

    #[test]
    fn extensions_work_beside_the_loop() {
        let request = request(1.0);
        let prompt = Conditioning::new(vec![(Branch::Prompt, timeline(&[(9, 5.0)]))]);
        let backbone = Echo::default();
        let latents =
            run(&backbone, &[BatchItem { request: &request, prompt: &prompt, seed: 0 }], vec![Box::new(MarkingExtension)]).unwrap();
        assert_eq!(latents.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0; 4]);
        assert!(backbone.0.lock().unwrap().iter().all(|call| call.concat.as_ref().is_some_and(|x| x.dims() == [1, 1, 1, 1])));
    }
}
