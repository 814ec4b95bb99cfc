// The kernels' machine on a CPU, for tests: every CUDA thread is a context of its own, and they take turns at barriers.
//
// Shared memory is filled with NaNs before a block and guarded behind its end; asynchronous copies arrive as late as they may;
// the order in which threads run changes from sweep to sweep. So a missing wait or barrier gives wrong numbers here too.
// The matrix instructions follow the layouts of the PTX manual, "Warp Level Matrix Instructions".
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE static inline
#define DYNAMIC_SHARED(name) unsigned char* name = emulate::shared.data()
#define KERNEL(name, threads, blocks, parameters, call) \
    static void name parameters { call; }               \
    static emulate::Registration registration_of_##name(#name, threads, name);

struct emulated_index {
    unsigned x, y, z;
};
static emulated_index threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulation: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    std::abort();
}

struct Copy {
    void* to;
    chunk_t value;
};
struct Lane {
    uint64_t words[4];
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    unsigned block_epoch = 0, warp_epoch = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> committed;
};
struct Warp {
    Lane lanes[2][32];
    unsigned arrived = 0, epoch = 0;
};

static std::vector<unsigned char> shared;
static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Warp> warps;
static ucontext_t scheduler;
static unsigned current, arrived, epoch, alive;
static void (*body)(void**);
static void** arguments;

inline void yield() {
    const unsigned self = current;
    swapcontext(&fibers[self]->context, &scheduler);
    current = self;
    threadIdx.x = self;
}

inline void release_block() {
    if (arrived == alive) {
        arrived = 0;
        ++epoch;
    }
}

inline void block_barrier() {
    const unsigned waiting_for = epoch + 1;
    ++arrived;
    release_block();
    while (epoch != waiting_for) yield();
}

// Gives this lane's words to its warp, and all lanes' words back.
inline const Lane* exchange(const Lane& mine) {
    Warp& warp = warps[current / 32];
    const unsigned now = warp.epoch;
    warp.lanes[now % 2][current % 32] = mine;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        ++warp.epoch;
    }
    while (warp.epoch == now) yield();
    return warp.lanes[now % 2];
}

inline void arrive(std::vector<Copy>& group) {
    for (const Copy& copy : group) std::memcpy(copy.to, &copy.value, sizeof copy.value);
    group.clear();
}

inline void run_fiber() {
    body(arguments);
    Fiber& fiber = *fibers[current];
    for (auto& group : fiber.committed)
        if (!group.empty()) fail("a thread ended before its copies arrived");
    fiber.done = true;
    --alive;
    release_block();
    swapcontext(&fiber.context, &scheduler);
}

constexpr size_t GUARD = 256;

inline void run_block(unsigned threads, unsigned shared_bytes) {
    shared.assign(shared_bytes + GUARD, 0xff);
    warps.assign((threads + 31) / 32, Warp());
    while (fibers.size() < threads) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers.back()->stack.resize(1 << 16);
    }
    arrived = 0;
    epoch = 0;
    alive = threads;
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.done = false;
        fiber.open.clear();
        fiber.committed.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    unsigned idle = 0;
    for (unsigned sweep = 0; alive > 0; ++sweep) {
        const unsigned before = alive + epoch * 4096;
        unsigned progress = 0;
        for (const Warp& warp : warps) progress += warp.epoch;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned next = sweep % 2 ? threads - 1 - i : i;
            if (fibers[next]->done) continue;
            current = next;
            threadIdx = {next, 0, 0};
            swapcontext(&scheduler, &fibers[next]->context);
        }
        unsigned after = 0;
        for (const Warp& warp : warps) after += warp.epoch;
        idle = before == alive + epoch * 4096 && progress == after ? idle + 1 : 0;
        if (idle > 4) fail("threads wait for each other");
    }
    for (size_t i = 0; i < GUARD; ++i)
        if (shared[shared_bytes + i] != 0xff) fail("a write behind the end of shared memory");
}

struct Kernel {
    unsigned threads;
    void (*call)(void (*)(), void**);
    void (*function)();
    std::vector<size_t> sizes; // of the arguments
};
inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <class... A, size_t... I> void apply(void (*f)(A...), void** arguments, std::index_sequence<I...>) {
    f(*(std::remove_reference_t<A>*)arguments[I]...);
}
template <class... A> void call(void (*f)(), void** arguments) {
    apply((void (*)(A...))f, arguments, std::index_sequence_for<A...>());
}
struct Registration {
    template <class... A> Registration(const char* name, unsigned threads, void (*f)(A...)) {
        kernels()[name] = {threads, call<A...>, (void (*)())f, {sizeof(A)...}};
    }
};
static const Kernel* running;

} // namespace emulate

// 0: done; 1: no such kernel; 2: more threads than the kernel was compiled for.
extern "C" inline __attribute__((used)) int sd_emulate(const char* name, const unsigned* grid, unsigned threads, unsigned shared_bytes, void** arguments) {
    const auto found = emulate::kernels().find(name);
    if (found == emulate::kernels().end()) return 1;
    if (threads > found->second.threads || threads % 32 != 0) return 2;
    emulate::running = &found->second;
    emulate::arguments = arguments;
    emulate::body = [](void** arguments) { emulate::running->call(emulate::running->function, arguments); };
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                emulate::run_block(threads, shared_bytes);
            }
    return 0;
}

// ---- instructions ----

DEVICE float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(half_t x) {
    _Float16 y;
    std::memcpy(&y, &x.bits, 2);
    return (float)y;
}
DEVICE float to_float(bf16_t x) { return from_bits((uint32_t)x.bits << 16); }

template <class T> DEVICE T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline half_t from_float<half_t>(float x) {
    const _Float16 y = (_Float16)x;
    half_t z;
    std::memcpy(&z.bits, &y, 2);
    return z;
}
template <> inline bf16_t from_float<bf16_t>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fff};
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <class T> DEVICE unsigned pack(float low, float high) { return from_float<T>(low).bits | (unsigned)from_float<T>(high).bits << 16; }

DEVICE void sync_block() { emulate::block_barrier(); }
DEVICE float shuffle_xor(float x, int lanes) {
    emulate::Lane mine = {};
    std::memcpy(mine.words, &x, 4);
    const unsigned lane = threadIdx.x % 32;
    const emulate::Lane* all = emulate::exchange(mine);
    std::memcpy(&x, all[lane ^ lanes].words, 4);
    return x;
}
DEVICE float exp2_fast(float x) { return std::exp2(x); }

DEVICE void copy_async(void* to, const void* from, bool there) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) emulate::fail("a copy that is not aligned");
    emulate::Copy copy = {to, {}};
    if (there) std::memcpy(&copy.value, from, 16);
    emulate::fibers[emulate::current]->open.push_back(copy);
}
DEVICE void copy_commit() {
    auto& fiber = *emulate::fibers[emulate::current];
    fiber.committed.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int pending> DEVICE void copy_wait() {
    auto& committed = emulate::fibers[emulate::current]->committed;
    while (committed.size() > pending) {
        emulate::arrive(committed.front());
        committed.pop_front();
    }
}

template <bool transposed> DEVICE void load_matrices_as(unsigned (&r)[4], const void* row) {
    if ((uintptr_t)row % 16) emulate::fail("a matrix row that is not aligned");
    const unsigned lane = threadIdx.x % 32;
    emulate::Lane mine = {{(uint64_t)(uintptr_t)row, 0, 0, 0}};
    const emulate::Lane* all = emulate::exchange(mine);
    for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned short pair[2];
        for (int i = 0; i < 2; ++i) {
            const unsigned at = 2 * (lane % 4) + i, other = lane / 4;
            const unsigned from_row = transposed ? at : other, column = transposed ? other : at;
            pair[i] = ((const unsigned short*)(uintptr_t)all[8 * matrix + from_row].words[0])[column];
        }
        r[matrix] = pair[0] | (unsigned)pair[1] << 16;
    }
    // Nobody writes the matrices before all have read them.
    emulate::exchange(mine);
}
DEVICE void load_matrices(unsigned (&r)[4], const void* row) { load_matrices_as<false>(r, row); }
DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) { load_matrices_as<true>(r, row); }

template <class T> DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    emulate::Lane mine = {{a[0] | (uint64_t)a[1] << 32, a[2] | (uint64_t)a[3] << 32, b0 | (uint64_t)b1 << 32, 0}};
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const emulate::Lane* all = emulate::exchange(mine);
    auto half_of = [](uint64_t word, int i) {
        T x;
        x.bits = (unsigned short)(word >> (16 * i));
        return to_float(x);
    };
    for (unsigned k = 0; k < 16; ++k) {
        // Column k of a and row k of b are with the lanes whose t is k % 8 / 2; the high eight are in the second registers.
        const unsigned owner = k % 8 / 2;
        const int i = k % 2;
        const uint64_t a_words = all[g * 4 + owner].words[k / 8];
        const float upper = half_of(a_words, i), lower = half_of(a_words, 2 + i);
        for (unsigned j = 0; j < 2; ++j) {
            const uint64_t b_words = all[(2 * t + j) * 4 + owner].words[2];
            const float b = half_of(b_words, (int)(k / 8) * 2 + i);
            c[j] += upper * b;
            c[2 + j] += lower * b;
        }
    }
}
