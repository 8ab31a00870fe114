// clamp(gain * f(x + b)) for every activation f, and two derivatives, on dense tensors of any shape.
//
// Derivatives are taken from x + b, not from the result: swish has no inverse.

#include "cuda_common.cuh"

using namespace lia;

namespace {

enum Kind { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };

// Klambauer et al. 2017, arXiv 1706.02515.
constexpr double SELU_SCALE = 1.0507009873554804934193349852946, SELU_ALPHA = 1.6732632423543772848170429916717;

template <class A> struct Point {
    A value, slope, bend;  // f, f', f''.
};

template <class A> __device__ inline Point<A> evaluate(int kind, A x, A alpha) {
    const A one = 1, zero = 0;
    switch (kind) {
        case RELU: return {x < 0 ? zero : x, x > 0 ? one : zero, zero};
        case LRELU: return {x < 0 ? x * alpha : x, x > 0 ? one : alpha, zero};
        case TANH: {
            const A t = tanh(x), slope = 1 - t * t;
            return {t, slope, -2 * t * slope};
        }
        case SIGMOID: {
            const A s = 1 / (1 + exp(-x)), slope = s * (1 - s);
            return {s, slope, slope * (1 - 2 * s)};
        }
        case ELU:
            if (x > 0) return {x, one, zero};
            return {expm1(x), exp(x), exp(x)};
        case SELU: {
            const A scale = A(SELU_SCALE), other = A(SELU_SCALE * SELU_ALPHA);
            if (x > 0) return {x * scale, scale, zero};
            return {other * expm1(x), other * exp(x), other * exp(x)};
        }
        case SOFTPLUS: {
            const A s = 1 / (1 + exp(-x));
            return {x > 20 ? x : log1p(exp(x)), s, s * (1 - s)};
        }
        case SWISH: {
            const A s = 1 / (1 + exp(-x)), slope = s * (1 - s);
            return {x * s, s + x * slope, slope * (2 + x * (1 - 2 * s))};
        }
    }
    return {x, one, zero};
}

template <class T> struct Job {
    using A = computing_t<T>;
    const T *x, *grad, *second;  // second: what comes back for the first derivative's result.
    const A* bias;
    T *to, *more;
    int64_t count, step, channels;  // step: from one channel to the next in memory.
    int kind;
    A alpha, gain, limit;
};

// ORDER 0: to = f. 1: to = grad * f'. 2: to = second * f', which goes to grad, and more = second * grad * f'', to x.
template <class T, int V, int ORDER> __global__ void __launch_bounds__(THREADS) curve(Job<T> job) {
    using A = computing_t<T>;
    const int64_t stride = int64_t(gridDim.x) * THREADS * V;
    for (int64_t i = (blockIdx.x * int64_t(THREADS) + threadIdx.x) * V; i < job.count; i += stride) {
        int64_t channel = 0, rest = 0;
        if (job.bias) {
            if (job.count >> 31) {  // Dividing long numbers takes as long as all the rest.
                channel = i / job.step % job.channels, rest = i % job.step;
            } else {
                const uint32_t step = uint32_t(job.step), whole = uint32_t(i) / step;
                channel = whole % uint32_t(job.channels), rest = uint32_t(i) - whole * step;
            }
        }
        A x[V], grad[V], second[V];
        load<V>(job.x + i, x);
        if (ORDER >= 1) load<V>(job.grad + i, grad);
        if (ORDER >= 2) load<V>(job.second + i, second);
        #pragma unroll
        for (int v = 0; v < V; v++) {
            if (job.bias) {
                x[v] += job.bias[channel];
                if (++rest == job.step) rest = 0, channel = channel + 1 == job.channels ? 0 : channel + 1;
            }
            const Point<A> point = evaluate<A>(job.kind, x[v], job.alpha);
            const A value = job.gain * point.value;
            const A flat = value >= job.limit || value <= -job.limit ? A(0) : job.gain;
            if (ORDER == 0) x[v] = value > job.limit ? job.limit : value < -job.limit ? -job.limit : value;
            if (ORDER == 1) grad[v] *= flat * point.slope;
            if (ORDER == 2) {
                grad[v] *= second[v] * flat * point.bend;
                second[v] *= flat * point.slope;
            }
        }
        store<V>(job.to + i, ORDER == 0 ? x : ORDER == 1 ? grad : second);
        if (ORDER == 2) store<V>(job.more + i, grad);
    }
}

template <class T, int V> int run(int64_t order, const Where& where, const Job<T>& job) {
    const auto kernel = order == 0 ? curve<T, V, 0> : order == 1 ? curve<T, V, 1> : curve<T, V, 2>;
    return launch(kernel, parts(job.count, THREADS * V), THREADS, 0, where, job);
}

}  // namespace

// All tensors have the same order in memory and start at multiples of 16 bytes; bias [channels] may be null. kind: the
// activation's place in the table of ops/bias_act.py.
extern "C" int bias_curve(const void* x, const void* grad, const void* second, const void* bias, void* to, void* more,
                          int64_t count, int64_t step, int64_t channels, int64_t kind, int64_t order, double alpha,
                          double gain, double limit, int64_t type, int64_t device, void* stream) {
    return by_type(type, [&](auto zero) {
        using T = decltype(zero);
        using A = computing_t<T>;
        const Job<T> job{(const T*)x, (const T*)grad, (const T*)second, (const A*)bias, (T*)to, (T*)more, count, step,
                         channels, int(kind), A(alpha), A(gain), A(limit)};
        const Where where{device, stream};
        return count % WIDE<T> ? run<T, 1>(order, where, job) : run<T, WIDE<T>>(order, where, job);
    });
}
