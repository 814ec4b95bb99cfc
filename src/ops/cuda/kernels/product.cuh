// Products and convolutions: y(row, column) = sum over taps and channels of x(pixel of row and tap, channel) w(column, tap, channel),
// then bias, row bias and residual. A plain product is a convolution of 1x1 windows. Images are channels-last, weights are
// (out, tap, in), and the channels of x and w are multiples of a chunk.
#pragma once
#include "device.cuh"

// Which pixels a row of the product reads.
struct windows_t {
    unsigned height, width;           // of the input
    unsigned out_height, out_width;   // of the output
    unsigned kernel_height, kernel_width;
    unsigned stride, top, left;       // rows above and columns to the left that are zero
};

// Where a row's window begins; `there` is false beyond the last row.
struct window_t {
    const void* image;
    int y, x;
    bool there;
};

DEVICE window_t window_of(const void* x, size_t image_bytes, const windows_t& w, size_t row, size_t rows) {
    const size_t size = (size_t)w.out_height * w.out_width;
    const size_t image = row / size, pixel = row % size;
    window_t at;
    at.there = row < rows;
    at.image = (const char*)x + (at.there ? image : 0) * image_bytes;
    at.y = (int)(pixel / w.out_width * w.stride) - (int)w.top;
    at.x = (int)(pixel % w.out_width * w.stride) - (int)w.left;
    return at;
}

// What is added to the sums; pointers may be null.
struct extras_t {
    const float* bias;     // (columns)
    const void* row_bias;  // (batch, columns)
    const void* residual;  // the shape of y
    unsigned rows_per_batch;
};

template <class T, int N>
DEVICE void finish(float (&v)[N], const extras_t& e, size_t row, unsigned column, unsigned columns, T* y) {
    float extra[N];
    if (e.bias) {
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] += e.bias[column + j];
    }
    if (e.row_bias) {
        load(extra, (const T*)e.row_bias + row / e.rows_per_batch * columns + column);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] += extra[j];
    }
    if (e.residual) {
        load(extra, (const T*)e.residual + row * columns + column);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] += extra[j];
    }
    store(y + row * columns + column, v);
}

// On tensor cores, for 16-bit numbers. A block makes ROWS x COLUMNS sums with (ROWS / WARP_ROWS) x (COLUMNS / WARP_COLUMNS) warps;
// grid: tiles of rows x tiles of columns x splits of the sum. With one split it writes y, with more `sums`, (split, row, column).
// Chunks of 64 channels pass through shared memory in STAGES buffers whose rows are one chunk apart from a multiple of 128 bytes,
// so that eight rows lie in different banks.
template <class T, int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int STAGES>
DEVICE void product(const T* x, const T* w, T* y, float* sums, extras_t extras, windows_t windows, unsigned rows, unsigned columns,
                    unsigned channels) {
    constexpr int DEPTH = 64, CHUNKS = DEPTH / 8, PITCH = (CHUNKS + 1) * 8; // PITCH in numbers
    constexpr int WARPS = (ROWS / WARP_ROWS) * (COLUMNS / WARP_COLUMNS), THREADS = 32 * WARPS;
    constexpr int AT_ONCE = THREADS / CHUNKS; // rows that one round of copies fills
    constexpr int X_ROUNDS = ROWS / AT_ONCE, W_ROUNDS = COLUMNS / AT_ONCE;
    constexpr int M = WARP_ROWS / 16, N = WARP_COLUMNS / 8;
    static_assert(ROWS % AT_ONCE == 0 && COLUMNS % AT_ONCE == 0 && N % 2 == 0, "whole rounds");
    DYNAMIC_SHARED(shared);
    T* tiles = (T*)shared;
    constexpr int STAGE = (ROWS + COLUMNS) * PITCH;

    const size_t first_row = (size_t)blockIdx.x * ROWS;
    const unsigned first_column = blockIdx.y * COLUMNS;
    const int chunk = threadIdx.x % CHUNKS, copy_row = threadIdx.x / CHUNKS;
    const size_t image_bytes = (size_t)windows.height * windows.width * channels * sizeof(T);
    window_t window[X_ROUNDS];
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i) window[i] = window_of(x, image_bytes, windows, first_row + copy_row + i * AT_ONCE, rows);

    const unsigned taps = windows.kernel_height * windows.kernel_width;
    const unsigned depths = (channels + DEPTH - 1) / DEPTH; // per tap
    const unsigned all = taps * depths;
    const unsigned begin = (unsigned)((size_t)all * blockIdx.z / gridDim.z), end = (unsigned)((size_t)all * (blockIdx.z + 1) / gridDim.z);

    auto copy = [&](unsigned step, int stage) {
        const unsigned tap = step / depths, channel = (step % depths) * DEPTH + chunk * 8;
        const bool in_range = channel < channels;
        const int dy = (int)(tap / windows.kernel_width), dx = (int)(tap % windows.kernel_width);
        T* to_x = tiles + stage * STAGE;
        T* to_w = to_x + ROWS * PITCH;
#pragma unroll
        for (int i = 0; i < X_ROUNDS; ++i) {
            const int py = window[i].y + dy, px = window[i].x + dx;
            const bool there = in_range && window[i].there && py >= 0 && py < (int)windows.height && px >= 0 && px < (int)windows.width;
            const T* from = (const T*)window[i].image + (there ? ((size_t)py * windows.width + px) * channels + channel : 0);
            copy_async(to_x + (copy_row + i * AT_ONCE) * PITCH + chunk * 8, from, there);
        }
#pragma unroll
        for (int i = 0; i < W_ROUNDS; ++i) {
            const unsigned column = first_column + copy_row + i * AT_ONCE;
            const bool there = in_range && column < columns;
            const T* from = w + (there ? ((size_t)column * taps + tap) * channels + channel : 0);
            copy_async(to_w + (copy_row + i * AT_ONCE) * PITCH + chunk * 8, from, there);
        }
    };

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / (COLUMNS / WARP_COLUMNS) * WARP_ROWS, warp_column = warp % (COLUMNS / WARP_COLUMNS) * WARP_COLUMNS;
    float sum[M][N][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[m][n][i] = 0.0f;

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (begin + stage < end) copy(begin + stage, stage);
        copy_commit();
    }
    for (unsigned step = begin; step < end; ++step) {
        copy_wait<STAGES - 2>();
        sync_block();
        // The buffer that was read in the last round is free now.
        if (step + STAGES - 1 < end) copy(step + STAGES - 1, (step - begin + STAGES - 1) % STAGES);
        copy_commit();
        const T* from_x = tiles + (step - begin) % STAGES * STAGE;
        const T* from_w = from_x + ROWS * PITCH;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a[M][4], b[N / 2][4];
#pragma unroll
            for (int m = 0; m < M; ++m) load_matrices(a[m], from_x + (warp_row + m * 16 + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < N / 2; ++n)
                load_matrices(b[n], from_w + (warp_column + n * 16 + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int n = 0; n < N; ++n) multiply_add<T>(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
    }
    copy_wait<0>();
    sync_block();

    // Through shared memory, so that whole chunks are written.
    constexpr int WIDTH = COLUMNS + 4;
    float* staged = (float*)shared;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                staged[(warp_row + m * 16 + lane / 4 + i / 2 * 8) * WIDTH + warp_column + n * 8 + lane % 4 * 2 + i % 2] = sum[m][n][i];
    sync_block();
    for (int i = threadIdx.x; i < ROWS * (COLUMNS / 8); i += THREADS) {
        const int r = i / (COLUMNS / 8), c = i % (COLUMNS / 8) * 8;
        const size_t row = first_row + r;
        const unsigned column = first_column + c;
        if (row >= rows || column >= columns) continue;
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = staged[r * WIDTH + c + j];
        if (gridDim.z > 1) {
            for (unsigned j = 0; j < 8 && column + j < columns; ++j) sums[((size_t)blockIdx.z * rows + row) * columns + column + j] = v[j];
        } else if (columns % 8 == 0) {
            finish(v, extras, row, column, columns, y);
        } else {
            for (unsigned j = 0; j < 8 && column + j < columns; ++j) {
                float one[1] = {v[j]};
                finish(one, extras, row, column + j, columns, y);
            }
        }
    }
}

// Adds the splits of a product and writes y, one number a thread.
template <class T> DEVICE void product_merge(const float* sums, T* y, extras_t extras, unsigned rows, unsigned columns, unsigned splits) {
    const size_t count = (size_t)rows * columns, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float v[1] = {0.0f};
    for (unsigned split = 0; split < splits; ++split) v[0] += sums[split * count + i];
    finish(v, extras, i / columns, (unsigned)(i % columns), columns, y);
}

// The same in f32 without tensor cores, for 64 x 64 sums a block of 256 threads, each of which makes 4 x 4.
DEVICE void product_plain(const float* x, const float* w, float* y, extras_t extras, windows_t windows, unsigned rows, unsigned columns,
                          unsigned channels) {
    constexpr int TILE = 64, DEPTH = 16, PITCH = TILE + 4;
    DYNAMIC_SHARED(shared);
    float* tile_x = (float*)shared; // (channel, row)
    float* tile_w = tile_x + DEPTH * PITCH;
    const size_t first_row = (size_t)blockIdx.x * TILE;
    const unsigned first_column = blockIdx.y * TILE;
    // A thread copies four numbers of one row.
    const int copy_row = threadIdx.x / 4, copy_channel = threadIdx.x % 4 * 4;
    const size_t image_bytes = (size_t)windows.height * windows.width * channels * sizeof(float);
    const window_t window = window_of(x, image_bytes, windows, first_row + copy_row, rows);
    const unsigned taps = windows.kernel_height * windows.kernel_width;
    const unsigned w_column = first_column + copy_row;
    const int r = threadIdx.x / 16 * 4, c = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (unsigned tap = 0; tap < taps; ++tap) {
        const int py = window.y + (int)(tap / windows.kernel_width), px = window.x + (int)(tap % windows.kernel_width);
        const bool inside = window.there && py >= 0 && py < (int)windows.height && px >= 0 && px < (int)windows.width;
        for (unsigned depth = 0; depth < channels; depth += DEPTH) {
            const unsigned channel = depth + copy_channel;
            float from_x[4] = {}, from_w[4] = {};
            if (inside && channel < channels) load(from_x, (const float*)window.image + ((size_t)py * windows.width + px) * channels + channel);
            if (w_column < columns && channel < channels) load(from_w, w + ((size_t)w_column * taps + tap) * channels + channel);
            sync_block(); // the last round has read its tiles
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                tile_x[(copy_channel + j) * PITCH + copy_row] = from_x[j];
                tile_w[(copy_channel + j) * PITCH + copy_row] = from_w[j];
            }
            sync_block();
#pragma unroll
            for (int k = 0; k < DEPTH; ++k) {
                float a[4], b[4];
                load(a, tile_x + k * PITCH + r);
                load(b, tile_w + k * PITCH + c);
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
            }
        }
    }
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            if (first_row + r + i >= rows || first_column + c + j >= columns) continue;
            float one[1] = {sum[i][j]};
            finish(one, extras, first_row + r + i, first_column + c + j, columns, y);
        }
    }
}
