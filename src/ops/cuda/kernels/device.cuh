// What the kernels need of the machine: storage types, and the instructions that C++ has no name for.
//
// Everything below the line "instructions" is replaced when SD_GEN_EMULATE is defined (emulate.h), so that the kernels
// run on a CPU, thread by thread, and their index arithmetic is tested where there is no GPU.
#pragma once

struct half_t {
    unsigned short bits;
};
struct bf16_t {
    unsigned short bits;
};

// Sixteen bytes that move at once.
struct alignas(16) chunk_t {
    unsigned words[4];
};

#ifdef SD_GEN_EMULATE
#include "emulate.h"
#else

#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// Makes `name` of a kernel template: the launch finds it by this name.
#define KERNEL(name, threads, blocks, parameters, call) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name parameters { call; }

// ---- instructions ----

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(half_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE float to_float(bf16_t x) { return __uint_as_float((unsigned)x.bits << 16); }

template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE half_t from_float<half_t>(float x) {
    half_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> DEVICE bf16_t from_float<bf16_t>(float x) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(0.0f), "f"(x));
    return {(unsigned short)y};
}

// Two numbers in a word, the first in the low half.
template <class T> DEVICE unsigned pack(float low, float high);
template <> DEVICE unsigned pack<half_t>(float low, float high) {
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE unsigned pack<bf16_t>(float low, float high) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE void sync_block() { __syncthreads(); }
DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copies sixteen bytes into shared memory behind the program's back, or zeros where nothing is there to be read.
DEVICE void copy_async(void* shared, const void* global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of the committed groups are under way.
template <int pending> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

// Four 8x8 matrices of 16-bit numbers: lanes 8i to 8i+7 give the rows of matrix i; lane l gets of each the numbers 2(l%4) and
// 2(l%4)+1 of row l/4.
DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of the transposed matrices.
DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b, with a 16x16 and b 16x8. Of lane l, with g = l/4 and t = l%4:
// a: rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8; b: rows 2t and 2t+8 of column g; c: row g at 2t and 2t+1, row g+8 at the same.
template <class T> DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <> DEVICE void multiply_add<half_t>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> DEVICE void multiply_add<bf16_t>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// ---- on top of them ----

// Numbers in sixteen bytes.
template <class T> struct vector_of {
    static const int size = 16 / sizeof(T);
};

// Numbers that are read and written together: a whole chunk, or one where rows are not multiples of a chunk.
template <class T, int N> DEVICE void load(float (&to)[N], const T* from) {
    if constexpr (N == 1) {
        to[0] = to_float(from[0]);
    } else {
        static_assert(N * sizeof(T) % sizeof(chunk_t) == 0, "whole chunks");
        const int each = vector_of<T>::size;
#pragma unroll
        for (int i = 0; i < N / each; ++i) {
            union {
                chunk_t chunk;
                T values[each];
            } u;
            u.chunk = ((const chunk_t*)from)[i];
#pragma unroll
            for (int j = 0; j < each; ++j) to[i * each + j] = to_float(u.values[j]);
        }
    }
}

template <class T, int N> DEVICE void store(T* to, const float (&from)[N]) {
    if constexpr (N == 1) {
        to[0] = from_float<T>(from[0]);
    } else {
        const int each = vector_of<T>::size;
#pragma unroll
        for (int i = 0; i < N / each; ++i) {
            union {
                chunk_t chunk;
                T values[each];
            } u;
#pragma unroll
            for (int j = 0; j < each; ++j) u.values[j] = from_float<T>(from[i * each + j]);
            ((chunk_t*)to)[i] = u.chunk;
        }
    }
}

DEVICE float silu_of(float x) { return x / (1.0f + expf(-x)); }
DEVICE float gelu_of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
DEVICE float quick_gelu_of(float x) { return x / (1.0f + expf(-1.702f * x)); }
