/* The kernels at the level avx2; setup.py passes the matching compiler flags. */
#define FN_LEVEL 2
#define FN_TABLE fn_table_avx2
#include "kernels.h"
