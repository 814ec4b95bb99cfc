//! What `inspect`, `models`, `devices`, `completions` and `man` say, word for word where people read it.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod weights_models;

use sd_gen::adapter::Change;
use sd_gen::survey::{Kind, Survey};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use weights_models::{Plan, Shapes, file, original, refiner, sd1, sd2, sdxl};

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").env("XDG_CACHE_HOME", folder.join(".cache"));
    command.output().expect("sd-gen starts")
}

/// What the program says to `arguments` on standard output.
fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = sd_gen(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn said_json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(folder, arguments)).expect("JSON")
}

fn shapes(rows: &[(&str, &[usize])]) -> Shapes {
    rows.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn survey(shapes: &Shapes, metadata: &[(&str, &str)]) -> Survey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, file(shapes, metadata)).unwrap();
    Survey::of(&path).unwrap()
}

#[test]
fn whole_models_are_named_with_nothing_missing() {
    let edit = Plan { in_channels: 8, ..sd1() };
    let inpaint = Plan { in_channels: 9, ..sdxl() };
    for (plan, what, does, prediction) in [
        (sd1(), "Stable Diffusion 1.x, one file", "generates", "epsilon"),
        (sd2(), "Stable Diffusion 2.x, one file", "generates", "epsilon"),
        (sdxl(), "Stable Diffusion XL, one file", "generates", "epsilon"),
        (refiner(), "Stable Diffusion XL refiner, one file", "refines", "epsilon"),
        (edit, "Stable Diffusion 1.x for editing by instruction, one file", "edits", "epsilon"),
        (inpaint, "Stable Diffusion XL for inpainting, one file", "inpaints", "epsilon"),
    ] {
        let found = survey(&original(&plan), &[]);
        assert_eq!((found.kind, found.what.as_str(), found.does), (Kind::Model, what, does));
        assert_eq!(found.prediction.as_ref().map(|(p, _)| *p), Some(prediction), "{what}");
        assert_eq!((found.missing.as_slice(), found.unused.as_slice(), &found.problem), (&[][..], &[][..], &None), "{what}");
        let unet = original(&plan)
            .iter()
            .filter(|(name, _)| name.starts_with("model."))
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum();
        assert_eq!((found.components[0].title.as_str(), found.components[0].parameters()), ("UNet", unet));
        assert_eq!(found.components[0].bytes(), 2 * unet);
    }
}

#[test]
fn missing_and_unused_keys_are_named() {
    let mut names = original(&sd1());
    names.retain(|(name, _)| {
        name != "first_stage_model.decoder.conv_out.bias" && !name.ends_with("output_blocks.0.0.skip_connection.weight")
    });
    names.push(("something.else".to_owned(), vec![3]));
    let found = survey(&names, &[("modelspec.prediction_type", "v")]);
    assert_eq!(
        found.missing,
        ["first_stage_model.decoder.conv_out.bias", "model.diffusion_model.output_blocks.0.0.skip_connection.weight"]
    );
    assert_eq!(found.unused, ["something.else"]);
    assert_eq!(found.prediction.map(|(p, _)| p), Some("v_prediction"));
    assert!(found.problem.unwrap().contains("lacks 2 tensors"));
}

#[test]
fn parts_and_add_ons_and_other_families_are_named() {
    let part = |prefix: &str| -> Shapes {
        original(&sd2()).into_iter().filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?.to_owned(), shape))).collect()
    };
    for (shapes, kind, what) in [
        (part("model.diffusion_model."), Kind::UNet, "a UNet of Stable Diffusion 2.x"),
        (part("first_stage_model."), Kind::Vae, "an autoencoder for Stable Diffusion 1.x, 2.x and XL"),
        (part("cond_stage_model.model."), Kind::TextEncoder, "a text encoder of OpenCLIP-H (Stable Diffusion 2.x)"),
        (shapes(&[("encoder.block.0.layer.0.SelfAttention.q.weight", &[8, 8])]), Kind::TextEncoder, "a text encoder (T5)"),
        (shapes(&[("emb_params", &[4, 768])]), Kind::Embedding, "a textual inversion for Stable Diffusion 1.x"),
        (shapes(&[("<word>", &[1024])]), Kind::Embedding, "a textual inversion for Stable Diffusion 2.x"),
        (shapes(&[("clip_g", &[2, 1280]), ("clip_l", &[2, 768])]), Kind::Embedding, "a textual inversion for Stable Diffusion XL"),
        (shapes(&[("double_blocks.0.img_attn.qkv.weight", &[1])]), Kind::OtherModel, "Flux or a relative"),
        (shapes(&[("control_model.input_hint_block.0.weight", &[1])]), Kind::ControlNet, "a ControlNet"),
        (shapes(&[("controlnet_mid_block.weight", &[1]), ("control_add_embedding.x", &[1])]), Kind::ControlNet, "a ControlNet Union"),
        (shapes(&[("adapter.body.0.block1.weight", &[1])]), Kind::AddOn, "a T2I-Adapter"),
        (shapes(&[("depth_head.scratch.layer1_rn.weight", &[1])]), Kind::AddOn, "a depth network (Depth Anything)"),
        (shapes(&[("neck.reassemble_stage.layers.0.x", &[1])]), Kind::AddOn, "a depth network (Depth Anything)"),
        (shapes(&[("down_blocks.0.motion_modules.0.x", &[1])]), Kind::AddOn, "AnimateDiff's motion module"),
        (shapes(&[("body.0.rdb1.conv1.weight", &[1])]), Kind::Upscaler, "an ESRGAN upscaler"),
        (shapes(&[("body.0.weight", &[8, 3, 3, 3]), ("body.1.weight", &[8])]), Kind::Upscaler, "a Compact upscaler"),
        (shapes(&[("layers.0.mlp", &[1])]), Kind::Unknown, "tensors of nothing that is known"),
    ] {
        let found = survey(&shapes, &[]);
        assert_eq!((found.kind, found.what.as_str()), (kind, what));
    }
}

#[test]
fn loras_of_every_kind_are_named() {
    const UNET: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    const XL: &str = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let kohya = |site: &str, input: usize, more: &[(&str, &[usize])]| {
        let mut shapes = shapes(&[]);
        for (end, shape) in [(".lora_down.weight", vec![8, input]), (".lora_up.weight", vec![32, 8]), (".alpha", vec![])] {
            shapes.push((format!("{site}{end}"), shape));
        }
        shapes.extend(more.iter().map(|(end, shape)| (format!("{site}{end}"), shape.to_vec())));
        shapes
    };
    let renamed = |from: &[&str], to: &[&str]| -> Shapes {
        kohya(UNET, 768, &[])
            .into_iter()
            .filter_map(|(name, shape)| {
                from.iter().zip(to).find_map(|(end, other)| Some((format!("{}{other}", name.strip_suffix(end)?), shape.clone())))
            })
            .collect()
    };
    let ends = [".lora_down.weight", ".lora_up.weight"];
    let peft: Shapes = [("A", [8, 768]), ("B", [32, 8])]
        .map(|(ab, shape)| (format!("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{ab}.weight"), shape.to_vec()))
        .to_vec();
    for (shapes, change, what) in [
        (kohya(UNET, 768, &[]), Change::Lora, "LoRA (kohya keys) for Stable Diffusion 1.x"),
        (kohya(UNET, 1024, &[]), Change::Lora, "LoRA (kohya keys) for Stable Diffusion 2.x"),
        (kohya(XL, 2048, &[]), Change::Lora, "LoRA (kohya keys) for Stable Diffusion XL"),
        (kohya(UNET, 768, &[(".dora_scale", &[32, 1])]), Change::Lora, "LoRA with DoRA (kohya keys) for Stable Diffusion 1.x"),
        (peft, Change::Lora, "LoRA (diffusers keys) for Stable Diffusion 1.x"),
        (renamed(&ends, &[".hada_w1_b", ".hada_w1_a"]), Change::LoHa, "LyCORIS LoHa (kohya keys) for Stable Diffusion 1.x"),
        (renamed(&ends, &[".lokr_w2_b", ".lokr_w1"]), Change::LoKr, "LyCORIS LoKr (kohya keys)"),
        (renamed(&ends, &[".oft_blocks", ".rescale"]), Change::Oft, "LyCORIS OFT (kohya keys)"),
        (renamed(&ends, &[".a1.weight", ".b1.weight"]), Change::GLora, "LyCORIS GLoRA (kohya keys) for Stable Diffusion 1.x"),
        (
            kohya("lora_unet_double_blocks_0_img_attn_qkv", 3072, &[]),
            Change::Lora,
            "LoRA (kohya keys) for a transformer (Flux, Stable Diffusion 3 or a relative)",
        ),
    ] {
        let found = survey(&shapes, &[]);
        let adapter = found.adapter.as_ref().unwrap_or_else(|| panic!("{what}: {found:?}"));
        assert_eq!((found.kind, found.what.as_str(), adapter.changes()), (Kind::Adapter, what, vec![change]));
    }
}

#[test]
fn numbered_layers_and_kronecker_products_tell_their_family() {
    // cloneofsimo/lora numbers its layers, and keeps the words that it learns in the same file.
    for (width, family) in [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x")] {
        let found = survey(
            &shapes(&[
                ("unet:0:down", &[2, 320]),
                ("unet:0:up", &[320, 2]),
                ("unet:1:down", &[2, width]),
                ("unet:1:up", &[320, 2]),
                ("text_encoder:0:down", &[2, width]),
                ("text_encoder:0:up", &[width, 2]),
                ("<s1>", &[width]),
            ]),
            &[("<s1>", "<embed>")],
        );
        assert_eq!((found.kind, found.family), (Kind::Adapter, Some(family)));
        assert_eq!(found.what, format!("LoRA (cloneofsimo keys) for {family}"));
        let adapter = found.adapter.expect("a LoRA");
        assert_eq!((adapter.ranks(), adapter.word_names().collect::<Vec<_>>()), (vec![2], vec!["<s1>"]));
    }
    // A Kronecker product is as wide as its factors' widths multiplied, whole or as products themselves.
    let layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    for (one, other, family) in [
        (&[("lokr_w1", &[4, 32][..])][..], &[("lokr_w2_a", &[80, 4][..]), ("lokr_w2_b", &[4, 24][..])][..], "Stable Diffusion 1.x"),
        (&[("lokr_w1_a", &[20, 4][..]), ("lokr_w1_b", &[4, 32][..])][..], &[("lokr_w2", &[16, 32][..])][..], "Stable Diffusion 2.x"),
        (&[("lokr_w1", &[4, 64][..])][..], &[("lokr_w2", &[160, 32][..])][..], "Stable Diffusion XL"),
    ] {
        let names: Shapes = one.iter().chain(other).map(|(end, shape)| (format!("{layer}.{end}"), shape.to_vec())).collect();
        assert_eq!(survey(&names, &[]).family, Some(family), "{names:?}");
    }
}

#[test]
fn a_lora_is_held_against_a_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), file(&original(&sd1()), &[])).unwrap();
    let site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0";
    let (te, ldm) = ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_unet_input_blocks_4_1_proj_in");
    let names = [
        (format!("{site}_attn2_to_k"), 768, 32),
        (format!("{site}_attn1_to_out_0"), 32, 32),
        (format!("{site}_attn1_to_q"), 64, 32),
        (te.to_owned(), 768, 768),
        (ldm.to_owned(), 64, 64),
        ("lora_unet_down_blocks_7_x".to_owned(), 32, 32),
    ];
    let shapes: Shapes = names
        .iter()
        .flat_map(|(name, input, output)| {
            [(format!("{name}.lora_down.weight"), vec![4, *input]), (format!("{name}.lora_up.weight"), vec![*output, 4])]
        })
        .collect();
    let metadata = [("ss_base_model_version", "sd_v1"), ("ss_tag_frequency", r#"{"a": {"cat": 3, "dog": 5}}"#)];
    std::fs::write(folder.path().join("lora.safetensors"), file(&shapes, &metadata)).unwrap();
    let text = said(folder.path(), &["inspect", "lora.safetensors", "--model", "model.safetensors", "--no-hash"]);
    let size = std::fs::metadata(folder.path().join("lora.safetensors")).unwrap().len() as f64 / 1e3;
    let wanted = "
  does          changes a model
  holds         tensors: 10.8 thousand parameters, 12 tensors F16 21.5 kB
  ranks         4
  changes       UNet: 5 layers
                text encoder 1: 1 layer
  applies       8 keys, in 4 of 6 layers
  not there     lora_unet_down_blocks_7_x.lora_down.weight
                lora_unet_down_blocks_7_x.lora_up.weight
  other shapes  lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight (64 to 32 where the model has [32, 32])
                lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight (64 to 32 where the model has [32, 32])
  evidence      down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k takes text of width 768.
  trained on    dog (5), cat (3)
  metadata      ss_base_model_version: sd_v1
                … and 1 more (--verbose)
";
    assert_eq!(text, format!("lora.safetensors: LoRA (kohya keys) for Stable Diffusion 1.x, {size:.1} kB{wanted}"));
    let json = said_json(folder.path(), &["inspect", "lora.safetensors", "--model", "model.safetensors", "--json"]);
    assert_eq!(json[0]["fit"]["keys"], 8);
    assert_eq!(json[0]["lora"]["layers"], json!({ "UNet": 5, "text encoder 1": 1 }));
    assert_eq!(json[0]["trained_words"][0], json!({ "word": "dog", "times": 5 }));
    assert_eq!(json[0]["hashes"][0]["model_hash"].as_str().map(str::len), Some(10));
    // A model that nothing is held against is no flag without a word.
    let output = sd_gen(folder.path(), &["inspect", "model.safetensors", "--model", "model.safetensors", "--no-hash"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("none of these files is a LoRA"));
}

#[test]
fn every_alpha_is_said_once() {
    let names: Shapes =
        (0..3).map(|i| (format!("lora_unet_{i}.alpha"), vec![])).chain([("lora_unet_0.lora_up.weight".to_owned(), vec![2, 2])]).collect();
    let mut bytes = file(&names, &[]);
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // Every number is a NaN, which is not equal to itself.
    bytes[8 + header..].fill(0x7e);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.safetensors"), bytes).unwrap();
    let found = Survey::of(&folder.path().join("x.safetensors")).unwrap();
    assert_eq!(found.adapter.unwrap().alphas().len(), 1);
}

#[test]
fn the_command_of_a_image_is_copied_as_it_is() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/metadata/sd-gen.png");
    let text = said(Path::new("."), &["inspect", image.to_str().unwrap()]);
    let (_, command) = text.split_once("\nsd-gen --prompt").expect("a line of its own");
    assert!(command.contains("東京\nsecond line' --negative-prompt"), "{text}");
}

#[test]
fn the_models_folder_is_a_table_with_names_that_resolve() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir_all(models.join("xl/.hidden")).unwrap();
    std::fs::create_dir_all(models.join("loras")).unwrap();
    std::fs::write(models.join("plain.safetensors"), file(&original(&sd1()), &[])).unwrap();
    std::fs::write(models.join("xl/Large One.safetensors"), file(&original(&sdxl()), &[("modelspec.prediction_type", "v")])).unwrap();
    std::fs::write(models.join("xl/.hidden/no.safetensors"), "x").unwrap();
    std::fs::write(models.join("loras/small.safetensors"), file(&shapes(&[("lora_unet_a.lora_up.weight", &[2, 2])]), &[])).unwrap();
    std::fs::write(models.join("old.ckpt"), "PK").unwrap();
    std::fs::write(models.join("torn.safetensors"), [0; 9]).unwrap();
    std::fs::write(models.join("notes.txt"), "x").unwrap();
    let rows = said_json(folder.path(), &["models", "--json", "--hash"]);
    let row = |row: &Value| ["name", "kind", "dtype", "prediction", "does"].map(|field| row[field].as_str().unwrap_or("-").to_owned());
    assert_eq!(
        rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>(),
        [
            ["loras/small", "lora", "f16", "-", "changes a model"],
            ["old", "pickle", "", "-", ""],
            ["plain", "model", "f16", "epsilon", "generates"],
            ["torn", "unknown", "", "-", ""],
            ["xl/Large One", "model", "f16", "v_prediction", "generates"],
            ["emoji", "model", "f16", "epsilon", "generates"],
        ]
    );
    assert!(folder.path().join(".cache/sd-gen/hashes.json").is_file());
    let table = said(folder.path(), &["models"]);
    assert_eq!(
        table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["name", "what", "size", "dtype", "predicts", "does", "flag", "problem"]
    );
    assert!(table.contains("xl/Large One  Stable Diffusion XL") && table.contains("is a pickle"), "{table}");
    for (name, what) in [("xl/Large One", "XL"), ("large", "XL"), ("XL/L", "XL"), ("pla", "1.x"), ("emoji", "generates")] {
        assert!(said(folder.path(), &["inspect", "--no-hash", name]).contains(what), "{name}");
    }
    std::fs::copy(models.join("plain.safetensors"), models.join("xl/plain two.safetensors")).unwrap();
    // A folder and a file of one name are told apart by names that can be typed.
    std::fs::create_dir_all(models.join("plain/unet")).unwrap();
    let rows = said_json(folder.path(), &["models", "--json"]);
    let names: Vec<&str> =
        rows.as_array().unwrap().iter().filter_map(|row| row["name"].as_str()).filter(|name| name.starts_with("plain")).collect();
    assert_eq!(names, ["plain", "plain.safetensors"]);
    assert!(said(folder.path(), &["inspect", "--no-hash", "plain.safetensors"]).contains("one file"));
    std::fs::remove_dir_all(models.join("plain")).unwrap();
    // A1111's hash is a file's: a folder has none in the table.
    #[cfg(unix)]
    {
        let link = models.join("emoji");
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji"), &link).unwrap();
        let table = said(folder.path(), &["models", "--hash"]);
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("emoji ")).collect();
        assert!(rows.len() == 2 && rows.iter().all(|row| row.contains("generates") && row.ends_with("--model")), "{table}");
        std::fs::remove_file(link).unwrap();
    }
    let refused = sd_gen(folder.path(), &["-m", "pl", "-p", "x"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    assert!(message.contains("several models start so; say which: plain, xl/plain two"), "{message}");
    // A whole name is meant by itself, whatever else ends or begins so; and what the advice says can be typed.
    std::fs::create_dir_all(models.join("sub")).unwrap();
    for copy in ["sub/plain.safetensors", "plain more.safetensors", "Plain.SAFETENSORS", "sub/large one.safetensors"] {
        std::fs::copy(models.join("plain.safetensors"), models.join(copy)).unwrap();
    }
    for (name, file) in
        [("plain", "models/plain.safetensors"), ("Plain", "models/Plain.SAFETENSORS"), ("sub/pl", "models/sub/plain.safetensors")]
    {
        let files = &said_json(folder.path(), &["inspect", "--no-hash", "--json", name])[0]["path"];
        assert!(files.as_str().is_some_and(|path| path.ends_with(file)), "{name}: {files}");
    }
    let refused = sd_gen(folder.path(), &["inspect", "large one"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("say which: sub/large one, xl/Large One"), "{message}");
    for name in ["sub/large one", "xl/Large One"] {
        said(folder.path(), &["inspect", "--no-hash", name]);
    }
    let nothing = sd_gen(folder.path(), &["inspect", "nothing-of-this-name"]);
    assert_eq!(nothing.status.code(), Some(2));
    let missing = sd_gen(folder.path(), &["models", "nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
}

/// What goes beside a model, as other tools lay it out: LoRAs and the like inside the models folder and beside it.
#[test]
fn what_goes_beside_a_model_is_listed_with_what_it_fits() {
    let folder = tempfile::tempdir().unwrap();
    let place = |path: &str, names: &[(&str, &[usize])]| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file(&shapes(names), &[])).unwrap();
    };
    let site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    let lora = |width| [(format!("{site}.lora_down.weight"), vec![4, width]), (format!("{site}.lora_up.weight"), vec![32, 4])];
    std::fs::create_dir_all(folder.path().join("models/loras")).unwrap();
    std::fs::create_dir_all(folder.path().join("Lora/style")).unwrap();
    std::fs::write(folder.path().join("models/loras/inside.safetensors"), file(&lora(768).to_vec(), &[])).unwrap();
    std::fs::write(folder.path().join("Lora/style/detail.safetensors"), file(&lora(2048).to_vec(), &[])).unwrap();
    place("embeddings/word.safetensors", &[("emb_params", &[2, 1024])]);
    place("models/VAE/ours.safetensors", &[("decoder.conv_in.weight", &[8, 16, 3, 3])]);
    let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let net = [("controlnet_mid_block.weight", &[1][..]), (attention, &[32, 768])];
    place("controlnet/canny/diffusion_pytorch_model.safetensors", &net);
    place("controlnet/canny/diffusion_pytorch_model.fp16.safetensors", &net);
    std::fs::write(folder.path().join("controlnet/canny/config.json"), r#"{"_class_name": "ControlNetModel"}"#).unwrap();
    place("models/ipadapter/plain.safetensors", &[("ip_adapter.1.to_k_ip.weight", &[640, 2048])]);
    place("models/upscale_models/x4.safetensors", &[("body.0.rdb1.conv1.weight", &[1])]);
    place("ESRGAN/small.safetensors", &[("body.0.weight", &[8, 3, 3, 3]), ("body.1.weight", &[8])]);
    let rows = said_json(folder.path(), &["models", "--json"]);
    let row = |row: &Value| ["name", "kind", "family", "flag"].map(|field| row[field].as_str().unwrap_or("-").to_owned());
    let (one, two, xl) = ("Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL");
    assert_eq!(
        rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>(),
        [
            ["VAE/ours", "vae", "Stable Diffusion 3", "--vae"],
            ["ipadapter/plain", "ip-adapter", xl, "--ip-adapter"],
            ["loras/inside", "lora", one, "--lora"],
            ["upscale_models/x4", "upscaler", "-", "--upscale"],
            ["Lora/style/detail", "lora", xl, "--lora"],
            ["embeddings/word", "embedding", two, "--embedding"],
            ["controlnet/canny", "controlnet", one, "--control"],
            ["ESRGAN/small", "upscaler", "-", "--upscale"],
            ["emoji", "model", one, "--model"],
        ]
    );
    assert!(rows.as_array().unwrap().iter().all(|row| row["problem"].is_null()), "{rows}");
    assert!(said(folder.path(), &["models"]).contains("a ControlNet for Stable Diffusion 1.x"));
    assert!(said(folder.path(), &["inspect", "--no-hash", "controlnet/canny"]).contains("steers by an image"));
    // The names can be given: this one is found, and does not fit.
    let refused = sd_gen(folder.path(), &["-m", "emoji", "-p", "x", "--lora", "Lora/style/detail"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("is a LoRA for Stable Diffusion XL"), "{message}");
}

#[test]
fn only_headers_are_read() {
    // A thousand files whose data would be terabytes if they were there: sparse files on the disk.
    let folder = tempfile::tempdir().unwrap();
    let length = 1u64 << 30;
    let header = format!(r#"{{"lora_unet_a.lora_up.weight":{{"dtype":"F16","shape":[{},1],"data_offsets":[0,{length}]}}}}"#, length / 2);
    for i in 0..1000 {
        let path = folder.path().join(format!("{i:04}.safetensors"));
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(8 + header.len() as u64 + length).unwrap();
    }
    let table = said(folder.path(), &["models", "."]);
    assert_eq!(table.lines().filter(|line| line.contains("1.07 GB")).count(), 1000);
}

#[test]
fn the_built_in_model_and_a_pickle_are_inspected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.ckpt"), "PK").unwrap();
    let text = said(folder.path(), &["inspect", "--no-hash", "emoji", "a.ckpt"]);
    assert!(text.starts_with("emoji: Stable Diffusion 1.x, a diffusers folder, "), "{text}");
    assert!(text.contains("a.ckpt: a pickle (PyTorch's format), 2 B") && text.contains("is refused"), "{text}");
    let some = sd_gen(folder.path(), &["inspect", "--no-hash", "a.ckpt", "missing"]);
    assert_eq!(some.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&some.stdout).contains("pickle"));
}

#[test]
fn text_from_files_does_not_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "\x1b]0;owned\x07\u{9b}31m";
    let names = shapes(&[("lora_unet_a.lora_up.weight", &[2, 2])]);
    std::fs::write(folder.path().join("a.safetensors"), file(&names, &[("modelspec.title", evil)])).unwrap();
    let text = said(folder.path(), &["inspect", "--no-hash", "-v", "a.safetensors"]);
    assert!(text.contains("owned") && !text.contains(['\x1b', '\x07', '\u{9b}']), "{text:?}");
}

#[test]
fn devices_say_what_is_there_and_why_not() {
    let devices = said_json(Path::new("."), &["devices", "--json"]);
    let names: Vec<&str> = devices.as_array().unwrap().iter().filter_map(|device| device["name"].as_str()).collect();
    assert_eq!((names[0], names.last()), ("cpu", Some(&"metal")));
    let cpu = &devices[0];
    assert!(cpu["found"].as_bool().unwrap() && cpu["threads"].as_u64() >= Some(1));
    assert!(cpu["instructions"].as_array().unwrap().contains(&cpu["kernels"]["f32"]));
    for device in devices.as_array().unwrap() {
        assert!(device["found"].as_bool().unwrap() || device["why"].is_string(), "{device}");
    }
    assert!(said(Path::new("."), &["devices"]).starts_with("cpu: "));
    // bf16 is taken where it is multiplied, and nowhere else.
    let first = if cpu["kernels"]["bf16"] == "f32's" { "f32" } else { "bf16" };
    assert_eq!(cpu["dtypes"][0], first);
    let plain = Command::new(env!("CARGO_BIN_EXE_sd-gen")).arg("devices").env("SD_GEN_CPU_ISA", "portable").output().unwrap();
    let plain = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(plain.contains("dtypes        f32 (taken by itself)"), "{plain}");
}

#[test]
fn shells_complete_values_and_man_has_every_subcommand() {
    for (shell, word) in [
        ("bash", "complete -F _sd__gen"),
        ("zsh", "#compdef sd-gen"),
        ("fish", "complete -c sd-gen"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let script = said(Path::new("."), &["completions", shell]);
        assert!(script.contains(word), "{shell}");
        // PowerShell's and elvish's scripts have flags alone: clap writes no values there.
        for value in ["dpm++2m-sde", "karras", "trailing", "torch-cuda", "bf16"] {
            assert!(["powershell", "elvish"].contains(&shell) || script.contains(value), "{shell} does not complete {value}");
        }
    }
    let manual = said(Path::new("."), &["man"]);
    for name in ["sd-gen-inspect", "sd-gen-models", "sd-gen-devices", "sd-gen-convert", "sd-gen-bench"] {
        assert!(manual.contains(&name.replace('-', "\\-")), "{name}");
    }
    // Names are offered, not demanded: a peer's spelling still works.
    let refused = sd_gen(Path::new("."), &["-p", "x", "--sampler", "nothing"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not available"));
    for command in ["convert", "bench", "inspect", "models", "devices", "completions", "man"] {
        assert!(said(Path::new("."), &[command, "--help"]).contains("Examples:"), "{command}");
    }
}
