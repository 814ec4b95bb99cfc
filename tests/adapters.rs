//! LoRA and its relatives against what LyCORIS and PEFT merge themselves, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod weights_models;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use sd_gen::adapter::{Adapter, AdapterCache, AdapterChoice, AdapterUse, Deltas, EmbeddingFile, LoraChoice, ModelWithDeltas};
use sd_gen::pipeline::{BatchItem, Pipeline, Silent};
use sd_gen::settings::{Draft, InputFile, Request, Seed, WeightedFile};
use sd_gen::spec::Component;
use sd_gen::weights::{Checkpoint, ModelSource, TensorChanges};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weights_models::{Shapes, file};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters")
}

fn emoji() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap()
}

fn used(name: &str, weight: f64) -> AdapterUse {
    let adapter = Arc::new(Adapter::open(&data().join(format!("{name}.safetensors"))).unwrap());
    adapter.check_numbers().unwrap();
    AdapterUse { adapter, weight, text_weight: weight }
}

fn values(model: &dyn ModelSource, name: &str) -> Vec<f32> {
    let component = if name.starts_with("text_model") { Component::text_encoder(0) } else { Component::UNET };
    let source = model.tensors(component);
    // A bias that an adapter adds is as long as its weight has rows.
    let weight = || source.shape(&name.replace(".bias", ".weight")).unwrap()[..1].to_vec();
    let shape = source.shape(name).unwrap_or_else(weight);
    let values: Vec<f32> = source.tensor(name, &shape, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    // What is lent for packing is the same: the numbers as they are stored and the product to add, or all computed.
    let mut lent = source.in_place(name, &shape).unwrap().unwrap();
    let product = lent.take_product();
    let mut sum: Vec<f32> = match lent.dtype() {
        DType::F16 => lent.bytes().as_chunks().0.iter().map(|number| half::f16::from_le_bytes(*number).to_f32()).collect(),
        _ => lent.bytes().as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect(),
    };
    if let Some((a, b)) = product {
        let columns = sum.len() / shape[0];
        let rank = a.len() / shape[0];
        for (row, a) in sum.chunks_mut(columns).zip(a.chunks(rank)) {
            row.iter_mut().zip(b.chunks(rank)).for_each(|(x, b)| *x += a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>());
        }
    }
    assert!(values.iter().zip(&sum).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + a.abs())), "{name}");
    values
}

#[test]
fn every_format_and_spelling_merges_as_its_own_package_merges_it() {
    let model = emoji();
    let strengths: BTreeMap<String, f64> = serde_json::from_slice(&std::fs::read(data().join("strengths.json")).unwrap()).unwrap();
    let bytes = std::fs::read(data().join("merged.safetensors")).unwrap();
    let merged = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = 0;
    for (name, strength) in &strengths {
        let deltas = Deltas::bind(&model, &[used(name, *strength)], false).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model = ModelWithDeltas::new(&model, Arc::new(deltas));
        for (key, wanted) in merged.tensors().into_iter().filter(|(key, _)| key.split_once('/').unwrap().0 == name) {
            let wanted: Vec<f32> = wanted.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let found: Vec<f32> = values(&model, key.split_once('/').unwrap().1).into_iter().step_by(13).collect();
            assert_eq!(found.len(), wanted.len(), "{key}");
            let size = (wanted.iter().map(|x| x * x).sum::<f32>() / wanted.len() as f32).sqrt();
            let apart = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= 1e-5 * size, "{key}: {apart} apart of {size}");
            checked += 1;
        }
    }
    assert_eq!(checked, merged.len());
    assert!(strengths.len() >= 26);
}

#[test]
fn several_adapters_are_applied_in_order_and_zero_changes_nothing() {
    let model = emoji();
    let query = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let with = |uses: &[AdapterUse]| values(&ModelWithDeltas::new(&model, Arc::new(Deltas::bind(&model, uses, false).unwrap())), query);
    let base: Vec<f32> = {
        let source = model.tensors(Component::UNET);
        let shape = source.shape(query).unwrap();
        source.tensor(query, &shape, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (one, other) = (with(&[used("kohya", 0.5)]), with(&[used("loha", -0.5)]));
    for (((both, one), other), base) in with(&[used("kohya", 0.5), used("loha", -0.5)]).iter().zip(&one).zip(&other).zip(&base) {
        assert!((both - (one + other - base)).abs() < 1e-5);
    }
    // What reads the weight reads it as it is by then.
    assert_ne!(with(&[used("kohya", 1.0), used("ia3", 1.0)]), with(&[used("ia3", 1.0), used("kohya", 1.0)]));
    let deltas = Deltas::bind(&model, &[used("kohya", 0.0)], false).unwrap();
    assert!(deltas.is_empty() && deltas.signature(Component::UNET).is_empty());
    assert_eq!(deltas.applied(), ["kohya: 4 of 4 layers"]);
    let unet_only = Deltas::bind(&model, &[AdapterUse { text_weight: 0.0, ..used("kohya", 1.0) }], false).unwrap();
    assert!(unet_only.layers(Component::text_encoder(0)).is_empty() && unet_only.layers(Component::UNET).len() == 3);
}

/// A request with these adapters.
fn request(pipeline: &Pipeline, choice: &AdapterChoice) -> Request {
    let draft = Draft::new("a red apple").with(|draft| {
        draft.seed = Some(Seed::Is(3));
        draft.sampling.steps = Some(1);
        draft.set_size(Some((64, 64)));
        let lora = |lora: &LoraChoice| WeightedFile { file: InputFile::named(&lora.path), weights: vec![lora.weight, lora.text_weight] };
        draft.adapters.lora = choice.loras.iter().map(lora).collect();
        draft.adapters.embedding = choice.embeddings.iter().map(|path| InputFile::named(path)).collect();
    });
    draft.resolve(pipeline.spec()).unwrap()
}

/// What the loaded networks make of fixed inputs.
fn generated(pipeline: &Pipeline, choice: &AdapterChoice) -> Vec<f32> {
    let request = request(pipeline, choice);
    let prompt = pipeline.encode_prompt(&request, &mut Silent).unwrap();
    let items = BatchItem::of_seeds(&request, &prompt, &[3]);
    pipeline.denoise(&items, &mut Silent).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn choice(loras: &[(&str, f64)]) -> AdapterChoice {
    let lora = |(name, weight): &(&str, f64)| LoraChoice {
        path: data().join(format!("{name}.safetensors")),
        weight: *weight,
        text_weight: *weight,
    };
    AdapterChoice { loras: loras.iter().map(lora).collect(), ..AdapterChoice::default() }
}

#[test]
fn adapters_are_swapped_in_a_loaded_pipeline_and_leave_no_trace() {
    let model = Arc::new(emoji());
    let load = || Pipeline::load_shared(model.clone(), &Device::Cpu, DType::F32, DType::F32, &mut Silent).unwrap();
    let fresh = |of: &AdapterChoice| generated(&load(), of);
    let (none, one, two) = (choice(&[]), choice(&[("kohya", 1.0)]), choice(&[("loha", 1.0), ("full", 0.5)]));
    let (plain, first, second) = (fresh(&none), fresh(&one), fresh(&two));
    assert!(plain != first && first != second && plain != second);
    let pipeline = load();
    for (of, wanted) in [(&none, &plain), (&one, &first), (&two, &second), (&one, &first), (&none, &plain)] {
        assert!(generated(&pipeline, of) == *wanted, "{of:?} after others is not what it is at first");
    }
    assert!(generated(&pipeline, &choice(&[("kohya", 0.0)])) == plain);
    let in_turn = Pipeline::in_turn(model.clone(), &Device::Cpu, DType::F32, DType::F32).unwrap();
    for (of, wanted) in [(&one, &first), (&two, &second), (&none, &plain)] {
        assert!(generated(&in_turn, of) == *wanted);
    }
    // A pipeline whose model is gone says so.
    let gone = Pipeline::load(&*model, &Device::Cpu, DType::F32, DType::F32, &mut Silent).unwrap();
    assert!(gone.adapters(&request(&gone, &one)).unwrap_err().to_string().contains("load_shared"));
}

#[test]
fn words_are_learned_and_forgotten() {
    let model = Arc::new(emoji());
    let folder = tempfile::tempdir().unwrap();
    let width = model.spec().text_encoders[0].clip.hidden_size;
    let vectors = Tensor::randn(0f32, 1.0, (2, width), &Device::Cpu).unwrap();
    let path = folder.path().join("red.safetensors");
    candle_core::safetensors::save(&[("emb_params".to_owned(), vectors)].into(), &path).unwrap();
    assert_eq!(EmbeddingFile::open(&path).unwrap().words(model.spec()).unwrap().len(), 1);
    let pipeline = Pipeline::load_shared(model.clone(), &Device::Cpu, DType::F32, DType::F32, &mut Silent).unwrap();
    let with = AdapterChoice { embeddings: vec![path], ..AdapterChoice::default() };
    let plain = generated(&pipeline, &AdapterChoice::default());
    let learned = generated(&pipeline, &with);
    assert_ne!(plain, learned);
    assert!(generated(&pipeline, &AdapterChoice::default()) == plain);
    assert!(generated(&pipeline, &with) == learned);
}

/// An adapter of zeros with these tensors.
fn open(folder: &Path, tensors: &[(&str, &[usize])]) -> Adapter {
    let shapes: Shapes = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    let path = folder.join("x.safetensors");
    std::fs::write(&path, file(&shapes, &[])).unwrap();
    Adapter::open(&path).unwrap()
}

#[test]
fn what_does_not_fit_is_named_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let model = emoji();
    let query = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    let key = |leaf: &str| format!("{query}.{leaf}");
    let (up, down, alpha) = (key("lora_up.weight"), key("lora_down.weight"), key("alpha"));
    let missing = ("lora_unet_up_blocks_9_x.lora_up.weight", &[4, 2][..]);
    for (tensors, said) in [
        (vec![(up.as_str(), &[128, 2][..]), (&down, &[2, 64])], "64 to 128"),
        (vec![(up.as_str(), &[128, 2][..]), (&down, &[3, 128])], "lora_up"),
        (vec![(up.as_str(), &[128, 0][..]), (&down, &[0, 128])], "no numbers"),
        (vec![(up.as_str(), &[128, 2][..])], "missing"),
        (vec![(up.as_str(), &[128, 5000][..]), (&down, &[5000, 128])], "rank of 5000"),
        (vec![(up.as_str(), &[128, 2][..]), (&down, &[2, 128]), (&alpha, &[2])], "not one number"),
        (vec![missing], "up_blocks_9"),
    ] {
        let adapter = Arc::new(open(folder.path(), &tensors));
        let error = Deltas::bind(&model, &[AdapterUse { adapter, weight: 1.0, text_weight: 1.0 }], false).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("x.safetensors") && !error.contains('\n'), "{error}");
    }
    let adapter = Arc::new(open(folder.path(), &[(&up, &[128, 2]), (&down, &[2, 128]), missing]));
    let of = |partial| Deltas::bind(&model, &[AdapterUse { adapter: adapter.clone(), weight: 1.0, text_weight: 1.0 }], partial);
    assert!(of(false).unwrap_err().to_string().contains("`lora-partial` takes the 1 layers"));
    assert_eq!(of(true).unwrap().applied(), ["x: 1 of 2 layers"]);

    let refused = |name: &str, tensors: &[(&str, &[usize])], said: &str| {
        let shapes: Shapes = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        let path = folder.path().join(name);
        std::fs::write(&path, file(&shapes, &[])).unwrap();
        let error = Adapter::open(&path).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    refused(
        "twice.safetensors",
        &[(&up, &[128, 2]), (&format!("unet.{}.lora_up.weight", &query[10..]), &[128, 2])],
        "the same part of one layer",
    );
    refused("word.safetensors", &[("emb_params", &[2, 768])], "`embedding`");
    refused("other.safetensors", &[("x.y", &[2, 768])], "no LoRA that is known");
    refused("pickle.pt", &[("x.y", &[2])], "pickle");
}

/// What `inspect` says of a LoRA and a model is what a run applies, and that is what changes.
#[test]
fn what_is_said_to_fit_is_what_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let model = emoji();
    let block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0";
    let lora = |layer: String, input: usize, output: usize| {
        let random = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        [(format!("{layer}.lora_down.weight"), random((2, input))), (format!("{layer}.lora_up.weight"), random((output, 2)))]
    };
    let tensors = [
        lora(format!("{block}_attn1_to_q"), 128, 128),
        lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj".into(), 128, 128),
        lora(format!("{block}_attn1_to_k"), 96, 128),
        lora("lora_unet_up_blocks_9_x".into(), 8, 8),
    ];
    let path = folder.path().join("some.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().flatten().collect(), &path).unwrap();
    let adapter = Arc::new(Adapter::open(&path).unwrap());
    let fit = adapter.fit(&model);
    assert_eq!((fit.keys, fit.layers, fit.of, fit.absent.len(), fit.misshapen.len()), (4, 2, 4, 2, 2));
    let deltas = Deltas::bind(&model, &[AdapterUse { adapter, weight: 1.0, text_weight: 1.0 }], true).unwrap();
    assert_eq!(deltas.applied(), ["some: 2 of 4 layers"]);
    let names = deltas.names();
    assert_eq!(names.len(), fit.layers);
    let changed = ModelWithDeltas::new(&model, Arc::new(deltas));
    for (component, name) in names {
        let numbers = |model: &dyn ModelSource| -> Vec<f32> {
            let source = model.tensors(component);
            let shape = source.shape(&name).unwrap();
            source.tensor(&name, &shape, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_ne!(numbers(&changed), numbers(&model), "{name}");
    }
    // The same words on the command line.
    let mut inspect = std::process::Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    let inspect = inspect.args(["inspect", "--json", "--no-hash", "--model", "emoji", "some.safetensors"]).current_dir(folder.path());
    let said: serde_json::Value = serde_json::from_slice(&inspect.output().unwrap().stdout).unwrap();
    assert_eq!((&said[0]["fit"]["layers"], &said[0]["fit"]["of"]), (&2.into(), &4.into()), "{said}");
    let run = ["-p", "an apple", "--steps", "1", "--lora", "some.safetensors", "--lora-partial"];
    let (fine, said, _) = sd_gen(folder.path(), &run);
    assert!(fine && said.contains("some: 2 of 4 layers"), "{said}");
    let (fine, said, _) = sd_gen(folder.path(), &run[..6]);
    assert!(!fine && said.contains("--lora-partial takes the 2 layers that fit"), "{said}");
}

#[test]
fn hostile_files_are_one_sentence_and_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let said = |name: &str| {
        let choice = LoraChoice { path: folder.path().join(name), weight: 1.0, text_weight: 1.0 };
        let choice = AdapterChoice { loras: vec![choice], ..AdapterChoice::default() };
        let error = AdapterCache::default().prepare(&emoji(), &choice).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains('\n') && error.len() < 600, "{error}");
        error
    };
    let query = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    // More keys than any adapter has.
    let many: Shapes = (0..100_001).map(|i| (format!("lora_unet_{i}.lora_up.weight"), vec![1])).collect();
    std::fs::write(folder.path().join("many.safetensors"), file(&many, &[])).unwrap();
    assert!(said("many.safetensors").contains("100001 tensors"));
    // Ten gigabytes of rank, in a file whose bytes are there and are nothing.
    let (rank, half) = (20_000_000u64, 128 * 20_000_000u64 * 2);
    let header = format!(
        r#"{{"{query}.lora_up.weight":{{"dtype":"F16","shape":[128,{rank}],"data_offsets":[0,{half}]}},"{query}.lora_down.weight":{{"dtype":"F16","shape":[{rank},128],"data_offsets":[{half},{}]}}}}"#,
        2 * half
    );
    let path = folder.path().join("rank.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + 2 * half).unwrap();
    assert!(said("rank.safetensors").contains("rank of 20000000"));
    // And in one whose bytes are not.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 + header.len() as u64).unwrap();
    said("rank.safetensors");
    // A scale that is no number.
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors = [
        (format!("{query}.lora_up.weight"), zeros((128, 2))),
        (format!("{query}.lora_down.weight"), zeros((2, 128))),
        (format!("{query}.alpha"), Tensor::new(f32::NAN, &Device::Cpu).unwrap()),
    ];
    candle_core::safetensors::save(&tensors.into(), folder.path().join("alpha.safetensors")).unwrap();
    assert!(said("alpha.safetensors").contains("NaN"));
}

#[test]
fn numbers_that_are_none_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight".to_owned();
    let nan = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap().broadcast_as((128, 2)).unwrap().contiguous().unwrap();
    let down = Tensor::zeros((2, 128), DType::F32, &Device::Cpu).unwrap();
    candle_core::safetensors::save(&[(name.replace("lora_up", "lora_down"), down), (name.clone(), nan)].into(), &path).unwrap();
    let choice = AdapterChoice { loras: vec![LoraChoice { path, weight: 1.0, text_weight: 1.0 }], ..AdapterChoice::default() };
    let error = AdapterCache::default().prepare(&emoji(), &choice).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains(&name), "{error}");
}

/// Runs the program in `folder`.
fn sd_gen(folder: &Path, arguments: &[&str]) -> (bool, String, Vec<PathBuf>) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    let output = command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").output().unwrap();
    let paths = String::from_utf8_lossy(&output.stdout).lines().map(|line| folder.join(line)).collect();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned(), paths)
}

#[test]
fn the_program_says_what_it_applied_and_writes_it_down() {
    let folder = tempfile::tempdir().unwrap();
    let loras = folder.path().join("loras");
    std::fs::create_dir(&loras).unwrap();
    std::fs::copy(data().join("kohya.safetensors"), loras.join("detail.safetensors")).unwrap();
    let base = ["--prompt", "a red apple", "--seed", "1", "--steps", "1", "--lora-dir", "loras"];
    let with = |more: &[&str]| sd_gen(folder.path(), &[&base[..], more].concat());
    let pixels = |paths: &[PathBuf]| image::open(&paths[0]).unwrap().to_rgb8();
    let (plain, applied, off) = (with(&[]), with(&["--lora", "detail:2"]), with(&["--lora", "detail:0"]));
    assert!(plain.0 && applied.0 && off.0, "{}{}{}", plain.1, applied.1, off.1);
    assert!(applied.1.contains("detail: 4 of 4 layers"), "{}", applied.1);
    assert_ne!(pixels(&applied.2), pixels(&plain.2));
    assert_eq!(pixels(&off.2), pixels(&plain.2));
    let said = String::from_utf8_lossy(&std::fs::read(&applied.2[0]).unwrap()).into_owned();
    assert!(said.contains("Lora hashes: \"detail: "), "{said:.400}");
    // The image's own command makes it again.
    let inspected = std::process::Command::new(env!("CARGO_BIN_EXE_sd-gen"))
        .args(["inspect", "--json", "--no-hash"])
        .arg(&applied.2[0])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("detail.safetensors:2"));
    for (more, said) in [(["--lora", "detial"], "there is no LoRA \"detial\""), (["--embedding", "nothing"], "there is no embedding")] {
        let (fine, error, _) = with(&more);
        assert!(!fine && error.contains(said), "{error}");
    }
}

#[test]
fn a_merged_model_generates_what_the_lora_does() {
    let folder = tempfile::tempdir().unwrap();
    let lora = data().join("kohya.safetensors");
    let lora = format!("{}:1.5", lora.display());
    let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
    let emoji = emoji.to_str().unwrap();
    let (fine, said, _) = sd_gen(folder.path(), &["convert", emoji, "merged", "--lora", &lora, "--dtype", "f32"]);
    assert!(fine && said.contains("4 of 4 layers"), "{said}");
    let base = ["--prompt", "a red apple", "--seed", "1", "--steps", "1", "--model"];
    let generate = |more: &[&str]| {
        let (fine, said, paths) = sd_gen(folder.path(), &[&base[..], more].concat());
        assert!(fine, "{said}");
        image::open(&paths[0]).unwrap().to_rgb8()
    };
    assert_eq!(generate(&["merged"]), generate(&[emoji, "--lora", &lora]));
}
