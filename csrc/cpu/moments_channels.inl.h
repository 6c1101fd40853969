// The moments of moments.inl.h in channels_last: a task is a block of channels; tiles of pixels, a vector of channels
// holds its own statistics. At the end, the choice between the layouts.

// A lane adds this many pixels in one chain; chains are then added in order, with what each addition
// rounds off carried to the next. The error stays that of one chain, however large the map.
constexpr int64_t kSumPixels = 256;
constexpr int64_t kPixelTile = 16;

template <class V, int SUMS>
struct FarSums {
  V total[SUMS], lost[SUMS];
  AXNET_INLINE void clear(int used = SUMS) {
    for (int k = 0; k < used; ++k)
      total[k] = lost[k] = V{};
  }
  // Adds the chains and starts them anew; at the end they hold the result.
  AXNET_APART take(V* chain, bool end, int used = SUMS) {
    for (int k = 0; k < used; ++k) {
      const V next = chain[k] - lost[k], sum = total[k] + next;
      lost[k] = (sum - total[k]) - next;
      total[k] = sum;
      chain[k] = end ? sum : V{};
    }
  }
};

// Adds the pixels first.. of up to L::W channels from x on to what these hold.
template <int A, bool SECOND, bool POSITIONS, bool SHIFTED, class T, class V, class Stamp>
AXNET_INLINE void walk_pixels(const MomentsArgs& g, const T* x, const acc_t<T>* mask, int width, int64_t first,
                              int64_t last, V shift, V* sum, V* peak, Stamp* place) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using Set = MomentSet<A, SECOND>;
  const int anatomies = A ? A : g.A, used = Set::sums_of(anatomies), peaks = Set::maxima_of(anatomies);
  V local[Set::sums], top[Set::maxima], before[Set::maxima], m[Set::cap];
  for (int k = 0; k < used; ++k)
    local[k] = sum[k];
  for (int k = 0; k < peaks; ++k)
    before[k] = top[k] = peak[k];
  Stamp at[Set::maxima];
  for (int k = 0; k < peaks; ++k)
    at[k] = place[k];
  const T* p = x + first * g.x.s;
  for (int64_t s = first; s < last; ++s, p += g.x.s) {
    __builtin_prefetch(p + kPixelTile * g.x.s, 0, 2);
    const V value = width >= L::W ? L::load(p) : L::load_n(p, width);
    for (int a = 0; a < (A ? A : anatomies); ++a)
      m[a] = splat<Acc>(mask[a * g.S + s]);
    accumulate<A, SECOND, SHIFTED>(anatomies, value, shift, m, local, top);
    if constexpr (POSITIONS)
      for (int k = 0; k < peaks; ++k) {
        at[k] = top[k] > before[k] ? Stamp{} + static_cast<int32_t>(s) : at[k];
        before[k] = top[k];
      }
  }
  for (int k = 0; k < used; ++k)
    sum[k] = local[k];
  for (int k = 0; k < peaks; ++k) {
    peak[k] = top[k];
    place[k] = at[k];
  }
}

// The same about a shift, as sum_row_again.
template <int A, class T, class V, class Stamp>
AXNET_APART walk_pixels_again(const MomentsArgs& g, const T* x, const acc_t<T>* mask, int width, int64_t first,
                              int64_t last, const V* shift, V* sum, V* peak, Stamp* place) {
  walk_pixels<A, true, true, true>(g, x, mask, width, first, last, *shift, sum, peak, place);
}

// With second moments the positions of maxima are always noted.
template <class T, int A, bool SECOND, bool POSITIONS>
AXNET_KERNEL moments_channels_last(const MomentsArgs& g, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  using Stamp = typename LaneIndex<Acc>::type;
  constexpr int sums = MomentSet<A, SECOND>::sums, maxima = MomentSet<A, SECOND>::maxima;
  const int anatomies = A ? A : g.A, used = MomentSet<A, SECOND>::sums_of(anatomies);
  constexpr int64_t most = A ? kWideChannelBlock : kChannelBlock;
  constexpr int vectors = most / L::W;
  const int64_t block = g.block < most ? g.block : most, blocks = (g.C + block - 1) / block;
  const Acc lowest = -__builtin_inf();
  struct Column {
    V sum[sums], peak[maxima];
    Stamp at[maxima];
  };
  Column columns[vectors];
  FarSums<V, sums> far[vectors];
  const bool many = g.S > kSumPixels;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c0 = (task % blocks) * block;
    const int width = static_cast<int>(g.C - c0 < block ? g.C - c0 : block);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c0;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * anatomies * g.S;
    auto clear = [&](Column& column) {
      const int used = MomentSet<A, SECOND>::sums_of(anatomies), peaks = MomentSet<A, SECOND>::maxima_of(anatomies);
      for (int k = 0; k < used; ++k)
        column.sum[k] = V{};
      for (int k = 0; k < peaks; ++k) {
        column.peak[k] = splat<Acc>(lowest);
        column.at[k] = Stamp{};
      }
    };
    for (int v = 0; v * L::W < width; ++v) {
      clear(columns[v]);
      if (many) far[v].clear(used);
    }
    for (int64_t chain = 0; chain < g.S; chain += kSumPixels) {
      const int64_t stop = chain + kSumPixels < g.S ? chain + kSumPixels : g.S;
      for (int64_t first = chain; first < stop; first += kPixelTile) {
        const int64_t last = first + kPixelTile < stop ? first + kPixelTile : stop;
        for (int v = 0; v * L::W < width; ++v)
          walk_pixels<A, SECOND, POSITIONS, false>(g, x + v * L::W, mask, width - v * L::W, first, last, V{},
                                                   columns[v].sum, columns[v].peak, columns[v].at);
      }
      for (int v = 0; many && v * L::W < width; ++v)
        far[v].take(columns[v].sum, stop == g.S, used);
    }
    for (int v = 0; v * L::W < width; ++v) {
      const int lanes = width - v * L::W < L::W ? width - v * L::W : L::W;
      Column& column = columns[v];
      V shift = {};
      if constexpr (SECOND) {
        uint32_t again = bits_of<Acc>(far_from_zero(column.sum[0], column.sum[1], static_cast<Acc>(g.S)));
        if (again &= (1u << lanes) - 1u; again) {
          for (; again; again &= again - 1) {
            const int i = __builtin_ctz(again);
            shift[i] = sample_mean(x + v * L::W + i, g.x.s, g.S);
          }
          clear(column);
          far[v].clear(used);
          for (int64_t first = 0; first < g.S; first += kSumPixels) {
            const int64_t last = first + kSumPixels < g.S ? first + kSumPixels : g.S;
            walk_pixels_again<kRarely<A>>(g, x + v * L::W, mask, lanes, first, last, &shift, column.sum, column.peak,
                                          column.at);
            far[v].take(column.sum, last == g.S, used);
          }
        }
      }
      const V proof = not_a_number<A, SECOND>(column.sum, anatomies);
      for (int i = 0; i < lanes; ++i) {
        if (proof[i] == 0) continue;
        for (int k = 0; k <= anatomies; ++k) {
          Acc largest;
          int32_t at;
          maxima_with_nan(x + v * L::W + i, g.x.s, k ? mask + (k - 1) * g.S : nullptr, g.S, &largest, &at);
          column.peak[k][i] = largest;
          column.at[k][i] = at;
        }
      }
      if (POSITIONS && g.argmax)
        for (int k = 0; k <= anatomies; ++k)
          for (int i = 0; i < lanes; ++i)
            g.argmax[(n * (1 + anatomies) + k) * g.C + c0 + v * L::W + i] = static_cast<int32_t>(column.at[k][i]);
      finish_channels<A, SECOND, Acc>(g, n, c0 + v * L::W, lanes, shift, column.sum, column.peak);
    }
  }
}

template <class T, int A>
void moments_typed(const MomentsArgs& g, int64_t begin, int64_t end) {
  if (g.x.channels_last)
    (g.moments  ? moments_channels_last<T, A, true, true>
     : g.argmax ? moments_channels_last<T, A, false, true>
                : moments_channels_last<T, A, false, false>)(g, begin, end);
  else g.moments ? moments_rows<T, A, true>(g, begin, end) : moments_rows<T, A, false>(g, begin, end);
}

void moments(const MomentsArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) {
    using T = decltype(t);
    with_anatomies<T>(g.A, [&](auto a) { moments_typed<T, decltype(a)::value>(g, begin, end); });
  });
}
