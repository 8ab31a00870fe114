// Winograd's minimal convolutions F(4x4, 3x3) and F(2x2, 3x3): transforms, and matrix products on the vector units.
//
// m x m outputs of a 3x3 kernel come from (m + 2)^2 inputs through polynomials that are known at m + 1 points and at
// infinity: y = A' [(G w G') . (B' x B)] A, where the dot is a product of numbers, 36 for 16 outputs instead of 144
// (Lavin and Gray, arXiv 1509.09308, where the matrices are named so). Summed over channels each of the 36 places is a
// matrix product. How exact it is depends on the points: with 0, 1, -1, 2, -2, the usual ones, errors are four times
// those of a sum in a row, with 0, 5/8, -5/8, 3/2, -3/2 less than twice, and these are as cheap.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace winograd {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kMostRows = 14;  // 28 of 32 registers hold sums.
#elif defined(__AVX__)
constexpr int64_t kLanes = 8, kMostRows = 6;  // 12 of 16.
#else
constexpr int64_t kLanes = 4, kMostRows = 6;
#endif
constexpr int64_t kPanel = 2 * kLanes;  // Columns of a product that are computed together.

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float Loose __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));  // Anywhere in memory.

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }

inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

inline Vec load(const float* p, int64_t count) {
    if (count >= kLanes) return load(p);
    float part[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return load(part);
}

inline void store(float* p, Vec v, int64_t count) {
    if (count >= kLanes) return store(p, v);
    float part[kLanes];
    store(part, v);
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline int64_t div_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// ---------------------------------------------------------------------------------------------------------------------
// Transforms of one row or column

// Points 0, a, -a, b, -b and infinity: 4 outputs.
struct F4 {
    static constexpr int kOut = 4, kIn = 6;
    static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;

    // B'
    template <class T>
    static inline void input(const T* x, int64_t step, T* v, int64_t to) {
        const T x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
        const T even_a = x4 - b2 * x2, odd_a = a * x3 - (a * b2) * x1;
        const T even_b = x4 - a2 * x2, odd_b = b * x3 - (b * a2) * x1;
        v[0] = (a2 * b2) * x0 - (a2 + b2) * x2 + x4;
        v[to] = even_a + odd_a;
        v[2 * to] = even_a - odd_a;
        v[3 * to] = even_b + odd_b;
        v[4 * to] = even_b - odd_b;
        v[5 * to] = (a2 * b2) * x1 - (a2 + b2) * x3 + x5;
    }

    // A'
    template <class T>
    static inline void output(const T* m, int64_t step, T* y, int64_t to) {
        const T sum_a = m[step] + m[2 * step], less_a = m[step] - m[2 * step];
        const T sum_b = m[3 * step] + m[4 * step], less_b = m[3 * step] - m[4 * step];
        y[0] = m[0] + sum_a + sum_b;
        y[to] = a * less_a + b * less_b;
        y[2 * to] = a2 * sum_a + b2 * sum_b;
        y[3 * to] = (a2 * a) * less_a + (b2 * b) * less_b + m[5 * step];
    }

    // A, which takes an output's gradient to the products'.
    template <class T>
    static inline void spread(const T* y, int64_t step, T* m, int64_t to) {
        const T y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
        const T even_a = y0 + a2 * y2, odd_a = a * y1 + (a2 * a) * y3;
        const T even_b = y0 + b2 * y2, odd_b = b * y1 + (b2 * b) * y3;
        m[0] = y0;
        m[to] = even_a + odd_a;
        m[2 * to] = even_a - odd_a;
        m[3 * to] = even_b + odd_b;
        m[4 * to] = even_b - odd_b;
        m[5 * to] = y3;
    }

    static constexpr float g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

    // G
    template <class T>
    static inline void weight(const T* w, int64_t step, T* u, int64_t to) {
        const T w0 = w[0], w1 = w[step], w2 = w[2 * step];
        const T even_a = ga * w0 + (ga * a2) * w2, odd_a = (ga * a) * w1;
        const T even_b = gb * w0 + (gb * b2) * w2, odd_b = (gb * b) * w1;
        u[0] = g0 * w0;
        u[to] = even_a + odd_a;
        u[2 * to] = even_a - odd_a;
        u[3 * to] = even_b + odd_b;
        u[4 * to] = even_b - odd_b;
        u[5 * to] = w2;
    }

    // G'
    template <class T>
    static inline void gather(const T* u, int64_t step, T* w, int64_t to) {
        const T sum_a = u[step] + u[2 * step], less_a = u[step] - u[2 * step];
        const T sum_b = u[3 * step] + u[4 * step], less_b = u[3 * step] - u[4 * step];
        w[0] = g0 * u[0] + ga * sum_a + gb * sum_b;
        w[to] = (ga * a) * less_a + (gb * b) * less_b;
        w[2 * to] = (ga * a2) * sum_a + (gb * b2) * sum_b + u[5 * step];
    }
};

// Points 0, 1, -1 and infinity: 2 outputs.
struct F2 {
    static constexpr int kOut = 2, kIn = 4;

    template <class T>
    static inline void input(const T* x, int64_t step, T* v, int64_t to) {
        const T x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
        v[0] = x0 - x2;
        v[to] = x1 + x2;
        v[2 * to] = x2 - x1;
        v[3 * to] = x3 - x1;
    }

    template <class T>
    static inline void output(const T* m, int64_t step, T* y, int64_t to) {
        y[0] = m[0] + m[step] + m[2 * step];
        y[to] = m[step] - m[2 * step] + m[3 * step];
    }

    template <class T>
    static inline void spread(const T* y, int64_t step, T* m, int64_t to) {
        const T y0 = y[0], y1 = y[step];
        m[0] = y0;
        m[to] = y0 + y1;
        m[2 * to] = y0 - y1;
        m[3 * to] = y1;
    }

    template <class T>
    static inline void weight(const T* w, int64_t step, T* u, int64_t to) {
        const T w0 = w[0], w1 = w[step], w2 = w[2 * step], even = 0.5f * (w0 + w2), odd = 0.5f * w1;
        u[0] = w0;
        u[to] = even + odd;
        u[2 * to] = even - odd;
        u[3 * to] = w2;
    }

    template <class T>
    static inline void gather(const T* u, int64_t step, T* w, int64_t to) {
        const T u1 = u[step], u2 = u[2 * step], half = 0.5f * (u1 + u2);
        w[0] = u[0] + half;
        w[to] = 0.5f * (u1 - u2);
        w[2 * to] = half + u[3 * step];
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Matrix products

// rows x kPanel sums over `depth`: out (+)= left right. left[i, k] lies at i * row + k * step, right at k * kPanel.
template <int rows>
void multiply(const float* left, int64_t row, int64_t step, const float* right, int64_t depth, float* out,
              int64_t out_row, bool more) {
    Vec sums[rows][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
        sums[i][0] = sums[i][1] = Vec{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        const Vec first = load(right + k * kPanel), second = load(right + k * kPanel + kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const Vec factor = left[i * row + k * step] - Vec{};
            sums[i][0] += factor * first;
            sums[i][1] += factor * second;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {  // A sum of sums is more exact than one in a row.
        store(out + i * out_row, more ? load(out + i * out_row) + sums[i][0] : sums[i][0]);
        store(out + i * out_row + kLanes, more ? load(out + i * out_row + kLanes) + sums[i][1] : sums[i][1]);
    }
}

using Multiply = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int rows>
struct Multiplies : Multiplies<rows - 1> {
    Multiplies() { this->of[rows] = multiply<rows>; }
};

template <>
struct Multiplies<0> {
    Multiply of[kMostRows + 1] = {};
};

// Any number of rows, in groups of nearly equal size.
inline void multiply_rows(int64_t rows, const float* left, int64_t row, int64_t step, const float* right, int64_t depth,
                          float* out, int64_t out_row, bool more) {
    static const Multiplies<kMostRows> multiplies;
    const int64_t groups = div_up(rows, kMostRows);
    for (int64_t group = 0, first = 0; group < groups; ++group) {
        const int64_t last = rows * (group + 1) / groups;
        multiplies.of[last - first](left + first * row, row, step, right, depth, out + first * out_row, out_row, more);
        first = last;
    }
}

}  // namespace winograd
