// Counts what a process asks of malloc, loaded before everything else (LD_PRELOAD). glibc only: its own functions do the work.
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <errno.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

// Calls by size: up to 512 bytes, up to 64 KiB, more; and bytes of all.
static _Atomic uint64_t counts[4];

static void note(size_t bytes) {
  atomic_fetch_add_explicit(&counts[bytes <= 512 ? 0 : bytes <= 65536 ? 1 : 2], 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&counts[3], bytes, memory_order_relaxed);
}

void pagoda_allocations(uint64_t out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = atomic_load_explicit(&counts[i], memory_order_relaxed);
}

void* malloc(size_t bytes) { note(bytes); return __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { note(count * bytes); return __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { note(bytes); return __libc_realloc(old, bytes); }
void* memalign(size_t align, size_t bytes) { note(bytes); return __libc_memalign(align, bytes); }
void* aligned_alloc(size_t align, size_t bytes) { note(bytes); return __libc_memalign(align, bytes); }
int posix_memalign(void** out, size_t align, size_t bytes) {
  note(bytes);
  void* const found = __libc_memalign(align, bytes);
  if (!found) return ENOMEM;
  *out = found;
  return 0;
}
