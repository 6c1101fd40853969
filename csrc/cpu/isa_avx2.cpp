#if defined(__x86_64__)
#include "cpu/isa_includes.h"
#define AXNET_ISA avx2
#define AXNET_VECTOR_BYTES 32
AXNET_TARGET_BEGIN("avx2,fma,f16c,bmi,bmi2")
#include "cpu/isa.inl.h"
AXNET_TARGET_END
#endif
