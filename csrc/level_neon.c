/* The kernels at the level neon; setup.py passes the matching compiler flags. */
#define FN_LEVEL 4
#define FN_TABLE fn_table_neon
#include "kernels.h"
