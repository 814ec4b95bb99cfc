//! What images say about their making: other tools' are read field by field, and ours generate the same pixels again.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use proptest::prelude::*;
use sd_gen::metadata::{Field, Text, read, texts, understand};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/metadata").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name)).expect("read")).expect("JSON")
}

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    let output = command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").output().expect("sd-gen starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Numbers by their value, all else as it stands.
fn same(one: &Value, other: &Value) -> bool {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    one == other || number(one).is_some() && number(one) == number(other)
}

#[test]
fn other_tools_images_are_read_field_by_field() {
    let expected = read_json("expected.json");
    let cases = expected.as_object().expect("an object");
    assert!(cases.len() >= 24);
    for (name, wanted) in cases {
        let image = read(&data(name)).expect(name).expect("an image");
        let Some(wanted) = wanted.as_object() else {
            assert_eq!(image.recipe, None, "{name}");
            continue;
        };
        let found = image.recipe.unwrap_or_else(|| panic!("{name}: no recipe in {:?}", image.texts)).json();
        for (field, value) in wanted {
            assert!(same(&found[field], value), "{name}: {field} is {} and not {value}", found[field]);
        }
    }
}

/// The flags of a command and their values.
fn flags(arguments: &[String]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=').filter(|_| word.starts_with("--")) {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (word.clone(), words.next_if(|next| !next.starts_with("--")).cloned().unwrap_or_default()),
        };
        found.push((name, value));
    }
    found
}

/// The committed cases, by file.
fn cases() -> Vec<Value> {
    read_json("cases.json").as_array().expect("a list").clone()
}

fn case_file(case: &Value) -> PathBuf {
    data("cases").join(case["file"].as_str().expect("a name"))
}

#[test]
fn what_real_files_of_other_tools_do_is_answered_case_by_case() {
    let cases = cases();
    assert!(cases.len() >= 80);
    let mut wrong = Vec::new();
    for case in &cases {
        let file = case["file"].as_str().expect("a name");
        let about = case["about"].as_str().expect("what it is about");
        let image = read(&case_file(case)).expect(file).expect("an image");
        let Some(recipe) = image.recipe else {
            if case.get("recipe") != Some(&Value::Null) {
                wrong.push(format!("{file} ({about}): no recipe in {:?}", image.texts));
            }
            continue;
        };
        let (found, command) = (recipe.json(), sd_gen::metadata::command(&recipe));
        let have = flags(&command.arguments);
        let rest = found["other"].to_string();
        for (key, wanted) in case.as_object().expect("an object") {
            let words = || wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
            let holds = match key.as_str() {
                "file" | "about" => true,
                "recipe" => false,
                "flags" => wanted
                    .as_object()
                    .expect("an object")
                    .iter()
                    .all(|(flag, value)| have.iter().find(|(name, _)| name == flag).map(|(_, value)| value.as_str()) == value.as_str()),
                "loras" => {
                    let loras = found["loras"].as_array().expect("a list").iter().map(|lora| json!([lora["name"], lora["weight"]]));
                    loras.collect::<Vec<_>>() == *wanted.as_array().expect("a list")
                }
                "says" => words().all(|word| rest.contains(word) || command.notes.iter().any(|note| note.contains(word))),
                "silent" => words().all(|word| !command.notes.iter().any(|note| note.contains(word))),
                "command" => command.arguments.is_empty(),
                field => same(&found[field], wanted),
            };
            if !holds {
                let (arguments, notes) = (&command.arguments, &command.notes);
                wrong.push(format!("{file} ({about}): {key} is not {wanted} in {found:#} with {arguments:?} and {notes:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A command as a line of a batch file, at a size and a length that are planned at once; the model is the one that is built in.
fn line_of(arguments: &[String]) -> Value {
    let mut line = serde_json::Map::new();
    for (flag, value) in flags(arguments) {
        if flag != "--model" {
            let value = if value.is_empty() && flag == "--zero-snr" { true.into() } else { Value::from(value) };
            line.insert(flag.trim_start_matches("--").to_owned(), value);
        }
    }
    Value::Object(line)
}

#[test]
fn every_printed_command_is_one_that_is_taken() {
    use sd_gen::sampling::{Sampler, SigmaSchedule, TimestepSpacing};
    let mut recipes: Vec<sd_gen::metadata::Recipe> = Vec::new();
    for case in cases() {
        recipes.extend(read(&case_file(&case)).expect("read").expect("an image").recipe);
    }
    let samplers: Vec<&str> = Sampler::all().map(Sampler::a1111_name).chain(["Nonesuch", "sample_euler", "DPM++ 2M Karras"]).collect();
    let schedules: Vec<&str> =
        SigmaSchedule::NAMES.iter().map(|(name, _)| *name).chain(["Automatic", "SGM Uniform", "simple", "Nonesuch", ""]).collect();
    let spacings: Vec<&str> = TimestepSpacing::NAMES.iter().map(|(name, _)| *name).chain(["", "Nonesuch"]).collect();
    for (i, sampler) in samplers.iter().enumerate() {
        for (j, schedule) in schedules.iter().enumerate() {
            for (k, spacing) in spacings.iter().enumerate() {
                // Eta, rescaling, sizes and tools go round, so that each meets each sampler.
                let eta = ["0", "0.5", "1", "inf", "2", "-1", "x"][(i + j + k) % 7];
                let tool = ["v1.10.1", "ComfyUI", "f2.0.1v1.10.1", "stable-diffusion.cpp", "Fooocus v2.5"][(j + k) % 5];
                let size = ["64x64", "0x64", "511x300", "1x1", "99999x64", "64"][(i + k) % 6];
                let text = format!(
                    "a cat\nSteps: 3, Sampler: {sampler}, Schedule type: {schedule}, Timestep spacing: {spacing}, CFG scale: {}, CFG Rescale: {eta}, \
                     Seed: 1, Size: {size}, Eta: {eta}, Clip skip: {}, Version: {tool}",
                    i * 300,
                    k % 3
                );
                recipes.extend(understand(&[text_of("parameters", &text)]));
            }
        }
    }
    assert!(recipes.len() > 500);
    let commands = recipes.iter().map(sd_gen::metadata::command).filter(|c| !c.arguments.is_empty());
    let lines: Vec<String> = commands.map(|command| line_of(&command.arguments).to_string()).collect();
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("lines.jsonl"), lines.join("\n")).expect("write");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(["batch", "lines.jsonl", "--dry-run", "--output-dir", "out"]).current_dir(folder.path()).env_remove("SD_GEN_MODELS");
    let output = command.output().expect("sd-gen starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What the committed `sd-gen.png` was generated with.
const OURS: &[&str] = &[
    "--prompt",
    "a red apple, (shiny: very) — 東京\nsecond line",
    "--negative-prompt",
    "blurry: bad, worse",
    "--dtype",
    "f32",
    "--seed",
    "5",
    "--steps",
    "2",
    "--size",
    "64x64",
    "--sampler",
    "dpmpp_2m_karras",
    "--guidance-scale",
    "3.5",
    "--clip-skip",
    "2",
];

#[test]
fn what_two_readers_see_in_our_images_is_what_we_write() {
    let folder = tempfile::tempdir().expect("folder");
    sd_gen(folder.path(), &[OURS, &["-o", "new.png"]].concat());
    let without_version = |path: &Path| {
        let texts = texts(path).expect("read").expect("an image");
        texts
            .into_iter()
            .map(|text| (text.keyword, text.text.rsplit_once(", Version: ").expect("a version").0.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        without_version(&folder.path().join("new.png")),
        without_version(&data("sd-gen.png")),
        "generate it again, and run make_images.py"
    );
    let (wanted, seen) = (read_json("sd-gen.json"), read_json("readers.json"));
    let found = read(&data("sd-gen.png")).expect("read").expect("an image").recipe.expect("a recipe").json();
    for (field, value) in wanted.as_object().expect("an object") {
        assert!(same(&found[field], value), "ours: {field} is {} and not {value}", found[field]);
        for reader in ["sd_parsers", "sd_prompt_reader"] {
            let theirs = &seen["seen"]["sd-gen.png"][reader][field];
            assert!(field == "tool" || same(theirs, value), "{reader}: {field} is {theirs} and not {value}");
        }
    }
}

#[test]
fn the_command_of_our_image_generates_its_pixels_again() {
    let folder = tempfile::tempdir().expect("folder");
    let config = r#"{"_class_name": "DDIMScheduler", "beta_start": 0.001, "beta_end": 0.013, "beta_schedule": "scaled_linear", "clip_sample": false}"#;
    std::fs::write(folder.path().join("config.json"), config).expect("write");
    let cases: &[&[&str]] = &[
        &["-p", "a red apple"],
        &["-p", "it's a \"green\" $HEART; `ls`\nNegative thoughts", "-n", ""],
        &["-p", "--help", "-n", "bad", "--sampler", "euler-a", "--eta", "0.5"],
        &["-p", "a cat", "--sampler", "dpm++2m", "--schedule", "lu", "--timestep-spacing", "trailing", "--rng", "torch-cuda"],
        &["-p", "a cat", "--sampler", "dpm++2m-sde", "--schedule", "exponential"],
        &["-p", "a cat", "--sampler", "ddim", "--timestep-spacing", "trailing", "--prediction", "v", "--zero-snr"],
        &["-p", "a cat", "--sampler", "heun", "--dtype", "bf16", "--vae-dtype", "f32", "--guidance-rescale", "0.7", "--clip-skip", "2"],
        &["-p", "a cat", "--sampler", "ddim", "--guidance-scale", "1", "--images", "2", "--batch-size", "2"],
    ];
    for (i, case) in cases.iter().enumerate() {
        let name = format!("{i}-{{seed}}.png");
        let generated = sd_gen(folder.path(), &[case, &["-s", "7", "--steps", "2", "--size", "64x64", "-o", &name][..]].concat());
        for path in String::from_utf8_lossy(&generated.stdout).lines() {
            let said = sd_gen(folder.path(), &["inspect", "--json", path]);
            let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
            let command = &said[0]["command"];
            assert_eq!(command["notes"], json!([]), "{case:?}");
            // The shell's line and the list are the same words.
            let words = shlex::split(command["shell"].as_str().expect("a line")).expect("a line that a shell reads");
            let arguments: Vec<&str> = command["arguments"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
            assert_eq!(words[1..], arguments, "{case:?}");
            sd_gen(folder.path(), &[&arguments[..], &["-o", "again.png", "--overwrite"]].concat());
            let pixels = |name: &str| image::open(folder.path().join(name)).expect("an image").to_rgb8();
            assert!(pixels(path) == pixels("again.png"), "{case:?}: {command:#} generated another image");
        }
    }
    // What no flag can say is said.
    sd_gen(folder.path(), &["-p", "a cat", "-s", "7", "--steps", "2", "--scheduler-config", "config.json", "-o", "own.png"]);
    let said: Value = serde_json::from_slice(&sd_gen(folder.path(), &["inspect", "--json", "own.png"]).stdout).expect("JSON");
    let note = said[0]["command"]["notes"][0].as_str().expect("a note");
    assert!(note.contains("--scheduler-config") && note.contains("0.013"), "{note}");
}

/// A PNG's chunk; nobody here checks its sum.
fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], kind, body, &[0; 4]].concat()
}

fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat(), chunk(b"IEND", b"")].concat()
}

/// An EXIF block whose entries all point to one text.
fn same_text_many_times(entries: u16, length: u32) -> Vec<u8> {
    let at = 10 + 12 * u32::from(entries);
    let entry = [&[0x01, 0x0e, 0, 2][..], &length.to_be_bytes(), &at.to_be_bytes()].concat();
    let head = [b"MM\0*\0\0\0\x08", &entries.to_be_bytes()[..]].concat();
    [head, entry.repeat(entries.into()), vec![b'a'; length as usize]].concat()
}

/// What is said of a file with these bytes.
fn read_bytes(bytes: &[u8]) -> sd_gen::Result<Option<sd_gen::metadata::Image>> {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(bytes).expect("write");
    read(file.path())
}

#[test]
fn hostile_images_cost_no_memory_and_no_panic() {
    let packed = |length: usize| {
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&vec![b'a'; length]).expect("pack");
        packer.finish().expect("pack")
    };
    let bomb = packed(64 << 20);
    let ztxt = |packed: &[u8]| [b"parameters\0\0", packed].concat();
    let refused: Vec<(Vec<u8>, &str)> = vec![
        (png(&[chunk(b"zTXt", &ztxt(&bomb))]), "unpacks to more than"),
        (png(&[chunk(b"iTXt", &[b"parameters\0\x01\0\0\0", &bomb[..]].concat())]), "unpacks to more than"),
        (png(&[chunk(b"zTXt", &ztxt(b"no zlib at all"))]), "damaged"),
        ([b"\x89PNG\r\n\x1a\n", &u32::MAX.to_be_bytes()[..], b"tEXtparameters"].concat(), "more than 16 MiB"),
        ([b"\x89PNG\r\n\x1a\n", &1000u32.to_be_bytes()[..], b"tEXtparameters\0x"].concat(), "truncated"),
        (png(&vec![chunk(b"IDAT", b""); 100_001]), "more than 100000 chunks"),
        ([b"\xff\xd8\xff\xe1", &5000u16.to_be_bytes()[..], b"Exif\0\0II"].concat(), "truncated"),
        ([b"RIFF\0\0\0\0WEBPEXIF", &u32::MAX.to_le_bytes()[..], b"II*\0"].concat(), "more than 16 MiB"),
        (png(&[chunk(b"eXIf", &same_text_many_times(1000, 12 << 20))]), "more than 16 MiB"),
    ];
    for (bytes, said) in refused {
        let error = read_bytes(&bytes).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
    let text = |text: &[u8]| png(&[chunk(b"tEXt", &[b"parameters\0", text].concat())]);
    let deep = "[".repeat(100_000);
    let ampersands = format!("<exif:UserComment><rdf:li>{}</rdf:li></exif:UserComment>", "&".repeat(4 << 20));
    let nodes = r#"{"1": {"class_type": "KSampler", "inputs": {"steps": 1, "cfg": 2, "sampler_name": "euler", "positive": ["1", 0], "model": ["2", 0]}}, "2": {"class_type": "X", "inputs": {"model": ["1", 0], "y": ["2", 0]}}}"#;
    // An EXIF directory that is its own EXIF directory, with more entries than bytes.
    let ring = [b"MM\0*\0\0\0\x08\xff\xff", &[0x87, 0x69, 0, 4, 0, 0, 0, 1, 0, 0, 0, 8][..]].concat();
    for bytes in [
        b"".to_vec(),
        b"\x89PNG".to_vec(),
        b"\x89PNG\r\n\x1a\n".to_vec(),
        b"not an image at all".to_vec(),
        text(b""),
        text(&[0xff; 100]),
        text(deep.as_bytes()),
        text(format!("{{\"sui_image_params\": {deep}").as_bytes()),
        text(b"Steps: 1, Sampler: \", Seed: {, Size: x, RNG: \\"),
        png(&[chunk(b"tEXt", b"no separator")]),
        png(&[chunk(b"iTXt", b"parameters\0\x07")]),
        png(&[chunk(b"iTXt", &[b"XML:com.adobe.xmp\0\0\0\0\0", ampersands.as_bytes()].concat())]),
        png(&[chunk(b"tEXt", &[b"prompt\0", nodes.as_bytes()].concat()), chunk(b"eXIf", &ring)]),
        b"\xff\xd8\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\xff\xd8\xff\xe1\0\0\0\0\0\0\0\0\0\0".to_vec(),
    ] {
        read_bytes(&bytes).expect("no error");
    }
    let graph = understand(&[text_of("prompt", nodes)]).expect("a recipe");
    assert_eq!(graph.get(Field::Sampler), Some("euler"));
}

#[test]
fn a_graph_names_every_node_that_it_does_not_understand_and_is_read_to_a_size() {
    let sampler = json!({ "class_type": "KSampler", "inputs": { "steps": 9, "cfg": 2, "sampler_name": "euler" } });
    let lora = |file: &str| json!({ "class_type": "LoraLoader", "inputs": { "lora_name": file } });
    let graph = json!({ "1": sampler, "2": lora("a"), "3": lora("b") });
    let recipe = understand(&[text_of("prompt", &graph.to_string())]).expect("a recipe");
    assert_eq!(recipe.get(Field::Steps), Some("9"));
    assert_eq!(recipe.json()["other"], json!({ "LoraLoader 2": "lora_name=a", "LoraLoader 3": "lora_name=b" }));
    // Each a sampler that would be held against every other one.
    let many: serde_json::Map<String, Value> = (0..100_000).map(|i| (i.to_string(), sampler.clone())).collect();
    let recipe = understand(&[text_of("prompt", &Value::Object(many).to_string())]).expect("a recipe");
    assert_eq!(recipe.get(Field::Steps), None);
    assert!(recipe.json()["other"]["graph"].as_str().expect("text").contains("100000 nodes"));
}

fn text_of(keyword: &str, text: &str) -> Text {
    Text { place: "PNG tEXt", keyword: keyword.into(), text: text.into() }
}

proptest! {
    #[test]
    fn damaged_images_of_every_tool_are_read_or_refused(case in 0..24usize, at in 0..2000usize, byte: u8, cut in 0..4000usize) {
        let expected = read_json("expected.json");
        let name = expected.as_object().expect("an object").keys().nth(case).expect("a case").clone();
        let mut bytes = std::fs::read(data(&name)).expect("read");
        let length = bytes.len();
        bytes[at % length] = byte;
        if cut < length {
            bytes.truncate(cut);
        }
        if let Ok(Some(image)) = read_bytes(&bytes)
            && let Some(recipe) = image.recipe
        {
            let command = sd_gen::metadata::command(&recipe);
            prop_assert!(shlex::split(&command.shell()).is_some());
        }
    }

    #[test]
    fn any_text_under_any_keyword_is_read_or_not(keyword in "parameters|prompt|Dream|Comment|XMP|sd-metadata|UserComment", text: String) {
        let texts = [text_of(&keyword, &text), text_of("Description", "x")];
        if let Some(recipe) = understand(&texts) {
            let command = sd_gen::metadata::command(&recipe);
            prop_assert!(shlex::split(&command.shell()).is_some());
        }
    }
}
