use super::*;
use crate::Error;
use crate::noise::{Rng, SeededNoise};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::sync::Arc;

const SHAPE: (usize, usize, usize, usize) = (1, 4, 2, 2);

/// The formula of make_goldens.py behind the same wrapper that a UNet has.
struct Formula {
    process: Arc<dyn NoiseProcess>,
    told: Vec<f64>,
}

impl Denoiser for Formula {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        self.told.push(level.timestep);
        let x = latents.affine(self.process.input_scale(level.sigma), 0.0)?;
        let wave = x.affine(3.0, 0.01 * level.timestep)?.sin()?;
        Ok(Denoised::plain(self.process.denoised(latents, &blend(0.6, &x, 0.3, &wave)?, level.sigma)?))
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// The largest difference, in units of the largest wanted value.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{got:?} {want:?}");
    let scale = want.iter().fold(1e-9f64, |m, w| m.max(w.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs() / scale).fold(0.0, f64::max)
}

fn goldens() -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../tests/data/schedulers/trajectories.json")).unwrap();
    all["cases"].as_array().unwrap().clone()
}

fn planned(case: &Value) -> Schedule {
    let mut config = SchedulerConfig::from_json(&case["config"].to_string(), "case").unwrap();
    config.eta = case["eta"].as_f64();
    let schedule = plan(&config, case["steps"].as_u64().unwrap() as usize).unwrap();
    schedule.starting_at(case["start"].as_u64().unwrap_or(0) as usize).unwrap()
}

fn replayed(case: &Value) -> (Vec<f64>, Vec<f64>) {
    let schedule = planned(case);
    let mut network = Formula { process: Arc::clone(&schedule.process), told: vec![] };
    let mut noise = SeededNoise::new(Rng::TorchCpu, &[0]);
    let unit = noise.randn(SHAPE, &Device::Cpu).unwrap();
    let latents = if case["start"].is_null() {
        unit.affine(schedule.initial_scale, 0.0).unwrap()
    } else {
        let image: Vec<f32> = (0..16).map(|i| -1.0 + 2.0 * i as f32 / 15.0).collect();
        blend(1.0, &Tensor::from_vec(image, SHAPE, &Device::Cpu).unwrap(), schedule.steps[0].from.sigma, &unit).unwrap()
    };
    let mut calls = 0;
    let clean = sample(&schedule, &latents, &mut network, &mut noise, &mut |step, x| {
        calls += schedule.evaluations(step);
        assert_eq!(x.dims4()?, SHAPE);
        Ok(())
    });
    assert_eq!(calls, network.told.len(), "evaluations() of {case}");
    (flat(&clean.unwrap()), network.told)
}

/// How far from diffusers a case may end, relative to its largest value.
fn tolerance(case: &Value) -> f64 {
    if case["config"]["rescale_betas_zero_snr"] != true {
        return 2e-5;
    }
    match case["config"]["_class_name"].as_str().unwrap() {
        // diffusers' last alpha is 0 there and 2^-24 here: 2^-12 of the first noise.
        "DDIMScheduler" | "DDPMScheduler" => 5e-4,
        // diffusers subtracts numbers of the size of sigma 4096 in f32.
        _ => 2e-4,
    }
}

#[test]
fn trajectories_are_those_of_diffusers() {
    let cases = goldens();
    assert!(cases.len() > 300);
    for case in &cases {
        let (got, told) = replayed(case);
        let (error, of_timesteps) = (distance(&got, &numbers(&case["final"])), distance(&told, &numbers(&case["timesteps"])));
        assert!(of_timesteps < 1e-6, "the network is told {told:?} in {case}");
        assert!(error < tolerance(case), "off by {error:.1e} in {case}");
    }
}

#[test]
fn sigmas_are_those_of_diffusers() {
    let mut compared = 0;
    for case in goldens() {
        if case["sigmas"].is_null() || !case["start"].is_null() {
            continue;
        }
        let schedule = planned(&case);
        let mut got: Vec<f64> = schedule.steps.iter().map(|s| s.from.sigma).chain(schedule.steps.last().map(|s| s.to.sigma)).collect();
        let mut want = numbers(&case["sigmas"]);
        // Heun's list has every inner sigma twice.
        want.dedup();
        got.dedup();
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= 1e-6 * w, "{got:?} {case}");
        }
        assert_eq!(got.len(), want.len(), "{case}");
        compared += 1;
    }
    assert!(compared > 150);
}

/// The exact denoiser of data that is normal with deviation `SPREAD`.
struct Gaussian;

const SPREAD: f64 = 0.7;

impl Denoiser for Gaussian {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        let variance = SPREAD * SPREAD;
        Ok(Denoised::plain(latents.affine(variance / (variance + level.sigma * level.sigma), 0.0)?))
    }
}

struct SilentNoise;

impl NoiseSource for SilentNoise {
    fn fresh(&mut self, _: &Tensor) -> Result<Tensor> {
        panic!("a deterministic solver asked for noise")
    }
}

/// The error at sigma 0.1 of a run from sigma 10, where the exact solution is `x · sqrt((s² + 0.1²) / (s² + 10²))`. In f64.
fn gaussian_error(sampler: &str, options: &[(&str, f64)], steps: usize) -> f64 {
    let mut config = SchedulerConfig::default().with_sampler(sampler).unwrap();
    config.levels = Some(Levels::Sigmas(SigmaSchedule::Exponential.sigmas(10.0, 0.1, steps + 1)));
    config.options = options.iter().map(|(name, value)| ((*name).into(), *value)).collect();
    // The last step, to 0, is not looked at.
    let schedule = plan(&config, 1).unwrap();
    let x = Tensor::new(&[[[[1.0f64]]]], &Device::Cpu).unwrap();
    let mut reached = f64::NAN;
    let mut look = |step: &Step, x: &Tensor| {
        if step.index + 1 == steps {
            reached = x.flatten_all()?.to_vec1::<f64>()?[0];
        }
        Ok(())
    };
    sample(&schedule, &x, &mut Gaussian, &mut SilentNoise, &mut look).unwrap();
    // Sigmas are rounded to f32.
    let square = |sigma: f64| SPREAD * SPREAD + sigma * sigma;
    let exact = (square(schedule.steps[steps].from.sigma) / square(schedule.steps[0].from.sigma)).sqrt();
    (reached / exact - 1.0).abs()
}

#[test]
fn solvers_converge_with_their_order() {
    // A multistep solver of higher order starts with lower ones, which bound its error: its order shows in the oracle's paths.
    for (sampler, options, expected) in [
        ("euler", &[][..], 1.0),
        ("heun", &[], 2.0),
        ("dpm2", &[], 2.0),
        ("dpm++2m", &[], 2.0),
        ("dpm++2m-sde-heun", &[("eta", 0.0)], 2.0),
        ("dpm++2s-a", &[("eta", 0.0)], 2.0),
        ("dpm++sde", &[("eta", 0.0)], 2.0),
        ("lms", &[("order", 2.0)], 2.0),
        ("ipndm-v", &[("order", 2.0)], 2.0),
        ("deis", &[], 2.0),
        ("deis-tab", &[("order", 2.0)], 2.0),
        ("unipc", &[], 2.0),
        ("res-multistep", &[], 2.0),
        ("res-2s", &[], 2.0),
        ("seeds-2", &[("eta", 0.0)], 2.0),
        ("seeds-3", &[("eta", 0.0)], 3.0),
        ("exp-heun-2-x0", &[], 2.0),
        ("sa-solver-sigma", &[("eta", 0.0), ("predictor_order", 2.0), ("corrector_order", 2.0)], 2.0),
        ("gradient-estimation", &[("gamma", 1.0)], 1.0),
        ("gradient-estimation", &[("gamma", 1.5)], 2.0),
        ("dpm++2m-cfg++", &[], 1.0),
        ("euler-cfg++", &[], 1.0),
    ] {
        let measured = (gaussian_error(sampler, options, 200) / gaussian_error(sampler, options, 400)).log2();
        assert!(measured > expected - 0.2, "{sampler} {options:?} converges with order {measured:.2}, not {expected}");
    }
}

fn config(text: &str) -> SchedulerConfig {
    SchedulerConfig::from_json(text, "scheduler_config.json").unwrap()
}

#[test]
fn every_sampler_takes_any_number_of_steps() {
    for (sampler, (_, spacing)) in Sampler::all().flat_map(|s| TimestepSpacing::NAMES.iter().map(move |n| (s, *n))) {
        for (steps, zero_snr) in [1, 2, 3, 7, 50, 61, 501, 999, 1000].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            // The many steps are for those that walk the trained timesteps as diffusers' classes do.
            if steps > 50 && (sampler.class_name().is_empty() || zero_snr && steps < 999) {
                continue;
            }
            let prediction = if zero_snr { PredictionType::VPrediction } else { PredictionType::Epsilon };
            let asked = SchedulerConfig::default().with_sampler(sampler.name()).unwrap().with_spacing(spacing);
            let planned = plan(&asked.with_zero_snr(zero_snr).with_prediction(prediction), steps);
            // Those that leave out the cleanest of one more timestep have one less.
            if let (1000, TimestepSpacing::Leading, Err(Error::Input(message))) = (steps, spacing, &planned) {
                assert!(message.contains("`steps` 1000") && (message.contains("999") || message.contains("1 to 50")), "{message}");
                continue;
            }
            // A single of A1111's timesteps leaves no step to take.
            if steps == 1 && (sampler.name().ends_with("-a1111") || sampler.name() == "ddim-cfg++") {
                assert!(matches!(planned, Err(Error::Input(m)) if m.contains("2 or more")));
                continue;
            }
            // What walks the timesteps of a distillation takes no more than those.
            if matches!(sampler.name(), "lcm" | "tcd") && steps > 50 {
                assert!(matches!(planned, Err(Error::Input(m)) if m.contains("1 to 50")));
                continue;
            }
            let schedule = planned.unwrap();
            // These spend the steps in their own way.
            let own =
                sampler.name().ends_with("-a1111") || matches!(sampler.name(), "ddim-cfg++" | "dpm-fast" | "dpm-adaptive" | "restart");
            assert!(own || schedule.steps.len() == steps, "{sampler:?} {steps}");
            assert!(
                own || schedule
                    .steps
                    .iter()
                    .enumerate()
                    .all(|(i, s)| s.index == i && s.to.sigma <= s.from.sigma && s.from.sigma.is_finite())
            );
            let mut noise = SeededNoise::new(Rng::TorchCpu, &[0]);
            let latents = noise.randn(SHAPE, &Device::Cpu).unwrap().affine(schedule.initial_scale, 0.0).unwrap();
            let mut network = Formula { process: Arc::clone(&schedule.process), told: vec![] };
            let mut calls = 0;
            let mut count = |step: &Step, _: &Tensor| {
                calls += schedule.evaluations(step);
                Ok(())
            };
            let clean = sample(&schedule, &latents, &mut network, &mut noise, &mut count).unwrap();
            assert!(flat(&clean).iter().all(|x| x.is_finite()), "{} {} {steps}", sampler.name(), spacing.name());
            assert!(sampler.name() == "dpm-adaptive" || calls == network.told.len(), "{sampler:?} {steps}");
        }
    }
}

#[test]
fn steps_outside_the_trained_range_are_refused() {
    for steps in [0, 1001] {
        let error = plan(&SchedulerConfig::default(), steps).unwrap_err();
        assert!(matches!(&error, Error::Input(m) if m.contains("`steps`") && m.contains("1 to 1000")), "{error}");
    }
    let runge_kutta = config(r#"{"_class_name": "PNDMScheduler"}"#);
    assert!(matches!(plan(&runge_kutta, 3), Err(Error::Input(m)) if m.contains("`steps` 3")));
    assert!(runge_kutta.check().is_ok());
}

#[test]
fn a_image_of_a_batch_is_that_image_alone() {
    let schedule = plan(&SchedulerConfig::default().with_sampler("euler a").unwrap(), 6).unwrap();
    let run = |seeds: &[u64]| {
        let mut noise = SeededNoise::new(Rng::TorchCpu, seeds);
        let latents = noise.randn((seeds.len(), 4, 3, 5), &Device::Cpu).unwrap().affine(schedule.initial_scale, 0.0).unwrap();
        let mut network = Formula { process: Arc::clone(&schedule.process), told: vec![] };
        sample(&schedule, &latents, &mut network, &mut noise, &mut |_, _| Ok(())).unwrap()
    };
    assert_eq!(flat(&run(&[8, 9]).get(1).unwrap()), flat(&run(&[9])));
}

#[test]
fn an_error_of_the_observer_stops_the_run() {
    let schedule = plan(&SchedulerConfig::default(), 10).unwrap();
    let mut network = Formula { process: Arc::clone(&schedule.process), told: vec![] };
    let latents = Tensor::ones(SHAPE, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut cancel = |step: &Step, _: &Tensor| if step.index == 2 { Err(Error::Cancelled) } else { Ok(()) };
    assert!(matches!(sample(&schedule, &latents, &mut network, &mut SilentNoise, &mut cancel), Err(Error::Cancelled)));
    assert_eq!(network.told.len(), 4, "the first step of PLMS makes two calls");
}

#[test]
fn a_schedule_started_past_its_end_is_refused() {
    let schedule = plan(&SchedulerConfig::default().with_sampler("ddim").unwrap(), 5).unwrap();
    assert_eq!(schedule.starting_at(4).unwrap().steps.len(), 1);
    assert!(matches!(schedule.starting_at(5), Err(Error::Input(_))));
}

#[test]
fn samplers_are_found_however_they_are_spelled() {
    use SigmaSchedule::{Exponential, Karras};
    for (name, sampler, schedule) in [
        ("DPM++ 2M Karras", "dpm++2m", Some(Karras)),
        ("dpmpp_2m", "dpm++2m", None),
        ("dpm++2m", "dpm++2m", None),
        ("dpmpp_2m_k", "dpm++2m", Some(Karras)),
        ("DPMSolverMultistepScheduler", "dpm++2m", None),
        ("DPM++ 2M SDE Exponential", "dpm++2m-sde", Some(Exponential)),
        ("dpmpp_2m_sde_gpu", "dpm++2m-sde", None),
        ("Euler a", "euler-a", None),
        ("euler_a", "euler-a", None),
        ("euler_ancestral", "euler-a", None),
        ("k_euler_a", "euler-a", None),
        ("k_euler", "euler", None),
        ("Euler Karras", "euler", Some(Karras)),
        ("EulerDiscreteScheduler", "euler", None),
        ("plms", "pndm", None),
        ("PNDM", "pndm", None),
        ("DDIM", "ddim", None),
        ("heun", "heun", None),
    ] {
        let (found, fused) = Sampler::from_name(name).unwrap();
        assert_eq!((found.name(), fused), (sampler, schedule), "{name}");
    }
    for sampler in Sampler::all() {
        assert_eq!(Sampler::from_name(sampler.name()).unwrap().0, sampler);
        assert_eq!(Sampler::from_name(sampler.a1111_name()).unwrap().0, sampler);
    }
    let message = Sampler::from_name("euller").unwrap_err().to_string();
    assert!(message.contains("did you mean euler or euler-a?") && message.contains("dpm++2m"), "{message}");
    assert!(!Sampler::from_name("zzzzzzzzzz").unwrap_err().to_string().contains("did you mean"));
    assert_eq!(Sampler::from_name("DPM2").unwrap().0.name(), "dpm2", "another solver than DPM++ 2M");
}

#[test]
fn the_default_is_stable_diffusion_15s_file() {
    let file = r#"{
      "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
      "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
      "trained_betas": null, "clip_sample": false }"#;
    assert_eq!(config(file).file, SchedulerConfig::default().file);
}

#[test]
fn a_configuration_is_written_as_it_was_read() {
    let text = r#"{"_class_name":"DPMSolverMultistepScheduler","lambda_min_clipped":-Infinity,"beta_schedule":"linear","solver_order":3}"#;
    let read = config(text);
    let written = serde_json::to_string(&read).unwrap();
    assert!(!written.contains("null") && !written.contains("Infinity"), "{written}");
    assert_eq!(config(&written).file, read.file);
    let karras = serde_json::to_string(&read.with_schedule(SigmaSchedule::Karras)).unwrap();
    assert_eq!(config(&karras).sigma_schedule().unwrap(), SigmaSchedule::Karras);
}

#[test]
fn words_in_strings_are_not_numbers() {
    assert_eq!(config(r#"{"solver_type": "a \" NaN Infinity"}"#).file.solver_type.unwrap(), "a \" NaN Infinity");
}

#[test]
fn a_sampler_keeps_what_the_file_says_about_the_noise() {
    let asked = SchedulerConfig::default().with_sampler("DPM++ 2M Karras").unwrap();
    assert_eq!(asked.sampler().unwrap().name(), "dpm++2m");
    assert_eq!(asked.sigma_schedule().unwrap(), SigmaSchedule::Karras);
    assert_eq!(asked.spacing().unwrap(), TimestepSpacing::Linspace, "an absent key has the default of the class that is used");
    assert_eq!((asked.file.beta_end, asked.file.steps_offset), (Some(0.012), Some(1)));
    let ddim = config(r#"{"_class_name": "EulerDiscreteScheduler"}"#).with_sampler("ddim").unwrap();
    assert_eq!(ddim.clip_range().unwrap(), None, "latents are not clipped unless a file says so");
    assert_eq!(config(r#"{"_class_name": "DDIMScheduler"}"#).clip_range().unwrap(), Some(1.0));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (text, key) in [
        (r#"{"_class_name": "VQDiffusionScheduler"}"#, "_class_name"),
        (r#"{}"#, "_class_name"),
        (r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, "thresholding"),
        (r#"{"_class_name": "DDIMScheduler", "beta_schedule": "exp"}"#, "beta_schedule"),
        (r#"{"_class_name": "DDIMScheduler", "beta_end": 2.0}"#, "beta_end"),
        (r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1]}"#, "trained_betas"),
        (r#"{"_class_name": "DDIMScheduler", "prediction_type": "flow"}"#, "prediction_type"),
        (r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "even"}"#, "timestep_spacing"),
        (r#"{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}"#, "variance_type"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": true}"#, "use_beta_sigmas"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}"#, "interpolation_type"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "one"}"#, "final_sigmas_type"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction"}"#, "timestep_type"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}"#, "algorithm_type"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}"#, "solver_order"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}"#, "use_flow_sigmas"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}"#, "variance_type"),
    ] {
        let read = config(text);
        assert!(matches!(read.check(), Err(Error::Model(m)) if m.contains("scheduler_config.json") && m.contains(key)), "{text}");
        assert!(plan(&read, 4).is_err());
    }
    // Another sampler does not read the key.
    assert!(config(r#"{"_class_name": "VQDiffusionScheduler", "thresholding": true}"#).with_sampler("euler").unwrap().check().is_ok());
    assert!(matches!(SchedulerConfig::from_json("{", "f.json"), Err(Error::Model(m)) if m.contains("f.json")));
    assert!(matches!(SchedulerConfig::from_json(r#"{"beta_end": "x"}"#, "f.json"), Err(Error::Model(_))));
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let refused = |config: SchedulerConfig, flag: &str| matches!(config.check(), Err(Error::Input(m)) if m.contains(flag));
    let sampler = |name: &str| SchedulerConfig::default().with_sampler(name).unwrap();
    assert!(refused(sampler("ddim karras"), "`schedule`"));
    assert!(refused(sampler("euler").with_eta(0.5), "`eta`"));
    assert!(refused(sampler("ddim").with_eta(1.5), "`eta`"));
    assert!(sampler("euler a karras").with_eta(0.5).check().is_ok());
    assert!(matches!(SigmaSchedule::from_name("betta"), Err(Error::Input(m)) if m.contains("karras")));
    assert!(TimestepSpacing::from_name("Trailing").is_ok());
    assert_eq!(PredictionType::from_name("v").unwrap(), PredictionType::VPrediction);
    assert!(matches!(PredictionType::from_name("flow"), Err(Error::Input(m)) if m.contains("`flow`")));
}
