// All C kernels in one shared object: what cc.py compiles.
#include "decoder_step_cpu.c"
#include "sample_cpu.c"
