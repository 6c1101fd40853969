// csrc/cuda/matrix.h on the CPU: the products from their definition, lane by lane.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda/launch.h"

namespace axnet::host {

struct Copy {
  void* to;
  const void* from;  // null: zeros
};
// Under way, by thread and group, the last one open: a missing wait shows as NaN.
inline std::vector<std::vector<Copy>> copies[1024];

inline void aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) std::fputs("misaligned 16 bytes\n", stderr), std::abort();
}

template <class T>
float number(uint32_t pair, int half) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * half));
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return static_cast<float>(value);
}

inline float tf32(uint32_t bits) {
  bits &= 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// c += a b; a(registers, k): the element of the depth k = 0..DEPTH-1 in row `row`, and b likewise in its column
template <int DEPTH, class A, class B>
void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const A& a_at, const B& b_at) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  gather(mine, sizeof(mine), [&](const Slot* slots) {
    uint32_t all[32][6];
    for (int lane = 0; lane < 32; ++lane)
      std::memcpy(all[lane], slots[lane], sizeof(all[lane]));
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < DEPTH; ++k)
        c[i] += a_at(all, row, k) * b_at(all, k, column);
    }
  });
}

}  // namespace axnet::host

namespace axnet::cuda {

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::product<16>(
      c, a, b0, b1,
      [](const auto& all, int row, int k) {
        return host::number<T>(all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
      },
      [](const auto& all, int k, int column) {
        return host::number<T>(all[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
      });
}

inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::product<8>(
      c, a, b0, b1,
      [](const auto& all, int row, int k) { return host::tf32(all[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]); },
      [](const auto& all, int k, int column) { return host::tf32(all[column * 4 + k % 4][4 + k / 4]); });
}

template <class Number>
Number again(Number v) {
  return v;
}
inline float reciprocal(float v) { return 1 / v; }

template <bool ACROSS>
void load_matrices(const void* row, uint32_t (&r)[4]) {
  host::aligned(row);
  host::gather(&row, sizeof(row), [&](const host::Slot* slots) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const uint16_t* from;
        std::memcpy(&from, slots[8 * m + (ACROSS ? 2 * t + i : g)], sizeof(from));
        pair[i] = from[ACROSS ? g : 2 * t + i];
      }
      std::memcpy(&r[m], pair, sizeof(pair));
    }
  });
}

inline uint32_t turned(uint32_t pair) {
  uint32_t out;
  host::gather(&pair, sizeof(pair), [&](const host::Slot* slots) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    uint16_t halves[2];
    for (int i = 0; i < 2; ++i)
      std::memcpy(&halves[i], slots[4 * (2 * t + i) + g / 2] + g % 2 * 2, sizeof(halves[i]));
    std::memcpy(&out, halves, sizeof(out));
  });
  return out;
}

inline void copy_async_if(bool real, void* to, const void* from) {
  host::aligned(to), host::aligned(real ? from : to);
  auto& groups = host::copies[threadIdx.x];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, real ? from : nullptr});
}

inline void copy_async(void* to, const void* from) { copy_async_if(true, to, from); }

inline void copy_ahead(void* to, const void* from) { copy_async_if(true, to, from); }

inline void copy_ahead_if(bool real, void* to, const void* from) { copy_async_if(real, to, from); }

inline void ask_ahead(void* to, const void*) { std::memset(to, 255, 4); }

inline void copies_commit() { host::copies[threadIdx.x].emplace_back(); }

template <int PENDING>
void copies_wait() {
  auto& groups = host::copies[threadIdx.x];
  while (static_cast<int>(groups.size()) > PENDING + 1) {  // the last one is open
    for (const host::Copy& copy : groups.front())
      if (copy.from) std::memcpy(copy.to, copy.from, 16);
      else std::memset(copy.to, 0, 16);
    groups.erase(groups.begin());
  }
}

inline void copies_wait(int pending) {
  if (pending == 0) return copies_wait<0>();
  if (pending == 1) return copies_wait<1>();
  if (pending == 2) return copies_wait<2>();
  std::fputs("a wait that the hardware has no instruction for\n", stderr), std::abort();
}

}  // namespace axnet::cuda
