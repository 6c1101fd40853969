// Instructions of the matrix units and of the copy to shared memory (sm_80). tests/cuda_host has a header of this name
// that does the same on the CPU.
//
// Lane 4 g + t of a warp holds, as pairs of 16-bit numbers in a register (the first in the lower half):
//   a  16 x 16: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)
//   b  16 x 8:  (2t.., g), (2t + 8.., g)
//   c  16 x 8 in float: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// and of tf32, a number in a register:
//   a  16 x 8: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);   b  8 x 8: (t, g), (t + 4, g)
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"

namespace axnet::cuda {

// c += a b
template <class T>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// v, about which the compiler knows nothing: what follows from it is computed where it is used instead of kept in
// registers over a loop.
__device__ inline float again(float v) {
  asm volatile("" : "+f"(v));
  return v;
}
template <class Integer>
__device__ inline Integer again(Integer v) {
  asm volatile("" : "+r"(v));
  return v;
}
// Of memory that is only copied from: for loads the compiler would no longer know that it is global.
template <class T>
__device__ inline const T* again(const T* v) {
  asm volatile("" : "+l"(v));
  return v;
}

// 1 / v to the last bit but one.
__device__ inline float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices of 16-bit numbers in shared memory; lane 8 m + r gives row r of matrix m. A lane gets (g, 2t..)
// of each, or with ACROSS (2t.., g).
template <bool ACROSS>
__device__ inline void load_matrices(const void* row, uint32_t (&r)[4]) {
  if constexpr (ACROSS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// An 8 x 8 matrix of 16-bit numbers turned over: the lane's (g, 2t..) becomes (2t.., g). Not kept over a loop.
__device__ inline uint32_t turned(uint32_t pair) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
  return r;
}

// 16 bytes to shared memory. They are there once the thread has waited for the group that the copy belongs to; other
// threads see them after a barrier. The second-level cache fetches 128 bytes around them: rows of 64 bytes, as PWAP of
// 14 maps reads them, came at 42 % of a copy's bandwidth on an H200 with 64 and at 56 % with 128.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Of memory that is read on from there: with 256 bytes at a time the backward sums reached 87 %, with 128 bytes 85 %.
__device__ inline void copy_ahead(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// copy_async, or zeros where `real` is false: nothing is read then.
__device__ inline void copy_async_if(bool real, void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}

__device__ inline void copy_ahead_if(bool real, void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}

// The 128 bytes around into the second-level cache, with a copy of four of them, aligned, that nobody reads.
__device__ inline void ask_ahead(void* to, const void* from) {
  const void* four = reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) & ~uintptr_t{3});
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(four) : "memory");
}

// Ends a group: the thread's copies since the one before.
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` (up to 2; PENDING: any number) of the thread's groups are under way.
__device__ inline void copies_wait(int pending) {
  if (pending == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  else if (pending == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 2;" ::: "memory");
}

template <int PENDING>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace axnet::cuda
