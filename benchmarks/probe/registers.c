// What a core multiplies when nothing comes from memory: G operations a second (a product and a sum are two) by each
// instruction that this machine has, sixteen sums that do not wait for one another, random operands.
// Arguments: threads that do so at a time. One line each: thread, instruction, best of nine, median. See __init__.py.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TURNS = 9, TILES = 500000, STEPS = 2000000 };
static float sink[64][256];  // of each thread, so that no loop is for nothing
static uint16_t operands[2048];

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// Sixteen sums in registers; the operands change hands so that nothing is taken out of the loop.
#define LOOP(name, isa, type, product)                                            \
  __attribute__((target(isa), noinline)) static void name(float* out) {           \
    type sum[16], x, y;                                                           \
    memcpy(&x, operands, 64), memcpy(&y, operands + 32, 64);                      \
    for (int i = 0; i < 16; ++i) sum[i] = (type){0};                              \
    for (long step = 0; step < STEPS; ++step) {                                   \
      __asm__ volatile("" : "+v"(x), "+v"(y));                                    \
      _Pragma("GCC unroll 16") for (int i = 0; i < 16; ++i) sum[i] = product;     \
    }                                                                             \
    for (int i = 1; i < 16; ++i) sum[0] += sum[i];                                \
    memcpy(out, sum, 64);                                                         \
  }
LOOP(fma_floats, "avx512f", __m512, _mm512_fmadd_ps(x, y, sum[i]))
LOOP(dot_halves, "avx512f,avx512bf16", __m512, _mm512_dpbf16_ps(sum[i], (__m512bh)x, (__m512bh)y))
LOOP(dot_bytes, "avx512f,avx512vnni", __m512i, _mm512_dpbusd_epi32(sum[i], x, y))

struct tiles {
  uint8_t palette, start, unused[14];
  uint16_t columns[16];
  uint8_t rows[16];
};
#define TILE_LOOP(name, isa, product)                                   \
  __attribute__((target(isa), noinline)) static void name(float* out) { \
    struct tiles shape = {.palette = 1};                                \
    for (int i = 0; i < 8; ++i) shape.columns[i] = 64, shape.rows[i] = 16; \
    _tile_loadconfig(&shape);                                           \
    _tile_loadd(4, operands, 64);                                       \
    _tile_loadd(5, operands + 512, 64);                                 \
    _tile_loadd(6, operands + 1024, 64);                                \
    _tile_loadd(7, operands + 1536, 64);                                \
    _tile_zero(0);                                                      \
    _tile_zero(1);                                                      \
    _tile_zero(2);                                                      \
    _tile_zero(3);                                                      \
    for (long step = 0; step < TILES; ++step) {                         \
      product(0, 4, 6);                                                 \
      product(1, 4, 7);                                                 \
      product(2, 5, 6);                                                 \
      product(3, 5, 7);                                                 \
    }                                                                   \
    _tile_stored(0, out, 64);                                           \
    _tile_release();                                                    \
  }
TILE_LOOP(tiles_of_halves, "amx-tile,amx-bf16", _tile_dpbf16ps)
TILE_LOOP(tiles_of_bytes, "amx-tile,amx-int8", _tile_dpbssd)

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void show(int thread, const char* name, void (*loop)(float*), double operations) {
  double rates[TURNS];
  for (int i = 0; i < TURNS; ++i) {
    const double start = seconds();
    loop(sink[thread]);
    rates[i] = operations / (seconds() - start) * 1e-9;
  }
  qsort(rates, TURNS, sizeof *rates, ascending);
  printf("%d %s %.0f %.0f\n", thread, name, rates[TURNS - 1], rates[TURNS / 2]);
  fflush(stdout);
}

static void* all(void* number) {
  const int thread = (int)(intptr_t)number;
  if (__builtin_cpu_supports("avx512f")) show(thread, "vfmadd231ps", fma_floats, STEPS * 16.0 * 32);
  if (__builtin_cpu_supports("avx512bf16")) show(thread, "vdpbf16ps", dot_halves, STEPS * 16.0 * 64);
  if (__builtin_cpu_supports("avx512vnni")) show(thread, "vpdpbusd", dot_bytes, STEPS * 16.0 * 128);
  if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) {  // ARCH_REQ_XCOMP_PERM of tiles, which the system may refuse
    show(thread, "tdpbf16ps", tiles_of_halves, TILES * 4.0 * 16 * 16 * 64);
    show(thread, "tdpbssd", tiles_of_bytes, TILES * 4.0 * 16 * 16 * 128);
  }
  return NULL;
}

int main(int count, char** words) {
  const int threads = count > 1 ? atoi(words[1]) : 1;
  pthread_t ids[64];
  for (int i = 0; i < 2048; ++i) operands[i] = 0x3e00 | (rand() & 0x81ff);  // bfloat16 of either sign near 0.2
  for (int i = 0; i < threads && i < 64; ++i) pthread_create(&ids[i], NULL, all, (void*)(intptr_t)i);
  for (int i = 0; i < threads && i < 64; ++i) pthread_join(ids[i], NULL);
  return 0;
}
