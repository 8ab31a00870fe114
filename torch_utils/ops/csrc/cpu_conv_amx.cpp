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
constexpr int64_t kCache = 640 << 10;  // Bytes of images that are taken through them at a time.
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

// Fills [depth / 32][part][plane][place][32]: 16 places from anywhere on are a tile of 1 kB. What the table has no pixel
// for is 0.
void fill_planes(const float* x, int64_t channels, const Table& table, int64_t depth, int64_t parts, bfloat16* planes) {
    const auto places = static_cast<int64_t>(table.size());
#pragma omp parallel for schedule(static)
    for (int64_t place = 0; place < places; ++place) {
        const int64_t pixel = table[place];
        for (int64_t c = 0; c < depth; c += kDepth) {
            const __mmask16 first = pixel < 0 ? 0 : lanes(channels - c);
            const __mmask16 second = pixel < 0 ? 0 : lanes(channels - c - kTile);
            const float* source = first ? x + pixel * channels + c : x;
            const Parts halves = split(_mm512_maskz_loadu_ps(first, source),
                                       _mm512_maskz_loadu_ps(second, second ? source + kTile : x));
            for (int64_t p = 0; p < parts; ++p)
                _mm512_storeu_si512(planes + ((c / kDepth * parts + p) * places + place) * kDepth, halves.part[p]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolution

struct Tap {
    int64_t offset;  // From an output's place to the pixel's, in elements of the planes.
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

// size: elements of all planes' first 32 channels in one part. Returns whether there was memory enough.
template <int64_t parts>
bool convolve(const bfloat16* x, int64_t size, const bfloat16* packed, const std::vector<Tap>& taps,
              const Planes& planes, int64_t depth, const Target& out) {
    Table table(static_cast<std::size_t>(planes.places()), -1);
    enter(planes, out.height, out.width, out.stride, out.y0, out.x0, 0, table);
    const std::vector<int64_t> starts = cover(table, 1);
    table.resize(table.size() + kBlock, -1);
    const auto count = static_cast<int64_t>(taps.size()), blocks = static_cast<int64_t>(starts.size());
    const int64_t depths = depth / kDepth, panel = count * depths * parts * kTileSize;  // Weights of 16 output channels.
    // Where there are few places, threads share output channels.
    const int64_t runs = div_up(blocks, kRun), shares = runs >= 8 ? 1 : div_up(out.channels, kBlock);
    const int64_t share = shares == 1 ? round_up(out.channels, kBlock) : kBlock, area = kBlock * kBlock;
    // Steps of 32 input channels at a time, so that all output channels find them in a core's cache: of each phase a run
    // of blocks and the places around them.
    const int64_t around = planes.count() * (kRun * kBlock + planes.distance(planes.stride, planes.stride));
    const int64_t fit = std::max<int64_t>(1, kCache / (around * parts * kDepth * 2)), each = shares > 1 ? depths : fit;
    constexpr int64_t kProducts = parts * (parts + 1) / 2;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        const TileConfig config;
        _tile_loadconfig(&config);
        auto* sums = reinterpret_cast<float*>(sums_space.get(2 * kRun * share * kBlock));
        failed = sums == nullptr;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < runs * shares; ++task) {
            const int64_t run = task / shares * kRun, first = task % shares * share;
            const int64_t last = std::min(first + share, out.channels), end = std::min(run + kRun, blocks);
            const int64_t lines = div_up(parts * kTile, kProducts * (end - run));  // That come nearer, of each half.
            if (sums == nullptr) continue;
            for (int64_t begin = 0; begin < depths; begin += each) {
                const int64_t stop = std::min(begin + each, depths);
                for (int64_t channel = first; channel < last; channel += kBlock) {
                    const bfloat16* weights = packed + channel / kTile * panel;
                    const bfloat16* next = weights + (channel + kBlock < last ? 2 * panel : 0);
                    for (int64_t b = run; b < end; ++b) {
                        float* block = sums + ((channel - first) / kBlock * kRun + b - run) * area;
                        begin == 0 ? zero_sums() : load_sums(block);
                        for (int64_t t = 0; t < count; ++t)
                            for (int64_t d = begin; d < stop; ++d) {
                                const int64_t at = (t * depths + d) * parts * kTileSize;
                                const bfloat16* line = next + at + (b - run) * lines * kProducts * kDepth;
                                multiply<parts>({x + d * parts * size + taps[t].offset + starts[b] * kDepth, size, kTileSize},
                                                64, {weights + at, kTileSize, panel}, [&] {
                                    for (int64_t i = 0; i < lines; ++i, line += kDepth) {
                                        _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
                                        _mm_prefetch(reinterpret_cast<const char*>(line + panel), _MM_HINT_T1);
                                    }
                                });
                            }
                        store_sums(block);
                        if (stop == depths) store_block(block, out, table.data() + starts[b], channel);
                    }
                }
            }
        }
        _tile_release();
    }
    return failed == 0;
}

// Where the caller keeps the tiles of weights that stay as they are, one call of `run` after the other; or nowhere.
struct Kept {
    bfloat16* tiles;
    bool there;  // From an earlier call.
};

// An image batch in planes, to be convolved once or, for each phase of a larger output, several times.
class Buffers {
  public:
    bool fill(const float* x, const Table& table, int64_t channels, int64_t depth, int64_t parts) {
        size_ = static_cast<int64_t>(table.size()) * kDepth;
        planes_ = workspaces[0].get(parts * size_ * (depth / kDepth));
        if (planes_ == nullptr) return false;
        fill_planes(x, channels, table, depth, parts, planes_);
        return true;
    }

    bool run(const Weights& weights, const std::vector<Tap>& taps, const Planes& planes, int64_t depth,
             const Target& out, int64_t parts, Kept& kept) const {
        const auto count = static_cast<int64_t>(taps.size());
        const int64_t size = parts * round_up(out.channels, kBlock) * count * depth;
        bfloat16* packed = kept.tiles != nullptr ? kept.tiles : workspaces[1].get(size);
        if (packed == nullptr) return false;
        if (kept.tiles == nullptr || !kept.there) pack_weights(weights, taps, parts, packed);
        if (kept.tiles != nullptr) kept.tiles += size;
        const auto with = parts == 3 ? convolve<3> : parts == 2 ? convolve<2> : convolve<1>;
        return with(planes_, size_, packed, taps, planes, depth, out);
    }

  private:
    bfloat16* planes_ = nullptr;
    int64_t size_ = 0;  // Of one part of 32 channels.
};

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
    const int64_t n = n_h_w_in[0], channels = n_h_w_in[3], depth = round_up(channels, kDepth);
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], channels, padding[0], padding[1], stride, 0, 0, n};
    planes.rows = div_up((h_w_out[0] - 1) * stride + kernel[0], stride);
    planes.pitch = div_up((h_w_out[1] - 1) * stride + kernel[1], stride);
    const int64_t length = planes.places() + kBlock + planes.distance(kernel[0] - 1, kernel[1] - 1);
    std::vector<Tap> taps;
    for (int64_t dy = 0; dy < kernel[0]; ++dy)
        for (int64_t dx = 0; dx < kernel[1]; ++dx)
            taps.push_back({(planes.phase(dy, dx) * length + planes.distance(dy, dx)) * kDepth, dy, dx});
    const Weights weights{w, w_strides[0], w_strides[1], w_strides[2], w_strides[3], h_w_out[2], channels};
    const Target target{out, h_w_out[0], h_w_out[1], h_w_out[2], 1, 0, 0};
    Buffers buffers;
    if (!buffers.fill(x, source_table(planes, length), channels, depth, parts)) return 1;
    Kept kept{static_cast<bfloat16*>(tiles), there != 0};
    return buffers.run(weights, taps, planes, depth, target, parts, kept) ? 0 : 1;
}

// PyTorch's conv_transpose2d: x [n, height, width, in], w's strides in the order out, in, y, x.
int amx_conv_transpose2d(const float* x, const float* w, float* out, const int64_t* n_h_w_in, const int64_t* h_w_out,
                         const int64_t* w_strides, const int64_t* kernel, int64_t stride, const int64_t* padding,
                         int64_t parts, void* tiles, int64_t there) {
    const int64_t n = n_h_w_in[0], channels = n_h_w_in[3], depth = round_up(channels, kDepth);
    // Output row y = t * stride + phase - padding sums the input's rows t - j with the kernel's rows phase + j * stride.
    const int64_t reach_y = (kernel[0] - 1) / stride, reach_x = (kernel[1] - 1) / stride;
    Planes planes{n, n_h_w_in[1], n_h_w_in[2], channels, reach_y, reach_x, 1, 0, 0, n};
    planes.rows = (h_w_out[0] - 1 + padding[0]) / stride + 1 + reach_y;
    planes.pitch = (h_w_out[1] - 1 + padding[1]) / stride + 1 + reach_x;
    const int64_t length = planes.places() + kBlock + planes.distance(reach_y, reach_x);
    const Weights weights{w, w_strides[0], w_strides[1], w_strides[2], w_strides[3], h_w_out[2], channels};
    Buffers buffers;
    if (!buffers.fill(x, source_table(planes, length), channels, depth, parts)) return 1;
    Kept kept{static_cast<bfloat16*>(tiles), there != 0};
    for (int64_t phase = 0; phase < stride * stride; ++phase) {
        const int64_t a = phase / stride, b = phase % stride;
        std::vector<Tap> taps;
        for (int64_t ky = a; ky < kernel[0]; ky += stride)
            for (int64_t kx = b; kx < kernel[1]; kx += stride)
                taps.push_back({planes.distance(reach_y - ky / stride, reach_x - kx / stride) * kDepth, ky, kx});
        const Target target{out, h_w_out[0], h_w_out[1], h_w_out[2], stride, a - padding[0], b - padding[1]};
        if (!buffers.run(weights, taps, planes, depth, target, parts, kept)) return 1;
    }
    return 0;
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
