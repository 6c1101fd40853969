#if defined(__x86_64__)
#include "cpu/isa_includes.h"
#define AXNET_ISA avx512
#define AXNET_VECTOR_BYTES 64
#if defined(__clang__)  // which knows no preference and ignores the whole of what it does not know
AXNET_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#else
AXNET_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#endif
#include "cpu/isa.inl.h"
AXNET_TARGET_END
#endif
