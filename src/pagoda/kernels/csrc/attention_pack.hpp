// From slots in pages to the two matrices of words that a block of attention multiplies (attention_math.hpp):
//
//   keys   [word of k_dim][slot]     scores = queries x keys: lanes are slots
//   values [word of slots][column]   sums += probabilities x values: lanes are V's columns
//
// With floats a word is one column (keys) or slot (values); with pairs of bfloat16 it is two neighbours.
#pragma once

#include "attention_rows.hpp"

namespace pagoda {
namespace {

#if defined(__AVX512F__)
// out[w] = word w of rows[0] … rows[15], for 16 words.
inline void transpose_words(const char* const* rows, int64_t word, __m512* out) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(rows[i] + 4 * word);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d x = (__m512d)b[i + j], y = (__m512d)b[i + j + 2];
      a[i + 2 * j] = (__m512)_mm512_unpacklo_pd(x, y);      // words 2j of each quarter, rows i..i+3
      a[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(x, y);  // words 2j+1
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // a[j], a[4+j], a[8+j], a[12+j]: word j of the quarters 0..3, of four rows each
    const __m512 x = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88), y = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
    const __m512 z = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd), u = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xdd);
    out[j] = _mm512_shuffle_f32x4(x, y, 0x88);
    out[j + 4] = _mm512_shuffle_f32x4(z, u, 0x88);
    out[j + 8] = _mm512_shuffle_f32x4(x, y, 0xdd);
    out[j + 12] = _mm512_shuffle_f32x4(z, u, 0xdd);
  }
}

// The words of sixteen slots' products with eight rows, [16][16] -> words[row]: half of transpose_words' shuffles.
inline void transpose_eight(const float* from, __m512 (&words)[8]) {
  __m512 a[8], b[8];
  const auto row = [&](int i) { return _mm512_castps256_ps512(_mm256_load_ps(from + i * kLanes)); };
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // slots 0 to 3 and 8 to 11 with the four behind each
    const int first = i % 4 + i / 4 * 8;
    a[i] = _mm512_insertf32x8(row(first), _mm256_load_ps(from + (first + 4) * kLanes), 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
      a[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    words[j] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
    words[j + 4] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd);
  }
}
#endif

// out[w * ldo + i] = word w of rows[i], for kLanes rows and kLanes words.
inline void transpose_tile(const char* const* rows, int64_t word, float* out, int64_t ldo) {
#if defined(__AVX512F__)
  __m512 words[16];
  transpose_words(rows, word, words);
#pragma GCC unroll 16
  for (int w = 0; w < 16; ++w) _mm512_storeu_ps(out + w * ldo, words[w]);
#elif defined(__AVX2__)
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps((const float*)(rows[i] + 4 * word));
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m256d x = (__m256d)b[i + j], y = (__m256d)b[i + j + 2];
      a[i + 2 * j] = (__m256)_mm256_unpacklo_pd(x, y);
      a[i + 2 * j + 1] = (__m256)_mm256_unpackhi_pd(x, y);
    }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * ldo, _mm256_permute2f128_ps(a[j], a[j + 4], 0x20));
    _mm256_storeu_ps(out + (j + 4) * ldo, _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
  }
#else
  for (int w = 0; w < kLanes; ++w)
    for (int i = 0; i < kLanes; ++i) memcpy(out + w * ldo + i, rows[i] + 4 * (word + w), 4);
#endif
}

// Keys of kLanes slots, given as rows of words (the last word of an odd number of bfloat16 columns must be readable).
inline void pack_keys(const char* const* rows, int64_t words, float* out, int64_t ldo) {
  int64_t w = 0;
  for (; w + kLanes <= words; w += kLanes) transpose_tile(rows, w, out + w * ldo, ldo);
  for (; w < words; ++w)
    for (int i = 0; i < kLanes; ++i) memcpy(out + w * ldo + i, rows[i] + 4 * w, 4);
}

// One word row of values out of one slot: its columns, zeros behind the last.
inline void pack_value(const float* row, int64_t columns, int64_t padded, float* out) {
  memcpy(out, row, sizeof(float) * columns);
  for (int64_t c = columns; c < padded; ++c) out[c] = 0.0f;
}

#if PAGODA_DPBF16
const uint16_t kInterleaveLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};

// One word row of values out of two slots of bfloat16: column by column, the first slot's number in the low half.
inline void pack_value_pair(const uint16_t* first, const uint16_t* second, int64_t columns, int64_t padded, float* out) {
  const __m512i low = _mm512_loadu_si512(kInterleaveLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  int64_t c = 0;
  for (; c + 32 <= columns; c += 32) {
    const __m512i a = _mm512_loadu_si512(first + c), b = _mm512_loadu_si512(second + c);
    _mm512_storeu_si512(out + c, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(out + c + 16, _mm512_permutex2var_epi16(a, high, b));
  }
  for (; c + 16 <= columns; c += 16) {
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(first + c)));
    const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(second + c)));
    _mm512_storeu_si512(out + c, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
  }
  for (; c < padded; ++c) {
    const uint32_t pair = c < columns ? uint32_t{first[c]} | uint32_t{second[c]} << 16 : 0u;
    memcpy(out + c, &pair, 4);
  }
}
#endif

}  // namespace
}  // namespace pagoda
