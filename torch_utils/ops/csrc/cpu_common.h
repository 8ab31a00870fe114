// What the CPU kernels share: number formats, the rectifier, and how the work is cut for threads.
//
// Tensors are dense, either NCHW ("planes") or NHWC ("last"). Sums are taken chunk
// by chunk and then over chunks, in an order that depends on the shape alone: results don't change with the number of
// threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace lia {

struct bf16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(bf16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

template <class T> T narrow(float value);

template <> inline float narrow<float>(float value) { return value; }

template <> inline bf16 narrow<bf16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // To the nearest, ties to even.
    return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even)};
}

// clamp(gain * lrelu(x * factor * scale[n, c] + noise[n, pixel] + bias[c])); absent parts are null, clamp < 0 is none.
struct Act {
    const float* scale;  // [N, C]
    const float* noise;  // [N, pixels], or [pixels] with noise_stride 0
    const float* bias;   // [C]
    int64_t noise_stride;
    float factor, alpha, gain, clamp;

    float limit() const { return clamp < 0 ? INFINITY : clamp; }

    // What a channel's values are multiplied by, and what is added: the gain is drawn into the rectifier.
    float slope(int64_t image, int64_t channels, int64_t c) const {
        return gain * factor * (scale ? scale[image * channels + c] : 1.0f);
    }
    float offset(int64_t c) const { return bias ? gain * bias[c] : 0.0f; }
    float lift(int64_t image, int64_t pixel) const { return noise ? gain * noise[image * noise_stride + pixel] : 0.0f; }
};

inline float rectify(float v, float alpha, float limit) {
    v = v < 0 ? v * alpha : v;
    v = v > limit ? limit : v;  // NaN stays.
    return v < -limit ? -limit : v;
}

// Images cut into chunks of pixels.
struct Chunks {
    int64_t images, pixels, size, each, count;

    Chunks(int64_t images, int64_t channels, int64_t pixels) : images(images), pixels(pixels) {
        size = std::min(pixels, std::max<int64_t>(65536 / std::max<int64_t>(channels, 1), 64));
        each = (pixels + size - 1) / size;
        count = images * each;
    }
    int64_t image(int64_t chunk) const { return chunk / each; }
    int64_t first(int64_t chunk) const { return chunk % each * size; }
    int64_t last(int64_t chunk) const { return std::min(first(chunk) + size, pixels); }
};

constexpr int64_t WORTH_THREADS = 16384;  // Elements; below it waking them takes longer than the work.

}  // namespace lia
