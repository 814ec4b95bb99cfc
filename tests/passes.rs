//! What follows the first pass: a refiner against diffusers, and a second pass at a larger size; and self-attention guidance, which asks
//! the network twice a step.
//!
//! `tests/data/passes/make_passes.py` made what the ensembles ought to compute, `tests/data/guidance/make_guidance.py` what the guidance
//! ought to.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{Device, Tensor, safetensors};
use sd_gen::pipeline::Pipeline;
use sd_gen::settings::{Draft, Seed};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn pipeline(low_memory: bool) -> Pipeline {
    pipeline_of("sdxl", low_memory)
}

fn pipeline_of(model: &str, low_memory: bool) -> Pipeline {
    let builder = Pipeline::open(data("parity").join(model)).expect("the model opens");
    let builder = builder.device("cpu".parse().expect("a device")).dtype("f32".parse().expect("a dtype")).low_memory(low_memory);
    builder.build().expect("the model loads")
}

fn draft(settings: &[(&str, &str)]) -> Draft {
    let mut draft = Draft::new("A red apple on a table").with(|draft| draft.seed = Some(Seed::Is(7)));
    let all = [("negative-prompt", "blurry"), ("prompt-syntax", "plain"), ("size", "48x32"), ("guidance-scale", "5")];
    for (name, value) in all.iter().chain(settings) {
        draft.set(name, [*value]).expect("a setting");
    }
    draft
}

fn latents(pipeline: &Pipeline, draft: &Draft) -> Tensor {
    pipeline.generate(draft).expect("an image").remove(0).latents
}

/// The largest difference, in the second one's standard deviations.
fn apart(made: &Tensor, wanted: &Tensor) -> f64 {
    let numbers = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("numbers");
    let (made, wanted) = (numbers(made), numbers(wanted));
    assert_eq!(made.len(), wanted.len());
    let mean = wanted.iter().sum::<f32>() / wanted.len() as f32;
    let deviation = (wanted.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / wanted.len() as f32).sqrt();
    f64::from(made.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / deviation)
}

/// A file of a scheduler's configuration.
fn scheduler(folder: &Path, class: &str, more: &str) -> String {
    let path = folder.join("scheduler_config.json");
    let betas = r#""beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1"#;
    std::fs::write(&path, format!(r#"{{"_class_name": "{class}", {betas}{more}}}"#)).expect("written");
    path.display().to_string()
}

#[test]
fn a_refiner_takes_over_as_in_diffusers() {
    let golden = safetensors::load(data("passes/ensemble.safetensors"), &Device::Cpu).expect("the golden latents");
    let refiner = data("parity/sdxl-refiner").display().to_string();
    let pipelines = [pipeline(false), pipeline(true)];
    let folder = tempfile::tempdir().expect("a folder");
    for (name, wanted) in &golden {
        let (sampler, switch) = name.split_once('/').unwrap_or(("euler", "0.6"));
        let config = |class: &str, more: &str| scheduler(folder.path(), class, more);
        let config = match sampler {
            "euler" => config("EulerDiscreteScheduler", ""),
            "euler-a" => config("EulerAncestralDiscreteScheduler", ""),
            "heun" => config("HeunDiscreteScheduler", ""),
            "ddim" => config("DDIMScheduler", r#", "clip_sample": false, "set_alpha_to_one": false"#),
            _ => config("DPMSolverMultistepScheduler", r#", "use_karras_sigmas": true"#),
        };
        let (steps, scores) = match switch {
            "0.8" => ("6", ("6", "2.5")),
            "0.5" => ("7", ("8", "1")),
            _ => ("5", ("6", "2.5")),
        };
        let mut settings = vec![
            ("refiner", refiner.as_str()),
            ("refiner-switch", switch),
            ("steps", steps),
            ("scheduler-config", config.as_str()),
            ("aesthetic-score", scores.0),
            ("negative-aesthetic-score", scores.1),
        ];
        if name == "unguided" {
            settings.push(("guidance-scale", "1"));
        }
        let draft = draft(&settings);
        let made: Vec<f64> = pipelines.iter().map(|pipeline| apart(&latents(pipeline, &draft), wanted)).collect();
        assert!(made.iter().all(|apart| *apart < 2e-4), "{name}: {made:?}");
    }
}

#[test]
fn what_cannot_take_over_is_said() {
    let pipeline = pipeline(true);
    let said = |refiner: PathBuf| {
        let draft = draft(&[("refiner", refiner.to_str().expect("text")), ("steps", "2")]);
        pipeline.generate(&draft).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(said(data("parity/sd21-v")).contains("refiner"), "{}", said(data("parity/sd21-v")));
    assert!(said(data("upscalers/cases.json")).contains("cases.json"));
}

/// A small ESRGAN of random weights, as a file: the shapes of one of the upscalers' cases.
fn upscaler(folder: &Path) -> PathBuf {
    let cases = std::fs::read(data("upscalers/cases.json")).expect("the cases");
    let cases: serde_json::Value = serde_json::from_slice(&cases).expect("JSON");
    let case = cases.as_array().and_then(|cases| cases.iter().find(|case| case["name"] == "rrdb-old-x4")).expect("a case");
    let tensor = |(name, shape): (&String, &serde_json::Value)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        (name.clone(), Tensor::randn(0f32, 0.1, shape, &Device::Cpu).expect("numbers"))
    };
    let tensors = case["tensors"].as_object().expect("tensors").iter().map(tensor).collect();
    let path = folder.join("esrgan.safetensors");
    safetensors::save(&tensors, &path).expect("written");
    path
}

#[test]
fn a_network_enlarges_between_the_passes_and_after_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = upscaler(folder.path());
    let network = network.to_str().expect("a path");
    let pipeline = pipeline(false);
    let made = |upscaler: &str, more: &[(&str, &str)]| {
        let settings = [("hires", "2"), ("hires-strength", "0.5"), ("hires-upscaler", upscaler), ("steps", "3")];
        pipeline.generate(&draft(&[&settings[..], more].concat())).expect("an image").remove(0)
    };
    let by_network = made(network, &[]);
    assert_eq!(by_network.image.dimensions(), (96, 64));
    assert!(apart(&by_network.latents, &made("lanczos", &[]).latents) > 1e-2);
    assert!(apart(&by_network.latents, &made(network, &[]).latents) == 0.0);
    assert_eq!(made(network, &[("upscale", &format!("{network}:1.5")), ("tiling", "both")]).image.dimensions(), (144, 96));
}

#[test]
fn a_second_pass_is_larger_and_its_size_is_what_the_network_is_told() {
    let pipeline = pipeline(false);
    for upscaler in ["latent", "latent-bicubic", "lanczos"] {
        let settings = [("hires", "2"), ("hires-strength", "0.5"), ("hires-upscaler", upscaler), ("steps", "4"), ("hires-steps", "3")];
        let images = pipeline.generate(&draft(&settings)).expect("an image");
        assert_eq!(images[0].image.dimensions(), (96, 64), "{upscaler}");
        let alone = pipeline.generate(&draft(&settings[..4])).expect("an image");
        assert!(apart(&images[0].latents, &alone[0].latents) > 1e-3, "{upscaler}: the steps are its own");
    }
    // Without a step it is the first pass, enlarged.
    let none = pipeline.generate(&draft(&[("hires", "2"), ("hires-strength", "0"), ("steps", "4")])).expect("an image");
    assert_eq!(none[0].image.dimensions(), (96, 64));
    // The refiner belongs to the last pass.
    let refiner = data("parity/sdxl-refiner").display().to_string();
    let both = [("hires", "1.5"), ("refiner", refiner.as_str()), ("steps", "4"), ("refiner-switch", "0.4")];
    assert_eq!(pipeline.generate(&draft(&both)).expect("an image")[0].image.dimensions(), (72, 48));
    // Windows as large as the image are the image.
    let windowed = |window: &str| latents(&pipeline, &draft(&[("hires", "2"), ("steps", "3"), ("hires-window", window)]));
    let whole = latents(&pipeline, &draft(&[("hires", "2"), ("steps", "3")]));
    assert!(apart(&windowed("96"), &whole) < 1e-6);
    let small = windowed("64");
    assert!(apart(&small, &whole) > 1e-4 && small.dims() == whole.dims());
}

#[test]
fn self_attention_guides_as_in_diffusers() {
    let golden = safetensors::load(data("guidance/self_attention.safetensors"), &Device::Cpu).expect("the golden latents");
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(golden.len(), 7);
    for model in ["sd15", "sd21-v", "sdxl"] {
        let pipelines = [pipeline_of(model, false), pipeline_of(model, true)];
        for (name, wanted) in golden.iter().filter(|(name, _)| name.starts_with(&format!("{model}/"))) {
            let [_, sampler, guidance, scale] = name.split('/').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let config = match sampler {
                "ddim" => Some(scheduler(folder.path(), "DDIMScheduler", r#", "clip_sample": false, "set_alpha_to_one": false"#)),
                "dpm++2m" => Some(scheduler(folder.path(), "DPMSolverMultistepScheduler", "")),
                _ => None,
            };
            let mut settings = vec![("steps", "5"), ("guidance-scale", guidance), ("sag-scale", scale)];
            settings.extend(config.as_deref().map(|config| ("scheduler-config", config)));
            let made: Vec<f64> = pipelines.iter().map(|pipeline| apart(&latents(pipeline, &draft(&settings)), wanted)).collect();
            assert!(made.iter().all(|apart| *apart < 2e-4), "{name}: {made:?}");
        }
    }
}

#[test]
fn self_attention_guidance_goes_with_batches_and_passes() {
    let pipeline = pipeline(false);
    let bits = |latents: &Tensor| -> Vec<u32> {
        let numbers: Vec<f32> = latents.flatten_all().and_then(|x| x.to_vec1()).expect("numbers");
        numbers.into_iter().map(f32::to_bits).collect()
    };
    let sag = [("sag-scale", "1"), ("steps", "3"), ("pag-scale", "2")];
    let both = pipeline.generate(&draft(&[&sag[..], &[("images", "2")]].concat())).expect("two images");
    assert_eq!(bits(&both[0].latents), bits(&latents(&pipeline, &draft(&sag))), "an image does not depend on its batch");
    assert_ne!(bits(&both[0].latents), bits(&latents(&pipeline, &draft(&sag[1..]))));
    let second = draft(&sag).with(|draft| draft.seed = Some(Seed::Is(8)));
    assert_eq!(bits(&both[1].latents), bits(&latents(&pipeline, &second)));
    // The refiner is guided so too, and the pass after the first.
    let refiner = data("parity/sdxl-refiner").display().to_string();
    let passes = [("hires", "1.5"), ("refiner", refiner.as_str()), ("steps", "4"), ("refiner-switch", "0.4")];
    let with = latents(&pipeline, &draft(&[&passes[..], &[("sag-scale", "1"), ("tiling", "x")]].concat()));
    assert!(apart(&with, &latents(&pipeline, &draft(&[&passes[..], &[("tiling", "x")]].concat()))) > 1e-3);
    // Guidance by estimates, and with parts that add up.
    let apg = latents(&pipeline, &draft(&[("sag-scale", "1"), ("steps", "3"), ("apg", "eta=1,norm=0,momentum=0")]));
    let plain = latents(&pipeline, &draft(&[("sag-scale", "1"), ("steps", "3")]));
    assert!(apart(&apg, &plain) < 2e-4, "where noise is predicted, both are the same");
    let parts =
        draft(&[("sag-scale", "1"), ("steps", "3"), ("prompt-syntax", "a1111")]).with(|draft| draft.prompts = vec!["a AND b".into()]);
    assert_eq!(latents(&pipeline, &parts).dims(), plain.dims());
}
