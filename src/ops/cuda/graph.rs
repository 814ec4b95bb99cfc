//! Calls of a network as CUDA graphs: one launch in the place of hundreds.
//!
//! A network has a stream of its own, so that what is recorded there is its own work alone, whatever other threads do meanwhile. Before and
//! after every call the two streams wait for each other. A recorded call reads its inputs where they were copied to, and allocates and
//! frees within itself, so that it plays at the same addresses every time.
#![expect(unsafe_code, reason = "graphs are recorded and launched through the driver")]

use super::super::NamedTensors;
use super::gpu::{Gpu, lock};
use super::profile;
use crate::device::{self, Queue, undisturbed};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DriverError, result, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Error, Tensor, bail};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use tracing::{debug, info};

/// Calls of another key or shape that are kept, the latest ones.
const KEPT: usize = 4;

/// The calls of one network.
pub(in super::super) struct Graphs {
    state: Mutex<GraphState>,
    /// Dropped behind what was allocated there.
    queue: Queue,
}

#[derive(Default)]
struct GraphState {
    /// The longest unused first.
    calls: Vec<Call>,
    /// Something could not be recorded or played: no further attempt is made.
    off: bool,
}

/// What is known of one call.
struct Call {
    /// What the network does with its inputs.
    key: String,
    /// Where the network finds its inputs.
    inputs: NamedTensors,
    /// Where a recorded call puts its outputs; there once the call was met.
    outputs: Option<Vec<Tensor>>,
    graph: Option<RecordedGraph>,
}

impl std::fmt::Debug for Graphs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graphs({} shapes)", lock(&self.state).calls.len())
    }
}

/// Whether calls are recorded: not where the environment forbids it, nor where every kernel is timed by itself.
fn wanted() -> Result<bool, Error> {
    match std::env::var("SD_GEN_CUDA_GRAPH").unwrap_or_default().as_str() {
        "" | "1" => Ok(!profile::wanted()),
        "0" => Ok(false),
        other => bail!("SD_GEN_CUDA_GRAPH={other}: give 0 or 1"),
    }
}

impl Graphs {
    pub(in super::super) fn beside(device: &CudaDevice) -> Result<Self, Error> {
        let state = GraphState { off: !wanted()?, ..GraphState::default() };
        Ok(Self { state: Mutex::new(state), queue: Queue::beside(device)? })
    }

    pub(in super::super) fn device(&self) -> Device {
        Device::Cuda(self.queue.device().clone())
    }

    pub(in super::super) fn run<E: From<Error> + Display>(
        &self,
        key: &str,
        inputs: &NamedTensors,
        work: &dyn Fn(&NamedTensors) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let Some((_, first)) = inputs.iter().next() else { return work(inputs) };
        let theirs = first.device().as_cuda_device()?.cuda_stream();
        let inputs = inputs.map(Tensor::contiguous)?;
        // Two threads that call one network take turns.
        let mut state = lock(&self.state);
        let holds_memory = state.calls.iter().any(|call| call.graph.is_some());
        let mut made = self.call(&mut state, key, &inputs, &theirs, work);
        if made.is_err() {
            state.calls.clear();
            device::release(first.device());
            // What was missing may have been the memory of recorded calls.
            if holds_memory {
                made = self.call(&mut state, key, &inputs, &theirs, work);
            }
        }
        // What is freed there from now on is freed behind what was read here.
        let joined = theirs.join(&self.queue.stream()).w();
        let made = made?;
        joined?;
        Ok(made)
    }

    fn call<E: From<Error> + Display>(
        &self,
        state: &mut GraphState,
        key: &str,
        inputs: &NamedTensors,
        theirs: &CudaStream,
        work: &dyn Fn(&NamedTensors) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let stream = self.queue.stream();
        // Dims and strides that candle's kernels read stay where they are, for good: recorded calls read them there.
        let _kept = self.queue.device().enable_cuda_graph_htod_cache();
        let mut call = match state.calls.iter().position(|call| call.takes(key, inputs)) {
            Some(known) => state.calls.remove(known),
            None => Call::new(key, inputs, &self.device())?,
        };
        let (gpu, their_device) = match (call.inputs.iter().next(), inputs.iter().next()) {
            (Some((_, input)), Some((_, their))) => (Gpu::of(input)?, their.device()),
            _ => return work(inputs),
        };
        stream.join(theirs).w()?;
        for ((_, to), (_, from)) in call.inputs.iter().zip(inputs.iter()) {
            copy(&gpu, to, from)?;
        }
        if !state.off {
            let played = match (&call.graph, &call.outputs) {
                (None, None) => Ok(()),
                (None, Some(outputs)) => record(&gpu, &call.inputs, outputs, work).map(|graph| {
                    debug!("{} {:?}: recorded as a CUDA graph", call.key, call.shapes());
                    call.graph = Some(graph);
                }),
                (Some(_), _) => Ok(()),
            };
            let played = played.and_then(|()| call.graph.as_ref().map_or(Ok(()), RecordedGraph::launch));
            if let Err(why) = played {
                info!("no CUDA graph is used from here on ({why}): every kernel is launched by itself");
                state.off = true;
                call.graph = None;
                state.calls.clear();
                device::release(their_device);
            }
        }
        let made = match (&call.graph, &call.outputs) {
            (Some(_), Some(outputs)) => outputs.clone(),
            _ => work(&call.inputs)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>, Error>>()?,
        };
        // SAFETY: all of it is copied below.
        let empty = |y: &Tensor| unsafe { Tensor::empty(y.shape(), y.dtype(), their_device) };
        let mine = made.iter().map(empty).collect::<Result<Vec<_>, Error>>()?;
        stream.join(theirs).w()?;
        for (to, from) in mine.iter().zip(&made) {
            copy(&gpu, to, from)?;
        }
        if call.outputs.is_none() && !state.off {
            call.outputs = Some(made.iter().map(|y| gpu.make(y.shape(), y.dtype())).collect::<Result<_, Error>>()?);
        }
        if !state.off {
            state.calls.push(call);
            if state.calls.len() > KEPT {
                state.calls.remove(0);
            }
        }
        Ok(mine)
    }

    /// Forgets every call.
    pub(in super::super) fn invalidate(&self) {
        lock(&self.state).calls.clear();
    }

    /// Calls that are known, and how many of them are recorded.
    #[cfg(test)]
    pub(super) fn known(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.calls.len(), state.calls.iter().filter(|call| call.graph.is_some()).count())
    }
}

impl Call {
    fn new(key: &str, inputs: &NamedTensors, device: &Device) -> Result<Self, Error> {
        // SAFETY: they are written before every call.
        let inputs = inputs.map(|input| unsafe { Tensor::empty(input.shape(), input.dtype(), device) })?;
        Ok(Self { key: key.to_owned(), inputs, outputs: None, graph: None })
    }

    fn takes(&self, key: &str, inputs: &NamedTensors) -> bool {
        self.key == key && self.inputs.is_like(inputs)
    }

    fn shapes(&self) -> Vec<(&str, &[usize], DType)> {
        self.inputs.iter().map(|(name, input)| (name, input.dims(), input.dtype())).collect()
    }
}

/// Copies on the GPU's stream; both are contiguous and of the same size.
fn copy(gpu: &Gpu, to: &Tensor, from: &Tensor) -> Result<(), Error> {
    let bytes = from.elem_count() * from.dtype().size_in_bytes();
    if (to.elem_count(), to.dtype()) != (from.elem_count(), from.dtype()) {
        bail!("{:?} of {:?} does not go into {:?} of {:?}", from.shape(), from.dtype(), to.shape(), to.dtype());
    }
    let (to, from) = (gpu.address(to)?, gpu.address(from)?);
    if bytes == 0 {
        return Ok(());
    }
    gpu.stream().context().bind_to_thread().w()?;
    // SAFETY: both are that large; the streams that they were allocated on and this one were made to wait for each other.
    unsafe { result::memcpy_dtod_async(to, from, bytes, gpu.stream().cu_stream()) }.w()
}

/// Records `work`, which is not done meanwhile.
fn record<E: Display>(
    gpu: &Gpu,
    inputs: &NamedTensors,
    outputs: &[Tensor],
    work: &dyn Fn(&NamedTensors) -> Result<Vec<Tensor>, E>,
) -> Result<RecordedGraph, String> {
    let stream = gpu.stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Err("the driver has no memory pools".to_owned());
    }
    let _undisturbed = undisturbed();
    let said = |what: &str, error: DriverError| format!("{what}: {error}");
    context.check_err().map_err(|error| said("an earlier failure", error))?;
    let recording = Recording::begin(stream).map_err(|error| said("recording cannot begin", error))?;
    // The outputs' own memory is given back inside the recording, as all else that was allocated in it.
    let done = work(inputs).map_err(|error| error.to_string()).and_then(|made| {
        let copied = outputs.iter().zip(&made).try_for_each(|(output, y)| copy(gpu, output, &y.contiguous()?));
        copied.map_err(|error| error.to_string())
    });
    let freed = context.check_err();
    let graph = recording.end();
    // What could not be freed in a recording that had failed is of no meaning.
    let _ = context.check_err();
    done?;
    freed.map_err(|error| said("memory could not be given back in it", error))?;
    RecordedGraph::new(graph.map_err(|error| said("it was not recorded", error))?, stream.clone())
        .map_err(|error| said("what was recorded cannot be played", error))
}

/// A stream that records; it ends with the value at the latest.
struct Recording<'a> {
    stream: &'a CudaStream,
    under_way: bool,
}

impl<'a> Recording<'a> {
    fn begin(stream: &'a CudaStream) -> Result<Self, DriverError> {
        // What this thread must not do meanwhile is refused; other threads work on other streams and are not concerned.
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        Ok(Self { stream, under_way: true })
    }

    fn end(mut self) -> Result<sys::CUgraph, DriverError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<sys::CUgraph, DriverError> {
        self.under_way = false;
        // SAFETY: the stream lives, and this thread began the recording.
        let graph = unsafe { result::stream::end_capture(self.stream.cu_stream()) }?;
        if graph.is_null() { Err(DriverError(sys::cudaError_enum::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)) } else { Ok(graph) }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.under_way
            && let Ok(graph) = self.stop()
        {
            // SAFETY: it was just made and is not used.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

/// A recorded call.
struct RecordedGraph {
    /// Kept beside what is played: the addresses of what is allocated in it are its own.
    graph: sys::CUgraph,
    playable: sys::CUgraphExec,
    stream: Arc<CudaStream>,
}

// SAFETY: the driver's handles may be used from any thread, and are used behind a mutex only.
unsafe impl Send for RecordedGraph {}

impl RecordedGraph {
    fn new(graph: sys::CUgraph, stream: Arc<CudaStream>) -> Result<Self, DriverError> {
        // SAFETY: the graph was just recorded.
        match unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) } {
            Ok(playable) => Ok(Self { graph, playable, stream }),
            Err(error) => {
                // SAFETY: as above, and it is not used again.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(error)
            }
        }
    }

    fn launch(&self) -> Result<(), String> {
        self.stream.context().bind_to_thread().map_err(|error| error.to_string())?;
        // SAFETY: both live, and what the graph reads and writes lives as long as it does.
        unsafe { result::graph::launch(self.playable, self.stream.cu_stream()) }.map_err(|error| format!("it could not be played: {error}"))
    }
}

impl Drop for RecordedGraph {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        // SAFETY: nothing of it is under way, and it is not used again.
        unsafe {
            let _ = result::graph::exec_destroy(self.playable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}
