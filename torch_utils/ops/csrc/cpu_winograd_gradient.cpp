// Gradients of 3x3 weights by Winograd's algorithm: the adjoint of the convolution, product by product.
//
// dW = G' [(A dY A') . (B' X B)] G, summed over all tiles: for each place a product of two matrices [tiles][channels],
// which are taken in chunks that stay in a cache. The order of sums depends on the shapes alone.

#include "cpu_amx.h"
#include "cpu_winograd_tiles.h"

#include <vector>

namespace {

using namespace winograd;

constexpr int64_t kMostFloats = 6 << 20;  // Of transformed tiles.

template <class F>
using Outputs = Pixels<F, F::kOut>;

// kLanes channels from `channel` on, of which there are `count`: calls take(place, numbers) at all places.
template <class F, class Take>
inline void transform_gradient(const Pixels<F, F::kOut>& pixels, int64_t channel, int64_t count, const Take& take) {
    constexpr int size = F::kOut, wide = F::kIn;
    Vec d[size * size], half[wide * size];
    for (int p = 0; p < size * size; ++p) d[p] = load(pixels.at[p] + channel, count);
    for (int j = 0; j < size; ++j) F::spread(d + j, size, half + j, size);
    for (int i = 0; i < wide; ++i) {
        Vec line[wide];
        F::spread(half + i * size, 1, line, 1);
        for (int j = 0; j < wide; ++j) take(i * wide + j, line[j]);
    }
}

// Gradients of a result's tiles `first` to `last` as [place][panel][tile][kPanel].
template <class F>
void transform_gradients(const Images& g, const Tiling& tiling, int64_t first, int64_t last, const float* zeros,
                         float* v, int64_t panel, int64_t place) {
    for (int64_t tile = first; tile < last; ++tile) {
        const Outputs<F> pixels(g, tiling, tile, zeros);
        for (int64_t c = 0; c < g.channels; c += kLanes) {
            float* to = v + c / kPanel * panel + (tile - first) * kPanel + c % kPanel;
            transform_gradient(pixels, c, g.channels - c, [&](int p, Vec lanes) { store(to + p * place, lanes); });
        }
    }
}

// Sums [place][panel][in][kPanel], of which `rows` lie between two panels, to the gradient [out][in][3][3].
template <class F>
void gather_weights(const float* sums, int64_t rows, int64_t out, int64_t in, float* w) {
    constexpr int size = F::kIn;
    const int64_t panels = div_up(out, kPanel), place = panels * rows * kPanel;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < panels * in; ++task) {
        const int64_t panel = task / in, c = task % in;
        for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
            Vec u[size * size], half[3 * size], kernel[9];
            for (int p = 0; p < size * size; ++p) u[p] = load(sums + p * place + (panel * rows + c) * kPanel + lane);
            for (int j = 0; j < size; ++j) F::gather(u + j, size, half + j, size);
            for (int i = 0; i < 3; ++i) F::gather(half + i * size, 1, kernel + i * 3, 1);
            const int64_t first = panel * kPanel + lane, count = std::min(kLanes, out - first);
            float taps[9][kLanes];
            for (int t = 0; t < 9; ++t) store(taps[t], kernel[t]);
            for (int64_t o = 0; o < count; ++o)
                for (int t = 0; t < 9; ++t) w[((first + o) * in + c) * 9 + t] = taps[t][o];
        }
    }
}

template <class F>
int correlate(const Images& x, const Images& g, float* w) {
    constexpr int64_t places = F::kIn * F::kIn;
    const Tiling tiling(x.count, g.height, g.width, F::kOut);
    const int64_t in = x.channels, row = round_up(in, kLanes) + kGap, panels = div_up(g.channels, kPanel);
    const int64_t fit = kMostFloats / (places * (row + panels * kPanel));
    const int64_t step = std::min(tiling.count, std::max<int64_t>(fit, 64));
    const int64_t x_place = step * row + kGap, panel_size = step * kPanel + kGap, g_place = panels * panel_size;
    const int64_t zeros = std::max(row, panels * kPanel), sums_size = places * panels * in * kPanel;
    float* memory = shared_space.get(zeros + sums_size + places * (x_place + g_place));
    if (memory == nullptr) return 1;
    std::memset(memory, 0, static_cast<std::size_t>(zeros) * 4);
    float *sums = memory + zeros, *inputs = sums + sums_size, *gradients = inputs + places * x_place;
#pragma omp parallel
    {
        for (int64_t chunk = 0; chunk < tiling.count; chunk += step) {
            const int64_t last = std::min(chunk + step, tiling.count);
#pragma omp for schedule(static)
            for (int64_t tile = chunk; tile < last; ++tile) {
                const int64_t at = tile - chunk;
                transform_inputs<F>(x, tiling, tile, tile + 1, memory, inputs + at * row, row, x_place);
                transform_gradients<F>(g, tiling, tile, tile + 1, memory, gradients + at * kPanel, panel_size, g_place);
            }
#pragma omp for schedule(static)
            for (int64_t task = 0; task < places * panels; ++task) {
                const int64_t p = task / panels, panel = task % panels;
                multiply_rows(in, inputs + p * x_place, 1, row, gradients + p * g_place + panel * panel_size,
                              last - chunk, sums + task * in * kPanel, kPanel, chunk > 0);
            }
        }
        gather_weights<F>(sums, in, g.channels, in, w);
    }
    return 0;
}

#if defined(LIA_HAS_AMX)

// ---------------------------------------------------------------------------------------------------------------------
// On matrix tiles: as in cpu_winograd_amx.cpp products of sums of three bfloat16. Sums go over tiles of the image, 32
// at a time. Both factors lie as [place][channel / 16][tile / 32][part] in cells of 1 kB.

static_assert(kPanel == amx::kBlock);
constexpr int64_t kCell = amx::kParts * amx::kTileSize;
constexpr int64_t kNumbers =
    1 << 15;  // Of one place that are multiplied at a time: all of them are to stay in a cache.

// 32 tiles of 16 channels from [place][tile][16]: of each pair of tiles a row, or of each channel.
template <bool by_channel>
void pack_cells(const Vec* v, int64_t places, amx::bfloat16* cells, int64_t place) {
    for (int64_t p = 0; p < places; ++p, v += amx::kDepth, cells += place) {
        __m512i rows[amx::kParts][amx::kTile];
        for (int64_t i = 0; i < amx::kTile; ++i) {
            const amx::Parts pair = amx::cut_pairs((__m512)v[2 * i], (__m512)v[2 * i + 1]);
            for (int64_t q = 0; q < amx::kParts; ++q) rows[q][i] = pair.part[q];
        }
        for (int64_t q = 0; q < amx::kParts; ++q) {
            if (by_channel) amx::transpose(rows[q]);
            for (int64_t i = 0; i < amx::kTile; ++i)
                _mm512_store_si512(cells + q * amx::kTileSize + i * amx::kDepth, rows[q][i]);
        }
    }
}

// Where each of some tiles' pixels are.
template <class At>
std::vector<At> all(const Images& images, const Tiling& tiling, int64_t first, int64_t count, const float* zeros) {
    std::vector<At> found;
    for (int64_t tile = first; tile < first + count; ++tile) found.emplace_back(images, tiling, tile, zeros);
    return found;
}

// At most 32 tiles, of which kLanes channels are transformed by `transform(pixels, channel, take)`.
template <bool by_channel, int64_t places, class Pixels, class Transform>
void transform_cells(const Pixels* pixels, int64_t count, int64_t channels, const Transform& transform,
                     amx::bfloat16* cells, int64_t group, int64_t place) {
    Vec v[places * amx::kDepth];
    for (int64_t c = 0; c < channels; c += kLanes) {
        for (int64_t tile = 0; tile < amx::kDepth; ++tile) {
            Vec* to = v + tile;
            if (tile < count)
                transform(pixels[tile], c, [&](int p, Vec lanes) { to[p * amx::kDepth] = lanes; });
            else
                for (int64_t p = 0; p < places; ++p) to[p * amx::kDepth] = Vec{};
        }
        pack_cells<by_channel>(v, places, cells + c / kLanes * group, place);
    }
}

template <class F>
int correlate_tiles(const Images& x, const Images& g, float* w) {
    constexpr int64_t places = F::kIn * F::kIn;
    const Tiling tiling(x.count, g.height, g.width, F::kOut);
    const int64_t rows = round_up(x.channels, amx::kBlock), columns = round_up(g.channels, amx::kBlock);
    const int64_t fit = std::max<int64_t>(1, kNumbers / std::max(rows, columns) / amx::kDepth);
    const int64_t steps = std::min(fit, div_up(tiling.count, amx::kDepth)), group = steps * kCell;
    const int64_t x_place = rows / amx::kTile * group + 32, g_place = columns / amx::kTile * group + 32;  // See kGap.
    const int64_t zeros = std::max(rows, columns), panels = columns / kPanel, sums_size = places * columns * rows;
    float* memory = shared_space.get(zeros + sums_size + places * (x_place + g_place) / 2);
    if (memory == nullptr) return 1;
    std::memset(memory, 0, static_cast<std::size_t>(zeros) * 4);
    float* sums = memory + zeros;
    auto *inputs = reinterpret_cast<amx::bfloat16*>(sums + sums_size), *gradients = inputs + places * x_place;
#pragma omp parallel
    {
        const amx::TileConfig config;
        _tile_loadconfig(&config);
        for (int64_t chunk = 0; chunk < tiling.count; chunk += steps * amx::kDepth) {
            const int64_t there = std::min(steps, div_up(tiling.count - chunk, amx::kDepth));
#pragma omp for schedule(static)
            for (int64_t task = 0; task < 2 * there; ++task) {
                const int64_t step = task / 2, first = chunk + step * amx::kDepth;
                const int64_t count = std::min(amx::kDepth, tiling.count - first);
                if (task % 2 == 0)
                    transform_cells<true, places>(
                        all<Inputs<F>>(x, tiling, first, count, memory).data(), count, rows,
                        [&](const Inputs<F>& at, int64_t c, const auto& take) {
                            transform_input(at, c, x.channels - c, take);
                        },
                        inputs + step * kCell, group, x_place);
                else
                    transform_cells<false, places>(
                        all<Outputs<F>>(g, tiling, first, count, memory).data(), count, columns,
                        [&](const Outputs<F>& at, int64_t c, const auto& take) {
                            transform_gradient(at, c, g.channels - c, take);
                        },
                        gradients + step * kCell, group, g_place);
            }
#pragma omp for schedule(static)
            for (int64_t task = 0; task < places * panels; ++task) {
                const int64_t p = task / panels;
                const amx::bfloat16* right = gradients + p * g_place + task % panels * 2 * group;
                for (int64_t row = 0; row < rows; row += amx::kBlock) {
                    const amx::bfloat16* left = inputs + p * x_place + row / amx::kTile * group;
                    float* block = sums + (task * rows + row) * kPanel;
                    chunk == 0 ? amx::zero_sums() : amx::load_sums(block);
                    for (int64_t step = 0; step < there; ++step)
                        amx::multiply<amx::kParts>({left + step * kCell, amx::kTileSize, group}, 64,
                                                   {right + step * kCell, amx::kTileSize, group});
                    amx::store_sums(block);
                }
            }
        }
        _tile_release();
        gather_weights<F>(sums, rows, g.channels, x.channels, w);
    }
    return 0;
}

#endif

}  // namespace

// w [out, in, 3, 3], dense: the sum over n, y, x of g[n, y, x, out] * x[n, y + ky - padding, ..., in].
// Returns 0; 1 for want of memory. With `amx` on matrix tiles, if it was compiled for them.
extern "C" int winograd_weight_gradient(int64_t tile, const float* g, const float* x, float* w,
                                        const int64_t* n_h_w_out, const int64_t* h_w_in, const int64_t* padding,
                                        int64_t amx) {
    const Images images{x, n_h_w_out[0], h_w_in[0], h_w_in[1], h_w_in[2], padding[0], padding[1]};
    const Images gradient{g, n_h_w_out[0], n_h_w_out[1], n_h_w_out[2], n_h_w_out[3], 0, 0};
#if defined(LIA_HAS_AMX)
    if (amx) return (tile == 4 ? correlate_tiles<F4> : correlate_tiles<F2>)(images, gradient, w);
#endif
    return (tile == 4 ? correlate<F4> : correlate<F2>)(images, gradient, w);
}
