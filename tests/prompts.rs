//! Prompts of any length with weighted words: the embeddings of A1111 and ComfyUI.
//!
//! The arithmetic is held against a plain one written here, on a model of `tests/data/parity`. Where `SD_GEN_PROMPTS` names a record as
//! `tests/data/prompts/README.md` describes it, with its tensors in a `.safetensors` file beside it, and `SD_GEN_PROMPT_MODEL` the
//! model that they were made with, the embeddings are held against the tools' own.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::models::Scope;
use sd_gen::prompt::{Emphasis, Prompt, PromptReading, PromptScheduling, PromptSyntax};
use sd_gen::text::{Chunk, ClipTokenizer, TextEncoder, TimelineText, a1111_chunks, comfyui_chunks};
use sd_gen::weights::{Checkpoint, Component};
use serde_json::Value;
use std::path::Path;

/// The first text encoder of a model's folder, and a tokenizer of its own.
fn text_encoder(folder: &Path) -> (TextEncoder, ClipTokenizer) {
    let checkpoint = Checkpoint::open(folder).expect("a model");
    let spec = &checkpoint.spec().text_encoders[0];
    let files = checkpoint.tokenizer(0).expect("tokenizer files");
    let tokenizer = || {
        ClipTokenizer::from_files("the model", &files.vocab_json, &files.merges, &spec.pad_token, spec.clip.max_positions)
            .expect("a tokenizer")
    };
    let source = checkpoint.component(Component::text_encoder(0));
    let encoder = TextEncoder::load(&Scope::root(&source, DType::F32, &Device::Cpu), spec, tokenizer()).expect("a text encoder");
    (encoder, tokenizer())
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().expect("numbers").to_vec1().expect("numbers")
}

fn encoded(encoder: &TextEncoder, texts: &[(&str, usize)], syntax: PromptSyntax, emphasis: Emphasis, skipped: usize) -> Vec<Vec<f32>> {
    let words = |(text, times): &(&str, usize)| TimelineText { words: syntax.words(text, emphasis).expect("words"), times: *times };
    let texts: Vec<TimelineText> = texts.iter().map(words).collect();
    let embeds = encoder.encode_weighted(&texts, syntax, emphasis, skipped).expect("embeddings");
    embeds.iter().map(|embeds| numbers(&embeds.hidden)).collect()
}

#[track_caller]
fn assert_near(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let apart = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= 1e-5, "{what}: {apart}");
}

#[test]
fn weights_are_applied_as_each_tool_applies_them() {
    let (encoder, tokenizer) = text_encoder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/sd15"));
    let state = |chunk: &Chunk| numbers(&encoder.encode(std::slice::from_ref(&chunk.ids), 0).expect("a state").hidden);
    let width = state(&Chunk::empty(&tokenizer)).len() / 77;
    // Each number of a state with its token's weight.
    let weighted = |chunk: &Chunk| -> Vec<(f32, f32)> {
        state(chunk).into_iter().enumerate().map(|(at, x)| (x, chunk.weights[at / width] as f32)).collect()
    };
    let mean = |all: &[f32]| all.iter().map(|x| f64::from(*x)).sum::<f64>() / all.len() as f64;
    let long = format!("{} (at the end:1.3)", "plain, words, ".repeat(30));
    for text in ["a (red:1.3) cat", "a ((red)) [cat], (blue:0.5) dog", "(no:0) (less:-0.5) BREAK weight", long.as_str()] {
        let words = |syntax: PromptSyntax| syntax.words(text, Emphasis::Original).expect("words");
        let (mut original, mut no_norm) = (Vec::new(), Vec::new());
        for chunk in a1111_chunks(&tokenizer, &words(PromptSyntax::A1111)).expect("chunks") {
            let scaled: Vec<f32> = weighted(&chunk).into_iter().map(|(x, weight)| x * weight).collect();
            let ratio = (mean(&state(&chunk)) / mean(&scaled)) as f32;
            original.extend(scaled.iter().map(|x| x * ratio));
            no_norm.extend(scaled);
        }
        let by = |syntax, emphasis| encoded(&encoder, &[(text, 1)], syntax, emphasis, 0).remove(0);
        assert_near(&by(PromptSyntax::A1111, Emphasis::Original), &original, text);
        assert_near(&by(PromptSyntax::A1111, Emphasis::NoNorm), &no_norm, text);
        let empty = state(&Chunk::empty(&tokenizer));
        let comfyui = comfyui_chunks(&tokenizer, &words(PromptSyntax::ComfyUi)).expect("chunks");
        let comfyui = comfyui.iter().flat_map(|chunk| weighted(chunk).into_iter().zip(&empty).map(|((x, weight), e)| (x - e) * weight + e));
        assert_near(&by(PromptSyntax::ComfyUi, Emphasis::Original), &comfyui.collect::<Vec<f32>>(), text);
    }
    // Without weights the tools agree; what is ignored is as if it were not there.
    let plain = encoded(&encoder, &[("a red cat", 1)], PromptSyntax::A1111, Emphasis::Original, 0);
    assert_eq!(plain, encoded(&encoder, &[("a red cat", 1)], PromptSyntax::ComfyUi, Emphasis::Original, 0));
    assert_eq!(plain, encoded(&encoder, &[("a (red:1.5) cat", 1)], PromptSyntax::A1111, Emphasis::Ignore, 0));
}

#[test]
fn texts_of_a_timeline_share_their_length_and_their_mean() {
    let (encoder, _) = text_encoder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/sd15"));
    let by = |texts: &[(&str, usize)]| encoded(&encoder, texts, PromptSyntax::A1111, Emphasis::Original, 0);
    let long = "word ".repeat(80);
    let both = by(&[("a cat", 1), (&long, 1)]);
    let short = by(&[("a cat", 1)]).remove(0);
    assert!(both[0].len() == both[1].len() && both[0].len() > short.len(), "the short one is filled with empty chunks");
    assert!(both[0][..short.len()] == short[..], "its first chunk is its own");
    let alone = by(&[("a (red:1.5) cat", 1)]).remove(0);
    let beside = by(&[("a (red:1.5) cat", 1), ("a dog", 1)]).remove(0);
    assert!(alone.iter().zip(&beside).any(|(a, b)| (a - b).abs() > 1e-4), "the mean is over both");
    // An entry that is there twice counts twice.
    let twice = by(&[("a (red:1.5) cat", 2), ("a dog", 1)]).remove(0);
    let written_out = by(&[("a (red:1.5) cat", 1), ("a (red:1.5) cat", 1), ("a dog", 1)]).remove(0);
    assert_near(&twice, &written_out, "an entry that is there twice");
}

#[test]
fn a_text_encoder_of_248_positions_reads_a_long_text_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let golden = safetensors::load(root.join("text/long_positions.safetensors"), &Device::Cpu).expect("what transformers made");
    let text = std::fs::read_to_string(root.join("text/long_positions.txt")).expect("a text");
    // The small model with more positions, as LongCLIP differs from CLIP.
    let dir = tempfile::tempdir().expect("a folder");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder").flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    let model = root.join("parity/sd15");
    copy(&model, dir.path());
    for part in ["text_encoder", "tokenizer", "unet", "vae", "scheduler"] {
        copy(&model.join(part), &dir.path().join(part));
    }
    for (file, key) in [("text_encoder/config.json", "max_position_embeddings"), ("tokenizer/tokenizer_config.json", "model_max_length")] {
        let path = dir.path().join(file);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a configuration")).expect("JSON");
        config[key] = 248.into();
        std::fs::write(&path, config.to_string()).expect("a configuration");
    }
    let weights = dir.path().join("text_encoder/model.safetensors");
    let mut tensors = safetensors::load(&weights, &Device::Cpu).expect("weights");
    let name = tensors.keys().find(|name| name.ends_with("embeddings.position_embedding.weight")).expect("positions").clone();
    tensors.insert(name, golden["position_embedding"].clone());
    safetensors::save(&tensors, &weights).expect("weights");

    let (encoder, tokenizer) = text_encoder(dir.path());
    let state = |text: &str| {
        let tokens = tokenizer.encode(text).expect("tokens");
        assert!(tokens.ids.len() == 248 && tokens.left_out.is_none());
        numbers(&encoder.encode(&[tokens.ids], 0).expect("a state").hidden)
    };
    assert_near(&state(&text), &numbers(&golden["hidden"]), "the state");
    // A word behind CLIP's own 77 positions counts, however the prompt is read.
    let other = format!("{} wet cap,", text.rsplit_once(" wet").expect("its last words").0);
    assert_ne!(state(&text), state(&other));
    for syntax in [PromptSyntax::Plain, PromptSyntax::A1111, PromptSyntax::ComfyUi] {
        let by = |text: &str| encoded(&encoder, &[(text, 1)], syntax, Emphasis::Original, 0).remove(0);
        assert_near(&by(&text), &numbers(&golden["hidden"]), syntax.name());
        assert_ne!(by(&text), by(&other), "{}", syntax.name());
    }
}

#[test]
fn embeddings_are_the_tools_own() {
    let (Some(record), Some(model)) = (std::env::var_os("SD_GEN_PROMPTS"), std::env::var_os("SD_GEN_PROMPT_MODEL")) else { return };
    let record = Path::new(&record);
    let tensors = safetensors::load(record.with_extension("safetensors"), &Device::Cpu).expect("the record's tensors");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(record).expect("a record")).expect("JSON");
    let (encoder, _) = text_encoder(Path::new(&model));
    let tensor = |name: &Value| numbers(&tensors[name.as_str().expect("a name")]);
    let entries = record["embeddings"].as_array().expect("entries");
    assert!(!entries.is_empty());
    for entry in entries {
        let text = entry["text"].as_str().expect("a text");
        for (key, syntax, emphasis, skipped) in [
            ("a1111_original", PromptSyntax::A1111, Emphasis::Original, 0),
            ("a1111_no_norm", PromptSyntax::A1111, Emphasis::NoNorm, 0),
            ("a1111_clip_skip_2", PromptSyntax::A1111, Emphasis::Original, 1),
            ("comfyui", PromptSyntax::ComfyUi, Emphasis::Original, 0),
        ] {
            let got = encoded(&encoder, &[(text, 1)], syntax, emphasis, skipped).remove(0);
            assert_near(&got, &tensor(&entry["tensors"][key]), &format!("{key}: {text:?}"));
        }
    }
    let texts: Vec<(&str, usize)> =
        record["batch"]["texts"].as_array().expect("texts").iter().filter_map(|text| Some((text.as_str()?, 1))).collect();
    let batch = encoded(&encoder, &texts, PromptSyntax::A1111, Emphasis::Original, 0);
    for (got, name) in batch.iter().zip(record["batch"]["tensors"].as_array().expect("names")) {
        assert_near(got, &tensor(name), "the batch");
    }
}

/// `SD_GEN_PROMPT_LIST` names a file of prompts, one a line (or JSON's strings, one a line, where a prompt has several). Each is read
/// in every language, chunked, and told with `--nocapture` where it is an error or looks like a slip.
#[test]
#[ignore = "for a list that SD_GEN_PROMPT_LIST names"]
#[expect(clippy::print_stdout, reason = "it tells what it read")]
fn every_prompt_of_a_list_is_understood() {
    let list = std::env::var_os("SD_GEN_PROMPT_LIST").expect("SD_GEN_PROMPT_LIST names a file");
    let list = std::fs::read_to_string(list).expect("a list of prompts");
    let (_, tokenizer) = text_encoder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/sd15"));
    let prompts: Vec<String> = list.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.to_owned())).collect();
    let mut errors = Vec::new();
    for syntax in [PromptSyntax::A1111, PromptSyntax::ComfyUi, PromptSyntax::Plain] {
        let (mut slips, mut weighted, mut timed, mut chunks) = (0, 0, 0, 0);
        for (prompt, negative) in prompts.iter().flat_map(|prompt| [(prompt, false), (prompt, true)]) {
            let (emphasis, scheduling) = (Emphasis::Original, PromptScheduling::default());
            let read = Prompt::parse(prompt, PromptReading { syntax, emphasis, scheduling, steps: 20, hires_steps: None, negative });
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    errors.push(format!("{}: {error}: {prompt:?}", syntax.name()));
                    continue;
                }
            };
            let texts: Vec<_> = read.parts.iter().flat_map(|part| &part.timeline).collect();
            weighted += usize::from(texts.iter().any(|text| text.words.iter().any(|word| word.weight != 1.0)));
            timed += usize::from(!read.is_constant());
            slips += read.slips.len();
            if !negative {
                read.slips.iter().for_each(|slip| println!("{}: {}", syntax.name(), slip.show(prompt)));
            }
            for text in texts {
                let cut = if syntax == PromptSyntax::ComfyUi { comfyui_chunks } else { a1111_chunks };
                match cut(&tokenizer, &text.words) {
                    Ok(cut) => chunks = chunks.max(cut.len()),
                    Err(error) => errors.push(format!("{}: {error}: {prompt:?}", syntax.name())),
                }
            }
        }
        println!(
            "{}: {} prompts, both as the prompt and as the negative one: {weighted} with weights, {timed} with parts or changes, {slips} \
             slips, at most {chunks} chunks",
            syntax.name(),
            prompts.len()
        );
    }
    assert!(!prompts.is_empty() && errors.is_empty(), "{} of {}:\n{}", errors.len(), prompts.len(), errors.join("\n"));
}
