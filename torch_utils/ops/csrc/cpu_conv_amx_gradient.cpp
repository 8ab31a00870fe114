// Weight gradients of float32 convolutions on AMX tiles: sums over the places of two batches in planes.

#include "cpu_conv_amx_planes.h"
#include "cpu_workspace.h"

#if defined(LIA_HAS_AMX)

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace {

using namespace amx;

constexpr int64_t kChunk = 32;  // Blocks that are summed over before the next pair of taps.

thread_local lia::Workspace left_space, right_space, sums_space;

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

// How the work is cut: a task takes 32 right channels, `rows` times 32 left ones and `taps` of the kernel. The sums are
// the same whatever these are.
struct Plan {
    int64_t columns, rows, taps, shares;  // `shares` tasks have the same right channels.

    explicit Plan(const Gradient& out)
        : columns(div_up(out.right, kBlock)), rows(div_up(out.left, kBlock)), taps(out.taps) {
        const int64_t all = rows, wanted = 2 * omp_get_max_threads();
        while (rows > 1 && columns * div_up(all, rows) < wanted) rows = div_up(rows, 2);
        if (columns * div_up(all, rows) < omp_get_max_threads()) taps = 1;
        shares = div_up(all, rows) * (out.taps / taps);
    }
};

// Sums over all places left x right, at the distance of each tap.
template <int64_t parts>
bool correlate(const Operand& a, const Operand& b, const std::vector<Shift>& shifts, const std::vector<int64_t>& starts,
               int64_t pairs, const Gradient& out) {
    const Plan plan(out);
    const int64_t groups = round_up(out.right, kBlock) / kTile, blocks = static_cast<int64_t>(starts.size());
    constexpr int64_t area = kBlock * kBlock;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        const TileConfig config;
        _tile_loadconfig(&config);
        float* sums = sums_space.get(plan.rows * plan.taps * area);
        failed = sums == nullptr;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < plan.columns * plan.shares; ++task) {
            if (sums == nullptr) continue;
            const int64_t right = task / plan.shares * kBlock, share = task % plan.shares;
            const int64_t tap = share % (out.taps / plan.taps) * plan.taps;
            const int64_t begin = share / (out.taps / plan.taps) * plan.rows * kBlock;
            const int64_t end = std::min(begin + plan.rows * kBlock, round_up(out.left, kBlock));
            // The right channels' places of a chunk stay in a core's cache, for all left channels and taps.
            for (int64_t chunk = 0; chunk < blocks; chunk += kChunk) {
                float* sum = sums;
                for (int64_t left = begin; left < end; left += kBlock) {
                    for (int64_t t = tap; t < tap + plan.taps; ++t, sum += area) {
                        const int64_t rows = (shifts[t].plane * groups + right / kTile) * pairs + shifts[t].pairs;
                        chunk == 0 ? zero_sums() : load_sums(sum);
                        for (int64_t block = chunk; block < std::min(chunk + kChunk, blocks); ++block) {
                            const int64_t from = (left / kTile * blocks + block) * kTileSize;
                            const int64_t pair = (rows + starts[block] / 2) * kDepth;
                            multiply<parts>({a.data + from, a.part, blocks * kTileSize}, 64,
                                            {b.data + pair, b.part, pairs * kDepth});
                        }
                        store_sums(sum);
                    }
                }
            }
            const float* sum = sums;
            for (int64_t left = begin; left < end; left += kBlock)
                for (int64_t t = tap; t < tap + plan.taps; ++t, sum += area) store_gradient(sum, out, left, right, t);
        }
        _tile_release();
    }
    return failed == 0;
}

}  // namespace

// out [left, right, kernel] = the sum over n, y, x of small[n, y, x, left] * big[n, y * stride + ky - padding, ...,
// right]: the weight's gradient of conv2d (small is the output's gradient) and of conv_transpose2d (big is). `parts` is
// 1 to 3, see cpu_amx.h. Returns 0; 1 for want of memory.
extern "C" int amx_weight_gradient(const float* small, const float* big, float* out, const int64_t* n_h_w_left,
                                   const int64_t* h_w_right, const int64_t* kernel, int64_t stride,
                                   const int64_t* padding, int64_t parts) {
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
    bfloat16 *a = left_space.get<bfloat16>(parts * left_size), *b = right_space.get<bfloat16>(parts * right_size);
    if (a == nullptr || b == nullptr) return 1;
    fill_left(small, left, left_table, starts, parts, a);
    fill_right(big, right, right_table, wide.count(), parts, b);
    std::vector<Shift> shifts;
    for (int64_t dy = 0; dy < kernel[0]; ++dy)
        for (int64_t dx = 0; dx < kernel[1]; ++dx) shifts.push_back({wide.phase(dy, dx), wide.distance(dy, dx) / 2});
    const Gradient gradient{out, left, right, kernel[0] * kernel[1]};
    const Operand first{a, left_size}, second{b, right_size};
    const auto with = parts == 3 ? correlate<3> : parts == 2 ? correlate<2> : correlate<1>;
    const bool done = with(first, second, shifts, starts, pairs, gradient);
    left_space.trim();  // They are half as large again as the tensors.
    right_space.trim();
    return done ? 0 : 1;
}

#endif
