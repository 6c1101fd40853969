// Blocks of threads as fibers. Between two barriers the fibers run in turn, forwards or backwards by the count of
// barriers, so that a missing barrier shows as a wrong number.
#include <dlfcn.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#include "cuda/launch.h"
#include "cuda/queue.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Where launches are recorded, the build calls this in the place of torch's function: a tensor stays alive until
// axnet_host_release, so that the launches that use it can be looked at later.
#undef aoti_torch_empty_strided
extern "C" AOTITorchError aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                                   AtenTensorHandle*);

namespace {
std::vector<AtenTensorHandle> kept;
}  // namespace

extern "C" AOTITorchError axnet_host_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                                   int32_t dtype, int32_t device_type, int32_t device_index,
                                                   AtenTensorHandle* tensor) {
  const AOTITorchError error = aoti_torch_empty_strided(ndim, sizes, strides, dtype, device_type, device_index, tensor);
  AtenTensorHandle again = nullptr;
  if (axnet::host::recording() && !error && !aoti_torch_new_tensor_handle(*tensor, &again)) kept.push_back(again);
  return error;
}

extern "C" __attribute__((visibility("default"))) void axnet_host_release() {
  for (AtenTensorHandle tensor : kept)
    aoti_torch_delete_tensor_object(tensor);
  kept.clear();
}

namespace axnet::cpu {
std::string instruction_set() { return "CUDA kernels on the host"; }
}  // namespace axnet::cpu

namespace axnet::host {
namespace {

constexpr size_t kStack = 128 * 1024;
constexpr unsigned kLanes = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
  bool done = false;
};

struct Warp {
  Slot slots[kLanes];
  unsigned arrived = 0, generation = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;  // kept for the next block
std::vector<Warp> warps;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
unsigned current = 0, arrived = 0, finished = 0, generation = 0, progress = 0;
unsigned char* memory = nullptr;
const std::function<void()>* body = nullptr;

[[noreturn]] void fail(const char* reason) {
  std::fprintf(stderr, "cuda_host: %s\n", reason);
  std::abort();
}

void yield([[maybe_unused]] bool last = false) {
  Fiber& fiber = *fibers[current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  swapcontext(&fiber.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void resume(unsigned index) {
  current = index;
  threadIdx = {index, 0, 0};
  Fiber& fiber = *fibers[index];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  (*body)();
  fibers[current]->done = true;
  ++finished, ++progress;
  yield(true);
}

void run_block(unsigned threads) {
  arrived = finished = 0;
  warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  while (finished < threads) {
    const unsigned before = progress;
    const bool backwards = generation % 2;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = backwards ? threads - 1 - i : i;
      if (!fibers[t]->done) resume(t);
    }
    if (progress == before) fail("threads wait for a barrier that others never reach");
  }
}

}  // namespace

unsigned char* shared() { return memory; }

// Of a block: by default what the smallest GPU has that the library is built for.
size_t shared_limit() {
  const char* kilobytes = std::getenv("AXNET_CUDA_HOST_SHARED_KB");
  return static_cast<size_t>(kilobytes ? std::atoi(kilobytes) : 99) * 1024;
}

void barrier() {
  if (finished) fail("a barrier after threads have left the kernel");
  const unsigned mine = generation;
  ++progress;
  if (++arrived == blockDim.x) {
    arrived = 0;
    ++generation;
    return yield();  // the next phase starts in its own order
  }
  while (generation == mine)
    yield();
}

void gather(const void* mine, size_t bytes, const std::function<void(const Slot*)>& read) {
  Warp& warp = warps[current / kLanes];
  const unsigned lane = current % kLanes;
  auto wait = [&] {
    const unsigned before = warp.generation;
    ++progress;
    if (++warp.arrived == kLanes) warp.arrived = 0, ++warp.generation;
    while (warp.generation == before)
      yield();
  };
  std::memcpy(warp.slots[lane], mine, bytes);
  wait();
  read(warp.slots);
  wait();
}

void run(int64_t blocks, int groups, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (blocks < 1 || blocks > INT32_MAX || groups < 1 || groups > 65535) fail("a grid that no GPU accepts");
  if (threads < 1 || threads > 1024 || threads % kLanes || shared_bytes > shared_limit())
    fail("a block that no GPU accepts");
  while (fibers.size() < static_cast<size_t>(threads))
    fibers.push_back(std::make_unique<Fiber>());
  gridDim = {static_cast<unsigned>(blocks), static_cast<unsigned>(groups), 1};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  body = &kernel;
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      // of exactly this size, so that an address sanitizer sees what lies beyond
      memory = static_cast<unsigned char*>(std::malloc(shared_bytes));
      std::memset(memory, 0xff, shared_bytes);
      run_block(static_cast<unsigned>(threads));
      std::free(memory);
    }
}

bool recording() { return std::getenv("AXNET_RECORD_LAUNCHES") != nullptr; }

void record(const void* kernel, int64_t blocks, int groups, int threads, size_t shared_bytes,
            const std::string& bytes) {
  Dl_info info{};
  std::FILE* file = std::fopen(std::getenv("AXNET_RECORD_LAUNCHES"), "a");
  if (!file || !dladdr(kernel, &info)) fail("a launch could not be recorded");
  const auto offset = static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase);
  std::fprintf(file, "%td %lld %d %d %zu ", offset, static_cast<long long>(blocks), groups, threads, shared_bytes);
  for (const char c : bytes)
    std::fprintf(file, "%02x", static_cast<unsigned char>(c));
  std::fputc('\n', file);
  std::fclose(file);
}

}  // namespace axnet::host
