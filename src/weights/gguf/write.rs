//! The header of a GGUF file, and numbers in GGML's blocks (ggml's `docs/gguf.md`, version 3).

use super::super::weight_type::StoredAs;
use super::{ALIGNMENT, BlockKind, MAGIC};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;

/// Numbers that one thread quantises at once: whole blocks of every kind.
const SHARE: usize = 1 << 14;
/// Parts of names whose tensors stay as they are: what is looked up row by row, and what says time and size. They are small, and the rest
/// follows from them.
const NEVER_QUANTISED: [&str; 6] = ["embedding", "time_embed", "label_emb", "pos_embed", "_embedder.", "shared.weight"];

/// A tensor of a file that is written.
pub(crate) struct NewTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) stored: StoredAs,
    pub(crate) bytes: usize,
}

/// What a tensor is stored as where `wanted` is asked for, or nothing but what it is: `own`.
///
/// stable-diffusion.cpp wants vectors in f32, and quantises what is a matrix of whole blocks; the kernels of a convolution are none.
pub(crate) fn stored_as(name: &str, shape: &[usize], own: Dtype, wanted: Option<StoredAs>) -> StoredAs {
    let numbers = match (wanted, own) {
        (Some(StoredAs::Numbers(wanted)), _) => wanted,
        (Some(StoredAs::Blocks(kind)), _) => {
            let row = shape.last().copied().unwrap_or(0);
            let is_matrix = shape.len() == 2 && row > 0 && row.is_multiple_of(kind.numbers());
            if is_matrix && !NEVER_QUANTISED.iter().any(|part| name.contains(part)) {
                return StoredAs::Blocks(kind);
            }
            Dtype::F16
        }
        (None, Dtype::F32 | Dtype::F16 | Dtype::BF16) => own,
        (None, Dtype::F64) => Dtype::F32,
        (None, _) => Dtype::F16,
    };
    StoredAs::Numbers(if shape.len() < 2 { Dtype::F32 } else { numbers })
}

/// GGML's number for a type; `None` where it has none.
fn number(stored: StoredAs) -> Option<u32> {
    Some(match stored {
        StoredAs::Numbers(Dtype::F32) => 0,
        StoredAs::Numbers(Dtype::F16) => 1,
        StoredAs::Numbers(Dtype::BF16) => 30,
        StoredAs::Numbers(_) => return None,
        StoredAs::Blocks(kind) => kind.number()?,
    })
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Bytes up to where data may begin again.
pub(crate) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT as usize)
}

/// All that is before the data; `None` where a type is none of GGML's.
pub(crate) fn header(fields: &[(String, String)], tensors: &[NewTensor<'_>]) -> Option<Vec<u8>> {
    const TEXT: u32 = 8;
    let mut header = MAGIC.to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((fields.len() as u64).to_le_bytes());
    for (key, value) in fields {
        text(&mut header, key);
        header.extend(TEXT.to_le_bytes());
        text(&mut header, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut header, tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| header.extend((*size as u64).to_le_bytes()));
        header.extend(number(tensor.stored)?.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += padded(tensor.bytes);
    }
    header.resize(padded(header.len()), 0);
    Some(header)
}

/// Numbers as blocks, rounded as ggml rounds them.
///
/// # Errors
/// They are no whole blocks.
pub(crate) fn quantised(values: &[f32], kind: BlockKind) -> Result<Vec<u8>> {
    let some = |values: &[f32]| {
        let quantised = QTensor::quantize(&Tensor::from_slice(values, values.len(), &Device::Cpu)?, ggml(kind))?;
        Ok(quantised.data()?.into_owned())
    };
    Ok(values.par_chunks(SHARE).map(some).collect::<Result<Vec<_>>>()?.concat())
}

fn ggml(kind: BlockKind) -> GgmlDType {
    match kind {
        BlockKind::Q4_0 => GgmlDType::Q4_0,
        BlockKind::Q4_1 => GgmlDType::Q4_1,
        BlockKind::Q5_0 => GgmlDType::Q5_0,
        BlockKind::Q5_1 => GgmlDType::Q5_1,
        BlockKind::Q8_0 => GgmlDType::Q8_0,
        BlockKind::Q2_K => GgmlDType::Q2K,
        BlockKind::Q3_K => GgmlDType::Q3K,
        BlockKind::Q4_K => GgmlDType::Q4K,
        BlockKind::Q5_K => GgmlDType::Q5K,
        BlockKind::Q6_K => GgmlDType::Q6K,
    }
}
