// Attention that never writes its scores, on tensor cores, for 16-bit numbers.
#pragma once
#include "device.cuh"

// A block makes the output of WARPS / PARTS x TILES x 16 queries of one head; grid: tiles of queries x heads x batch.
// The keys pass in tiles of KEYS, in two buffers. A warp holds TILES x 16 queries: their scores, and WIDTH / PARTS columns of their
// output; with PARTS > 1 the scores are computed by each of the warps that share the queries.
// DEPTH: the head's size, rounded up to 16; WIDTH: rounded up to 8 PARTS. Queries stay in registers where HOLD says so.
// Rows in shared memory are an odd number of chunks apart, so that eight of them lie in different banks.
template <class T, int DEPTH, int WIDTH, int WARPS, int PARTS, int TILES, int KEYS, bool HOLD>
DEVICE void attention(const T* q, const T* k, const T* v, T* y, unsigned queries, unsigned keys, unsigned heads, unsigned size,
                      unsigned causal, float scale) {
    constexpr int CHUNKS = DEPTH / 8, PITCH = (CHUNKS | 1) * 8, THREADS = 32 * WARPS;
    constexpr int QUERIES = WARPS / PARTS * TILES * 16, BLOCKS = WIDTH / PARTS / 8; // 8-column blocks of a warp's output
    constexpr int PAIRS = (BLOCKS + 1) / 2, STEPS = DEPTH / 16;
    static_assert(DEPTH % 16 == 0 && WIDTH % (8 * PARTS) == 0 && (PARTS == 1 || BLOCKS % 2 == 0) && KEYS % 16 == 0, "shapes");
    DYNAMIC_SHARED(shared);
    T* tile_q = (T*)shared;
    T* tiles = tile_q + QUERIES * PITCH; // (buffer, {k, v}, key, column)

    const size_t row = (size_t)heads * size; // numbers from token to token
    const unsigned first = blockIdx.x * QUERIES;
    q += (size_t)blockIdx.z * queries * row + (size_t)blockIdx.y * size;
    k += (size_t)blockIdx.z * keys * row + (size_t)blockIdx.y * size;
    v += (size_t)blockIdx.z * keys * row + (size_t)blockIdx.y * size;
    y += (size_t)blockIdx.z * queries * row + (size_t)blockIdx.y * size;

    // Copies `count` tokens from `from` on into a tile; what is beyond the tokens or the head is zero.
    auto copy = [&](T* to, const T* base, unsigned from, unsigned tokens, int count) {
        for (int i = threadIdx.x; i < count * CHUNKS; i += THREADS) {
            const int r = i / CHUNKS, c = i % CHUNKS * 8;
            const bool there = from + r < tokens && c < (int)size;
            copy_async(to + r * PITCH + c, base + (there ? (from + r) * row + c : 0), there);
        }
    };
    // With a causal mask no query of the block sees a key behind its last.
    const unsigned seen = causal && first + QUERIES < keys ? first + QUERIES : keys;
    const unsigned rounds = (seen + KEYS - 1) / KEYS;
    auto copy_keys = [&](unsigned round) {
        T* to = tiles + round % 2 * (2 * KEYS * PITCH);
        copy(to, k, round * KEYS, keys, KEYS);
        copy(to + KEYS * PITCH, v, round * KEYS, keys, KEYS);
    };
    copy(tile_q, q, first, queries, QUERIES);
    copy_keys(0);
    copy_commit();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / PARTS * TILES * 16, part = warp % PARTS * (WIDTH / PARTS);
    unsigned held[HOLD ? TILES : 1][HOLD ? STEPS : 1][4];
    float output[TILES][BLOCKS][4], largest[TILES][2], total[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) output[t][n][i] = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            largest[t][half] = -INFINITY;
            total[t][half] = 0.0f;
        }
    }

    for (unsigned round = 0; round < rounds; ++round) {
        if (round + 1 < rounds) copy_keys(round + 1);
        copy_commit();
        copy_wait<1>();
        sync_block();
        const T* tile_k = tiles + round % 2 * (2 * KEYS * PITCH);
        const T* tile_v = tile_k + KEYS * PITCH;
        if constexpr (HOLD) {
            if (round == 0) {
#pragma unroll
                for (int t = 0; t < TILES; ++t)
#pragma unroll
                    for (int s = 0; s < STEPS; ++s)
                        load_matrices(held[t][s], tile_q + (warp_row + t * 16 + lane % 16) * PITCH + s * 16 + lane / 16 * 8);
            }
        }

        float score[TILES][KEYS / 8][4];
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) score[t][n][i] = 0.0f;
#pragma unroll(HOLD ? STEPS : 2)
        for (int s = 0; s < STEPS; ++s) {
            unsigned a[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                if constexpr (HOLD) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[t][i] = held[t][s][i];
                } else {
                    load_matrices(a[t], tile_q + (warp_row + t * 16 + lane % 16) * PITCH + s * 16 + lane / 16 * 8);
                }
            }
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                unsigned b[4];
                load_matrices(b, tile_k + (n * 16 + lane % 8 + lane / 16 * 8) * PITCH + s * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    multiply_add<T>(score[t][2 * n], a[t], b[0], b[1]);
                    multiply_add<T>(score[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }

        const unsigned first_key = round * KEYS;
        const bool masked = first_key + KEYS > keys || (causal && first_key + KEYS > first + 1);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int half = 0; half < 2; ++half) { // the rows lane/4 and lane/4 + 8
                const unsigned query = first + warp_row + t * 16 + lane / 4 + half * 8;
                float most = largest[t][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float& s = score[t][n][half * 2 + i];
                        s *= scale;
                        const unsigned key = first_key + n * 8 + lane % 4 * 2 + i;
                        if (masked && (key >= keys || (causal && key > query))) s = -INFINITY;
                        most = fmaxf(most, s);
                    }
                }
                most = fmaxf(most, shuffle_xor(most, 1));
                most = fmaxf(most, shuffle_xor(most, 2));
                // The first key is never masked, so `most` is a number from the first round on.
                const float shrink = exp2_fast(largest[t][half] - most);
                largest[t][half] = most;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float& s = score[t][n][half * 2 + i];
                        s = exp2_fast(s - most);
                        sum += s;
                    }
                }
                total[t][half] = total[t][half] * shrink + sum;
#pragma unroll
                for (int n = 0; n < BLOCKS; ++n) {
                    output[t][n][half * 2] *= shrink;
                    output[t][n][half * 2 + 1] *= shrink;
                }
            }
        }

#pragma unroll
        for (int s = 0; s < KEYS / 16; ++s) {
            unsigned a[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                a[t][0] = pack<T>(score[t][2 * s][0], score[t][2 * s][1]);
                a[t][1] = pack<T>(score[t][2 * s][2], score[t][2 * s][3]);
                a[t][2] = pack<T>(score[t][2 * s + 1][0], score[t][2 * s + 1][1]);
                a[t][3] = pack<T>(score[t][2 * s + 1][2], score[t][2 * s + 1][3]);
            }
#pragma unroll
            for (int n = 0; n < PAIRS; ++n) {
                unsigned b[4];
                load_matrices_transposed(b, tile_v + (s * 16 + lane % 16) * PITCH + part + n * 16 + lane / 16 * 8);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    multiply_add<T>(output[t][2 * n], a[t], b[0], b[1]);
                    if (2 * n + 1 < BLOCKS) multiply_add<T>(output[t][2 * n + 1 < BLOCKS ? 2 * n + 1 : 0], a[t], b[2], b[3]);
                }
            }
        }
        sync_block();
    }
    copy_wait<0>();

#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[t][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            const unsigned query = first + warp_row + t * 16 + lane / 4 + half * 8;
            if (query >= queries) continue;
            const float share = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {
                const unsigned column = part + n * 8 + lane % 4 * 2;
                if (column >= size) continue;
                *(unsigned*)(y + query * row + column) = pack<T>(output[t][n][half * 2] * share, output[t][n][half * 2 + 1] * share);
            }
        }
    }
}
