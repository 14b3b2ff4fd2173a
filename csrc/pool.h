/* A bounded cache of released output buffers: a fresh page costs more than the arithmetic on it. */
#ifndef FN_POOL_H
#define FN_POOL_H

#include <stddef.h>

/* NumPy's allocator signatures (NEP 49). Contents are never zeroed except by fn_pool_calloc. */
void *fn_pool_malloc(void *ctx, size_t size);
void *fn_pool_calloc(void *ctx, size_t count, size_t size);
void *fn_pool_realloc(void *ctx, void *p, size_t size);
void fn_pool_free(void *ctx, void *p, size_t size);

/* At most `limit` bytes are kept; what is above it is given back at once. 0 switches the cache off. */
void fn_pool_set_limit(size_t limit);
/* In the child of a fork, before anything else. */
void fn_pool_after_fork(void);
size_t fn_pool_limit(void);
size_t fn_pool_bytes(void);

#endif
