// Marks of pages for one instruction set (page_marks.hpp).
#include <type_traits>

#include "attention_pack.hpp"
#include "page_marks.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// A page's keys as numbers: by slots, [size][dim], and by channels, [dim][slots] with zeros behind the last slot.
struct Keys {
  int64_t size, dim, slots;
  float *by_slot, *by_channel;
};

// Cosine and sine of an angle that is a float, to an ulp: reduced in double, since positions are large.
inline void cos_sin(float angle, float& cosine, float& sine) {
  const double shifted = fused(double(angle), 0.63661977236758134, 6755399441055744.0);  // 1.5 * 2^52: to the nearest quarter
  int64_t bits;
  memcpy(&bits, &shifted, 8);
  const float r = float(fused(shifted - 6755399441055744.0, -1.5707963267948966, double(angle))), r2 = r * r;
  const float s = fused(r * r2, fused(r2, fused(r2, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), r);
  const float even = fused(r2, fused(r2, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f);
  const float c = fused(r2 * r2, even, fused(r2, -0.5f, 1.0f));
  const float at = bits & 1 ? c : s, beside = bits & 1 ? s : c;
  sine = bits & 2 ? -at : at, cosine = (bits + 1) & 2 ? -beside : beside;
}

void read_keys(const PageMarkArgs& a, const Keys& keys) {
  const PageShape& shape = a.shape;
  for (int64_t slot = 0; slot < keys.size; ++slot)
    read_row(shape.store, a.page + shape.k.at + slot * shape.k.bytes, a.page + shape.k_scales.at + slot * shape.k_scales.bytes, keys.dim,
             keys.by_slot + slot * keys.dim);
  if (!a.freq) return;
  const int64_t half = keys.dim / 2;
  float *cosines = keys.by_channel, *sines = cosines + half;  // not in use yet
  for (int64_t slot = 0; slot < keys.size; ++slot) {
    const float position = float(a.number * keys.size + slot);
    for (int64_t i = 0; i < half; ++i) cos_sin(position * a.freq[i], cosines[i], sines[i]);
    float* x = keys.by_slot + slot * keys.dim;
    for (int64_t i = 0; i < half; ++i) {
      const float one = x[i], other = x[half + i];
      x[i] = one * cosines[i] + other * sines[i], x[half + i] = other * cosines[i] - one * sines[i];
    }
  }
}

void transpose(const Keys& keys) {
  int64_t d = 0;
#if defined(__AVX512F__)
  for (; keys.slots == keys.size && d + kLanes <= keys.dim; d += kLanes)
    for (int64_t slot = 0; slot < keys.slots; slot += kLanes) {
      const char* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = (const char*)(keys.by_slot + (slot + i) * keys.dim);
      __m512 words[kLanes];
      transpose_words(rows, d, words);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(keys.by_channel + (d + i) * keys.slots + slot, (Vec)words[i]);
    }
#endif
  for (; d < keys.dim; ++d)
    for (int64_t slot = 0; slot < keys.slots; ++slot)
      keys.by_channel[d * keys.slots + slot] = slot < keys.size ? keys.by_slot[slot * keys.dim + d] : 0.0f;
}

// Boxes around the keys of each part of a page, their sides further out by 1 / 256, which is more than rounding takes.
void note_corners(const PageMarkArgs& a, const Keys& keys) {
  const int64_t parts = a.rule.per_page, each = keys.size / parts;
  uint16_t* to = (uint16_t*)a.marks + a.number * parts * a.rule.stride;
  for (int64_t part = 0; part < parts; ++part, to += a.rule.stride) {
    const float* x = keys.by_slot + part * each * keys.dim;
    int64_t d = 0;
    for (; d + kLanes <= keys.dim; d += kLanes) {
      Vec high = load(x + d), low = high;
      for (int64_t i = 1; i < each; ++i) {
        const Vec one = load(x + i * keys.dim + d);
        high = maximum(one, high), low = select(one < low, one, low);
      }
      store(to + d, high + without_sign(high) * (1.0f / 256));
      store(to + keys.dim + d, low - without_sign(low) * (1.0f / 256));
    }
    for (; d < keys.dim; ++d) {
      float high = x[d], low = x[d];
      for (int64_t i = 1; i < each; ++i) {
        const float one = x[i * keys.dim + d];
        high = one > high ? one : high, low = one < low ? one : low;
      }
      narrow(high + __builtin_fabsf(high) * (1.0f / 256), to + d);
      narrow(low - __builtin_fabsf(low) * (1.0f / 256), to + keys.dim + d);
    }
  }
}

float length_of(const float* x, int64_t dim) {
  float sum = 0.0f;
  for (int64_t d = 0; d < dim; ++d) sum = fused(x[d], x[d], sum);
  const float length = __builtin_sqrtf(sum);
  return length > 1e-8f ? length : 1e-8f;
}

inline void put(float x, float* to) { *to = x; }
inline void put(float x, uint16_t* to) { narrow(x, to); }

// The mean key of each part, and where there is room for it how unlike the least alike is.
template <typename Number>
void note_means(const PageMarkArgs& a, const Keys& keys) {
  const int64_t parts = a.rule.per_page, each = keys.size / parts;
  float* const mean = keys.by_channel;  // not in use
  for (int64_t part = 0; part < parts; ++part) {
    const float* const x = keys.by_slot + part * each * keys.dim;
    Number* const to = (Number*)a.marks + (a.number * parts + part) * a.rule.stride;
    for (int64_t d = 0; d < keys.dim; ++d) {
      float sum = 0.0f;
      for (int64_t slot = 0; slot < each; ++slot) sum += x[slot * keys.dim + d];
      mean[d] = sum / float(each), put(mean[d], to + d);
    }
    if (a.rule.stride == keys.dim) continue;
    float least = kInf;
    const float own = length_of(mean, keys.dim);
    for (int64_t slot = 0; slot < each; ++slot) {
      const float* key = x + slot * keys.dim;
      float dot = 0.0f;
      for (int64_t d = 0; d < keys.dim; ++d) dot = fused(key[d], mean[d], dot);
      const float cosine = dot / (length_of(key, keys.dim) * own);
      least = cosine < least ? cosine : least;
    }
    put(least, to + keys.dim);
  }
}

// The nearest integers, of -127 … 127, and 128: in the lowest byte of each.
inline UintVec bytes_of(Vec x) {
  const Vec least = splat(-127.0f), most = splat(127.0f), shifted = select(x < least, least, select(x > most, most, x)) + splat(12582912.0f);
  return ((UintVec)shifted - 0x4b400000u + 128u) & 255u;  // 1.5 * 2^23: the integer is in its lowest bits
}

inline void store_bytes(UintVec numbers, int64_t count, uint8_t* to) {
#if defined(__AVX512BW__)
  _mm512_mask_cvtepi32_storeu_epi8(to, __mmask16(count < kLanes ? (1u << count) - 1 : 0xffffu), (__m512i)numbers);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = uint8_t(numbers[i]);
#endif
}

// Calls use(first slot, slots, each one's largest size) for a register of slots at a time.
template <typename Use>
inline void each_largest(const Keys& keys, Use use) {
  for (int64_t slot = 0; slot < keys.size; slot += kLanes) {
    Vec most{};
    for (int64_t d = 0; d < keys.dim; ++d) most = maximum(without_sign(load(keys.by_channel + d * keys.slots + slot)), most);
    use(slot, keys.size - slot < kLanes ? keys.size - slot : kLanes, most);
  }
}

// The bytes of scales that are the least that are no less than these, of which none is below 0, or the largest there is; to `bytes` where
// there are so many `slots`. Returns those scales.
inline Vec store_scales(Vec scales, int64_t slots, uint8_t* bytes) {
  IntVec up = (IntVec)(((UintVec)scales + ((1u << kScaleShift) - 1)) >> uint32_t(kScaleShift)) - kScaleOfZero;
  up = up < 0 ? IntVec{} : up > 255 ? IntVec{} + 255 : up;
  store_bytes((UintVec)up, slots, bytes);
  return (Vec)((UintVec)(up + kScaleOfZero) << uint32_t(kScaleShift));
}

// A channel's numbers in units of their slots' scales as four bits and 8: the nearest sixteenths, of -7 … 7.
inline UintVec fours_of(Vec x) {
  const Vec least = splat(-7.0f), most = splat(7.0f), part = x * (1.0f / 16);
  const Vec shifted = select(part < least, least, select(part > most, most, part)) + splat(12582912.0f);  // as bytes_of() has it
  return ((UintVec)shifted - 0x4b400000u + 8u) & 15u;
}

// Four bits of each slot, two in a byte: of each group the second half becomes the upper bits.
inline void store_fours(const uint8_t* bits, int64_t size, uint8_t* to) {
  const int64_t group = column_group(size), half = group / 2;
#if defined(__AVX512BW__)
  if (group == 16) {
    for (int64_t i = 0; i < size; i += 16) {
      const __m128i both = _mm_loadu_si128((const __m128i*)(bits + i));
      _mm_storel_epi64((__m128i*)(to + i / 2), _mm_or_si128(both, _mm_slli_epi16(_mm_srli_si128(both, 8), 4)));
    }
    return;
  }
#endif
  for (int64_t i = 0; i < size; i += group)
    for (int64_t n = 0; n < half; ++n) to[i / 2 + n] = uint8_t(bits[i + n] | bits[i + half + n] << 4);
}

// Four bits by channel, each slot's beside a scale of its own.
void note_columns(const PageMarkArgs& a, const Keys& keys) {
  const int64_t apart = a.room * keys.size / 2, group = column_group(keys.size), half = group / 2;
  float* const scales = keys.by_slot;  // not in use any more
  uint8_t *const bytes = (uint8_t*)(scales + keys.slots), *const to = (uint8_t*)a.marks + a.number * keys.size / 2;
  each_largest(keys, [&](int64_t slot, int64_t slots, Vec most) { store(scales + slot, store_scales(most / 112.0f, slots, bytes + slot)); });
  for (int64_t i = 0; i < keys.size; i += half) memcpy(to + (keys.dim + i / half % 2) * apart + i / group * half, bytes + i, half);
  for (int64_t d = 0; d < keys.dim; ++d) {
    for (int64_t slot = 0; slot < keys.size; slot += kLanes)
      store_bytes(fours_of(load(keys.by_channel + d * keys.slots + slot) / load(scales + slot)), kLanes, bytes + slot);
    store_fours(bytes, keys.size, to + d * apart);
  }
}

// Calls use(first slot, register of slots) with the products of all keys and a column of `given`, `apart` numbers from one channel to the next.
template <int kColumns, typename Use>
inline void products_with(const Keys& keys, const float* given, int64_t apart, int64_t next, Use use) {
  for (int64_t slot = 0; slot < keys.slots; slot += kLanes) {
    Vec sum[kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) sum[i] = Vec{};
    for (int64_t d = 0; d < keys.dim; ++d) {
      const Vec x = load(keys.by_channel + d * keys.slots + slot);
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) sum[i] = fused(x, given[d * apart + i * next], sum[i]);
    }
    use(slot, sum);
  }
}

// The products of keys with all columns of `given`, which are a multiple of four, in place of the keys; `matrix`: room for it as numbers.
Keys project(const PageMarkArgs& a, Keys keys, float* matrix) {
  const int64_t width = a.rule.channels();
  float* const products = keys.by_slot;  // not in use any more
  for (int64_t i = 0; i < a.shape.k_dim * width; ++i) matrix[i] = float(((const int8_t*)a.given)[i]) * kGivenUnit;
  const auto some = [&](int64_t w, auto columns) {
    products_with<columns.value>(keys, matrix + w, width, 1, [&](int64_t slot, const Vec* sum) {
      for (int i = 0; i < columns.value; ++i) store(products + (w + i) * keys.slots + slot, sum[i]);
    });
  };
  int64_t w = 0;
  for (; w + 8 <= width; w += 8) some(w, std::integral_constant<int, 8>());
  for (; w < width; w += 4) some(w, std::integral_constant<int, 4>());
  keys.dim = width, keys.by_channel = products;
  return keys;
}

void note_bytes(const PageMarkArgs& a, const Keys& keys) {
  const int64_t width = a.rule.channels(), plane = 4 * keys.size;
  each_largest(keys, [&](int64_t slot, int64_t slots, Vec most) {
    uint8_t* const page = (uint8_t*)a.marks + a.number * a.rule.mark_bytes();
    const Vec scales = store_scales(most / 127.0f, slots, page + width * keys.size + slot);
    for (int64_t w = 0; w < width; w += 4) {
      UintVec word{};
      for (int64_t d = w; d < w + 4; ++d) word |= bytes_of(d < keys.dim ? load(keys.by_channel + d * keys.slots + slot) / scales : Vec{}) << uint32_t(8 * (d - w));
      memcpy(page + 4 * slot + w / 4 * plane, &word, 4 * slots);
    }
  });
}

// The best of kCodes codes from `first` on, where one is better than `best`.
template <int kCodes>
inline void meet_codes(const PageMarkArgs& a, const Keys& keys, int64_t first, float* best, int32_t* which) {
  products_with<kCodes>(keys, (const float*)a.given + first * keys.dim, 1, keys.dim, [&](int64_t slot, const Vec* sum) {
    Vec top = load(best + slot);
    IntVec code;
    memcpy(&code, which + slot, sizeof code);
    for (int i = 0; i < kCodes; ++i) {
      const Vec worth = fused(sum[i], a.weights[first + i], a.weights[a.num_given + first + i]);
      const IntVec better = worth > top;
      top = select(better, worth, top), code = better ? IntVec{} + int32_t(first + i) : code;
    }
    store(best + slot, top);
    memcpy(which + slot, &code, sizeof code);
  });
}

void note_codes(const PageMarkArgs& a, Keys keys, float* room) {
  if (a.metric) {  // symmetric, so its columns are its rows
    float* const turned = room;
    for (int64_t d = 0; d < keys.dim; ++d)
      products_with<1>(keys, a.metric + d, keys.dim, 0, [&](int64_t slot, const Vec* sum) { store(turned + d * keys.slots + slot, *sum); });
    keys.by_channel = turned;
  }
  float* const best = keys.by_slot;  // not in use any more
  int32_t* const which = (int32_t*)(best + keys.slots);
  for (int64_t slot = 0; slot < keys.slots; ++slot) best[slot] = -kInf, which[slot] = 0;
  int64_t code = 0;
  for (; code + 8 <= a.num_given; code += 8) meet_codes<8>(a, keys, code, best, which);
  for (; code < a.num_given; ++code) meet_codes<1>(a, keys, code, best, which);
  int16_t* to = (int16_t*)a.marks + a.number * keys.size;
  for (int64_t slot = 0; slot < keys.size; ++slot) to[slot] = int16_t(which[slot]);
}

}  // namespace

namespace PAGODA_ISA {

void run_page_marks(const PageMarkArgs& a) {
  Keys keys{a.shape.page_size, a.shape.k_dim, (a.shape.page_size + kMarkPad - 1) / kMarkPad * kMarkPad, nullptr, nullptr};
  keys.by_slot = a.room_numbers, keys.by_channel = keys.by_slot + keys.slots * (keys.dim + 4);
  float* const rest = keys.by_channel + keys.slots * (keys.dim + 4);
  read_keys(a, keys);
  switch (a.rule.kind()) {
    case Marks::halves: return Query(a.rule.query) == Query::split ? note_corners(a, keys) : note_means<uint16_t>(a, keys);
    case Marks::rows: return note_means<float>(a, keys);
    case Marks::columns: return transpose(keys), note_columns(a, keys);
    case Marks::bytes: return transpose(keys), note_bytes(a, Query(a.rule.query) == Query::project ? project(a, keys, rest) : keys);
    case Marks::codes: return transpose(keys), note_codes(a, keys, rest);
    default: return;
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
