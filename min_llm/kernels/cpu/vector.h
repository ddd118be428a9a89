// Sixteen float32 numbers at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "tiles.h"

namespace min_llm {

// e^x to about 2 units in the last place, for x <= 88; 0 below -104.
inline __m512 exp16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);  // the polynomial of Cephes' expf
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// 0 below −80, where it is 2e-35: x · sigmoid(x) must vanish for the lowest x too. exp16 takes −104 to 88.
inline __m512 sigmoid(__m512 x) {
  const __m512 limit = _mm512_set1_ps(80);
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-80), _CMP_NLT_UQ);  // NaN does, and stays NaN
  const __m512 e = exp16(_mm512_maskz_sub_ps(counts, _mm512_setzero_ps(), _mm512_min_ps(limit, x)));
  return _mm512_maskz_div_ps(counts, _mm512_set1_ps(1), _mm512_add_ps(_mm512_set1_ps(1), e));
}

inline __mmask16 first16(int64_t n) { return n >= 16 ? 0xffff : (n <= 0 ? 0 : (1u << n) - 1); }

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// 16 bfloat16 numbers as float32; zero where the mask is.
inline __m512 load_bf16(const bf16* p, __mmask16 mask = 0xffff) {
  return widen(_mm256_maskz_loadu_epi16(mask, p));
}

inline void store_bf16(bf16* p, __m512 x, __mmask16 mask = 0xffff) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

// The same for either kind of number.
inline __m512 load16(const bf16* p, __mmask16 mask) { return load_bf16(p, mask); }
inline __m512 load16(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline void store16(bf16* p, __m512 x, __mmask16 mask) { store_bf16(p, x, mask); }
inline void store16(float* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }

}  // namespace min_llm
