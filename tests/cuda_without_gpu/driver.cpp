// CUDA's driver, cuBLAS and cuRAND on a CPU, as far as the program's ops need them: so that everything between the ops and the GPU runs
// where there is none. run.sh beside this builds it and runs the tests of the CUDA path with it.
//
// Memory of the device is memory of the host, filled with NaNs when it is given out and taken back, and guarded behind its end. The project's
// kernels are those of src/ops/cuda/kernels, run thread by thread; candle's few that the ops use are written down here, as are products.
//
// Work is done as late as it may be: when the host waits for it, or when another stream does that was made to wait. So what is missing of
// events between streams, or is freed too soon, gives NaNs here too. A stream that records refuses what a GPU's would, and more: copies
// from the host's memory, events, and the use by another thread, which ends the program.
//
//   CUDA_WITHOUT_GPU_REFUSE=cuGraphLaunch   that function fails, "not supported"
//   CUDA_WITHOUT_GPU_REPORT=1               says at the end how many calls were recorded and played
#include "../../src/ops/cuda/kernels/kernels.cu"
#include <cstdlib>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

typedef int Status;
typedef uint64_t Address;
enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500, NOT_SUPPORTED = 801, RECORDING_UNSUPPORTED = 900, RECORDING_SPOILED = 901, WRONG_THREAD = 904 };

#define EXPORT extern "C" __attribute__((visibility("default")))

[[noreturn]] static void broken(const char* what) {
    fprintf(stderr, "driver: %s\n", what);
    abort();
}

// One call at a time.
static std::recursive_mutex calls;
#define ALONE std::lock_guard<std::recursive_mutex> alone(calls)

// The user wants this function to fail.
static bool refused(const char* name) {
    const char* wanted = getenv("CUDA_WITHOUT_GPU_REFUSE");
    return wanted && !strcmp(wanted, name);
}

// ---- memory ----

static std::map<Address, size_t> allocations;
static uint64_t used, most_used, used_by_graphs, most_used_by_graphs;
static const size_t GUARD_BYTES = 256;
// Memory that was given back, which for a while nobody gets: who reads it reads NaNs.
static std::deque<std::pair<void*, size_t>> resting;
static size_t resting_bytes;

static void poison(Address address, size_t bytes) { memset((void*)address, 0xff, bytes); }
static void check_guard(Address address, size_t bytes) {
    for (size_t i = 0; i < GUARD_BYTES; ++i)
        if (((unsigned char*)address)[bytes + i] != 0xff) broken("a write behind the end of memory");
}
static Address reserve(size_t bytes) {
    void* memory = aligned_alloc(256, (bytes + GUARD_BYTES + 255) / 256 * 256);
    poison((Address)memory, bytes + GUARD_BYTES);
    return (Address)memory;
}
static void rest(Address address, size_t bytes) {
    check_guard(address, bytes);
    poison(address, bytes);
    resting.push_back({(void*)address, bytes});
    resting_bytes += bytes;
    while (resting_bytes > (256u << 20)) {
        free(resting.front().first);
        resting_bytes -= resting.front().second;
        resting.pop_front();
    }
}

// ---- streams ----

typedef std::function<void()> Work;

// What was recorded. Its memory is its own for as long as it lives.
struct Graph {
    std::vector<Work> nodes;
    std::map<Address, size_t> memory;
    std::set<Address> open; // allocated in it and not given back in it
    bool playable = false, played = false;
    void poison_all() {
        for (auto& piece : memory) poison(piece.first, piece.second);
    }
    ~Graph() {
        for (auto& piece : memory) {
            rest(piece.first, piece.second);
            used_by_graphs -= piece.second;
        }
    }
};
typedef std::shared_ptr<Graph> SharedGraph;

struct Stream {
    std::deque<Work> waiting;
    uint64_t asked = 0, done = 0;
    SharedGraph recording;
    bool spoiled = false;
    std::thread::id recorder;
};
static std::set<Stream*> streams;
static thread_local Stream* recorded_here;
static unsigned recorded, played;
static size_t nodes;

static Stream* stream_of(void* handle) {
    static Stream first;
    streams.insert(&first);
    return handle ? (Stream*)handle : &first;
}
static void run_until(Stream* stream, uint64_t at) {
    while (stream->done < at) {
        const Work work = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        ++stream->done;
        work();
    }
}
static Status spoil(Stream* stream) {
    stream->spoiled = true;
    return RECORDING_UNSUPPORTED;
}
// Puts work behind what was asked for before.
static Status ask(void* handle, Work work) {
    Stream* stream = stream_of(handle);
    if (stream->recording) {
        if (stream->recorder != std::this_thread::get_id()) broken("a stream that records is used by another thread");
        if (stream->spoiled) return RECORDING_SPOILED;
        stream->recording->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    stream->waiting.push_back(std::move(work));
    ++stream->asked;
    return SUCCESS;
}
// The host waits for all work of the stream.
static Status settle(void* handle) {
    Stream* stream = stream_of(handle);
    if (stream->recording) return spoil(stream);
    run_until(stream, stream->asked);
    return SUCCESS;
}
static Status settle_all() {
    Status status = SUCCESS;
    for (Stream* stream : streams) status = settle(stream) ? RECORDING_UNSUPPORTED : status;
    return status;
}

EXPORT Status cuMemAllocAsync(Address* to, size_t bytes, void* handle) {
    ALONE;
    Stream* stream = stream_of(handle);
    if (bytes == 0) return INVALID_VALUE;
    if (stream->recording && stream->spoiled) return RECORDING_SPOILED;
    const Address memory = *to = reserve(bytes);
    if (stream->recording) {
        stream->recording->memory[memory] = bytes;
        stream->recording->open.insert(memory);
        used_by_graphs += bytes;
        most_used_by_graphs = std::max(most_used_by_graphs, used_by_graphs);
        return ask(handle, [=] { poison(memory, bytes); });
    }
    allocations[memory] = bytes;
    used += bytes;
    most_used = std::max(most_used, used);
    return SUCCESS;
}
EXPORT Status cuMemFreeAsync(Address address, void* handle) {
    ALONE;
    Stream* stream = stream_of(handle);
    if (stream->recording) {
        if (stream->spoiled) return RECORDING_SPOILED;
        if (!stream->recording->open.erase(address)) {
            spoil(stream);
            return INVALID_VALUE;
        }
        const size_t bytes = stream->recording->memory[address];
        return ask(handle, [=] {
            check_guard(address, bytes);
            poison(address, bytes);
        });
    }
    const auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    const size_t bytes = found->second;
    allocations.erase(found);
    used -= bytes;
    return ask(handle, [=] { rest(address, bytes); });
}
EXPORT Status cuMemAlloc_v2(Address* to, size_t bytes) {
    ALONE;
    if (recorded_here) return spoil(recorded_here);
    return cuMemAllocAsync(to, bytes, nullptr);
}
EXPORT Status cuMemFree_v2(Address address) {
    ALONE;
    if (recorded_here) return spoil(recorded_here);
    settle_all();
    return cuMemFreeAsync(address, nullptr);
}
EXPORT Status cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { *free_bytes = (8ull << 30) - used - used_by_graphs; *total = 8ull << 30; return SUCCESS; }
EXPORT Status cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* handle) {
    ALONE;
    Stream* stream = stream_of(handle);
    // A GPU's would keep the host's address.
    if (stream->recording) return spoil(stream);
    const auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    return ask(handle, [=] { memcpy((void*)to, staged->data(), bytes); });
}
EXPORT Status cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* handle) {
    ALONE;
    const Status status = settle(handle);
    if (status == SUCCESS) memcpy(to, (void*)from, bytes);
    return status;
}
EXPORT Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* handle) {
    ALONE;
    return ask(handle, [=] { memcpy((void*)to, (void*)from, bytes); });
}
EXPORT Status cuMemcpyPeerAsync(Address to, void*, Address from, void*, size_t bytes, void* handle) { return cuMemcpyDtoDAsync_v2(to, from, bytes, handle); }
EXPORT Status cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* handle) {
    ALONE;
    return ask(handle, [=] { memset((void*)to, value, bytes); });
}

EXPORT Status cuStreamCreate(void** stream, unsigned) {
    ALONE;
    *stream = *streams.insert(new Stream).first;
    return SUCCESS;
}
EXPORT Status cuStreamDestroy_v2(void* stream) {
    ALONE;
    settle(stream);
    streams.erase((Stream*)stream);
    return SUCCESS; // events may still name it
}
EXPORT Status cuStreamSynchronize(void* stream) { ALONE; return settle(stream); }
EXPORT Status cuStreamIsCapturing(void* handle, int* status) {
    ALONE;
    const Stream* stream = stream_of(handle);
    *status = !stream->recording ? 0 : stream->spoiled ? 2 : 1;
    return SUCCESS;
}

struct Event {
    Stream* stream = nullptr;
    uint64_t at = 0;
};
EXPORT Status cuEventCreate(void** event, unsigned) { *event = new Event; return SUCCESS; }
EXPORT Status cuEventDestroy_v2(void* event) { delete (Event*)event; return SUCCESS; }
EXPORT Status cuEventRecord(void* event, void* handle) {
    ALONE;
    Stream* stream = stream_of(handle);
    if (stream->recording) return spoil(stream);
    *(Event*)event = {stream, stream->asked};
    return SUCCESS;
}
EXPORT Status cuStreamWaitEvent(void* handle, void* event, unsigned) {
    ALONE;
    const Event now = *(Event*)event;
    if (stream_of(handle)->recording) return spoil(stream_of(handle));
    return now.stream ? ask(handle, [=] { run_until(now.stream, now.at); }) : SUCCESS;
}
EXPORT Status cuEventSynchronize(void* event) {
    ALONE;
    if (((Event*)event)->stream) run_until(((Event*)event)->stream, ((Event*)event)->at);
    return SUCCESS;
}
EXPORT Status cuEventElapsedTime_v2(float* milliseconds, void*, void*) { *milliseconds = 1.0f; return SUCCESS; }

// ---- recording ----

EXPORT Status cuStreamBeginCapture_v2(void* handle, int mode) {
    ALONE;
    Stream* stream = stream_of(handle);
    if (refused(__func__)) return NOT_SUPPORTED;
    if (!handle || stream->recording || mode != 1) return INVALID_VALUE; // of this thread alone
    stream->recording = std::make_shared<Graph>();
    stream->spoiled = false;
    stream->recorder = std::this_thread::get_id();
    recorded_here = stream;
    return SUCCESS;
}
EXPORT Status cuStreamEndCapture(void* handle, SharedGraph** graph) {
    ALONE;
    Stream* stream = stream_of(handle);
    *graph = nullptr;
    if (!stream->recording) return INVALID_VALUE;
    if (stream->recorder != std::this_thread::get_id()) return WRONG_THREAD;
    const SharedGraph made = std::move(stream->recording);
    stream->recording = nullptr;
    recorded_here = nullptr;
    if (stream->spoiled) return RECORDING_SPOILED;
    *graph = new SharedGraph(made);
    ++recorded;
    nodes = made->nodes.size();
    return SUCCESS;
}
EXPORT Status cuGraphInstantiateWithFlags(SharedGraph** playable, SharedGraph* graph, unsigned long long flags) {
    ALONE;
    if (refused(__func__)) return NOT_SUPPORTED;
    if (flags || (*graph)->playable) return INVALID_VALUE;
    (*graph)->playable = true;
    *playable = new SharedGraph(*graph);
    return SUCCESS;
}
EXPORT Status cuGraphLaunch(SharedGraph* playable, void* handle) {
    ALONE;
    const SharedGraph graph = *playable;
    if (refused(__func__)) return NOT_SUPPORTED;
    // What was not given back in it must be, before it is allocated again.
    if (stream_of(handle)->recording || (graph->played && !graph->open.empty())) return INVALID_VALUE;
    graph->played = true;
    ++played;
    return ask(handle, [=] {
        graph->poison_all();
        for (const Work& node : graph->nodes) node();
        graph->poison_all();
    });
}
EXPORT Status cuGraphExecDestroy(SharedGraph* playable) {
    ALONE;
    (*playable)->playable = false;
    delete playable;
    return SUCCESS;
}
EXPORT Status cuGraphDestroy(SharedGraph* graph) { ALONE; delete graph; return SUCCESS; }
EXPORT Status cuDeviceGetGraphMemAttribute(int, int attribute, void* value) { ALONE; *(uint64_t*)value = attribute % 2 ? most_used_by_graphs : used_by_graphs; return SUCCESS; }
EXPORT Status cuDeviceSetGraphMemAttribute(int, int, void*) { ALONE; most_used_by_graphs = used_by_graphs; return SUCCESS; }
EXPORT Status cuDeviceGraphMemTrim(int) { return SUCCESS; }

__attribute__((destructor)) static void report() {
    if (getenv("CUDA_WITHOUT_GPU_REPORT")) fprintf(stderr, "driver: %u calls were recorded, the last of %zu nodes, and %u played\n", recorded, nodes, played);
}

// ---- device and context ----

EXPORT Status cuInit(unsigned) { return SUCCESS; }
EXPORT Status cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
EXPORT Status cuDeviceGetCount(int* count) { *count = 2; return SUCCESS; }
EXPORT Status cuDeviceGet(int* device, int number) { *device = number; return SUCCESS; }
EXPORT Status cuDeviceGetName(char* name, int size, int) { snprintf(name, size, "a CPU in a GPU's place"); return SUCCESS; }
EXPORT Status cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 4; break;       // multiprocessors
    case 75: *value = 9; break;       // compute capability
    case 76: *value = 0; break;
    case 97: *value = 232448; break;  // shared memory of a block
    case 115: *value = 1; break;      // memory pools
    default: fprintf(stderr, "driver: attribute %d\n", attribute); return INVALID_VALUE;
    }
    return SUCCESS;
}
EXPORT Status cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)(uintptr_t)(device + 1); return SUCCESS; }
EXPORT Status cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
static thread_local void* context_now;
EXPORT Status cuCtxGetCurrent(void** context) { *context = context_now; return SUCCESS; }
EXPORT Status cuCtxSetCurrent(void* context) { context_now = context; return SUCCESS; }
EXPORT Status cuCtxSynchronize() { ALONE; return settle_all(); }
EXPORT Status cuCtxDestroy_v2(void*) { return SUCCESS; }
EXPORT Status cuDeviceGetDefaultMemPool(void** pool, int) { *pool = &used; return SUCCESS; }
EXPORT Status cuMemPoolGetAttribute(void*, int attribute, void* value) {
    *(uint64_t*)value = attribute == 8 ? most_used : used; // 5, 6: reserved, 7: used, 8: at most
    return SUCCESS;
}
EXPORT Status cuMemPoolSetAttribute(void*, int attribute, void*) { if (attribute == 8) most_used = used; return SUCCESS; }
EXPORT Status cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }
EXPORT Status cuGetErrorString(int error, const char** text) {
    static thread_local char line[40];
    snprintf(line, sizeof line, "driver error %d", error);
    *text = line;
    return SUCCESS;
}

// ---- candle's kernels ----

// A kernel with the number of its arguments, each of which is 8 bytes at most.
struct Plain {
    int count;
    void (*run)(const unsigned* grid, void** arguments);
};
static std::map<std::string, Plain> candles;

template <class T> static T argument(void** arguments, int i) { return *(T*)arguments[i]; }

// Where number i of a tensor is; `info` is its dims, then its strides, or null where they are in order.
static size_t strided(size_t i, size_t dims, const size_t* info, int which = 0) {
    if (!info) return i;
    size_t at = 0;
    for (size_t d = dims; d-- > 0;) {
        at += i % info[d] * info[(1 + which) * dims + d];
        i /= info[d];
    }
    return at;
}

template <class S, class T> static void cast(void** a) {
    const size_t count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    const size_t* info = argument<const size_t*>(a, 2);
    const S* from = argument<const S*>(a, 3);
    T* to = argument<T*>(a, 4);
    for (size_t i = 0; i < count; ++i) to[i] = from_float<T>(to_float(from[strided(i, dims, info)]));
}
template <class T> static void unary(void** a, float (*f)(float)) {
    const size_t count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    const size_t* info = argument<const size_t*>(a, 2);
    const T* from = argument<const T*>(a, 3);
    T* to = argument<T*>(a, 4);
    for (size_t i = 0; i < count; ++i) to[i] = from_float<T>(f(to_float((from ? from : to)[from ? strided(i, dims, info) : i])));
}
template <class T> static void binary(void** a, float (*f)(float, float)) {
    const size_t count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    const size_t* info = argument<const size_t*>(a, 2);
    const T *left = argument<const T*>(a, 3), *right = argument<const T*>(a, 4);
    T* to = argument<T*>(a, 5);
    for (size_t i = 0; i < count; ++i) to[i] = from_float<T>(f(to_float(left[strided(i, dims, info, 0)]), to_float(right[strided(i, dims, info, 1)])));
}
template <class T> static void copy_rows(void** a) {
    const T* from = argument<const T*>(a, 0);
    T* to = argument<T*>(a, 1);
    const unsigned rows = argument<unsigned>(a, 2), columns = argument<unsigned>(a, 3), from_row = argument<unsigned>(a, 4), to_row = argument<unsigned>(a, 5);
    for (unsigned r = 0; r < rows; ++r) memcpy(to + (size_t)r * to_row, from + (size_t)r * from_row, columns * sizeof(T));
}
template <class T> static void softmax(const unsigned* grid, void** a) {
    const T* from = argument<const T*>(a, 0);
    T* to = argument<T*>(a, 1);
    const int columns = argument<int>(a, 2);
    for (size_t r = 0; r < grid[0]; ++r, from += columns, to += columns) {
        float most = -INFINITY, sum = 0;
        for (int c = 0; c < columns; ++c) most = std::max(most, to_float(from[c]));
        for (int c = 0; c < columns; ++c) sum += std::exp(to_float(from[c]) - most);
        for (int c = 0; c < columns; ++c) to[c] = from_float<T>(std::exp(to_float(from[c]) - most) / sum);
    }
}
// Sums of `each` numbers in the order of `info`; the first argument counts the numbers, or in the small form the sums.
template <class T, bool small> static void sum(void** a) {
    const size_t each = argument<size_t>(a, 1), dims = argument<size_t>(a, 2), sums = argument<size_t>(a, 0) / (small ? 1 : each);
    const size_t* info = argument<const size_t*>(a, 3);
    const T* from = argument<const T*>(a, 4);
    T* to = argument<T*>(a, 5);
    for (size_t i = 0; i < sums; ++i) {
        double total = 0;
        for (size_t j = 0; j < each; ++j) total += to_float(from[strided(i * each + j, dims, info)]);
        to[i] = from_float<T>((float)total);
    }
}
// The dims and strides that candle gives here are those of the ids; what is selected from is in order.
template <class T> static void select_rows(void** a) {
    const size_t count = argument<size_t>(a, 0);
    const uint32_t* ids = argument<const uint32_t*>(a, 3);
    const T* from = argument<const T*>(a, 4);
    T* to = argument<T*>(a, 5);
    const size_t source = argument<size_t>(a, 7), chosen = argument<size_t>(a, 8), right = argument<size_t>(a, 9);
    for (size_t i = 0; i < count; ++i) {
        const size_t left_i = i / (chosen * right), id = i / right % chosen, right_i = i % right;
        to[i] = from[left_i * source * right + ids[id] * right + right_i];
    }
}
template <class T> static void affine(void** a) {
    const size_t count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    const size_t* info = argument<const size_t*>(a, 2);
    const T* from = argument<const T*>(a, 3);
    T* to = argument<T*>(a, 4);
    const float times = to_float(argument<T>(a, 5)), plus = to_float(argument<T>(a, 6));
    for (size_t i = 0; i < count; ++i) to[i] = from_float<T>(to_float((from ? from : to)[from ? strided(i, dims, info) : i]) * times + plus);
}

template <class T> static void kernels_of(const std::string& name) {
    candles["cast_" + name + "_f32"] = {5, [](const unsigned* grid, void** a) { cast<T, float>(a); }};
    candles["cast_" + name + "_f16"] = {5, [](const unsigned* grid, void** a) { cast<T, half_t>(a); }};
    candles["cast_" + name + "_bf16"] = {5, [](const unsigned* grid, void** a) { cast<T, bf16_t>(a); }};
    candles["ucopy_" + name] = {5, [](const unsigned* grid, void** a) { unary<T>(a, [](float x) { return x; }); }};
    candles["usqr_" + name] = {5, [](const unsigned* grid, void** a) { unary<T>(a, [](float x) { return x * x; }); }};
    candles["usqrt_" + name] = {5, [](const unsigned* grid, void** a) { unary<T>(a, [](float x) { return std::sqrt(x); }); }};
    candles["badd_" + name] = {6, [](const unsigned* grid, void** a) { binary<T>(a, [](float x, float y) { return x + y; }); }};
    candles["bsub_" + name] = {6, [](const unsigned* grid, void** a) { binary<T>(a, [](float x, float y) { return x - y; }); }};
    candles["bmul_" + name] = {6, [](const unsigned* grid, void** a) { binary<T>(a, [](float x, float y) { return x * y; }); }};
    candles["bdiv_" + name] = {6, [](const unsigned* grid, void** a) { binary<T>(a, [](float x, float y) { return x / y; }); }};
    candles["copy2d_" + name] = {6, [](const unsigned* grid, void** a) { copy_rows<T>(a); }};
    candles["softmax_" + name] = {3, [](const unsigned* grid, void** a) { softmax<T>(grid, a); }};
    candles["fast_sum_" + name] = {6, [](const unsigned* grid, void** a) { sum<T, false>(a); }};
    candles["fast_sum_small_" + name] = {6, [](const unsigned* grid, void** a) { sum<T, true>(a); }};
    candles["is_u32_" + name] = {10, [](const unsigned* grid, void** a) { select_rows<T>(a); }};
    candles["affine_" + name] = {7, [](const unsigned* grid, void** a) { affine<T>(a); }};
}

// ---- modules and launches ----

EXPORT Status cuModuleLoadData(void** module, const void*) { *module = (void*)1; return SUCCESS; }
EXPORT Status cuModuleLoad(void**, const char*) { return NOT_FOUND; }
EXPORT Status cuModuleUnload(void*) { return SUCCESS; }
EXPORT Status cuModuleGetFunction(void** function, void*, const char* name) {
    ALONE;
    static std::set<std::string> names;
    if (candles.empty()) {
        kernels_of<float>("f32");
        kernels_of<half_t>("f16");
        kernels_of<bf16_t>("bf16");
    }
    if (!emulate::kernels().count(name) && !candles.count(name)) {
        fprintf(stderr, "driver: the kernel %s is not known\n", name);
        return NOT_FOUND;
    }
    *function = (void*)names.insert(name).first->c_str();
    return SUCCESS;
}
EXPORT Status cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
EXPORT Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* handle,
                             void** arguments, void**) {
    ALONE;
    const std::string name = (const char*)function;
    const std::vector<unsigned> grid = {gx, gy, gz};
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || bx * by * bz > 1024) return INVALID_VALUE;
    const auto candle = candles.find(name);
    const auto own = emulate::kernels().find(name);
    if (candle == candles.end() && (bx > own->second.threads || bx % 32 || shared > 232448)) return INVALID_VALUE;
    // The caller's arguments are gone when the work is done.
    const auto values = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t i = 0; i < (candle != candles.end() ? candle->second.count : own->second.sizes.size()); ++i) {
        const char* from = (const char*)arguments[i];
        values->push_back({from, from + (candle != candles.end() ? 8 : own->second.sizes[i])});
    }
    return ask(handle, [=] {
        std::vector<void*> pointers;
        for (auto& value : *values) pointers.push_back(value.data());
        if (candle != candles.end()) candle->second.run(grid.data(), pointers.data());
        else if (sd_emulate(name.c_str(), grid.data(), bx, shared, pointers.data())) broken(name.c_str());
    });
}

// ---- products ----

enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
static float number(const void* from, size_t i, int type) {
    return type == R_32F ? ((const float*)from)[i] : type == R_16F ? to_float(((const half_t*)from)[i]) : to_float(((const bf16_t*)from)[i]);
}
static void put(void* to, size_t i, int type, float x) {
    if (type == R_32F) ((float*)to)[i] = x;
    else if (type == R_16F) ((half_t*)to)[i] = from_float<half_t>(x);
    else ((bf16_t*)to)[i] = from_float<bf16_t>(x);
}

struct Description { int transposed[3]; int epilogue; Address bias; };
struct Matrix { int type; uint64_t rows, columns; int64_t row; };
EXPORT Status cublasLtCreate(void** handle) { *handle = (void*)1; return 0; }
EXPORT Status cublasLtMatmulDescCreate(void** to, int compute, int scale) {
    if (compute != 68 || scale != R_32F) return 7; // f32 sums
    *to = new Description{{0, 0, 0}, 1, 0};
    return 0;
}
EXPORT Status cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t size) {
    Description& d = *(Description*)description;
    if (attribute >= 3 && attribute <= 5 && size == 4) d.transposed[attribute - 3] = *(const int*)value;
    else if (attribute == 7 && size == 4) d.epilogue = *(const int*)value;
    else if (attribute == 8 && size == 8) d.bias = *(const Address*)value;
    else return 7;
    return 0;
}
EXPORT Status cublasLtMatrixLayoutCreate(void** to, int type, uint64_t rows, uint64_t columns, int64_t row) {
    *to = new Matrix{type, rows, columns, row};
    return 0;
}
EXPORT Status cublasLtMatmulPreferenceCreate(void** to) { *to = malloc(1); return 0; }
EXPORT Status cublasLtMatmulPreferenceDestroy(void* preference) { free(preference); return 0; }
EXPORT Status cublasLtMatmulPreferenceSetAttribute(void*, int attribute, const void*, size_t size) {
    return (attribute == 1 && size == 8) || (attribute >= 5 && attribute <= 8 && size == 4) ? 0 : 7;
}
struct Heuristic { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
EXPORT Status cublasLtMatmulAlgoGetHeuristic(void*, void*, void* a, void* b, void* c, void* d, void*, int, Heuristic* to, int* found) {
    const Matrix &x = *(Matrix*)a, &y = *(Matrix*)d;
    // As the library, which has nothing for rows that are not whole chunks of some sizes: the program must go on without.
    *found = c == d && x.type != R_32F && x.rows % 2 && y.rows % 2 ? 0 : 1;
    *to = {};
    return b ? 0 : 7;
}
EXPORT Status cublasLtMatmul(void*, void* description, const float* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const float* beta,
                             const void* c, void* c_layout, void* d, void* d_layout, const void*, void* workspace, size_t workspace_bytes, void* handle) {
    ALONE;
    const Description what = *(Description*)description;
    const Matrix A = *(Matrix*)a_layout, B = *(Matrix*)b_layout, C = *(Matrix*)c_layout, D = *(Matrix*)d_layout;
    const uint64_t m = D.rows, n = D.columns, k = what.transposed[0] ? A.rows : A.columns;
    const bool fits = (what.transposed[0] ? A.columns : A.rows) == m && !what.transposed[1] && B.rows == k && B.columns == n && C.rows == m && C.columns == n;
    for (const void* pointer : {a, b, c, (const void*)d})
        if ((Address)pointer % 16) return 7;
    if (!fits || (what.epilogue == 4) != (what.bias != 0) || !workspace || workspace_bytes < (32u << 20)) return 7;
    const float times = *alpha, and_times = *beta;
    return ask(handle, [=] {
        for (uint64_t j = 0; j < n; ++j) {
            for (uint64_t i = 0; i < m; ++i) {
                float sum = 0;
                for (uint64_t s = 0; s < k; ++s) sum += number(a, what.transposed[0] ? i * A.row + s : s * A.row + i, A.type) * number(b, j * B.row + s, B.type);
                sum = times * sum;
                if (and_times != 0) sum += and_times * number(c, j * C.row + i, C.type);
                if (what.epilogue == 4) sum += number((void*)what.bias, i, D.type);
                put(d, j * D.row + i, D.type, sum);
            }
        }
    });
}
struct Blas { void* stream; };
EXPORT Status cublasCreate_v2(void** handle) { *handle = new Blas{nullptr}; return 0; }
EXPORT Status cublasDestroy_v2(void* handle) { delete (Blas*)handle; return 0; }
EXPORT Status cublasSetStream_v2(void* handle, void* stream) { ((Blas*)handle)->stream = stream; return 0; }
EXPORT Status cublasGemmStridedBatchedEx(void* handle, int a_transposed, int b_transposed, int m, int n, int k, const void* alpha, const void* a, int a_type,
                                         int a_row, long long a_next, const void* b, int b_type, int b_row, long long b_next, const void* beta, void* c,
                                         int c_type, int c_row, long long c_next, int batch, int, int) {
    if (*(const float*)alpha != 1 || *(const float*)beta != 0) return 7;
    ALONE;
    return ask(((Blas*)handle)->stream, [=] {
        for (size_t t = 0; t < (size_t)batch; ++t)
            for (size_t j = 0; j < (size_t)n; ++j)
                for (size_t i = 0; i < (size_t)m; ++i) {
                    float sum = 0;
                    for (size_t s = 0; s < (size_t)k; ++s)
                        sum += number(a, t * a_next + (a_transposed ? i * a_row + s : s * a_row + i), a_type) * number(b, t * b_next + (b_transposed ? s * b_row + j : j * b_row + s), b_type);
                    put(c, t * c_next + j * c_row + i, c_type, sum);
                }
    });
}
EXPORT Status curandCreateGenerator(void** generator, int) { *generator = (void*)1; return 0; }
EXPORT Status curandDestroyGenerator(void*) { return 0; }
EXPORT Status curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
EXPORT Status curandSetStream(void*, void*) { return 0; }
