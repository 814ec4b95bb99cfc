//! What images ask of the memory, and that it is there before they are begun.
//!
//! A GPU refuses memory that it has not. On a CPU the system ends the program, and that of every later run at the same image.

use super::BatchItem;
use super::vae_tiling::{free_bytes, tile_bytes};
use crate::device::{memory, release};
use crate::settings::Request;
use crate::settings::VaeTiling;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that one image takes while it is denoised, by the largest layers of the UNet.
pub fn denoising_bytes(spec: &ModelSpec, request: &Request, dtype: DType, device: &Device) -> u64 {
    let factor = spec.vae.factor().max(1);
    let (width, height) = request.last_size();
    // What is seen through a window takes no more than that.
    let side = |side: usize| {
        side.min(request.passes.hires_window.map_or(side, |window| window.max(request.canvas.width.max(request.canvas.height))))
    };
    let pixels = (side(height) / factor) * (side(width) / factor);
    // A transformer's tokens are patches of them, and the text's.
    let pixels =
        spec.mmdit.as_ref().map_or(pixels, |mmdit| pixels / (mmdit.patch_size * mmdit.patch_size).max(1) + 77 + request.text.t5_tokens);
    let rows = request.rows();
    let first = spec.unet.down.first();
    let channels = first.map_or(0, |level| level.channels);
    // Skip connections of the finest level (three of them, and a third of that below it), the joined input of the way up,
    // and a feed-forward layer's eightfold width.
    let mut row = pixels * channels * 16 * dtype.size_in_bytes();
    // What ControlNets add to the skip connections is as large as they are; while a further one works, there are two of them.
    let controls = request.adapters.control.iter().filter(|control| control.weight != 0.0).count();
    row += pixels * channels * 6 * controls.min(2) * dtype.size_in_bytes();
    if device.is_metal() && first.is_some_and(|level| level.depths.iter().any(|depth| *depth > 0)) {
        // The portable attention writes its scores down.
        row += pixels * pixels * first.map_or(0, |level| level.heads) * (dtype.size_in_bytes() + 4);
    }
    (rows * row) as u64
}

/// Bytes that `images` of a request at once take beside the weights, denoised together and decoded one by one.
pub fn batch_bytes(
    spec: &ModelSpec,
    request: &Request,
    images: usize,
    device: &Device,
    (dtype, vae_dtype): (DType, DType),
    tiling: VaeTiling,
) -> u64 {
    let (width, height) = request.last_size();
    let whole = free_bytes(&spec.vae, height, width, vae_dtype, device);
    let tile = tile_bytes(&spec.vae, vae_dtype, device);
    let decoding = if tiling == VaeTiling::Off { whole } else { whole.min(tile) };
    // The image as floats, blended from tiles or not, and as it was decoded.
    let image = (width * height * 3 * 4 * 2) as u64;
    let denoising = denoising_bytes(spec, request, dtype, device) * images as u64;
    denoising.max(decoding + image)
}

/// Whether so many bytes can be had where `limit` can: the rest is what nobody counted.
pub fn fits(bytes: u64, limit: u64) -> bool {
    bytes <= limit / 10 * 9
}

/// What batches were promised.
struct Promises {
    bytes: Mutex<PromisedBytes>,
    fewer: Condvar,
}

struct PromisedBytes {
    /// All that are under way.
    now: u64,
    /// The most that was promised at once and was there: the allocator may still keep it for the next,
    /// and it does not count as free.
    proven: u64,
}

/// Those of the process, whose memory is one.
static PROMISES: Promises = Promises::new();

impl Promises {
    const fn new() -> Self {
        Self { bytes: Mutex::new(PromisedBytes { now: 0, proven: 0 }), fewer: Condvar::new() }
    }

    fn bytes(&self) -> MutexGuard<'_, PromisedBytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where `limit` is too small for so many bytes even after `release`.
    fn promise(&'static self, bytes: u64, limit: impl Fn() -> Option<u64>, release: impl Fn()) -> Option<MemoryPromise> {
        let mut promised = self.bytes();
        loop {
            let all = promised.now.saturating_add(bytes);
            // What others were promised they may have taken already: to count it twice is too careful, and ends when they end.
            let fits = || limit().is_none_or(|limit| fits(all, limit));
            let alone = promised.now == 0;
            if all <= promised.proven || fits() || alone && (release(), fits()).1 {
                promised.now = all;
                return Some(MemoryPromise { to: self, bytes });
            }
            if alone {
                return None;
            }
            promised = self.fewer.wait(promised).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The memory of one batch, for as long as the batch is under way.
pub(super) struct MemoryPromise {
    to: &'static Promises,
    bytes: u64,
}

impl MemoryPromise {
    /// Memory for a batch on a model's device, and for so many bytes of weights that are loaded meanwhile, where as many as the second
    /// number are given back for it; waits for other batches where it is too small for both.
    ///
    /// # Errors
    /// [`Error::Memory`]: it is too small for this one alone.
    pub(super) fn for_batch(
        spec: &ModelSpec,
        device: &Device,
        dtypes: (DType, DType),
        tiling: VaeTiling,
        batch: &[BatchItem<'_>],
        (weights, given_back): (u64, u64),
    ) -> Result<Self> {
        let (Some(BatchItem { request, .. }), true) = (batch.first(), device.is_cpu()) else {
            return Ok(Self { to: &PROMISES, bytes: 0 });
        };
        let (width, height) = request.last_size();
        let bytes = (weights + batch_bytes(spec, request, batch.len(), device, dtypes, tiling)).saturating_sub(given_back);
        PROMISES.promise(bytes, || memory(device).map(|memory| memory.limit), || release(device)).ok_or_else(|| {
            let (wanted, left) = (gigabytes(bytes), memory(device).map_or(String::new(), |memory| gigabytes(memory.limit)));
            let what = if batch.len() == 1 { "an image".to_owned() } else { format!("{} images", batch.len()) };
            Error::Memory(format!(
                "{what} of {width}x{height} would take about {wanted} of memory, and {left} can be had; \
                 try a smaller --size, or --dtype bf16, or end other programs"
            ))
        })
    }

    /// The batch is done: the memory was there.
    pub(super) fn kept(self) {
        let mut promised = self.to.bytes();
        promised.proven = promised.proven.max(promised.now);
    }
}

impl Drop for MemoryPromise {
    fn drop(&mut self) {
        self.to.bytes().now -= self.bytes;
        self.to.fewer.notify_all();
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_promised_once() {
        static PROMISES: Promises = Promises::new();
        let limit = |bytes: u64| move || Some(bytes);
        let first = PROMISES.promise(100, limit(200), || ()).unwrap();
        // Others may have what they want at the same time, where it is there for all.
        let second = PROMISES.promise(50, limit(200), || ()).unwrap();
        let waiting = std::thread::spawn(move || PROMISES.promise(100, limit(200), || ()).is_some());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished(), "all together are too much");
        drop((second, first));
        assert!(waiting.join().unwrap());
        let released = std::cell::Cell::new(false);
        assert!(PROMISES.promise(100, || Some(if released.get() { 200 } else { 100 }), || released.set(true)).is_some());
        assert!(released.get());
        assert!(PROMISES.promise(100, limit(100), || ()).is_none());
        assert!(PROMISES.promise(100, || None, || ()).is_some(), "nobody knows");
        PROMISES.promise(100, limit(200), || ()).unwrap().kept();
        assert!(PROMISES.promise(100, limit(50), || ()).is_some(), "it is kept from the last one");
        assert!(PROMISES.promise(101, limit(50), || ()).is_none());
    }
}
