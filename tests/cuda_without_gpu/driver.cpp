// CUDA's driver, cuBLAS and cuRAND on a CPU, as far as the program's ops need them: so that everything between the ops and the GPU runs
// where there is none. run.sh beside this builds it and runs the tests of the CUDA path with it.
//
// Memory of the device is memory of the host, filled with NaNs when it is given out and guarded behind its end. The project's kernels
// are those of src/ops/cuda/kernels, run thread by thread; candle's few that the ops use are written down here, as are products.
// Work is done when it is asked for: streams and events have nothing to order.
#include "../../src/ops/cuda/kernels/kernels.cu"
#include <cstdlib>
#include <functional>
#include <mutex>
#include <set>

typedef int Status;
typedef uint64_t Address;
enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500 };

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---- memory ----

static std::mutex one_at_a_time;
static std::map<Address, size_t> allocations;
static uint64_t used, most_used;
static const size_t GUARD_BYTES = 256;

static Status allocate(Address* to, size_t bytes) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    if (bytes == 0) return INVALID_VALUE;
    unsigned char* memory = (unsigned char*)aligned_alloc(256, (bytes + GUARD_BYTES + 255) / 256 * 256);
    memset(memory, 0xff, bytes + GUARD_BYTES);
    *to = (Address)memory;
    allocations[*to] = bytes;
    used += bytes;
    if (used > most_used) most_used = used;
    return SUCCESS;
}
static Status release(Address address) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    for (size_t i = 0; i < GUARD_BYTES; ++i) {
        if (((unsigned char*)address)[found->second + i] != 0xff) {
            fprintf(stderr, "driver: a write behind the end of %zu bytes\n", found->second);
            abort();
        }
    }
    used -= found->second;
    allocations.erase(found);
    free((void*)address);
    return SUCCESS;
}

EXPORT Status cuMemAllocAsync(Address* to, size_t bytes, void*) { return allocate(to, bytes); }
EXPORT Status cuMemAlloc_v2(Address* to, size_t bytes) { return allocate(to, bytes); }
EXPORT Status cuMemFreeAsync(Address address, void*) { return release(address); }
EXPORT Status cuMemFree_v2(Address address) { return release(address); }
EXPORT Status cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { *free_bytes = (8ull << 30) - used; *total = 8ull << 30; return SUCCESS; }
EXPORT Status cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void*) { memcpy((void*)to, from, bytes); return SUCCESS; }
EXPORT Status cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void*) { memcpy(to, (void*)from, bytes); return SUCCESS; }
EXPORT Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void*) { memcpy((void*)to, (void*)from, bytes); return SUCCESS; }
EXPORT Status cuMemcpyPeerAsync(Address to, void*, Address from, void*, size_t bytes, void*) { memcpy((void*)to, (void*)from, bytes); return SUCCESS; }
EXPORT Status cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void*) { memset((void*)to, value, bytes); return SUCCESS; }

// ---- device, context, streams ----

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
EXPORT Status cuCtxSynchronize() { return SUCCESS; }
EXPORT Status cuCtxDestroy_v2(void*) { return SUCCESS; }
EXPORT Status cuDeviceGetDefaultMemPool(void** pool, int) { *pool = &used; return SUCCESS; }
EXPORT Status cuMemPoolGetAttribute(void*, int attribute, void* value) {
    *(uint64_t*)value = attribute == 8 ? most_used : used; // 5, 6: reserved, 7: used, 8: at most
    return SUCCESS;
}
EXPORT Status cuMemPoolSetAttribute(void*, int attribute, void*) { if (attribute == 8) most_used = used; return SUCCESS; }
EXPORT Status cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }
EXPORT Status cuStreamCreate(void** stream, unsigned) { *stream = (void*)1; return SUCCESS; }
EXPORT Status cuStreamDestroy_v2(void*) { return SUCCESS; }
EXPORT Status cuStreamSynchronize(void*) { return SUCCESS; }
EXPORT Status cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
EXPORT Status cuStreamIsCapturing(void*, int* status) { *status = 0; return SUCCESS; }
EXPORT Status cuEventCreate(void** event, unsigned) { *event = (void*)1; return SUCCESS; }
EXPORT Status cuEventDestroy_v2(void*) { return SUCCESS; }
EXPORT Status cuEventRecord(void*, void*) { return SUCCESS; }
EXPORT Status cuEventSynchronize(void*) { return SUCCESS; }
EXPORT Status cuEventElapsedTime_v2(float* milliseconds, void*, void*) { *milliseconds = 1.0f; return SUCCESS; }
EXPORT Status cuGetErrorString(int error, const char** text) {
    static thread_local char line[40];
    snprintf(line, sizeof line, "driver error %d", error);
    *text = line;
    return SUCCESS;
}

// ---- candle's kernels ----

typedef std::function<void(const unsigned* grid, const unsigned* block, void** arguments)> Plain;
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
    candles["cast_" + name + "_f32"] = [](auto, auto, void** a) { cast<T, float>(a); };
    candles["cast_" + name + "_f16"] = [](auto, auto, void** a) { cast<T, half_t>(a); };
    candles["cast_" + name + "_bf16"] = [](auto, auto, void** a) { cast<T, bf16_t>(a); };
    candles["ucopy_" + name] = [](auto, auto, void** a) { unary<T>(a, [](float x) { return x; }); };
    candles["usqr_" + name] = [](auto, auto, void** a) { unary<T>(a, [](float x) { return x * x; }); };
    candles["usqrt_" + name] = [](auto, auto, void** a) { unary<T>(a, [](float x) { return std::sqrt(x); }); };
    candles["badd_" + name] = [](auto, auto, void** a) { binary<T>(a, [](float x, float y) { return x + y; }); };
    candles["bsub_" + name] = [](auto, auto, void** a) { binary<T>(a, [](float x, float y) { return x - y; }); };
    candles["bmul_" + name] = [](auto, auto, void** a) { binary<T>(a, [](float x, float y) { return x * y; }); };
    candles["bdiv_" + name] = [](auto, auto, void** a) { binary<T>(a, [](float x, float y) { return x / y; }); };
    candles["copy2d_" + name] = [](auto, auto, void** a) { copy_rows<T>(a); };
    candles["softmax_" + name] = [](const unsigned* grid, auto, void** a) { softmax<T>(grid, a); };
    candles["fast_sum_" + name] = [](auto, auto, void** a) { sum<T, false>(a); };
    candles["fast_sum_small_" + name] = [](auto, auto, void** a) { sum<T, true>(a); };
    candles["is_u32_" + name] = [](auto, auto, void** a) { select_rows<T>(a); };
    candles["affine_" + name] = [](auto, auto, void** a) { affine<T>(a); };
}

// ---- modules and launches ----

EXPORT Status cuModuleLoadData(void** module, const void*) { *module = (void*)1; return SUCCESS; }
EXPORT Status cuModuleLoad(void**, const char*) { return NOT_FOUND; }
EXPORT Status cuModuleUnload(void*) { return SUCCESS; }
EXPORT Status cuModuleGetFunction(void** function, void*, const char* name) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
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
EXPORT Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*,
                             void** arguments, void**) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const char* name = (const char*)function;
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    const auto found = candles.find(name);
    if (found != candles.end()) {
        found->second(grid, block, arguments);
        return SUCCESS;
    }
    return sd_emulate(name, grid, bx, shared, arguments) == 0 ? SUCCESS : INVALID_VALUE;
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
                             const void* c, void* c_layout, void* d, void* d_layout, const void*, void* workspace, size_t workspace_bytes, void*) {
    const Description& what = *(Description*)description;
    const Matrix &A = *(Matrix*)a_layout, &B = *(Matrix*)b_layout, &C = *(Matrix*)c_layout, &D = *(Matrix*)d_layout;
    const uint64_t m = D.rows, n = D.columns, k = what.transposed[0] ? A.rows : A.columns;
    const bool fits = (what.transposed[0] ? A.columns : A.rows) == m && !what.transposed[1] && B.rows == k && B.columns == n && C.rows == m && C.columns == n;
    for (const void* pointer : {a, b, c, (const void*)d})
        if ((Address)pointer % 16) return 7;
    if (!fits || (what.epilogue == 4) != (what.bias != 0) || !workspace || workspace_bytes < (32u << 20)) return 7;
    for (uint64_t j = 0; j < n; ++j) {
        for (uint64_t i = 0; i < m; ++i) {
            float sum = 0;
            for (uint64_t s = 0; s < k; ++s) sum += number(a, what.transposed[0] ? i * A.row + s : s * A.row + i, A.type) * number(b, j * B.row + s, B.type);
            sum = *alpha * sum;
            if (*beta != 0) sum += *beta * number(c, j * C.row + i, C.type);
            if (what.epilogue == 4) sum += number((void*)what.bias, i, D.type);
            put(d, j * D.row + i, D.type, sum);
        }
    }
    return 0;
}
EXPORT Status cublasCreate_v2(void** handle) { *handle = (void*)1; return 0; }
EXPORT Status cublasDestroy_v2(void*) { return 0; }
EXPORT Status cublasSetStream_v2(void*, void*) { return 0; }
EXPORT Status cublasGemmStridedBatchedEx(void*, int a_transposed, int b_transposed, int m, int n, int k, const void* alpha, const void* a, int a_type,
                                         int a_row, long long a_next, const void* b, int b_type, int b_row, long long b_next, const void* beta, void* c,
                                         int c_type, int c_row, long long c_next, int batch, int, int) {
    if (*(const float*)alpha != 1 || *(const float*)beta != 0) return 7;
    for (size_t t = 0; t < (size_t)batch; ++t)
        for (size_t j = 0; j < (size_t)n; ++j)
            for (size_t i = 0; i < (size_t)m; ++i) {
                float sum = 0;
                for (size_t s = 0; s < (size_t)k; ++s)
                    sum += number(a, t * a_next + (a_transposed ? i * a_row + s : s * a_row + i), a_type) * number(b, t * b_next + (b_transposed ? s * b_row + j : j * b_row + s), b_type);
                put(c, t * c_next + j * c_row + i, c_type, sum);
            }
    return 0;
}
EXPORT Status curandCreateGenerator(void** generator, int) { *generator = (void*)1; return 0; }
EXPORT Status curandDestroyGenerator(void*) { return 0; }
EXPORT Status curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
EXPORT Status curandSetStream(void*, void*) { return 0; }
