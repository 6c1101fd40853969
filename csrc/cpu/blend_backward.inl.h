// A3, backward pass 2: two reads, one write.
//
//   dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + (delta_avg + sum_a delta_mavg,a m_a) / S        every pixel
//      + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a                       1+A pixels of a row
//
// In a narrow type the pixels of the second line are computed again instead of added to, so that they round once.
// BLOCK_B = anatomies of the one block of fusion "mean" (0: any number); the code for other numbers of blocks is
// general: it holds the row of an accumulator and adds block after block.

template <class V>
AXNET_INLINE V blend_grad(V x, V d, V gate, V k1, V k2, V k3) {
  return (k1 * d + k2 + k3 * (x * gate)) * gate;
}

// What one (n, c) needs, broadcast (rows) or one vector of channels (channels_last).
template <class V, int CAP>
struct InputCoef {
  V k1, k2, k3, b, w[CAP], flat, slope[CAP];
};

template <class Acc, class V, int CAP, class Load>
AXNET_INLINE void load_coef(InputCoef<V, CAP>& q, const Load& coef, int count) {
  q.k1 = coef(0);
  q.k2 = coef(1);
  q.k3 = coef(2);
  q.b = coef(3);
  for (int a = 0; a < count; ++a)
    q.w[a] = coef(4 + a);
}

// One pixel of one channel, in full; the sum over the blocks and the pixels of the maxima included.
template <class T>
inline acc_t<T> input_at(const InputArgs& g, int64_t n, int64_t c, int64_t s) {
  using Acc = acc_t<T>;
  const int B = g.blocks > 1 ? 1 : g.A;
  const Acc x = static_cast<Acc>(static_cast<const T*>(g.x_data)[n * g.x.n + c * g.x.c + s * g.x.s]);
  const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S + s;
  const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C + c;
  const int32_t* at = g.argmax + n * (1 + g.A) * g.C + c;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  Acc total = delta[0] * inverse;
  for (int a = 0; a < g.A; ++a)
    total += delta[(2 + a) * g.C] * inverse * mask[a * g.S];
  for (int o = 0; o < g.blocks; ++o) {
    const Acc* q = static_cast<const Acc*>(g.coef) + (n * g.blocks + o) * coef_rows(B) * g.C + c;
    const Acc d = static_cast<Acc>(static_cast<const T*>(g.d_data)[n * g.d.n + (o * g.C + c) * g.d.c + s * g.d.s]);
    Acc gate = q[3 * g.C];
    for (int a = 0; a < B; ++a)
      gate += q[(4 + a) * g.C] * mask[(o + a) * g.S];
    total += blend_grad(x, d, gate, q[0], q[g.C], q[2 * g.C]);
  }
  if (at[0] == s) total += delta[g.C];
  for (int a = 0; a < g.A; ++a)
    if (at[(1 + a) * g.C] == s) total += delta[(2 + g.A + a) * g.C] * mask[a * g.S];
  return total;
}

template <class T>
AXNET_INLINE void fix_maxima(const InputArgs& g, int64_t n, int64_t c, int64_t first, int64_t last) {
  T* dx = static_cast<T*>(g.dx_data) + n * g.dx.n + c * g.dx.c;
  const int32_t* at = g.argmax + n * (1 + g.A) * g.C + c;
  const acc_t<T>* delta = static_cast<const acc_t<T>*>(g.delta) + n * (2 + 2 * g.A) * g.C + c;
  const acc_t<T>* mask = static_cast<const acc_t<T>*>(g.mask) + n * g.A * g.S;
  for (int k = 0; k <= g.A; ++k) {
    const int64_t s = at[k * g.C];
    if (s < first || s >= last) continue;
    if constexpr (sizeof(T) == sizeof(acc_t<T>))
      dx[s * g.dx.s] += k ? delta[(1 + g.A + k) * g.C] * mask[(k - 1) * g.S + s] : delta[g.C];
    else dx[s * g.dx.s] = T(input_at<T>(g, n, c, s));
  }
}

template <class T, int B>
AXNET_KERNEL input_rows_single(const InputArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int cap = B ? B : kMaxAnatomies;
  const int count = B ? B : g.A;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.C, c = row % g.C;
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + c * g.d.c;
    T* dx = static_cast<T*>(g.dx_data) + n * g.dx.n + c * g.dx.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S;
    const Acc* coef = static_cast<const Acc*>(g.coef) + n * coef_rows(count) * g.C + c;
    const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C + c;
    InputCoef<V, cap> q;
    load_coef<Acc>(q, [&](int k) { return splat<Acc>(coef[k * g.C]); }, count);
    q.flat = splat<Acc>(delta[0] * inverse);
    for (int a = 0; a < count; ++a)
      q.slope[a] = splat<Acc>(delta[(2 + a) * g.C] * inverse);
    auto value = [&](V xv, V dv, const V* m) {
      V gate = q.b, rest = q.flat;
      for (int a = 0; a < count; ++a) {
        gate += q.w[a] * m[a];
        rest += q.slope[a] * m[a];
      }
      return blend_grad(xv, dv, gate, q.k1, q.k2, q.k3) + rest;
    };
    V m[cap];
    auto part = [&](int64_t s, int lanes) {
      for (int a = 0; a < count; ++a)
        m[a] = Lanes<Acc>::load_n(mask + a * g.S + s, lanes);
      L::store_n(dx + s, value(L::load_n(x + s, lanes), L::load_n(d + s, lanes), m), lanes);
    };
    int64_t s = 0;
    if (g.stream && L::can_stream) {
      s = L::to_aligned(dx) < g.S ? L::to_aligned(dx) : g.S;
      if (s) part(0, static_cast<int>(s));
      for (; s + L::W <= g.S; s += L::W) {
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        L::stream(dx + s, value(L::load(x + s), L::load(d + s), m));
      }
    } else {
      for (; s + L::W <= g.S; s += L::W) {
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        L::store(dx + s, value(L::load(x + s), L::load(d + s), m));
      }
    }
    if (s < g.S) part(s, static_cast<int>(g.S - s));
    fix_maxima<T>(g, n, c, 0, g.S);
  }
}

template <class T, int B>
AXNET_KERNEL input_channels_last_single(const InputArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  using Narrow = typename IndexOf<Acc>::type;
  using Index = typename LaneIndex<Acc>::type;
  constexpr int cap = B ? B : kMaxAnatomies;
  const int count = B ? B : g.A;
  const int64_t groups = (g.S + kPixelGroup - 1) / kPixelGroup;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / groups, first = (task % groups) * kPixelGroup;
    const int pixels = static_cast<int>(g.S - first < kPixelGroup ? g.S - first : kPixelGroup);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + first * g.x.s;
    const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + first * g.d.s;
    T* dx = static_cast<T*>(g.dx_data) + n * g.dx.n + first * g.dx.s;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S + first;
    const Acc* coef = static_cast<const Acc*>(g.coef) + n * coef_rows(count) * g.C;
    const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C;
    const int32_t* maxima = g.argmax + n * (1 + g.A) * g.C;
    const bool stream = g.stream && L::can_stream && L::to_aligned(dx) == 0 && g.dx.s % L::W == 0;
    for (int64_t c = 0; c < g.C; c += L::W) {
      const int lanes = g.C - c < L::W ? static_cast<int>(g.C - c) : L::W;
      const bool full = lanes == L::W;
      auto load = [&](const Acc* p) { return full ? Lanes<Acc>::load(p + c) : Lanes<Acc>::load_n(p + c, lanes); };
      InputCoef<V, cap> q;
      load_coef<Acc>(q, [&](int k) { return load(coef + k * g.C); }, count);
      q.flat = load(delta) * inverse;
      for (int a = 0; a < count; ++a)
        q.slope[a] = load(delta + (2 + a) * g.C) * inverse;
      Index at[1 + cap];  // of the maxima, where one lies in this group of pixels
      bool any = false;
      for (int k = 0; k <= count; ++k) {
        Narrow position = {};
        __builtin_memcpy(&position, maxima + k * g.C + c, lanes * sizeof(int32_t));
        at[k] = __builtin_convertvector(position - static_cast<int32_t>(first), Index);
        any |= bits_of<Acc>((at[k] >= 0) & (at[k] < pixels)) != 0;
      }
      V share[1 + cap];
      if (any) {
        share[0] = load(delta + g.C);
        for (int a = 0; a < count; ++a)
          share[1 + a] = load(delta + (2 + count + a) * g.C);
      }
      auto walk = [&](auto with_maxima) {
        for (int p = 0; p < pixels; ++p) {
          const T* xp = x + p * g.x.s + c;
          const T* dp = d + p * g.d.s + c;
          T* to = dx + p * g.dx.s + c;
          V gate = q.b, rest = q.flat;
          if constexpr (decltype(with_maxima)::value) rest += at[0] == p ? share[0] : V{};
          for (int a = 0; a < count; ++a) {
            const V m = splat<Acc>(mask[a * g.S + p]);
            gate += q.w[a] * m;
            rest += q.slope[a] * m;
            if constexpr (decltype(with_maxima)::value) rest += at[1 + a] == p ? share[1 + a] * m : V{};
          }
          const V xv = full ? L::load(xp) : L::load_n(xp, lanes), dv = full ? L::load(dp) : L::load_n(dp, lanes);
          const V value = blend_grad(xv, dv, gate, q.k1, q.k2, q.k3) + rest;
          if (!full) L::store_n(to, value, lanes);
          else if (stream) L::stream(to, value);
          else L::store(to, value);
        }
      };
      any ? walk(std::true_type{}) : walk(std::false_type{});
    }
  }
}

// Any number of blocks: a strip of one row (NCHW: pixels of a channel; channels_last: channels of a pixel) is held in
// an accumulator while the blocks are added.
template <class T>
void input_rows_general(const InputArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int64_t strip = 256;
  const int B = g.blocks > 1 ? 1 : g.A;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.C, c = row % g.C;
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    T* dx = static_cast<T*>(g.dx_data) + n * g.dx.n + c * g.dx.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S;
    const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C + c;
    for (int64_t first = 0; first < g.S; first += strip) {
      const int64_t last = first + strip < g.S ? first + strip : g.S;
      for (int64_t s = first; s < last; s += L::W) {
        const int lanes = last - s < L::W ? static_cast<int>(last - s) : L::W;
        V total = splat<Acc>(delta[0] * inverse);
        for (int a = 0; a < g.A; ++a)
          total += delta[(2 + a) * g.C] * inverse * Lanes<Acc>::load_n(mask + a * g.S + s, lanes);
        const V xv = L::load_n(x + s, lanes);
        for (int o = 0; o < g.blocks; ++o) {
          const Acc* q = static_cast<const Acc*>(g.coef) + (n * g.blocks + o) * coef_rows(B) * g.C + c;
          const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + (o * g.C + c) * g.d.c;
          V gate = splat<Acc>(q[3 * g.C]);
          for (int a = 0; a < B; ++a)
            gate += q[(4 + a) * g.C] * Lanes<Acc>::load_n(mask + (o + a) * g.S + s, lanes);
          total += blend_grad(xv, L::load_n(d + s, lanes), gate, splat<Acc>(q[0]), splat<Acc>(q[g.C]),
                              splat<Acc>(q[2 * g.C]));
        }
        L::store_n(dx + s, total, lanes);
      }
    }
    fix_maxima<T>(g, n, c, 0, g.S);
  }
}
template <class T>
void input_channels_last_general(const InputArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  const int B = g.blocks > 1 ? 1 : g.A;
  const int64_t groups = (g.S + kPixelGroup - 1) / kPixelGroup;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / groups, first = (task % groups) * kPixelGroup;
    const int64_t last = first + kPixelGroup < g.S ? first + kPixelGroup : g.S;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S;
    const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C;
    for (int64_t s = first; s < last; ++s)
      for (int64_t c = 0; c < g.C; c += L::W) {
        const int lanes = g.C - c < L::W ? static_cast<int>(g.C - c) : L::W;
        auto load = [&](const Acc* p) { return Lanes<Acc>::load_n(p + c, lanes); };
        V total = load(delta) * inverse;
        for (int a = 0; a < g.A; ++a)
          total += load(delta + (2 + a) * g.C) * (inverse * mask[a * g.S + s]);
        const V xv = L::load_n(static_cast<const T*>(g.x_data) + n * g.x.n + s * g.x.s + c, lanes);
        for (int o = 0; o < g.blocks; ++o) {
          const Acc* q = static_cast<const Acc*>(g.coef) + (n * g.blocks + o) * coef_rows(B) * g.C;
          V gate = load(q + 3 * g.C);
          for (int a = 0; a < B; ++a)
            gate += load(q + (4 + a) * g.C) * mask[(o + a) * g.S + s];
          const V dv = L::load_n(static_cast<const T*>(g.d_data) + n * g.d.n + s * g.d.s + o * g.C + c, lanes);
          total += blend_grad(xv, dv, gate, load(q), load(q + g.C), load(q + 2 * g.C));
        }
        L::store_n(static_cast<T*>(g.dx_data) + n * g.dx.n + s * g.dx.s + c, total, lanes);
      }
    for (int64_t c = 0; c < g.C; ++c)
      fix_maxima<T>(g, n, c, first, last);
  }
}

void input(const InputArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) {
    using T = decltype(t);
    if (g.blocks != 1) {
      g.x.channels_last ? input_channels_last_general<T>(g, begin, end) : input_rows_general<T>(g, begin, end);
      return;
    }
    with_anatomies<T>(g.A, [&](auto b) {
      constexpr int B = decltype(b)::value;
      g.x.channels_last ? input_channels_last_single<T, B>(g, begin, end) : input_rows_single<T, B>(g, begin, end);
    });
    if (g.stream) Lanes<T>::end_stream();
  });
}

// dm_a = sum_c [ sum_o dY_o X w_oa + delta_mavg,a X / S + [s = argmax_a] delta_mmax,a X ]; rare, so plain.
template <class T>
void input_mask_typed(const InputArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int B = g.blocks > 1 ? 1 : g.A;
  const Acc inverse = Acc(1) / static_cast<Acc>(g.S);
  for (int64_t n = begin; n < end; ++n) {
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.A * g.S;
    const Acc* delta = static_cast<const Acc*>(g.delta) + n * (2 + 2 * g.A) * g.C;
    const int32_t* at = g.argmax + n * (1 + g.A) * g.C;
    Acc* out = static_cast<Acc*>(g.mask_grad) + n * g.A * g.S;
    for (int64_t i = 0; i < g.A * g.S; ++i)
      out[i] = 0;
    for (int64_t c = 0; c < g.C; ++c) {
      const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
      for (int o = 0; o < g.blocks; ++o) {
        const Acc* q = static_cast<const Acc*>(g.coef) + (n * g.blocks + o) * coef_rows(B) * g.C + c;
        const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + (o * g.C + c) * g.d.c;
        for (int64_t s = 0; s < g.S; ++s) {
          const Acc xv = static_cast<Acc>(x[s * g.x.s]);
          Acc gate = q[3 * g.C];
          for (int a = 0; a < B; ++a)
            gate += q[(4 + a) * g.C] * mask[(o + a) * g.S + s];
          const Acc dy = q[0] * static_cast<Acc>(d[s * g.d.s]) + q[g.C] + q[2 * g.C] * (xv * gate);
          for (int a = 0; a < B; ++a)
            out[(o + a) * g.S + s] += dy * xv * q[(4 + a) * g.C];
        }
      }
      for (int a = 0; a < g.A; ++a) {
        const Acc slope = delta[(2 + a) * g.C + c] * inverse;
        if (slope != 0)
          for (int64_t s = 0; s < g.S; ++s)
            out[a * g.S + s] += slope * static_cast<Acc>(x[s * g.x.s]);
        const int64_t top = at[(1 + a) * g.C + c];
        if (top >= 0 && top < g.S)
          out[a * g.S + top] += delta[(2 + g.A + a) * g.C + c] * static_cast<Acc>(x[top * g.x.s]);
      }
    }
  }
}

void input_mask(const InputArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) { input_mask_typed<decltype(t)>(g, begin, end); });
}
