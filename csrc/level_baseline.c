/* The kernels at the level baseline; setup.py passes the matching compiler flags. */
#define FN_LEVEL 0
#define FN_TABLE fn_table_baseline
#include "kernels.h"
