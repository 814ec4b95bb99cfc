//! Memory for the weights of many layers, side by side in huge pages.
//!
//! A layer's weights alone seldom fill pages of 2 MiB, and entering fresh memory by 4 KiB costs more than filling it.
//! So layers share mappings, which go back to the system when the last layer in them is gone.
#![expect(unsafe_code, reason = "layers share a mapping, each its own part")]

use super::lines::CacheLine;
use candle_core::{Error, Result};
use memmap2::{MmapMut, MmapRaw};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Lines of a mapping: 256 MiB. Its end is seldom used, and so never entered but for the rest of one page.
const LINES: usize = (256 << 20) / size_of::<CacheLine>();

/// The mapping that the next layer has a part of, and its first free line.
static CURRENT: Mutex<(Weak<MmapRaw>, usize)> = Mutex::new((Weak::new(), 0));

/// The mapping of what was packed for one product last.
static PASSING: Mutex<Option<Arc<MmapRaw>>> = Mutex::new(None);

/// Lines of a mapping of [`BlockMemory`], but for a layer that is larger: 64 MiB.
const BLOCK_LINES: usize = (64 << 20) / size_of::<CacheLine>();

/// Memory for the weights of a network's blocks that come and go: what one block leaves, the next takes, pages that were entered before.
#[derive(Debug, Clone, Default)]
pub struct BlockMemory {
    mappings: Arc<Mutex<Vec<Arc<MmapRaw>>>>,
}

/// A block that is being made: its memory, and the mapping that its next layer has a part of with the first free line.
struct OpenBlock {
    memory: BlockMemory,
    current: Option<(Arc<MmapRaw>, usize)>,
}

thread_local! {
    /// The block that this thread makes.
    static OPEN_BLOCK: RefCell<Option<OpenBlock>> = const { RefCell::new(None) };
}

impl BlockMemory {
    /// Makes a block: the weights of layers that `make` makes on this thread lie here. Its memory is free again when all of them are gone.
    pub fn with_block<T>(&self, make: impl FnOnce() -> T) -> T {
        struct Close(Option<OpenBlock>);
        impl Drop for Close {
            fn drop(&mut self) {
                OPEN_BLOCK.replace(self.0.take());
            }
        }
        let _close = Close(OPEN_BLOCK.replace(Some(OpenBlock { memory: self.clone(), current: None })));
        make()
    }

    /// A mapping of so many lines at least that nothing is in.
    fn mapping(&self, lines: usize) -> Result<Arc<MmapRaw>> {
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |mapping: &&Arc<MmapRaw>| Arc::strong_count(mapping) == 1 && mapping.len() / size_of::<CacheLine>() >= lines;
        if let Some(mapping) = mappings.iter().find(free) {
            return Ok(mapping.clone());
        }
        let mapping = Arc::new(map(lines.max(BLOCK_LINES)).or_else(|_| map(lines))?);
        mappings.push(mapping.clone());
        Ok(mapping)
    }
}

impl OpenBlock {
    fn take(&mut self, len: usize) -> Result<WeightArena> {
        let room = |(mapping, first): &(Arc<MmapRaw>, usize)| mapping.len() / size_of::<CacheLine>() - first;
        let (mapping, first) = match self.current.take() {
            Some(current) if room(&current) >= len => current,
            _ => (self.memory.mapping(len)?, 0),
        };
        self.current = Some((mapping.clone(), first + len));
        Ok(WeightArena { mapping, first, len, passing: true })
    }
}

/// A part of a mapping that nobody else has.
#[derive(Debug)]
pub(super) struct WeightArena {
    mapping: Arc<MmapRaw>,
    first: usize,
    len: usize,
    /// The mapping is kept for the next that passes.
    passing: bool,
}

impl WeightArena {
    /// Lines that hold at least `words` words, all 0.
    ///
    /// # Errors
    /// The system has no memory left.
    pub(super) fn new(words: usize) -> Result<Self> {
        let part = Self::uncleared(words)?;
        if part.passing {
            let (start, len) = (part.start(), part.len);
            // SAFETY: as in `deref_mut`; zeros are lines.
            unsafe { std::ptr::write_bytes(start, 0, len) };
        }
        Ok(part)
    }

    /// The same for who writes every word that is read: in a block's memory they may hold what was there before.
    ///
    /// # Errors
    /// As [`WeightArena::new`].
    pub(super) fn uncleared(words: usize) -> Result<Self> {
        let len = words.div_ceil(size_of::<CacheLine>() / size_of::<u32>());
        if let Some(part) = OPEN_BLOCK.with_borrow_mut(|block| block.as_mut().map(|block| block.take(len))) {
            return part;
        }
        // Nothing that is done under the lock leaves it half done.
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (mapping, first) = match current.0.upgrade() {
            Some(mapping) if mapping.len() / size_of::<CacheLine>() - current.1 >= len => (mapping, current.1),
            _ => {
                // Where a limit is too small for a whole mapping, the layer's own part may fit.
                let mapping = Arc::new(map(len.max(LINES)).or_else(|_| map(len))?);
                current.0 = Arc::downgrade(&mapping);
                (mapping, 0)
            }
        };
        current.1 = first + len;
        Ok(Self { mapping, first, len, passing: false })
    }

    /// The same for what is dropped before the next is wanted, in memory that was entered before; what it holds is of no meaning.
    ///
    /// # Errors
    /// As [`WeightArena::new`].
    pub(super) fn passing(words: usize) -> Result<Self> {
        let len = words.div_ceil(size_of::<CacheLine>() / size_of::<u32>());
        let mut kept = PASSING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.take().filter(|kept| Arc::strong_count(kept) == 1 && kept.len() / size_of::<CacheLine>() >= len);
        let mapping = match free {
            Some(mapping) => mapping,
            None => Arc::new(map(len)?),
        };
        *kept = Some(mapping.clone());
        Ok(Self { mapping, first: 0, len, passing: true })
    }

    fn start(&self) -> *mut CacheLine {
        // SAFETY: `new` took the part from within the mapping.
        unsafe { self.mapping.as_mut_ptr().cast::<CacheLine>().add(self.first) }
    }
}

impl Drop for WeightArena {
    /// The last part that was taken goes back to the next layer: what is packed for one product in between leaves no hole.
    fn drop(&mut self) {
        if self.passing {
            return;
        }
        // Held until the part is cleared, so that nobody takes it before.
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if std::ptr::eq(current.0.as_ptr(), Arc::as_ptr(&self.mapping)) && current.1 == self.first + self.len {
            current.1 = self.first;
            // SAFETY: as in `deref_mut`; zeros are lines.
            unsafe { std::ptr::write_bytes(self.start(), 0, self.len) };
            return;
        }
        drop(current);
        self.give_back();
    }
}

impl WeightArena {
    /// Gives the system the whole pages of a part that nobody will take again: a layer that is replaced leaves others in its mapping.
    #[cfg(target_os = "linux")]
    fn give_back(&self) {
        const PAGE: usize = 4096;
        let from = (self.first * size_of::<CacheLine>()).next_multiple_of(PAGE);
        let to = (self.first + self.len) * size_of::<CacheLine>() / PAGE * PAGE;
        if from < to {
            // SAFETY: the pages are this part's alone, and it is being dropped. Where the system refuses, the memory is kept.
            let _ = unsafe { self.mapping.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn give_back(&self) {}
}

fn map(lines: usize) -> Result<MmapRaw> {
    let failed = |e| Error::Msg(format!("no memory for {} MB of weights: {e}", lines * size_of::<CacheLine>() / 1_000_000));
    let mapping = MmapMut::map_anon(lines * size_of::<CacheLine>()).map_err(failed)?;
    #[cfg(target_os = "linux")]
    // A system that has no huge pages is slower, not wrong.
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(mapping.into())
}

impl Deref for WeightArena {
    type Target = [CacheLine];

    fn deref(&self) -> &[CacheLine] {
        // SAFETY: a mapping begins with a page and so is aligned for lines, is cleared, and lives as long as `self`; every bit
        // pattern is a line; no other weight_arena has this part.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for WeightArena {
    fn deref_mut(&mut self) -> &mut [CacheLine] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::elements_mut;
    use super::*;

    #[test]
    fn the_last_part_is_cleared_and_taken_again() -> Result<()> {
        // Other tests may take parts meanwhile: then there is no last one, and nothing to see.
        let kept = WeightArena::new(16)?;
        for _ in 0..100 {
            let mut part = WeightArena::new(160)?;
            let (mapping, first) = (part.mapping.clone(), part.first);
            elements_mut::<f32>(&mut part).fill(1.0);
            drop(part);
            let mut again = WeightArena::new(160)?;
            assert!(elements_mut::<f32>(&mut again).iter().all(|word| word.to_bits() == 0));
            if Arc::ptr_eq(&mapping, &again.mapping) && first == again.first {
                drop(kept);
                return Ok(());
            }
        }
        candle_core::bail!("the last part was never taken again")
    }

    #[test]
    fn a_block_takes_what_another_left_and_is_cleared_where_it_must_be() -> Result<()> {
        let memory = BlockMemory::default();
        let make = |fill: f32| {
            memory.with_block(|| -> Result<Vec<WeightArena>> {
                let mut parts = vec![WeightArena::new(100)?, WeightArena::uncleared(40)?, WeightArena::new(BLOCK_LINES * 16)?];
                assert!(elements_mut::<f32>(&mut parts[0]).iter().all(|word| word.to_bits() == 0));
                parts.iter_mut().for_each(|part| elements_mut::<f32>(&mut part[..1]).fill(fill));
                Ok(parts)
            })
        };
        let places = |parts: &[WeightArena]| parts.iter().map(WeightArena::start).collect::<Vec<_>>();
        let (one, other) = (make(1.0)?, make(2.0)?);
        let first = places(&one);
        assert!(first.iter().all(|place| !places(&other).contains(place)));
        assert!(first[1] > first[0] && elements_mut::<f32>(&mut make(3.0)?[1]).len() >= 40);
        drop(one);
        let again = make(4.0)?;
        assert_eq!(places(&again), first, "the memory of what is gone is taken again");
        drop((again, other));
        assert_eq!(memory.mappings.lock().unwrap_or_else(PoisonError::into_inner).len(), 6);
        assert!(!WeightArena::new(16)?.passing, "outside of a block nothing is taken from it");
        Ok(())
    }

    #[test]
    fn slabs_are_cleared_and_their_own() -> Result<()> {
        // The sixth does not fit behind the others.
        let mut slabs = [1, 16, 17, 0, 1000, LINES * 16 - 1000, 5].map(WeightArena::new).into_iter().collect::<Result<Vec<_>>>()?;
        // Of the large one only the ends, to be spared its memory.
        let ends = |weight_arena: &mut WeightArena, at: usize| weight_arena.len().checked_sub(1).map(|last| at * last);
        for (i, weight_arena) in slabs.iter_mut().enumerate() {
            for at in 0..2 {
                if let Some(line) = ends(weight_arena, at) {
                    let words = elements_mut::<f32>(&mut weight_arena[line..=line]);
                    assert!(words.iter().all(|word| word.to_bits() == 0) || at == 1 && line == 0);
                    words.fill(i as f32);
                }
            }
        }
        for (i, weight_arena) in slabs.iter_mut().enumerate() {
            for line in [0, 1].into_iter().filter_map(|at| ends(weight_arena, at)).collect::<Vec<_>>() {
                assert!(elements_mut::<f32>(&mut weight_arena[line..=line]).iter().all(|word| *word == i as f32));
            }
        }
        Ok(())
    }
}
