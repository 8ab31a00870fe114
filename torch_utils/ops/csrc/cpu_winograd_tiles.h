// Batches cut into tiles, their transformed inputs, and memory that is kept from call to call.

#pragma once

#include "cpu_winograd.h"
#include "cpu_workspace.h"

#include <omp.h>
#if defined(__linux__)
#include <unistd.h>
#endif

namespace winograd {

constexpr int64_t kGap = 16;  // Elements between what would else lie a power of two apart, and share a cache's lines.

inline thread_local lia::Workspace shared_space, own_space, weights_space;

// Of a core, in bytes.
inline int64_t cache_size() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return std::min<int64_t>(size, 4 << 20);
#endif
    return 512 << 10;
}

struct Images {
    const float* data;
    int64_t count, height, width, channels;
    int64_t pad_y, pad_x;  // Zeros before the first row and column.
};

struct Result {
    float* data;
    int64_t height, width, channels;
};

struct Tiling {
    int64_t rows, columns, count;

    Tiling(int64_t images, int64_t height, int64_t width, int64_t size)
        : rows(div_up(height, size)), columns(div_up(width, size)), count(images * rows * columns) {}
};

// A tile's image and the first row and column of its outputs.
struct Corner {
    int64_t image, y, x;

    Corner(const Tiling& tiling, int64_t tile, int64_t size)
        : image(tile / (tiling.rows * tiling.columns)),
          y(tile / tiling.columns % tiling.rows * size),
          x(tile % tiling.columns * size) {}
};

struct Weights {
    const float* data;
    int64_t out, in;
    int64_t out_stride, in_stride, y_stride, x_stride;  // In elements.
    bool flip;                                          // Whether the kernel is turned by half a circle.

    // Of one input channel, [tap][kPanel outputs], with zeros for the channels that there are not.
    void gather(int64_t first_out, int64_t i, float* taps) const {
        const int64_t outs = i < in ? std::min(kPanel, out - first_out) : 0;
        const float* corner = data + first_out * out_stride + i * in_stride;
        for (int t = 0; t < 9; ++t) {
            float* row = taps + (flip ? 8 - t : t) * kPanel;
            const float* tap = corner + t / 3 * y_stride + t % 3 * x_stride;
            for (int64_t o = 0; o < outs; ++o) row[o] = tap[o * out_stride];
            for (int64_t o = outs; o < kPanel; ++o) row[o] = 0;
        }
    }
};

// kLanes outputs of what `gather` gave, at all places.
template <class F>
inline void transform_weight(const float* taps, Vec* u) {
    Vec kernel[9], half[F::kIn * 3];
    for (int t = 0; t < 9; ++t) kernel[t] = load(taps + t * kPanel);
    for (int j = 0; j < 3; ++j) F::weight(kernel + j, 3, half + j, 3);
    for (int i = 0; i < F::kIn; ++i) F::weight(half + i * 3, 1, u + i * F::kIn, 1);
}

// Where the numbers of a tile's size x size pixels are: their channels, or zeros around the image.
template <class F, int size>
struct Pixels {
    const float* at[size * size];

    Pixels(const Images& x, const Tiling& tiling, int64_t tile, const float* zeros) {
        const Corner corner(tiling, tile, F::kOut);
        for (int i = 0; i < size; ++i) {
            for (int j = 0; j < size; ++j) {
                const int64_t y = corner.y + i - x.pad_y, z = corner.x + j - x.pad_x;
                const bool inside = y >= 0 && y < x.height && z >= 0 && z < x.width;
                at[i * size + j] = inside ? x.data + ((corner.image * x.height + y) * x.width + z) * x.channels : zeros;
            }
        }
    }
};

template <class F>
using Inputs = Pixels<F, F::kIn>;

// kLanes channels from `channel` on, of which there are `count`: calls take(place, numbers) at all places.
template <class F, class Take>
inline void transform_input(const Pixels<F, F::kIn>& pixels, int64_t channel, int64_t count, const Take& take) {
    constexpr int size = F::kIn;
    Vec d[size * size], half[size * size];
    for (int p = 0; p < size * size; ++p) d[p] = load(pixels.at[p] + channel, count);
    for (int j = 0; j < size; ++j) F::input(d + j, size, half + j, size);
    for (int i = 0; i < size; ++i) {
        Vec line[size];
        F::input(half + i * size, 1, line, 1);
        for (int j = 0; j < size; ++j) take(i * size + j, line[j]);
    }
}

// Tiles `first` to `last` as [place][tile][channel], of which rows and places lie `row` and `place` elements apart.
template <class F>
void transform_inputs(const Images& x, const Tiling& tiling, int64_t first, int64_t last, const float* zeros, float* v,
                      int64_t row, int64_t place) {
    for (int64_t tile = first; tile < last; ++tile) {
        const Inputs<F> pixels(x, tiling, tile, zeros);
        float* to = v + (tile - first) * row;
        for (int64_t c = 0; c < x.channels; c += kLanes) {
            transform_input(pixels, c, x.channels - c, [&](int p, Vec v) { store(to + p * place + c, v); });
        }
    }
}

// Products [place][tile][channel] of tiles `first` to `last`, of which `channels` from `channel` on are there.
template <class F>
void transform_outputs(const float* m, int64_t row, int64_t place, const Tiling& tiling, int64_t first, int64_t last,
                       int64_t channel, int64_t channels, const Result& out) {
    constexpr int in = F::kIn, size = F::kOut;
    for (int64_t tile = first; tile < last; ++tile) {
        const Corner corner(tiling, tile, size);
        const int64_t rows = std::min<int64_t>(size, out.height - corner.y);
        const int64_t columns = std::min<int64_t>(size, out.width - corner.x);
        float* pixel = out.data + ((corner.image * out.height + corner.y) * out.width + corner.x) * out.channels;
        for (int64_t c = 0; c < channels; c += kLanes) {
            const float* from = m + (tile - first) * row + c;
            Vec half[size * in];
            for (int j = 0; j < in; ++j) {
                Vec line[in];
                for (int i = 0; i < in; ++i) line[i] = load(from + (i * in + j) * place);
                F::output(line, 1, half + j, in);
            }
            for (int i = 0; i < rows; ++i) {
                Vec line[size];
                F::output(half + i * in, 1, line, 1);
                for (int j = 0; j < columns; ++j)
                    store(pixel + (i * out.width + j) * out.channels + channel + c, line[j], channels - c);
            }
        }
    }
}

}  // namespace winograd
