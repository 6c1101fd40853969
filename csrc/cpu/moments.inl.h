// A3, forward pass 1: one read of X gives the descriptors and every moment that batch normalisation needs.
//
//   sums  s1, s2, t_a, t2_a, q1_ab, q2_ab of x', m_a x', m_a x'^2, m_a m_b x', m_a m_b x'^2    (ab: a <= b)
//   max   max x, max m_a x, and the first position of each;  x' = x - c
//
// c is 0 wherever that costs no digits. Where the mean of a row is so far from 0 (mean^2 > 15 var) that the sums would
// cancel, the row is summed again around a sample of its values; only then are the q1 needed.
//
// NCHW, here: a task is a row of pixels (n, c), its statistics are in registers; the lanes of several rows are added
// together. channels_last: moments_channels.inl.h.

// Length of an array with an element for each of A anatomies; 0 stands for any number, up to kMaxAnatomies. Two more
// than that: where an array ends at 16, GCC takes it that a loop runs 16 times at most, and unrolls it so often.
template <int A>
constexpr int kCapacity = A ? A : kMaxAnatomies + 2;

// What rarely runs has code for two anatomies and for any number, whose sums have the same order.
template <int A>
constexpr int kRarely = A == 2 ? 2 : 0;

// A = 0 stands for any number of anatomies, known at run time only; the arrays are then as large as they can get.
template <int A, bool SECOND>
struct MomentSet {
  static constexpr int cap = kCapacity<A>;
  static constexpr int sums = SECOND ? 2 + 2 * cap + 2 * pairs(cap) : 1 + cap;
  static constexpr int maxima = 1 + cap;
  // Of them, what `count` anatomies use.
  static constexpr int sums_of(int count) { return A ? sums : SECOND ? moment_rows(count) - 1 : 1 + count; }
  static constexpr int maxima_of(int count) { return A ? maxima : 1 + count; }
};

// sum order: s1, s2, t_a.., t2_a.., q1.., q2..   (SECOND)      s1, t_a..   (else)
template <int A, bool SECOND, bool SHIFTED, class V>
AXNET_INLINE void accumulate(int count, V x, V shift, const V* m, V* sum, V* top) {
  const int n = A ? A : count;
  const V centred = SHIFTED ? x - shift : x;
  V weighted[kCapacity<A>];
  top[0] = vmax(x, top[0]);
  sum[0] += centred;
  for (int a = 0; a < n; ++a) {
    weighted[a] = m[a] * centred;
    top[1 + a] = vmax(SHIFTED ? m[a] * x : weighted[a], top[1 + a]);
    sum[(SECOND ? 2 : 1) + a] += weighted[a];
  }
  if constexpr (SECOND) {
    sum[1] += centred * centred;
    V* q1 = sum + 2 + 2 * n;
    V* q2 = q1 + pairs(n);
    int ab = 0;
    for (int a = 0; a < n; ++a) {
      sum[2 + n + a] += weighted[a] * centred;
      for (int b = a; b < n; ++b, ++ab) {
        if constexpr (SHIFTED) q1[ab] += weighted[a] * m[b];
        q2[ab] += weighted[a] * weighted[b];
      }
    }
  }
}

template <class T>
AXNET_INLINE acc_t<T> sample_mean(const T* x, int64_t stride, int64_t S) {
  using Acc = acc_t<T>;
  if (S < 4) return static_cast<Acc>(x[0]);
  Acc total = 0;
  for (int i = 0; i < 4; ++i)
    total += static_cast<Acc>(x[((2 * i + 1) * S / 8) * stride]);
  total *= Acc(0.25);
  return total - total == 0 ? total : Acc(0);  // inf or NaN: let it show in the sums, not in the shift
}

// Lanes whose sums must be taken again around a shift. NaN and inf are left as they are.
template <class V, class Acc>
AXNET_INLINE typename LaneIndex<Acc>::type far_from_zero(V s1, V s2, Acc S) {
  return s1 * s1 > Acc(0.9375) * S * s2;
}

// W adjacent channels at once: the columns c.. of descriptors and moments, from sums in moment order.
template <int A, bool SECOND, class Acc, class V>
AXNET_INLINE void finish_channels(const MomentsArgs& g, int64_t n, int64_t c, int width, V shift, const V* total,
                                  const V* top) {
  using L = Lanes<Acc>;
  const int anatomies = A ? A : g.A;
  const int sums = SECOND ? moment_rows(anatomies) - 1 : 1 + anatomies;
  Acc* d = static_cast<Acc*>(g.descriptors) + n * (2 + 2 * anatomies) * g.C + c;
  const double* mass = g.mask_sums + n * anatomies;
  const Acc inverse = static_cast<Acc>(1.0 / static_cast<double>(g.S));
  constexpr int t = SECOND ? 2 : 1;
  auto store = [width](Acc* to, V v) { width == L::W ? L::store(to, v) : L::store_n(to, v, width); };
  store(d, shift + total[0] * inverse);
  store(d + g.C, top[0]);
  for (int a = 0; a < anatomies; ++a) {
    store(d + (2 + a) * g.C, (total[t + a] + shift * static_cast<Acc>(mass[a])) * inverse);
    store(d + (2 + anatomies + a) * g.C, top[1 + a]);
  }
  if constexpr (SECOND) {
    Acc* out = static_cast<Acc*>(g.moments) + n * moment_rows(anatomies) * g.C + c;
    store(out, shift);
    for (int k = 0; k < sums; ++k)
      store(out + (1 + k) * g.C, total[k]);
  }
}

// What the lanes of one row hold. stamp: the granule in which a lane's maximum last rose.
template <class T, int A, bool SECOND>
struct RowStatistics {
  using Acc = acc_t<T>;
  using V = typename Lanes<T>::V;
  using Stamp = typename LaneIndex<Acc>::type;
  static constexpr int sums = MomentSet<A, SECOND>::sums, maxima = MomentSet<A, SECOND>::maxima;
  V sum[sums], peak[maxima];
  Stamp stamp[maxima];
};

template <class T, int A, bool SECOND, bool SHIFTED>
void sum_row(const T* x, const acc_t<T>* mask, int64_t S, int anatomies, acc_t<T> c, bool positions,
             RowStatistics<T, A, SECOND>* row) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  constexpr int sums = MomentSet<A, SECOND>::sums, maxima = MomentSet<A, SECOND>::maxima;
  constexpr int64_t block = 4096;  // pixels summed in one go in Acc; blocks are added in double
  const Acc lowest = -__builtin_inf();
  const V shift = splat<Acc>(c);
  const int64_t step = granule_of<T>(S);
  const int used = MomentSet<A, SECOND>::sums_of(anatomies), peaks = MomentSet<A, SECOND>::maxima_of(anatomies);
  double total[sums] = {};
  Acc lanes[sums];
  V sum[sums], peak[maxima], before[maxima], m[MomentSet<A, SECOND>::cap];
  using Stamp = typename RowStatistics<T, A, SECOND>::Stamp;
  Stamp stamp[maxima] = {};
  for (int k = 0; k < peaks; ++k)
    before[k] = peak[k] = splat<Acc>(lowest);
  for (int64_t first = 0; first < S; first += block) {
    const int64_t last = first + block < S ? first + block : S;
    for (int k = 0; k < used; ++k)
      sum[k] = V{};
    int64_t s = first;
    while (s + L::W <= last) {
      const int64_t stop = s + step < last ? s + step : last;
      const int64_t granule = s / step;
      for (; s + L::W <= stop; s += L::W) {
        __builtin_prefetch(x + s + 1024 / sizeof(T));
        for (int a = 0; a < (A ? A : anatomies); ++a)
          m[a] = Lanes<Acc>::load(mask + a * S + s);
        accumulate<A, SECOND, SHIFTED>(anatomies, L::load(x + s), shift, m, sum, peak);
      }
      if (positions)
        for (int k = 0; k < peaks; ++k) {
          stamp[k] = peak[k] > before[k] ? Stamp{} + static_cast<int32_t>(granule) : stamp[k];
          before[k] = peak[k];
        }
    }
    if (s < last) {
      const int rest = static_cast<int>(last - s);
      // The missing lanes repeat the first pixel of the tail for the maxima and count nothing in the sums.
      V v = L::first_n(L::load_n(x + s, rest), static_cast<Acc>(x[s]), rest);
      V bare[sums];
      for (int k = 0; k < used; ++k)
        bare[k] = V{};
      for (int a = 0; a < (A ? A : anatomies); ++a)
        m[a] = L::first_n(Lanes<Acc>::load_n(mask + a * S + s, rest), mask[a * S + s], rest);
      accumulate<A, SECOND, SHIFTED>(anatomies, v, shift, m, bare, peak);
      for (int k = 0; k < used; ++k)
        sum[k] += L::first_n(bare[k], Acc(0), rest);
      for (int k = 0; k < peaks; ++k)
        stamp[k] = peak[k] > before[k] ? Stamp{} + static_cast<int32_t>(s / step) : stamp[k];
    }
    if (S > block) {
      if constexpr (A > 0) reduce_to<Acc, false, sums>(sum, lanes);
      else
        for (int k = 0; k < used; ++k)
          lanes[k] = reduce_lanes<Acc, false, 1>(sum + k)[0];
      for (int k = 0; k < used; ++k)
        total[k] += lanes[k];
    }
  }
  for (int k = 0; k < used; ++k)
    row->sum[k] = S > block ? L::first_n(splat(static_cast<Acc>(total[k])), Acc(0), 1) : sum[k];
  for (int k = 0; k < peaks; ++k) {
    row->peak[k] = peak[k];
    row->stamp[k] = stamp[k];
  }
}

// The same about a shift, for a row whose numbers are far from zero. Such rows are rare.
template <int A, class T, class V, class Stamp>
AXNET_APART sum_row_again(const T* x, const acc_t<T>* mask, int64_t S, int anatomies, acc_t<T> c, bool positions,
                          V* sum, V* peak, Stamp* stamp) {
  RowStatistics<T, A, true> row;
  sum_row<T, A, true, true>(x, mask, S, anatomies, c, positions, &row);
  for (int k = 0; k < moment_rows(anatomies) - 1; ++k)
    sum[k] = row.sum[k];
  for (int k = 0; k <= anatomies; ++k) {
    peak[k] = row.peak[k];
    stamp[k] = row.stamp[k];
  }
}

template <class T, int A, bool SECOND>
AXNET_KERNEL moments_rows(const MomentsArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  using L = Lanes<Acc>;
  using V = typename L::V;
  using Row = RowStatistics<T, A, SECOND>;
  constexpr int R = A ? L::W : 2;  // rows that are finished together
  const int anatomies = A ? A : g.A;
  const int sums = MomentSet<A, SECOND>::sums_of(anatomies);
  Row rows[R] = {};  // those beyond the last one are taken along
  Acc shift[L::W];
  typename LaneIndex<Acc>::type lane;
  for (int i = 0; i < L::W; ++i)
    lane[i] = i;
  for (int64_t row = begin; row < end;) {
    const int64_t n = row / g.C, c = row % g.C;
    int count = R;
    if (end - row < count) count = static_cast<int>(end - row);
    if (g.C - c < count) count = static_cast<int>(g.C - c);
    const T* x = static_cast<const T*>(g.x_data) + n * g.x.n + c * g.x.c;
    const Acc* mask = static_cast<const Acc*>(g.mask) + n * anatomies * g.S;
    for (int i = 0; i < count; ++i)
      sum_row<T, A, SECOND, false>(x + i * g.x.c, mask, g.S, anatomies, Acc(0), g.argmax != nullptr, rows + i);
    V total[Row::sums], top[Row::maxima], column[R];
    for (int i = 0; i < L::W; ++i)
      shift[i] = 0;
    for (bool about_zero = true;; about_zero = false) {
      AXNET_ROLLED
      for (int k = 0; k < sums; ++k) {  // lane i: sum k of row i
        for (int i = 0; i < R; ++i)
          column[i] = rows[i].sum[k];
        total[k] = reduce_lanes<Acc, false, R>(column);
      }
      uint32_t again = 0;
      if constexpr (SECOND)
        if (about_zero)
          again = bits_of<Acc>(far_from_zero(total[0], total[1], static_cast<Acc>(g.S))) & ((1u << count) - 1u);
      if (!again) break;
      for (; again; again &= again - 1) {
        const int i = __builtin_ctz(again);
        shift[i] = sample_mean(x + i * g.x.c, 1, g.S);
        sum_row_again<kRarely<A>>(x + i * g.x.c, mask, g.S, anatomies, shift[i], g.argmax != nullptr, rows[i].sum,
                                  rows[i].peak, rows[i].stamp);
      }
    }
    AXNET_ROLLED
    for (int k = 0; k <= anatomies; ++k) {
      for (int i = 0; i < R; ++i)
        column[i] = rows[i].peak[k];
      top[k] = reduce_lanes<Acc, true, R>(column);
    }
    const bool brief = g.S <= kGranule * L::W;
    const V proof = not_a_number<A, SECOND>(total, anatomies);
    if (g.argmax && brief) {
      AXNET_ROLLED
      for (int k = 0; k <= anatomies; ++k) {
        for (int i = 0; i < R; ++i) {
          const Row& r = rows[i];
          const V place = __builtin_convertvector(r.stamp[k] * static_cast<int32_t>(L::W) + lane, V);
          column[i] = r.peak[k] == splat<Acc>(top[k][i]) ? -place : splat<Acc>(-__builtin_inf());
        }
        const V first = -reduce_lanes<Acc, true, R>(column);
        for (int i = 0; i < count; ++i)
          g.argmax[(n * (1 + anatomies) + k) * g.C + c + i] = static_cast<int32_t>(first[i]);
      }
    }
    for (int i = 0; i < count; ++i) {
      const T* own = x + i * g.x.c;
      const bool finite = proof[i] == 0;
      if (finite && (brief || !g.argmax)) continue;
      for (int k = 0; k <= anatomies; ++k) {
        const Acc* m = k ? mask + (k - 1) * g.S : nullptr;
        int32_t at = 0;
        if (finite) {
          int64_t granule = g.S;
          for (uint32_t hits = equal_bits<Acc>(rows[i].peak[k], splat<Acc>(top[k][i])); hits; hits &= hits - 1) {
            const int64_t stamp = rows[i].stamp[k][__builtin_ctz(hits)];
            granule = stamp < granule ? stamp : granule;
          }
          at = first_position<T, Acc>(own, m, granule * kGranule * L::W, g.S, top[k][i]);
        } else {
          Acc largest;
          maxima_with_nan(own, 1, m, g.S, &largest, &at);
          top[k][i] = largest;
        }
        if (g.argmax) g.argmax[(n * (1 + anatomies) + k) * g.C + c + i] = at;
      }
    }
    finish_channels<A, SECOND, Acc>(g, n, c, count, L::load(shift), total, top);
    row += count;
  }
}
