//! Networks larger than the memory: blocks that are read again for every call, the next while one computes.
//!
//! A network is loaded with its blocks noted and not read. What fits into the room that [`BlockStream::fit`] is told of stays from its
//! first use on; the others are made on a thread of the stream when the call nears them, and dropped after. Blocks that stay are spread
//! evenly among the others, so that there is something to compute while each of those is read. At most two blocks that do not stay are
//! there at once. The numbers are those of a network that is loaded as a whole: a block is made by the same code from the same tensors.

use super::Scope;
use crate::ops::BlockMemory;
use crate::weights::TensorSource;
use crate::{Error, Result};
use candle_core::{DType, Device};
use rayon::ThreadPoolBuilder;
use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A network's tensors for a thread that outlives who started it.
pub trait StreamedTensors: Send + 'static {
    /// Gives `work` the tensors, and returns when it does.
    fn serve(&self, work: &mut dyn FnMut(&dyn TensorSource));
}

/// A block of any type.
type AnyBlock = Arc<dyn Any + Send + Sync>;

/// How a block is made.
type BlockMaker = Box<dyn Fn(&Scope<'_>) -> Result<AnyBlock> + Send + Sync>;

struct NotedBlock {
    prefix: String,
    bytes: u64,
    make: BlockMaker,
}

/// What the thread of a stream is asked for: a block's number, and whether it stays.
struct BlockWish {
    index: usize,
    stays: bool,
}

/// The thread that makes blocks.
struct BlockReader {
    wishes: Sender<BlockWish>,
    made: Receiver<Result<AnyBlock>>,
    ended: Receiver<()>,
}

#[derive(Default)]
struct StreamState {
    /// Until the stream starts.
    noted: Vec<NotedBlock>,
    bytes: Vec<u64>,
    stays: Vec<bool>,
    kept: Vec<Option<AnyBlock>>,
    /// The block that came after each in the last call.
    follows: Vec<usize>,
    last: Option<usize>,
    /// The block that the thread makes or has made.
    asked: Option<usize>,
    reader: Option<BlockReader>,
}

/// The blocks of one network.
#[derive(Default)]
pub struct BlockStream {
    state: Mutex<StreamState>,
}

impl std::fmt::Debug for BlockStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(f, "BlockStream({} of {} blocks stay)", state.stays.iter().filter(|stays| **stays).count(), state.stays.len())
    }
}

impl BlockStream {
    fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, block: NotedBlock) -> usize {
        let mut state = self.state();
        state.noted.push(block);
        state.noted.len() - 1
    }

    /// The network is loaded: from here on its blocks can be had, made of `tensors`.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(&self, tensors: impl StreamedTensors, dtype: DType, device: &Device) -> Result<()> {
        let mut state = self.state();
        let blocks = std::mem::take(&mut state.noted);
        let n = blocks.len();
        state.bytes = blocks.iter().map(|block| block.bytes).collect();
        state.stays = vec![false; n];
        state.kept = vec![None; n];
        state.follows = (0..n).map(|i| (i + 1) % n.max(1)).collect();
        // Threads of its own: those of the ops wait for a block in the middle of a call.
        let threads = rayon::current_num_threads();
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("blocks {i}")).build();
        let pool = pool.map_err(|e| Error::Model(format!("the threads that read blocks cannot be started ({e})")))?;
        let (wishes, wished) = channel::<BlockWish>();
        let (sender, made) = channel();
        let (end, ended) = channel();
        let (device, memory) = (device.clone(), BlockMemory::default());
        pool.spawn(move || {
            tensors.serve(&mut |source| {
                let scope = Scope::root(source, dtype, &device);
                while let Ok(BlockWish { index, stays }) = wished.recv() {
                    let make = |block: &NotedBlock| (block.make)(&scope.at(&block.prefix));
                    let block = match blocks.get(index) {
                        None => Err(Error::Model("a block that the network does not have".into())),
                        Some(block) if stays => make(block),
                        Some(block) => memory.with_block(|| make(block)),
                    };
                    if sender.send(block).is_err() {
                        break;
                    }
                }
            });
            drop(blocks);
            drop(end);
        });
        state.reader = Some(BlockReader { wishes, made, ended });
        Ok(())
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.state().bytes.iter().sum()
    }

    /// Bytes of the blocks that are there and stay.
    pub fn kept_bytes(&self) -> u64 {
        let state = self.state();
        state.bytes.iter().zip(&state.kept).filter(|(_, kept)| kept.is_some()).map(|(bytes, _)| bytes).sum()
    }

    /// Decides which blocks stay, so that all that are there at once take at most `room` bytes, as far as that is possible; those that are
    /// there and are too many go. Where all that was decided before fits, it stays decided. Gives the bytes that are to stay.
    pub fn fit(&self, room: u64) -> u64 {
        let mut state = self.state();
        let staying = |stays: &[bool], bytes: &[u64]| -> u64 { stays.iter().zip(bytes).filter(|(stays, _)| **stays).map(|(_, b)| b).sum() };
        let now = staying(&state.stays, &state.bytes);
        if now == 0 || now + passing(&state.bytes, &state.stays) > room {
            state.stays = chosen(&state.bytes, room);
            let StreamState { stays, kept, .. } = &mut *state;
            kept.iter_mut().zip(stays).filter(|(_, stays)| !**stays).for_each(|(kept, _)| *kept = None);
        }
        staying(&state.stays, &state.bytes)
    }

    /// The block of a number, when it is there; the next is read meanwhile.
    fn take(&self, index: usize) -> Result<AnyBlock> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(follows) = state.last.replace(index).and_then(|last| state.follows.get_mut(last)) {
            *follows = index;
        }
        if let Some(Some(kept)) = state.kept.get(index) {
            return Ok(kept.clone());
        }
        let gone = || Error::Model("the thread that reads a network's blocks has ended; run the command again".into());
        let reader = state.reader.as_ref().ok_or_else(gone)?;
        let ask = |index: usize| {
            let stays = state.stays.get(index).is_some_and(|stays| *stays);
            reader.wishes.send(BlockWish { index, stays }).map_err(|_| gone())
        };
        if state.asked != Some(index) {
            // Another was expected.
            if state.asked.take().is_some() {
                drop(reader.made.recv().map_err(|_| gone())?);
            }
            ask(index)?;
        }
        state.asked = None;
        let block = reader.made.recv().map_err(|_| gone())??;
        if let (Some(true), Some(kept)) = (state.stays.get(index), state.kept.get_mut(index)) {
            *kept = Some(block.clone());
        }
        let mut next = index;
        for _ in 0..state.follows.len() {
            next = state.follows.get(next).copied().unwrap_or(0);
            if next == index {
                break;
            }
            if matches!(state.kept.get(next), Some(None)) {
                ask(next)?;
                state.asked = Some(next);
                break;
            }
        }
        Ok(block)
    }
}

impl Drop for BlockStream {
    fn drop(&mut self) {
        if let Some(BlockReader { wishes, made, ended }) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).reader.take() {
            drop((wishes, made));
            // What it was making is gone by then.
            let _ = ended.recv();
        }
    }
}

/// The bytes of blocks that do not stay and are there at once: one that computes, and one that is made.
fn passing(bytes: &[u64], stays: &[bool]) -> u64 {
    2 * bytes.iter().zip(stays).filter(|(_, stays)| !**stays).map(|(bytes, _)| *bytes).max().unwrap_or(0)
}

/// Which blocks stay in so many bytes.
fn chosen(bytes: &[u64], room: u64) -> Vec<bool> {
    let all: u64 = bytes.iter().sum();
    if all <= room {
        return vec![true; bytes.len()];
    }
    let room = room.saturating_sub(passing(bytes, &vec![false; bytes.len()]));
    let (mut seen, mut kept) = (0u64, 0u64);
    let choose = |bytes: &u64| {
        seen += bytes;
        // As many of those that were seen as of all.
        let share = (u128::from(seen) * u128::from(room) / u128::from(all.max(1))) as u64;
        let stays = kept + bytes <= share;
        kept += if stays { *bytes } else { 0 };
        stays
    };
    bytes.iter().map(choose).collect()
}

/// A part of a network that is there, or is read again for every call.
#[derive(Debug)]
pub(super) enum Block<T> {
    Here(T),
    Streamed { stream: Arc<BlockStream>, index: usize },
}

impl<T: Send + Sync + 'static> Block<T> {
    /// The part at `scope`, which `make` makes there.
    pub(super) fn load(scope: &Scope<'_>, make: impl Fn(&Scope<'_>) -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let Some(stream) = scope.stream else { return make(scope).map(Self::Here) };
        let prefix = scope.prefix.trim_end_matches('.').to_owned();
        // What is not known fits nowhere.
        let numbers = scope.source.numbers_below(&scope.prefix).unwrap_or(1 << 40);
        let bytes = numbers * scope.dtype.size_in_bytes() as u64;
        let make: BlockMaker = Box::new(move |scope| Ok(Arc::new(make(scope)?) as AnyBlock));
        Ok(Self::Streamed { stream: stream.clone(), index: stream.note(NotedBlock { prefix, bytes, make }) })
    }

    /// Gives `work` the part.
    pub(super) fn with<R>(&self, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        match self {
            Self::Here(part) => work(part),
            Self::Streamed { stream, index } => {
                let part = stream.take(*index)?.downcast::<T>();
                work(&*part.map_err(|_| Error::Model("a block of another kind than the network's".into()))?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoTensors;

    impl TensorSource for NoTensors {
        fn tensor(&self, name: &str, _: &[usize], _: DType, _: &Device) -> Result<candle_core::Tensor> {
            Err(Error::Model(name.to_owned()))
        }

        fn shape(&self, _: &str) -> Option<Vec<usize>> {
            None
        }

        fn numbers_below(&self, prefix: &str) -> Option<u64> {
            Some(if prefix == "3." { 20 } else { 10 })
        }
    }

    impl StreamedTensors for NoTensors {
        fn serve(&self, work: &mut dyn FnMut(&dyn TensorSource)) {
            work(self);
        }
    }

    #[test]
    fn every_order_of_calls_gets_its_blocks_and_few_are_there_at_once() -> Result<()> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static THERE: AtomicUsize = AtomicUsize::new(0);
        static MADE: AtomicUsize = AtomicUsize::new(0);
        struct CountedBlock(usize);
        impl Drop for CountedBlock {
            fn drop(&mut self) {
                THERE.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let stream = Arc::new(BlockStream::default());
        let (device, blocks) = (Device::Cpu, 8usize);
        let root = Scope::root(&NoTensors, DType::F32, &device).with_stream(Some(&stream));
        let number = |i: usize| {
            let make = move |scope: &Scope<'_>| {
                if i == 7 {
                    scope.tensor("broken", &[])?;
                }
                MADE.fetch_add(1, Ordering::SeqCst);
                assert!(THERE.fetch_add(1, Ordering::SeqCst) < 7, "three that pass, and four that stay");
                Ok(CountedBlock(i))
            };
            Block::load(&root.at(i), make)
        };
        let blocks = (0..blocks).map(number).collect::<Result<Vec<_>>>()?;
        assert!(blocks[0].with(|_| Ok(())).is_err(), "it was not started");
        stream.start(NoTensors, DType::F32, &device)?;
        assert_eq!(stream.bytes(), 9 * 40);
        let is_block = |i: usize, block: &CountedBlock| {
            assert_eq!(block.0, i);
            Ok(())
        };
        let call = |order: &[usize]| order.iter().try_for_each(|i| blocks[*i].with(|block| is_block(*i, block)));
        for (room, most) in [(0, 0), (9 * 40 - 1, 200), (240, 80), (1000, 80)] {
            let stays = stream.fit(room);
            assert!(stays <= most && stream.kept_bytes() <= stays, "{room}: {stays}");
            for order in [[0, 1, 2, 3, 4, 5, 6].as_slice(), &[0, 1, 5, 6], &[0, 1, 5, 6], &[2, 2, 2], &[6, 5, 4, 3, 2, 1, 0], &[4]] {
                call(order)?;
                call(order)?;
            }
            assert!(stream.kept_bytes() <= stays && (stays == 0 || stream.kept_bytes() > 0), "{room}");
        }
        let error = call(&[5, 6, 7]).unwrap_err().to_string();
        assert!(error.contains("7.broken"), "{error}");
        call(&[0, 1, 2])?;
        drop(blocks);
        drop(stream);
        assert_eq!(THERE.load(Ordering::SeqCst), 0, "nothing is left");
        assert!(MADE.load(Ordering::SeqCst) > 50);
        Ok(())
    }

    #[test]
    fn blocks_that_stay_fit_and_are_spread() {
        let bytes = [10, 10, 10, 10, 10, 10, 10, 10, 10, 10];
        let of = |room| chosen(&bytes, room);
        assert_eq!(of(100), [true; 10]);
        let most = |stays: &[bool]| stays.iter().filter(|stays| **stays).count();
        for room in 0..100 {
            let stays = of(room);
            let kept = 10 * most(&stays) as u64;
            assert!(kept + 20 <= room.max(20), "{room}: {kept}");
            assert!(kept + 20 + 15 > room, "{room}: only {kept}");
            let halves = [most(&stays[..5]), most(&stays[5..])];
            assert!(halves[0].abs_diff(halves[1]) <= 1, "{room}: {stays:?}");
        }
        let uneven = [1, 90, 3, 40, 40, 7];
        for room in 0..200 {
            let stays = chosen(&uneven, room);
            let kept: u64 = uneven.iter().zip(&stays).filter(|(_, stays)| **stays).map(|(bytes, _)| bytes).sum();
            assert!(kept <= room.saturating_sub(passing(&uneven, &[false; 6])) || kept == 181, "{room}: {stays:?}");
        }
    }
}
