#include "cpu/isa_includes.h"
#define AXNET_ISA baseline
#define AXNET_VECTOR_BYTES 16
#include "cpu/isa.inl.h"
