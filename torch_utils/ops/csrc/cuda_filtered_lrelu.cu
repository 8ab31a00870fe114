// Bias, upsample, gain · leaky ReLU, clamp, downsample, of planes, with the upsampled image in shared memory alone.
//
// Of it two bits a pixel are kept for the gradients: 0 as it was, 1 times the slope, 2 cut off, four pixels a byte.
// With them the operator is linear, and its transpose is one of its kind with the filters changed over.

#include <cmath>

#include "cuda_common.cuh"

using namespace lia;

namespace {

enum Mode { FORGET, WRITE, READ };

struct Axis {
    int64_t size, fine, out, before_up, before_down;  // Zeros before the upsampled and the fine image.
    int up_taps, down_taps;          // Of a row or a column.
    int tile, fine_tile, in_tile;    // Of a tile: outputs, fine pixels, inputs.
};

template <class T> struct Job {
    using A = computing_t<T>;
    const T* x;
    T* y;
    const A *bias, *fu, *fd;  // A filter that is null is a single 1.
    uint8_t* mask;            // [planes, fine rows, parts(fine columns, 4)]
    int64_t planes, c;
    int mode, up, down;
    bool up_separable, down_separable, up_flip, down_flip;
    A gain, slope, limit;
    Axis ax, ay;
    int first_buffer;  // Numbers in it.
};

template <class A> __device__ void take_taps(A* to, const A* from, int count, bool flip) {
    for (int i = threadIdx.x; i < count; i += THREADS) to[i] = from ? from[flip ? count - 1 - i : i] : A(1);
}

// What one tap after the other makes of an axis: the first that meets an input, for a fine pixel of the tile.
__device__ inline int first_tap(int at, int up) { return (up - (at + up) % up) % up; }

template <class T, int UP, int UP_TAPS, int DOWN, int DOWN_TAPS>
__global__ void __launch_bounds__(THREADS) filtered(Job<T> job) {
    using A = computing_t<T>;
    DYNAMIC_SHARED(shared);
    const Axis &ax = job.ax, &ay = job.ay;
    const int up = UP ? UP : job.up, down = DOWN ? DOWN : job.down;
    const int up_x = UP ? UP_TAPS : ax.up_taps, up_y = UP ? UP_TAPS : ay.up_taps;
    const int down_x = DOWN ? DOWN_TAPS : ax.down_taps, down_y = DOWN ? DOWN_TAPS : ay.down_taps;
    A* const fu = reinterpret_cast<A*>(shared);
    A* const fd = fu + (job.up_separable ? up_x : up_x * up_y);
    A* const first = fd + (job.down_separable ? down_x : down_x * down_y);
    A* const second = first + job.first_buffer;
    A* const fine = job.up_separable ? first : second;
    A* const other = job.up_separable ? second : first;
    take_taps(fu, job.fu, int(fd - fu), job.up_flip);
    take_taps(fd, job.fd, int(first - fd), job.down_flip);
    const int64_t columns = parts(ax.out, ax.tile), rows = parts(ay.out, ay.tile), pitch = parts(ax.fine, 4);
    for (int64_t tile = blockIdx.x; tile < job.planes * rows * columns; tile += gridDim.x) {
        const int64_t plane = tile / columns / rows, column = tile % columns, row = tile / columns % rows;
        const int64_t out_x = column * ax.tile, out_y = row * ay.tile;
        const int64_t fine_x = out_x * down - ax.before_down, fine_y = out_y * down - ay.before_down;
        const int64_t in_x = -floor_div(ax.before_up - fine_x, up), in_y = -floor_div(ay.before_up - fine_y, up);
        // Of the tile's first fine pixel, on the upsampled grid, from the tile's first input on.
        const int base_x = int(fine_x - ax.before_up - in_x * up), base_y = int(fine_y - ay.before_up - in_y * up);
        const A bias = job.bias ? job.bias[plane % job.c] : A(0);
        __syncthreads();
        for (int i = threadIdx.x; i < ay.in_tile * ax.in_tile; i += THREADS) {
            const int64_t at_y = in_y + i / ax.in_tile, at_x = in_x + i % ax.in_tile;
            const bool inside = at_y >= 0 && at_y < ay.size && at_x >= 0 && at_x < ax.size;
            first[i] = inside ? A(widen(job.x[(plane * ay.size + at_y) * ax.size + at_x])) + bias : A(0);
        }
        __syncthreads();
        if (job.up_separable) {  // Rows, into the second buffer.
            for (int i = threadIdx.x; i < ay.in_tile * ax.fine_tile; i += THREADS) {
                const int line = i / ax.fine_tile, at = base_x + i % ax.fine_tile, start = first_tap(at, up);
                const A* from = first + line * ax.in_tile + (at + start) / up;
                A sum = 0;
                #pragma unroll
                for (int k = 0; k < (up_x + up - 1) / up; k++)
                    if (start + k * up < up_x) sum += fu[start + k * up] * from[k];
                second[i] = sum;
            }
            __syncthreads();
        }
        const int quads = int(parts(ax.fine_tile, 4));
        const int own_x = column + 1 < columns ? ax.tile * down : ax.fine_tile;
        const int own_y = row + 1 < rows ? ay.tile * down : ay.fine_tile;
        for (int i = threadIdx.x; i < ay.fine_tile * quads; i += THREADS) {
            const int line = i / quads, left = i % quads * 4, at_y = base_y + line, start = first_tap(at_y, up);
            const int in_line = (at_y + start) / up;
            const int64_t to_y = fine_y + line, to_x = fine_x + left;
            uint8_t bits = 0;
            for (int v = 0; v < 4 && left + v < ax.fine_tile; v++) {
                A sum = 0;
                if (job.up_separable) {
                    #pragma unroll
                    for (int k = 0; k < (up_y + up - 1) / up; k++)
                        if (start + k * up < up_y)
                            sum += fu[start + k * up] * second[(in_line + k) * ax.fine_tile + left + v];
                } else {
                    const int at_x = base_x + left + v, start_x = first_tap(at_x, up);
                    for (int t = start, j = in_line; t < up_y; t += up, j++)
                        for (int s = start_x, k = (at_x + start_x) / up; s < up_x; s += up, k++)
                            sum += fu[t * up_x + s] * first[j * ax.in_tile + k];
                }
                sum *= job.gain;
                const bool inside = to_y >= 0 && to_y < ay.fine && to_x + v >= 0 && to_x + v < ax.fine;
                if (!inside) {
                    sum = 0;
                } else if (job.mode == READ) {
                    const int four = job.mask[(plane * ay.fine + to_y) * pitch + (to_x + v) / 4];
                    const int code = four >> (to_x + v) % 4 * 2 & 3;
                    sum = code == 0 ? sum : code == 1 ? sum * job.slope : A(0);
                } else {
                    const A bent = rectify(sum, job.slope, A(INFINITY));
                    const bool cut_off = bent >= job.limit || bent <= -job.limit;
                    bits |= uint8_t(cut_off ? 2 : sum > 0 ? 0 : 1) << 2 * v;
                    sum = rectify(bent, A(1), job.limit);
                }
                fine[line * ax.fine_tile + left + v] = sum;
            }
            if (job.mode == WRITE && left < own_x && line < own_y && to_y < ay.fine && to_x < ax.fine)
                job.mask[(plane * ay.fine + to_y) * pitch + to_x / 4] = bits;
        }
        __syncthreads();
        if (job.down_separable) {  // Rows, into the buffer that is free.
            for (int i = threadIdx.x; i < ay.fine_tile * ax.tile; i += THREADS) {
                const A* from = fine + i / ax.tile * ax.fine_tile + i % ax.tile * down;
                A sum = 0;
                #pragma unroll
                for (int s = 0; s < down_x; s++) sum += fd[s] * from[s];
                other[i] = sum;
            }
            __syncthreads();
        }
        for (int i = threadIdx.x; i < ay.tile * ax.tile; i += THREADS) {
            const int line = i / ax.tile, at = i % ax.tile;
            if (out_y + line >= ay.out || out_x + at >= ax.out) continue;
            A sum = 0;
            if (job.down_separable) {
                #pragma unroll
                for (int t = 0; t < down_y; t++) sum += fd[t] * other[(line * down + t) * ax.tile + at];
            } else {
                for (int t = 0; t < down_y; t++)
                    for (int s = 0; s < down_x; s++)
                        sum += fd[t * down_x + s] * fine[(line * down + t) * ax.fine_tile + at * down + s];
            }
            job.y[(plane * ay.out + out_y + line) * ax.out + out_x + at] = narrow<T>(sum);
        }
    }
}

constexpr int TWICE = -2;  // No tile fits into shared memory.

void set_tile(Axis& axis, int64_t tile, int up, int down) {
    axis.tile = int(smaller(tile, parts(axis.out, 4) * 4));  // A multiple of 4: no byte of the mask is two tiles'.
    axis.fine_tile = (axis.tile - 1) * down + int(larger(axis.down_taps, down));
    axis.in_tile = (axis.fine_tile + axis.up_taps - 2) / up + 1;
}

// The largest tile that fits; gives the bytes of shared memory, or 0.
template <class T> size_t fit(Job<T>& job) {
    for (int64_t tile = 32; tile >= 4; tile /= 2) {
        Axis &ax = job.ax, &ay = job.ay;
        set_tile(ax, tile, job.up, job.down);
        set_tile(ay, tile, job.up, job.down);
        const int64_t in = int64_t(ay.in_tile) * ax.in_tile, fine = int64_t(ay.fine_tile) * ax.fine_tile;
        const int64_t low = job.down_separable ? int64_t(ay.fine_tile) * ax.tile : 0;
        const int64_t first = larger(in, job.up_separable ? fine : low);
        const int64_t second = job.up_separable ? larger(int64_t(ay.in_tile) * ax.fine_tile, low) : fine;
        const int64_t taps = int64_t(ax.up_taps) * (job.up_separable ? 1 : ay.up_taps) +
                             int64_t(ax.down_taps) * (job.down_separable ? 1 : ay.down_taps);
        const int64_t bytes = (taps + first + second) * int64_t(sizeof(computing_t<T>));
        job.first_buffer = int(first);
        if (bytes <= SHARED_BYTES) return size_t(bytes);
    }
    return 0;
}

template <class T> int run(Job<T> job, const Where& where) {
    const size_t bytes = fit(job);
    if (!bytes) return TWICE;
    if (job.mode < 0) return 0;
    auto kernel = filtered<T, 0, 0, 0, 0>;
    const auto is = [&](int up, int up_taps, int down, int down_taps) {
        return job.up_separable && job.down_separable && job.up == up && job.ax.up_taps == up_taps &&
               job.down == down && job.ax.down_taps == down_taps;
    };
    if (is(2, 12, 2, 12)) kernel = filtered<T, 2, 12, 2, 12>;
    if (is(4, 24, 2, 12)) kernel = filtered<T, 4, 24, 2, 12>;
    if (is(2, 12, 4, 24)) kernel = filtered<T, 2, 12, 4, 24>;
    return launch(kernel, job.planes * parts(job.ax.out, job.ax.tile) * parts(job.ay.out, job.ay.tile), THREADS, bytes,
                  where, job);
}

}  // namespace

// axes: size, fine size, out size, zeros before the upsampled image and before the fine one, of x and then of y. taps:
// up and down, width and height of each; a separable filter, of one row, has its width twice. mode: 0 forgets, 1 writes
// and 2 reads the mask, -1 only asks. Gives -2, and
// does nothing, if no tile fits.
extern "C" int filtered_lrelu(const void* x, void* y, const void* bias, const void* fu, const void* fd, void* mask,
                              int64_t mode, int64_t n, int64_t c, const int64_t* axes, const int64_t* taps,
                              int64_t up_separable, int64_t down_separable, int64_t up_flip, int64_t down_flip,
                              int64_t up, int64_t down, double gain, double slope, double limit, int64_t type,
                              int64_t device, void* stream) {
    return by_type(type, [&](auto zero) {
        using T = decltype(zero);
        using A = computing_t<T>;
        const Job<T> job{(const T*)x, (T*)y, (const A*)bias, (const A*)fu, (const A*)fd, (uint8_t*)mask, n * c, c,
                         int(mode), int(up), int(down), up_separable != 0, down_separable != 0, up_flip != 0,
                         down_flip != 0, A(gain), A(slope), A(limit),
                         {axes[0], axes[1], axes[2], axes[3], axes[4], int(taps[0]), int(taps[2]), 0, 0, 0},
                         {axes[5], axes[6], axes[7], axes[8], axes[9], int(taps[1]), int(taps[3]), 0, 0, 0}, 0};
        return run(job, {device, stream});
    });
}
