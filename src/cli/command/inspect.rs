//! `sd-gen inspect`: what a file or folder is, for people and for programs.

use crate::adapter::{AdapterFit, Change};
use crate::cli::model;
use crate::cli::process::cancelled;
use crate::cli::terminal::answer;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::show::{bytes, count, facts, harmless, json as json_text, several, steers};
use crate::metadata::{self, Field, Image, PrintedCommand};
use crate::settings::ProgressStyle;
use crate::survey::{ComponentSummary, Kind, Survey};
use crate::weights::{Checkpoint, HashCache, Hashes, trained_words};
use crate::{Error, Result};
use clap::Args;
use etcetera::BaseStrategy;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Keys and words that are listed without --verbose.
const SHOWN: usize = 3;
/// Trained words that are listed without --verbose.
const SHOWN_WORDS: usize = 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen inspect models/sd15.safetensors             family and evidence, networks, keys, training, hashes
  sd-gen inspect detail.safetensors --model sd15     what a LoRA would change of that model
  sd-gen inspect apple.png                           how an image was made, and the command that makes it again
  sd-gen inspect --json --no-hash models/*           for programs, without reading whole files

Exit codes: 0 said, 1 some file could not be read, 2 bad usage, 130 cancelled.")]
pub(in crate::cli) struct InspectArgs {
    /// Model files and folders, LoRAs, embeddings, images, or names in the models folder
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Hold a LoRA against this model: which of its keys apply
    #[arg(short, long, value_name = "WHAT")]
    model: Option<String>,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// JSON: one object a file in a list
    #[arg(long)]
    json: bool,
    /// Do not read whole files for their hashes
    #[arg(long)]
    no_hash: bool,
    /// All keys, words and metadata
    #[arg(short, long)]
    verbose: bool,
}

/// What was found out about one argument.
enum Finding {
    Image(PathBuf, Image),
    Weights(Box<Survey>, Vec<(PathBuf, Hashes)>, Option<AdapterFit>),
}

pub(in crate::cli) fn run(args: &InspectArgs) -> Result<()> {
    let model = args.model.as_deref().map(|what| model::open(Some(what), args.models_dir.as_deref())).transpose()?;
    listen_for_cancellation()?;
    let mut cache = hash_cache();
    let mut failed = None;
    let mut found = Vec::new();
    let mut fitted = false;
    for (i, file) in args.files.iter().enumerate() {
        let finding = match find(file, args, model.as_ref(), &mut cache) {
            Err(Error::Cancelled) => {
                cache.save();
                return Err(Error::Cancelled);
            }
            Err(error) if args.files.len() == 1 => return Err(error),
            Err(error) => {
                screen::say(&format!("error: {error}"));
                failed = Some(error);
                continue;
            }
            Ok(finding) => finding,
        };
        fitted |= matches!(finding, Finding::Weights(_, _, Some(_)));
        if args.json {
            found.push(as_json(&finding));
        } else {
            let gap = if i > 0 { "\n" } else { "" };
            answer(&format!("{gap}{}", as_text(&finding, args.verbose)))?;
        }
    }
    cache.save();
    if args.json {
        answer(&json_text(&Value::Array(found), true))?;
    }
    if model.is_some() && !fitted {
        screen::say("--model: none of these files is a LoRA, so none was held against it");
    }
    failed.map_or(Ok(()), |_| Err(Error::Image("some files could not be read; the others are above".into())))
}

/// The hashes that were computed before, in the platform's folder for what can be computed again.
pub(in crate::cli) fn hash_cache() -> HashCache {
    HashCache::open(etcetera::choose_base_strategy().ok().map(|folders| folders.cache_dir().join("sd-gen").join("hashes.json")))
}

fn find(file: &str, args: &InspectArgs, model: Option<&Checkpoint>, cache: &mut HashCache) -> Result<Finding> {
    let path = Path::new(file);
    let survey = if path.exists() {
        if let Some(image) = metadata::read(path)? {
            return Ok(Finding::Image(path.to_owned(), image));
        }
        Survey::of(path)?
    } else {
        match model::resolve(Some(file), args.models_dir.as_deref()) {
            Ok(model::Named::Path(path)) => Survey::of(&path)?,
            Ok(model::Named::Builtin) => Survey::of_model(model::builtin()?),
            _ => {
                let why = model::ambiguity(file, args.models_dir.as_deref());
                let why = why.unwrap_or_else(|| "there is no such file or folder, and no model of that name here".into());
                return Err(Error::Input(format!("{file}: {why}")));
            }
        }
    };
    let files = survey.files.iter().filter(|file| !args.no_hash && file.is_file());
    let hashes = files.map(|file| Ok((file.clone(), hash(file, cache)?))).collect::<Result<_>>()?;
    let fit = model.and_then(|model| Some(survey.adapter.as_ref()?.fit(model)));
    Ok(Finding::Weights(Box::new(survey), hashes, fit))
}

/// Hashes a file with a bar, as far as it is not in the cache; Ctrl-C stops it.
pub(in crate::cli) fn hash(path: &Path, cache: &mut HashCache) -> Result<Hashes> {
    let mut progress = Progress::new(ProgressStyle::Auto, false);
    // In a live line, where nothing may move the cursor.
    let what = format!("hashing {}", path.file_name().unwrap_or_default().to_string_lossy().replace(steers, " "));
    let all = path.metadata().map(|metadata| metadata.len()).ok();
    cache.hash(path, |done| {
        progress.bytes(&what, done, all);
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    })
}

/// The command that generates an image again.
fn again(image: &Image) -> Option<PrintedCommand> {
    image.recipe.as_ref().map(metadata::command)
}

fn as_text(finding: &Finding, verbose: bool) -> String {
    match finding {
        Finding::Image(path, image) => image_text(path, image, verbose),
        Finding::Weights(survey, hashes, fit) => weights_text(survey, hashes, fit.as_ref(), verbose),
    }
}

fn image_text(path: &Path, image: &Image, verbose: bool) -> String {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    let heading = match &image.recipe {
        Some(recipe) => format!("{}: an image that {} made", path.display(), recipe.tool),
        None if image.texts.is_empty() => format!("{}: an image that says nothing about its making", path.display()),
        None => format!("{}: an image with texts that no reader here understands", path.display()),
    };
    for (name, field) in Field::NAMES {
        if let Some(text) = image.recipe.as_ref().and_then(|recipe| recipe.get(*field)) {
            lines.push((name.replace('_', " "), vec![text.to_owned()]));
        }
    }
    let loras = image.recipe.iter().flat_map(|recipe| &recipe.loras);
    lines.push((
        "lora".into(),
        loras.map(|lora| lora.weight.as_ref().map_or_else(|| lora.name.clone(), |weight| format!("{} × {weight}", lora.name))).collect(),
    ));
    let settings = image.recipe.iter().flat_map(|recipe| recipe.settings());
    lines.extend(settings.map(|(name, value)| (name.replace('-', " "), vec![value.to_owned()])));
    let others = image.recipe.iter().flat_map(|recipe| &recipe.other);
    lines.push(("also".into(), others.map(|(name, value)| format!("{name}: {value}")).collect()));
    if verbose || image.recipe.is_none() {
        lines.extend(image.texts.iter().map(|text| (format!("{}, {}", text.place, text.keyword), vec![text.text.clone()])));
    }
    let Some(command) = again(image) else { return facts(&heading, &lines) };
    if command.arguments.is_empty() {
        lines.push(("note".into(), command.notes));
        return facts(&heading, &lines);
    }
    lines.push(("again, but".into(), command.notes.clone()));
    // At the margin: a prompt of several lines is copied as it is.
    format!("{}\n{}", facts(&heading, &lines), harmless(&command.shell()))
}

fn weights_text(survey: &Survey, hashes: &[(PathBuf, Hashes)], fit: Option<&AdapterFit>, verbose: bool) -> String {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |label: &str, texts: Vec<String>| lines.push((label.to_owned(), texts));
    let some = |list: &[String], shown: usize| {
        let shown = if verbose { list.len() } else { shown };
        let more = list.len().saturating_sub(shown);
        let more = (more > 0).then(|| format!("… and {more} more (--verbose)"));
        list.iter().take(shown).cloned().chain(more).collect::<Vec<_>>()
    };
    if !survey.does.is_empty() {
        let size = survey.size.map(|size| format!(" at {size}×{size}")).unwrap_or_default();
        add("does", vec![format!("{}{size}", survey.does)]);
    }
    if let Some((prediction, why)) = &survey.prediction {
        add("predicts", vec![format!("{prediction} ({})", why.trim_end_matches('.'))]);
    }
    let stored = |component: &ComponentSummary| {
        let types: Vec<String> =
            component.stored.iter().map(|row| format!("{} {} {}", several(row.tensors, "tensor"), row.dtype, bytes(row.bytes))).collect();
        format!("{}: {} parameters, {}", component.title, count(component.parameters()), types.join(", "))
    };
    add("holds", survey.components.iter().map(stored).collect());
    if let Some(adapter) = &survey.adapter {
        let numbers = |list: Vec<String>| list.join(", ");
        add("ranks", vec![numbers(adapter.ranks().iter().map(usize::to_string).collect())]);
        add("alphas", vec![numbers(adapter.alphas().iter().map(f32::to_string).collect())]);
        add("words", adapter.word_names().map(str::to_owned).collect());
        add("changes", adapter.sites().iter().map(|(site, layers)| format!("{site}: {}", several(*layers, "layer"))).collect());
    }
    if let Some(embedding) = &survey.embedding {
        let word = embedding.word.as_ref().map(|word| format!(" for {word}")).unwrap_or_default();
        add("words", vec![format!("{}{word}, as {} writes them", several(embedding.vectors, "vector"), embedding.writer)]);
    }
    if let Some(fit) = fit {
        add("applies", vec![format!("{}, in {} of {}", several(fit.keys, "key"), fit.layers, several(fit.of, "layer"))]);
        add("not there", some(&fit.absent, SHOWN));
        add("other shapes", some(&fit.misshapen, SHOWN));
    }
    add("evidence", survey.evidence.clone());
    if !survey.unused.is_empty() {
        add("unused keys", [vec![survey.unused.len().to_string()], some(&survey.unused, SHOWN)].concat());
    }
    if !survey.missing.is_empty() {
        add("missing keys", [vec![survey.missing.len().to_string()], some(&survey.missing, SHOWN)].concat());
    }
    let trained: Vec<String> = trained_words(&survey.metadata)
        .into_iter()
        .map(|(word, times)| if times == u64::MAX { word } else { format!("{word} ({times})") })
        .collect();
    if !trained.is_empty() {
        let shown = if verbose { trained.len() } else { SHOWN_WORDS };
        let more = trained.len().saturating_sub(shown);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        add("trained on", vec![format!("{}{more}", trained[..shown.min(trained.len())].join(", "))]);
    }
    add("metadata", metadata_lines(survey, verbose));
    for (file, hash) in hashes {
        let name = if hashes.len() > 1 { format!("{}: ", file.display()) } else { String::new() };
        let third = hash.autov3().map(|hash| format!(", AutoV3 {hash}")).unwrap_or_default();
        add("hash", vec![format!("{name}{} (AutoV2 {}{third}, sha256 {})", hash.model_hash(), hash.autov2(), hash.sha256)]);
    }
    add("problem", survey.problem.iter().cloned().collect());
    facts(&format!("{}: {}, {}", survey.path.display(), survey.what, bytes(survey.bytes)), &lines)
}

/// What the makers wrote: all with --verbose, else what is short and says what the file is.
fn metadata_lines(survey: &Survey, verbose: bool) -> Vec<String> {
    const TELLING: &[&str] = &[
        "ss_base_model_version",
        "ss_sd_model_name",
        "ss_output_name",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_num_train_images",
        "ss_num_epochs",
        "ss_steps",
        "ss_resolution",
        "ss_clip_skip",
        "ss_training_comment",
    ];
    let told = |key: &str| key.starts_with("modelspec.") && key != "modelspec.thumbnail" || TELLING.contains(&key);
    let lines = survey.metadata.iter().filter(|(key, value)| verbose || told(key) && value.len() <= 200);
    let mut lines: Vec<String> = lines.map(|(key, value)| format!("{key}: {value}")).collect();
    let more = survey.metadata.len() - lines.len();
    if more > 0 {
        lines.push(format!("… and {more} more (--verbose)"));
    }
    lines
}

fn as_json(finding: &Finding) -> Value {
    match finding {
        Finding::Image(path, image) => {
            let texts: Vec<Value> =
                image.texts.iter().map(|text| json!({ "place": text.place, "keyword": text.keyword, "text": text.text })).collect();
            let command = again(image).map(|c| json!({ "arguments": c.arguments, "shell": c.shell(), "notes": c.notes }));
            let recipe = image.recipe.as_ref().map(metadata::Recipe::json);
            json!({ "path": path.to_string_lossy(), "kind": "image", "recipe": recipe, "command": command, "texts": texts })
        }
        Finding::Weights(survey, hashes, fit) => weights_json(survey, hashes, fit.as_ref()),
    }
}

fn weights_json(survey: &Survey, hashes: &[(PathBuf, Hashes)], fit: Option<&AdapterFit>) -> Value {
    let components: Vec<Value> = survey
        .components
        .iter()
        .map(|component| {
            let stored: Vec<Value> = component
                .stored
                .iter()
                .map(|row| json!({ "dtype": row.dtype, "tensors": row.tensors, "parameters": row.parameters, "bytes": row.bytes }))
                .collect();
            json!({ "name": component.title, "parameters": component.parameters(), "bytes": component.bytes(), "stored": stored })
        })
        .collect();
    let mut value = json!({
        "path": survey.path.to_string_lossy(),
        "kind": survey.kind.name(),
        "what": survey.what,
        "family": survey.family,
        "does": survey.does,
        "size": survey.size,
        "bytes": survey.bytes,
        "components": components,
        "evidence": survey.evidence,
        "prediction": survey.prediction.as_ref().map(|(what, why)| json!({ "type": what, "evidence": why })),
        "unused": survey.unused,
        "missing": survey.missing,
        "metadata": survey.metadata,
        "problem": survey.problem,
    });
    let mut add = |name: &str, part: Value| {
        if let Some(map) = value.as_object_mut() {
            map.insert(name.to_owned(), part);
        }
    };
    if let Some(adapter) = &survey.adapter {
        let changes: Vec<&str> = adapter.changes().into_iter().map(Change::name).collect();
        let sites: serde_json::Map<String, Value> = adapter.sites().into_iter().map(|(site, layers)| (site, layers.into())).collect();
        add(
            "lora",
            json!({ "changes": changes, "dora": adapter.is_dora(), "writer": adapter.writer, "ranks": adapter.ranks(), "alphas": adapter.alphas(), "layers": sites, "words": adapter.word_names().collect::<Vec<_>>() }),
        );
    }
    if let Some(embedding) = &survey.embedding {
        add("embedding", json!({ "vectors": embedding.vectors, "writer": embedding.writer, "word": embedding.word }));
    }
    if survey.kind == Kind::Adapter || survey.metadata.contains_key("ss_tag_frequency") {
        let words: Vec<Value> = trained_words(&survey.metadata)
            .into_iter()
            .map(|(word, times)| json!({ "word": word, "times": Some(times).filter(|times| *times < u64::MAX) }))
            .collect();
        add("trained_words", words.into());
    }
    if let Some(fit) = fit {
        add("fit", json!({ "keys": fit.keys, "layers": fit.layers, "of": fit.of, "absent": fit.absent, "misshapen": fit.misshapen }));
    }
    let hashed = |(file, hash): &(PathBuf, Hashes)| json!({ "file": file.to_string_lossy(), "model_hash": hash.model_hash(), "autov2": hash.autov2(), "autov3": hash.autov3(), "sha256": hash.sha256 });
    add("hashes", hashes.iter().map(hashed).collect());
    value
}
