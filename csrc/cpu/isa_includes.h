// Everything that a kernel file needs from outside, before a target pragma is open: code that the linker may share with
// other files must stay within the instructions that every machine has.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own AVX-512 header
#endif

#include "cpu/kernels.h"

#define AXNET_STRING_(x) #x
#define AXNET_STRING(x) AXNET_STRING_(x)

#define AXNET_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define AXNET_TARGET_BEGIN(isa) AXNET_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define AXNET_TARGET_END AXNET_PRAGMA(clang attribute pop)
#else
#define AXNET_TARGET_BEGIN(isa) AXNET_PRAGMA(GCC push_options) AXNET_PRAGMA(GCC target(isa))
#define AXNET_TARGET_END AXNET_PRAGMA(GCC pop_options)
#endif
