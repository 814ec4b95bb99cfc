// Every kernel that is launched, by name. The plans in ../plan.rs give the grids, the shared memory and the arguments.
#include "attention.cuh"
#include "element.cuh"
#include "norm.cuh"
#include "product.cuh"

// For each storage type, of whole chunks and of single numbers.
#define FOR_EACH_VECTOR(DO) DO(f32, float, 4) DO(f32_1, float, 1) DO(f16, half_t, 8) DO(f16_1, half_t, 1) DO(bf16, bf16_t, 8) DO(bf16_1, bf16_t, 1)
#define FOR_EACH_HALF(DO) DO(f16, half_t) DO(bf16, bf16_t)

#define ELEMENTS(suffix, T, N)                                                                                                      \
    KERNEL(activation_##suffix, 256, 1, (const T* x, T* y, unsigned count, unsigned function), (activation<T, N>(x, y, count, function)))  \
    KERNEL(geglu_##suffix, 256, 1, (const T* x, T* y, unsigned count, unsigned half), (geglu<T, N>(x, y, count, half)))                    \
    KERNEL(upsample_##suffix, 256, 1, (const T* x, T* y, unsigned count, unsigned height, unsigned width, unsigned channels),              \
           (upsample<T, N>(x, y, count, height, width, channels)))                                                                         \
    KERNEL(add_rows_##suffix, 256, 1, (const T* x, const T* rows, T* y, unsigned count, unsigned row_count, unsigned columns),             \
           (add_rows<T, N>(x, rows, y, count, row_count, columns)))                                                                        \
    KERNEL(group_norm_stats_##suffix, 256, 1,                                                                                              \
           (const T* x, float* parts, unsigned positions, unsigned channels, unsigned groups, unsigned part_size),                         \
           (group_norm_stats<T, N>(x, parts, positions, channels, groups, part_size)))                                                     \
    KERNEL(group_norm_apply_##suffix, 256, 1,                                                                                              \
           (const T* x, const float* parts, const float* weight, const float* bias, T* y, unsigned positions, unsigned channels,           \
            unsigned groups, unsigned part_size, float eps, unsigned with_silu),                                                           \
           (group_norm_apply<T, N>(x, parts, weight, bias, y, positions, channels, groups, part_size, eps, with_silu)))                    \
    KERNEL(layer_norm_##suffix, 256, 1, (const T* x, const float* weight, const float* bias, T* y, unsigned rows, unsigned channels, float eps), \
           (layer_norm<T, N>(x, weight, bias, y, rows, channels, eps)))
FOR_EACH_VECTOR(ELEMENTS)

#define PRODUCT(suffix, T, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, BLOCKS)                                                          \
    KERNEL(product_##ROWS##x##COLUMNS##_##suffix, (ROWS / WARP_ROWS) * (COLUMNS / WARP_COLUMNS) * 32, BLOCKS,                               \
           (const T* x, const T* w, T* y, float* sums, extras_t extras, windows_t windows, unsigned rows, unsigned columns, unsigned channels), \
           (product<T, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, 3>(x, w, y, sums, extras, windows, rows, columns, channels)))
#define PRODUCTS(suffix, T)                                                                                                         \
    PRODUCT(suffix, T, 128, 128, 64, 32, 2)                                                                                                \
    PRODUCT(suffix, T, 128, 160, 32, 80, 1)                                                                                                \
    PRODUCT(suffix, T, 64, 64, 32, 32, 3)                                                                                                  \
    KERNEL(product_merge_##suffix, 256, 1, (const float* sums, T* y, extras_t extras, unsigned rows, unsigned columns, unsigned splits),   \
           (product_merge<T>(sums, y, extras, rows, columns, splits)))
FOR_EACH_HALF(PRODUCTS)
KERNEL(product_f32, 256, 1,
       (const float* x, const float* w, float* y, extras_t extras, windows_t windows, unsigned rows, unsigned columns, unsigned channels),
       (product_plain(x, w, y, extras, windows, rows, columns, channels)))

#define ATTENTION(suffix, T, DEPTH, WIDTH, WARPS, PARTS, TILES, KEYS, HOLD)                                                         \
    KERNEL(attention_##WIDTH##_##suffix, WARPS * 32, 1,                                                                                    \
           (const T* q, const T* k, const T* v, T* y, unsigned queries, unsigned keys, unsigned heads, unsigned size, unsigned causal,     \
            float scale),                                                                                                                  \
           (attention<T, DEPTH, WIDTH, WARPS, PARTS, TILES, KEYS, HOLD>(q, k, v, y, queries, keys, heads, size, causal, scale)))
#define ATTENTIONS(suffix, T)                                                                                                       \
    ATTENTION(suffix, T, 16, 16, 4, 1, 1, 64, true)                                                                                        \
    ATTENTION(suffix, T, 32, 32, 4, 1, 1, 64, true)                                                                                        \
    ATTENTION(suffix, T, 48, 40, 4, 1, 2, 64, true)                                                                                        \
    ATTENTION(suffix, T, 64, 64, 4, 1, 2, 64, true)                                                                                        \
    ATTENTION(suffix, T, 80, 80, 8, 1, 1, 64, true)                                                                                        \
    ATTENTION(suffix, T, 128, 128, 8, 1, 1, 32, true)                                                                                      \
    ATTENTION(suffix, T, 160, 160, 4, 1, 1, 32, false)                                                                                     \
    ATTENTION(suffix, T, 512, 512, 8, 2, 1, 16, false)
FOR_EACH_HALF(ATTENTIONS)
