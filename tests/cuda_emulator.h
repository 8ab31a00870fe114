// So much of CUDA that a C++ compiler makes the kernels run on a CPU, for tests: blocks one after the other, the
// threads of a block as fibres that run from barrier to barrier. A forgotten barrier gives wrong numbers, every time.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

using std::exp;
using std::expm1;
using std::log1p;
using std::tanh;

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static
#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::block().shared.data()

// ---------------------------------------------------------------------------------------------------------------------
// Half precision, rounded to the nearest, ties to even

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

namespace emulator {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace emulator

inline float __bfloat162float(__nv_bfloat16 value) { return emulator::float_of(uint32_t(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const uint32_t bits = emulator::bits_of(value);
    return {uint16_t(std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
    const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
    float size = std::ldexp(mantissa + (exponent ? 1024.f : 0.f), (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return value.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float value) {
    const uint16_t sign = uint16_t(emulator::bits_of(value) >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (std::isnan(value)) return {0x7fff};
    if (size >= 65520) return {uint16_t(sign | 0x7c00)};
    int exponent;
    std::frexp(size, &exponent);
    exponent = std::max(exponent, -13);
    const float unit = std::ldexp(1.f, exponent - 11);  // Of the last place.
    const int units = int(std::nearbyint(size / unit));
    return {uint16_t(sign | ((units < 1024 ? units : units + ((exponent + 13) << 10))))};
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks of threads

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline dim3 blockIdx, threadIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 64 << 10;
enum class State { READY, AT_BARRIER, AT_WARP, DONE };

// A thread's stack, entered once by way of a context and from then on by jumps, which ask the system for nothing.
struct Fibre {
    ucontext_t context;
    jmp_buf place;
    bool entered = false;
    State state = State::DONE;
    std::unique_ptr<char[]> stack;
};

struct Block {
    std::vector<Fibre> fibres;
    std::vector<unsigned char> shared;
    std::vector<double> lanes;  // What a warp's threads show each other.
    jmp_buf scheduler;
    const std::function<void()>* body = nullptr;
    unsigned current = 0, threads = 0;
    std::mutex mutex;
};

inline Block& block() {
    static Block only;
    return only;
}

inline void wait_as(State state) {
    Fibre& self = block().fibres[block().current];
    self.state = state;
    if (!_setjmp(self.place)) _longjmp(block().scheduler, 1);
}

inline void live() {
    for (;;) {
        (*block().body)();
        wait_as(State::DONE);
    }
}

inline void resume(Fibre& fibre) {
    if (_setjmp(block().scheduler)) return;
    if (fibre.entered) _longjmp(fibre.place, 1);
    fibre.entered = true;
    fibre.stack.reset(new char[STACK]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, live, 0);
    setcontext(&fibre.context);
}

// Lets those go on who wait in [first, last) for each other, if all that have not ended do.
inline bool release(unsigned first, unsigned last, State state) {
    auto& fibres = block().fibres;
    bool any = false;
    for (unsigned i = first; i < last; i++) {
        if (fibres[i].state != state && fibres[i].state != State::DONE) return false;
        any = any || fibres[i].state == state;
    }
    for (unsigned i = first; i < last; i++)
        if (fibres[i].state == state) fibres[i].state = State::READY;
    return any;
}

inline void run_block() {
    Block& self = block();
    std::memset(self.shared.data(), 0xff, self.shared.size());  // NaN, for who reads what nobody wrote.
    for (unsigned i = 0; i < self.threads; i++) self.fibres[i].state = State::READY;
    for (bool reverse = false;; reverse = !reverse) {  // The order changes from barrier to barrier.
        bool ran = false, left = false;
        for (unsigned k = 0; k < self.threads; k++) {
            const unsigned i = reverse ? self.threads - 1 - k : k;
            if (self.fibres[i].state != State::READY) continue;
            self.current = threadIdx.x = i;
            ran = true;
            resume(self.fibres[i]);
        }
        for (unsigned first = 0; first < self.threads; first += 32)
            ran = release(first, std::min(first + 32, self.threads), State::AT_WARP) || ran;
        ran = release(0, self.threads, State::AT_BARRIER) || ran;
        for (unsigned i = 0; i < self.threads; i++) left = left || self.fibres[i].state != State::DONE;
        if (!left) return;
        if (!ran) {
            std::fputs("cuda_emulator: threads wait for each other at different places\n", stderr);
            std::abort();
        }
    }
}

inline void run(unsigned blocks, unsigned threads, size_t shared, const std::function<void()>& body) {
    Block& self = block();
    const std::lock_guard<std::mutex> lock(self.mutex);
    self.shared.assign(shared, 0);
    self.lanes.assign(threads, 0);
    self.threads = threads;
    self.body = &body;
    if (self.fibres.size() < threads) self.fibres.resize(threads);
    blockDim = {threads}, gridDim = {blocks};
    for (unsigned i = 0; i < blocks; i++) {
        blockIdx = {i};
        run_block();
    }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_as(emulator::State::AT_BARRIER); }

template <class A> A __shfl_xor_sync(unsigned, A value, int mask) {
    emulator::Block& block = emulator::block();
    const unsigned self = block.current;
    block.lanes[self] = double(value);
    emulator::wait_as(emulator::State::AT_WARP);
    const A other = A(block.lanes[self ^ unsigned(mask)]);
    emulator::wait_as(emulator::State::AT_WARP);
    return other;
}

template <class T> T __ldg(const T* from) { return *from; }

// ---------------------------------------------------------------------------------------------------------------------
// The runtime

using cudaError_t = int;
struct cudaFuncAttributes {};

inline cudaError_t cudaSetDevice(int) { return 0; }
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }
