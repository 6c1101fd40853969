// What depends on the machine: the instruction set, chosen at run time, and the memory under large tensors.
#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/common.h"

namespace axnet::cpu {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Choice {
  const Kernels* table;
  bool runs_here;
};

#if defined(__x86_64__)
bool has_f16c() {  // clang 14 has no __builtin_cpu_supports of it
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

std::vector<Choice> choices() {  // best first
  std::vector<Choice> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  all.push_back({&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
  all.push_back({&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()});
#endif
  all.push_back({&baseline::table, true});
  return all;
}

const Kernels& choose() {
  const char* wish = std::getenv("AXNET_CPU_ISA");
  std::string accepted;
  for (const Choice& c : choices()) {
    if (c.runs_here && (!wish || !*wish || std::string(wish) == c.table->name)) return *c.table;
    if (c.runs_here) accepted += (accepted.empty() ? "" : ", ") + std::string(c.table->name);
  }
  STD_TORCH_CHECK(false, "AXNET_CPU_ISA is '", wish, "', this machine runs ", accepted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

bool stream_output(int64_t bytes) {
  static const int64_t limit = [] {
    const char* wish = std::getenv("AXNET_STREAM_BYTES");
    return wish && *wish ? std::strtoll(wish, nullptr, 10) : int64_t{16} << 20;
  }();
  return bytes >= limit;
}

void prefer_huge_pages(const Tensor& t) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(t.numel()) * t.element_size();
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (last > first)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: failure is harmless
#else
  (void)t;
#endif
}

std::string instruction_set() { return kernels().name; }

}  // namespace axnet::cpu
