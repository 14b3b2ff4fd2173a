/* Released buffers wait here, newest last, for a request of exactly their size; the oldest go when the limit is passed.

   A buffer enters only when the array that owned it is gone, so nobody can see what is handed out again. The lock is never
   waited for: whoever finds it taken (another thread, or a thread that did not survive a fork) uses malloc and free. */
#include "pool.h"

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { SLOTS = 64, LINE = 64, PAGE = 4096, HUGE_PAGE = 2 << 20 };

static struct { void *p; size_t size; } kept[SLOTS];
static int count;
static size_t bytes, limit;
static char lock;

static int enter(void) { return !__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE); }
static void leave(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }

static void drop(int i) {
    free(kept[i].p);
    bytes -= kept[i].size;
    memmove(kept + i, kept + i + 1, (size_t)(count - i - 1) * sizeof kept[0]);
    count--;
}

/* Large buffers begin with a page: NumPy's begin 16 bytes into one, and where an output begins a little further than its input, every
   load waits for the store before it, which seems to overlap it (evaluation of (128, 1024) took 1.7 of the time). */
static size_t align_of(size_t size) { return size >= 2 * HUGE_PAGE ? HUGE_PAGE : size >= 4 * PAGE ? PAGE : LINE; }

/* New memory, of huge pages where they pay, as NumPy's own is: with small ones a kernel waits for address translation. */
static void *obtain(size_t size) {
    void *p;
#ifdef _WIN32
    p = malloc(size ? size : 1);
#else
    if (posix_memalign(&p, align_of(size), size ? size : 1)) return NULL;
#endif
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (align_of(size) == HUGE_PAGE) (void)madvise(p, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* works without as well */
#endif
    return p;
}

void *fn_pool_malloc(void *ctx, size_t size) {
    (void)ctx;
    void *p = NULL;
    if (enter()) {
        for (int i = count - 1; i >= 0 && !p; i--)
            if (kept[i].size == size) {
                p = kept[i].p;
                bytes -= size;
                memmove(kept + i, kept + i + 1, (size_t)(count - i - 1) * sizeof kept[0]);
                count--;
            }
        leave();
    }
    return p ? p : obtain(size);
}

void *fn_pool_calloc(void *ctx, size_t n, size_t size) {
    if (size && n > (size_t)-1 / size) return NULL;
    void *p = fn_pool_malloc(ctx, n * size);
    return p ? memset(p, 0, n * size) : NULL;
}

void *fn_pool_realloc(void *ctx, void *p, size_t size) { (void)ctx; return realloc(p, size ? size : 1); }

void fn_pool_free(void *ctx, void *p, size_t size) {
    (void)ctx;
    if (!p) return;
    if (size && size <= limit && enter()) {
        while (count && (count == SLOTS || bytes + size > limit)) drop(0);
        if (bytes + size <= limit) {
            kept[count].p = p;
            kept[count++].size = size;
            bytes += size;
            p = NULL;
        }
        leave();
    }
    free(p);
}

void fn_pool_set_limit(size_t new_limit) {
    while (!enter()) {}
    limit = new_limit;
    while (count && bytes > limit) drop(0);
    leave();
}

void fn_pool_after_fork(void) {
    if (!enter()) count = 0, bytes = 0; /* another thread was at work on it: leave what it had */
    leave();
}

size_t fn_pool_limit(void) { return limit; }
size_t fn_pool_bytes(void) { return bytes; }
