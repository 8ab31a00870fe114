// Float32 convolutions with 3x3 kernels and stride 1 by Winograd's algorithm, on the matrix tiles of newer Intel CPUs.
//
// As in cpu_winograd.cpp, but transformed inputs and weights are sums of three bfloat16 each (cpu_amx.h), as exact as
// float32, of which the tiles multiply six pairs in less than half the time that the vector units need for one.
// Everything that is multiplied lies in tiles of 1 kB in the order in which it is read.

#include "cpu_amx.h"
#include "cpu_winograd_tiles.h"

#if defined(LIA_HAS_AMX)

namespace {

using namespace winograd;
using amx::bfloat16;
using amx::kBlock;

static_assert(kPanel == kBlock);
constexpr int64_t kCell = amx::kParts * amx::kTileSize;  // Elements of 16 rows of 32 numbers.
constexpr int64_t kPlaceGap = 32;                        // As kGap, a cache line.

// A panel of 32 output channels has for each place and each 32 input channels two cells, part by part.
inline int64_t panel_place(int64_t steps) { return steps * 2 * kCell; }

// [panel][place][in / 32][part][2][16 pairs of inputs][16 outputs][2]
template <class F>
void transform_weights(const Weights& w, bfloat16* packed) {
    constexpr int places = F::kIn * F::kIn;
    const int64_t panels = div_up(w.out, kBlock), steps = div_up(w.in, amx::kDepth);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < panels * steps; ++task) {
        const int64_t panel = task / steps, step = task % steps;
        for (int64_t pair = 0; pair < amx::kTile; ++pair) {
            float taps[2][9 * kBlock];
            for (int64_t i = 0; i < 2; ++i) w.gather(panel * kBlock, step * amx::kDepth + 2 * pair + i, taps[i]);
            for (int64_t half = 0; half < 2; ++half) {
                Vec first[places], second[places];
                transform_weight<F>(taps[0] + half * kLanes, first);
                transform_weight<F>(taps[1] + half * kLanes, second);
                for (int64_t p = 0; p < places; ++p) {
                    const amx::Parts parts = amx::cut_pairs((__m512)first[p], (__m512)second[p]);
                    bfloat16* row = packed + (panel * places + p) * panel_place(steps) + step * 2 * kCell +
                                    half * amx::kTileSize + pair * amx::kDepth;
                    for (int64_t q = 0; q < amx::kParts; ++q)
                        _mm512_storeu_si512(row + q * 2 * amx::kTileSize, parts.part[q]);
                }
            }
        }
    }
}

// Tiles `first` to `last` as rows of [place][row / 16][in / 32][part][16][32], beginning with `row`.
template <class F>
void transform_rows(const Images& x, const Tiling& tiling, int64_t first, int64_t last, const float* zeros, bfloat16* v,
                    int64_t row, int64_t place) {
    constexpr int places = F::kIn * F::kIn;
    const int64_t steps = div_up(x.channels, amx::kDepth);
    for (int64_t tile = first; tile < last; ++tile, ++row) {
        const Inputs<F> pixels(x, tiling, tile, zeros);
        bfloat16* to = v + row / amx::kTile * steps * kCell + row % amx::kTile * amx::kDepth;
        for (int64_t step = 0; step < steps; ++step, to += kCell) {
            Vec low[places], high[places];
            const int64_t c = step * amx::kDepth;
            transform_input(pixels, c, x.channels - c, [&](int p, Vec v) { low[p] = v; });
            if (x.channels - c > kLanes)
                transform_input(pixels, c + kLanes, x.channels - c - kLanes, [&](int p, Vec v) { high[p] = v; });
            else
                std::memset(high, 0, sizeof high);
            for (int64_t p = 0; p < places; ++p) {
                const amx::Parts parts = amx::cut((__m512)low[p], (__m512)high[p]);
                for (int64_t q = 0; q < amx::kParts; ++q)
                    _mm512_store_si512(to + p * place + q * amx::kTileSize, parts.part[q]);
            }
        }
    }
}

// How the work is cut.
struct Plan {
    int64_t tiles;     // That a thread takes at a time: a multiple of kBlock.
    int64_t panels;    // Of output channels that it takes at a time.
    int64_t together;  // Tiles that all threads transform together, or 0 if each transforms its own.

    // A core's second cache, 2 MB where there are such tiles, is to hold some of the inputs and a panel of weights of
    // one place; weights are read anew for each `tiles`, so these had better be many.
    Plan(int64_t places, int64_t steps, int64_t all, int64_t count, int64_t threads) {
        tiles = std::min<int64_t>(round_up(div_up(count, threads), kBlock), steps > 4 ? 64 : 128);
        panels = std::min<int64_t>(all, 4);
        together = 0;
        if (div_up(count, tiles) >= threads) return;  // No thread is to be idle.
        const int64_t room = (int64_t{32} << 20) / (places * steps * amx::kParts * amx::kDepth * 2);
        together = std::min(round_up(count, tiles), std::max(tiles, room / tiles * tiles));
        while (panels > 1 && together / tiles * div_up(all, panels) < 2 * threads) panels = (panels + 1) / 2;
    }
};

// `count` rows, a multiple of kBlock, times a panel's weights of one place. Meanwhile the weights at `next` come
// nearer: the tiles' loads, which go on when data is there, would wait for what lies beyond the second cache.
inline void multiply_panel(const bfloat16* rows, int64_t group, const bfloat16* u, int64_t steps, int64_t count,
                           const bfloat16* next, float* m, int64_t m_row) {
    const auto* line = reinterpret_cast<const char*>(next);
    const int64_t lines = panel_place(1) / kBlock / 6 * kBlock / count;  // After each of a step's six products.
    for (int64_t row = 0; row < count; row += kBlock, rows += 2 * group) {
        amx::zero_sums();
        for (int64_t step = 0; step < steps; ++step)
            amx::multiply<amx::kParts>({rows + step * kCell, amx::kTileSize, group}, 64,
                                       {u + step * 2 * kCell, 2 * amx::kTileSize, amx::kTileSize}, [&] {
                                           for (int64_t i = 0; i < lines; ++i, line += 64)
                                               _mm_prefetch(line, _MM_HINT_T1);
                                       });
        amx::store_sums(m + row * m_row, m_row);
    }
}

template <class F>
int convolve(const Images& x, const bfloat16* packed, const Result& out) {
    constexpr int64_t places = F::kIn * F::kIn;
    const Tiling tiling(x.count, out.height, out.width, F::kOut);
    const int64_t steps = div_up(x.channels, amx::kDepth), all = div_up(out.channels, kBlock);
    const Plan plan(places, steps, all, tiling.count, omp_get_max_threads());
    const int64_t groups = div_up(all, plan.panels), zeros_size = round_up(x.channels, amx::kDepth);
    const int64_t out_row = plan.panels * kBlock, out_place = plan.tiles * out_row + kGap;
    const int64_t in_tiles = plan.together ? plan.together : plan.tiles;
    const int64_t in_group = steps * kCell, in_place = in_tiles / amx::kTile * in_group + kPlaceGap;
    const int64_t in_size = places * in_place / 2;  // In floats.
    float* shared = shared_space.get(zeros_size + (plan.together ? in_size : 0));
    if (shared == nullptr) return 1;
    std::memset(shared, 0, static_cast<std::size_t>(zeros_size) * 4);
    int failed = 0;

    // Tiles `first` to `last`, whose inputs are at v, and a group of output channels.
    const auto finish = [&](const bfloat16* v, int64_t first, int64_t last, int64_t group, float* m) {
        const int64_t begin = group * plan.panels, end = std::min(all, begin + plan.panels);
        const int64_t size = panel_place(steps), rows = round_up(last - first, kBlock);
        for (int64_t p = 0; p < places; ++p) {
            for (int64_t panel = begin; panel < end; ++panel) {
                const bfloat16* u = packed + (panel * places + p) * size;
                const bfloat16* next = panel + 1 < end ? u + places * size : packed + (begin * places + p + 1) * size;
                multiply_panel(v + p * in_place, in_group, u, steps, rows, next,
                               m + p * out_place + (panel - begin) * kBlock, out_row);
            }
        }
        const int64_t channel = begin * kBlock;
        transform_outputs<F>(m, out_row, out_place, tiling, first, last, channel,
                             std::min(end * kBlock, out.channels) - channel, out);
    };

#pragma omp parallel reduction(| : failed)
    {
        const amx::TileConfig config;
        _tile_loadconfig(&config);
        float* own = own_space.get(places * out_place + (plan.together ? 0 : in_size));
        failed = own == nullptr;
        auto* inputs = reinterpret_cast<bfloat16*>(plan.together ? shared + zeros_size : own + places * out_place);
        const int64_t chunk_size = plan.together ? plan.together : tiling.count;
        for (int64_t chunk = 0; chunk < tiling.count; chunk += chunk_size) {
            const int64_t end = std::min(chunk + chunk_size, tiling.count), blocks = div_up(end - chunk, plan.tiles);
            if (plan.together) {
#pragma omp for schedule(static)
                for (int64_t tile = chunk; tile < end; ++tile)
                    transform_rows<F>(x, tiling, tile, tile + 1, shared, inputs, tile - chunk, in_place);
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < blocks * groups; ++task) {
                    const int64_t first = task % blocks * plan.tiles, group = task / blocks;
                    if (own != nullptr)
                        finish(inputs + first / amx::kTile * in_group, chunk + first,
                               std::min(chunk + first + plan.tiles, end), group, own);
                }
            } else {
#pragma omp for schedule(dynamic, 1)
                for (int64_t block = 0; block < blocks; ++block) {
                    const int64_t first = block * plan.tiles, last = std::min(first + plan.tiles, end);
                    if (own == nullptr) continue;
                    transform_rows<F>(x, tiling, first, last, shared, inputs, 0, in_place);
                    for (int64_t group = 0; group < groups; ++group) finish(inputs, first, last, group, own);
                }
            }
        }
        _tile_release();
    }
    return failed;
}

}  // namespace

// Entry points, as in cpu_winograd.cpp, with packed weights of their own kind.

extern "C" {

// Bytes of packed weights.
int64_t winograd_amx_weights_size(int64_t tile, int64_t out, int64_t in) {
    return (tile + 2) * (tile + 2) * div_up(out, kBlock) * panel_place(div_up(in, amx::kDepth)) * 2;
}

void winograd_amx_weights(int64_t tile, const float* w, void* packed, const int64_t* out_in, const int64_t* strides,
                          int64_t flip) {
    lia::ask_large_pages(packed, winograd_amx_weights_size(tile, out_in[0], out_in[1]));
    const Weights weights{w, out_in[0], out_in[1], strides[0], strides[1], strides[2], strides[3], flip != 0};
    (tile == 4 ? transform_weights<F4> : transform_weights<F2>)(weights, static_cast<bfloat16*>(packed));
}

int winograd_amx_conv2d(int64_t tile, const float* x, const void* packed, float* y, const int64_t* n_h_w_in,
                        const int64_t* h_w_out, const int64_t* padding) {
    const Images images{x, n_h_w_in[0], n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], padding[0], padding[1]};
    const Result result{y, h_w_out[0], h_w_out[1], h_w_out[2]};
    return (tile == 4 ? convolve<F4> : convolve<F2>)(images, static_cast<const bfloat16*>(packed), result);
}

}  // extern "C"

#endif
