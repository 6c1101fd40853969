// masked_moments_backward: dX of the whole attention block in one read of D and X and one write, because the gradient
// of the gated, normalised map arrives here (docs/method.md, "A3 from moments"); the masks' gradient where it is asked
// for.
//
//   dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + delta_avg/S + sum_a delta_mavg,a m_a/S          G_o = b + sum_a w_a m_a
//      + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a
#include "cuda/walk.cuh"

namespace axnet::cuda {
namespace {

struct InputPlan {
  int64_t N, C, S;
  int A, blocks, members;  // blocks of Z (0: the descriptors' part alone) of `members` anatomies each
  View x, d, dx;
  const void *x_data, *d_data;
  void* dx_data;
  const void* mask;       // acc [N, A, S]
  const void* coef;       // acc [N, blocks, coef_rows(members), C]: k1, k2, k3, b, w_a
  const void* delta;      // acc [N, 2+2A, C]: gradient of the descriptors
  const int32_t* argmax;  // [N, 1+A, C]
  void* mask_grad;        // acc [N, A, S]
};

template <class Acc>
__device__ inline Acc blend_grad(Acc x, Acc d, Acc gate, Acc k1, Acc k2, Acc k3) {
  return (k1 * d + k2 + k3 * (x * gate)) * gate;
}

// Any number of blocks and anatomies, one element. Rows of C numbers start at the element's channel.
template <class T>
struct ElementGrad {
  using Acc = acc_t<T>;
  const InputPlan& p;
  const Acc *mask, *coef, *delta;  // of the image
  const int32_t* at;

  __device__ ElementGrad(const InputPlan& plan, int64_t n) : p(plan) {
    mask = static_cast<const Acc*>(p.mask) + n * p.A * p.S;
    coef = static_cast<const Acc*>(p.coef) + n * p.blocks * coef_rows(p.members) * p.C;
    delta = static_cast<const Acc*>(p.delta) + n * (2 + 2 * p.A) * p.C;
    at = p.argmax + n * (1 + p.A) * p.C;
  }
  // d: D of block 0; d_step: to the next block
  __device__ Acc operator()(Acc x, const T* d, int64_t d_step, int64_t c, int64_t s) const {
    const int64_t C = p.C, S = p.S;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    Acc total = delta[c] * inverse;
    for (int a = 0; a < p.A; ++a)
      total += delta[(2 + a) * C + c] * inverse * mask[a * S + s];
    for (int o = 0; o < p.blocks; ++o) {
      const Acc* q = coef + o * coef_rows(p.members) * C + c;
      Acc gate = q[3 * C];
      for (int a = 0; a < p.members; ++a)
        gate += q[(4 + a) * C] * mask[(o + a) * S + s];
      total += blend_grad(x, static_cast<Acc>(d[o * d_step]), gate, q[0], q[C], q[2 * C]);
    }
    if (at[c] == s) total += delta[C + c];
    for (int a = 0; a < p.A; ++a)
      if (at[(1 + a) * C + c] == s) total += delta[(2 + p.A + a) * C + c] * mask[a * S + s];
    return total;
  }
};

// NCHW, one block of B anatomies at most: masks in registers.
template <class T, int B>
__global__ void __launch_bounds__(kThreads, (B < 3 ? 2 : 1)) input_rows_kernel(const InputPlan p, const RowWalk walk) {
  using Acc = acc_t<T>;
  constexpr int V = kVector<T>;
  const RowPlace<T> place(walk);
  if (!place.active) return;
  const int64_t n = place.n, C = p.C, S = p.S, elements = C * S;
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n;
  T* dx = static_cast<T*>(p.dx_data) + n * p.dx.n;
  const bool fast_x = is_aligned(x), fast_d = p.blocks && is_aligned(d), fast_dx = is_aligned(dx);
  const ElementGrad<T> element(p, n);
  Acc m[B][V];
  place.load_masks(element.mask, S, m);

  Vector<T> xs[kSteps<T>], ds[kSteps<T>];
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u) {
    const int64_t e = place.element(walk, u);
    const int count = place.count(e, elements);
    xs[u] = load_some(x + e, count, fast_x);
    if (p.blocks) ds[u] = load_some(d + e, count, fast_d);
  }
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u) {
    const int64_t e = place.element(walk, u);
    const int count = place.count(e, elements);
    if (count == 0) continue;
    int64_t c = place.channel(walk, u);
    int s = place.s;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    Acc k1 = 0, k2 = 0, k3 = 0, b = 0, w[B] = {}, flat, slope[B];
    int at[1 + B];
    auto load_channel = [&] {
      const Acc* q = element.coef + c;
      if (p.blocks) {
        k1 = q[0], k2 = q[C], k3 = q[2 * C], b = q[3 * C];
#pragma unroll
        for (int a = 0; a < B; ++a)
          w[a] = q[(4 + a) * C];
      }
      flat = element.delta[c] * inverse;
      at[0] = element.at[c];
#pragma unroll
      for (int a = 0; a < B; ++a) {
        slope[a] = element.delta[(2 + a) * C + c] * inverse;
        at[1 + a] = element.at[(1 + a) * C + c];
      }
    };
    load_channel();
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i > 0 && s == S && i < count) {
        s = 0, ++c;
        load_channel();
      }
      Acc gate = b, total = flat;
#pragma unroll
      for (int a = 0; a < B; ++a) {
        gate += w[a] * m[a][i];
        total += slope[a] * m[a][i];
      }
      if (p.blocks) total += blend_grad(static_cast<Acc>(xs[u].at[i]), static_cast<Acc>(ds[u].at[i]), gate, k1, k2, k3);
      if (at[0] == s) total += element.delta[C + c];
#pragma unroll
      for (int a = 0; a < B; ++a)
        if (at[1 + a] == s) total += element.delta[(2 + B + a) * C + c] * m[a][i];
      xs[u].at[i] = T(total);
      ++s;
    }
    store_some(dx + e, xs[u], count, fast_dx);
  }
}

// channels_last, the same: coefficients pass by once for all pixels of a thread.
template <class T, int B>
__global__ void __launch_bounds__(kThreads, 2) input_channels_last_kernel(const InputPlan p, const ChannelWalk walk) {
  using Acc = acc_t<T>;
  constexpr int V = kVector<T>;
  const ChannelPlace<T> place(walk);
  if (!place.active) return;
  const int64_t n = place.n, C = p.C, S = p.S, c = place.c;
  const int count = place.count(C);
  const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + c;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + c;
  T* dx = static_cast<T*>(p.dx_data) + n * p.dx.n + c;
  const ElementGrad<T> element(p, n);

  Vector<T> xs[kSteps<T>], ds[kSteps<T>];
  int pixel[kSteps<T>];
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u) {
    pixel[u] = place.pixel(walk, u);
    if (pixel[u] >= S) continue;
    const T *from = x + pixel[u] * p.x.s, *grad = d + pixel[u] * p.d.s;
    xs[u] = load_some(from, count, is_aligned(from));
    if (p.blocks) ds[u] = load_some(grad, count, is_aligned(grad));
  }
  const Acc inverse = Acc(1) / static_cast<Acc>(S);
  Acc gate[kSteps<T>][V], total[kSteps<T>][V], m[kSteps<T>][B], number[V];
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u)
#pragma unroll
    for (int a = 0; a < B; ++a)
      m[u][a] = pixel[u] < S ? element.mask[a * S + pixel[u]] : Acc(0);
  // f(u, i, number) over all pixels and lanes, for a row of C numbers
  auto row = [&](const Acc* p, auto&& f) {
    load_lanes<T>(p + c, count, number);
#pragma unroll
    for (int u = 0; u < kSteps<T>; ++u)
#pragma unroll
      for (int i = 0; i < V; ++i)
        f(u, i, number[i]);
  };
  row(element.delta, [&](int u, int i, Acc v) { total[u][i] = v * inverse; });
#pragma unroll
  for (int a = 0; a < B; ++a)
    row(element.delta + (2 + a) * C, [&](int u, int i, Acc v) { total[u][i] += v * inverse * m[u][a]; });
  if (p.blocks) {
    Acc k1[V], k2[V];
    row(element.coef + 3 * C, [&](int u, int i, Acc v) { gate[u][i] = v; });
#pragma unroll
    for (int a = 0; a < B; ++a)
      row(element.coef + (4 + a) * C, [&](int u, int i, Acc v) { gate[u][i] += v * m[u][a]; });
    load_lanes<T>(element.coef + c, count, k1);
    load_lanes<T>(element.coef + C + c, count, k2);
    row(element.coef + 2 * C, [&](int u, int i, Acc v) {
      if (pixel[u] < S)
        total[u][i] +=
            blend_grad(static_cast<Acc>(xs[u].at[i]), static_cast<Acc>(ds[u].at[i]), gate[u][i], k1[i], k2[i], v);
    });
  }
  int at[V];
#pragma unroll
  for (int k = 0; k <= B; ++k) {
    load_lanes<T>(element.at + k * C + c, count, at);
#pragma unroll
    for (int u = 0; u < kSteps<T>; ++u)
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (at[i] == pixel[u] && i < count)
          total[u][i] += element.delta[(k ? 1 + B + k : 1) * C + c + i] * (k ? m[u][k ? k - 1 : 0] : Acc(1));
  }
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u)
#pragma unroll
    for (int i = 0; i < V; ++i)
      xs[u].at[i] = T(total[u][i]);
#pragma unroll
  for (int u = 0; u < kSteps<T>; ++u) {
    if (pixel[u] >= S) continue;
    T* to = dx + pixel[u] * p.dx.s;
    store_some(to, xs[u], count, is_aligned(to));
  }
}

// Any blocks and anatomies in either layout, element by element.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) input_any_kernel(const InputPlan p, const ElementWalk walk) {
  const ElementPlace place(walk, p.x.channels_last);
  if (!place.active) return;
  const int64_t n = place.n, c = place.c, s = place.s;
  const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + c * p.d.c + s * p.d.s;
  const auto x = static_cast<acc_t<T>>(static_cast<const T*>(p.x_data)[n * p.x.n + c * p.x.c + s * p.x.s]);
  static_cast<T*>(p.dx_data)[n * p.dx.n + c * p.dx.c + s * p.dx.s] = T(ElementGrad<T>(p, n)(x, d, p.C * p.d.c, c, s));
}

// dm_a = sum_c [ dY_o X w_a + delta_mavg,a X / S + [s = argmax_a] delta_mmax,a X ]
//   block   `width` pixels of one image and one anatomy; kThreads / width threads share a pixel's channels
//   width   32 in NCHW (a warp reads pixels side by side), 8 in channels_last (a warp reads channels side by side)
template <class T>
__global__ void __launch_bounds__(kThreads, 2) mask_grad_kernel(const InputPlan p, int width, int64_t tiles) {
  using Acc = acc_t<T>;
  AXNET_SHARED(shared);
  Acc* parts = reinterpret_cast<Acc*>(shared);  // [kThreads / width, width]
  const int shares = kThreads / width, t = threadIdx.x, a = static_cast<int>(blockIdx.y);
  const int column = p.x.channels_last ? t / shares : t % width, share = p.x.channels_last ? t % shares : t / width;
  const int64_t n = blockIdx.x / tiles, s = blockIdx.x % tiles * width + column, C = p.C, S = p.S;
  const ElementGrad<T> element(p, n);
  const int o = p.blocks > 1 ? a : 0,
            first = p.blocks > 1 ? a : 0;  // the block that this anatomy is in, its first mask
  Acc total = 0;
  if (s < S) {
    const T* x = static_cast<const T*>(p.x_data) + n * p.x.n + s * p.x.s;
    const T* d = static_cast<const T*>(p.d_data) + n * p.d.n + s * p.d.s;
    const Acc inverse = Acc(1) / static_cast<Acc>(S);
    for (int64_t c = share; c < C; c += shares) {
      const Acc xv = static_cast<Acc>(x[c * p.x.c]);
      Acc slope = element.delta[(2 + a) * C + c] * inverse;
      if (element.at[(1 + a) * C + c] == s) slope += element.delta[(2 + p.A + a) * C + c];
      if (p.blocks) {
        const Acc* q = element.coef + o * coef_rows(p.members) * C + c;
        Acc gate = q[3 * C];
        for (int k = 0; k < p.members; ++k)
          gate += q[(4 + k) * C] * element.mask[(first + k) * S + s];
        const Acc dy = q[0] * static_cast<Acc>(d[(o * C + c) * p.d.c]) + q[C] + q[2 * C] * (xv * gate);
        slope += dy * q[(4 + a - first) * C];
      }
      total += slope * xv;
    }
  }
  parts[share * width + column] = total;
  __syncthreads();
  if (share == 0 && s < S) {
    double sum = 0;
    for (int k = 0; k < shares; ++k)
      sum += parts[k * width + column];
    static_cast<Acc*>(p.mask_grad)[(n * p.A + a) * S + s] = static_cast<Acc>(sum);
  }
}

template <class T, int B>
void launch_input(const InputPlan& p, cudaStream_t stream) {
  if constexpr (B == 0) {
    const ElementWalk walk{p.N, p.C, p.S};
    launch(input_any_kernel<T>, walk.grid(), 1, kThreads, 0, stream, p, walk);
  } else if (p.x.channels_last) {
    const ChannelWalk walk(p.N, p.C, p.S, kVector<T>, kSteps<T>);
    launch(input_channels_last_kernel<T, B>, walk.grid(), 1, kThreads, 0, stream, p, walk);
  } else {
    const RowWalk walk(p.N, p.C, p.S, kVector<T>, kSteps<T>);
    launch(input_rows_kernel<T, B>, walk.grid(), 1, kThreads, 0, stream, p, walk);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> masked_moments_backward(Tensor x_in, Tensor mask, Tensor argmax, Tensor grad_descriptors,
                                                   std::optional<Tensor> grad_z, std::optional<Tensor> coef,
                                                   bool input_grad, bool mask_grad) {
  const Queue queue(x_in);
  const Tensor x = dense(x_in);
  const Device device = device_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), A = mask.size(1), S = H * W;
  const bool last = is_channels_last(x);
  Tensor dx = empty_features(input_grad ? N : 0, C, H, W, last, x.scalar_type(), device);
  Tensor dmask = empty({mask_grad ? N : 0, A, H, W}, accumulator(x), device);
  if (N * C == 0) return {dx, dmask};

  const Tensor delta = torch::stable::contiguous(grad_descriptors);
  std::optional<Tensor> d, q;
  if (grad_z) {
    d = dense(*grad_z, last);
    q = torch::stable::contiguous(*coef);
  }
  InputPlan p{};
  p.N = N, p.C = C, p.S = S, p.A = static_cast<int>(A), p.blocks = d ? static_cast<int>(d->size(1) / C) : 0;
  p.members = p.blocks > 1 ? 1 : p.A;
  p.x = view_of(x), p.d = d ? view_of(*d) : p.x, p.dx = input_grad ? view_of(dx) : p.x;
  p.x_data = data(x), p.d_data = data(d), p.dx_data = data(dx);
  p.mask = data(mask), p.coef = data(q), p.delta = data(delta);
  p.argmax = static_cast<const int32_t*>(data(argmax)), p.mask_grad = data(dmask);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    if (input_grad)
      with_anatomies<T>(p.blocks > 1 ? 0 : p.A,
                        [&](auto b) { launch_input<T, decltype(b)::value>(p, queue.stream()); });
    if (mask_grad) {
      const int width = p.x.channels_last ? 8 : 32;
      const int64_t tiles = ceil_div(S, width);
      launch(mask_grad_kernel<T>, N * tiles, p.A, kThreads, kThreads * sizeof(acc_t<T>), queue.stream(), p, width,
             tiles);
    }
  });
  return {dx, dmask};
}

STABLE_TORCH_LIBRARY_IMPL(axnet, AXNET_DISPATCH_KEY, m) {
  m.impl("masked_moments_backward", TORCH_BOX(&masked_moments_backward));
}

}  // namespace axnet::cuda
