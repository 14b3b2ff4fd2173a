/* The kernels at the level avx512, with doubles in whole registers; setup.py passes the matching compiler flags. */
#define FN_LEVEL 3
#define FN_NATIVE_D 64
#define FN_TABLE fn_table_avx512_wide
#include "kernels.h"
