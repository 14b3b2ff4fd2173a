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

/* Lets this thread's team go before a fork. Its threads do not survive one, and the child would wait for them for ever. */
#if defined(_OPENMP) && (defined(__clang__) || __GNUC__ >= 9)
#define FN_CAN_RELEASE_TEAM 1
static inline void fn_release_team(void) { omp_pause_resource_all(omp_pause_hard); }
#else
#define FN_CAN_RELEASE_TEAM 0
static inline void fn_release_team(void) {}
#endif

#if defined(__clang__)
#define FN_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FN_COMPILER "gcc " __VERSION__
#else
#define FN_COMPILER "unknown compiler"
#endif
#endif
