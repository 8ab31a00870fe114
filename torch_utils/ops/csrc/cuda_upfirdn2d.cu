// Upsample, filter, downsample: y[o] = gain * sum over taps t of f[t] * fine[o * down + t - before], where fine[p] is
// x[p / up] if up divides p, else 0, along both axes.
//
// Three kernels. `blocks`, for channels_last: a thread holds 16 bytes of channels and a block of output pixels, whose
// inputs it reads once. `tiles`, for planes: input tiles in shared memory. `any`: one output a thread, for the rest.
// The first two are made for factors of 1 and 2 and 4 or 12 taps, so that loops unroll and taps stay in registers.

#include "cuda_common.cuh"

using namespace lia;

namespace {

struct Axis {
    int64_t size, out_size, up, down, before;
};

template <class T> struct Job {
    using A = computing_t<T>;
    const T* x;
    T* y;
    const A* f;             // [height, width]
    const A* f_y;           // The columns' filter, where f [1, width] is the rows' alone; else null.
    int height, width;
    bool flip;              // Convolve.
    A gain;
    int64_t n, c;
    Axis ax, ay;
    int64_t stride_n, stride_c, stride_y, stride_x;  // Of x. y is dense.
    bool last;

    __device__ A tap(int row, int column) const {
        return flip ? f[(height - 1 - row) * width + width - 1 - column] : f[row * width + column];
    }
};

// The first tap that meets a pixel, not a zero between pixels.
__host__ __device__ inline int64_t first_tap(const Axis& axis, int64_t out) {
    return modulo(axis.before - out * axis.down, axis.up);
}

template <class T> __global__ void __launch_bounds__(THREADS) any(Job<T> job) {
    using A = computing_t<T>;
    const Axis &ax = job.ax, &ay = job.ay;
    const int64_t count = job.n * job.c * ay.out_size * ax.out_size, step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = blockIdx.x * int64_t(THREADS) + threadIdx.x; i < count; i += step) {
        int64_t rest = i, c = 0;
        if (job.last) c = rest % job.c, rest /= job.c;
        const int64_t out_x = rest % ax.out_size;
        rest /= ax.out_size;
        const int64_t out_y = rest % ay.out_size;
        rest /= ay.out_size;
        if (!job.last) c = rest % job.c, rest /= job.c;
        const T* x = job.x + rest * job.stride_n + c * job.stride_c;
        const int64_t first_x = first_tap(ax, out_x), first_y = first_tap(ay, out_y);
        const int64_t from_x = floor_div(out_x * ax.down - ax.before + first_x, ax.up);
        int64_t row = floor_div(out_y * ay.down - ay.before + first_y, ay.up);
        A sum = 0;
        for (int64_t t = first_y; t < job.height; t += ay.up, row++) {
            if (row < 0 || row >= ay.size) continue;
            int64_t column = from_x;
            for (int64_t s = first_x; s < job.width; s += ax.up, column++)
                if (column >= 0 && column < ax.size)
                    sum += job.tap(int(t), int(s)) * A(widen(x[row * job.stride_y + column * job.stride_x]));
        }
        job.y[i] = narrow<T>(sum * job.gain);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What a thread does of one axis: B outputs, whose first meets a pixel with tap 0, from `IN` inputs.

template <int UP, int DOWN, int TAPS, int B> struct Part {
    static constexpr int up = UP, down = DOWN, taps = TAPS, outputs = B;
    static constexpr int inputs = ((B - 1) * DOWN + TAPS - 1) / UP + 1;
    static_assert(B % UP == 0 && (UP == 1 || DOWN == 1), "all blocks of an axis have to be alike");

    // Outputs are counted from here, at or before 0, so that all blocks begin alike.
    __host__ __device__ static int64_t origin(const Axis& axis) { return UP == 1 ? 0 : -modulo(-axis.before, UP); }
    __host__ __device__ static int64_t blocks(const Axis& axis) { return parts(axis.out_size - origin(axis), B); }
    // The input that output `out` begins at, `out` being an origin plus a multiple of B.
    __device__ static int64_t input(const Axis& axis, int64_t out) { return floor_div(out * DOWN - axis.before, UP); }
};

// Adds to B × B' sums what one row of inputs gives them; row: its place among the inputs.
template <class X, class Y, class A, int V>
__device__ inline void add_row(A (&sums)[Y::outputs][X::outputs][V], const A (&in)[X::inputs][V], int row,
                               const A (&f)[Y::taps][X::taps]) {
    #pragma unroll
    for (int b = 0; b < Y::outputs; b++) {
        const int t = row * Y::up - b * Y::down;
        if (t < 0 || t >= Y::taps) continue;
        #pragma unroll
        for (int a = 0; a < X::outputs; a++)
            #pragma unroll
            for (int i = 0; i < X::inputs; i++) {
                const int s = i * X::up - a * X::down;
                if (s < 0 || s >= X::taps) continue;
                #pragma unroll
                for (int v = 0; v < V; v++) sums[b][a][v] += in[i][v] * f[t][s];
            }
    }
}

template <class T, class X, class Y> __global__ void __launch_bounds__(THREADS) blocks(Job<T> job) {
    using A = computing_t<T>;
    constexpr int V = WIDE<T>;
    A f[Y::taps][X::taps];
    #pragma unroll
    for (int t = 0; t < Y::taps; t++)
        #pragma unroll
        for (int s = 0; s < X::taps; s++) f[t][s] = job.tap(t, s) * job.gain;
    const int64_t groups = job.c / V, columns = X::blocks(job.ax), rows = Y::blocks(job.ay);
    const int64_t count = job.n * rows * columns * groups, step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = blockIdx.x * int64_t(THREADS) + threadIdx.x; i < count; i += step) {
        const int64_t c = i % groups * V, out_x = X::origin(job.ax) + i / groups % columns * X::outputs;
        const int64_t line = i / groups / columns, out_y = Y::origin(job.ay) + line % rows * Y::outputs;
        const int64_t image = line / rows, in_x = X::input(job.ax, out_x), in_y = Y::input(job.ay, out_y);
        const T* x = job.x + image * job.stride_n + c;
        A sums[Y::outputs][X::outputs][V] = {};
        #pragma unroll
        for (int row = 0; row < Y::inputs; row++) {
            if (in_y + row < 0 || in_y + row >= job.ay.size) continue;
            A in[X::inputs][V] = {};
            #pragma unroll
            for (int k = 0; k < X::inputs; k++)
                if (in_x + k >= 0 && in_x + k < job.ax.size)
                    load<V>(x + (in_y + row) * job.stride_y + (in_x + k) * job.stride_x, in[k]);
            add_row<X, Y, A, V>(sums, in, row, f);
        }
        #pragma unroll
        for (int b = 0; b < Y::outputs; b++)
            #pragma unroll
            for (int a = 0; a < X::outputs; a++) {
                const int64_t to_y = out_y + b, to_x = out_x + a;
                if (to_y >= 0 && to_y < job.ay.out_size && to_x >= 0 && to_x < job.ax.out_size)
                    store<V>(job.y + ((image * job.ay.out_size + to_y) * job.ax.out_size + to_x) * job.c + c,
                             sums[b][a]);
            }
    }
}

// One plane's tile of WIDTH × HEIGHT outputs. 4×4 taps straight from the input tile; separable ones by way of a second
// tile, whose rows are filtered already.
template <int UP, int DOWN, int TAPS> struct Tile {
    static constexpr bool separable = TAPS > 4;
    static constexpr int WIDTH = 32, HEIGHT = DOWN == 2 ? 16 : 32;
    using X = Part<UP, DOWN, TAPS, UP>;
    using Y = Part<UP, DOWN, TAPS, UP == 2 ? 4 : DOWN == 2 ? 2 : 4>;
    using Whole = Part<UP, DOWN, TAPS, WIDTH>;
    using High = Part<UP, DOWN, TAPS, HEIGHT>;
    static constexpr int in_width = Whole::inputs, in_height = High::inputs;
};

template <class T, int UP, int DOWN, int TAPS> __global__ void __launch_bounds__(THREADS) tiles(Job<T> job) {
    using A = computing_t<T>;
    using Size = Tile<UP, DOWN, TAPS>;
    using X = typename Size::X;
    using Y = typename Size::Y;
    using One = Part<1, 1, 1, 1>;
    __shared__ A input[Size::in_height][Size::in_width];
    __shared__ A middle[Size::separable ? Size::in_height : 1][Size::WIDTH];
    constexpr int ROWS = Size::separable ? 1 : TAPS;
    A f[ROWS][TAPS], f_y[TAPS][1];
    #pragma unroll
    for (int t = 0; t < TAPS; t++) {
        #pragma unroll
        for (int s = 0; s < ROWS; s++)
            f[s][t] = job.gain * (Size::separable ? job.f[job.flip ? TAPS - 1 - t : t] : job.tap(s, t));
        f_y[t][0] = Size::separable ? job.f_y[job.flip ? TAPS - 1 - t : t] : A(0);
    }
    const int64_t columns = Size::Whole::blocks(job.ax), rows = Size::High::blocks(job.ay);
    for (int64_t tile = blockIdx.x; tile < job.n * job.c * rows * columns; tile += gridDim.x) {
        const int64_t out_x = X::origin(job.ax) + tile % columns * Size::WIDTH;
        const int64_t out_y = Y::origin(job.ay) + tile / columns % rows * Size::HEIGHT;
        const int64_t plane = tile / columns / rows, in_x = X::input(job.ax, out_x), in_y = Y::input(job.ay, out_y);
        const T* x = job.x + plane / job.c * job.stride_n + plane % job.c * job.stride_c;
        __syncthreads();
        for (int i = threadIdx.x; i < Size::in_height * Size::in_width; i += THREADS) {
            const int64_t row = in_y + i / Size::in_width, column = in_x + i % Size::in_width;
            const bool inside = row >= 0 && row < job.ay.size && column >= 0 && column < job.ax.size;
            input[i / Size::in_width][i % Size::in_width] =
                inside ? A(widen(x[row * job.stride_y + column * job.stride_x])) : A(0);
        }
        __syncthreads();
        if constexpr (Size::separable) {
            constexpr int ACROSS = Size::WIDTH / X::outputs;
            for (int i = threadIdx.x; i < Size::in_height * ACROSS; i += THREADS) {
                const int row = i / ACROSS, at = i % ACROSS;
                A sums[1][X::outputs][1] = {}, in[X::inputs][1];
                #pragma unroll
                for (int k = 0; k < X::inputs; k++) in[k][0] = input[row][at * X::outputs * DOWN / UP + k];
                add_row<X, One, A, 1>(sums, in, 0, f);
                #pragma unroll
                for (int a = 0; a < X::outputs; a++) middle[row][at * X::outputs + a] = sums[0][a][0];
            }
            __syncthreads();
        }
        // A thread goes down Y::outputs rows; separable filters have one column left to do, others X::outputs.
        using Across = typename Choose<Size::separable, One, X>::type;
        constexpr int ACROSS = Size::WIDTH / Across::outputs, DOWNWARDS = Size::HEIGHT / Y::outputs;
        for (int i = threadIdx.x; i < ACROSS * DOWNWARDS; i += THREADS) {
            const int at_x = i % ACROSS * Across::outputs, at_y = i / ACROSS * Y::outputs;
            A sums[Y::outputs][Across::outputs][1] = {};
            #pragma unroll
            for (int row = 0; row < Y::inputs; row++) {
                A in[Across::inputs][1];
                #pragma unroll
                for (int k = 0; k < Across::inputs; k++)
                    in[k][0] = Size::separable ? middle[at_y * DOWN / UP + row][at_x]
                                               : input[at_y * DOWN / UP + row][at_x * DOWN / UP + k];
                if constexpr (Size::separable) add_row<Across, Y, A, 1>(sums, in, row, f_y);
                else add_row<Across, Y, A, 1>(sums, in, row, f);
            }
            #pragma unroll
            for (int b = 0; b < Y::outputs; b++)
                #pragma unroll
                for (int a = 0; a < Across::outputs; a++) {
                    const int64_t to_y = out_y + at_y + b, to_x = out_x + at_x + a;
                    if (to_y >= 0 && to_y < job.ay.out_size && to_x >= 0 && to_x < job.ax.out_size)
                        job.y[(plane * job.ay.out_size + to_y) * job.ax.out_size + to_x] = narrow<T>(sums[b][a][0]);
                }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Choices

constexpr int OTHER = -1;    // No kernel of this kind.
constexpr int TWICE = -2;    // What upfirdn2d gives where both passes of a separable filter need a call of their own.
constexpr int SMALL = 256;   // Planes of fewer pixels leave most of a tile idle.

template <class T, class X, class Y> int run_blocks(const Job<T>& job, const Where& where) {
    const int64_t count = job.n * Y::blocks(job.ay) * X::blocks(job.ax) * (job.c / WIDE<T>);
    return launch(blocks<T, X, Y>, parts(count, THREADS), THREADS, 0, where, job);
}

bool is(const Axis& axis, int up, int down) { return axis.up == up && axis.down == down; }

// Channels last: 4×4 taps, or 12 along one axis, the other being left as it is.
template <class T, int UP, int DOWN> int try_blocks(const Job<T>& job, const Where& where) {
    using One = Part<1, 1, 1, 1>;
    constexpr bool half = sizeof(T) == 2;  // 8 channels a thread: fewer outputs, for want of registers.
    constexpr int FEW = DOWN == 2 ? 1 : 2, MORE = DOWN == 2 || (half && UP == 1) ? 2 : 4, ALONG = half ? UP : MORE;
    const bool fits = job.last && job.c % WIDE<T> == 0 && job.stride_c == 1 && job.stride_x % WIDE<T> == 0 &&
                      job.stride_y % WIDE<T> == 0 && job.stride_n % WIDE<T> == 0 && uintptr_t(job.x) % 16 == 0;
    const bool x = is(job.ax, UP, DOWN), y = is(job.ay, UP, DOWN);
    if (!fits) return OTHER;
    if (x && y && job.width == 4 && job.height == 4)
        return run_blocks<T, Part<UP, DOWN, 4, FEW>, Part<UP, DOWN, 4, MORE>>(job, where);
    if (x && is(job.ay, 1, 1) && job.width == 12 && job.height == 1)
        return run_blocks<T, Part<UP, DOWN, 12, ALONG>, One>(job, where);
    if (y && is(job.ax, 1, 1) && job.width == 1 && job.height == 12)
        return run_blocks<T, One, Part<UP, DOWN, 12, MORE>>(job, where);
    return OTHER;
}

template <class T, int UP, int DOWN> int try_tiles(const Job<T>& job, const Where& where) {
    if (job.last || !is(job.ax, UP, DOWN) || !is(job.ay, UP, DOWN) || job.ax.out_size * job.ay.out_size < SMALL)
        return OTHER;
    const auto run = [&](auto taps) {
        using Size = Tile<UP, DOWN, decltype(taps)::value>;
        const int64_t count = job.n * job.c * Size::Whole::blocks(job.ax) * Size::High::blocks(job.ay);
        return launch(tiles<T, UP, DOWN, decltype(taps)::value>, count, THREADS, 0, where, job);
    };
    if (job.f_y) return job.width == 12 && job.height == 12 ? run(Number<12>()) : OTHER;
    return job.width == 4 && job.height == 4 ? run(Number<4>()) : OTHER;
}

template <class T> int run(Job<T> job, const Where& where) {
    int done = OTHER;
    if constexpr (sizeof(T) < 8) {  // float64 is for checks.
        done = try_tiles<T, 1, 1>(job, where);
        if (done == OTHER) done = try_tiles<T, 2, 1>(job, where);
        if (done == OTHER) done = try_tiles<T, 1, 2>(job, where);
        if (done == OTHER && !job.f_y) done = try_blocks<T, 1, 1>(job, where);
        if (done == OTHER && !job.f_y) done = try_blocks<T, 2, 1>(job, where);
        if (done == OTHER && !job.f_y) done = try_blocks<T, 1, 2>(job, where);
    }
    if (done != OTHER) return done;
    if (job.f_y) return TWICE;
    const int64_t count = job.n * job.c * job.ax.out_size * job.ay.out_size;
    return launch(any<T>, parts(count, THREADS), THREADS, 0, where, job);
}

}  // namespace

// f [height, width] correlates as it lies, or with flip convolves; with `separable` it is [width] and stands for its
// outer product with itself. axes: size, out_size, up, down, zeros before, of x and then of y. strides: of x, in the
// order NCHW. y is dense, NHWC with `last`. Gives -2, and does nothing, if a separable filter takes two calls.
extern "C" int upfirdn2d(const void* x, void* y, const void* f, int64_t height, int64_t width, int64_t separable,
                         int64_t flip, double gain, int64_t n, int64_t c, const int64_t* axes, const int64_t* strides,
                         int64_t last, int64_t type, int64_t device, void* stream) {
    return by_type(type, [&](auto zero) {
        using T = decltype(zero);
        using A = computing_t<T>;
        const Job<T> job{(const T*)x, (T*)y, (const A*)f, separable ? (const A*)f : nullptr, int(height), int(width),
                         flip != 0, A(gain), n, c, {axes[0], axes[1], axes[2], axes[3], axes[4]},
                         {axes[5], axes[6], axes[7], axes[8], axes[9]}, strides[0], strides[1], strides[2], strides[3],
                         last != 0};
        return run(job, {device, stream});
    });
}
