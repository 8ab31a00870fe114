// Upsample, filter, downsample with a separable filter: rows first, then columns.

#include "cpu_common.h"

using namespace lia;

namespace {

struct Axis {
    int64_t size, out_size, up, down, before;
};

// Which input positions an output position is made of, and with which weights.
struct Taps {
    std::vector<int64_t> start, position;
    std::vector<float> weight;

    Taps(const Axis& axis, const std::vector<float>& filter) : start(axis.out_size + 1) {
        for (int64_t out = 0; out < axis.out_size; out++) {
            for (int64_t tap = 0; tap < int64_t(filter.size()); tap++) {
                const int64_t fine = out * axis.down + tap - axis.before;
                if (fine < 0 || fine % axis.up || fine / axis.up >= axis.size || filter[tap] == 0) continue;
                position.push_back(fine / axis.up);
                weight.push_back(filter[tap]);
            }
            start[out + 1] = int64_t(position.size());
        }
    }
    int64_t count(int64_t out) const { return start[out + 1] - start[out]; }
};

// store(i, sum of weights[k] * rows[k][i]) for i below `count`; Fixed is the number of rows.
template <int Fixed, class T, class Store>
inline void blend(const T* const* rows, const float* weights, int64_t count, const Store& store) {
    const T* row[Fixed + 1];
    float weight[Fixed + 1];
    for (int k = 0; k < Fixed; k++) row[k] = rows[k], weight[k] = weights[k];
    #pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (int k = 0; k < Fixed; k++) sum += weight[k] * widen(row[k][i]);
        store(i, sum);
    }
}

template <class T, class Store>
void combine(const T* const* rows, const float* weights, int64_t taps, int64_t count, const Store& store) {
    switch (taps) {
        case 0: return blend<0>(rows, weights, count, store);
        case 1: return blend<1>(rows, weights, count, store);
        case 2: return blend<2>(rows, weights, count, store);
        case 3: return blend<3>(rows, weights, count, store);
        case 4: return blend<4>(rows, weights, count, store);
        case 5: return blend<5>(rows, weights, count, store);
        case 6: return blend<6>(rows, weights, count, store);  // 12 taps of which upsampling meets every second.
        case 11: return blend<11>(rows, weights, count, store);
        case 12: return blend<12>(rows, weights, count, store);
    }
    constexpr int64_t PART = 256;
    float sums[PART];
    for (int64_t first = 0; first < count; first += PART) {
        const int64_t some = std::min(PART, count - first);
        std::fill(sums, sums + some, 0.0f);
        for (int64_t k = 0; k < taps; k++) {
            const T* row = rows[k] + first;
            const float weight = weights[k];
            #pragma omp simd
            for (int64_t i = 0; i < some; i++) sums[i] += weight * widen(row[i]);
        }
        #pragma omp simd
        for (int64_t i = 0; i < some; i++) store(first + i, sums[i]);
    }
}

struct Job {
    Axis x, y;
    std::vector<float> filter_x, filter_y;
    int64_t n, c;
    int threads;

    bool worth_threads() const { return n * c * x.out_size * y.out_size > WORTH_THREADS; }
};

// The last input row that a task reads: the one before it has not read it, where rows are not upsampled.
template <class T> const T* upcoming(const T* x, const Job& job, const Taps& rows, int64_t task) {
    const int64_t image = task / job.y.out_size, last = rows.start[task % job.y.out_size + 1] - 1;
    if (image >= job.n || last < rows.start[task % job.y.out_size]) return nullptr;
    return x + (image * job.y.size + rows.position[last]) * job.x.size * job.c;
}

// A whole row of pixels is filtered along y into a line, which the second-level cache holds, and then along x.
template <class T> void channels_last(const T* x, T* y, const Job& job) {
    const Taps down_rows(job.y, job.filter_y), along(job.x, job.filter_x);
    const int64_t c = job.c, width = job.x.size;
    #pragma omp parallel num_threads(job.threads) if (job.worth_threads())
    {
        std::vector<float> buffer(width * c);
        std::vector<const T*> rows(job.filter_y.size());
        std::vector<const float*> columns(job.filter_x.size());
        float* __restrict line = buffer.data();
        #pragma omp for schedule(static)
        for (int64_t task = 0; task < job.n * job.y.out_size; task++) {
            const int64_t image = task / job.y.out_size, out_row = task % job.y.out_size;
            const int64_t taps = down_rows.count(out_row), from = down_rows.start[out_row];
            for (int64_t k = 0; k < taps; k++)
                rows[k] = x + (image * job.y.size + down_rows.position[from + k]) * width * c;
            combine(rows.data(), down_rows.weight.data() + from, taps, width * c,
                    [line](int64_t i, float sum) { line[i] = sum; });
            const T* next = upcoming(x, job, down_rows, task + 1);
            for (int64_t out = 0; out < job.x.out_size; out++) {
                if (next && out < width)
                    for (int64_t i = 0; i < c; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + out * c + i);
                const int64_t number = along.count(out), begin = along.start[out];
                const int64_t pixel = out_row * job.x.out_size + out;
                const float* weights = along.weight.data() + begin;
                for (int64_t k = 0; k < number; k++) columns[k] = line + along.position[begin + k] * c;
                T* __restrict to = y + (image * job.y.out_size * job.x.out_size + pixel) * c;
                combine(columns.data(), weights, number, c, [to](int64_t i, float sum) { to[i] = narrow<T>(sum); });
            }
        }
    }
}

// A row of the upsampled and padded image, filtered along x.
template <int Down>
void filter_line(const float* __restrict line, const std::vector<float>& filter, int64_t step,
                 float* __restrict result, int64_t count) {
    const int64_t down = Down ? Down : step;
    std::fill(result, result + count, 0.0f);
    for (size_t tap = 0; tap < filter.size(); tap++) {
        const float weight = filter[tap];
        #pragma omp simd
        for (int64_t i = 0; i < count; i++) result[i] += weight * line[i * down + tap];
    }
}

template <class T> void planes(const T* x, T* y, const Job& job) {
    const Taps down_rows(job.y, job.filter_y);
    const int64_t width = job.x.size, out_width = job.x.out_size;
    const int64_t length = (out_width - 1) * job.x.down + int64_t(job.filter_x.size());
    #pragma omp parallel num_threads(job.threads) if (job.worth_threads())
    {
        std::vector<float> row(width), line(length), result(out_width);  // Between upsampled pixels the line stays 0.
        std::vector<const T*> rows(job.filter_y.size());
        #pragma omp for schedule(static)
        for (int64_t plane = 0; plane < job.n * job.c; plane++) {
            for (int64_t out_row = 0; out_row < job.y.out_size; out_row++) {
                const int64_t taps = down_rows.count(out_row), begin = down_rows.start[out_row];
                for (int64_t k = 0; k < taps; k++)
                    rows[k] = x + (plane * job.y.size + down_rows.position[begin + k]) * width;
                float* __restrict filtered = row.data();
                combine(rows.data(), down_rows.weight.data() + begin, taps, width,
                        [filtered](int64_t i, float sum) { filtered[i] = sum; });
                for (int64_t column = 0; column < width; column++) {
                    const int64_t place = column * job.x.up + job.x.before;
                    if (place >= 0 && place < length) line[place] = row[column];
                }
                if (job.x.down == 1) filter_line<1>(line.data(), job.filter_x, 1, result.data(), out_width);
                else if (job.x.down == 2) filter_line<2>(line.data(), job.filter_x, 2, result.data(), out_width);
                else filter_line<0>(line.data(), job.filter_x, job.x.down, result.data(), out_width);
                T* __restrict to = y + (plane * job.y.out_size + out_row) * out_width;
                for (int64_t i = 0; i < out_width; i++) to[i] = narrow<T>(result[i]);
            }
        }
    }
}

// f [height, width] as an outer product, if it is one; the rows' factor is turned upside down where flip is set.
bool separate(const float* f, int64_t height, int64_t width, bool flip, float gain, Job& job) {
    const int64_t best = std::max_element(f, f + height * width, [](float a, float b) {
        return std::fabs(a) < std::fabs(b); }) - f;
    const float pivot = f[best];
    const int64_t row = best / width, column = best % width;
    job.filter_x.assign(f + row * width, f + (row + 1) * width);
    job.filter_y.assign(height, 0.0f);
    if (pivot != 0)
        for (int64_t i = 0; i < height; i++) job.filter_y[i] = f[i * width + column] / pivot;
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < width; j++)
            if (std::fabs(f[i * width + j] - job.filter_y[i] * job.filter_x[j]) > 4e-7f * std::fabs(pivot)) return false;
    if (flip) {
        std::reverse(job.filter_x.begin(), job.filter_x.end());
        std::reverse(job.filter_y.begin(), job.filter_y.end());
    }
    for (float& tap : job.filter_x) tap *= gain;
    return true;
}

template <class T> void run(const void* x, void* y, const Job& job, bool last) {
    (last ? channels_last<T> : planes<T>)((const T*)x, (T*)y, job);
}

}  // namespace

// f [height, width] correlates as it lies, or with flip convolves. axes: size, out_size, up, down, zeros before, of x
// and then of y. Gives 0, and does nothing, if f is not separable.
extern "C" int64_t upfirdn2d(const void* x, void* y, const float* f, int64_t height, int64_t width, int64_t flip,
                             float gain, int64_t n, int64_t c, const int64_t* axes, int64_t last, int64_t half,
                             int64_t threads) {
    Job job{{axes[0], axes[1], axes[2], axes[3], axes[4]}, {axes[5], axes[6], axes[7], axes[8], axes[9]}, {}, {}, n, c,
            int(threads)};
    if (!separate(f, height, width, flip, gain, job)) return 0;
    if (half) run<bf16>(x, y, job, last);
    else run<float>(x, y, job, last);
    return 1;
}
