// Memory that a thread keeps from call to call: fresh pages would cost more than what is written into them.

#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lia {

constexpr std::size_t kLargePage = 1 << 21;

// Asks for large pages in somebody else's memory, as far as it has whole ones. To be called before it is written to.
inline void ask_large_pages(void* memory, std::int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
    const std::uintptr_t last = (begin + static_cast<std::uintptr_t>(bytes)) / kLargePage * kLargePage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

class Workspace {
  public:
    ~Workspace() { std::free(memory_); }

    // Room for so many numbers, aligned to a cache line, with whatever is in it; null for want of memory.
    template <class T = float>
    T* get(std::int64_t count) {
        constexpr std::size_t line = 64, page = kLargePage;
        const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(T), unit = wanted < page / 2 ? line : page;
        const std::size_t bytes = (wanted + unit - 1) / unit * unit;
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = std::aligned_alloc(unit, bytes);
            if (memory_ == nullptr) return nullptr;
            size_ = bytes;
            ask_large_pages(memory_, static_cast<std::int64_t>(bytes));
        }
        return static_cast<T*>(memory_);
    }

    // Gives large memory back: beside tensors of that size fresh pages don't matter.
    void trim() {
        if (size_ <= kMostKept) return;
        std::free(memory_);
        memory_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr std::size_t kMostKept = std::size_t{256} << 20;

    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace lia
