// Image batches in planes, so that a tap of a convolution's kernel is a distance between places.
//
// Images are copied into planes with their padding (one plane for each of the stride's phases), in which places are
// numbered through: rows, columns, and fastest some images side by side. A tap of the kernel is then a constant
// distance, 16 places in a row are a tile's 16 rows, and what lies between two rows of the output is long enough to be
// left out. Where rows are long few images lie side by side, or a kernel would reach further than a cache does; the
// others follow below them.

#pragma once

#include "cpu_amx.h"

#if defined(LIA_HAS_AMX)

#include <algorithm>
#include <vector>

namespace amx {

// An image batch with its padding, cut into stride * stride phases; plane (a, b) holds the padded rows a, a + stride,
// ...
struct Planes {
    int64_t images, height, width, channels;  // Of the dense NHWC input.
    int64_t pad_y, pad_x;                     // Zeros before its first row and column.
    int64_t stride;
    int64_t rows, pitch;  // Of an image's plane; what the image doesn't fill is 0.
    int64_t batch;        // Images side by side.

    int64_t count() const { return stride * stride; }
    int64_t places() const { return div_up(images, batch) * rows * pitch * batch; }
    int64_t distance(int64_t dy, int64_t dx) const { return (dy / stride * pitch + dx / stride) * batch; }
    int64_t phase(int64_t dy, int64_t dx) const { return dy % stride * stride + dx % stride; }
};

constexpr int64_t kBeside = 128;  // Places of a row of all images that lie side by side, if they are several.

// How many that is, of so many images with rows of `pitch` places.
inline int64_t side_by_side(int64_t images, int64_t pitch) {
    return div_up(images, div_up(images, std::max<int64_t>(1, kBeside / pitch)));
}

// Which pixel, counted through the images, lies at each place; -1 where there is none.
using Table = std::vector<int64_t>;

// Enters at the places from `first` on of a plane the pixels (row * stride + y0, column * stride + x0) that there are.
inline void enter(const Planes& planes, int64_t height, int64_t width, int64_t stride, int64_t y0, int64_t x0,
                  int64_t first, Table& table) {
    for (int64_t row = 0; row < planes.rows; ++row) {
        for (int64_t column = 0; column < planes.pitch; ++column) {
            const int64_t y = row * stride + y0, x = column * stride + x0;
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            for (int64_t n = 0; n < planes.images; ++n) {
                const int64_t line = n / planes.batch * planes.rows + row;
                const int64_t place = (line * planes.pitch + column) * planes.batch + n % planes.batch;
                table[first + place] = (n * height + y) * width + x;
            }
        }
    }
}

// What lies in the planes, each of which is `length` long.
inline Table source_table(const Planes& planes, int64_t length) {
    Table table(static_cast<std::size_t>(planes.count() * length), -1);
    for (int64_t i = 0; i < planes.count(); ++i)
        enter(planes, planes.height, planes.width, planes.stride, i / planes.stride - planes.pad_y,
              i % planes.stride - planes.pad_x, i * length, table);
    return table;
}

// The first places of blocks that cover all places in the table that hold a pixel. They begin at multiples of `step`.
inline std::vector<int64_t> cover(const Table& table, int64_t step) {
    std::vector<int64_t> starts;
    int64_t end = 0;
    for (int64_t place = 0; place < static_cast<int64_t>(table.size()); ++place) {
        if (table[place] < 0 || place < end) continue;
        starts.push_back(place / step * step);
        end = starts.back() + kBlock;
    }
    return starts;
}

}  // namespace amx

#endif
