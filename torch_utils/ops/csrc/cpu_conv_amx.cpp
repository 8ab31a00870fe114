// Float32 convolutions on the matrix tiles of newer Intel CPUs (AMX), which multiply bfloat16 and add up float32.
//
// Layout: images NHWC, dense. Nothing here depends on the number of threads.

#include "cpu_conv_amx_planes.h"
#include "cpu_workspace.h"

#if defined(LIA_HAS_AMX)

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace {

using namespace amx;

constexpr int64_t kRun = 8;  // Blocks that are taken through all output channels, so that they stay in cache.
constexpr int64_t kCache = 1280 << 10;  // Bytes of images that are taken through them at a time.

thread_local lia::Workspace filled_space, packed_space, sums_space;

// ---------------------------------------------------------------------------------------------------------------------
// Planes

// Places `first` to `first + count` of all planes, channels from `begin` to `end`, as [32 channels][part][plane][place]
// [32]: 16 places from anywhere on are a tile of 1 kB. What the table has no pixel for is 0.
template <int64_t parts>
void fill_planes(const float* x, const Planes& planes, const Table& table, int64_t first, int64_t count, int64_t begin,
                 int64_t end, bfloat16* filled) {
    const int64_t length = static_cast<int64_t>(table.size()) / planes.count(), size = planes.count() * count;
    for (int64_t i = 0; i < size; ++i, filled += kDepth) {
        const int64_t place = first + i % count;
        const int64_t pixel = place < length ? table[i / count * length + place] : -1;
        for (int64_t c = begin; c < end; c += kDepth) {
            const __mmask16 low = pixel < 0 ? 0 : lanes(planes.channels - c);
            const __mmask16 high = pixel < 0 ? 0 : lanes(planes.channels - c - kTile);
            const float* source = low ? x + pixel * planes.channels + c : x;
            const __m512 a = _mm512_maskz_loadu_ps(low, source),
                         b = _mm512_maskz_loadu_ps(high, high ? source + kTile : x);
            const Parts halves = parts == kParts ? cut(a, b) : split(a, b);  // Fewer have to be rounded.
            for (int64_t p = 0; p < parts; ++p)
                _mm512_store_si512(filled + ((c - begin) / kDepth * parts + p) * size * kDepth, halves.part[p]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolution

struct Tap {
    int64_t plane, distance;  // Of the pixel, and from an output's place to its.
    int64_t ky, kx;
};

struct Weights {
    const float* data;
    int64_t out_stride, in_stride, y_stride, x_stride;  // In elements.
    int64_t out_channels, in_channels;
};

// One tile of 32 input by 16 output channels, as pairs of input channels for each output channel; one part after the
// other.
void pack_tile(const Weights& w, const float* base, int64_t out, int64_t in, int64_t parts, bfloat16* tile) {
    const int64_t outs = std::min(kTile, w.out_channels - out), ins = std::min(kDepth, w.in_channels - in);
    const float* corner = base + out * w.out_stride + in * w.in_stride;
    __m512i rows[kParts][kTile];
    if (w.out_stride == 1) {
        const __mmask16 mask = lanes(outs);
        for (int64_t i = 0; i < kTile; ++i) {
            const __m512 first =
                2 * i < ins ? _mm512_maskz_loadu_ps(mask, corner + 2 * i * w.in_stride) : _mm512_setzero_ps();
            const __m512 second =
                2 * i + 1 < ins ? _mm512_maskz_loadu_ps(mask, corner + (2 * i + 1) * w.in_stride) : _mm512_setzero_ps();
            const Parts halves = split_pairs(first, second);
            for (int64_t p = 0; p < kParts; ++p) rows[p][i] = halves.part[p];
        }
    } else {
        alignas(64) float row[kDepth] = {};
        for (int64_t o = 0; o < kTile; ++o) {
            const float* source = corner + o * w.out_stride;
            __m512 first = _mm512_setzero_ps(), second = first;
            if (o < outs && w.in_stride == 1) {
                first = _mm512_maskz_loadu_ps(lanes(ins), source);
                second = _mm512_maskz_loadu_ps(lanes(ins - kTile), ins > kTile ? source + kTile : source);
            } else if (o < outs) {
                for (int64_t i = 0; i < ins; ++i) row[i] = source[i * w.in_stride];
                first = _mm512_load_ps(row);
                second = _mm512_load_ps(row + kTile);
            }
            const Parts halves = split(first, second);
            for (int64_t p = 0; p < kParts; ++p) rows[p][o] = halves.part[p];
        }
        for (int64_t p = 0; p < parts; ++p) transpose(rows[p]);
    }
    for (int64_t p = 0; p < parts; ++p)
        for (int64_t i = 0; i < kTile; ++i) _mm512_storeu_si512(tile + p * kTileSize + i * kDepth, rows[p][i]);
}

// Tiles [out / 16][tap][in / 32][part], with zeros for the channels that there are not.
void pack_weights(const Weights& w, const std::vector<Tap>& taps, int64_t parts, bfloat16* packed) {
    const int64_t groups = round_up(w.out_channels, kBlock) / kTile, depths = div_up(w.in_channels, kDepth);
    const auto count = static_cast<int64_t>(taps.size());
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < groups * depths; ++task) {  // All taps in a row: they lie beside each other.
        const int64_t group = task / depths, depth = task % depths;
        for (int64_t t = 0; t < count; ++t) {
            const float* base = w.data + taps[t].ky * w.y_stride + taps[t].kx * w.x_stride;
            pack_tile(w, base, group * kTile, depth * kDepth, parts,
                      packed + ((group * count + t) * depths + depth) * parts * kTileSize);
        }
    }
}

// Where results go: the pixels of an output, of which the places of a plane are every stride-th from (y0, x0) on.
struct Target {
    float* data;
    int64_t height, width, channels;
    int64_t stride, y0, x0;
};

// Writes 32 x 32 results [pixel][channel].
void store_block(const float* block, const Target& out, const int64_t* table, int64_t channel) {
    const __mmask16 first = lanes(out.channels - channel), second = lanes(out.channels - channel - kTile);
    for (int64_t i = 0; i < kBlock; ++i) {
        if (table[i] < 0) continue;
        float* pixel = out.data + table[i] * out.channels + channel;
        _mm512_mask_storeu_ps(pixel, first, _mm512_load_ps(block + i * kBlock));
        if (second) _mm512_mask_storeu_ps(pixel + kTile, second, _mm512_load_ps(block + i * kBlock + kTile));
    }
}

// What is computed of the planes: an output, or a phase of one that has more places than they.
struct Job {
    std::vector<Tap> taps;
    Target target;
    const bfloat16* packed = nullptr;
    Table table;  // The pixels of the output at each place, and kBlock times none.
};

// The first places of blocks that cover what any of the jobs computes.
std::vector<int64_t> cover_all(const std::vector<Job>& jobs) {
    Table together = jobs[0].table;
    for (const Job& job : jobs)
        for (std::size_t i = 0; i < together.size(); ++i) together[i] = std::max(together[i], job.table[i]);
    return cover(together, 1);
}

// How the work is cut: runs of blocks, each taken through `share` output channels, `each` steps of 32 input channels at
// a time, of which it reads `range` places of all planes.
struct Plan {
    int64_t runs, shares, share, range = 0, each;

    Plan(const Planes& planes, const std::vector<Job>& jobs, const std::vector<int64_t>& starts, int64_t depths,
         int64_t channels, int64_t parts) {
        const auto blocks = static_cast<int64_t>(starts.size());
        const int64_t panels = div_up(channels, kBlock);
        runs = div_up(blocks, kRun);
        // Where there are few places, threads share output channels, and fill planes for themselves.
        shares = 1;
        while (shares < panels && runs * shares < 4 * omp_get_max_threads()) shares *= 2;
        share = div_up(panels, shares) * kBlock;
        shares = div_up(channels, share);
        int64_t reach = 0;
        for (const Job& job : jobs)
            for (const Tap& tap : job.taps) reach = std::max(reach, tap.distance);
        for (int64_t run = 0; run < blocks; run += kRun)
            range = std::max(range, starts[std::min(run + kRun, blocks) - 1] + kBlock + reach - starts[run]);
        const int64_t fit = std::max<int64_t>(1, kCache / (planes.count() * range * parts * kDepth * 2));
        each = div_up(depths, div_up(depths, fit));
    }
};

// 32 x 32 results of a job, or the share of them that `steps` input channels have, from planes that are `size` long.
template <int64_t parts>
inline void multiply_block(const bfloat16* planes, int64_t size, int64_t range, const Job& job, const bfloat16* weights,
                           int64_t panel, int64_t depths, int64_t steps, const bfloat16* next, int64_t lines) {
    const auto count = static_cast<int64_t>(job.taps.size());
    for (int64_t t = 0; t < count; ++t) {
        const bfloat16* left = planes + (job.taps[t].plane * range + job.taps[t].distance) * kDepth;
        for (int64_t d = 0; d < steps; ++d) {
            const int64_t at = (t * depths + d) * parts * kTileSize;
            const bfloat16* line = next + at;  // Of weights that the next blocks will want, in both halves.
            multiply<parts>({left + d * parts * size, size, kTileSize}, 64, {weights + at, kTileSize, panel}, [&] {
                for (int64_t i = 0; i < lines; ++i, line += kDepth) {
                    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
                    _mm_prefetch(reinterpret_cast<const char*>(line + panel), _MM_HINT_T1);
                }
            });
        }
    }
}

// Returns whether there was memory enough.
template <int64_t parts>
bool convolve(const float* x, const Planes& planes, const Table& source, const std::vector<Job>& jobs, int64_t depth) {
    const std::vector<int64_t> starts = cover_all(jobs);
    const auto blocks = static_cast<int64_t>(starts.size()), many = static_cast<int64_t>(jobs.size());
    const int64_t depths = depth / kDepth, channels = jobs[0].target.channels, area = kBlock * kBlock;
    const Plan plan(planes, jobs, starts, depths, channels, parts);
    const int64_t size = planes.count() * plan.range * kDepth;  // Of the planes' 32 channels in one part.
    constexpr int64_t products = parts * (parts + 1) / 2;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        const TileConfig config;
        _tile_loadconfig(&config);
        bfloat16* filled = filled_space.get<bfloat16>(size * parts * plan.each);
        float* sums = sums_space.get(many * kRun * plan.share * kBlock);
        failed = filled == nullptr || sums == nullptr;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < plan.runs * plan.shares; ++task) {
            if (filled == nullptr || sums == nullptr) continue;
            const int64_t run = task / plan.shares * kRun, end = std::min(run + kRun, blocks);
            const int64_t first = task % plan.shares * plan.share, last = std::min(first + plan.share, channels);
            const int64_t lines = div_up(parts * kTile, products * (end - run));
            for (int64_t begin = 0; begin < depths; begin += plan.each) {
                const int64_t steps = std::min(plan.each, depths - begin);
                fill_planes<parts>(x, planes, source, starts[run], plan.range, begin * kDepth, (begin + steps) * kDepth,
                                   filled);
                float* block = sums;
                for (const Job& job : jobs) {
                    const int64_t panel = static_cast<int64_t>(job.taps.size()) * depths * parts * kTileSize;
                    for (int64_t channel = first; channel < last; channel += kBlock) {
                        const bfloat16* weights = job.packed + channel / kTile * panel + begin * parts * kTileSize;
                        const bfloat16* next = weights + (channel + kBlock < last ? 2 * panel : 0);
                        for (int64_t b = run; b < end; ++b, block += area) {
                            begin == 0 ? zero_sums() : load_sums(block);
                            multiply_block<parts>(filled + (starts[b] - starts[run]) * kDepth, size, plan.range, job,
                                                  weights, panel, depths, steps,
                                                  next + (b - run) * lines * products * kDepth, lines);
                            store_sums(block);
                            if (begin + steps == depths)
                                store_block(block, job.target, job.table.data() + starts[b], channel);
                        }
                    }
                }
            }
        }
        _tile_release();
    }
    return failed == 0;
}

// A convolution of an image batch: `tiles` is where the caller keeps the packed weight, or null; `there`: whether it is
// there already. Returns whether there was memory enough.
bool run(const float* x, const Planes& planes, const Weights& weights, std::vector<Job>& jobs, int64_t parts,
         bfloat16* tiles, bool there) {
    const int64_t depth = round_up(planes.channels, kDepth);
    const auto size = [&](const Job& job) {
        return parts * round_up(weights.out_channels, kBlock) * static_cast<int64_t>(job.taps.size()) * depth;
    };
    int64_t total = 0, reach = 0;
    for (const Job& job : jobs) total += size(job);
    bfloat16* packed = tiles != nullptr ? tiles : packed_space.get<bfloat16>(total);
    if (packed == nullptr) return false;
    if (tiles != nullptr && !there) lia::ask_large_pages(tiles, total * static_cast<int64_t>(sizeof(bfloat16)));
    for (Job& job : jobs) {
        if (tiles == nullptr || !there) pack_weights(weights, job.taps, parts, packed);
        job.packed = packed;
        packed += size(job);
        const Target& out = job.target;
        job.table.assign(static_cast<std::size_t>(planes.places()), -1);
        enter(planes, out.height, out.width, out.stride, out.y0, out.x0, 0, job.table);
        job.table.resize(job.table.size() + kBlock, -1);
        for (const Tap& tap : job.taps) reach = std::max(reach, tap.distance);
    }
    const Table source = source_table(planes, planes.places() + kBlock + reach);
    return (parts == 3 ? convolve<3> : parts == 2 ? convolve<2> : convolve<1>)(x, planes, source, jobs, depth);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Entry points. They return 0; 1 for want of memory. `parts` is 1 to 3, see above. `tiles`: where the packed weight is
// to be kept, parts * out * in * kernel numbers, both channels rounded up to 32, or null; `there`: whether it is
// already.

extern "C" {

// Whether this CPU and kernel let this process use the tiles. Asks the kernel for them.
int amx_available() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// A correlation, PyTorch's conv2d: x [n, height, width, in], w with the strides given, out [n, out_h, out_w, out].
int amx_conv2d(const float* x, const float* w, float* out, const int64_t* n_h_w_in, const int64_t* h_w_out,
               const int64_t* w_strides, const int64_t* kernel, int64_t stride, const int64_t* padding, int64_t parts,
               void* tiles, int64_t there) {
    const int64_t n = n_h_w_in[0];
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], padding[0], padding[1], stride, 0, 0, n};
    planes.rows = div_up((h_w_out[0] - 1) * stride + kernel[0], stride);
    planes.pitch = div_up((h_w_out[1] - 1) * stride + kernel[1], stride);
    planes.batch = side_by_side(n, planes.pitch);
    std::vector<Job> jobs(1);
    for (int64_t dy = 0; dy < kernel[0]; ++dy)
        for (int64_t dx = 0; dx < kernel[1]; ++dx)
            jobs[0].taps.push_back({planes.phase(dy, dx), planes.distance(dy, dx), dy, dx});
    jobs[0].target = {out, h_w_out[0], h_w_out[1], h_w_out[2], 1, 0, 0};
    const Weights weights{w, w_strides[0], w_strides[1], w_strides[2], w_strides[3], h_w_out[2], planes.channels};
    return run(x, planes, weights, jobs, parts, static_cast<bfloat16*>(tiles), there != 0) ? 0 : 1;
}

// PyTorch's conv_transpose2d: x [n, height, width, in], w's strides in the order out, in, y, x.
int amx_conv_transpose2d(const float* x, const float* w, float* out, const int64_t* n_h_w_in, const int64_t* h_w_out,
                         const int64_t* w_strides, const int64_t* kernel, int64_t stride, const int64_t* padding,
                         int64_t parts, void* tiles, int64_t there) {
    const int64_t n = n_h_w_in[0];
    // Output row y = t * stride + phase - padding sums the input's rows t - j with the kernel's rows phase + j *
    // stride.
    const int64_t reach_y = (kernel[0] - 1) / stride, reach_x = (kernel[1] - 1) / stride;
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], reach_y, reach_x, 1, 0, 0, n};
    planes.rows = (h_w_out[0] - 1 + padding[0]) / stride + 1 + reach_y;
    planes.pitch = (h_w_out[1] - 1 + padding[1]) / stride + 1 + reach_x;
    planes.batch = side_by_side(n, planes.pitch);
    std::vector<Job> jobs(static_cast<std::size_t>(stride * stride));
    for (int64_t phase = 0; phase < stride * stride; ++phase) {
        const int64_t a = phase / stride, b = phase % stride;
        for (int64_t ky = a; ky < kernel[0]; ky += stride)
            for (int64_t kx = b; kx < kernel[1]; kx += stride)
                jobs[phase].taps.push_back({0, planes.distance(reach_y - ky / stride, reach_x - kx / stride), ky, kx});
        jobs[phase].target = {out, h_w_out[0], h_w_out[1], h_w_out[2], stride, a - padding[0], b - padding[1]};
    }
    const Weights weights{w, w_strides[0], w_strides[1], w_strides[2], w_strides[3], h_w_out[2], planes.channels};
    return run(x, planes, weights, jobs, parts, static_cast<bfloat16*>(tiles), there != 0) ? 0 : 1;
}

}  // extern "C"

#else

extern "C" int amx_available() { return 0; }

#endif
