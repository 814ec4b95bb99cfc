//! One network of a checkpoint: which stored tensor stands behind each of diffusers' names.

use super::disk_file::{ReadBuffers, TensorBytes};
use super::file::WeightFile;
use super::header::Entry;
use super::{TensorSource, decode, ignorable, model_error, quoted};
use crate::family::keys::{Form, Pair};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Where a tensor is.
#[derive(Debug, Clone, Copy)]
struct TensorPlace {
    file: usize,
    entry: usize,
    form: Form,
}

/// One network's tensors by diffusers' names.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// What people call it: "the UNet".
    pub(crate) title: String,
    pub(crate) files: Vec<Arc<WeightFile>>,
    places: HashMap<String, TensorPlace>,
    /// What the tables name and no file has: needed or not.
    pub(crate) absent: Vec<Pair>,
}

impl Part {
    /// Finds the tensors that `pairs` name in `files`. An earlier pair wins where two pairs give the same name.
    ///
    /// # Errors
    /// Two files that have the same tensor.
    pub(crate) fn new(title: impl Into<String>, files: Vec<Arc<WeightFile>>, pairs: Vec<Pair>) -> Result<Part> {
        let mut places = HashMap::new();
        let mut absent = Vec::new();
        for pair in pairs {
            let mut found = files.iter().enumerate().filter_map(|(i, file)| Some((i, file.find(&pair.stored)?)));
            let Some((file, entry)) = found.next() else {
                absent.push(pair);
                continue;
            };
            if let (Some((other, _)), Some(first)) = (found.next(), files.get(file)) {
                let other = files.get(other).map_or("", |f| f.name.as_str());
                return Err(model_error(&first.name, format!("and {other} both have the tensor {}", quoted(&pair.stored))));
            }
            places.entry(pair.name).or_insert(TensorPlace { file, entry, form: pair.form });
        }
        // Of several spellings one is enough.
        absent.retain(|pair| !places.contains_key(&pair.name));
        Ok(Part { title: title.into(), files, places, absent })
    }

    /// Refuses a file with a tensor behind `prefix` that no layer of the network takes: the layer that it belongs to was left out, and the
    /// network would compute something else than the one that was trained.
    ///
    /// # Errors
    /// The message names the tensor.
    pub(crate) fn check_left_out(&self, prefix: &str) -> Result<()> {
        let placed: HashSet<(usize, usize)> = self.places.values().map(|place| (place.file, place.entry)).collect();
        for (i, file) in self.files.iter().enumerate() {
            let mut rest = file.entries().iter().enumerate().filter(|(entry, _)| !placed.contains(&(i, *entry)));
            if let Some((_, entry)) = rest.find(|(_, entry)| entry.name.starts_with(prefix) && !ignorable::is(&entry.name)) {
                let what = format!(
                    "has the tensor {}, which belongs to a layer that {} was not found to have; take a file whose tensors have their usual names",
                    quoted(&entry.name),
                    self.title
                );
                return Err(model_error(&file.name, what));
            }
        }
        Ok(())
    }

    /// A network without tensors.
    pub(crate) fn empty(title: &str, files: Vec<Arc<WeightFile>>) -> Part {
        Part { title: title.to_owned(), files, ..Part::default() }
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.places.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The files and numbers of the stored tensors that stand behind a name that `wanted` accepts.
    pub(crate) fn stored(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = (&Arc<WeightFile>, usize)> {
        let places = self.places.iter().filter(move |(name, _)| wanted(name));
        places.filter_map(|(_, place)| Some((self.files.get(place.file)?, place.entry)))
    }

    /// How many numbers all tensors have.
    pub(crate) fn parameters(&self) -> u64 {
        self.numbers_of(|_| true)
    }

    /// How many numbers the tensors have whose names `wanted` accepts.
    pub(crate) fn numbers_of(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let count = |name: &String| self.shape(name).map_or(0, |shape| shape.iter().product::<usize>() as u64);
        self.places.keys().filter(|name| wanted(name)).map(count).sum()
    }

    /// The tensor's shape as diffusers has it.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (_, entry, form) = self.find(name)?;
        Some(form.shape(&entry.shape))
    }

    /// The type in which the tensor is stored; of scaled numbers the type that they are read as.
    pub(crate) fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        let (file, entry, _) = self.find(name)?;
        Some(if scale(file, entry).is_ok_and(|scale| scale.is_some()) { safetensors::Dtype::F32 } else { entry.dtype })
    }

    /// The name of the file that has the first of `names`.
    pub(crate) fn file_of(&self, names: &[String]) -> &str {
        names.iter().find_map(|name| self.find(name)).map_or("the model", |(file, ..)| &file.name)
    }

    fn find(&self, name: &str) -> Option<(&WeightFile, &Entry, Form)> {
        let place = self.places.get(name)?;
        let file = self.files.get(place.file)?;
        Some((file, file.entries().get(place.entry)?, place.form))
    }

    /// The tensor as it is stored, brought into diffusers' form.
    pub(crate) fn raw<'a>(&'a self, name: &str, buffers: &'a ReadBuffers) -> Result<Raw<'a>> {
        let (file, entry, form) = self.find(name).ok_or_else(|| self.missing(name))?;
        if !decode::readable(entry.dtype) {
            return Err(model_error(
                &file.name,
                format!("stores {} as {}, which is not read as weights; f32, f16, bf16 and f8 are", quoted(&entry.name), entry.dtype),
            ));
        }
        if let Some(place) = self.places.get(name) {
            file.mark_used(place.entry);
        }
        let cannot = || {
            let what = format!("has tensor {} of shape {:?}, which cannot be {form:?} to become {name}", quoted(&entry.name), entry.shape);
            model_error(&file.name, what)
        };
        let bytes = file.part(entry, form.part(entry).ok_or_else(cannot)?, buffers)?;
        let bytes = form.apply(bytes, &entry.shape, entry.dtype).ok_or_else(cannot)?;
        if let Some(scale) = scale(file, entry)? {
            let mut values = decode::numbers::<f32>(&bytes, entry.dtype);
            values.iter_mut().for_each(|value| *value *= scale);
            let cannot = || model_error(&file.name, format!("has tensor {} as {}, which is not scaled", quoted(&entry.name), entry.dtype));
            let bytes = decode::bytes_of(&values, safetensors::Dtype::F32).ok_or_else(cannot)?;
            return Ok(Raw { dtype: safetensors::Dtype::F32, shape: form.shape(&entry.shape), bytes: bytes.into() });
        }
        Ok(Raw { dtype: entry.dtype, shape: form.shape(&entry.shape), bytes })
    }

    fn missing(&self, name: &str) -> Error {
        let file = match self.files.as_slice() {
            [file] => file.name.clone(),
            files => format!("{} ({} files)", files.first().map_or("the model", |f| f.name.as_str()), files.len()),
        };
        model_error(file, format!("lacks the tensor {} of {}", quoted(name), self.title))
    }
}

/// What the numbers of a tensor of eight bits are multiplied by, where the file says so (`scaled_fp8`).
///
/// # Source
/// Comfy-Org/ComfyUI@a125cd84:comfy/ops.py (`scaled_fp8_ops`) and comfy/model_detection.py.
fn scale(file: &WeightFile, entry: &Entry) -> Result<Option<f32>> {
    let Some(layer) = entry.name.strip_suffix(".weight").filter(|_| entry.dtype.bitsize() == 8) else { return Ok(None) };
    let names = [format!("{layer}.scale_weight"), format!("{layer}.weight_scale")];
    let Some((name, scale)) = names.iter().find_map(|name| Some((name, file.entry(name)?))) else { return Ok(None) };
    let wrong = |what: String| model_error(&file.name, format!("has the scale {} {what}", quoted(name)));
    if !decode::readable(scale.dtype) || scale.shape.iter().product::<usize>() != 1 {
        return Err(wrong(format!("of shape {:?} as {}, where one number is expected", scale.shape, scale.dtype)));
    }
    match decode::numbers::<f32>(&file.bytes(scale)?, scale.dtype).first() {
        Some(scale) if scale.is_finite() => Ok(Some(*scale)),
        _ => Err(wrong("that is no finite number".into())),
    }
}

/// A tensor's numbers as bytes.
#[derive(Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: TensorBytes<'a>,
}

impl Form {
    /// The shape in diffusers of what is stored with `stored`.
    fn shape(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Form::Third(_), [rows, rest @ ..]) => [&[rows / 3], rest].concat(),
            (Form::Transposed, [rows, columns]) => vec![*columns, *rows],
            (Form::Squeezed, [out, input, 1, 1] | [out, input, 1]) => vec![*out, *input],
            _ => stored.to_vec(),
        }
    }

    /// Which of the stored tensor's bytes are wanted; `None` where the shape does not allow it.
    fn part(self, entry: &Entry) -> Option<Range<usize>> {
        let all = entry.number_bytes();
        match self {
            Form::Third(part) => {
                let third = all / 3;
                (entry.shape.first()? % 3 == 0).then_some(part * third..(part + 1) * third)
            }
            _ => Some(0..all),
        }
    }

    /// From the stored bytes that are wanted to diffusers'; `None` where the shape does not allow it.
    fn apply<'a>(self, bytes: TensorBytes<'a>, stored: &[usize], dtype: safetensors::Dtype) -> Option<TensorBytes<'a>> {
        match self {
            Form::Same | Form::Squeezed | Form::Third(_) => Some(bytes),
            Form::HalvesSwapped => halves_swapped(&bytes, stored).map(Into::into),
            Form::Transposed => transpose(&bytes, stored, dtype.bitsize() / 8).map(Into::into),
        }
    }

    /// The stored tensor's shape, from the shapes of all of its parts in diffusers: the inverse of [`Form::shape`].
    pub(crate) fn stored_shape(self, parts: &[Vec<usize>]) -> Option<Vec<usize>> {
        match (self, parts) {
            (Form::Third(_), [q, k, v]) if q == k && k == v => match q.as_slice() {
                [rows, rest @ ..] => Some([&[rows * 3], rest].concat()),
                [] => None,
            },
            (Form::Third(_), _) => None,
            (Form::Squeezed, [part]) if part.len() == 2 => Some([part.as_slice(), &[1, 1]].concat()),
            (Form::Transposed, [part]) => match part.as_slice() {
                [rows, columns] => Some(vec![*columns, *rows]),
                _ => None,
            },
            (_, [part]) => Some(part.clone()),
            _ => None,
        }
    }

    /// The stored tensor, from all of its parts in diffusers, in order: the inverse of [`Form::part`] and [`Form::apply`].
    pub(crate) fn invert(self, mut parts: Vec<Raw<'_>>) -> Option<Raw<'_>> {
        let shapes: Vec<Vec<usize>> = parts.iter().map(|part| part.shape.clone()).collect();
        let shape = self.stored_shape(&shapes)?;
        let dtype = parts.first()?.dtype;
        if parts.iter().any(|part| part.dtype != dtype) {
            return None;
        }
        let bytes = match self {
            Form::Third(_) => parts.iter().map(|part| &*part.bytes).collect::<Vec<_>>().concat().into(),
            Form::Same | Form::Squeezed => parts.pop()?.bytes,
            Form::HalvesSwapped => {
                let part = parts.pop()?;
                halves_swapped(&part.bytes, &part.shape)?.into()
            }
            Form::Transposed => {
                let part = parts.pop()?;
                transpose(&part.bytes, &part.shape, dtype.bitsize() / 8)?.into()
            }
        };
        Some(Raw { dtype, shape, bytes })
    }
}

fn halves_swapped(bytes: &[u8], shape: &[usize]) -> Option<Vec<u8>> {
    let (first, last) = bytes.split_at(bytes.len() / 2);
    shape.first()?.is_multiple_of(2).then(|| [last, first].concat())
}

fn transpose(bytes: &[u8], shape: &[usize], width: usize) -> Option<Vec<u8>> {
    let &[rows, columns] = shape else { return None };
    let mut result = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * width;
            result.extend_from_slice(bytes.get(at..at + width)?);
        }
    }
    Some(result)
}

/// One network's tensors, served.
#[derive(Debug)]
pub struct ComponentTensors<'a> {
    part: &'a Part,
    /// What the architecture was concluded from, for messages.
    concluded: &'a str,
    buffers: ReadBuffers,
}

impl<'a> ComponentTensors<'a> {
    pub(crate) fn new(part: &'a Part, concluded: &'a str) -> Self {
        Self { part, concluded, buffers: ReadBuffers::default() }
    }

    /// Where the tensor `name` is, after its shape was found to be `shape`.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&WeightFile, &Entry, Form)> {
        let with_reason = |e: Error| match e {
            Error::Model(what) => Error::Model(format!("{what} ({})", self.concluded)),
            other => other,
        };
        let (file, entry, form) = self.part.find(name).ok_or_else(|| with_reason(self.part.missing(name)))?;
        let found = form.shape(&entry.shape);
        if found != shape {
            let key = if entry.name == name { quoted(name) } else { format!("{} ({name})", quoted(&entry.name)) };
            return Err(with_reason(model_error(
                &file.name,
                format!("has tensor {key} of shape {found:?} where {} needs {shape:?}", self.part.title),
            )));
        }
        Ok((file, entry, form))
    }
}

impl TensorSource for ComponentTensors<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let (file, ..) = self.checked(name, shape)?;
        let raw = self.part.raw(name, &self.buffers)?;
        let tensor = decode::tensor(&raw.bytes, raw.dtype, shape, dtype, device);
        Ok(tensor
            .ok_or_else(|| model_error(&file.name, format!("has tensor {} as {}, not read as {dtype:?}", quoted(name), raw.dtype)))??)
    }

    fn in_place(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        let (_, entry, form) = self.checked(name, shape)?;
        if decode::computed_as(entry.dtype).is_none() || matches!(form, Form::Transposed | Form::HalvesSwapped) {
            return Ok(None);
        }
        let raw = self.part.raw(name, &self.buffers)?;
        Ok(decode::computed_as(raw.dtype).map(|dtype| InPlace { bytes: raw.bytes, dtype, product: None }))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.part.shape(name)
    }

    fn numbers_below(&self, prefix: &str) -> Option<u64> {
        Some(self.part.numbers_of(|name| name.starts_with(prefix)))
    }
}

/// Two matrices, `(out, r)` and `(…, r)`.
type Matrices = (Vec<f32>, Vec<f32>);

/// A tensor's numbers as the file has them: little-endian, at any alignment, in the order of the shape; and what is to be added to them.
#[derive(Debug)]
pub struct InPlace<'a> {
    bytes: TensorBytes<'a>,
    dtype: DType,
    product: Option<Matrices>,
}

impl InPlace<'_> {
    /// Numbers that were computed.
    pub(crate) fn computed(numbers: Vec<f32>) -> Self {
        Self { bytes: numbers.into(), dtype: DType::F32, product: None }
    }

    /// The same and the product of two matrices, `(out, r)` and `(…, r)`.
    pub(crate) fn plus_product(self, a: Vec<f32>, b: Vec<f32>) -> Self {
        Self { product: Some((a, b)), ..self }
    }

    /// The numbers.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The two matrices whose product is added to the numbers, if any: who uses the numbers takes them.
    pub fn take_product(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.product.take()
    }
}
