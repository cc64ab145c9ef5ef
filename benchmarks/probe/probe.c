/* What the memory system gives right now: read bandwidth over `threads` threads, and the round trip of one cache line
 * between two of them. A virtual machine's CPUs are moved by its host (one L3 cache or two, quiet or busy neighbours), so
 * both are asked again around every repetition of a benchmark.
 *
 *   probe THREADS MEBIBYTES PASSES      prints "read_gb_s BEST round_trip_ns MEDIAN"
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { MAX_THREADS = 256, MAX_PASSES = 64, ROUNDS = 15, TRIPS = 1000 };

typedef int64_t vec __attribute__((vector_size(64), may_alias)); /* the compiler splits it where 512 bits are too many */

typedef struct {
    const vec *data;
    size_t count; /* vectors, a multiple of 8 */
    int cpu, passes;
    pthread_barrier_t *barrier;
    double begun[MAX_PASSES], ended[MAX_PASSES];
    int64_t sum; /* keeps the loads alive */
} Share;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The index-th CPU that this process may use: each thread gets one of its own, as the engines' threads do. */
static int allowed_cpu(int index) {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    int left = index % CPU_COUNT(&set);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set) && left-- == 0) return cpu;
    return 0;
}

static void stay_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void *read_share(void *argument) {
    Share *share = argument;
    stay_on(share->cpu);
    vec a[8] = {{0}};
    for (int pass = 0; pass < share->passes; pass++) {
        pthread_barrier_wait(share->barrier);
        share->begun[pass] = now();
        for (size_t i = 0; i < share->count; i += 8)
            for (int j = 0; j < 8; j++) a[j] += share->data[i + j];
        share->ended[pass] = now();
    }
    for (int j = 0; j < 8; j++)
        for (int k = 0; k < 8; k++) share->sum += a[j][k];
    return NULL;
}

/* From the first thread's start to the last one's end: the readers themselves hold the clock, for a thread that only waits
 * for them wakes late on a machine whose CPUs all read. */
static double pass_seconds(const Share *shares, int threads, int pass) {
    double begun = shares[0].begun[pass], ended = shares[0].ended[pass];
    for (int t = 1; t < threads; t++) {
        if (shares[t].begun[pass] < begun) begun = shares[t].begun[pass];
        if (shares[t].ended[pass] > ended) ended = shares[t].ended[pass];
    }
    return ended - begun;
}

/* Best pass of `passes`, bytes/s: what the memory can do; other processes only make a pass slower. */
static double read_bandwidth(int threads, size_t bytes, int passes) {
    char *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) { perror("probe: mmap"); exit(1); }
    madvise(data, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes; i += 4096) data[i] = (char)(i >> 12); /* the zero page would be read from the cache */
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    static pthread_t ids[MAX_THREADS];
    static Share shares[MAX_THREADS];
    size_t count = bytes / sizeof(vec) / (size_t)threads / 8 * 8;
    for (int t = 0; t < threads; t++) {
        shares[t].data = (const vec *)data + (size_t)t * count;
        shares[t].count = count, shares[t].cpu = allowed_cpu(t), shares[t].passes = passes, shares[t].barrier = &barrier;
        pthread_create(&ids[t], NULL, read_share, &shares[t]);
    }
    for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
    double best = pass_seconds(shares, threads, 0);
    for (int pass = 1; pass < passes; pass++) {
        double seconds = pass_seconds(shares, threads, pass);
        if (seconds < best) best = seconds;
    }
    munmap(data, bytes);
    return (double)(count * (size_t)threads * sizeof(vec)) / best;
}

static _Alignas(128) atomic_int ball;

static void *return_ball(void *argument) {
    stay_on(*(int *)argument);
    for (int i = 0; i < ROUNDS * TRIPS; i++) {
        while (atomic_load_explicit(&ball, memory_order_acquire) != 2 * i + 1) {}
        atomic_store_explicit(&ball, 2 * i + 2, memory_order_release);
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of ROUNDS means of TRIPS round trips, seconds. */
static double round_trip(void) {
    pthread_t other;
    int cpu = allowed_cpu(1);
    double means[ROUNDS];
    pthread_create(&other, NULL, return_ball, &cpu);
    stay_on(allowed_cpu(0));
    for (int r = 0, i = 0; r < ROUNDS; r++) {
        double started = now();
        for (int end = i + TRIPS; i < end; i++) {
            atomic_store_explicit(&ball, 2 * i + 1, memory_order_release);
            while (atomic_load_explicit(&ball, memory_order_acquire) != 2 * i + 2) {}
        }
        means[r] = (now() - started) / TRIPS;
    }
    pthread_join(other, NULL);
    qsort(means, ROUNDS, sizeof means[0], by_value);
    return means[ROUNDS / 2];
}

int main(int argc, char **argv) {
    int threads = argc == 4 ? atoi(argv[1]) : 0, passes = argc == 4 ? atoi(argv[3]) : 0;
    long mebibytes = argc == 4 ? atol(argv[2]) : 0;
    if (threads < 1 || threads > MAX_THREADS || mebibytes < 1 || passes < 1 || passes > MAX_PASSES) {
        fprintf(stderr, "usage: probe THREADS MEBIBYTES PASSES\n");
        return 2;
    }
    double rate = read_bandwidth(threads, (size_t)mebibytes << 20, passes);
    double trip = threads > 1 ? round_trip() : 0; /* one CPU has no other to talk to */
    printf("read_gb_s %.2f round_trip_ns %.1f\n", rate / 1e9, trip * 1e9);
    return 0;
}
