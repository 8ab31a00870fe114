// The matrix tiles of newer Intel CPUs (AMX): float32 as sums of bfloat16, and products of 32 x 32 blocks.
//
// A float32 is the sum of three bfloat16 of 8 bits each: x = x0 + x1 + x2. Of the nine products of two such sums the
// six largest are taken, x0 y0, x0 y1, x1 y0, x0 y2, x1 y1 and x2 y0; what is left out is as small as float32's
// rounding. They cost less than half of what float32's own units need for one. With `parts` 2, x0 + x1 and three
// products, sums are off by 4e-6 of their root mean square, and with 1 the operator is one of bfloat16 with float32
// sums.

#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define LIA_HAS_AMX

#include <immintrin.h>

namespace amx {

using std::int64_t;
using bfloat16 = std::uint16_t;

constexpr int64_t kTile = 16;   // Rows of a tile, and its columns of float32.
constexpr int64_t kDepth = 32;  // Columns of a tile of bfloat16: what one multiplication sums over.
constexpr int64_t kBlock = 32;  // Places and channels of what one thread computes at a time: 2 x 2 tiles.
constexpr int64_t kTileSize = kTile * kDepth;
constexpr int64_t kParts = 3;

struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline int64_t div_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Two times 16 float32 as 32 bfloat16: rounded, what is then left of them rounded, and what is left of that. The order
// is that of memory, or in pairs: first[0], second[0], first[1], ... Of infinity NaN is left, and so sums of it are
// NaN.
struct Parts {
    __m512i part[kParts];
};

inline Parts split(__m512 first, __m512 second) {
    Parts parts;
    for (int64_t p = 0; p < kParts; ++p) {
        parts.part[p] = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(parts.part[p]));
        const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(parts.part[p], 1));
        first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
        second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    }
    return parts;
}

inline Parts split_pairs(__m512 first, __m512 second) {
    alignas(64) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i pairs = _mm512_load_si512(order), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    Parts parts;
    for (int64_t p = 0; p < kParts; ++p) {
        parts.part[p] = _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(second, first));
        first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(parts.part[p], 16)));
        second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_and_si512(parts.part[p], upper)));
    }
    return parts;
}

// The same, cut off instead of rounded: less than half the work, and exact, too, for float32 has 24 bits. What six
// products leave out is up to four times as much, a rounding of float32.
inline Parts cut(__m512 first, __m512 second, __m512i order) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    Parts parts;
    for (int64_t p = 0; p < kParts; ++p) {
        const __m512i a = _mm512_castps_si512(first), b = _mm512_castps_si512(second);
        parts.part[p] = _mm512_permutex2var_epi16(a, order, b);
        first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
        second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
    }
    return parts;
}

inline Parts cut(__m512 first, __m512 second) {
    alignas(64) static constexpr std::uint16_t order[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                            23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                            45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return cut(first, second, _mm512_load_si512(order));
}

inline Parts cut_pairs(__m512 first, __m512 second) {
    alignas(64) static constexpr std::uint16_t order[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11,
                                                            43, 13, 45, 15, 47, 17, 49, 19, 51, 21, 53,
                                                            23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
    return cut(first, second, _mm512_load_si512(order));
}

// 16 rows of 16 lanes to 16 columns.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    }
    for (int j = 0; j < 8; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
    }
}

inline __mmask16 lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline void multiply_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// What one multiplication takes: the first part's first tile, and in elements the distances to the next part and to the
// second tile.
struct Factor {
    const bfloat16* data;
    int64_t part, second;
};

// Tiles 0 to 3 += left (2 x 16 rows of 32, `left_bytes` apart) times right (2 tiles): 32 x 32 sums over 32 numbers.
// between: is called after each four products, parts * (parts + 1) / 2 times.
template <int64_t parts, class Between>
inline void multiply(const Factor& left, int64_t left_bytes, const Factor& right, const Between& between) {
    for (int64_t p = 0; p < parts; ++p) {
        _tile_loadd(4, left.data + p * left.part, left_bytes);
        _tile_loadd(5, left.data + p * left.part + left.second, left_bytes);
        for (int64_t q = parts - 1 - p; q >= 0; --q) {
            if (p == 0 || q > 0 || p < parts - 1) {  // Else it is there already.
                _tile_loadd(6, right.data + q * right.part, 64);
                _tile_loadd(7, right.data + q * right.part + right.second, 64);
            }
            multiply_tiles();
            between();
        }
    }
}

template <int64_t parts>
inline void multiply(const Factor& left, int64_t left_bytes, const Factor& right) {
    multiply<parts>(left, left_bytes, right, [] {});
}

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// `row` elements lie between two rows.
inline void load_sums(const float* block, int64_t row = kBlock) {
    _tile_loadd(0, block, row * 4);
    _tile_loadd(1, block + kTile, row * 4);
    _tile_loadd(2, block + kTile * row, row * 4);
    _tile_loadd(3, block + kTile * row + kTile, row * 4);
}

inline void store_sums(float* block, int64_t row = kBlock) {
    _tile_stored(0, block, row * 4);
    _tile_stored(1, block + kTile, row * 4);
    _tile_stored(2, block + kTile * row, row * 4);
    _tile_stored(3, block + kTile * row + kTile, row * 4);
}

}  // namespace amx

#endif
