// Tells changed numbers from the same ones.

#include <algorithm>
#include <cstdint>
#include <cstring>

using std::int64_t;

// A number that changes with any of the bits of `count` floats, or with their order.
extern "C" std::uint64_t checksum(const float* data, int64_t count) {
    constexpr int64_t chunk = 1 << 14, lanes = 32;
    std::uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
    for (int64_t first = 0; first < count; first += chunk) {
        std::uint32_t hash[lanes], part[lanes];
        for (int64_t i = 0; i < lanes; ++i) hash[i] = static_cast<std::uint32_t>(first * 2654435761u + i);
        const int64_t last = std::min(first + chunk, count);
        for (int64_t at = first; at < last; at += lanes) {
            const int64_t size = std::min(lanes, last - at);
            if (size < lanes) std::memset(part, 0, sizeof part);
            std::memcpy(part, data + at, static_cast<std::size_t>(size) * 4);
            for (int64_t i = 0; i < lanes; ++i) {
                hash[i] = (hash[i] ^ part[i]) * 2246822519u;
                hash[i] ^= hash[i] >> 15;  // Or two changed signs would make up for each other.
            }
        }
        std::uint64_t sum = static_cast<std::uint64_t>(first);
        for (int64_t i = 0; i < lanes; ++i) sum = (sum ^ hash[i]) * 0x9e3779b97f4a7c15u;
        total += sum;
    }
    return total;
}
