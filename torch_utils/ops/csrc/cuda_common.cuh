// What the CUDA kernels share: number formats, vectors of 16 bytes, launches, and the choice by type.
//
// Sums are taken in float32 (float64 for float64), in an order that depends on the shape alone. Nothing allocates or
// waits, so that a CUDA graph can record every call. With LIA_EMULATED the tests run the same source on a CPU.

#pragma once

#include <cstdint>

#ifdef LIA_EMULATED
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace lia {

using half = __half;
using bf16 = __nv_bfloat16;

constexpr int THREADS = 256;
constexpr int64_t MAX_BLOCKS = 1 << 22;    // Of a launch; beyond that each block does several parts of the work.
constexpr int SHARED_BYTES = 48 << 10;     // What every card gives a block unasked.
constexpr int INVALID = 1;                 // cudaErrorInvalidValue

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

template <class T> struct Computing { using type = float; };
template <> struct Computing<double> { using type = double; };
template <class T> using computing_t = typename Computing<T>::type;  // The type that T is computed in.

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(half value) { return __half2float(value); }
__device__ inline float widen(bf16 value) { return __bfloat162float(value); }

template <class T> struct Narrow { __device__ static T from(computing_t<T> value) { return value; } };
template <> struct Narrow<half> { __device__ static half from(float value) { return __float2half_rn(value); } };
template <> struct Narrow<bf16> { __device__ static bf16 from(float value) { return __float2bfloat16_rn(value); } };
template <class T> __device__ inline T narrow(computing_t<T> value) { return Narrow<T>::from(value); }

template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

template <class T> constexpr int WIDE = 16 / int(sizeof(T));  // So many of them are read at once.

// V numbers from one aligned place, in the type that they are computed in.
template <int V, class T> __device__ inline void load(const T* from, computing_t<T> (&to)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
    #pragma unroll
    for (int v = 0; v < V; v++) to[v] = widen(pack.at[v]);
}

template <int V, class T> __device__ inline void store(T* to, const computing_t<T> (&from)[V]) {
    Pack<T, V> pack;
    #pragma unroll
    for (int v = 0; v < V; v++) pack.at[v] = narrow<T>(from[v]);
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

__host__ __device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
__host__ __device__ inline int64_t parts(int64_t size, int64_t each) { return (size + each - 1) / each; }

// Division that rounds down, for a divisor above 0.
__host__ __device__ inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
__host__ __device__ inline int64_t modulo(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// clamp(lrelu(v)); NaN stays.
template <class A> __device__ inline A rectify(A v, A alpha, A limit) {
    v = v < 0 ? (alpha == 0 ? A(0) : v * alpha) : v;
    v = v > limit ? limit : v;
    return v < -limit ? -limit : v;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

struct Where {
    int64_t device;
    void* stream;
};

// Makes the tensors' device the current one of this library, whose runtime may be one of its own with a state of its
// own. Callers have made it the thread's already: what was before could not be told for certain, and nothing goes back.
// Gives a cudaError_t.
inline int use(int64_t device) {
    const int error = int(cudaSetDevice(int(device)));
    if (error) cudaGetLastError();  // Else it would be taken for the next launch's.
    return error;
}

// Runs kernel(args) with as many blocks as there are `parts` of work, at least one and at most MAX_BLOCKS.
// Gives a cudaError_t.
template <class Args>
int launch(void (*kernel)(Args), int64_t work, int threads, size_t shared, const Where& where, const Args& args) {
    if (work <= 0) return 0;
    if (const int error = use(where.device)) return error;
    const unsigned blocks = unsigned(smaller(work, MAX_BLOCKS));
#ifdef LIA_EMULATED
    emulator::run(blocks, threads, shared, [&] { kernel(args); });
#else
    kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(where.stream)>>>(args);
#endif
    return int(cudaGetLastError());
}

template <int N> struct Number {
    static constexpr int value = N;
};

template <bool YES, class A, class B> struct Choose { using type = A; };
template <class A, class B> struct Choose<false, A, B> { using type = B; };

// run(zero) with a zero of the type that the code names.
template <class Run> int by_type(int64_t code, const Run& run) {
    switch (code) {
        case 0: return run(float());
        case 1: return run(bf16());
        case 2: return run(half());
        case 3: return run(double());
    }
    return INVALID;
}

}  // namespace lia
