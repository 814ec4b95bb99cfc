//! The same model in every layout: what is concluded, that every key is used, and that no bit is lost on the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod weights_models;

use candle_core::{DType, Device};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sd_gen::family::{SD1, SD2, SDXL, SDXL_REFINER};
use sd_gen::models::{AutoencoderKLDecoder, AutoencoderKLEncoder, ClipTextModel, Scope, UNet2DCondition};
use sd_gen::spec::{Activation, Family, ModelSpec};
use sd_gen::weights::{Checkpoint, Component, Layout, OpenOptions, TensorSource, TokenizerFiles, WeightType, convert, convert_observed};
use std::collections::BTreeMap;
use std::path::Path;
use weights_models::{Plan, Shapes, file, file_of_size, original, refiner, sd1, sd2, sdxl};

type Stored = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// All tensors of a file, read by the format's own reader.
fn stored(bytes: &[u8]) -> Stored {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    tensors.iter().map(|(name, t)| (name.to_owned(), (t.dtype().to_string(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// All tensors of a folder's components.
fn stored_in(folder: &Path) -> Stored {
    let mut all = Stored::new();
    for component in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for path in std::fs::read_dir(&component).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|e| e == "safetensors") {
                let name = component.file_name().unwrap().to_str().unwrap().to_owned();
                all.extend(stored(&std::fs::read(path).unwrap()).into_iter().map(|(key, tensor)| (format!("{name}/{key}"), tensor)));
            }
        }
    }
    all
}

/// Loads all networks with the program's own models, which checks every shape.
fn load_everything(model: &Checkpoint) {
    let spec = model.spec();
    let (unet, vae) = (model.component(Component::UNET), model.component(Component::VAE));
    UNet2DCondition::load(&Scope::root(&unet, DType::F32, &Device::Cpu), &spec.unet).unwrap();
    AutoencoderKLEncoder::load(&Scope::root(&vae, DType::F32, &Device::Cpu), &spec.vae).unwrap();
    AutoencoderKLDecoder::load(&Scope::root(&vae, DType::F32, &Device::Cpu), &spec.vae).unwrap();
    for (i, text) in spec.text_encoders.iter().enumerate() {
        let source = model.component(Component::text_encoder(i));
        ClipTextModel::load(&Scope::root(&source, DType::F32, &Device::Cpu), &text.clip).unwrap();
    }
}

fn comparable(model: &Checkpoint) -> ModelSpec {
    let mut spec = model.spec().clone();
    spec.evidence.clear();
    spec.scheduler.source = None;
    spec
}

fn open(plan: &Plan, metadata: &[(&str, &str)]) -> Checkpoint {
    Checkpoint::from_bytes("test model", file(&original(plan), metadata)).unwrap()
}

fn prediction(model: &Checkpoint) -> &str {
    model.spec().scheduler.file.prediction_type.as_deref().unwrap()
}

fn evidence(model: &Checkpoint, part: &str) -> bool {
    model.spec().evidence.iter().any(|sentence| sentence.contains(part))
}

const FAMILIES: [(Family, fn() -> Plan); 4] = [(SD1, sd1), (SD2, sd2), (SDXL, sdxl), (SDXL_REFINER, refiner)];

#[test]
fn every_family_is_recognised_and_every_key_of_it_is_used() {
    for (family, plan) in FAMILIES {
        let model = open(&plan(), &[]);
        assert_eq!(model.spec().family, family);
        assert_eq!(model.unknown(), Vec::<String>::new(), "{family:?}");
        assert!(!model.unused().is_empty());
        load_everything(&model);
        assert_eq!(model.unused(), Vec::<String>::new(), "{family:?}");
    }
}

#[test]
fn sd1_is_read_off_its_tensors() {
    let model = open(&sd1(), &[]);
    let spec = model.spec();
    assert_eq!(
        spec.unet.down.iter().map(|l| (l.channels, l.depths.clone(), l.resample)).collect::<Vec<_>>(),
        [(32, vec![1, 1], true), (64, vec![1, 1], true), (64, vec![1, 1], true), (64, vec![0, 0], false)]
    );
    assert_eq!(
        spec.unet.up.iter().map(|l| (l.channels, l.depths.clone(), l.resample)).collect::<Vec<_>>(),
        [(64, vec![0, 0, 0], true), (64, vec![1, 1, 1], true), (64, vec![1, 1, 1], true), (32, vec![1, 1, 1], false)]
    );
    assert_eq!((spec.unet.down[0].heads, spec.unet.mid.as_ref().unwrap().heads), (8, 8));
    assert!(!spec.unet.linear_projection && spec.unet.text_time.is_none());
    assert_eq!(spec.unet.cross_attention_dim, 768);
    assert_eq!(
        (spec.vae.scaling_factor, spec.vae.block_out_channels.as_slice(), spec.vae.layers_per_block),
        (0.18215, &[32, 32, 64, 64][..], 2)
    );
    let text = &spec.text_encoders[0];
    assert_eq!((text.clip.heads, text.clip.layers, text.clip.activation), (12, 2, Activation::QuickGelu));
    assert_eq!((text.skip_layers, text.final_norm, text.pooled, text.pad_token.as_str()), (0, true, false, "<|endoftext|>"));
    assert_eq!(text.clip.eos_token_id as usize, weights_models::VOCABULARY - 1);
    assert_eq!((spec.default_size, spec.zero_missing_negative, spec.aesthetic_score), (512, false, false));
    assert_eq!(spec.scheduler.file.class_name.as_deref(), Some("PNDMScheduler"));
    assert_eq!((spec.scheduler.file.skip_prk_steps, spec.scheduler.file.steps_offset), (Some(true), Some(1)));
    assert_eq!((spec.defaults.steps, spec.defaults.guidance_scale), (None, 7.5));
}

#[test]
fn sd2_takes_the_penultimate_layer_with_the_final_norm() {
    let model = open(&sd2(), &[]);
    let spec = model.spec();
    let text = &spec.text_encoders[0];
    assert_eq!((text.skip_layers, text.final_norm, text.pad_token.as_str(), text.clip.activation), (1, true, "!", Activation::Gelu));
    assert_eq!((text.clip.projection_dim, text.clip.heads), (None, 16));
    assert_eq!(spec.unet.down.iter().map(|l| l.heads).collect::<Vec<_>>(), [1, 2, 2, 1]);
    assert_eq!(spec.scheduler.file.class_name.as_deref(), Some("DDIMScheduler"));
}

#[test]
fn a_tower_without_its_last_layer_has_nothing_to_skip() {
    let mut plan = sd2();
    plan.text[0].layers = 23;
    let model = open(&plan, &[]);
    assert_eq!((model.spec().text_encoders[0].clip.layers, model.spec().text_encoders[0].skip_layers), (23, 0));
    assert!(evidence(&model, "left out already"));
    plan.text[0] = weights_models::Text { layers: 5, projection: None, ..plan.text[0].clone() };
    assert_eq!(open(&plan, &[]).spec().text_encoders[0].skip_layers, 0);
    plan.text[0].layers = 24;
    assert_eq!(open(&plan, &[]).spec().text_encoders[0].skip_layers, 1);
}

#[test]
fn sdxl_takes_penultimate_layers_without_norm_and_the_second_pooled() {
    let model = open(&sdxl(), &[]);
    let spec = model.spec();
    for text in &spec.text_encoders {
        assert_eq!((text.skip_layers, text.final_norm), (1, false));
    }
    assert_eq!(
        spec.text_encoders.iter().map(|t| (t.pooled, t.clip.projection_dim)).collect::<Vec<_>>(),
        [(false, None), (true, Some(1280))]
    );
    let added = spec.unet.text_time.as_ref().unwrap();
    assert_eq!((added.time_embed_dim, added.projection_input_dim), (256, 2816));
    assert_eq!((spec.vae.scaling_factor, spec.vae.force_upcast), (0.13025, true));
    assert_eq!((spec.default_size, spec.zero_missing_negative, spec.aesthetic_score), (1024, true, false));
    assert_eq!(spec.scheduler.file.timestep_spacing.as_deref(), Some("leading"));
    assert_eq!(spec.defaults.guidance_scale, 5.0);
}

#[test]
fn the_refiner_takes_an_aesthetic_score() {
    let model = open(&refiner(), &[]);
    let spec = model.spec();
    assert!(spec.aesthetic_score && !spec.zero_missing_negative);
    assert_eq!(spec.unet.text_time.as_ref().unwrap().time_embed_dim, 256);
    assert_eq!(spec.unet.down.iter().map(|l| l.depths[0]).collect::<Vec<_>>(), [0, 2, 2, 0]);
}

#[test]
fn inpainting_and_editing_inputs_are_read_off_the_first_layer() {
    for in_channels in [8, 9] {
        assert_eq!(open(&Plan { in_channels, ..sd1() }, &[]).spec().unet.in_channels, in_channels);
    }
}

#[test]
fn a_turbo_file_has_sd2_behind_xl_prefixes() {
    let mut plan = sd2();
    plan.text[0].prefix = "conditioner.embedders.0.model.";
    let model = open(&plan, &[]);
    assert_eq!(model.spec().family, SD2);
    load_everything(&model);
    assert_eq!(model.unused(), Vec::<String>::new());
}

#[test]
fn an_old_file_lacks_text_model() {
    let mut plan = sd1();
    plan.text[0].prefix = "cond_stage_model.transformer.";
    let model = open(&plan, &[]);
    load_everything(&model);
    assert_eq!(model.unused(), Vec::<String>::new());
}

#[test]
fn distilled_unets_load_too() {
    // Fewer blocks, no attention in the middle, no middle, uneven depths.
    for plan in [
        Plan { blocks: 1, ..sd1() },
        Plan { mid_depth: Some(0), ..sd1() },
        Plan { mid_depth: None, ..sd1() },
        Plan { levels: vec![(32, 1), (64, 1), (64, 1)], mid_depth: None, ..sd1() },
        Plan { levels: vec![(64, 0), (128, 1), (192, 2)], mid_depth: Some(0), ..sdxl() },
    ] {
        let model = open(&plan, &[]);
        assert_eq!(model.spec().unet.down.len(), plan.levels.len());
        assert_eq!(model.spec().unet.mid.as_ref().map(|mid| mid.depth), plan.mid_depth);
        assert_eq!(model.unknown(), Vec::<String>::new());
        load_everything(&model);
        assert_eq!(model.unused(), Vec::<String>::new());
    }
}

#[test]
fn what_the_network_predicts_is_found_out_in_order() {
    assert_eq!(prediction(&open(&sd1(), &[])), "epsilon");
    assert_eq!(prediction(&open(&sd1(), &[("modelspec.prediction_type", "v")])), "v_prediction");

    let mut marked = original(&sdxl());
    marked.push(("v_pred".into(), vec![0]));
    let model = Checkpoint::from_bytes("marked", file(&marked, &[])).unwrap();
    assert_eq!((prediction(&model), model.spec().scheduler.file.rescale_betas_zero_snr), ("v_prediction", None));
    assert_eq!(model.unknown(), Vec::<String>::new());
    marked.push(("ztsnr".into(), vec![1]));
    let model = Checkpoint::from_bytes("marked", file(&marked, &[])).unwrap();
    assert_eq!((prediction(&model), model.spec().scheduler.file.rescale_betas_zero_snr), ("v_prediction", Some(true)));
    let model = Checkpoint::from_bytes("marked", file(&marked, &[("modelspec.prediction_type", "epsilon")])).unwrap();
    assert_eq!(prediction(&model), "epsilon");
    assert!(evidence(&model, "modelspec.prediction_type"));

    // Numbers around ±0.05, and around ±0.2.
    for (exponent, expected) in [(0x2800, ("epsilon", 512)), (0x3000, ("v_prediction", 768))] {
        let model = Checkpoint::from_bytes("spread", file_of_size(&original(&sd2()), &[], exponent)).unwrap();
        assert_eq!((prediction(&model), model.spec().default_size), expected);
        assert!(evidence(&model, "norm1.bias"));
        // What the metadata say wins over the statistic.
        let said = file_of_size(&original(&sd2()), &[("modelspec.prediction_type", "epsilon")], exponent);
        assert_eq!(prediction(&Checkpoint::from_bytes("said", said).unwrap()), "epsilon");
    }
    assert_eq!(open(&sd1(), &[("modelspec.resolution", "640x576")]).spec().default_size, 640);
    assert_eq!(open(&sd1(), &[("modelspec.resolution", "99999999999999999999x1")]).spec().default_size, 512);
}

/// Original → folder → original → folder: tensors are bit-equal, and the spec stays what it was.
#[test]
fn no_bit_is_lost_between_the_layouts() {
    for (family, plan) in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let bytes = file(&original(&plan()), &[("modelspec.prediction_type", "epsilon")]);
        let first = Checkpoint::from_bytes("first", bytes.clone()).unwrap();
        let folder = dir.path().join("folder");
        let report = convert(&first, &folder, Layout::Diffusers, None, &[]).unwrap();
        let second = Checkpoint::open(&folder).unwrap();
        assert_eq!(second.spec().family, family);
        assert_eq!(second.unknown(), Vec::<String>::new());
        load_everything(&second);
        assert_eq!(second.unused(), Vec::<String>::new());

        let single = dir.path().join("single.safetensors");
        convert(&second, &single, Layout::Original, None, &[]).unwrap();
        let third = Checkpoint::open(&single).unwrap();
        assert_eq!(comparable(&second), comparable(&third));
        let again = dir.path().join("again");
        convert(&third, &again, Layout::Diffusers, None, &[]).unwrap();
        assert!(stored_in(&folder) == stored_in(&again), "{family:?}");
        assert_eq!(comparable(&Checkpoint::open(&again).unwrap()), comparable(&second));

        let (before, after) = (stored(&bytes), stored(&std::fs::read(&single).unwrap()));
        for (key, tensor) in &after {
            assert!(before[key] == *tensor, "{family:?} {key}");
        }
        let lost: Vec<&String> = before.keys().filter(|key| !after.contains_key(*key)).collect();
        if family == SD2 {
            // diffusers has no use for the last layer and the projection.
            assert!(lost.iter().all(|key| key.contains("resblocks.2") || key.ends_with("text_projection") || key.ends_with("logit_scale")));
            assert!(report.notes.iter().any(|note| note.contains("layers were left out")));
            assert_eq!((second.spec().text_encoders[0].clip.layers, second.spec().text_encoders[0].skip_layers), (2, 0));
        } else {
            assert!(lost.iter().all(|key| key.ends_with("logit_scale")), "{lost:?}");
        }

        // Without what the file carries, the tensors alone say the same.
        let metadata: Vec<(&str, &str)> = vec![("modelspec.prediction_type", "epsilon")];
        let shapes: Shapes = after.iter().map(|(key, (_, shape, _))| (key.clone(), shape.clone())).collect();
        let bare = Checkpoint::from_bytes("bare", file(&shapes, &metadata)).unwrap();
        let text = |model: &Checkpoint| model.spec().text_encoders.clone();
        assert_eq!((bare.spec().unet.clone(), &bare.spec().vae), (first.spec().unet.clone(), &first.spec().vae));
        assert_eq!(text(&bare), text(if family == SD2 { &second } else { &first }));
    }
}

#[test]
fn an_xl_that_predicts_v_is_marked_for_other_programs() {
    let dir = tempfile::tempdir().unwrap();
    let mut marked = original(&sdxl());
    marked.extend([("v_pred".into(), vec![0]), ("ztsnr".into(), vec![0])]);
    let model = Checkpoint::from_bytes("marked", file(&marked, &[])).unwrap();
    let single = dir.path().join("single.safetensors");
    convert(&model, &single, Layout::Original, Some(WeightType::BF16), &[]).unwrap();
    let written = stored(&std::fs::read(&single).unwrap());
    assert!(written.contains_key("v_pred") && written.contains_key("ztsnr"));
    assert!(written.values().all(|(dtype, shape, _)| dtype == "BF16" || shape == &[0]));
    assert_eq!(prediction(&Checkpoint::open(&single).unwrap()), "v_prediction");
}

#[test]
fn a_conversion_never_overwrites_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = open(&sd1(), &[]);
    for (layout, name) in [(Layout::Original, "a.safetensors"), (Layout::Diffusers, "a")] {
        let to = dir.path().join(name);
        std::fs::write(&to, "mine").unwrap();
        let error = convert(&model, &to, layout, None, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "mine");
    }
    assert!(convert(&model, &dir.path().join("b"), Layout::Original, "q8_0".parse().ok(), &[]).is_err());
    assert!(convert(&model, &dir.path().join("b"), Layout::Gguf, Some(WeightType::F8_E4M3), &[]).is_err());
    assert!(convert(&model, &dir.path().join("none/b"), Layout::Original, None, &[]).is_err());
    // Whoever takes the name meanwhile keeps it.
    for (layout, name) in [(Layout::Original, "c.safetensors"), (Layout::Diffusers, "c")] {
        let to = dir.path().join(name);
        let taken = convert_observed(&model, &to, layout, None, &[], None, &mut |_| {
            std::fs::write(&to, "theirs").unwrap();
            Ok(())
        });
        assert_eq!(taken.unwrap_err().exit_code(), 1);
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "theirs");
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "a.safetensors", "c", "c.safetensors"]);
}

#[test]
fn tokenizers_travel_with_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let files = TokenizerFiles {
        vocab_json: "{\"a\": 0}".into(),
        merges: "#version: 0.2\na b\n".into(),
        pad_token: Some("!".into()),
        model_max_length: Some(77),
        added: vec![("<cat-toy>".into(), 1)],
    };
    let model = open(&sd2(), &[]);
    assert_eq!(model.tokenizer(0), None);
    let folder = dir.path().join("folder");
    convert(&model, &folder, Layout::Diffusers, None, &[("tokenizer", files.clone())]).unwrap();
    let model = Checkpoint::open(&folder).unwrap();
    assert_eq!(model.tokenizer(0), Some(&files));
    let single = dir.path().join("single.safetensors");
    convert(&model, &single, Layout::Original, None, &[]).unwrap();
    assert_eq!(Checkpoint::open(&single).unwrap().tokenizer(0), Some(&files));
}

#[test]
fn variants_shards_and_old_names_are_served_alike() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    convert(&open(&sd1(), &[]), &folder, Layout::Diffusers, None, &[]).unwrap();
    let expected = stored_in(&folder);
    let (unet, vae, text) = (folder.join("unet"), folder.join("vae"), folder.join("text_encoder"));
    let write = |path: &Path, tensors: &Stored| {
        let views = tensors.iter().map(|(key, (_, shape, data))| {
            (key.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    };
    let read = |path: &Path| stored(&std::fs::read(path).unwrap());

    // The UNet in two shards of a variant.
    let whole = unet.join("diffusion_pytorch_model.safetensors");
    let all = read(&whole);
    let (one, two): (Stored, Stored) = all.clone().into_iter().partition(|(key, _)| key.len() % 2 == 0);
    let mut map = serde_json::Map::new();
    for (i, shard) in [&one, &two].into_iter().enumerate() {
        let name = format!("diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors", i + 1);
        write(&unet.join(&name), shard);
        map.extend(shard.keys().map(|key| (key.clone(), name.clone().into())));
    }
    std::fs::remove_file(&whole).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(unet.join("diffusion_pytorch_model.safetensors.index.fp16.json"), index).unwrap();

    // The autoencoder with the names and the shapes that its attention once had.
    let path = vae.join("diffusion_pytorch_model.safetensors");
    let old = read(&path).into_iter().map(|(key, (dtype, mut shape, data))| {
        let mut new = key.clone();
        for (now, then) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
            new = new.replace(&format!("attentions.0.{now}."), &format!("attentions.0.{then}."));
        }
        if new != key && new.ends_with("weight") {
            shape.extend([1, 1]);
        }
        (new, (dtype, shape, data))
    });
    let old: Stored = old.collect();
    std::fs::remove_file(&path).unwrap();
    write(&path, &old);

    // The text encoder without `text_model.`, and with positions.
    let path = text.join("model.safetensors");
    let mut old: Stored = read(&path).into_iter().map(|(key, tensor)| (key.trim_start_matches("text_model.").to_owned(), tensor)).collect();
    old.insert("embeddings.position_ids".into(), ("F16".into(), vec![1], vec![0, 0]));
    std::fs::remove_file(&path).unwrap();
    write(&path, &old);

    let model = Checkpoint::open(&folder).unwrap();
    load_everything(&model);
    assert_eq!(model.unused(), Vec::<String>::new());
    let again = dir.path().join("again");
    convert(&model, &again, Layout::Diffusers, None, &[]).unwrap();
    assert!(stored_in(&again) == expected);
}

#[test]
fn full_precision_is_taken_unless_a_variant_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let model = open(&sd1(), &[]);
    convert(&model, &folder, Layout::Diffusers, None, &[]).unwrap();
    let single = dir.path().join("wide");
    convert(&model, &single, Layout::Diffusers, Some(WeightType::F32), &[]).unwrap();
    let name = "diffusion_pytorch_model";
    std::fs::rename(folder.join(format!("unet/{name}.safetensors")), folder.join(format!("unet/{name}.fp16.safetensors"))).unwrap();
    let file_of = |options: &OpenOptions| {
        let model = Checkpoint::open_with(&folder, options).unwrap();
        let error = model.component(Component::UNET).tensor("none", &[1], DType::F32, &Device::Cpu).unwrap_err();
        error.to_string()
    };
    assert!(file_of(&OpenOptions::default()).contains("fp16"));
    std::fs::copy(single.join(format!("unet/{name}.safetensors")), folder.join(format!("unet/{name}.safetensors"))).unwrap();
    assert!(!file_of(&OpenOptions::default()).contains("fp16"));
    assert!(file_of(&OpenOptions { prefer_variant: Some("fp16".into()), ..OpenOptions::default() }).contains("fp16"));
}

#[test]
fn stored_types_become_the_type_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = open(&sd1(), &[]);
    let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let read = |model: &Checkpoint, dtype| {
        let tensor = model.component(Component::UNET).tensor(name, &[32, 768], dtype, &Device::Cpu).unwrap();
        assert_eq!(tensor.dtype(), dtype);
        tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()
    };
    let expected = read(&model, DType::F32);
    assert!(read(&model, DType::F16) == expected);
    for (dtype, apart) in [("f32", 0.0), ("bf16", 1.0 / 128.0), ("f16", 0.0), ("f8_e4m3", 1.0 / 16.0)] {
        let path = dir.path().join(format!("{dtype}.safetensors"));
        convert(&model, &path, Layout::Original, dtype.parse().ok(), &[]).unwrap();
        let again = read(&Checkpoint::open(&path).unwrap(), DType::F32);
        for (a, b) in expected.iter().flatten().zip(again.iter().flatten()) {
            assert!((a - b).abs() <= a.abs() * apart + if dtype == "f8_e4m3" { 2f32.powi(-10) } else { 0.0 }, "{dtype} {a} {b}");
        }
    }
}

#[test]
fn uneven_depths_survive_a_folder() {
    // As SSD-1B has them: blocks of one level differ, and the way up is not the way down.
    let mut shapes = original(&sdxl());
    let gone =
        ["input_blocks.4.1.transformer_blocks.1", "output_blocks.0.1.transformer_blocks.2", "output_blocks.4.1.transformer_blocks.1"];
    shapes.retain(|(name, _)| !gone.iter().any(|part| name.contains(part)));
    let model = Checkpoint::from_bytes("uneven", file(&shapes, &[])).unwrap();
    let depths = |levels: &[sd_gen::spec::UNetLevel]| levels.iter().map(|level| level.depths.clone()).collect::<Vec<_>>();
    assert_eq!(depths(&model.spec().unet.down), [vec![0, 0], vec![1, 2], vec![3, 3]]);
    assert_eq!(depths(&model.spec().unet.up), [vec![2, 3, 3], vec![2, 1, 2], vec![0, 0, 0]]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    convert(&model, &folder, Layout::Diffusers, None, &[]).unwrap();
    let again = Checkpoint::open(&folder).unwrap();
    assert_eq!(
        (depths(&again.spec().unet.down), depths(&again.spec().unet.up)),
        (depths(&model.spec().unet.down), depths(&model.spec().unet.up))
    );
    assert_eq!(again.unknown(), Vec::<String>::new());
    load_everything(&again);
}

#[test]
fn distilled_unets_survive_a_folder() {
    for plan in [
        Plan { mid_depth: Some(0), ..sd1() },
        Plan { mid_depth: None, ..sd1() },
        Plan { levels: vec![(64, 0), (128, 1), (192, 2)], mid_depth: Some(0), ..sdxl() },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        convert(&open(&plan, &[]), &folder, Layout::Diffusers, None, &[]).unwrap();
        let again = Checkpoint::open(&folder).unwrap();
        assert_eq!(again.spec().unet.mid.as_ref().map(|mid| mid.depth), plan.mid_depth);
        load_everything(&again);
        assert_eq!(again.unused(), Vec::<String>::new());
    }
}

/// Rewrites a field of a JSON file, or takes it away.
fn edit(path: &Path, field: &str, value: Option<serde_json::Value>) {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    match value {
        Some(value) => config.insert(field.to_owned(), value),
        None => config.remove(field),
    };
    std::fs::write(path, serde_json::Value::Object(config).to_string()).unwrap();
}

#[test]
fn a_folder_inside_the_program_is_opened_like_one_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("m");
    let tokenizer = TokenizerFiles {
        vocab_json: "{}".into(),
        merges: String::new(),
        pad_token: Some("!".into()),
        model_max_length: None,
        added: Vec::new(),
    };
    convert(&open(&sd1(), &[]), &root, Layout::Diffusers, None, &[("tokenizer", tokenizer)]).unwrap();
    let mut files: Vec<(&'static str, &'static [u8])> = Vec::new();
    for entry in std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()) {
        let inside: Vec<_> =
            if entry.is_dir() { std::fs::read_dir(entry).unwrap().map(|e| e.unwrap().path()).collect() } else { vec![entry] };
        for path in inside {
            let relative = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            files.push((relative.leak(), std::fs::read(path).unwrap().leak()));
        }
    }
    let model = Checkpoint::from_embedded("inside", files.leak()).unwrap();
    assert_eq!(comparable(&model), comparable(&Checkpoint::open(&root).unwrap()));
    assert_eq!(model.tokenizer(0).map(|files| files.vocab_json.as_str()), Some("{}"));
    load_everything(&model);
    assert_eq!(model.unused(), Vec::<String>::new());
    assert!(Checkpoint::from_embedded("nothing", &[]).is_err());
}

#[test]
fn a_distilled_models_scheduler_changes_steps_and_guidance() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("m");
    convert(&open(&sdxl(), &[]), &root, Layout::Diffusers, None, &[]).unwrap();
    let config = root.join("scheduler/scheduler_config.json");
    let defaults = || {
        let model = Checkpoint::open(&root).unwrap();
        let distilled = evidence(&model, "distilled");
        (model.spec().defaults.steps, model.spec().defaults.guidance_scale, distilled)
    };
    assert_eq!(defaults(), (None, 5.0, false));
    edit(&config, "_class_name", Some("EulerAncestralDiscreteScheduler".into()));
    assert_eq!(defaults(), (None, 5.0, false));
    edit(&config, "timestep_spacing", Some("trailing".into()));
    assert_eq!(defaults(), (Some(1), 0.0, true));
    edit(&config, "prediction_type", Some("v_prediction".into()));
    assert_eq!(defaults(), (None, 5.0, false));
    edit(&config, "_class_name", Some("LCMScheduler".into()));
    edit(&config, "prediction_type", None);
    assert_eq!(defaults().0, Some(4));
    // As Python writes it.
    std::fs::write(&config, r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}"#).unwrap();
    assert_eq!(defaults().0, None);
    std::fs::remove_file(&config).unwrap();
    assert!(evidence(&Checkpoint::open(&root).unwrap(), "usual one"));

    // What the maker recommends goes before, and travels.
    std::fs::write(
        root.join("sd-gen.json"),
        r#"{"steps": 9, "guidance_scale": 1.5, "latent_rgb": [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0.5, 1], [-1, -1, -1]]}"#,
    )
    .unwrap();
    assert_eq!((defaults().0, defaults().1), (Some(9), 1.5));
    let single = dir.path().join("single.safetensors");
    convert(&Checkpoint::open(&root).unwrap(), &single, Layout::Original, None, &[]).unwrap();
    let spec = Checkpoint::open(&single).unwrap().spec().clone();
    assert_eq!(spec.defaults.steps, Some(9));
    let latent_rgb = spec.vae.latent_rgb.unwrap();
    assert_eq!((latent_rgb.factors[1], latent_rgb.factors.len(), latent_rgb.bias), ([4.0, 5.0, 6.0], 4, [-1.0; 3]));
    for bad in ["[[1, 2, 3]]", "[[1,2,3],[1,2,3],[1,2,3],[1,2,3],[1,2]]", "[[1,2,3],[1,2,3],[1,2,3],[1,2,3],[1,2,\"x\"]]", "7"] {
        std::fs::write(root.join("sd-gen.json"), format!("{{\"latent_rgb\": {bad}}}")).unwrap();
        let said = Checkpoint::open(&root).unwrap_err().to_string();
        assert!(said.contains("sd-gen.json") && said.contains("latent_rgb"), "{said}");
    }
}

#[test]
fn a_folders_index_and_configurations_are_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("m");
    convert(&open(&sdxl(), &[]), &root, Layout::Diffusers, None, &[]).unwrap();
    let spec = || Checkpoint::open(&root).unwrap().spec().clone();
    assert!(spec().zero_missing_negative && !spec().aesthetic_score);
    edit(&root.join("model_index.json"), "force_zeros_for_empty_prompt", Some(false.into()));
    assert!(!spec().zero_missing_negative);
    edit(&root.join("model_index.json"), "force_zeros_for_empty_prompt", None);
    assert!(spec().zero_missing_negative);
    edit(&root.join("unet/config.json"), "attention_head_dim", Some(serde_json::json!([1, 4, 6])));
    assert_eq!((spec().unet.down[1].heads, spec().unet.up[0].heads, spec().unet.mid.unwrap().heads), (4, 6, 6));
    edit(&root.join("unet/config.json"), "num_attention_heads", Some(serde_json::json!([1, 8, 3])));
    assert_eq!((spec().unet.down[1].heads, spec().unet.up[0].heads, spec().unet.mid.unwrap().heads), (8, 3, 3));
    let before = spec().unet;
    edit(&root.join("unet/config.json"), "upcast_attention", Some(true.into()));
    assert_eq!(spec().unet, before, "every attention of ours is upcast");
    edit(&root.join("unet/config.json"), "sample_size", Some(serde_json::json!([96, 64])));
    assert_eq!(spec().default_size, 96 * 8);
    edit(&root.join("vae/config.json"), "shift_factor", Some(0.25.into()));
    edit(&root.join("vae/config.json"), "force_upcast", Some(false.into()));
    assert_eq!((spec().vae.shift_factor, spec().vae.force_upcast), (0.25, false));
    edit(&root.join("tokenizer/special_tokens_map.json"), "pad_token", Some(serde_json::json!({ "content": "x", "lstrip": false })));
    assert_eq!(spec().text_encoders[0].pad_token, "x");
    // Without an index the folder says enough.
    std::fs::remove_file(root.join("model_index.json")).unwrap();
    assert_eq!(spec().family, SDXL);
    edit(&root.join("text_encoder_2/config.json"), "architectures", Some(serde_json::json!(["CLIPTextModel"])));
    assert!(Checkpoint::open(&root).unwrap_err().to_string().contains("text_projection"));
}

/// The error of a file with these tensors.
fn refused(names: &Shapes) -> String {
    Checkpoint::from_bytes("x.safetensors", file(names, &[])).unwrap_err().to_string()
}

/// The tensors of a plan, with every name put through `rename`.
fn renamed(plan: &Plan, rename: impl Fn(&str) -> String) -> Shapes {
    original(plan).into_iter().map(|(name, shape)| (rename(&name), shape)).collect()
}

/// The file of a plan, with every tensor put through `edit`: its name, dtype, shape and bytes.
fn edited(plan: &Plan, edit: impl Fn(&str, &mut Dtype, &mut Vec<usize>, &mut Vec<u8>) -> String) -> Vec<u8> {
    let bytes = file(&original(plan), &[]);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors.iter() {
        let (mut dtype, mut shape, mut data) = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
        let name = edit(name, &mut dtype, &mut shape, &mut data);
        all.push((name, dtype, shape, data));
    }
    let views = all.iter().map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

/// The tensors of a file as a folder has them.
fn as_folder(bytes: Vec<u8>) -> Stored {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    convert(&Checkpoint::from_bytes("x.safetensors", bytes).unwrap(), &folder, Layout::Diffusers, None, &[]).unwrap();
    stored_in(&folder)
}

#[test]
fn other_writings_of_a_file_are_the_same_bits() {
    const PROJECTION: &str = "conditioner.embedders.1.model.text_projection";
    // diffusers' converter writes the projection as a layer, whose matrix lies the other way.
    let transposed = edited(&sdxl(), |name, _, shape, data| {
        if name != PROJECTION {
            return name.to_owned();
        }
        let (rows, columns) = (shape[0], shape[1]);
        let at = |row: usize, column: usize| data[2 * (row * columns + column)..][..2].to_vec();
        *data = (0..columns).flat_map(|column| (0..rows).flat_map(|row| at(row, column)).collect::<Vec<_>>()).collect();
        *shape = vec![columns, rows];
        format!("{PROJECTION}.weight")
    });
    assert!(as_folder(transposed) == as_folder(file(&original(&sdxl()), &[])));
    // Trainers write the autoencoder's attention under diffusers' names, as convolutions or as layers.
    let plain = as_folder(file(&original(&sd1()), &[]));
    for flat in [false, true] {
        let renamed = edited(&sd1(), |name, _, shape, _| {
            if flat && name.contains("mid.attn_1.") && shape.len() == 4 {
                shape.truncate(2);
            }
            let pairs = [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];
            pairs
                .iter()
                .fold(name.to_owned(), |name, (from, to)| name.replace(&format!("mid.attn_1.{from}."), &format!("mid.attn_1.{to}.")))
        });
        assert!(as_folder(renamed) == plain, "flat: {flat}");
    }
}

#[test]
fn a_weight_of_eight_bits_is_multiplied_by_its_scale() {
    const LAYER: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k";
    let read = |bytes: Vec<u8>| {
        let model = Checkpoint::from_bytes("x.safetensors", bytes).unwrap();
        let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        let tensor = model.component(Component::UNET).tensor(name, &[32, 768], DType::F32, &Device::Cpu).unwrap();
        tensor.to_vec2::<f32>().unwrap().concat()
    };
    let eight = |ending: Option<&str>| {
        let mut bytes = edited(&sd1(), |name, dtype, shape, data| {
            if name == format!("{LAYER}.weight") {
                // 0x38 is 1 in E4M3.
                (*dtype, *data) = (Dtype::F8_E4M3, vec![0x38; shape.iter().product()]);
            }
            name.to_owned()
        });
        if let Some(ending) = ending {
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let half = 0.5f32.to_le_bytes();
            let mut views: Vec<(String, TensorView<'_>)> = tensors.tensors();
            views.push((format!("{LAYER}.{ending}"), TensorView::new(Dtype::F32, vec![], &half).unwrap()));
            bytes = safetensors::serialize(views, None).unwrap();
        }
        read(bytes)
    };
    assert!(eight(None).iter().all(|x| *x == 1.0));
    for ending in ["weight_scale", "scale_weight"] {
        assert!(eight(Some(ending)).iter().all(|x| *x == 0.5), "{ending}");
    }
}

#[test]
fn an_autoencoders_attention_is_found_under_any_of_its_names() {
    let plain = open(&sd1(), &[]);
    for leaves in [["to_q", "to_k", "to_v", "to_out.0"], ["query", "key", "value", "proj_attn"]] {
        let names = renamed(&sd1(), |name| {
            let pairs = ["q", "k", "v", "proj_out"].iter().zip(leaves);
            pairs.fold(name.to_owned(), |name, (from, to)| name.replace(&format!("mid.attn_1.{from}."), &format!("mid.attn_1.{to}.")))
        });
        let model = Checkpoint::from_bytes("x.safetensors", file(&names, &[])).unwrap();
        assert!(model.spec().vae.mid_attention);
        assert_eq!(model.unknown(), Vec::<String>::new());
        let count = |model: &Checkpoint| model.component(Component::VAE).shape("decoder.mid_block.attentions.0.to_q.weight");
        assert_eq!(count(&model), count(&plain));
        load_everything(&model);
    }
    // Under none of them it is missed, and not left out.
    let names = renamed(&sd1(), |name| name.replace("mid.attn_1.q.", "mid.attn_1.ask."));
    assert!(refused(&names).contains("mid.attn_1.ask."), "{}", refused(&names));
}

#[test]
fn a_tensor_of_a_layer_that_was_left_out_is_an_error() {
    for (extra, network) in [
        ("model.diffusion_model.input_blocks.99.0.in_layers.0.weight", "the UNet"),
        ("model.diffusion_model.middle_block.1.more.weight", "the UNet"),
        ("first_stage_model.decoder.up.0.attn.0.q.weight", "the autoencoder"),
        ("cond_stage_model.transformer.text_model.encoder.layers.7.mlp.fc1.weight", "the text encoder"),
    ] {
        let mut names = original(&sd1());
        names.push((extra.to_owned(), vec![3]));
        let said = refused(&names);
        assert!(said.contains(extra) && said.contains(network), "{said}");
    }
    // A gap in the numbering leaves the layers behind it out.
    let gap = renamed(&sd1(), |name| name.replace("encoder.layers.1.", "encoder.layers.2."));
    assert!(refused(&gap).contains("encoder.layers.2."), "{}", refused(&gap));
    // What is of no use to anybody may stay.
    let mut names = original(&sd1());
    for harmless in ["first_stage_model.model_ema.decay", "cond_stage_model.transformer.text_model.embeddings.position_ids"] {
        names.push((harmless.to_owned(), vec![3]));
    }
    Checkpoint::from_bytes("x.safetensors", file(&names, &[])).unwrap();
}

#[test]
fn a_projection_may_be_stored_as_a_layer() {
    let names = renamed(&sdxl(), |name| name.replace("1.model.text_projection", "1.model.text_projection.weight"));
    let model = Checkpoint::from_bytes("x.safetensors", file(&names, &[])).unwrap();
    assert_eq!(model.spec().text_encoders[1].clip.projection_dim, Some(1280));
    load_everything(&model);
}

#[test]
fn scales_of_eight_bit_weights_are_known_and_other_quantisations_are_refused() {
    let with = |mark: &str| {
        let mut names = original(&sd1());
        names.push((mark.replace('X', "model.diffusion_model.out.2"), vec![1]));
        names
    };
    for mark in ["scaled_fp8", "X.scale_weight", "X.weight_scale", "X.scale_input"] {
        let model = Checkpoint::from_bytes("x.safetensors", file(&with(mark), &[])).unwrap();
        assert!(model.unknown().is_empty(), "{mark}: {:?}", model.unknown());
    }
    let said = refused(&with("X.comfy_quant"));
    assert!(said.contains("comfy_quant") && said.contains("scaled_fp8"), "{said}");
}

#[test]
fn learned_words_do_not_move_the_end_of_a_text() {
    for (rows, end) in [(49_408, 49_407), (49_409, 49_407), (49_600, 49_407), (96, 95)] {
        let names = original(&sd1()).into_iter().map(|(name, shape)| match name.ends_with("token_embedding.weight") {
            true => (name, vec![rows, shape[1]]),
            false => (name, shape),
        });
        let model = Checkpoint::from_bytes("x.safetensors", file(&names.collect(), &[])).unwrap();
        assert_eq!(model.spec().text_encoders[0].clip.eos_token_id, end, "{rows}");
    }
}

#[test]
fn a_text_encoder_without_its_vocabulary_is_missed_by_name() {
    let names = renamed(&sd1(), |name| name.replace("token_embedding.weight", "token_embedding.wrapped.weight"));
    let said = refused(&names);
    assert!(said.contains("text_model.embeddings.token_embedding.weight") && said.contains("token_embedding.wrapped.weight"), "{said}");
}

#[test]
fn a_tokenizer_is_read_from_whatever_files_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let vocab = "{\"a\":0,\"b</w>\":1,\"ab</w>\":2}";
    let files = TokenizerFiles {
        vocab_json: vocab.into(),
        merges: "a b</w>".into(),
        // As the family pads, which is what is written.
        pad_token: Some("<|endoftext|>".into()),
        model_max_length: Some(77),
        added: Vec::new(),
    };
    convert(&open(&sd1(), &[]), &folder, Layout::Diffusers, None, &[("tokenizer", files.clone())]).unwrap();
    let tokenizer = folder.join("tokenizer");
    let read = || Checkpoint::open(&folder).unwrap().tokenizer(0).cloned();
    assert_eq!(read(), Some(files.clone()));
    // A byte order mark.
    std::fs::write(tokenizer.join("vocab.json"), format!("\u{feff}{vocab}")).unwrap();
    let scheduler = folder.join("scheduler/scheduler_config.json");
    std::fs::write(&scheduler, format!("\u{feff}{}", std::fs::read_to_string(&scheduler).unwrap())).unwrap();
    assert_eq!(read(), Some(files.clone()));
    // tokenizer.json alone, its merges as pairs or as lines.
    std::fs::remove_file(tokenizer.join("vocab.json")).unwrap();
    std::fs::remove_file(tokenizer.join("merges.txt")).unwrap();
    assert_eq!(read(), None);
    for merges in ["[[\"a\", \"b</w>\"]]", "[\"a b</w>\"]"] {
        let whole = format!(
            "{{\"added_tokens\": [{{\"id\": 0, \"content\": \"a\"}}], \"model\": {{\"type\": \"BPE\", \"vocab\": {vocab}, \"merges\": {merges}}}}}"
        );
        std::fs::write(tokenizer.join("tokenizer.json"), whole).unwrap();
        assert_eq!(read(), Some(files.clone()), "{merges}");
    }
    std::fs::write(tokenizer.join("tokenizer.json"), "{\"model\": {\"vocab\": {}, \"merges\": [1]}}").unwrap();
    assert!(Checkpoint::open(&folder).unwrap_err().to_string().contains("tokenizer.json"));
    std::fs::remove_file(tokenizer.join("tokenizer.json")).unwrap();
    // Words that a training added, in either of the files that are written for them.
    std::fs::write(tokenizer.join("vocab.json"), vocab).unwrap();
    std::fs::write(tokenizer.join("merges.txt"), "a b</w>").unwrap();
    std::fs::write(tokenizer.join("added_tokens.json"), "{\"<cat-toy>\": 3}").unwrap();
    let with_word = TokenizerFiles { added: vec![("<cat-toy>".into(), 3)], ..files };
    assert_eq!(read(), Some(with_word.clone()));
    std::fs::remove_file(tokenizer.join("added_tokens.json")).unwrap();
    let decoder = serde_json::json!({ "0": { "content": "a" }, "3": { "content": "<cat-toy>", "special": false } });
    edit(&tokenizer.join("tokenizer_config.json"), "added_tokens_decoder", Some(decoder));
    assert_eq!(read(), Some(with_word));
}
