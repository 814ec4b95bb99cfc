//! `sd-gen models`: what can be named after `--model`, `--lora`, `--control` and so on, and what it is.

use crate::adapter::AdapterFolders;
use crate::cli::command::inspect::{hash, hash_cache};
use crate::cli::model;
use crate::cli::terminal::answer;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::show::{bytes, columns, harmless, json as json_text};
use crate::survey::{Kind, Survey};
use crate::weights::{CatalogKind, Found, Hashes, find_models, is_model_folder, with_network_folders};
use crate::{Error, Result};
use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen models                     ./models, or $SD_GEN_MODELS
  sd-gen models /data/checkpoints   with its folders
  sd-gen models --hash              with A1111's hashes, remembered until a file changes
  sd-gen models --json              for programs

LoRAs, embeddings, VAEs, ControlNets, IP-Adapters and upscalers are listed with what they fit, and the flag that takes them: those in the
folder, and those beside it in loras, Lora, embeddings, VAE, vae, ControlNet, controlnet, ip-adapter, ipadapter, upscalers, upscale_models,
ESRGAN and their kin.

Only headers are read, so that a thousand files take a second; --hash reads whole files once.")]
pub(in crate::cli) struct ModelsArgs {
    /// The folder [default: $SD_GEN_MODELS, else ./models]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// JSON: one object a model in a list
    #[arg(long)]
    json: bool,
    /// A1111's hash of every file; those of a folder's files are in --json
    #[arg(long)]
    hash: bool,
    /// Problems in full
    #[arg(short, long)]
    verbose: bool,
}

/// Names of this many characters of a problem fit beside the rest.
const SHORT: usize = 60;

struct ModelRow {
    name: String,
    survey: Survey,
    hashes: Vec<(PathBuf, Hashes)>,
}

pub(in crate::cli) fn run(args: &ModelsArgs) -> Result<()> {
    let (folder, is_named) = model::models_folder(args.folder.as_deref());
    if args.folder.is_some() && !folder.is_dir() {
        return Err(Error::Input(format!("{}: there is no such folder", folder.display())));
    }
    if is_model_folder(&folder) {
        return Err(Error::Input(format!("{} is one model and not a folder of models; see sd-gen inspect", folder.display())));
    }
    let mut found = with_network_folders(find_models(&folder));
    let mut seen: HashSet<PathBuf> = found.iter().map(|found| found.path.clone()).collect();
    let beside = AdapterFolders::of_every_kind(&folder).into_iter().flat_map(|folders| folders.listed());
    found.extend(beside.filter(|found| seen.insert(found.path.clone())));
    let folders: HashSet<&str> = found.iter().filter(|found| found.holds == CatalogKind::Folder).map(|found| found.name.as_str()).collect();
    let survey = |found: &Found| {
        // A folder of the same name is meant by the name; the file's own has its ending.
        let ending = found.path.extension().filter(|_| found.holds != CatalogKind::Folder && folders.contains(found.name.as_str()));
        let ending = ending.map(|ending| format!(".{}", ending.display())).unwrap_or_default();
        Some(ModelRow { name: found.name.clone() + &ending, survey: Survey::of(&found.path).ok()?, hashes: Vec::new() })
    };
    let mut rows: Vec<ModelRow> = found.par_iter().filter_map(survey).collect();
    if let Ok(builtin) = model::builtin() {
        rows.push(ModelRow { name: model::BUILTIN.to_owned(), survey: Survey::of_model(builtin), hashes: Vec::new() });
    }
    if args.hash {
        listen_for_cancellation()?;
        let mut cache = hash_cache();
        let mut hashing = || -> Result<()> {
            // What A1111 calls a model's hash is a file's; only --json has room for those of a folder.
            for row in rows.iter_mut().filter(|row| args.json || row.survey.files.len() == 1) {
                for file in row.survey.files.iter().filter(|file| file.is_file()) {
                    row.hashes.push((file.clone(), hash(file, &mut cache)?));
                }
            }
            Ok(())
        };
        let hashed = hashing();
        // What was computed is kept, however the work ended.
        cache.save();
        hashed?;
    }
    if args.json {
        let rows: Vec<Value> = rows.iter().map(as_json).collect();
        return answer(&json_text(&Value::Array(rows), true));
    }
    let mut table = vec![["name", "what", "size", "dtype", "predicts", "does", "flag"].map(str::to_owned).to_vec()];
    if let Some(heading) = table.first_mut() {
        heading.extend(args.hash.then(|| "hash".to_owned()));
        heading.push("problem".to_owned());
    }
    table.extend(rows.iter().map(|row| as_cells(row, args)));
    answer(&columns(&table))?;
    if rows.len() <= 1 && !is_named {
        crate::cli::terminal::screen::say(&format!("no models in {}: put .safetensors files or diffusers folders there", folder.display()));
    }
    Ok(())
}

/// The types of the weights, the one with the most bytes first.
fn dtypes(survey: &Survey) -> String {
    let mut all: Vec<(String, u64)> = Vec::new();
    for stored in survey.components.iter().flat_map(|component| &component.stored) {
        match all.iter_mut().find(|(dtype, _)| *dtype == stored.dtype) {
            Some((_, bytes)) => *bytes += stored.bytes,
            None => all.push((stored.dtype.clone(), stored.bytes)),
        }
    }
    all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    all.iter().map(|(dtype, _)| dtype.to_lowercase()).collect::<Vec<_>>().join("+")
}

fn as_cells(row: &ModelRow, args: &ModelsArgs) -> Vec<String> {
    let survey = &row.survey;
    let what = match (survey.kind, survey.family) {
        (Kind::Model, Some(family)) => family.to_owned(),
        _ => survey.what.clone(),
    };
    let problem = survey.problem.clone().unwrap_or_default();
    // The file is named in the row already.
    let problem = problem.strip_prefix(&format!("{} ", survey.path.display())).unwrap_or(&problem).to_owned();
    let problem = match problem.char_indices().nth(SHORT) {
        Some((at, _)) if !args.verbose => format!("{}…", &problem[..at]),
        _ => problem,
    };
    let mut cells = vec![
        row.name.clone(),
        what,
        bytes(survey.bytes),
        dtypes(survey),
        survey.prediction.as_ref().map(|(prediction, _)| (*prediction).to_owned()).unwrap_or_default(),
        survey.does.to_owned(),
        survey.kind.flag().to_owned(),
    ];
    if args.hash {
        cells.push(row.hashes.first().map(|(_, hash)| hash.model_hash().to_owned()).unwrap_or_default());
    }
    cells.push(problem);
    cells.iter().map(|cell| harmless(cell).replace('\n', " ")).collect()
}

fn as_json(row: &ModelRow) -> Value {
    let survey = &row.survey;
    let hashes: Vec<Value> = row
        .hashes
        .iter()
        .map(|(file, hash)| json!({ "file": file.to_string_lossy(), "model_hash": hash.model_hash(), "autov3": hash.autov3(), "sha256": hash.sha256 }))
        .collect();
    json!({
        "name": row.name,
        "path": survey.path.to_string_lossy(),
        "kind": survey.kind.name(),
        "what": survey.what,
        "family": survey.family,
        "bytes": survey.bytes,
        "dtype": dtypes(survey),
        "prediction": survey.prediction.as_ref().map(|(prediction, _)| prediction),
        "does": survey.does,
        "flag": Some(survey.kind.flag()).filter(|flag| !flag.is_empty()),
        "size": survey.size,
        "problem": survey.problem,
        "hashes": hashes,
    })
}
