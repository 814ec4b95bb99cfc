// Functions of each element, and copies.
#pragma once
#include "device.cuh"

enum { SILU = 0, GELU = 1, QUICK_GELU = 2 };

// y = f(x); `count` numbers, a multiple of N.
template <class T, int N> DEVICE void activation(const T* x, T* y, unsigned count, unsigned function) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    float v[N];
    load(v, x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = function == SILU ? silu_of(v[j]) : function == GELU ? gelu_of(v[j]) : quick_gelu_of(v[j]);
    store(y + i, v);
}

// y = a gelu(b) where a row of x is a, then b, of `half` numbers each; `count` numbers of y.
template <class T, int N> DEVICE void geglu(const T* x, T* y, unsigned count, unsigned half) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    const size_t row = i / half, column = i % half;
    const T* at = x + row * 2 * half + column;
    float a[N], b[N];
    load(a, at);
    load(b, at + half);
#pragma unroll
    for (int j = 0; j < N; ++j) a[j] *= gelu_of(b[j]);
    store(y + i, a);
}

// Every pixel becomes two by two. `count` numbers of y, which is (batch, 2 height, 2 width, channels).
template <class T, int N> DEVICE void upsample(const T* x, T* y, unsigned count, unsigned height, unsigned width, unsigned channels) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    const size_t pixel = i / channels, channel = i % channels;
    const size_t column = pixel % (2 * width), rows = pixel / (2 * width);
    const size_t row = rows % (2 * height), image = rows / (2 * height);
    float v[N];
    load(v, x + ((image * height + row / 2) * width + column / 2) * channels + channel);
    store(y + i, v);
}

// y = x with `rows[row / row_count]` added to every row; `count` numbers.
template <class T, int N> DEVICE void add_rows(const T* x, const T* rows, T* y, unsigned count, unsigned row_count, unsigned columns) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    float v[N], extra[N];
    load(v, x + i);
    load(extra, rows + i / columns / row_count * columns + i % columns);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] += extra[j];
    store(y + i, v);
}
