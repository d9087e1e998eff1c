// What each instruction-set level moves and multiplies with: one vector type, load and store,
// fp32 multiply-add, int8 dot products into int32.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)

using Bits = __m512i;
using Floats = __m512;
using Ints = __m512i;
constexpr int CHAINS = 16;  // latency times pipes is 8 to 10
inline Bits load(const void* from) { return _mm512_load_si512(from); }
inline void store(void* to, Bits v) { _mm512_store_si512(to, v); }
inline void stream(void* to, Bits v) { _mm512_stream_si512(static_cast<Bits*>(to), v); }
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(sum, a, b); }
inline Ints dot(Ints sum, Ints a, Ints b) { return _mm512_dpbusd_epi32(sum, a, b); }
inline Floats floats(float v) { return _mm512_set1_ps(v); }
inline Ints bytes(int8_t v) { return _mm512_set1_epi8(v); }

#elif defined(__AVX2__)

using Bits = __m256i;
using Floats = __m256;
using Ints = __m256i;
constexpr int CHAINS = 12;  // 16 registers hold the operands too
inline Bits load(const void* from) { return _mm256_load_si256(static_cast<const Bits*>(from)); }
inline void store(void* to, Bits v) { _mm256_store_si256(static_cast<Bits*>(to), v); }
inline void stream(void* to, Bits v) { _mm256_stream_si256(static_cast<Bits*>(to), v); }
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(sum, a, b); }
inline Ints dot(Ints sum, Ints a, Ints b) {
    const Ints pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Floats floats(float v) { return _mm256_set1_ps(v); }
inline Ints bytes(int8_t v) { return _mm256_set1_epi8(v); }

#else  // GCC's and clang's vectors, on any machine; 16 bytes are what SSE2 and NEON hold

typedef uint64_t Bits __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));
constexpr int CHAINS = 12;
inline Bits load(const void* from) { return *static_cast<const Bits*>(from); }
inline void store(void* to, Bits v) { *static_cast<Bits*>(to) = v; }
#if defined(__SSE2__)
inline void stream(void* to, Bits v) { _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v); }
#else
inline void stream(void* to, Bits v) { store(to, v); }
#endif
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return sum * a + b; }
inline Floats floats(float v) { return Floats{v, v, v, v}; }

#endif
