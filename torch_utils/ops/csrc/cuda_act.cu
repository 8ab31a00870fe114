// Scale, noise, bias, rectifier, gain and clamp in one pass, and all gradients of that in one more.
//
// A tensor is [images, outer, inner] with `inner` contiguous: channels last [N, pixels, C], or planes [N, C, pixels].
// A thread keeps V neighbours along `inner` and goes down `outer`, so that what belongs to an inner position (NHWC: a
// channel's scale; NCHW: a pixel's noise) stays in its registers, and no index has to be divided on the way.
// Tensors start at multiples of 16 bytes.

#include "cuda_common.cuh"

using namespace lia;

namespace {

// How [images, outer, inner] is cut: `lanes` threads of V items along inner, THREADS / lanes rows at a time.
struct Cut {
    int64_t images, outer, inner, groups, rows, chunks;  // rows: of a chunk.
    int lanes;

    Cut(int64_t images, int64_t outer, int64_t inner, int vector, int64_t most)
        : images(images), outer(outer), inner(inner) {
        lanes = 1;
        while (lanes < 32 && lanes * vector < inner) lanes *= 2;
        groups = parts(inner, lanes * vector);
        const int64_t lines = THREADS / lanes, enough = 1024;  // Blocks that keep a large card busy.
        const int64_t rounds = images * groups * parts(outer, lines) / enough;
        rows = lines * larger(1, smaller(rounds, most));
        chunks = parts(outer, rows);
    }
    __host__ __device__ int64_t blocks() const { return images * groups * chunks; }
};

// What one block does of it.
struct Place {
    int64_t image, group, chunk, first, last;

    __device__ Place(const Cut& cut, int64_t block) {
        group = block % cut.groups;
        chunk = block / cut.groups % cut.chunks;
        image = block / cut.groups / cut.chunks;
        first = chunk * cut.rows;
        last = smaller(first + cut.rows, cut.outer);
    }
};

template <class A> struct Act {
    const A *scale, *noise, *bias;  // [N, C], [N, pixels] or, with noise_stride 0, [pixels], [C]; or null.
    int64_t noise_stride;
    A factor, alpha, gain, limit;

    // Of a channel and of a pixel; the gain is drawn into the rectifier.
    __device__ A slope(int64_t image, int64_t channels, int64_t c) const {
        return gain * factor * (scale ? scale[image * channels + c] : A(1));
    }
    __device__ A offset(int64_t c) const { return bias ? gain * bias[c] : A(0); }
    __device__ A lift(int64_t image, int64_t pixel) const {
        return noise ? gain * noise[image * noise_stride + pixel] : A(0);
    }
};

template <class T> struct Forward {
    const T* x;
    T* y;
    int64_t x_stride;  // From one image of x to the next; 0 where one stands for all.
    Cut cut;
    Act<computing_t<T>> act;
};

template <class T, int V, bool LAST> __global__ void __launch_bounds__(THREADS) forward(Forward<T> job) {
    using A = computing_t<T>;
    const Cut& cut = job.cut;
    const Act<A>& act = job.act;
    const int lane = threadIdx.x % cut.lanes, line = threadIdx.x / cut.lanes, lines = THREADS / cut.lanes;
    for (int64_t block = blockIdx.x; block < cut.blocks(); block += gridDim.x) {
        const Place place(cut, block);
        const int64_t inner = (place.group * cut.lanes + lane) * V;
        if (inner >= cut.inner) continue;
        A slope[V], add[V];
        #pragma unroll
        for (int v = 0; v < V; v++) {
            slope[v] = LAST ? act.slope(place.image, cut.inner, inner + v) : A(1);
            add[v] = LAST ? act.offset(inner + v) : act.lift(place.image, inner + v);
        }
        const T* x = job.x + place.image * job.x_stride + inner;
        T* y = job.y + place.image * cut.outer * cut.inner + inner;
        for (int64_t row = place.first + line; row < place.last; row += lines) {
            const A steep = LAST ? A(1) : act.slope(place.image, cut.outer, row);
            const A raised = LAST ? act.lift(place.image, row) : act.offset(row);
            A value[V];
            load<V>(x + row * cut.inner, value);
            #pragma unroll
            for (int v = 0; v < V; v++)
                value[v] = rectify(value[v] * (LAST ? slope[v] : steep) + (add[v] + raised), act.alpha, act.limit);
            store<V>(y + row * cut.inner, value);
        }
    }
}

template <class T> struct Backward {
    using A = computing_t<T>;
    const T *grad, *y, *x;  // y null: no rectifier; x null: no sums of products.
    T* grad_x;              // or null
    // Sums of what comes back, and of its products with x: [images, chunks, inner] over the rows of a chunk and
    // [images, groups, outer] over the columns of a group; or null.
    A *inner_sums, *inner_products, *outer_sums, *outer_products;
    int64_t x_stride;
    Cut cut;
    Act<A> act;
};

// Adds up V values a thread over the block's lines, and writes the sum for each column.
template <class A, int V>
__device__ void sum_lines(A* shared, const A (&value)[V], A* to, int64_t inner, const Cut& cut) {
    const int lane = threadIdx.x % cut.lanes, line = threadIdx.x / cut.lanes, lines = THREADS / cut.lanes;
    const int width = cut.lanes * V;
    __syncthreads();
    #pragma unroll
    for (int v = 0; v < V; v++) shared[line * width + lane * V + v] = value[v];
    __syncthreads();
    for (int column = threadIdx.x; column < width; column += THREADS) {
        A sum = 0;
        for (int i = 0; i < lines; i++) sum += shared[i * width + column];
        if (inner + column < cut.inner) to[inner + column] = sum;
    }
}

template <class A> __device__ inline A sum_lanes(A value, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

template <class T, int V, bool LAST> __global__ void __launch_bounds__(THREADS) backward(Backward<T> job) {
    using A = computing_t<T>;
    __shared__ A shared[THREADS * V];
    const Cut& cut = job.cut;
    const Act<A>& act = job.act;
    const int lane = threadIdx.x % cut.lanes, line = threadIdx.x / cut.lanes, lines = THREADS / cut.lanes;
    for (int64_t block = blockIdx.x; block < cut.blocks(); block += gridDim.x) {
        const Place place(cut, block);
        const int64_t start = place.group * cut.lanes * V, inner = start + lane * V;
        const int64_t origin = place.image * cut.outer * cut.inner + inner;
        const bool inside = inner < cut.inner;
        A slope[V], sums[V], products[V];
        #pragma unroll
        for (int v = 0; v < V; v++) {
            slope[v] = LAST && inside && act.scale ? act.scale[place.image * cut.inner + inner + v] : A(1);
            sums[v] = products[v] = 0;
        }
        for (int64_t top = place.first; top < place.last; top += lines) {  // All threads of a warp, for its sums.
            const int64_t row = top + line, at = origin + row * cut.inner;
            const bool here = inside && row < place.last;
            A sum = 0, product = 0;
            if (here) {
                A grad[V];
                load<V>(job.grad + at, grad);
                if (job.y) {
                    A y[V];
                    load<V>(job.y + at, y);
                    #pragma unroll
                    for (int v = 0; v < V; v++) {
                        const bool cut_off = y[v] >= act.limit || y[v] <= -act.limit;
                        grad[v] = cut_off ? A(0) : grad[v] * (y[v] > 0 ? act.gain : act.gain * act.alpha);
                    }
                } else {
                    #pragma unroll
                    for (int v = 0; v < V; v++) grad[v] *= act.gain;
                }
                if (job.x) {
                    A x[V];
                    load<V>(job.x + place.image * job.x_stride + row * cut.inner + inner, x);
                    #pragma unroll
                    for (int v = 0; v < V; v++) {
                        const A both = grad[v] * x[v];
                        products[v] += both;
                        product += both;
                    }
                }
                #pragma unroll
                for (int v = 0; v < V; v++) {
                    sums[v] += grad[v];
                    sum += grad[v];
                }
                if (job.grad_x) {
                    const A steep = LAST || !act.scale ? A(1) : act.scale[place.image * cut.outer + row];
                    #pragma unroll
                    for (int v = 0; v < V; v++) grad[v] *= act.factor * (LAST ? slope[v] : steep);
                    store<V>(job.grad_x + at, grad);
                }
            }
            const int64_t to = (place.image * cut.groups + place.group) * cut.outer + row;
            if (job.outer_sums) {
                sum = sum_lanes(sum, cut.lanes);
                if (lane == 0 && row < place.last) job.outer_sums[to] = sum;
            }
            if (job.outer_products) {
                product = sum_lanes(product, cut.lanes);
                if (lane == 0 && row < place.last) job.outer_products[to] = product;
            }
        }
        const int64_t to = (place.image * cut.chunks + place.chunk) * cut.inner;
        if (job.inner_sums) sum_lines<A, V>(shared, sums, job.inner_sums + to, start, cut);
        if (job.inner_products) sum_lines<A, V>(shared, products, job.inner_products + to, start, cut);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums of sums

template <class A> struct Reduce {
    const A* from;  // [batches, each, size]
    A* to;          // [batches, splits, size]
    int64_t batches, each, size, splits;
    A factor;
};

constexpr int COLUMNS = 32, SPAN = 256;  // SPAN: so many numbers are added up in one go.

template <class A> __global__ void __launch_bounds__(THREADS) reduce(Reduce<A> job) {
    constexpr int LINES = THREADS / COLUMNS;
    __shared__ A shared[THREADS];
    const int column = threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    const int64_t groups = parts(job.size, COLUMNS), span = parts(job.each, job.splits);
    for (int64_t block = blockIdx.x; block < job.batches * job.splits * groups; block += gridDim.x) {
        const int64_t i = block % groups * COLUMNS + column, split = block / groups % job.splits;
        const int64_t batch = block / groups / job.splits, last = smaller((split + 1) * span, job.each);
        A sum = 0;
        if (i < job.size)
            for (int64_t k = split * span + line; k < last; k += LINES)
                sum += job.from[(batch * job.each + k) * job.size + i];
        __syncthreads();
        shared[threadIdx.x] = sum;
        __syncthreads();
        if (line || i >= job.size) continue;
        for (int other = 1; other < LINES; other++) sum += shared[other * COLUMNS + column];
        job.to[(batch * job.splits + split) * job.size + i] = sum * job.factor;
    }
}

int64_t splits_of(int64_t each) { return each > 2 * SPAN ? parts(each, SPAN) : 1; }

// [batches, each, size] to [batches, size]; `more` has room for the sums of parts where there are too many for one go.
template <class A>
int reduce_all(const A* from, A* to, A* more, int64_t batches, int64_t each, int64_t size, A factor,
               const Where& where) {
    const int64_t splits = splits_of(each), blocks = batches * parts(size, COLUMNS);
    const Reduce<A> whole{from, to, batches, each, size, 1, factor};
    if (splits == 1) return launch(reduce<A>, blocks, THREADS, 0, where, whole);
    const Reduce<A> first{from, more, batches, each, size, splits, A(1)};
    const int error = launch(reduce<A>, blocks * splits, THREADS, 0, where, first);
    return error ? error : reduce_all(more, to, more + batches * splits * size, batches, splits, size, factor, where);
}

int64_t room(int64_t batches, int64_t each, int64_t size) {
    const int64_t splits = splits_of(each);
    return splits == 1 ? 0 : batches * splits * size + room(batches, splits, size);
}

// ---------------------------------------------------------------------------------------------------------------------
// Choices

// run(V, LAST) with numbers that the compiler knows; a vector has to divide a row.
template <class T, class Run> int by_layout(int64_t inner, bool last, const Run& run) {
    using Many = Number<WIDE<T>>;
    using One = Number<1>;
    if (inner % WIDE<T> == 0) return last ? run(Many(), Number<1>()) : run(Many(), Number<0>());
    return last ? run(One(), Number<1>()) : run(One(), Number<0>());
}

constexpr int FORWARD_ROUNDS = 8, BACKWARD_ROUNDS = 32;  // Rows that a thread goes down, at most.

Cut cut_of(int64_t n, int64_t c, int64_t pixels, bool last, int wide, int64_t rounds) {
    const int64_t inner = last ? c : pixels;
    return Cut(n, last ? pixels : c, inner, inner % wide ? 1 : wide, rounds);
}

// Where the sums go, in one workspace. Sums by channel lie along inner in NHWC, along outer in NCHW; those by pixel
// the other way round.
struct Workspace {
    int64_t channel_each, pixel_each, channel_sums, products, pixel_sums, more, total;

    Workspace(const Cut& cut, int64_t n, int64_t c, int64_t pixels, bool last) {
        channel_each = last ? cut.chunks : cut.groups;
        pixel_each = last ? cut.groups : cut.chunks;
        channel_sums = 0;
        products = channel_sums + n * channel_each * c;
        pixel_sums = products + n * channel_each * c;
        more = pixel_sums + n * pixel_each * pixels;
        const int64_t by_image = larger(room(n, channel_each, c), room(n, pixel_each, pixels));
        total = more + larger(room(1, n * channel_each, c), by_image);
    }
};

}  // namespace

// type: 0 float32, 1 bfloat16, 2 float16, 3 float64. x_stride: elements from one image of x to the next, 0 for one that
// all share. scale, noise and bias are float32, or float64 with float64. Every entry point gives a cudaError_t.
extern "C" int act_forward(const void* x, void* y, const void* scale, const void* noise, const void* bias, int64_t n,
                           int64_t c, int64_t pixels, int64_t last, int64_t x_stride, int64_t noise_stride,
                           double factor, double alpha, double gain, double limit, int64_t type, int64_t device,
                           void* stream) {
    return by_type(type, [&](auto zero) {
        using T = decltype(zero);
        using A = computing_t<T>;
        const Act<A> act{(const A*)scale, (const A*)noise, (const A*)bias, noise_stride,
                         A(factor), A(alpha), A(gain), A(limit)};
        const Cut cut = cut_of(n, c, pixels, last, WIDE<T>, FORWARD_ROUNDS);
        const Forward<T> job{(const T*)x, (T*)y, x_stride, cut, act};
        return by_layout<T>(cut.inner, last, [&](auto vector, auto is_last) {
            return launch(forward<T, decltype(vector)::value, bool(decltype(is_last)::value)>, cut.blocks(), THREADS, 0,
                          {device, stream}, job);
        });
    });
}

// How many numbers act_backward's workspace holds.
extern "C" int64_t act_workspace(int64_t n, int64_t c, int64_t pixels, int64_t last, int64_t type) {
    const int wide = type == 0 ? 4 : type == 3 ? 2 : 8;
    return Workspace(cut_of(n, c, pixels, last, wide, BACKWARD_ROUNDS), n, c, pixels, last).total;
}

// Gradients of act_forward; each of the four results may be null. y null: no rectifier. x is needed for grad_scale.
extern "C" int act_backward(const void* grad, const void* y, const void* x, const void* scale, void* grad_x,
                            void* grad_scale, void* grad_noise, void* grad_bias, void* workspace, int64_t n, int64_t c,
                            int64_t pixels, int64_t last, int64_t x_stride, double factor, double alpha, double gain,
                            double limit, int64_t type, int64_t device, void* stream) {
    return by_type(type, [&](auto zero) {
        using T = decltype(zero);
        using A = computing_t<T>;
        const Where where{device, stream};
        const Act<A> act{(const A*)scale, nullptr, nullptr, 0, A(factor), A(alpha), A(gain), A(limit)};
        const Cut cut = cut_of(n, c, pixels, last, WIDE<T>, BACKWARD_ROUNDS);
        const Workspace places(cut, n, c, pixels, last);
        A* room = (A*)workspace;
        A* by_channel = grad_bias ? room + places.channel_sums : nullptr;
        A* products = grad_scale ? room + places.products : nullptr;
        A* by_pixel = !grad_noise ? nullptr : places.pixel_each == 1 ? (A*)grad_noise : room + places.pixel_sums;
        Backward<T> job{(const T*)grad, (const T*)y, grad_scale ? (const T*)x : nullptr, (T*)grad_x,
                        last ? by_channel : by_pixel, last ? products : nullptr, last ? by_pixel : by_channel,
                        last ? nullptr : products, x_stride, cut, act};
        int error = by_layout<T>(cut.inner, last, [&](auto vector, auto is_last) {
            return launch(backward<T, decltype(vector)::value, bool(decltype(is_last)::value)>, cut.blocks(), THREADS,
                          0, where, job);
        });
        A* more = room + places.more;
        if (!error && grad_bias)
            error = reduce_all(by_channel, (A*)grad_bias, more, 1, n * places.channel_each, c, A(1), where);
        if (!error && grad_scale)
            error = reduce_all(products, (A*)grad_scale, more, n, places.channel_each, c, A(factor), where);
        if (!error && grad_noise && places.pixel_each > 1)
            error = reduce_all(by_pixel, (A*)grad_noise, more, n, places.pixel_each, pixels, A(1), where);
        return error;
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Norms of convolution kernels

struct Norms {
    const float* x;
    float* result;
    int64_t outer, each, rows;
    bool last;
};

__global__ void __launch_bounds__(THREADS) add_squares(Norms job) {
    const int64_t count = job.outer * job.rows, step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = blockIdx.x * int64_t(THREADS) + threadIdx.x; i < count; i += step) {
        const float* from = job.last ? job.x + i / job.rows * job.each * job.rows + i % job.rows : job.x + i * job.each;
        float sum = 0;
        for (int64_t k = 0; k < job.each; k++) {
            const float value = from[job.last ? k * job.rows : k];
            sum += value * value;
        }
        job.result[i] = sum;
    }
}

// Sums of the squares of `each` numbers in a row, [outer, rows]; or, with `last`, over the middle axis of [outer, each,
// rows].
extern "C" int squared_norms(const void* x, void* result, int64_t outer, int64_t each, int64_t rows, int64_t last,
                             int64_t device, void* stream) {
    const Norms job{(const float*)x, (float*)result, outer, each, rows, last != 0};
    return launch(add_squares, parts(outer * rows, THREADS), THREADS, 0, {device, stream}, job);
}

// ---------------------------------------------------------------------------------------------------------------------
// Whether it works here at all

// The error that any launch would end in: of a driver that is too old, or of code made for another card.
extern "C" int probe(int64_t device) {
    if (const int error = use(device)) return error;
    cudaFuncAttributes attributes;
    const int error = int(cudaFuncGetAttributes(&attributes, (const void*)add_squares));
    cudaGetLastError();
    return error;
}

extern "C" const char* error_text(int code) { return cudaGetErrorString(cudaError_t(code)); }
