// Float32 convolutions with 3x3 kernels and stride 1 by Winograd's algorithm, on any CPU's vector units.
//
// The tiles of a batch are numbered through and taken in blocks: inputs are transformed, [place][tile][channel], each
// place is multiplied by its own matrix of weights, and the products are transformed to outputs, all while they are in
// a cache. Where few tiles fill a core's cache because there are many channels, all threads transform inputs together,
// and then share out blocks of tiles and of output channels.
//
// Images are NHWC, dense. Results don't depend on the number of threads, nor on the size of blocks.

#include "cpu_winograd_tiles.h"

namespace {

using namespace winograd;

// ---------------------------------------------------------------------------------------------------------------------
// Weights

// [panel][place][in][kPanel]
template <class F>
void transform_weights(const Weights& w, float* packed) {
    constexpr int places = F::kIn * F::kIn;
    const int64_t panels = div_up(w.out, kPanel), steps = div_up(w.in, 64);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < panels * steps; ++task) {
        const int64_t panel = task / steps, last = std::min(w.in, (task % steps + 1) * 64);
        float* base = packed + panel * places * w.in * kPanel;
        for (int64_t in = task % steps * 64; in < last; ++in) {
            float taps[9 * kPanel];
            w.gather(panel * kPanel, in, taps);
            for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
                Vec u[places];
                transform_weight<F>(taps + lane, u);
                for (int p = 0; p < places; ++p) store(base + (p * w.in + in) * kPanel + lane, u[p]);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolution

// How the work is cut.
struct Plan {
    int64_t row;       // Elements of a transformed tile's channels.
    int64_t tiles;     // That a thread takes at a time.
    int64_t panels;    // Of output channels that it takes at a time.
    int64_t together;  // Tiles that all threads transform together, or 0 if each transforms its own.

    Plan(int64_t places, int64_t in, int64_t out, int64_t count, int64_t threads) {
        row = round_up(in, kLanes);
        const int64_t all = div_up(out, kPanel), cache = cache_size() / 4;
        const int64_t fit = cache / 2 / (places * row) / kMostRows * kMostRows;
        const int64_t least = 2 * kMostRows;
        together = 0;
        tiles = std::min<int64_t>(fit, 8 * kMostRows);
        const int64_t share = div_up(div_up(count, threads), kMostRows) * kMostRows;  // No thread is to be idle.
        if (tiles >= least && div_up(count, least) >= threads) {
            tiles = std::max(least, std::min(tiles, share));
            if (div_up(count, tiles) < 4 * threads && tiles > 2 * least)
                tiles = std::max(least, tiles / 2 / kMostRows * kMostRows);
        } else {
            tiles = std::min(4 * kMostRows, round_up(count, kMostRows));
            together = std::max(tiles, (int64_t{6} << 20) / (places * row) / tiles * tiles);  // 24 MB.
            together = std::min(together, round_up(count, tiles));
        }
        panels = std::max<int64_t>(1, std::min(all, cache / 4 / (places * tiles * kPanel)));
        if (together != 0)
            while (panels > 1 && div_up(together, tiles) * div_up(all, panels) < 2 * threads) panels = (panels + 1) / 2;
    }
};

template <class F>
int convolve(const Images& x, const float* packed, const Result& out) {
    constexpr int64_t places = F::kIn * F::kIn;
    const Tiling tiling(x.count, out.height, out.width, F::kOut);
    const Plan plan(places, x.channels, out.channels, tiling.count, omp_get_max_threads());
    const int64_t all = div_up(out.channels, kPanel), groups = div_up(all, plan.panels);
    const int64_t out_row = plan.panels * kPanel, out_place = plan.tiles * out_row + kGap;
    const int64_t in_tiles = plan.together ? plan.together : plan.tiles, in_place = in_tiles * plan.row + kGap;
    float* shared = shared_space.get(plan.row + (plan.together ? places * in_place : 0));
    if (shared == nullptr) return 1;
    std::memset(shared, 0, static_cast<std::size_t>(plan.row) * 4);
    int failed = 0;

    // Tiles `first` to `last`, whose inputs are at v, and a group of output channels.
    const auto finish = [&](const float* v, int64_t first, int64_t last, int64_t group, float* m) {
        const int64_t begin = group * plan.panels, end = std::min(all, begin + plan.panels);
        for (int64_t p = 0; p < places; ++p)
            for (int64_t panel = begin; panel < end; ++panel)
                multiply_rows(last - first, v + p * in_place, plan.row, 1,
                              packed + (panel * places + p) * x.channels * kPanel, x.channels,
                              m + p * out_place + (panel - begin) * kPanel, out_row, false);
        const int64_t channel = begin * kPanel;
        transform_outputs<F>(m, out_row, out_place, tiling, first, last, channel,
                             std::min(end * kPanel, out.channels) - channel, out);
    };

#pragma omp parallel reduction(| : failed)
    {
        float* own = own_space.get(places * out_place + (plan.together ? 0 : places * in_place));
        failed = own == nullptr;
        float* inputs = plan.together ? shared + plan.row : own + places * out_place;
        const int64_t step = plan.together ? plan.together : tiling.count;
        for (int64_t chunk = 0; chunk < tiling.count; chunk += step) {
            const int64_t end = std::min(chunk + step, tiling.count), blocks = div_up(end - chunk, plan.tiles);
            if (plan.together) {
#pragma omp for schedule(static)
                for (int64_t tile = chunk; tile < end; ++tile)
                    transform_inputs<F>(x, tiling, tile, tile + 1, shared, inputs + (tile - chunk) * plan.row, plan.row,
                                        in_place);
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < blocks * groups; ++task) {
                    const int64_t first = task % blocks * plan.tiles, group = task / blocks;
                    if (own != nullptr)
                        finish(inputs + first * plan.row, chunk + first, std::min(chunk + first + plan.tiles, end),
                               group, own);
                }
            } else {
#pragma omp for schedule(dynamic, 1)
                for (int64_t block = 0; block < blocks; ++block) {
                    const int64_t first = block * plan.tiles, last = std::min(first + plan.tiles, end);
                    if (own == nullptr) continue;
                    transform_inputs<F>(x, tiling, first, last, shared, inputs, plan.row, in_place);
                    for (int64_t group = 0; group < groups; ++group) finish(inputs, first, last, group, own);
                }
            }
        }
    }
    return failed;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Entry points. `tile` is 4 or 2, the outputs in a row of a tile.

extern "C" {

// Bytes of packed weights.
int64_t winograd_weights_size(int64_t tile, int64_t out, int64_t in) {
    return (tile + 2) * (tile + 2) * round_up(out, kPanel) * in * 4;
}

// strides: of w, in elements: out, in, y, x. flip: whether the kernel is turned by half a circle.
void winograd_weights(int64_t tile, const float* w, void* packed, const int64_t* out_in, const int64_t* strides,
                      int64_t flip) {
    lia::ask_large_pages(packed, winograd_weights_size(tile, out_in[0], out_in[1]));
    const Weights weights{w, out_in[0], out_in[1], strides[0], strides[1], strides[2], strides[3], flip != 0};
    (tile == 4 ? transform_weights<F4> : transform_weights<F2>)(weights, static_cast<float*>(packed));
}

// Memory of the calling thread for packed weights that nobody keeps, until it asks again; null for want of memory.
void* winograd_space(int64_t bytes) { return weights_space.get(div_up(bytes, 4)); }

// A correlation, PyTorch's conv2d: x [n, height, width, in], out [n, out_h, out_w, out]. Returns 0; 1 for want of
// memory.
int winograd_conv2d(int64_t tile, const float* x, const void* packed, float* y, const int64_t* n_h_w_in,
                    const int64_t* h_w_out, const int64_t* padding) {
    const Images images{x, n_h_w_in[0], n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], padding[0], padding[1]};
    const Result result{y, h_w_out[0], h_w_out[1], h_w_out[2]};
    return (tile == 4 ? convolve<F4> : convolve<F2>)(images, static_cast<const float*>(packed), result);
}

}  // extern "C"
