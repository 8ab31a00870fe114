// Gradients of 3x3 weights by Winograd's algorithm: the adjoint of the convolution, product by product.
//
// dW = G' [(A dY A') . (B' X B)] G, summed over all tiles: for each place a product of two matrices [tiles][channels],
// which are taken in chunks that stay in a cache. The order of sums depends on the shapes alone.

#include "cpu_winograd_tiles.h"

namespace {

using namespace winograd;

constexpr int64_t kMostFloats = 6 << 20;  // Of transformed tiles.

// Gradients of a result's tiles `first` to `last` as [place][panel][tile][kPanel].
template <class F>
void transform_gradients(const Images& g, const Tiling& tiling, int64_t first, int64_t last, const float* zeros,
                         float* v, int64_t panel, int64_t place) {
    constexpr int size = F::kOut, wide = F::kIn;
    for (int64_t tile = first; tile < last; ++tile) {
        const Corner corner(tiling, tile, size);
        const float* pixels[size * size];
        for (int i = 0; i < size; ++i) {
            for (int j = 0; j < size; ++j) {
                const int64_t y = corner.y + i, x = corner.x + j;
                const bool inside = y < g.height && x < g.width;
                pixels[i * size + j] =
                    inside ? g.data + ((corner.image * g.height + y) * g.width + x) * g.channels : zeros;
            }
        }
        for (int64_t c = 0; c < g.channels; c += kLanes) {
            Vec d[size * size], half[wide * size];
            for (int p = 0; p < size * size; ++p) d[p] = load(pixels[p] + c, g.channels - c);
            for (int j = 0; j < size; ++j) F::spread(d + j, size, half + j, size);
            float* to = v + c / kPanel * panel + (tile - first) * kPanel + c % kPanel;
            for (int i = 0; i < wide; ++i) {
                Vec line[wide];
                F::spread(half + i * size, 1, line, 1);
                for (int j = 0; j < wide; ++j) store(to + (i * wide + j) * place, line[j]);
            }
        }
    }
}

// Sums [place][panel][in][kPanel] to the gradient [out][in][3][3].
template <class F> void gather_weights(const float* sums, int64_t out, int64_t in, float* w) {
    constexpr int size = F::kIn;
    const int64_t panels = div_up(out, kPanel), place = panels * in * kPanel;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < panels * in; ++task) {
        const int64_t panel = task / in, c = task % in;
        for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
            Vec u[size * size], half[3 * size], kernel[9];
            for (int p = 0; p < size * size; ++p) u[p] = load(sums + p * place + task * kPanel + lane);
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

template <class F> int correlate(const Images& x, const Images& g, float* w) {
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
        gather_weights<F>(sums, g.channels, in, w);
    }
    return 0;
}

}  // namespace

// w [out, in, 3, 3], dense: the sum over n, y, x of g[n, y, x, out] * x[n, y + ky - padding, ..., in].
// Returns 0; 1 for want of memory.
extern "C" int winograd_weight_gradient(int64_t tile, const float* g, const float* x, float* w,
                                        const int64_t* n_h_w_out, const int64_t* h_w_in, const int64_t* padding) {
    const Images images{x, n_h_w_out[0], h_w_in[0], h_w_in[1], h_w_in[2], padding[0], padding[1]};
    const Images gradient{g, n_h_w_out[0], n_h_w_out[1], n_h_w_out[2], n_h_w_out[3], 0, 0};
    return (tile == 4 ? correlate<F4> : correlate<F2>)(images, gradient, w);
}
