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

constexpr int64_t kMaxTile = 256;
constexpr int kMaxMaps = 64;

template <class Acc>
inline Acc log_sigmoid(Acc x) {  // finite for every finite x
  const Acc low = x < 0 ? x : 0;
  return low - static_cast<Acc>(__builtin_log1p(__builtin_exp(-static_cast<double>(x < 0 ? -x : x))));
}

template <class Acc>
AXNET_INLINE void transpose(const Acc* from, int64_t rows, int64_t columns, int64_t from_stride, Acc* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
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

template <class T>
void pwap_typed(const PwapArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  using LA = Lanes<Acc>;
  using V = typename LA::V;
  const int K = g.K, P = padded_maps(K);
  const bool across = maps_in_lanes(K);
  const int64_t size = P * g.C + 2 * K;
  alignas(64) Acc scratch[2][kMaxMaps * kMaxTile];
  Acc* share = scratch[0];   // [K, tile]
  Acc* turned = scratch[1];  // [tile, P]
  for (int64_t task = begin; task < end; ++task) {
    const auto t = place_of<T>(g, task);
    const T* x = static_cast<const T*>(g.x_data) + t.n * g.x.n + t.first * g.x.s;
    Acc* logits = static_cast<Acc*>(g.logits) + t.n * K * g.S + t.first;  // [K, S]
    T* prob = static_cast<T*>(g.prob) + t.n * K * g.S + t.first;
    Acc* part = static_cast<Acc*>(g.partial) + task * size;
    const Acc* packed = static_cast<const Acc*>(g.packed);
    if (g.x.channels_last) {
      for (int64_t i = 0; i < t.pixels * P; ++i) turned[i] = 0;
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
        LA::store_n(share + k * kMaxTile + s, w, lanes);
        if (lanes == LA::W) Lanes<T>::store(prob + k * g.S + s, p);
        else Lanes<T>::store_n(prob + k * g.S + s, p, lanes);
      }
      part[P * g.C + k] = top;
      part[P * g.C + K + k] = reduce_lanes<Acc, false, 1>(&mass)[0];
    }
    if (g.x.channels_last) {  // numerators [K, C]
      transpose(share, static_cast<int64_t>(K), t.pixels, kMaxTile, turned, static_cast<int64_t>(P));
      project<T>(x, g.x.s, t.pixels, g.C, turned, P, K, part, g.C, true);
    } else {  // [C, P]
      for (int64_t i = 0; i < P * g.C; ++i) part[i] = 0;
      if (across) {
        for (int64_t i = 0; i < t.pixels * P; ++i) turned[i] = 0;
        transpose(share, static_cast<int64_t>(K), t.pixels, kMaxTile, turned, static_cast<int64_t>(P));
        contract_across<T>(x, g.x.c, g.C, t.pixels, turned, P, P, part, P);
      } else {
        contract_along<T>(x, g.x.c, g.C, t.pixels, share, kMaxTile, K, part, P);
      }
    }
  }
}

template <class T>
void pwap_combine_typed(const PwapArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int K = g.K, P = padded_maps(K);
  const int64_t size = P * g.C + 2 * K;
  const int64_t step = g.x.channels_last ? 1 : P;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / K, k = task % K;
    const Acc* part = static_cast<const Acc*>(g.partial) + n * g.tiles * size;
    Acc top = part[P * g.C + k];
    for (int64_t i = 1; i < g.tiles; ++i) {
      const Acc other = part[i * size + P * g.C + k];
      top = other > top ? other : top;
    }
    double mass = 0;
    for (int64_t i = 0; i < g.tiles; ++i) {
      const Acc* p = part + i * size + P * g.C;
      mass += __builtin_exp(static_cast<double>(log_sigmoid(p[k]) - log_sigmoid(top))) * p[K + k];
    }
    Acc* norm = static_cast<Acc*>(g.norm) + n * 2 * K;
    norm[k] = top;
    norm[K + k] = static_cast<Acc>(mass);
    T* pooled = static_cast<T*>(g.pooled) + (n * K + k) * g.C;
    const int64_t start = g.x.channels_last ? k * g.C : k;
    constexpr int64_t strip = 256;
    Acc total[strip];
    for (int64_t c0 = 0; c0 < g.C; c0 += strip) {
      const int64_t width = g.C - c0 < strip ? g.C - c0 : strip;
      for (int64_t c = 0; c < width; ++c) total[c] = 0;
      for (int64_t i = 0; i < g.tiles; ++i) {
        const Acc* p = part + i * size;
        const Acc scale = static_cast<Acc>(
            __builtin_exp(static_cast<double>(log_sigmoid(p[P * g.C + k]) - log_sigmoid(top))) / mass);
        for (int64_t c = 0; c < width; ++c) total[c] += scale * p[start + (c0 + c) * step];
      }
      for (int64_t c = 0; c < width; ++c) pooled[c0 + c] = T(total[c]);
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
  alignas(64) Acc scratch[2][2 * kMaxMaps * kMaxTile];
  Acc* q = scratch[0];       // [2K, tile]: share (first the dot products a), dL
  Acc* turned = scratch[1];  // [tile, 2P]: share, dL
  for (int64_t task = begin; task < end; ++task) {
    const auto t = place_of<T>(g, task);
    const T* x = static_cast<const T*>(g.x_data) + t.n * g.x.n + t.first * g.x.s;
    const Acc* stack = static_cast<const Acc*>(g.grad_stack) + t.n * 2 * K * g.C;
    const Acc* packed = static_cast<const Acc*>(g.grad_packed) + t.n * g.C * 2 * P;
    const Acc* norm = static_cast<const Acc*>(g.norm) + t.n * 2 * K;
    Acc* part = static_cast<Acc*>(g.partial) + task * size;
    if (g.x.channels_last) {
      for (int64_t i = 0; i < t.pixels * P; ++i) turned[i] = 0;
      if (across) contract_across<T>(x, g.x.s, t.pixels, g.C, packed, 2 * P, P, turned, P);
      else contract_along<T>(x, g.x.s, t.pixels, g.C, stack, g.C, K, turned, P);
      transpose(turned, t.pixels, static_cast<int64_t>(K), static_cast<int64_t>(P), q, kMaxTile);
    } else {
      project<T>(x, g.x.c, g.C, t.pixels, packed, 2 * P, K, q, kMaxTile, true);
    }
    for (int k = 0; k < K; ++k) {
      const Acc* logits = static_cast<const Acc*>(g.logits) + (t.n * K + k) * g.S + t.first;
      const Acc* grad_prob = g.grad_prob ? static_cast<const Acc*>(g.grad_prob) + (t.n * K + k) * g.S + t.first : nullptr;
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
      if (dx) expand<T>(turned, 2 * P, P, stack, g.C, K * g.C, K, dx, g.dx.s, t.pixels, g.C);
    } else {
      for (int64_t i = 0; i < P * g.C; ++i) part[i] = 0;
      if (across) {
        for (int64_t i = 0; i < t.pixels * P; ++i) turned[i] = 0;
        transpose(q + K * kMaxTile, static_cast<int64_t>(K), t.pixels, kMaxTile, turned, static_cast<int64_t>(P));
        contract_across<T>(x, g.x.c, g.C, t.pixels, turned, P, P, part, P);
      } else {
        contract_along<T>(x, g.x.c, g.C, t.pixels, q + K * kMaxTile, kMaxTile, K, part, P);
      }
      if (dx) expand<T>(packed, 2 * P, P, q, kMaxTile, K * kMaxTile, K, dx, g.dx.c, g.C, t.pixels);
    }
  }
}

template <class Acc>
void pwap_gather_typed(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  const int K = g.K, P = padded_maps(K);
  const int64_t size = P * g.C + K, step = g.x.channels_last ? 1 : P, tasks = g.N * g.tiles;
  constexpr int64_t strip = 256;
  double total[strip];
  for (int64_t k = begin; k < end; ++k) {
    const Acc* part = static_cast<const Acc*>(g.partial);
    const int64_t start = g.x.channels_last ? k * g.C : k;
    for (int64_t c0 = 0; c0 < g.C; c0 += strip) {
      const int64_t width = g.C - c0 < strip ? g.C - c0 : strip;
      for (int64_t c = 0; c < width; ++c) total[c] = 0;
      for (int64_t i = 0; i < tasks; ++i)
        for (int64_t c = 0; c < width; ++c) total[c] += part[i * size + start + (c0 + c) * step];
      for (int64_t c = 0; c < width; ++c) static_cast<Acc*>(g.weight_grad)[k * g.C + c0 + c] = static_cast<Acc>(total[c]);
    }
    double bias = 0;
    for (int64_t i = 0; i < tasks; ++i) bias += part[i * size + P * g.C + k];
    static_cast<Acc*>(g.bias_grad)[k] = static_cast<Acc>(bias);
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
void pwap_gather(const PwapBackwardArgs& g, int64_t begin, int64_t end) {
  if (g.type == Type::f64) pwap_gather_typed<double>(g, begin, end);
  else pwap_gather_typed<float>(g, begin, end);
}
