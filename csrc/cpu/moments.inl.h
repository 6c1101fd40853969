// A3, forward pass 1: one read of X gives the descriptors and every moment that batch normalisation needs.
//
//   x' = x - c, c a sample mean of the row (so that |mean| >> std does not cancel)
//   sums  s1, s2, t_a, t2_a, q1_ab, q2_ab of x', m_a x', m_a x'^2, m_a m_b x', m_a m_b x'^2    (ab: a <= b)
//   max   max x, max m_a x, and the first position of each
//
// NCHW: a row of pixels per (n, c), statistics in registers, one transposed reduction per row.
// channels_last: kChannelBlock channels per task; tiles of pixels, a vector of channels holds its own statistics.

// A = 0 stands for any number of anatomies, known at run time only; the arrays are then as large as they can get.
template <int A, bool SECOND>
struct MomentSet {
  static constexpr int cap = A ? A : kMaxAnatomies;
  static constexpr int sums = SECOND ? 2 + 2 * cap + 2 * pairs(cap) : 1 + cap;
  static constexpr int maxima = 1 + cap;
};

// sum order: s1, s2, t_a.., t2_a.., q1.., q2..   (SECOND)      s1, t_a..   (else)
template <int A, bool SECOND, class V>
AXNET_INLINE void accumulate(int count, V x, V centred, const V* m, V* sum, V* top) {
  const int n = A ? A : count;
  top[0] = vmax(x, top[0]);
  sum[0] += centred;
  if constexpr (SECOND) {
    sum[1] += centred * centred;
    V weighted[A ? A : kMaxAnatomies];
    for (int a = 0; a < n; ++a) {
      weighted[a] = m[a] * centred;
      sum[2 + a] += weighted[a];
      sum[2 + n + a] += weighted[a] * centred;
      top[1 + a] = vmax(m[a] * x, top[1 + a]);
    }
    V* q1 = sum + 2 + 2 * n;
    V* q2 = q1 + pairs(n);
    int ab = 0;
    for (int a = 0; a < n; ++a)
      for (int b = a; b < n; ++b, ++ab) {
        q1[ab] += weighted[a] * m[b];
        q2[ab] += weighted[a] * weighted[b];
      }
  } else {
    for (int a = 0; a < n; ++a) {
      V weighted = m[a] * x;
      sum[1 + a] += weighted;
      top[1 + a] = vmax(weighted, top[1 + a]);
    }
  }
}

// First position where m x equals its maximum; NaN counts as the maximum, as in torch.max.
template <class T, class Acc>
AXNET_INLINE int32_t first_position(const T* x, const Acc* mask, int64_t S, Acc top) {
  using L = Lanes<T>;
  for (int64_t s = 0; s < S; s += L::W) {
    const int lanes = S - s < L::W ? static_cast<int>(S - s) : L::W;
    auto v = lanes == L::W ? L::load(x + s) : L::load_n(x + s, lanes);
    if (mask) v = v * (lanes == L::W ? Lanes<Acc>::load(mask + s) : Lanes<Acc>::load_n(mask + s, lanes));
    const uint32_t hits = bits_of<Acc>((v == top) | (v != v)) & ((1u << lanes) - 1u);
    if (hits) return static_cast<int32_t>(s) + __builtin_ctz(hits);
  }
  return 0;
}

template <class T>
AXNET_INLINE acc_t<T> sample_mean(const T* x, int64_t stride, int64_t S) {
  using Acc = acc_t<T>;
  if (S < 4) return static_cast<Acc>(x[0]);
  Acc total = 0;
  for (int i = 0; i < 4; ++i) total += static_cast<Acc>(x[((2 * i + 1) * S / 8) * stride]);
  total *= Acc(0.25);
  return total - total == 0 ? total : Acc(0);  // inf or NaN: let it show in the sums, not in the shift
}

// total: sums in moment order; writes column c of descriptors and moments
template <int A, bool SECOND, class Acc, class Sum>
AXNET_INLINE void finish_channel(const MomentsArgs& g, int64_t n, int64_t c, Acc shift, const Sum* total, const Acc* top) {
  const int anatomies = A ? A : g.A;
  const int sums = SECOND ? moment_rows(anatomies) - 1 : 1 + anatomies;
  Acc* d = static_cast<Acc*>(g.descriptors) + n * (2 + 2 * anatomies) * g.C + c;
  const double* mass = g.mask_sums + n * anatomies;
  const double inverse = 1.0 / static_cast<double>(g.S);
  constexpr int t = SECOND ? 2 : 1;
  d[0] = static_cast<Acc>(shift + total[0] * inverse);
  d[g.C] = top[0];
  for (int a = 0; a < anatomies; ++a) {
    d[(2 + a) * g.C] = static_cast<Acc>((total[t + a] + static_cast<double>(shift) * mass[a]) * inverse);
    d[(2 + anatomies + a) * g.C] = top[1 + a];
  }
  if constexpr (SECOND) {
    Acc* out = static_cast<Acc*>(g.moments) + n * moment_rows(anatomies) * g.C + c;
    out[0] = shift;
    for (int k = 0; k < sums; ++k) out[(1 + k) * g.C] = static_cast<Acc>(total[k]);
  }
}

template <class T, int A, bool SECOND>
void moments_rows(const MomentsArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int sums = MomentSet<A, SECOND>::sums, maxima = MomentSet<A, SECOND>::maxima;
  const int anatomies = A ? A : g.A;
  constexpr int64_t block = 4096;  // pixels summed in one go in Acc; blocks are added in double
  const Acc lowest = -__builtin_inf();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.C, c = row % g.C;
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * anatomies * g.S;
    const Acc shift = SECOND ? sample_mean(x, 1, g.S) : Acc(0);
    double total[sums] = {};
    Acc top[maxima], lanes[sums], peaks[maxima];
    for (int k = 0; k < maxima; ++k) top[k] = lowest;
    for (int64_t first = 0; first < g.S; first += block) {
      const int64_t last = first + block < g.S ? first + block : g.S;
      V sum[sums] = {}, peak[maxima], m[MomentSet<A, SECOND>::cap];
      for (int k = 0; k < maxima; ++k) peak[k] = splat<Acc>(lowest);
      int64_t s = first;
      for (; s + L::W <= last; s += L::W) {
        V v = L::load(x + s);
        for (int a = 0; a < anatomies; ++a) m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        accumulate<A, SECOND>(anatomies, v, v - shift, m, sum, peak);
      }
      if (s < last) {
        const int rest = static_cast<int>(last - s);
        // The missing lanes repeat the first pixel of the tail for the maxima and count nothing in the sums.
        V v = L::first_n(L::load_n(x + s, rest), static_cast<Acc>(x[s]), rest);
        V centred = L::first_n(v - shift, Acc(0), rest);
        V bare[sums] = {}, tail_peak[maxima];
        for (int k = 0; k < maxima; ++k) tail_peak[k] = peak[k];
        for (int a = 0; a < anatomies; ++a)
          m[a] = L::first_n(Lanes<Acc>::load_n(mask + a * g.S + s, rest), mask[a * g.S + s], rest);
        if constexpr (SECOND) {
          accumulate<A, SECOND>(anatomies, v, centred, m, sum, tail_peak);
        } else {
          accumulate<A, SECOND>(anatomies, v, centred, m, bare, tail_peak);
          for (int k = 0; k < sums; ++k) sum[k] += L::first_n(bare[k], Acc(0), rest);
        }
        for (int k = 0; k < maxima; ++k) peak[k] = tail_peak[k];
      }
      reduce_to<Acc, false, sums>(sum, lanes);
      reduce_to<Acc, true, maxima>(peak, peaks);
      for (int k = 0; k < sums; ++k) total[k] += lanes[k];
      for (int k = 0; k < maxima; ++k) top[k] = peaks[k] > top[k] ? peaks[k] : top[k];
    }
    if (!(total[0] - total[0] == 0)) {  // inf or NaN in the row: maxima propagate NaN, as torch's do
      for (int64_t s = 0; s < g.S; ++s) {
        const Acc v = static_cast<Acc>(x[s]);
        if (v != v) top[0] = v;
        for (int a = 0; a < anatomies; ++a)
          if (Acc w = mask[a * g.S + s] * v; w != w) top[1 + a] = w;
      }
    }
    finish_channel<A, SECOND>(g, n, c, shift, total, top);
    if (g.argmax) {
      int32_t* at = g.argmax + n * (1 + anatomies) * g.C + c;
      at[0] = first_position<T, Acc>(x, nullptr, g.S, top[0]);
      for (int a = 0; a < anatomies; ++a) at[(1 + a) * g.C] = first_position<T, Acc>(x, mask + a * g.S, g.S, top[1 + a]);
    }
  }
}

template <class T, int A, bool SECOND>
void moments_channels_last(const MomentsArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int sums = MomentSet<A, SECOND>::sums, maxima = MomentSet<A, SECOND>::maxima;
  const int anatomies = A ? A : g.A;
  constexpr int vectors = kChannelBlock / L::W;
  constexpr int64_t tile = 32;
  const int64_t blocks = (g.C + kChannelBlock - 1) / kChannelBlock;
  const Acc lowest = -__builtin_inf();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c0 = (task % blocks) * kChannelBlock;
    const int width = static_cast<int>(g.C - c0 < kChannelBlock ? g.C - c0 : kChannelBlock);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c0;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * anatomies * g.S;
    V sum[vectors][sums] = {}, peak[vectors][maxima], shift[vectors] = {};
    for (int v = 0; v < vectors; ++v) {
      for (int k = 0; k < maxima; ++k) peak[v][k] = splat<Acc>(lowest);
      if constexpr (SECOND)
        for (int i = 0; i < L::W && v * L::W + i < width; ++i) shift[v][i] = sample_mean(x + v * L::W + i, g.x.s, g.S);
    }
    for (int64_t first = 0; first < g.S; first += tile) {
      const int64_t last = first + tile < g.S ? first + tile : g.S;
      for (int64_t s = last; s < last + tile && s < g.S; ++s)
        for (int b = 0; b < width * static_cast<int>(sizeof(T)); b += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(x + s * g.x.s) + b);
      for (int v = 0; v * L::W < width; ++v) {
        const int rest = width - v * L::W;
        V local[sums], top[maxima], m[MomentSet<A, SECOND>::cap];
        for (int k = 0; k < sums; ++k) local[k] = sum[v][k];
        for (int k = 0; k < maxima; ++k) top[k] = peak[v][k];
        for (int64_t s = first; s < last; ++s) {
          const T* p = x + s * g.x.s + v * L::W;
          V value = rest >= L::W ? L::load(p) : L::load_n(p, rest);
          for (int a = 0; a < anatomies; ++a) m[a] = splat<Acc>(mask[a * g.S + s]);
          accumulate<A, SECOND>(anatomies, value, value - shift[v], m, local, top);
        }
        for (int k = 0; k < sums; ++k) sum[v][k] = local[k];
        for (int k = 0; k < maxima; ++k) peak[v][k] = top[k];
      }
    }
    for (int i = 0; i < width; ++i) {
      Acc total[sums], top[maxima];
      for (int k = 0; k < sums; ++k) total[k] = sum[i / L::W][k][i % L::W];
      for (int k = 0; k < maxima; ++k) top[k] = peak[i / L::W][k][i % L::W];
      if (!(total[0] - total[0] == 0)) {
        for (int64_t s = 0; s < g.S; ++s) {
          const Acc v = static_cast<Acc>(x[s * g.x.s + i]);
          if (v != v) top[0] = v;
          for (int a = 0; a < anatomies; ++a)
            if (Acc w = mask[a * g.S + s] * v; w != w) top[1 + a] = w;
        }
      }
      finish_channel<A, SECOND>(g, n, c0 + i, shift[i / L::W][i % L::W], total, top);
      for (int k = 0; k < maxima; ++k) peak[i / L::W][k][i % L::W] = top[k];
    }
    if (g.argmax) {
      // A second look at the block, now in cache: walk the pixels backwards so that the first position stays.
      using Index = typename IndexOf<Acc>::type;
      for (int v = 0; v * L::W < width; ++v) {
        const int rest = width - v * L::W;
        Index at[maxima] = {};
        for (int64_t s = g.S - 1; s >= 0; --s) {
          const T* p = x + s * g.x.s + v * L::W;
          V value = rest >= L::W ? L::load(p) : L::load_n(p, rest);
          const Index here = Index{} + static_cast<int32_t>(s);
          for (int k = 0; k <= anatomies; ++k) {
            V w = k ? value * splat<Acc>(mask[(k - 1) * g.S + s]) : value;
            Index hit = __builtin_convertvector((w == peak[v][k]) | (w != w), Index);
            at[k] = hit ? here : at[k];
          }
        }
        int32_t* out = g.argmax + n * (1 + anatomies) * g.C + c0 + v * L::W;
        for (int k = 0; k <= anatomies; ++k)
          for (int i = 0; i < L::W && i < rest; ++i) out[k * g.C + i] = at[k][i];
      }
    }
  }
}

template <class T, int A>
void moments_typed(const MomentsArgs& g, int64_t begin, int64_t end) {
  if (g.x.channels_last)
    g.moments ? moments_channels_last<T, A, true>(g, begin, end) : moments_channels_last<T, A, false>(g, begin, end);
  else
    g.moments ? moments_rows<T, A, true>(g, begin, end) : moments_rows<T, A, false>(g, begin, end);
}

void moments(const MomentsArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) {
    with_anatomies(g.A, [&](auto a) { moments_typed<decltype(t), decltype(a)::value>(g, begin, end); });
  });
}
