// Normalisations. Statistics are f32 and about the mean: a mean far from zero does not spoil the variance.
// Sums are taken in a fixed order, so that the same input gives the same bytes.
#pragma once
#include "device.cuh"

struct stats_t {
    float count, mean, squares; // squares: the sum of the squared distances from the mean
};

// Chan's parallel form of the variance.
DEVICE stats_t merge(stats_t a, stats_t b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float distance = b.mean - a.mean;
    stats_t all;
    all.count = count;
    all.mean = a.mean + distance * (b.count / count);
    all.squares = a.squares + b.squares + distance * distance * (a.count * b.count / count);
    return all;
}

// Statistics of one part of the positions, for every group: `parts` (batch, part, group, {mean, squares}).
// Grid: parts x batch. A block takes all channels of its positions; shared memory: 2 channels x rows at once.
template <class T, int N>
DEVICE void group_norm_stats(const T* x, float* parts, unsigned positions, unsigned channels, unsigned groups, unsigned part_size) {
    DYNAMIC_SHARED(shared);
    const unsigned vectors = channels / N;
    const unsigned rows = vectors < blockDim.x ? blockDim.x / vectors : 1; // positions that are read at once
    float* sums = (float*)shared;                                          // (row, channel)
    float* squares = sums + rows * channels;
    const unsigned first = blockIdx.x * part_size;
    const unsigned last = first + part_size < positions ? first + part_size : positions;
    const T* base = x + (size_t)blockIdx.y * positions * channels;
    const unsigned row = vectors < blockDim.x ? threadIdx.x / vectors : 0;
    const unsigned step = vectors < blockDim.x ? vectors : blockDim.x;
    // Distances are taken from the part's first pixel, which is near the mean.
    if (row < rows) {
        for (unsigned v = vectors < blockDim.x ? threadIdx.x % vectors : threadIdx.x; v < vectors; v += step) {
            float shift[N], sum[N], square[N];
            load(shift, base + (size_t)first * channels + v * N);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] = square[j] = 0.0f;
            for (unsigned p = first + row; p < last; p += rows) {
                float value[N];
                load(value, base + (size_t)p * channels + v * N);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    const float d = value[j] - shift[j];
                    sum[j] += d;
                    square[j] += d * d;
                }
            }
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sums[row * channels + v * N + j] = sum[j];
                squares[row * channels + v * N + j] = square[j];
            }
        }
    }
    sync_block();
    const float count = (float)(last - first);
    const unsigned per_group = channels / groups;
    for (unsigned g = threadIdx.x; g < groups; g += blockDim.x) {
        stats_t all = {0.0f, 0.0f, 0.0f};
        for (unsigned c = g * per_group; c < (g + 1) * per_group; ++c) {
            float sum = 0.0f, square = 0.0f;
            for (unsigned r = 0; r < rows; ++r) {
                sum += sums[r * channels + c];
                square += squares[r * channels + c];
            }
            const float about = to_float(base[(size_t)first * channels + c]);
            const float off = sum / count;
            const float left = square - sum * off;
            const stats_t one = {count, about + off, left > 0.0f ? left : 0.0f};
            all = merge(all, one);
        }
        float* to = parts + (((size_t)blockIdx.y * gridDim.x + blockIdx.x) * groups + g) * 2;
        to[0] = all.mean;
        to[1] = all.squares;
    }
}

// y = (x - mean) / deviation * weight + bias, and SiLU of it. Grid and parts as above; shared memory: 3 channels.
template <class T, int N>
DEVICE void group_norm_apply(const T* x, const float* parts, const float* weight, const float* bias, T* y, unsigned positions,
                             unsigned channels, unsigned groups, unsigned part_size, float eps, unsigned with_silu) {
    DYNAMIC_SHARED(shared);
    float* means = (float*)shared;
    float* scales = means + channels;
    float* shifts = scales + channels;
    const unsigned per_group = channels / groups;
    // Eight lanes share a group's parts.
    const unsigned lane = threadIdx.x % 8;
    const unsigned rounds = (groups + blockDim.x / 8 - 1) / (blockDim.x / 8);
    for (unsigned round = 0; round < rounds; ++round) {
        const unsigned g = round * (blockDim.x / 8) + threadIdx.x / 8;
        stats_t all = {0.0f, 0.0f, 0.0f};
        for (unsigned part = lane; g < groups && part < gridDim.x; part += 8) {
            const float* from = parts + (((size_t)blockIdx.y * gridDim.x + part) * groups + g) * 2;
            const unsigned left = positions - part * part_size;
            const stats_t one = {(float)((left < part_size ? left : part_size) * per_group), from[0], from[1]};
            all = merge(all, one);
        }
#pragma unroll
        for (int lanes = 1; lanes < 8; lanes *= 2) {
            const stats_t other = {shuffle_xor(all.count, lanes), shuffle_xor(all.mean, lanes), shuffle_xor(all.squares, lanes)};
            // The same order in both lanes, so that all lanes hold the same bytes.
            all = (lane & lanes) ? merge(other, all) : merge(all, other);
        }
        const float scale = 1.0f / sqrtf(all.squares / (all.count > 0.0f ? all.count : 1.0f) + eps);
        for (unsigned c = lane; g < groups && c < per_group; c += 8) {
            const unsigned channel = g * per_group + c;
            means[channel] = all.mean;
            scales[channel] = scale * weight[channel];
            shifts[channel] = bias[channel];
        }
    }
    sync_block();
    const unsigned first = blockIdx.x * part_size;
    const unsigned last = first + part_size < positions ? first + part_size : positions;
    const size_t base = ((size_t)blockIdx.y * positions + first) * channels;
    const size_t count = (size_t)(last - first) * channels;
    for (size_t i = (size_t)threadIdx.x * N; i < count; i += (size_t)blockDim.x * N) {
        const unsigned c = (unsigned)(i % channels);
        float v[N];
        load(v, x + base + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float normed = (v[j] - means[c + j]) * scales[c + j] + shifts[c + j];
            v[j] = with_silu ? silu_of(normed) : normed;
        }
        store(y + base + i, v);
    }
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// Normalisation over the channels: a warp a row, which it reads three times from its cache.
template <class T, int N>
DEVICE void layer_norm(const T* x, const float* weight, const float* bias, T* y, unsigned rows, unsigned channels, float eps) {
    const unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const unsigned lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T* from = x + (size_t)row * channels;
    float sum = 0.0f;
    for (unsigned c = lane * N; c < channels; c += 32 * N) {
        float v[N];
        load(v, from + c);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += v[j];
    }
    const float mean = warp_sum(sum) / (float)channels;
    float squares = 0.0f;
    for (unsigned c = lane * N; c < channels; c += 32 * N) {
        float v[N];
        load(v, from + c);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += (v[j] - mean) * (v[j] - mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / (float)channels + eps);
    for (unsigned c = lane * N; c < channels; c += 32 * N) {
        float v[N];
        load(v, from + c);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = (v[j] - mean) * scale * weight[c + j] + bias[c + j];
        store(y + (size_t)row * channels + c, v);
    }
}
