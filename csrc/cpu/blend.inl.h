// A3, forward pass 2 and backward pass 1.
//
//   apply   Z = X (b + sum_a w_a m_a) + h                            one read, one write
//   reduce  e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'      two reads
//
// NCHW: a task is a row of pixels (n, c), coefficients broadcast, masks loaded as vectors.
// channels_last: vectors of channels; apply keeps the coefficients of a vector over kPixelGroup pixels, reduce keeps
// the sums of kChannelBlock channels over all pixels; masks are broadcast.

template <class T, int B>
AXNET_INLINE typename Lanes<T>::V scaled(typename Lanes<T>::V x, const typename Lanes<T>::V* w,
                                         const typename Lanes<T>::V* m, typename Lanes<T>::V b, typename Lanes<T>::V h,
                                         int count) {
  for (int a = 0; a < (B ? B : count); ++a)
    b += w[a] * m[a];
  return x * b + h;
}

template <class T, int B>
AXNET_KERNEL apply_rows(const ApplyArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  const int count = B ? B : g.B;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.C, c = row % g.C;
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    T* z = static_cast<T*>(g.z_data) + n * g.z.n + c * g.z.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.mask_stride;
    const Acc* fold = static_cast<const Acc*>(g.fold) + n * g.fold_stride + c;
    const V b = splat<Acc>(fold[0]), h = splat<Acc>(fold[(1 + count) * g.C]);
    V w[B ? B : kMaxAnatomies], m[B ? B : kMaxAnatomies];
    for (int a = 0; a < count; ++a)
      w[a] = splat<Acc>(fold[(1 + a) * g.C]);
    auto part = [&](int64_t s, int n_lanes) {
      for (int a = 0; a < count; ++a)
        m[a] = Lanes<Acc>::load_n(mask + a * g.S + s, n_lanes);
      L::store_n(z + s, scaled<T, B>(L::load_n(x + s, n_lanes), w, m, b, h, count), n_lanes);
    };
    int64_t s = 0;
    if (g.stream && L::can_stream) {
      const int64_t head = L::to_aligned(z) < g.S ? L::to_aligned(z) : g.S;
      if (head) part(0, static_cast<int>(head));
      for (s = head; s + L::W <= g.S; s += L::W) {
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        L::stream(z + s, scaled<T, B>(L::load(x + s), w, m, b, h, count));
      }
    } else {
      for (; s + L::W <= g.S; s += L::W) {
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        L::store(z + s, scaled<T, B>(L::load(x + s), w, m, b, h, count));
      }
    }
    if (s < g.S) part(s, static_cast<int>(g.S - s));
  }
}

template <class T, int B>
AXNET_KERNEL apply_channels_last(const ApplyArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  const int count = B ? B : g.B;
  const int64_t groups = (g.S + kPixelGroup - 1) / kPixelGroup;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / groups, first = (task % groups) * kPixelGroup;
    const int pixels = static_cast<int>(g.S - first < kPixelGroup ? g.S - first : kPixelGroup);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + first * g.x.s;
    T* z = static_cast<T*>(g.z_data) + n * g.z.n + first * g.z.s;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.mask_stride + first;
    const Acc* fold = static_cast<const Acc*>(g.fold) + n * g.fold_stride;
    const bool stream = g.stream && L::can_stream && L::to_aligned(z) == 0 && g.z.s % L::W == 0;
    for (int64_t c = 0; c < g.C; c += L::W) {
      const int lanes = g.C - c < L::W ? static_cast<int>(g.C - c) : L::W;
      auto coefficients = [&](int k) {
        const Acc* p = fold + k * g.C + c;
        return lanes == L::W ? Lanes<Acc>::load(p) : Lanes<Acc>::load_n(p, lanes);
      };
      const V b = coefficients(0), h = coefficients(1 + count);
      V w[B ? B : kMaxAnatomies], m[B ? B : kMaxAnatomies];
      for (int a = 0; a < count; ++a)
        w[a] = coefficients(1 + a);
      for (int p = 0; p < pixels; ++p) {
        for (int a = 0; a < count; ++a)
          m[a] = splat<Acc>(mask[a * g.S + p]);
        const T* from = x + p * g.x.s + c;
        T* to = z + p * g.z.s + c;
        if (lanes < L::W) L::store_n(to, scaled<T, B>(L::load_n(from, lanes), w, m, b, h, count), lanes);
        else if (stream) L::stream(to, scaled<T, B>(L::load(from), w, m, b, h, count));
        else L::store(to, scaled<T, B>(L::load(from), w, m, b, h, count));
      }
    }
  }
}

template <int B, class V>
AXNET_INLINE void add_products(int count, V d, V centred, const V* m, V* sum) {
  sum[0] += d;
  sum[1] += d * centred;
  for (int a = 0; a < (B ? B : count); ++a) {
    const V weighted = d * m[a];
    sum[2 + a] += weighted;
    sum[2 + count + a] += weighted * centred;
  }
}

template <class T, int B>
AXNET_KERNEL reduce_rows_of(const ReduceArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int cap = B ? B : kMaxAnatomies, sums = sum_rows(cap);
  constexpr int64_t block = 4096;
  const int count = B ? B : g.B;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.C, c = row % g.C;
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + c * g.d.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.mask_stride;
    const Acc shift = static_cast<const Acc*>(g.shift)[n * g.shift_stride + c];
    double total[sums] = {};
    Acc lanes[sums];
    for (int64_t first = 0; first < g.S; first += block) {
      const int64_t last = first + block < g.S ? first + block : g.S;
      V sum[sums] = {}, m[cap];
      int64_t s = first;
      for (; s + L::W <= last; s += L::W) {
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load(mask + a * g.S + s);
        add_products<B>(count, L::load(d + s), L::load(x + s) - shift, m, sum);
      }
      if (s < last) {  // the missing lanes of d are zero, and with them every product
        const int rest = static_cast<int>(last - s);
        for (int a = 0; a < count; ++a)
          m[a] = Lanes<Acc>::load_n(mask + a * g.S + s, rest);
        add_products<B>(count, L::load_n(d + s, rest), L::load_n(x + s, rest) - shift, m, sum);
      }
      reduce_to<Acc, false, sums>(sum, lanes);
      for (int k = 0; k < sums; ++k)
        total[k] += lanes[k];
    }
    Acc* out = static_cast<Acc*>(g.sums) + n * g.sums_stride + c;
    for (int k = 0; k < sum_rows(count); ++k)
      out[k * g.C] = static_cast<Acc>(total[k]);
  }
}

template <class T, int B>
AXNET_KERNEL reduce_channels_last(const ReduceArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int64_t most = B ? kWideChannelBlock : kChannelBlock;
  constexpr int cap = B ? B : kMaxAnatomies, sums = sum_rows(cap), vectors = most / L::W;
  constexpr int64_t tile = 16;
  const int count = B ? B : g.B;
  const int64_t block = g.block < most ? g.block : most, blocks = (g.C + block - 1) / block;
  V sum[vectors][sums];
  FarSums<V, sums> far[vectors];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c0 = (task % blocks) * block;
    const int width = static_cast<int>(g.C - c0 < block ? g.C - c0 : block);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c0;
    const T* d = static_cast<const T*>(g.d_data) + n * g.d.n + c0;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * g.mask_stride;
    const Acc* shift = static_cast<const Acc*>(g.shift) + n * g.shift_stride + c0;
    for (int v = 0; v * L::W < width; ++v)
      for (int k = 0; k < sums; ++k)
        sum[v][k] = V{};
    const bool many = g.S > kSumPixels;
    for (int v = 0; many && v * L::W < width; ++v)
      far[v].clear();
    for (int64_t chain = 0; chain < g.S; chain += kSumPixels) {
      const int64_t stop = chain + kSumPixels < g.S ? chain + kSumPixels : g.S;
      for (int64_t first = chain; first < stop; first += tile) {
        const int64_t last = first + tile < stop ? first + tile : stop;
        for (int v = 0; v * L::W < width; ++v) {
          const int rest = width - v * L::W;
          V local[sums], m[cap];
          for (int k = 0; k < sums; ++k)
            local[k] = sum[v][k];
          const V c = rest >= L::W ? Lanes<Acc>::load(shift + v * L::W) : Lanes<Acc>::load_n(shift + v * L::W, rest);
          for (int64_t s = first; s < last; ++s) {
            const T* xp = x + s * g.x.s + v * L::W;
            const T* dp = d + s * g.d.s + v * L::W;
            __builtin_prefetch(xp + tile * g.x.s, 0, 2);
            __builtin_prefetch(dp + tile * g.d.s, 0, 2);
            for (int a = 0; a < count; ++a)
              m[a] = splat<Acc>(mask[a * g.S + s]);
            if (rest >= L::W) add_products<B>(count, L::load(dp), L::load(xp) - c, m, local);
            else add_products<B>(count, L::load_n(dp, rest), L::load_n(xp, rest) - c, m, local);
          }
          for (int k = 0; k < sums; ++k)
            sum[v][k] = local[k];
        }
      }
      for (int v = 0; many && v * L::W < width; ++v)
        far[v].take(sum[v], stop == g.S);
    }
    Acc* out = static_cast<Acc*>(g.sums) + n * g.sums_stride + c0;
    for (int k = 0; k < sum_rows(count); ++k)
      for (int v = 0; v * L::W < width; ++v)
        Lanes<Acc>::store_n(out + k * g.C + v * L::W, sum[v][k], width - v * L::W < L::W ? width - v * L::W : L::W);
  }
}

void apply(const ApplyArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) {
    using T = decltype(t);
    with_anatomies<T>(g.B, [&](auto b) {
      constexpr int B = decltype(b)::value;
      g.x.channels_last ? apply_channels_last<T, B>(g, begin, end) : apply_rows<T, B>(g, begin, end);
      if (g.stream) Lanes<T>::end_stream();
    });
  });
}

void reduce(const ReduceArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) {
    using T = decltype(t);
    with_anatomies<T>(g.B, [&](auto b) {
      constexpr int B = decltype(b)::value;
      g.x.channels_last ? reduce_channels_last<T, B>(g, begin, end) : reduce_rows_of<T, B>(g, begin, end);
    });
  });
}
