/* How this build was made: with OpenMP or without (then its calls mean one thread), and by which compiler. */
#ifndef FN_BUILD_H
#define FN_BUILD_H
#ifdef _OPENMP
#include <omp.h>
#define FN_HAVE_OPENMP 1
#else
#define FN_HAVE_OPENMP 0
static inline int omp_get_thread_num(void) { return 0; }
#endif

#if defined(__clang__)
#define FN_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FN_COMPILER "gcc " __VERSION__
#else
#define FN_COMPILER "unknown compiler"
#endif
#endif
