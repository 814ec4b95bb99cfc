//! Writes a model in another layout.
//!
//! Tensors go from file to file one after the other; nothing else of the weights is in memory. An existing file or
//! folder is never touched: the result grows under a temporary name beside its own and is renamed when it is complete.

use super::checkpoint::Checkpoint;
use super::component::{Part, Raw};
use super::disk_file::ReadBuffers;
use super::weight_type::{StoredAs, WeightType};
use super::{decode, gguf, model_error, quoted};
use crate::disk;
use crate::family::json::Fields;
use crate::family::keys::{Form, Pair};
use crate::family::{self, CONFIGURATION, FolderNames, Marks, TokenizerFiles};
use crate::spec::{Component, ModelSpec};
use crate::{Error, Result};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A layout of a whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A folder as diffusers has it.
    Diffusers,
    /// One safetensors file as the first Stable Diffusion had it.
    Original,
    /// The same names in one GGUF file, as stable-diffusion.cpp writes it.
    Gguf,
}

/// What [`convert`] wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// The file or the folder.
    pub path: PathBuf,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of numbers written.
    pub bytes: u64,
    /// What the user should know: what was left out, what is missing.
    pub notes: Vec<String>,
}

/// What is changed of a model's tensors on their way into another file: adapters that are merged in.
pub trait TensorChanges {
    /// Whether the tensor `name`, in diffusers' names, is changed.
    fn changes(&self, component: Component, name: &str) -> bool;

    /// The numbers of a tensor, changed.
    ///
    /// # Errors
    /// They are no numbers any more.
    fn changed(&self, component: Component, name: &str, shape: &[usize], values: Vec<f32>) -> Result<Vec<f32>>;

    /// The names of all tensors that are changed.
    fn names(&self) -> Vec<(Component, String)>;
}

/// Changes nothing.
struct Unchanged;

impl TensorChanges for Unchanged {
    fn changes(&self, _: Component, _: &str) -> bool {
        false
    }

    fn changed(&self, _: Component, _: &str, _: &[usize], values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn names(&self) -> Vec<(Component, String)> {
        Vec::new()
    }
}

/// Bytes that wait for the disk at most. Else they would all be waited for at the end, where nothing can stop the work.
const UNSYNCED: u64 = 64 << 20;

/// Writes `from` as `to`, which must not exist, with weights of type `dtype` or, as far as the layout can, as they are.
///
/// `tokenizers` are files by folder (`tokenizer`, `tokenizer_2`) for text encoders that bring none, which a folder needs.
///
/// # Errors
/// [`Error::Input`] where `to` exists or the layout cannot hold `dtype`, [`Error::Model`] where `from` cannot be expressed in the
/// layout, [`Error::Io`] where writing fails.
pub fn convert(
    from: &Checkpoint,
    to: &Path,
    layout: Layout,
    dtype: Option<WeightType>,
    tokenizers: &[(&str, TokenizerFiles)],
) -> Result<ConvertReport> {
    convert_observed(from, to, layout, dtype, tokenizers, None, &mut |_| Ok(()))
}

/// [`convert`], where `changes` are merged in, and `written` hears of every tensor the bytes that were written so far, and may stop the work by an error.
///
/// # Errors
/// As [`convert`], and what `written` returns; nothing is left behind then.
pub fn convert_observed(
    from: &Checkpoint,
    to: &Path,
    layout: Layout,
    dtype: Option<WeightType>,
    tokenizers: &[(&str, TokenizerFiles)],
    changes: Option<&dyn TensorChanges>,
    written: Written<'_>,
) -> Result<ConvertReport> {
    let changes = changes.unwrap_or(&Unchanged);
    for (component, name) in changes.names() {
        if from.part(component).is_none_or(|part| part.shape(&name).is_none()) {
            return Err(model_error(from.name(), format!("has no {}, which an adapter adds; no layout has a place for it", quoted(&name))));
        }
    }
    match dtype {
        Some(dtype) if dtype.needs_gguf() && layout != Layout::Gguf => {
            return Err(Error::Input("quantised blocks are written into a .gguf file alone; name one, or take another dtype".into()));
        }
        Some(dtype) if !dtype.fits_gguf() && layout == Layout::Gguf => {
            return Err(Error::Input("GGUF has no f8_e4m3; take q8_0, or write a .safetensors file".into()));
        }
        _ => {}
    }
    if to.symlink_metadata().is_ok() {
        return Err(Error::Input(format!("{} exists already; name a file or folder that does not", to.display())));
    }
    let mut report = ConvertReport { path: to.to_owned(), ..ConvertReport::default() };
    match layout {
        Layout::Original | Layout::Gguf => original(from, to, layout, dtype, changes, &mut report, written)?,
        Layout::Diffusers => diffusers(from, to, dtype, tokenizers, changes, &mut report, written)?,
    }
    let left_out = from.unknown();
    if !left_out.is_empty() {
        let shown: Vec<String> = left_out.iter().take(5).map(|key| quoted(key)).collect();
        let more = if left_out.len() > shown.len() { ", …" } else { "" };
        report.notes.push(format!("{} tensors that belong to no network were left out: {}{more}", left_out.len(), shown.join(", ")));
    }
    Ok(report)
}

/// A tensor to be written.
struct Item<'a> {
    key: String,
    form: Form,
    /// The tensors of `part` that it is made of. None: it is a mark, which says something by its name and holds no number.
    names: Vec<String>,
    part: &'a Part,
    component: Component,
    changes: &'a dyn TensorChanges,
}

/// Hears how many bytes were written.
type Written<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

fn original(
    from: &Checkpoint,
    to: &Path,
    layout: Layout,
    dtype: Option<WeightType>,
    changes: &dyn TensorChanges,
    report: &mut ConvertReport,
    written: Written<'_>,
) -> Result<()> {
    let spec = from.spec();
    let format = family::row(spec.family).format;
    let mut items = Vec::new();
    for ((component, part), pairs) in from.parts.iter().zip((format.original)(spec)?) {
        items.extend(backwards(*component, part, pairs, changes));
    }
    let texts = (format.carried)(&from.exported())?;
    let scheduler = Fields::parse("the scheduler's configuration", from.scheduler.as_bytes())?;
    let v = scheduler.word("prediction_type")? == Some("v_prediction");
    let zero_snr = scheduler.flag("rescale_betas_zero_snr", false)?;
    let (architecture, marks) = (format.marks)(spec, Marks { v, zero_snr });
    let mut metadata = metadata(spec, architecture, v, to);
    // GGUF's readers want no tensor without numbers; the configuration says the same.
    if let Some((component, part)) = from.parts.first().filter(|_| layout != Layout::Gguf) {
        let mark = |mark: &str| Item { key: mark.to_owned(), form: Form::Same, names: Vec::new(), part, component: *component, changes };
        items.extend(marks.into_iter().map(mark));
    }
    metadata.insert(CONFIGURATION.into(), json!(serde_json::to_string(&texts).map_err(|e| unexpected(&e))?));

    let partial = disk::temporary(disk::folder_of(to)).map_err(Error::io(to))?;
    write(partial.as_file(), to, layout, metadata, &items, dtype, report, written)?;
    partial.persist_noclobber(to).map(drop).map_err(|e| Error::io(to)(e.error))
}

fn diffusers(
    from: &Checkpoint,
    to: &Path,
    dtype: Option<WeightType>,
    tokenizers: &[(&str, TokenizerFiles)],
    changes: &dyn TensorChanges,
    report: &mut ConvertReport,
    written: Written<'_>,
) -> Result<()> {
    let spec = from.spec();
    let format = family::row(spec.family).format;
    let texts = (format.export)(&from.exported(), tokenizers)?;
    let partial = disk::temporary_folder(disk::folder_of(to)).map_err(Error::io(to))?;
    // Every network has a configuration, so that this makes all folders.
    for (path, text) in &texts {
        let path = partial.path().join(path);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(Error::io(&path))?;
        std::fs::write(&path, text).map_err(Error::io(&path))?;
    }
    let folders = (format.folders)(spec);
    for ((component, part), FolderNames { folder, file, kept, .. }) in from.parts.iter().zip(&folders) {
        let kept: Option<HashSet<&str>> = kept.as_ref().map(|kept| kept.iter().map(String::as_str).collect());
        let wanted = |name: &str| kept.as_ref().is_none_or(|kept| kept.contains(name));
        let names = part.names().into_iter().filter(|name| wanted(name));
        let item = |name: &str| {
            let (key, names) = (name.to_owned(), vec![name.to_owned()]);
            Item { key, form: Form::Same, names, part, component: *component, changes }
        };
        let items: Vec<Item> = names.map(item).collect();
        let mut metadata = Map::new();
        // transformers refuses files that do not say so.
        metadata.insert("format".into(), json!("pt"));
        let path = partial.path().join(folder).join(file);
        let file = File::create_new(&path).map_err(Error::io(&path))?;
        write(&file, &path, Layout::Diffusers, metadata, &items, dtype, report, written)?;
    }
    for (i, (folder, tokenizer)) in folders.iter().filter_map(|folder| Some((folder, folder.tokenizer?))).enumerate() {
        if folder.left_out > 0 {
            let (number, layers) = (i + 1, folder.left_out);
            report.notes.push(format!("the last {layers} of text encoder {number}'s layers were left out: nothing uses them"));
        }
        if !texts.contains_key(&format!("{tokenizer}/vocab.json")) {
            report.notes.push(format!("{tokenizer} has no vocabulary: diffusers needs vocab.json and merges.txt there"));
        }
    }
    std::fs::rename(partial.path(), to).map_err(Error::io(to))?;
    // What it was called is no more.
    drop(partial.keep());
    Ok(())
}

/// The stored tensors that `pairs` make of those of `part`: the table, read from right to left.
fn backwards<'a>(component: Component, part: &'a Part, pairs: Vec<Pair>, changes: &'a dyn TensorChanges) -> Vec<Item<'a>> {
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut written = HashSet::new();
    for Pair { stored, name, form } in pairs {
        // Of several spellings the first is today's.
        if part.shape(&name).is_none() || !written.insert(name.clone()) {
            continue;
        }
        match places.get(&stored).and_then(|i| items.get_mut(*i)) {
            Some(item) => item.names.push(name),
            None => {
                places.insert(stored.clone(), items.len());
                items.push(Item { key: stored, form, names: vec![name], part, component, changes });
            }
        }
    }
    items
}

/// What other programs look for in a single file.
fn metadata(spec: &ModelSpec, architecture: String, v: bool, to: &Path) -> Map<String, Value> {
    let mut metadata = Map::new();
    for (key, value) in [
        ("format", "pt".to_owned()),
        ("modelspec.sai_model_spec", "1.0.0".to_owned()),
        ("modelspec.architecture", architecture),
        ("modelspec.prediction_type", if v { "v" } else { "epsilon" }.to_owned()),
        ("modelspec.resolution", format!("{0}x{0}", spec.default_size)),
        ("modelspec.title", to.file_stem().unwrap_or_default().to_string_lossy().into_owned()),
    ] {
        metadata.insert(key.into(), Value::String(value));
    }
    metadata
}

/// Writes one file; `path` names it in errors.
#[expect(clippy::too_many_arguments, reason = "where, what and how")]
fn write(
    file: &File,
    path: &Path,
    layout: Layout,
    metadata: Map<String, Value>,
    items: &[Item<'_>],
    dtype: Option<WeightType>,
    report: &mut ConvertReport,
    written: Written<'_>,
) -> Result<()> {
    let is_gguf = layout == Layout::Gguf;
    let plan = plan(items, dtype.map(|dtype| dtype.0), is_gguf)?;
    let header = if is_gguf { gguf_header(metadata, &plan)? } else { safetensors_header(metadata, &plan)? };
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&header).map_err(Error::io(path))?;
    let mut synced = report.bytes;
    let buffers = ReadBuffers::default();
    for Planned { item, stored, shape, bytes } in &plan {
        let raw = item.read(*stored, &buffers)?;
        if raw.shape != *shape || raw.bytes.len() != *bytes {
            return Err(unexpected(&format!("{} changed while it was written", item.key)));
        }
        out.write_all(&raw.bytes).map_err(Error::io(path))?;
        if is_gguf {
            out.write_all(&vec![0; gguf::padded(*bytes) - bytes]).map_err(Error::io(path))?;
        }
        report.tensors += 1;
        report.bytes += *bytes as u64;
        written(report.bytes)?;
        if report.bytes - synced > UNSYNCED {
            out.flush().and_then(|()| file.sync_data()).map_err(Error::io(path))?;
            synced = report.bytes;
        }
    }
    out.flush().and_then(|()| file.sync_all()).map_err(Error::io(path))?;
    written(report.bytes)
}

/// All that is before the data of a safetensors file.
fn safetensors_header(metadata: Map<String, Value>, plan: &[Planned<'_>]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut end = 0;
    for Planned { item, stored, shape, bytes } in plan {
        let StoredAs::Numbers(dtype) = stored else { return Err(unexpected(&format!("{} is of blocks", item.key))) };
        header.insert(item.key.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }));
        end += bytes;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| unexpected(&e))?;
    // Readers that cast the data in place want them aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// The same of a GGUF file.
fn gguf_header(metadata: Map<String, Value>, plan: &[Planned<'_>]) -> Result<Vec<u8>> {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut fields =
        vec![("general.architecture".to_owned(), text("modelspec.architecture")), ("general.name".to_owned(), text("modelspec.title"))];
    fields.extend(metadata.keys().filter(|key| *key != "format").map(|key| (key.clone(), text(key))));
    let tensors: Vec<gguf::NewTensor<'_>> = plan
        .iter()
        .map(|Planned { item, stored, shape, bytes }| gguf::NewTensor { name: &item.key, shape, stored: *stored, bytes: *bytes })
        .collect();
    gguf::header(&fields, &tensors).ok_or_else(|| unexpected(&"GGUF has no such numbers"))
}

/// A tensor to be written, with its size.
struct Planned<'a> {
    item: &'a Item<'a>,
    stored: StoredAs,
    shape: Vec<usize>,
    bytes: usize,
}

/// Types and sizes of all tensors. Those of safetensors are in the order in which the format's own writer has them: wide types first, for
/// alignment.
fn plan<'a>(items: &'a [Item<'a>], wanted: Option<StoredAs>, is_gguf: bool) -> Result<Vec<Planned<'a>>> {
    let mut plan = Vec::with_capacity(items.len());
    for item in items {
        if item.names.is_empty() {
            plan.push(Planned { item, stored: StoredAs::Numbers(Dtype::F32), shape: vec![0], bytes: 0 });
            continue;
        }
        let shapes: Vec<Vec<usize>> = item.names.iter().filter_map(|name| item.part.shape(name)).collect();
        let cannot =
            || model_error(item.part.file_of(&item.names), format!("has tensors {:?} that do not fit together as one", item.names));
        let shape = item.form.stored_shape(&shapes).ok_or_else(cannot)?;
        let own = item.names.first().and_then(|name| item.part.dtype(name)).ok_or_else(cannot)?;
        // A changed number is not one of the few that eight bits hold.
        let is_changed = item.names.iter().any(|name| item.changes.changes(item.component, name));
        let own = if is_changed && decode::computed_as(own).is_none() { Dtype::F16 } else { own };
        let stored = match wanted {
            _ if is_gguf => gguf::stored_as(&item.key, &shape, own, wanted),
            Some(StoredAs::Numbers(Dtype::F8_E4M3)) if shape.len() < 2 => StoredAs::Numbers(Dtype::F16),
            Some(wanted) => wanted,
            None => StoredAs::Numbers(own),
        };
        let bytes = stored.bytes(shape.iter().product());
        plan.push(Planned { item, stored, shape, bytes });
    }
    let dtype = |planned: &Planned<'_>| match planned.stored {
        StoredAs::Numbers(dtype) if !is_gguf => Some(dtype),
        _ => None,
    };
    plan.sort_by(|a, b| dtype(b).cmp(&dtype(a)).then_with(|| a.item.key.cmp(&b.item.key)));
    Ok(plan)
}

impl Item<'_> {
    fn read<'b>(&'b self, stored: StoredAs, buffers: &'b ReadBuffers) -> Result<Raw<'b>> {
        let dtype = match stored {
            StoredAs::Numbers(dtype) => dtype,
            StoredAs::Blocks(_) => Dtype::F32,
        };
        if self.names.is_empty() {
            return Ok(Raw { dtype, shape: vec![0], bytes: [].as_slice().into() });
        }
        let no_way = |from: Dtype| unexpected(&format!("{} has no way from {from} to {dtype}", self.key));
        let read = |name: &String| -> Result<Raw<'b>> {
            let raw = self.part.raw(name, buffers)?;
            if self.changes.changes(self.component, name) {
                let values = decode::numbers::<f32>(&raw.bytes, raw.dtype);
                let values = self.changes.changed(self.component, name, &raw.shape, values)?;
                return Ok(Raw {
                    dtype,
                    bytes: decode::bytes_of(&values, dtype).ok_or_else(|| no_way(Dtype::F32))?.into(),
                    shape: raw.shape,
                });
            }
            if raw.dtype == dtype {
                return Ok(raw);
            }
            let bytes = decode::bytes_as(&raw.bytes, raw.dtype, dtype);
            let bytes = bytes.ok_or_else(|| no_way(raw.dtype))?;
            Ok(Raw { dtype, shape: raw.shape, bytes: bytes.into() })
        };
        let parts = self.names.iter().map(read).collect::<Result<Vec<_>>>()?;
        let raw = self.form.invert(parts).ok_or_else(|| unexpected(&format!("{} cannot be put together", self.key)))?;
        let StoredAs::Blocks(kind) = stored else { return Ok(raw) };
        let blocks = gguf::quantised(&decode::numbers::<f32>(&raw.bytes, raw.dtype), kind).map_err(|e| unexpected(&e))?;
        Ok(Raw { bytes: blocks.into(), ..raw })
    }
}

fn unexpected(what: &dyn std::fmt::Display) -> Error {
    Error::Model(format!("the model cannot be written: {what}"))
}
