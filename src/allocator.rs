//! Memory that is used again: a large block that was freed is kept for the next one of its size.
//!
//! Every op makes a fresh image of activations, and the system clears fresh pages before it gives them: on the autoencoder's
//! large images that took longer than the arithmetic of a normalisation. The program installs this; a library's user chooses
//! an allocator of their own.
//!
//! # Against mimalloc
//! Counted, not timed: three images' activations of a 512×512 step and decode, as sizes alone (Linux 6.18, two cores). Page faults after
//! the first image: the system's allocator 4.3 million an image, this one none, mimalloc (libmimalloc-sys 0.1.49) none without purging and 12,000 to 120,000 with
//! (`MIMALLOC_PURGE_DELAY` 1000 and 10 ms). Resident afterwards: 27 MB, 1701 MB, 872 MB and 420 MB.
//!
//! Timed since, whole images: two of 512×512 with SD1.5 in bf16, two steps each, from the process's start, on two cores with AMX, in turn:
//! this one 25.8 and 23.8 s with 3.1 GB at the peak, the system's 24.2 and 20.0 s with 2.6 GB, mimalloc without purging 20.7 and 18.4 s with
//! 2.8 to 2.9 GB, with a purge after 10 ms 23.5 s with 2.5 GB. So mimalloc is to take its place. What speaks for this one is only that it
//! needs no C compiler in a build without `hub`, and gives back all that it keeps before an allocation fails.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, LayoutError, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks from here on are kept; smaller ones are the system's.
const LARGE: usize = 256 << 10;

/// Bytes that blocks in use and kept ones may have together beyond the most that were in use at once. Then the block that waited longest
/// goes first. Less would let go of blocks that the next step or image of the same size asks for again.
const SPARE: usize = 1 << 30;

/// Blocks that are kept at most.
const MOST_BLOCKS: usize = 64;

/// A page that the processor maps at once; large blocks begin at one.
const HUGE_PAGE: usize = 2 << 20;

/// An allocator that keeps large blocks.
#[derive(Debug)]
pub struct KeepsLargeBlocks {
    kept: Mutex<FreeBlocks>,
}

/// A block that nobody uses, by its address and size.
#[derive(Debug, Clone, Copy)]
struct FreeBlock {
    address: *mut u8,
    size: usize,
}

impl FreeBlock {
    fn give_back(self) {
        if let Ok(layout) = block_layout(self.size) {
            // SAFETY: the block was made with the layout of its size, and nobody uses it.
            unsafe { System.dealloc(self.address, layout) };
        }
    }
}

/// The first `count`, in the order in which they were freed.
#[derive(Debug)]
struct FreeBlocks {
    blocks: [FreeBlock; MOST_BLOCKS],
    count: usize,
    bytes: usize,
    /// Bytes of large blocks in use.
    used: usize,
    /// The most that were in use at once.
    most_used: usize,
}

// SAFETY: a kept block belongs to nobody else.
unsafe impl Send for FreeBlocks {}

impl FreeBlocks {
    fn remove(&mut self, index: usize) -> FreeBlock {
        let block = self.blocks[index];
        self.blocks.copy_within(index + 1..self.count, index);
        self.count -= 1;
        self.bytes -= block.size;
        block
    }

    /// The block of this size that was freed last: some of it may still be in the caches.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let index = self.blocks[..self.count].iter().rposition(|block| block.size == size)?;
        Some(self.remove(index).address)
    }

    /// `size` bytes are no longer in use. The most is only seen then, so that what the system refused was never in use.
    fn take_back(&mut self, size: usize) {
        self.most_used = self.most_used.max(self.used);
        self.used -= size;
    }

    /// A block that has to go, if there is one.
    fn crowded_out(&mut self) -> Option<FreeBlock> {
        let crowded = self.count == MOST_BLOCKS || self.used + self.bytes > self.most_used.max(self.used) + SPARE;
        (self.count > 0 && crowded).then(|| self.remove(0))
    }

    /// Gives back to the system what has to go.
    fn make_room(&mut self) {
        while let Some(block) = self.crowded_out() {
            block.give_back();
        }
    }

    /// Gives all of it back to the system; whether there was any.
    fn give_all_back(&mut self) -> bool {
        let any = self.count > 0;
        while self.count > 0 {
            self.remove(self.count - 1).give_back();
        }
        any
    }

    fn keep(&mut self, block: FreeBlock) {
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.size;
    }
}

/// What a block of some bytes really has: few enough sizes that blocks find takers. Memory beyond what is asked for is never touched.
/// `None` where the system is asked for what the caller wants: small blocks, and alignments beyond that of a kept one.
fn whole(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE {
        return None;
    }
    let size = layout.size().checked_next_multiple_of(layout.size().checked_next_power_of_two()? / 8)?;
    block_layout(size).ok().filter(|whole| whole.align() >= layout.align())
}

/// The layout of a block of a whole size.
fn block_layout(size: usize) -> Result<Layout, LayoutError> {
    Layout::from_size_align(size, if size < HUGE_PAGE { 4096 } else { HUGE_PAGE })
}

impl KeepsLargeBlocks {
    /// An allocator that keeps nothing yet.
    #[expect(clippy::new_without_default, reason = "a static is made by a constant function")]
    pub const fn new() -> Self {
        const NONE: FreeBlock = FreeBlock { address: std::ptr::null_mut(), size: 0 };
        Self { kept: Mutex::new(FreeBlocks { blocks: [NONE; MOST_BLOCKS], count: 0, bytes: 0, used: 0, most_used: 0 }) }
    }

    fn kept(&self) -> MutexGuard<'_, FreeBlocks> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `ask` gets of the system. When that is nothing, all kept blocks are given back, and it asks once more.
    fn of_system(&self, mut ask: impl FnMut() -> *mut u8) -> *mut u8 {
        let address = ask();
        if address.is_null() && self.kept().give_all_back() { ask() } else { address }
    }
}

// SAFETY: small blocks are the system's. A large one is made with the layout of `whole`, which depends on the caller's layout
// alone, is at least as large and as aligned as that, and is given back to the system with the same.
unsafe impl GlobalAlloc for KeepsLargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = whole(layout) else {
            // SAFETY: the caller's promise.
            return self.of_system(|| unsafe { System.alloc(layout) });
        };
        let mut kept = self.kept();
        kept.used += whole.size();
        if let Some(address) = kept.take(whole.size()) {
            return address;
        }
        kept.make_room();
        drop(kept);
        // SAFETY: the size is not 0.
        let address = self.of_system(|| unsafe { System.alloc(whole) });
        if address.is_null() {
            self.kept().used -= whole.size();
        }
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        let Some(whole) = whole(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(address, layout) };
        };
        let mut kept = self.kept();
        kept.take_back(whole.size());
        // There must be a place for it; of bytes there are as many as before.
        kept.make_room();
        kept.keep(FreeBlock { address, size: whole.size() });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if whole(layout).is_none() {
            // SAFETY: the caller's promise.
            return self.of_system(|| unsafe { System.alloc_zeroed(layout) });
        }
        // SAFETY: the caller's promise; the block is that long.
        unsafe {
            let address = self.alloc(layout);
            if !address.is_null() {
                address.write_bytes(0, layout.size());
            }
            address
        }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is valid with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (whole(layout), whole(new)) {
            // SAFETY: the caller's promise; a block that could not be resized is as it was.
            (None, None) => self.of_system(|| unsafe { System.realloc(address, layout, size) }),
            (Some(old), Some(new)) if old == new => address,
            // SAFETY: the caller's promise; both blocks are that long, and apart.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(address, layout.size().min(size));
                    self.dealloc(address, layout);
                }
                to
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 64).expect("a layout")
    }

    #[test]
    fn a_freed_block_is_the_next_of_its_size() {
        let allocator = KeepsLargeBlocks::new();
        // SAFETY: blocks are used within their sizes, and freed once with their layouts.
        unsafe {
            let first = allocator.alloc(layout(5_000_000));
            assert!(first.addr().is_multiple_of(HUGE_PAGE));
            first.write_bytes(7, 5_000_000);
            allocator.dealloc(first, layout(5_000_000));
            let other = allocator.alloc(layout(50_000_000));
            let second = allocator.alloc_zeroed(layout(5_000_100));
            assert_eq!(first, second);
            assert!(std::slice::from_raw_parts(second, 5_000_100).iter().all(|&byte| byte == 0));
            allocator.dealloc(second, layout(5_000_100));
            allocator.dealloc(other, layout(50_000_000));
        }
        assert_eq!(allocator.kept().count, 2);
    }

    #[test]
    fn growing_keeps_what_was_written_across_all_sizes() {
        let allocator = KeepsLargeBlocks::new();
        let mut size = 1000;
        // SAFETY: as above.
        unsafe {
            let mut block = allocator.alloc(layout(size));
            block.write_bytes(3, size);
            while size < 20_000_000 {
                let more = size * 3 / 2;
                block = allocator.realloc(block, layout(size), more);
                assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 3));
                block.write_bytes(3, more);
                size = more;
            }
            allocator.dealloc(block, layout(size));
        }
    }

    #[test]
    fn what_is_kept_and_used_has_a_limit() {
        let allocator = KeepsLargeBlocks::new();
        // Alone or a hundred at once, of sizes that never come again: none of it is written, so it costs nothing.
        for at_once in [1, 100, 3] {
            for round in 0..20 {
                let blocks: Vec<(usize, *mut u8)> = (0..at_once)
                    .map(|i| {
                        let size = LARGE + (i * 20 + round) * 100_000;
                        // SAFETY: the size is not 0.
                        (size, unsafe { allocator.alloc(layout(size)) })
                    })
                    .collect();
                for (size, block) in blocks {
                    // SAFETY: each was made with this layout.
                    unsafe { allocator.dealloc(block, layout(size)) };
                    let kept = allocator.kept();
                    assert!(kept.count <= MOST_BLOCKS && kept.used + kept.bytes <= kept.most_used + SPARE);
                }
                assert_eq!(allocator.kept().used, 0);
            }
            assert!(allocator.kept().bytes > 0);
        }
    }

    #[test]
    fn every_alignment_is_honoured() {
        let allocator = KeepsLargeBlocks::new();
        for align in (0..23).map(|bits| 1usize << bits) {
            for size in [1, 1000, LARGE, LARGE + 1, 1 << 20, HUGE_PAGE - 1, HUGE_PAGE, 3 << 20] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                // SAFETY: the size is not 0, and each block is freed once with its layout.
                unsafe {
                    let blocks: Vec<*mut u8> =
                        (0..8).map(|i| if i % 2 == 0 { allocator.alloc(layout) } else { allocator.alloc_zeroed(layout) }).collect();
                    for block in blocks {
                        assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?} at {block:?}");
                        allocator.dealloc(block, layout);
                    }
                }
            }
        }
    }

    #[test]
    fn kept_blocks_are_given_back_before_an_allocation_fails() {
        let allocator = KeepsLargeBlocks::new();
        let (large, small, much) = (layout(5_000_000), layout(1000), layout(1 << 62));
        // SAFETY: the sizes are not 0, and blocks are freed once with their layouts.
        unsafe {
            // Whatever is asked for, large or small, cleared or longer: what the system has not is first looked for in what is kept.
            for ask in 0..4 {
                allocator.dealloc(allocator.alloc(large), large);
                assert_eq!(allocator.kept().count, 1);
                let first = allocator.alloc(small);
                let mut asked = 0;
                let address = match ask {
                    0 => allocator.alloc(much),
                    1 => allocator.alloc_zeroed(much),
                    2 => allocator.realloc(first, small, much.size()),
                    // A system that has a small block only after the kept one came back.
                    _ => allocator.of_system(|| {
                        asked += 1;
                        if allocator.kept().count > 0 { std::ptr::null_mut() } else { System.alloc(small) }
                    }),
                };
                assert_eq!((allocator.kept().count, address.is_null()), (0, ask < 3), "{ask}");
                if ask == 3 {
                    assert_eq!(asked, 2);
                    allocator.dealloc(address, small);
                }
                allocator.dealloc(first, small);
            }
            assert!(allocator.of_system(std::ptr::null_mut).is_null());
        }
    }

    #[test]
    fn what_the_system_refuses_was_never_used() {
        let allocator = KeepsLargeBlocks::new();
        let (block, much) = (layout(LARGE), layout(1 << 62));
        // SAFETY: the sizes are not 0, and the one block is freed with its layout.
        unsafe {
            assert!(allocator.alloc(much).is_null());
            let address = allocator.alloc(block);
            allocator.dealloc(address, block);
        }
        let kept = allocator.kept();
        assert!(kept.used == 0 && kept.most_used < 2 * LARGE);
    }
}
