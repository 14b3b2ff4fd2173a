/* The kernels at the level avx512, with doubles in halves of a register; setup.py passes the matching compiler flags. */
#define FN_LEVEL 3
#define FN_NATIVE_D 32
#define FN_TABLE fn_table_avx512
#include "kernels.h"
