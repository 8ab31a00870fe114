// Float32 convolutions on the matrix tiles of newer Intel CPUs (AMX), which multiply bfloat16 and add up float32.
//
// All operators are one loop. Images are copied into planes with their padding (one plane for each of the stride's
// phases), in which places are numbered through: rows, columns, and fastest the images of the batch. A tap of the kernel
// is then a constant distance, 16 places in a row are a tile's 16 rows, and what lies between two rows of the output is
// long enough to be left out.
//
// Layout: images NHWC, dense. Nothing here depends on the number of threads.

#include "cpu_amx.h"

#if defined(LIA_HAS_AMX)

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace {

using namespace amx;

constexpr int64_t kRun = 8;     // Blocks that are taken through all output channels, so that they stay in cache.
constexpr int64_t kCache = 1280 << 10;  // Bytes of images that are taken through them at a time.
constexpr int64_t kChunk = 32;  // Blocks that weight gradients are summed over before the next pair of taps.

// Memory that a thread keeps from call to call: fresh pages would cost more than what is written into them.
class Workspace {
  public:
    ~Workspace() { std::free(memory_); }

    bfloat16* get(int64_t elements) {
        const auto bytes = static_cast<std::size_t>(round_up(elements * sizeof(bfloat16), 64));
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = std::aligned_alloc(64, bytes);
            if (memory_ == nullptr) return nullptr;
            size_ = bytes;
        }
        return static_cast<bfloat16*>(memory_);
    }

  private:
    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

thread_local Workspace workspaces[2], sums_space;

// ---------------------------------------------------------------------------------------------------------------------
// Images in planes

// An image batch with its padding, cut into stride * stride phases; plane (a, b) holds the padded rows a, a + stride, ...
struct Planes {
    int64_t images, height, width, channels;  // Of the dense NHWC input.
    int64_t pad_y, pad_x;                     // Zeros before its first row and column.
    int64_t stride;
    int64_t rows, pitch;  // Of a plane; what the image doesn't fill is 0.
    int64_t batch;        // Images that there is room for.

    int64_t count() const { return stride * stride; }
    int64_t places() const { return rows * pitch * batch; }
    int64_t distance(int64_t dy, int64_t dx) const { return (dy / stride * pitch + dx / stride) * batch; }
    int64_t phase(int64_t dy, int64_t dx) const { return dy % stride * stride + dx % stride; }
};

// Which pixel, counted through the images, lies at each place; -1 where there is none.
using Table = std::vector<int64_t>;

// Enters at the places from `first` on of a plane the pixels (row * stride + y0, column * stride + x0) that there are.
void enter(const Planes& planes, int64_t height, int64_t width, int64_t stride, int64_t y0, int64_t x0, int64_t first,
           Table& table) {
    for (int64_t row = 0; row < planes.rows; ++row) {
        for (int64_t column = 0; column < planes.pitch; ++column) {
            const int64_t y = row * stride + y0, x = column * stride + x0;
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            int64_t* place = table.data() + first + (row * planes.pitch + column) * planes.batch;
            for (int64_t n = 0; n < planes.images; ++n) place[n] = (n * height + y) * width + x;
        }
    }
}

// What lies in the planes, each of which is `length` long.
Table source_table(const Planes& planes, int64_t length) {
    Table table(static_cast<std::size_t>(planes.count() * length), -1);
    for (int64_t i = 0; i < planes.count(); ++i)
        enter(planes, planes.height, planes.width, planes.stride, i / planes.stride - planes.pad_y,
              i % planes.stride - planes.pad_x, i * length, table);
    return table;
}

// Places `first` to `first + count` of all planes, channels from `begin` to `end`, as [32 channels][part][plane][place][32]:
// 16 places from anywhere on are a tile of 1 kB. What the table has no pixel for is 0.
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
            const __m512 a = _mm512_maskz_loadu_ps(low, source), b = _mm512_maskz_loadu_ps(high, high ? source + kTile : x);
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

// One tile of 32 input by 16 output channels, as pairs of input channels for each output channel; one part after the other.
void pack_tile(const Weights& w, const float* base, int64_t out, int64_t in, int64_t parts, bfloat16* tile) {
    const int64_t outs = std::min(kTile, w.out_channels - out), ins = std::min(kDepth, w.in_channels - in);
    const float* corner = base + out * w.out_stride + in * w.in_stride;
    __m512i rows[kParts][kTile];
    if (w.out_stride == 1) {
        const __mmask16 mask = lanes(outs);
        for (int64_t i = 0; i < kTile; ++i) {
            const __m512 first = 2 * i < ins ? _mm512_maskz_loadu_ps(mask, corner + 2 * i * w.in_stride) : _mm512_setzero_ps();
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

// The first places of blocks that cover all places in the table that hold a pixel. They begin at multiples of `step`.
std::vector<int64_t> cover(const Table& table, int64_t step) {
    std::vector<int64_t> starts;
    int64_t end = 0;
    for (int64_t place = 0; place < static_cast<int64_t>(table.size()); ++place) {
        if (table[place] < 0 || place < end) continue;
        starts.push_back(place / step * step);
        end = starts.back() + kBlock;
    }
    return starts;
}

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
std::vector<int64_t> cover(const std::vector<Job>& jobs) {
    Table together = jobs[0].table;
    for (const Job& job : jobs)
        for (std::size_t i = 0; i < together.size(); ++i) together[i] = std::max(together[i], job.table[i]);
    return cover(together, 1);
}

// How the work is cut: runs of blocks, each taken through `share` output channels, `each` steps of 32 input channels at a
// time, of which it reads `range` places of all planes.
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
    const std::vector<int64_t> starts = cover(jobs);
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
        bfloat16* filled = workspaces[0].get(size * parts * plan.each);
        auto* sums = reinterpret_cast<float*>(sums_space.get(2 * many * kRun * plan.share * kBlock));
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
                            if (begin + steps == depths) store_block(block, job.target, job.table.data() + starts[b], channel);
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
    bfloat16* packed = tiles != nullptr ? tiles : workspaces[1].get(total);
    if (packed == nullptr) return false;
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

// ---------------------------------------------------------------------------------------------------------------------
// Weight gradients

// 16 channels of two neighbouring places, side by side for each channel.
inline Parts load_pair(const float* x, int64_t channels, const int64_t* table, int64_t channel) {
    const __mmask16 mask = lanes(channels - channel);
    const __mmask16 first = table[0] < 0 ? 0 : mask, second = table[1] < 0 ? 0 : mask;
    return split_pairs(_mm512_maskz_loadu_ps(first, first ? x + table[0] * channels + channel : x),
                       _mm512_maskz_loadu_ps(second, second ? x + table[1] * channels + channel : x));
}

// [part][channel / 16][block] tiles of 16 channels x 32 places.
void fill_left(const float* x, int64_t channels, const Table& table, const std::vector<int64_t>& starts, int64_t parts,
               bfloat16* tiles) {
    const int64_t groups = round_up(channels, kBlock) / kTile, blocks = static_cast<int64_t>(starts.size());
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < groups * blocks; ++task) {
        const int64_t group = task % groups, block = task / groups;
        __m512i rows[kParts][kTile];
        for (int64_t i = 0; i < kTile; ++i) {
            const Parts pair = load_pair(x, channels, table.data() + starts[block] + 2 * i, group * kTile);
            for (int64_t p = 0; p < kParts; ++p) rows[p][i] = pair.part[p];
        }
        for (int64_t p = 0; p < parts; ++p) {
            transpose(rows[p]);
            bfloat16* tile = tiles + ((p * groups + group) * blocks + block) * kTileSize;
            for (int64_t i = 0; i < kTile; ++i) _mm512_storeu_si512(tile + i * kDepth, rows[p][i]);
        }
    }
}

// [part][plane][channel / 16][pair of places][16][2]
void fill_right(const float* x, int64_t channels, const Table& table, int64_t planes, int64_t parts, bfloat16* tiles) {
    const int64_t groups = round_up(channels, kBlock) / kTile, pairs = static_cast<int64_t>(table.size()) / planes / 2;
    constexpr int64_t step = 64;
    const int64_t steps = div_up(pairs, step);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < planes * steps * groups; ++task) {  // Channels fastest: they are together in memory.
        const int64_t plane = task / groups / steps, first = task / groups % steps * step, group = task % groups;
        for (int64_t pair = first; pair < std::min(first + step, pairs); ++pair) {
            const Parts halves = load_pair(x, channels, table.data() + (plane * pairs + pair) * 2, group * kTile);
            for (int64_t p = 0; p < parts; ++p)
                _mm512_storeu_si512(tiles + (((p * planes + plane) * groups + group) * pairs + pair) * kDepth,
                                    halves.part[p]);
        }
    }
}

struct Gradient {
    float* data;  // [left][right][ky][kx], dense.
    int64_t left, right, taps;
};

void store_gradient(const float* block, const Gradient& out, int64_t left, int64_t right, int64_t tap) {
    for (int64_t i = 0; i < std::min(kBlock, out.left - left); ++i)
        for (int64_t j = 0; j < std::min(kBlock, out.right - right); ++j)
            out.data[((left + i) * out.right + right + j) * out.taps + tap] = block[i * kBlock + j];
}

struct Operand {
    const bfloat16* data;
    int64_t part;  // Elements from one part to the next.
};

// Where a tap finds its places: in which plane, and so many pairs further on than the other operand's.
struct Shift {
    int64_t plane, pairs;
};

// Sums over all places left x right, at the distance of each tap; 32 x 32 channels a task.
template <int64_t parts>
void correlate(const Operand& a, const Operand& b, const std::vector<Shift>& shifts, const std::vector<int64_t>& starts,
               int64_t pairs, const Gradient& out) {
    const int64_t columns = div_up(out.right, kBlock), tasks = div_up(out.left, kBlock) * columns;
    const int64_t groups = round_up(out.right, kBlock) / kTile, blocks = static_cast<int64_t>(starts.size());
    // Few channels are few tasks: then each takes one tap. The sums are the same either way.
    const int64_t each = tasks >= omp_get_max_threads() ? out.taps : 1, shares = out.taps / each;
#pragma omp parallel
    {
        const TileConfig config;
        _tile_loadconfig(&config);
        std::vector<float> storage(static_cast<std::size_t>(each * kBlock * kBlock + 16));
        float* sums = reinterpret_cast<float*>(round_up(reinterpret_cast<int64_t>(storage.data()), 64));
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks * shares; ++task) {
            const int64_t left = task / shares / columns * kBlock, right = task / shares % columns * kBlock;
            const int64_t first = task % shares * each;
            std::memset(sums, 0, static_cast<std::size_t>(each * kBlock * kBlock) * 4);
            for (int64_t chunk = 0; chunk < blocks; chunk += kChunk) {
                for (int64_t t = first; t < first + each; ++t) {
                    const int64_t rows = (shifts[t].plane * groups + right / kTile) * pairs + shifts[t].pairs;
                    load_sums(sums + (t - first) * kBlock * kBlock);
                    for (int64_t block = chunk; block < std::min(chunk + kChunk, blocks); ++block) {
                        const int64_t from = (left / kTile * blocks + block) * kTileSize;
                        const int64_t pair = (rows + starts[block] / 2) * kDepth;
                        multiply<parts>({a.data + from, a.part, blocks * kTileSize}, 64,
                                        {b.data + pair, b.part, pairs * kDepth});
                    }
                    store_sums(sums + (t - first) * kBlock * kBlock);
                }
            }
            for (int64_t t = first; t < first + each; ++t)
                store_gradient(sums + (t - first) * kBlock * kBlock, out, left, right, t);
        }
        _tile_release();
    }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Entry points. They return 0; 1 for want of memory. `parts` is 1 to 3, see above. `tiles`: where the packed weight is to
// be kept, parts * out * in * kernel numbers, both channels rounded up to 32, or null; `there`: whether it is already.

extern "C" {

// Whether this CPU and kernel let this process use the tiles. Asks the kernel for them.
int amx_available() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// A correlation, PyTorch's conv2d: x [n, height, width, in], w with the strides given, out [n, out_h, out_w, out].
int amx_conv2d(const float* x, const float* w, float* out, const int64_t* n_h_w_in, const int64_t* h_w_out,
               const int64_t* w_strides, const int64_t* kernel, int64_t stride, const int64_t* padding,
               int64_t parts, void* tiles, int64_t there) {
    const int64_t n = n_h_w_in[0];
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], padding[0], padding[1], stride, 0, 0, n};
    planes.rows = div_up((h_w_out[0] - 1) * stride + kernel[0], stride);
    planes.pitch = div_up((h_w_out[1] - 1) * stride + kernel[1], stride);
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
    // Output row y = t * stride + phase - padding sums the input's rows t - j with the kernel's rows phase + j * stride.
    const int64_t reach_y = (kernel[0] - 1) / stride, reach_x = (kernel[1] - 1) / stride;
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], n_h_w_in[3], reach_y, reach_x, 1, 0, 0, n};
    planes.rows = (h_w_out[0] - 1 + padding[0]) / stride + 1 + reach_y;
    planes.pitch = (h_w_out[1] - 1 + padding[1]) / stride + 1 + reach_x;
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

// out [left, right, kernel] = the sum over n, y, x of small[n, y, x, left] * big[n, y * stride + ky - padding, ..., right]:
// the weight's gradient of conv2d (small is the output's gradient) and of conv_transpose2d (big is).
int amx_weight_gradient(const float* small, const float* big, float* out, const int64_t* n_h_w_left,
                        const int64_t* h_w_right, const int64_t* kernel, int64_t stride, const int64_t* padding,
                        int64_t parts) {
    const int64_t n = n_h_w_left[0], left = n_h_w_left[3], right = h_w_right[2];
    // Room for an even number of images: then all distances are whole pairs.
    Planes wide{n, h_w_right[0], h_w_right[1], right, padding[0], padding[1], stride, 0, 0, round_up(n, 2)};
    wide.rows = div_up((n_h_w_left[1] - 1) * stride + kernel[0], stride);
    wide.pitch = div_up((n_h_w_left[2] - 1) * stride + kernel[1], stride);
    const Planes narrow{n, n_h_w_left[1], n_h_w_left[2], left, 0, 0, 1, wide.rows, wide.pitch, wide.batch};
    const int64_t length = wide.places() + kBlock + wide.distance(kernel[0] - 1, kernel[1] - 1), pairs = length / 2;
    const Table left_table = source_table(narrow, length), right_table = source_table(wide, length);
    const std::vector<int64_t> starts = cover(left_table, 2);
    const int64_t left_size = round_up(left, kBlock) * static_cast<int64_t>(starts.size()) * kBlock;
    const int64_t right_size = wide.count() * round_up(right, kBlock) * length;
    bfloat16 *a = workspaces[0].get(parts * left_size), *b = workspaces[1].get(parts * right_size);
    if (a == nullptr || b == nullptr) return 1;
    fill_left(small, left, left_table, starts, parts, a);
    fill_right(big, right, right_table, wide.count(), parts, b);
    std::vector<Shift> shifts;
    for (int64_t dy = 0; dy < kernel[0]; ++dy)
        for (int64_t dx = 0; dx < kernel[1]; ++dx) shifts.push_back({wide.phase(dy, dx), wide.distance(dy, dx) / 2});
    const Gradient gradient{out, left, right, kernel[0] * kernel[1]};
    const Operand first{a, left_size}, second{b, right_size};
    (parts == 3 ? correlate<3> : parts == 2 ? correlate<2> : correlate<1>)(first, second, shifts, starts, pairs, gradient);
    return 0;
}

}  // extern "C"

#else

extern "C" int amx_available() { return 0; }

#endif
