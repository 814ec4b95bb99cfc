//! The noise of other tools, as recorded (`tests/data/noise/take_tools.py`).

use super::*;
use serde_json::Value;
use std::collections::HashMap;

fn recorded() -> (Value, HashMap<String, Tensor>) {
    let tensors = candle_core::safetensors::load_buffer(include_bytes!("../../tests/data/noise/tools.safetensors"), &Device::Cpu);
    (serde_json::from_str(include_str!("../../tests/data/noise/tools.json")).unwrap(), tensors.unwrap())
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// `tolerance`: Philox' numbers were recorded from f32 logarithms and sines, whose last bits are their own.
fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &Value) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (a, b) in got.iter().zip(want) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}: {a} {b}");
    }
}

#[test]
fn philox_numbers_are_a1111s() {
    let (recorded, tensors) = recorded();
    for case in recorded["philox"].as_array().unwrap() {
        let mut generator = TorchCudaGenerator::new(case["seed"].as_u64().unwrap());
        let count = numbers(&case["shape"]).iter().product();
        let calls = case["calls"].as_array().unwrap();
        let all = case["tensor"].as_str().map(|name| flat(&tensors[name]));
        for (i, call) in calls.iter().enumerate() {
            let want = match &all {
                Some(all) => all[i * count..(i + 1) * count].to_vec(),
                None => call.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect(),
            };
            assert_near(&generator.randn(count), &want, 1e-6, case);
        }
    }
}

#[test]
fn variations_other_sizes_and_ensd_are_a1111s() {
    let (recorded, tensors) = recorded();
    let cases = recorded["a1111"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let rng = if case["rng"] == "CPU" { Rng::TorchCpu } else { Rng::TorchCuda };
        let number = |key: &str| case[key].as_u64().unwrap_or(0);
        let strength = case["subseed_strength"].as_f64().unwrap_or(0.0);
        let image = |(i, seed): (usize, &Value)| {
            let seed = seed.as_u64().unwrap();
            // Images beyond the list of variation seeds have 0.
            let variation = case["subseeds"].as_array().map(|seeds| (seeds.get(i).map_or(0, |seed| seed.as_u64().unwrap()), strength));
            let resized_from = (number("seed_resize_from_h") > 0)
                .then(|| (number("seed_resize_from_h") as usize / 8, number("seed_resize_from_w") as usize / 8));
            let steps_seed = (number("ensd") > 0).then(|| seed + number("ensd"));
            ImageNoise { variation, resized_from, steps_seed, ..ImageNoise::of(seed) }
        };
        let images: Vec<ImageNoise> = case["seeds"].as_array().unwrap().iter().enumerate().map(image).collect();
        let shape = [vec![images.len()], numbers(&case["shape"])].concat();
        let latents = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut noise = SeededNoise::of_images(rng, images);
        let mut got = flat(&noise.first(&latents).unwrap());
        for _ in 1..number("draws") {
            got.extend(flat(&noise.fresh(&latents).unwrap()));
        }
        assert_near(&got, &flat(&tensors[case["tensor"].as_str().unwrap()]), 2e-6, case);
    }
}

#[test]
fn a_batch_is_one_draw_as_in_comfyui() {
    let (recorded, tensors) = recorded();
    for case in recorded["comfyui"].as_array().unwrap() {
        let shape = numbers(&case["shape"]);
        let places = if case["noise_inds"].is_null() { (0..shape[0]).collect() } else { numbers(&case["noise_inds"]) };
        let all = places.iter().max().unwrap() + 1;
        let seed = case["seed"].as_u64().unwrap();
        let images = places.iter().map(|place| ImageNoise { place: (*place, all), ..ImageNoise::of(seed) }).collect();
        let latents = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let got = flat(&SeededNoise::of_images(Rng::TorchCpu, images).first(&latents).unwrap());
        assert_near(&got, &flat(&tensors[case["tensor"].as_str().unwrap()]), 0.0, case);
    }
}

#[test]
fn an_image_of_a_shared_draw_is_the_same_alone() {
    let image = |index| ImageNoise { place: (index, 3), steps_seed: Some(6), ..ImageNoise::of(5) };
    let zeros = |images: usize| Tensor::zeros((images, 4, 2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let draws = |images: Vec<ImageNoise>, row: usize| {
        let latents = zeros(images.len());
        let mut noise = SeededNoise::of_images(Rng::TorchCpu, images).with_brownian(Some((0.1, 14.0)));
        let all = [noise.first(&latents).unwrap(), noise.fresh(&latents).unwrap(), noise.between(&latents, 14.0, 3.0).unwrap()];
        all.map(|x| flat(&x.get(row).unwrap()))
    };
    let together = draws((0..3).map(image).collect(), 1);
    assert_eq!(together, draws(vec![image(1)], 0));
    assert_ne!(together, draws(vec![image(2)], 0));
}

#[test]
fn the_steps_of_comfyui_begin_anew() {
    let (recorded, tensors) = recorded();
    let case = &recorded["comfyui_step_noise"];
    let seed = case["seed"].as_u64().unwrap();
    let latents = Tensor::zeros((1, 4, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut noise = SeededNoise::of_images(Rng::TorchCpu, vec![ImageNoise { steps_seed: Some(seed), ..ImageNoise::of(seed) }]);
    noise.first(&latents).unwrap();
    let got: Vec<f32> = (0..2).flat_map(|_| flat(&noise.fresh(&latents).unwrap())).collect();
    assert_near(&got, &flat(&tensors[case["tensor"].as_str().unwrap()]), 0.0, case);
}
