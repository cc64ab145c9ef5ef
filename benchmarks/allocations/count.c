// Counts what a process asks of malloc, loaded before everything else (LD_PRELOAD). glibc only: its own functions do the work.
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <errno.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

// Calls by size: up to 512 bytes, up to 64 KiB, more; bytes of all; and calls out of the code that is watched.
static _Atomic uint64_t counts[5];
static uint64_t watched_begin, watched_end;

static void note(size_t bytes, const void* caller) {
  atomic_fetch_add_explicit(&counts[bytes <= 512 ? 0 : bytes <= 65536 ? 1 : 2], 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&counts[3], bytes, memory_order_relaxed);
  if ((uint64_t)caller - watched_begin < watched_end - watched_begin) atomic_fetch_add_explicit(&counts[4], 1, memory_order_relaxed);
}

void pagoda_allocations(uint64_t out[5]) {
  for (int i = 0; i < 5; ++i) out[i] = atomic_load_explicit(&counts[i], memory_order_relaxed);
}

// From now on calls that return into begin..end are counted apart.
void pagoda_watch(uint64_t begin, uint64_t end) { watched_begin = begin, watched_end = end; }

#define NOTED(bytes) note(bytes, __builtin_return_address(0))

void* malloc(size_t bytes) { NOTED(bytes); return __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { NOTED(count * bytes); return __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { NOTED(bytes); return __libc_realloc(old, bytes); }
void* memalign(size_t align, size_t bytes) { NOTED(bytes); return __libc_memalign(align, bytes); }
void* aligned_alloc(size_t align, size_t bytes) { NOTED(bytes); return __libc_memalign(align, bytes); }
int posix_memalign(void** out, size_t align, size_t bytes) {
  NOTED(bytes);
  void* const found = __libc_memalign(align, bytes);
  if (!found) return ENOMEM;
  *out = found;
  return 0;
}

// operator new and its kin, under the names that g++ and clang give them: they would call malloc from the C++ library, not from
// where memory is wanted. Where there is none, a benchmark may end.
static void* made(void* memory) {
  if (!memory) abort();
  return memory;
}
void* _Znwm(size_t bytes) { NOTED(bytes); return made(__libc_malloc(bytes)); }
void* _Znam(size_t bytes) { NOTED(bytes); return made(__libc_malloc(bytes)); }
void* _ZnwmRKSt9nothrow_t(size_t bytes, const void* tag) { (void)tag; NOTED(bytes); return __libc_malloc(bytes); }
void* _ZnamRKSt9nothrow_t(size_t bytes, const void* tag) { (void)tag; NOTED(bytes); return __libc_malloc(bytes); }
void* _ZnwmSt11align_val_t(size_t bytes, size_t align) { NOTED(bytes); return made(__libc_memalign(align, bytes)); }
void* _ZnamSt11align_val_t(size_t bytes, size_t align) { NOTED(bytes); return made(__libc_memalign(align, bytes)); }
