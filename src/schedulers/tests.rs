#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::noise::{Rng, SeededNoise};
use candle_core::{Device, Tensor};
use serde_json::Value;

const SHAPE: (usize, usize, usize, usize) = (1, 4, 2, 2);

/// The formula of make_goldens.py behind the same wrapper that a UNet has.
struct Formula {
    prediction: PredictionType,
    told: Vec<f64>,
}

impl Denoiser for Formula {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Tensor> {
        self.told.push(level.timestep);
        let x = latents.affine(self.prediction.input_scale(level.sigma), 0.0)?;
        let wave = x.affine(3.0, 0.01 * level.timestep)?.sin()?;
        let (c_skip, c_out) = self.prediction.scales(level.sigma);
        blend(c_skip, latents, c_out, &blend(0.6, &x, 0.3, &wave)?)
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
    let mut network = Formula { prediction: schedule.prediction, told: vec![] };
    let mut noise = SeededNoise::new(Rng::TorchCpu, &[0]);
    let unit = noise.randn(SHAPE, &Device::Cpu).unwrap();
    let latents = if case["start"].is_null() {
        unit.affine(schedule.initial_scale, 0.0).unwrap()
    } else {
        let picture: Vec<f32> = (0..16).map(|i| -1.0 + 2.0 * i as f32 / 15.0).collect();
        blend(1.0, &Tensor::from_vec(picture, SHAPE, &Device::Cpu).unwrap(), schedule.steps[0].from.sigma, &unit).unwrap()
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

#[test]
fn trajectories_are_those_of_diffusers() {
    let cases = goldens();
    let mut worst = vec![];
    for case in &cases {
        let (got, told) = replayed(case);
        worst.push((distance(&got, &numbers(&case["final"])), distance(&told, &numbers(&case["timesteps"])), case));
    }
    worst.sort_by(|a, b| b.0.max(b.1).total_cmp(&a.0.max(a.1)));
    for (d, t, case) in worst.iter().take(40) {
        println!("{d:.1e} {t:.1e} {} steps {} eta {} start {}", case["config"], case["steps"], case["eta"], case["start"]);
    }
    assert!(worst[0].0 < 1e-4);
}
