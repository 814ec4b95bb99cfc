//! Images that go on at their other side: what lies beyond an edge is what lies at the opposite one, and not zeros.
//!
//! Convolutions are packed with zeros around. Where an image wraps, it is padded by what lies at its other side, the convolution runs over
//! all of that, and what its zeros touched is cut off: the same sums, whatever the device.

use super::Padding;
use candle_core::{Result, Tensor};
use std::cell::Cell;

/// At which sides an image goes on at its other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Wrap {
    /// Left and right.
    pub x: bool,
    /// Top and bottom.
    pub y: bool,
}

impl Wrap {
    /// It goes on nowhere.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

thread_local! {
    static WRAP: Cell<Wrap> = const { Cell::new(Wrap { x: false, y: false }) };
}

/// How images wrap on this thread.
pub(super) fn current() -> Wrap {
    WRAP.get()
}

/// Runs `work` with images that wrap. It holds for this thread, and where it goes by [`super::on_workers`].
pub fn wrapped<T>(wrap: Wrap, work: impl FnOnce() -> T) -> T {
    struct RestoreWrap(Wrap);
    impl Drop for RestoreWrap {
        fn drop(&mut self) {
            WRAP.set(self.0);
        }
    }
    let _restore = RestoreWrap(WRAP.replace(wrap));
    work()
}

/// `x` with `pixels` more on either side of an axis, taken from the other side.
///
/// # Errors
/// The device has no memory left.
pub fn wrap_around(x: &Tensor, axis: usize, pixels: usize) -> Result<Tensor> {
    let side = x.dim(axis)?;
    if pixels == 0 || side == 0 {
        return Ok(x.clone());
    }
    // A side that is shorter than what is wanted of it comes more than once.
    let times = pixels.div_ceil(side);
    let long = Tensor::cat(&vec![x; 2 * times + 1], axis)?;
    long.narrow(axis, times * side - pixels, side + 2 * pixels)?.contiguous()
}

/// The convolution `conv` with `padding`, which zeros are put around by, of an image that wraps, `(batch, height, width, channels)`.
pub(super) fn conv2d(
    x: &Tensor,
    wrap: Wrap,
    (kernel, stride, padding): ((usize, usize), usize, Padding),
    conv: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    // A whole number of strides, so that the outputs are those of the image.
    let around = |wraps: bool, (before, after): (usize, usize)| if wraps { before.max(after).next_multiple_of(stride.max(1)) } else { 0 };
    let (rows, columns) = (around(wrap.y, padding.height), around(wrap.x, padding.width));
    let size = |side: usize, kernel: usize, (before, after): (usize, usize)| (side + before + after - kernel) / stride.max(1) + 1;
    let (_, height, width, _) = x.dims4()?;
    let (height, width) = (size(height, kernel.0, padding.height), size(width, kernel.1, padding.width));
    let y = conv(&wrap_around(&wrap_around(x, 1, rows)?, 2, columns)?)?;
    y.narrow(1, rows / stride.max(1), height)?.narrow(2, columns / stride.max(1), width)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::super::{Conv2d, Epilogue, UpsamplingConv2d, on_workers};
    use super::*;
    use candle_core::Device;

    fn numbers(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::from_vec((0..count).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    fn rolled(x: &Tensor, rows: i32, columns: i32) -> Tensor {
        x.roll(rows, 1).unwrap().roll(columns, 2).unwrap()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_convolution_of_a_rolled_image_is_rolled() {
        let x = numbers(&[2, 8, 12, 3]);
        for (stride, padding) in [(1, Padding::same(1)), (2, Padding::same(1)), (2, Padding { height: (0, 1), width: (0, 1) })] {
            let conv = Conv2d::new(numbers(&[5, 3, 3, 3]), Some(numbers(&[5])), stride, padding).unwrap();
            for wrap in [Wrap { x: true, y: true }, Wrap { x: true, y: false }, Wrap { x: false, y: true }] {
                let (rows, columns) = (if wrap.y { 4 } else { 0 }, if wrap.x { 6 } else { 0 });
                let run = |x: &Tensor| wrapped(wrap, || on_workers(&Device::Cpu, || conv.forward(x).unwrap()));
                let by = stride as i32;
                assert!(apart(&run(&rolled(&x, rows, columns)), &rolled(&run(&x), rows / by, columns / by)) < 1e-5, "{stride} {wrap:?}");
                assert!(apart(&run(&x), &conv.forward(&x).unwrap()) > 1e-2, "it is not the same as with zeros");
            }
        }
    }

    #[test]
    fn what_is_added_stands_where_it_belongs() {
        let (x, residual) = (numbers(&[1, 4, 6, 3]), numbers(&[1, 4, 6, 5]));
        let conv = Conv2d::new(numbers(&[5, 3, 3, 3]), None, 1, Padding::same(1)).unwrap();
        let (plain, with) = wrapped(Wrap { x: true, y: true }, || {
            let with = conv.forward_with(&x, Epilogue { residual: Some(&residual), ..Epilogue::default() });
            (conv.forward(&x).unwrap(), with.unwrap())
        });
        assert!(apart(&(plain + residual).unwrap(), &with) < 1e-5);
    }

    #[test]
    fn an_upsampled_image_wraps_too() {
        let x = numbers(&[1, 4, 6, 3]);
        let conv = UpsamplingConv2d::new(numbers(&[5, 3, 3, 3]), Some(numbers(&[5]))).unwrap();
        let run = |x: &Tensor| wrapped(Wrap { x: true, y: true }, || conv.forward(x).unwrap());
        assert!(apart(&run(&rolled(&x, 2, 3)), &rolled(&run(&x), 4, 6)) < 1e-5);
        assert_eq!(wrap_around(&numbers(&[1, 1, 2, 1]), 2, 5).unwrap().dims(), [1, 1, 12, 1]);
    }
}
