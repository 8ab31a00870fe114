// Scale, noise, bias, rectifier, gain and clamp in one pass, and all gradients of that in one more.

#include "cpu_common.h"

using namespace lia;

namespace {

template <class T>
void forward(const T* x, T* y, const Act& act, int64_t n, int64_t c, int64_t pixels, bool last, int64_t x_stride,
             int threads) {
    const Chunks chunks(n, c, pixels);
    const float limit = act.limit(), alpha = act.alpha;
    #pragma omp parallel num_threads(threads) if (n * c * pixels > WORTH_THREADS)
    {
        std::vector<float> slopes(c), offsets(c), lifts(chunks.size);
        #pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks.count; chunk++) {
            const int64_t image = chunks.image(chunk), first = chunks.first(chunk), count = chunks.last(chunk) - first;
            for (int64_t i = 0; i < c; i++) slopes[i] = act.slope(image, c, i), offsets[i] = act.offset(i);
            for (int64_t p = 0; p < count; p++) lifts[p] = act.lift(image, first + p);
            const float* __restrict slope = slopes.data();
            const float* __restrict offset = offsets.data();
            const float* __restrict lift = lifts.data();
            if (last) {
                for (int64_t p = 0; p < count; p++) {
                    const T* from = x + image * x_stride + (first + p) * c;  // May be y's own memory.
                    T* to = y + (image * pixels + first + p) * c;
                    const float raised = lift[p];
                    #pragma omp simd
                    for (int64_t i = 0; i < c; i++)
                        to[i] = narrow<T>(rectify(widen(from[i]) * slope[i] + (offset[i] + raised), alpha, limit));
                }
            } else {
                for (int64_t i = 0; i < c; i++) {
                    const T* from = x + image * x_stride + i * pixels + first;
                    T* to = y + (image * c + i) * pixels + first;
                    const float steep = slope[i], raised = offset[i];
                    #pragma omp simd
                    for (int64_t p = 0; p < count; p++)
                        to[p] = narrow<T>(rectify(widen(from[p]) * steep + (raised + lift[p]), alpha, limit));
                }
            }
        }
    }
}

// What flows back through the rectifier, whose slope is told by its result y.
template <bool Y> inline float returned(float grad, float y, float gain, float alpha, float limit) {
    if (!Y) return grad * gain;
    const float slope = y > 0 ? gain : gain * alpha;
    return std::fabs(y) >= limit ? 0.0f : grad * slope;
}

struct Sums {
    std::vector<float> bias, scale;  // [chunks, C]
    float* noise;                    // [N, pixels] or null
};

template <class T> struct Returned {
    const T *grad, *y;
    T* grad_x;
    const T* x;
    int64_t c;
    float gain, alpha, limit;
};

// One NHWC pixel or two at once: of two, the sums over pixels are loaded and stored half as often.
template <class T, bool Y, bool X, bool G, int Count>
inline void pixels_back(const Returned<T>& from, int64_t p, const float* __restrict slope, float* __restrict bias,
                        float* __restrict scale, float* __restrict line) {
    const int64_t c = from.c, start = p * c;
    const T *grad = from.grad + start, *y = from.y + (Y ? start : 0), *x = from.x + (X ? start : 0);
    T* to = from.grad_x + (G ? start : 0);
    const float gain = from.gain, alpha = from.alpha, limit = from.limit;
    const auto back = [=](int64_t at) {
        return returned<Y>(widen(grad[at]), Y ? widen(y[at]) : 0, gain, alpha, limit);
    };
    float total0 = 0, total1 = 0;
    #pragma omp simd reduction(+ : total0, total1)
    for (int64_t i = 0; i < c; i++) {
        const float d0 = back(i), d1 = Count > 1 ? back(c + i) : 0;
        if (G) to[i] = narrow<T>(d0 * slope[i]);
        if (G && Count > 1) to[c + i] = narrow<T>(d1 * slope[i]);
        if (X) scale[i] += d0 * widen(x[i]) + (Count > 1 ? d1 * widen(x[c + i]) : 0);
        bias[i] += d0 + d1;
        total0 += d0;
        total1 += d1;
    }
    line[p] = total0;
    if (Count > 1) line[p + 1] = total1;
}

template <class T, bool Y, bool X, bool G>
void backward(const T* grad, const T* y, const T* x, T* grad_x, Sums& sums, const Act& act, int64_t n, int64_t c,
              int64_t pixels, bool last, int64_t x_stride, int threads) {
    const Chunks chunks(n, c, pixels);
    const float limit = act.limit(), gain = act.gain, alpha = act.alpha;
    #pragma omp parallel num_threads(threads) if (n * c * pixels > WORTH_THREADS)
    {
        std::vector<float> slopes(c), lines(chunks.size);
        #pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks.count; chunk++) {
            const int64_t image = chunks.image(chunk), first = chunks.first(chunk), count = chunks.last(chunk) - first;
            for (int64_t i = 0; i < c; i++) slopes[i] = act.slope(image, c, i) / gain;
            std::fill(lines.begin(), lines.end(), 0.0f);
            const float* __restrict slope = slopes.data();
            float* __restrict line = lines.data();
            float* __restrict bias = sums.bias.data() + chunk * c;
            float* __restrict scale = sums.scale.data() + chunk * c;
            if (last) {
                const int64_t start = image * pixels + first;
                const Returned<T> from{grad + start * c, Y ? y + start * c : nullptr, G ? grad_x + start * c : nullptr,
                                       X ? x + image * x_stride + first * c : nullptr, c, gain, alpha, limit};
                int64_t p = 0;
                for (; p + 2 <= count; p += 2) pixels_back<T, Y, X, G, 2>(from, p, slope, bias, scale, line);
                for (; p < count; p++) pixels_back<T, Y, X, G, 1>(from, p, slope, bias, scale, line);
            } else {
                for (int64_t i = 0; i < c; i++) {
                    const int64_t start = (image * c + i) * pixels + first;
                    const T* __restrict g = grad + start;
                    const T* __restrict r = Y ? y + start : nullptr;
                    const T* __restrict v = X ? x + image * x_stride + i * pixels + first : nullptr;
                    T* __restrict to = G ? grad_x + start : nullptr;
                    const float steep = slope[i];
                    float total = 0, product = 0;
                    #pragma omp simd reduction(+ : total, product)
                    for (int64_t p = 0; p < count; p++) {
                        const float d = returned<Y>(widen(g[p]), Y ? widen(r[p]) : 0, gain, alpha, limit);
                        if (G) to[p] = narrow<T>(d * steep);
                        if (X) product += d * widen(v[p]);
                        total += d;
                        line[p] += d;
                    }
                    bias[i] = total;
                    scale[i] = product;
                }
            }
            if (sums.noise) std::memcpy(sums.noise + image * pixels + first, line, count * sizeof(float));
        }
    }
}

template <class T, bool Y>
void backward_for(const T* grad, const T* y, const T* x, T* grad_x, Sums& sums, const Act& act, int64_t n, int64_t c,
                  int64_t pixels, bool last, int64_t x_stride, int threads) {
    const auto run = x ? (grad_x ? backward<T, Y, true, true> : backward<T, Y, true, false>)
                       : (grad_x ? backward<T, Y, false, true> : backward<T, Y, false, false>);
    run(grad, y, x, grad_x, sums, act, n, c, pixels, last, x_stride, threads);
}

// Sums of chunks, [chunks, C], to those of images or of everything.
void reduce(const std::vector<float>& parts, float* result, int64_t rows, int64_t each, int64_t c, float factor) {
    for (int64_t row = 0; row < rows; row++) {
        float* __restrict to = result + row * c;
        std::fill(to, to + c, 0.0f);
        for (int64_t part = row * each; part < (row + 1) * each; part++)
            for (int64_t i = 0; i < c; i++) to[i] += factor * parts[part * c + i];
    }
}

template <class T>
void gradients(const T* grad, const T* y, const T* x, T* grad_x, float* grad_scale, float* grad_noise,
               float* grad_bias, const Act& act, int64_t n, int64_t c, int64_t pixels, bool last, int64_t x_stride,
               int threads) {
    const Chunks chunks(n, c, pixels);
    Sums sums{std::vector<float>(chunks.count * c), std::vector<float>(chunks.count * c), grad_noise};
    if (y)
        backward_for<T, true>(grad, y, x, grad_x, sums, act, n, c, pixels, last, x_stride, threads);
    else
        backward_for<T, false>(grad, y, x, grad_x, sums, act, n, c, pixels, last, x_stride, threads);
    if (grad_scale) reduce(sums.scale, grad_scale, n, chunks.each, c, act.factor);
    if (grad_bias) reduce(sums.bias, grad_bias, 1, chunks.count, c, 1.0f);
}

}  // namespace

// Sums of the squares of `each` numbers in a row, [rows]; or, with `last`, over the middle axis of [outer, each, rows].
extern "C" void squared_norms(const float* x, float* result, int64_t outer, int64_t each, int64_t rows, int64_t last,
                              int64_t threads) {
    #pragma omp parallel for num_threads(int(threads)) schedule(static) if (outer * each * rows > WORTH_THREADS)
    for (int64_t o = 0; o < outer; o++) {
        const float* from = x + o * each * rows;
        float* to = result + o * rows;
        if (last) {
            std::fill(to, to + rows, 0.0f);
            for (int64_t k = 0; k < each; k++)
                for (int64_t i = 0; i < rows; i++) to[i] += from[k * rows + i] * from[k * rows + i];
        } else {
            for (int64_t i = 0; i < rows; i++) {
                float sum = 0;
                for (int64_t k = 0; k < each; k++) sum += from[i * each + k] * from[i * each + k];
                to[i] = sum;
            }
        }
    }
}

// half: 0 is float32, 1 bfloat16. x_stride: elements from one image of x to the next, 0 for one image that all share.
extern "C" void act_forward(const void* x, void* y, const float* scale, const float* noise, const float* bias,
                            int64_t n, int64_t c, int64_t pixels, int64_t last, int64_t x_stride,
                            int64_t noise_stride, float factor, float alpha, float gain, float clamp, int64_t half,
                            int64_t threads) {
    const Act act{scale, noise, bias, noise_stride, factor, alpha, gain, clamp};
    if (half)
        forward((const bf16*)x, (bf16*)y, act, n, c, pixels, last, x_stride, int(threads));
    else
        forward((const float*)x, (float*)y, act, n, c, pixels, last, x_stride, int(threads));
}

// Gradients of act_forward; each of the four results may be null. y null: no rectifier. x is needed for grad_scale.
extern "C" void act_backward(const void* grad, const void* y, const void* x, const float* scale, void* grad_x,
                             float* grad_scale, float* grad_noise, float* grad_bias, int64_t n, int64_t c,
                             int64_t pixels, int64_t last, int64_t x_stride, float factor, float alpha, float gain,
                             float clamp, int64_t half, int64_t threads) {
    const Act act{scale, nullptr, nullptr, 0, factor, alpha, gain, clamp};
    if (half)
        gradients((const bf16*)grad, (const bf16*)y, (const bf16*)x, (bf16*)grad_x, grad_scale, grad_noise, grad_bias,
                  act, n, c, pixels, last, x_stride, int(threads));
    else
        gradients((const float*)grad, (const float*)y, (const float*)x, (float*)grad_x, grad_scale, grad_noise,
                  grad_bias, act, n, c, pixels, last, x_stride, int(threads));
}
