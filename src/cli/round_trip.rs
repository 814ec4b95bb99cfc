//! A setting's way through an image: flags → request → the text in the PNG → `inspect` → the printed command → flags → the same request.

use super::commands::Cli;
use crate::batch::Key;
use crate::inputs::{InputFile, InputReader};
use crate::metadata::{GeneratedBy, KEYWORD, Text, command, parameters, understand};
use crate::sampling::Sampler;
use crate::settings::{Draft, Effect, Request, Setting, ValueKind, table};
use crate::spec::ModelSpec;
use candle_core::DType;
use clap::Parser;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use std::path::Path;

/// Settings that decide the pixels. A named scheduler configuration is in the PNG, but the command can only say so.
fn rows() -> Vec<&'static Setting> {
    let decides = |row: &&Setting| matches!(row.effect, Effect::Image | Effect::Scheduler) && row.name != "scheduler-config";
    table().iter().filter(decides).collect()
}

fn generator() -> GeneratedBy {
    GeneratedBy { label: "m".into(), dtype: DType::F32, vae_dtype: DType::F32, parts: Vec::new() }
}

/// A value of a setting, by a number.
fn value(row: &Setting, number: f64, text: &str, folder: &Path) -> String {
    let words = (row.words)();
    let (least, most) = row.range.unwrap_or((0.0, 100.0));
    let within = least + number * (most.min(least + 1000.0) - least);
    match row.kind {
        _ if !row.example.is_empty() => row.example.to_owned(),
        ValueKind::Switch => "true".into(),
        // Sides are multiples of 8, and every text encoder has a second layer.
        ValueKind::Whole if row.name == "width" || row.name == "height" => (64 + 8 * (number * 10.0) as usize).to_string(),
        ValueKind::Whole if row.name == "clip-skip" => "2".into(),
        ValueKind::Whole => (within as usize).max(1).to_string(),
        ValueKind::Number => within.to_string(),
        ValueKind::Text if words.is_empty() => text.to_owned(),
        ValueKind::File => {
            let file = folder.join(format!("{}.png", row.name));
            ::image::GrayImage::from_pixel(64, 64, ::image::Luma([1 + (number * 254.0) as u8])).save(&file).unwrap();
            file.display().to_string()
        }
        _ => words
            .get((number * words.len() as f64) as usize)
            .copied()
            .unwrap_or_else(|| panic!("--{}: give its row an example", row.name))
            .to_owned(),
    }
}

/// Puts files where the examples of settings name some.
fn place_files(draft: &mut Draft, folder: &Path) {
    for row in table().iter().filter(|row| !row.example.is_empty()) {
        for file in (row.access.files)(draft) {
            if !file.path().exists() {
                let place = folder.join(file.path());
                std::fs::write(&place, row.name).unwrap();
                *file = file.found_at(&place);
            }
        }
    }
}

/// The request that is made of what `inspect` prints for an image of `request`.
fn again(request: &Request, spec: &ModelSpec, folder: &Path) -> crate::Result<Request> {
    let text = parameters(request, request.seed, &generator())?;
    let recipe = understand(&[Text { place: "PNG tEXt", keyword: KEYWORD.into(), text: text.clone() }])
        .unwrap_or_else(|| panic!("not understood: {text}"));
    let command = command(&recipe);
    let arguments = std::iter::once("sd-gen".to_owned()).chain(command.arguments.clone());
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|e| panic!("{text}\n{}\n{e}", command.shell()));
    let mut draft: Draft = cli.generate.0;
    // The text names files without their folders.
    for row in table() {
        for file in (row.access.files)(&mut draft) {
            *file = InputFile::named(&folder.join(file.path()));
        }
    }
    draft.read_files(&mut InputReader::default())?;
    draft.resolve(spec)
}

fn assert_same(request: &Request, spec: &ModelSpec, folder: &Path) {
    let again = again(request, spec, folder).unwrap_or_else(|e| panic!("{:?}: {e}", request.canonical()));
    assert_eq!((&again.prompt, again.seed, again.canonical()), (&request.prompt, request.seed, request.canonical()));
    let key = |request: &Request| Key::of("m", &generator(), request, request.seed).unwrap();
    assert_eq!(key(&again), key(request));
}

#[test]
fn every_setting_alone_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let spec = crate::family::well_known("sd15").unwrap();
    for row in rows() {
        for number in [0.0, 0.3, 0.99] {
            let mut draft = Draft::new("a cat").with(|d| d.seed = Some(crate::settings::Seed::Is(7)));
            draft.set(row.name, [value(row, number, "a \"dog\", (big:1.2)", folder.path())]).unwrap();
            place_files(&mut draft, folder.path());
            // Not every value goes with every model: eta is for some samplers.
            match draft.resolve(&spec) {
                Ok(request) => assert_same(&request, &spec, folder.path()),
                Err(error) => assert_eq!(error.exit_code(), 2, "{error}"),
            }
        }
    }
}

#[test]
fn every_sampler_may_be_the_models_own() {
    let folder = tempfile::tempdir().unwrap();
    for name in crate::family::well_known_names() {
        let spec = crate::family::well_known(name).unwrap();
        for sampler in Sampler::all() {
            for key in ["", "use_karras_sigmas", "use_exponential_sigmas", "rescale_betas_zero_snr"] {
                // As a folder's file has it: nothing is named that the class decides.
                let mut spec = spec.clone();
                let mut file = serde_json::json!({ "_class_name": sampler.class_name(), "beta_start": 0.00085, "beta_end": 0.012 });
                if !key.is_empty() {
                    file[key] = true.into();
                }
                spec.scheduler = crate::sampling::SchedulerConfig::from_json(&file.to_string(), "scheduler_config.json").unwrap();
                let request = Draft::new("a cat").with(|d| d.seed = Some(crate::settings::Seed::Is(7))).resolve(&spec);
                match request {
                    Ok(request) => assert_same(&request, &spec, folder.path()),
                    Err(error) => assert!(error.to_string().contains(key), "{}: {error}", sampler.name()),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_settings_together_come_back(
        chosen in subsequence((0..rows().len()).collect::<Vec<_>>(), 0..rows().len().min(6)),
        numbers in proptest::collection::vec(0.0..1.0f64, 6),
        prompt in "[^\u{0}-\u{8}\u{a}-\u{1f}\u{7f}-\u{9f}]{1,40}",
        family: Index,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = crate::family::well_known_names().collect();
        let name: &&str = family.get(names.as_slice());
        let spec = crate::family::well_known(name).unwrap();
        let mut draft = Draft::new(prompt.trim()).with(|d| d.seed = Some(crate::settings::Seed::Is(u64::MAX)));
        for (at, number) in chosen.into_iter().zip(numbers) {
            let row = rows()[at];
            draft.set(row.name, [value(row, number, prompt.trim(), folder.path())]).unwrap();
        }
        place_files(&mut draft, folder.path());
        if let Ok(request) = draft.resolve(&spec) {
            assert_same(&request, &spec, folder.path());
        }
    }
}
