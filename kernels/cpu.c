// All C kernels in one shared object: what cc.py compiles.
#include "decode_rows_cpu.c"
