//! RRDBNet: residual dense blocks, each within another residual.

use super::{Loaded, UpscalerNetwork, count, length, refused, shape, unshuffle_of};
use crate::Result;
use crate::models::Scope;
use crate::ops::{Conv2d, Epilogue, Linear, Padding, UpsamplingConv2d, leaky_relu, pixel_unshuffle};
use candle_core::{D, Tensor};

const SLOPE: f32 = 0.2;
/// How much of a block is added to what goes around it.
const PART: f64 = 0.2;
/// Dense blocks of a residual block, and convolutions of a dense one.
const DENSE: usize = 3;
const CONVOLUTIONS: usize = 5;

/// How files name the network.
struct Names {
    first: &'static str,
    /// The dense block `d` of the residual block `b`.
    dense: fn(b: usize, d: usize) -> String,
    /// A convolution of it.
    conv: fn(c: usize) -> String,
    /// The convolution after so many blocks.
    trunk: fn(blocks: usize) -> String,
    /// The convolution after the doubling `u`, from 1.
    up: fn(u: usize) -> String,
    /// The last but one and the last, after so many doublings.
    hr: fn(ups: usize) -> String,
    last: fn(ups: usize) -> String,
}

const NAMES: [Names; 3] = [
    // ESRGAN as it was first published, and ESRGAN+.
    Names {
        first: "model.0",
        dense: |b, d| format!("model.1.sub.{b}.RDB{d}"),
        conv: |c| format!("conv{c}.0"),
        trunk: |blocks| format!("model.1.sub.{blocks}"),
        up: |u| format!("model.{}", 3 * u),
        hr: |ups| format!("model.{}", 3 * ups + 2),
        last: |ups| format!("model.{}", 3 * ups + 4),
    },
    // Real-ESRGAN, BasicSR.
    Names {
        first: "conv_first",
        dense: |b, d| format!("body.{b}.rdb{d}"),
        conv: |c| format!("conv{c}"),
        trunk: |_| "conv_body".into(),
        up: |u| format!("conv_up{u}"),
        hr: |_| "conv_hr".into(),
        last: |_| "conv_last".into(),
    },
    // BSRGAN, RealSR, and ESRGAN's later files.
    Names {
        first: "conv_first",
        dense: |b, d| format!("RRDB_trunk.{b}.RDB{d}"),
        conv: |c| format!("conv{c}"),
        trunk: |_| "trunk_conv".into(),
        up: |u| format!("upconv{u}"),
        hr: |_| "HRconv".into(),
        last: |_| "conv_last".into(),
    },
];

#[derive(Debug)]
struct DenseBlock {
    convs: Vec<Conv2d>,
    last: Conv2d,
    /// ESRGAN+'s way around the second and the fourth convolution.
    around: Option<Linear>,
}

impl DenseBlock {
    fn load(scope: &Scope<'_>, conv: fn(usize) -> String, filters: usize, growth: usize) -> Result<Self> {
        let load = |c: usize, output| scope.at(conv(c)).conv3x3(filters + (c - 1) * growth, output, 1, Padding::same(1));
        let convs = (1..CONVOLUTIONS).map(|c| load(c, growth)).collect::<Result<_>>()?;
        let around = match shape(scope, "conv1x1.weight") {
            Some(_) => Some(
                scope
                    .at("conv1x1")
                    .weight("weight", &[growth, filters, 1, 1], |weight| Ok(Linear::new(weight.reshape(&[growth, filters])?, None)?))?,
            ),
            None => None,
        };
        Ok(Self { convs, last: load(CONVOLUTIONS, filters)?, around })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut seen = x.clone();
        let mut second = None;
        for (at, conv) in self.convs.iter().enumerate() {
            let mut y = leaky_relu(&conv.forward(&seen)?, SLOPE)?;
            match (&self.around, at) {
                (Some(around), 1) => {
                    y = (y + around.forward(x)?)?;
                    second = Some(y.clone());
                }
                (Some(_), 3) => y = second.iter().try_fold(y, |y, second| y + second)?,
                _ => {}
            }
            seen = Tensor::cat(&[&seen, &y], D::Minus1)?;
        }
        Ok((self.last.forward(&seen)?.affine(PART, 0.0)? + x)?)
    }
}

/// # Source
/// Wang et al., "ESRGAN" (arXiv:1809.00219), figure 4; xinntao/Real-ESRGAN and XPixelGroup/BasicSR, archs/rrdbnet_arch.py; Rakotonirina and
/// Rasoanaivo, "ESRGAN+" (arXiv:2001.08073).
#[derive(Debug)]
struct RrdbNet {
    unshuffle: usize,
    first: Conv2d,
    blocks: Vec<Vec<DenseBlock>>,
    trunk: Conv2d,
    ups: Vec<UpsamplingConv2d>,
    hr: Conv2d,
    last: Conv2d,
}

pub(super) fn load(root: &Scope<'_>) -> Result<Option<Loaded>> {
    let weight = |name: String| shape(root, &format!("{name}.weight"));
    let found = NAMES.iter().find_map(|names| {
        let growth = *weight(format!("{}.{}", (names.dense)(0, 1), (names.conv)(1)))?.first()?;
        let [filters, input, 3, 3] = *weight(names.first.into())?.as_slice() else { return None };
        Some((names, filters, input, growth))
    });
    let Some((names, filters, input, growth)) = found else { return Ok(None) };
    let blocks = count(0, |b| weight(format!("{}.{}", (names.dense)(b, 1), (names.conv)(1))).is_some());
    // The old names count on: what would be one more doubling is the last but one.
    let ups = count(1, |u| weight((names.up)(u)).is_some());
    let output =
        length(root, &format!("{}.weight", (names.last)(ups))).ok_or_else(|| refused(format!("it has no {}", (names.last)(ups))))?;
    let unshuffle = unshuffle_of(input, output)?;
    let same = |name: String| root.at(name).conv3x3(filters, filters, 1, Padding::same(1));
    let block = |b: usize| (1..=DENSE).map(|d| DenseBlock::load(&root.at((names.dense)(b, d)), names.conv, filters, growth)).collect();
    let network = RrdbNet {
        unshuffle,
        first: root.at(names.first).conv3x3(input, filters, 1, Padding::same(1))?,
        blocks: (0..blocks).map(block).collect::<Result<_>>()?,
        trunk: same((names.trunk)(blocks))?,
        ups: (1..=ups).map(|u| root.at((names.up)(u)).upsampling_conv3x3(filters, filters)).collect::<Result<_>>()?,
        hr: same((names.hr)(ups))?,
        last: root.at((names.last)(ups)).conv3x3(filters, output, 1, Padding::same(1))?,
    };
    let scale = 1usize.checked_shl(ups as u32).unwrap_or(0) / unshuffle;
    Ok(Some(Loaded { network: Box::new(network), scale, multiple: unshuffle }))
}

impl UpscalerNetwork for RrdbNet {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let first = self.first.forward(&pixel_unshuffle(x, self.unshuffle)?)?;
        let mut x = first.clone();
        for block in &self.blocks {
            let y = block.iter().try_fold(x.clone(), |y, dense| dense.forward(&y))?;
            x = (y.affine(PART, 0.0)? + &x)?;
        }
        x = self.trunk.forward_with(&x, Epilogue { residual: Some(&first), ..Epilogue::default() })?;
        for up in &self.ups {
            x = leaky_relu(&up.forward(&x)?, SLOPE)?;
        }
        self.last.forward(&leaky_relu(&self.hr.forward(&x)?, SLOPE)?).map_err(Into::into)
    }
}
