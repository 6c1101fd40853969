// PWAP: a task is a tile of pixels of one image with all its channels (about 1 MB, so the tile stays in L2 between the
// products). docs/method.md, "PWAP", in the log domain:
//
//   L = W X + b;  w_s = p_s / p_max,  p = sigmoid(L);  pooled = sum w X / sum w
//   w = e^{min(L,0) - min(M,0)} (1 + e^{-|M|}) / (1 + e^{-|L|}),  M = the tile's largest logit
//
// Tiles are merged by pwap_combine in their order. Backward, with share = w / sum w and a = <dpooled, X>:
//
//   dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p)
//   dX = sum_k share_k dpooled_k + W_k dL_k;  dW = sum dL X;  db = sum dL

template <class T>
struct TilePlace {
  int64_t n, index, first, pixels;
};
template <class T, class Args>
AXNET_INLINE TilePlace<T> place_of(const Args& g, int64_t task) {
  TilePlace<T> t;
  t.n = task / g.tiles;
  t.index = task % g.tiles;
  t.first = t.index * g.tile;
  t.pixels = g.S - t.first < g.tile ? g.S - t.first : g.tile;
  return t;
}

template <class Acc>
AXNET_INLINE void transpose(const Acc* from, int64_t rows, int64_t columns, int64_t from_stride, Acc* to,
                            int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      to[c * to_stride + r] = from[r * from_stride + c];
}

// value of the logits' sigmoid p and of w relative to the largest logit, a vector at a time
template <class V, class Acc>
AXNET_INLINE void probability(V logit, Acc top, Acc top_factor, V* p, V* w) {
  const V small = vexp(logit < Acc(0) ? logit : -logit);  // e^{-|L|}
  const V inverse = Acc(1) / (Acc(1) + small);
  *p = logit < Acc(0) ? small * inverse : inverse;
  // e^{min(L,0) - min(M,0)}: where M >= 0 it is 1 or e^{-|L|}
  const V rise = top < 0 ? vexp(logit - top) : (logit < Acc(0) ? small : splat(Acc(1)));
  *w = rise * top_factor * inverse;
  *p = logit != logit ? logit : *p;
  *w = logit != logit ? logit : *w;
}

// A tile's own arrays lie on the stack, which tells the compiler that nothing else is there; in double they would take
// half a megabyte, more than some systems give a thread.
template <class Acc>
constexpr bool on_stack = sizeof(Acc) == 4;

template <class T>
void pwap_typed(const PwapArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  using LA = Lanes<Acc>;
  using V = typename LA::V;
  const int K = g.K, P = padded_maps(K);
  const bool across = maps_in_lanes(K);
  const int64_t size = P * g.C + 2 * K;
  alignas(64) Acc held[on_stack<Acc> ? 2 * kMaxMaps * kMaxTile : 1];
  const int64_t row_stride = (g.tile + 15) / 16 * 16;
  Acc* share = on_stack<Acc> ? held : static_cast<Acc*>(g.scratch);  // [K, row_stride]
  Acc* turned = share + K * row_stride;                              // [tile, P]
  for (int64_t task = begin; task < end; ++task) {
    const auto t = place_of<T>(g, task);
    const T* x = static_cast<const T*>(g.x_data) + t.n * g.x.n + t.first * g.x.s;
    Acc* logits = static_cast<Acc*>(g.logits) + t.n * K * g.S + t.first;  // [K, S]
    T* prob = static_cast<T*>(g.prob) + t.n * K * g.S + t.first;
    Acc* part = static_cast<Acc*>(g.partial) + task * size;
    const Acc* packed = static_cast<const Acc*>(g.packed);
    if (g.x.channels_last) {
      for (int64_t i = 0; i < t.pixels * P; ++i)
        turned[i] = 0;
      if (across) contract_across<T>(x, g.x.s, t.pixels, g.C, packed, P, P, turned, P);
      else contract_along<T>(x, g.x.s, t.pixels, g.C, static_cast<const Acc*>(g.weight), g.C, K, turned, P);
      transpose(turned, t.pixels, static_cast<int64_t>(K), static_cast<int64_t>(P), logits, g.S);
    } else {
      project<T>(x, g.x.c, g.C, t.pixels, packed, P, K, logits, g.S, true);
    }
    for (int k = 0; k < K; ++k) {
      Acc* row = logits + k * g.S;
      const Acc b = g.bias ? static_cast<const Acc*>(g.bias)[k] : Acc(0);
      Acc top = -__builtin_inf();
      for (int64_t s = 0; s < t.pixels; ++s) {
        row[s] += b;
        top = row[s] > top ? row[s] : top;
      }
      if (!(top - top == 0)) top = 0;  // inf or NaN among the logits: let it show in the sums
      const Acc factor = Acc(1) + static_cast<Acc>(__builtin_exp(-static_cast<double>(top < 0 ? -top : top)));
      V mass = {};
      for (int64_t s = 0; s < t.pixels; s += LA::W) {
        const int lanes = t.pixels - s < LA::W ? static_cast<int>(t.pixels - s) : LA::W;
        V p, w;
        probability<V, Acc>(lanes == LA::W ? LA::load(row + s) : LA::load_n(row + s, lanes), top, factor, &p, &w);
        if (lanes < LA::W) w = LA::first_n(w, Acc(0), lanes);
        mass += w;
        LA::store_n(share + k * row_stride + s, w, lanes);
        if (lanes == LA::W) Lanes<T>::store(prob + k * g.S + s, p);
        else Lanes<T>::store_n(prob + k * g.S + s, p, lanes);
      }
      part[P * g.C + k] = top;
      part[P * g.C + K + k] = reduce_lanes<Acc, false, 1>(&mass)[0];
    }
    if (g.x.channels_last) {  // numerators [K, C]
      transpose(share, static_cast<int64_t>(K), t.pixels, row_stride, turned, static_cast<int64_t>(P));
      project<T>(x, g.x.s, t.pixels, g.C, turned, P, K, part, g.C, true);
    } else {  // [C, P]
      for (int64_t i = 0; i < P * g.C; ++i)
        part[i] = 0;
      if (across) {
        for (int64_t i = 0; i < t.pixels * P; ++i)
          turned[i] = 0;
        transpose(share, static_cast<int64_t>(K), t.pixels, row_stride, turned, static_cast<int64_t>(P));
        contract_across<T>(x, g.x.c, g.C, t.pixels, turned, P, P, part, P);
      } else {
        contract_along<T>(x, g.x.c, g.C, t.pixels, share, row_stride, K, part, P);
      }
    }
  }
}

// w of a logit relative to another top, lane by lane
template <class V>
AXNET_INLINE V relative_weight(V logit, V top) {
  using Acc = std::remove_reference_t<decltype(logit[0])>;
  const V zero = {}, low = logit < Acc(0) ? logit : zero, top_low = top < Acc(0) ? top : zero;
  const V small = vexp(logit < Acc(0) ? logit : -logit), top_small = vexp(top < Acc(0) ? top : -top);
  return vexp(low - top_low) * (Acc(1) + top_small) / (Acc(1) + small);
}

// A task merges the tiles of kCombineChannels channels of one image, all maps.
template <class T>
void pwap_combine_typed(const PwapArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  using LA = Lanes<Acc>;
  using V = typename LA::V;
  constexpr int most = kMaxMaps / LA::W;
  const int K = g.K, P = padded_maps(K), vectors = (K + LA::W - 1) / LA::W;
  const int64_t size = P * g.C + 2 * K, blocks = (g.C + kCombineChannels - 1) / kCombineChannels;
  alignas(64) Acc total[kCombineChannels * kMaxMaps], scale[kMaxMaps];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c0 = (task % blocks) * kCombineChannels;
    const int64_t width = g.C - c0 < kCombineChannels ? g.C - c0 : kCombineChannels;
    const Acc* part = static_cast<const Acc*>(g.partial) + n * g.tiles * size;
    auto of_tile = [&](int64_t i, int row, int v) {
      const int lanes = K - v * LA::W < LA::W ? K - v * LA::W : LA::W;
      return LA::load_n(part + i * size + P * g.C + row * K + v * LA::W, lanes);
    };
    V top[most], mass[most];
    for (int v = 0; v < vectors; ++v) {
      top[v] = of_tile(0, 0, v);
      for (int64_t i = 1; i < g.tiles; ++i)
        top[v] = vmax(of_tile(i, 0, v), top[v]);
      mass[v] = V{};
      for (int64_t i = 0; i < g.tiles; ++i)
        mass[v] += relative_weight(of_tile(i, 0, v), top[v]) * of_tile(i, 1, v);
      if (c0 == 0) {
        const int lanes = K - v * LA::W < LA::W ? K - v * LA::W : LA::W;
        Acc* norm = static_cast<Acc*>(g.norm) + n * 2 * K + v * LA::W;
        LA::store_n(norm, top[v], lanes);
        LA::store_n(norm + K, mass[v], lanes);
      }
    }
    for (int64_t j = 0; j < width * P; ++j)
      total[j] = 0;  // channels_last: [K, width]; NCHW: [width, P]
    for (int64_t i = 0; i < g.tiles; ++i) {
      for (int v = 0; v < vectors; ++v)
        LA::store(scale + v * LA::W, relative_weight(of_tile(i, 0, v), top[v]) / mass[v]);
      for (int k = K; k < P; ++k)
        scale[k] = 0;
      if (g.x.channels_last) {
        for (int k = 0; k < K; ++k) {
          const Acc* from = part + i * size + k * g.C + c0;
          for (int64_t c = 0; c < width; ++c)
            total[k * width + c] += scale[k] * from[c];
        }
      } else {
        const Acc* from = part + i * size + c0 * P;
        for (int64_t c = 0; c < width; ++c)
          for (int k = 0; k < P; ++k)
            total[c * P + k] += scale[k] * from[c * P + k];
      }
    }
    const int64_t row = g.x.channels_last ? width : 1, column = g.x.channels_last ? 1 : P;
    for (int k = 0; k < K; ++k) {
      T* pooled = static_cast<T*>(g.pooled) + (n * K + k) * g.C + c0;
      for (int64_t c = 0; c < width; ++c)
        pooled[c] = T(total[k * row + c * column]);
    }
  }
}

// rows [K, C] -> out [C, P], zero beyond K; a block of channels at a time, so that a cache line is read once
template <class Acc>
void pack_maps_typed(const Acc* rows, int K, int64_t C, Acc* out) {
  constexpr int width = 64 / sizeof(Acc);
  const int P = padded_maps(K);
  Acc held[kMaxMaps][width];
  for (int64_t c0 = 0; c0 < C; c0 += width) {
    const int count = C - c0 < width ? static_cast<int>(C - c0) : width;
    for (int k = 0; k < K; ++k)
      for (int c = 0; c < count; ++c)
        held[k][c] = rows[k * C + c0 + c];
    for (int c = 0; c < count; ++c, out += P) {
      for (int k = 0; k < K; ++k)
        out[k] = held[k][c];
      for (int k = K; k < P; ++k)
        out[k] = 0;
    }
  }
}

// Image n: its gradient by channel and <grad_pooled_k, pooled_k>; task N: the weights by channel.
template <class Acc>
void pwap_prepare_typed(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<Acc>;
  using V = typename L::V;
  const int K = g.K, P = padded_maps(K);
  for (int64_t n = begin; n < end; ++n) {
    if (n == g.N) {
      pack_maps_typed(static_cast<const Acc*>(g.weight), K, g.C, static_cast<Acc*>(g.weight_packed));
      continue;
    }
    const Acc* grad = static_cast<const Acc*>(g.grad) + n * K * g.C;
    const Acc* pooled = static_cast<const Acc*>(g.pooled) + n * K * g.C;
    pack_maps_typed(grad, K, g.C, static_cast<Acc*>(g.grad_packed) + n * g.C * P);
    for (int k = 0; k < K; ++k) {
      V sum[4] = {};
      int64_t c = 0;
      for (int u = 0; c < g.C; c += L::W, u = (u + 1) % 4) {
        const int lanes = g.C - c < L::W ? static_cast<int>(g.C - c) : L::W;
        sum[u] += L::load_n(grad + k * g.C + c, lanes) * L::load_n(pooled + k * g.C + c, lanes);
      }
      const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      static_cast<Acc*>(g.mean_grad)[n * K + k] = reduce_lanes<Acc, false, 1>(&all)[0];
    }
  }
}

template <class T>
void pwap_backward_typed(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  using LA = Lanes<Acc>;
  using V = typename LA::V;
  const int K = g.K, P = padded_maps(K);
  const bool across = maps_in_lanes(K);
  const int64_t size = P * g.C + K;
  alignas(64) Acc held[on_stack<Acc> ? 4 * kMaxMaps * kMaxTile : 1];
  Acc* q = on_stack<Acc> ? held : static_cast<Acc*>(g.scratch);  // [2K, tile]: share (first the dot products a), dL
  Acc* turned = q + 2 * kMaxMaps * kMaxTile;                     // [tile, 2P]: share, dL
  for (int64_t task = begin; task < end; ++task) {
    const auto t = place_of<T>(g, task);
    const T* x = static_cast<const T*>(g.x_data) + t.n * g.x.n + t.first * g.x.s;
    const Acc* grad = static_cast<const Acc*>(g.grad) + t.n * K * g.C;
    const Acc* grad_packed = static_cast<const Acc*>(g.grad_packed) + t.n * g.C * P;
    const Acc *weight = static_cast<const Acc*>(g.weight), *weight_packed = static_cast<const Acc*>(g.weight_packed);
    const Acc* norm = static_cast<const Acc*>(g.norm) + t.n * 2 * K;
    Acc* part = static_cast<Acc*>(g.partial) + task * size;
    if (g.x.channels_last) {
      for (int64_t i = 0; i < t.pixels * P; ++i)
        turned[i] = 0;
      if (across) contract_across<T>(x, g.x.s, t.pixels, g.C, grad_packed, P, P, turned, P);
      else contract_along<T>(x, g.x.s, t.pixels, g.C, grad, g.C, K, turned, P);
      transpose(turned, t.pixels, static_cast<int64_t>(K), static_cast<int64_t>(P), q, kMaxTile);
    } else {
      project<T>(x, g.x.c, g.C, t.pixels, grad_packed, P, K, q, kMaxTile, true);
    }
    for (int k = 0; k < K; ++k) {
      const Acc* logits = static_cast<const Acc*>(g.logits) + (t.n * K + k) * g.S + t.first;
      const Acc* grad_prob =
          g.grad_prob ? static_cast<const Acc*>(g.grad_prob) + (t.n * K + k) * g.S + t.first : nullptr;
      const Acc top = norm[k];
      const Acc factor = Acc(1) + static_cast<Acc>(__builtin_exp(-static_cast<double>(top < 0 ? -top : top)));
      const Acc inverse = Acc(1) / norm[K + k], mean = static_cast<const Acc*>(g.mean_grad)[t.n * K + k];
      V bias = {};
      for (int64_t s = 0; s < t.pixels; s += LA::W) {
        const int lanes = t.pixels - s < LA::W ? static_cast<int>(t.pixels - s) : LA::W;
        V p, w;
        probability<V, Acc>(LA::load_n(logits + s, lanes), top, factor, &p, &w);
        const V share = w * inverse;
        V dl = (LA::load_n(q + k * kMaxTile + s, lanes) - mean) * share * (Acc(1) - p);
        if (grad_prob) dl += LA::load_n(grad_prob + s, lanes) * p * (Acc(1) - p);
        dl = LA::first_n(dl, Acc(0), lanes);
        bias += dl;
        LA::store_n(q + k * kMaxTile + s, share, lanes);
        LA::store_n(q + (K + k) * kMaxTile + s, dl, lanes);
      }
      part[P * g.C + k] = reduce_lanes<Acc, false, 1>(&bias)[0];
    }
    T* dx = g.dx_data ? static_cast<T*>(g.dx_data) + t.n * g.dx.n + t.first * g.dx.s : nullptr;
    if (g.x.channels_last) {
      transpose(q, static_cast<int64_t>(K), t.pixels, kMaxTile, turned, static_cast<int64_t>(2 * P));
      transpose(q + K * kMaxTile, static_cast<int64_t>(K), t.pixels, kMaxTile, turned + P, static_cast<int64_t>(2 * P));
      project<T>(x, g.x.s, t.pixels, g.C, turned + P, 2 * P, K, part, g.C, true);
      if (dx) expand<T>(turned, turned + P, 2 * P, grad, weight, g.C, K, dx, g.dx.s, t.pixels, g.C);
    } else {
      for (int64_t i = 0; i < P * g.C; ++i)
        part[i] = 0;
      if (across) {
        for (int64_t i = 0; i < t.pixels * P; ++i)
          turned[i] = 0;
        transpose(q + K * kMaxTile, static_cast<int64_t>(K), t.pixels, kMaxTile, turned, static_cast<int64_t>(P));
        contract_across<T>(x, g.x.c, g.C, t.pixels, turned, P, P, part, P);
      } else {
        contract_along<T>(x, g.x.c, g.C, t.pixels, q + K * kMaxTile, kMaxTile, K, part, P);
      }
      if (dx) expand<T>(grad_packed, weight_packed, P, q, q + K * kMaxTile, kMaxTile, K, dx, g.dx.c, g.C, t.pixels);
    }
  }
}

// A task adds the tiles' parts of kCombineChannels channels of the weight's gradient in their order; task 0 the bias's
// too.
template <class Acc>
void pwap_gather_typed(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  const int K = g.K, P = padded_maps(K);
  const int64_t size = P * g.C + K, tasks = g.N * g.tiles;
  const Acc* part = static_cast<const Acc*>(g.partial);
  double total[kCombineChannels * kMaxMaps];  // channels_last: [K, width]; NCHW: [width, P]
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task * kCombineChannels;
    const int64_t width = g.C - c0 < kCombineChannels ? g.C - c0 : kCombineChannels;
    for (int64_t j = 0; j < width * P; ++j)
      total[j] = 0;
    for (int64_t i = 0; i < tasks; ++i) {
      if (g.x.channels_last) {
        for (int k = 0; k < K; ++k)
          for (int64_t c = 0; c < width; ++c)
            total[k * width + c] += part[i * size + k * g.C + c0 + c];
      } else {
        for (int64_t j = 0; j < width * P; ++j)
          total[j] += part[i * size + c0 * P + j];
      }
    }
    const int64_t row = g.x.channels_last ? width : 1, column = g.x.channels_last ? 1 : P;
    for (int k = 0; k < K; ++k)
      for (int64_t c = 0; c < width; ++c)
        static_cast<Acc*>(g.weight_grad)[k * g.C + c0 + c] = static_cast<Acc>(total[k * row + c * column]);
    for (int k = 0; c0 == 0 && k < K; ++k) {
      double bias = 0;
      for (int64_t i = 0; i < tasks; ++i)
        bias += part[i * size + P * g.C + k];
      static_cast<Acc*>(g.bias_grad)[k] = static_cast<Acc>(bias);
    }
  }
}

void pwap(const PwapArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) { pwap_typed<decltype(t)>(g, begin, end); });
}
void pwap_combine(const PwapArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) { pwap_combine_typed<decltype(t)>(g, begin, end); });
}
void pwap_backward(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) { pwap_backward_typed<decltype(t)>(g, begin, end); });
}
void pack_maps(Type type, const void* rows, int K, int64_t C, void* out) {
  if (type == Type::f64) pack_maps_typed(static_cast<const double*>(rows), K, C, static_cast<double*>(out));
  else pack_maps_typed(static_cast<const float*>(rows), K, C, static_cast<float*>(out));
}
void pwap_prepare(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  if (g.type == Type::f64) pwap_prepare_typed<double>(g, begin, end);
  else pwap_prepare_typed<float>(g, begin, end);
}
void pwap_gather(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  if (g.type == Type::f64) pwap_gather_typed<double>(g, begin, end);
  else pwap_gather_typed<float>(g, begin, end);
}
