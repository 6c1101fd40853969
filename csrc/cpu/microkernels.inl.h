// The three small matrix products that PWAP consists of, for either layout. X is a panel of rows (NCHW: channels of
// pixels; channels_last: pixels of channels) of any storage type; everything else is of the accumulation type.
//
//   project  out[k][l]  = sum_r W[r][k] X[r][l]         W broadcast, X by vectors; rows in chunks that stay in L1
//   contract out[r][k] += sum_l P[k][l] X[r][l]         few maps: vectors along l, one transposed reduction;
//                                                       many maps: X broadcast, maps in the lanes
//   expand   dX[r][l]   = sum_j B[r][j] Q[j][l]         B broadcast, Q by vectors
//
// project and few-map contract take the maps in blocks of 14 (= NIH's findings), 8, 4, 2, 1; the block decides how many
// vectors of l or rows ride along, so that up to 28 sums are held in registers (AVX-512) at any K.

template <int K>
struct Panel {
  // vectors of l (project) or rows (contract) beside K maps; 16 registers leave room for half as much
  static constexpr int wide = K >= 8 ? 2 : K >= 4 ? 4 : K == 2 ? 6 : 8;
  static constexpr int beside = AXNET_VECTOR_BYTES == 64 ? wide : K >= 8 ? 1 : wide / 2;
};

// f(block constant, first map): covers [0, K)
template <int K>
struct Maps {
  static constexpr int value = K;
};
template <class F>
AXNET_INLINE void for_map_blocks(int K, const F& f) {
  int k = 0;
  for (; K - k >= 14; k += 14)
    f(Maps<14>{}, k);
  for (; K - k >= 8; k += 8)
    f(Maps<8>{}, k);
  for (; K - k >= 4; k += 4)
    f(Maps<4>{}, k);
  for (; K - k >= 2; k += 2)
    f(Maps<2>{}, k);
  if (K - k == 1) f(Maps<1>{}, k);
}

constexpr int64_t kRowChunk = 32;

template <class T, int K, int U>
AXNET_INLINE void project_strip(const T* x, int64_t stride, int64_t rows, const acc_t<T>* w, int64_t w_stride,
                                acc_t<T>* out, int64_t out_stride, bool first, int lanes) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  V sum[K][U];
  for (int k = 0; k < K; ++k)
    for (int u = 0; u < U; ++u)
      sum[k][u] = first                      ? V{}
                  : (U == 1 && lanes < L::W) ? Lanes<Acc>::load_n(out + k * out_stride, lanes)
                                             : Lanes<Acc>::load(out + k * out_stride + u * L::W);
  for (int64_t r = 0; r < rows; ++r) {
    V v[U];
    for (int u = 0; u < U; ++u)
      v[u] = (U == 1 && lanes < L::W) ? L::load_n(x + r * stride, lanes) : L::load(x + r * stride + u * L::W);
    __builtin_prefetch(x + (r + kRowChunk) * stride);
    if constexpr (U * sizeof(V) > 64) __builtin_prefetch(x + (r + kRowChunk) * stride + 64 / sizeof(T));
    for (int k = 0; k < K; ++k) {
      const V weight = splat<Acc>(w[r * w_stride + k]);
      for (int u = 0; u < U; ++u)
        sum[k][u] += weight * v[u];
    }
  }
  for (int k = 0; k < K; ++k)
    for (int u = 0; u < U; ++u) {
      if (U == 1 && lanes < L::W) Lanes<Acc>::store_n(out + k * out_stride, sum[k][u], lanes);
      else Lanes<Acc>::store(out + k * out_stride + u * L::W, sum[k][u]);
    }
}

// W [rows, w_stride], out [K, out_stride]
template <class T>
void project(const T* x, int64_t stride, int64_t rows, int64_t length, const acc_t<T>* w, int64_t w_stride, int K,
             acc_t<T>* out, int64_t out_stride, bool fresh) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; r += kRowChunk) {
    const int64_t chunk = rows - r < kRowChunk ? rows - r : kRowChunk;
    const bool first = fresh && r == 0;
    for_map_blocks(K, [&](auto block, int k) {
      constexpr int B = decltype(block)::value, U = Panel<B>::beside;
      const acc_t<T>* wk = w + r * w_stride + k;
      acc_t<T>* o = out + k * out_stride;
      int64_t l = 0;
      for (; l + U * L::W <= length; l += U * L::W)
        project_strip<T, B, U>(x + r * stride + l, stride, chunk, wk, w_stride, o + l, out_stride, first, L::W);
      for (; l < length; l += L::W)
        project_strip<T, B, 1>(x + r * stride + l, stride, chunk, wk, w_stride, o + l, out_stride, first,
                               length - l < L::W ? static_cast<int>(length - l) : L::W);
    });
  }
}

template <class T, int K, int U>
AXNET_INLINE void contract_rows(const T* x, int64_t stride, int64_t length, const acc_t<T>* p, int64_t p_stride,
                                acc_t<T>* out, int64_t out_stride) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  V sum[K * U] = {};  // row u of map k at k * U + u
  int64_t l = 0;
  for (; l + L::W <= length; l += L::W) {
    V v[U];
    for (int u = 0; u < U; ++u)
      v[u] = L::load(x + u * stride + l);
    for (int k = 0; k < K; ++k) {
      const V share = Lanes<Acc>::load(p + k * p_stride + l);
      for (int u = 0; u < U; ++u)
        sum[k * U + u] += share * v[u];
    }
  }
  if (l < length) {
    const int rest = static_cast<int>(length - l);
    for (int k = 0; k < K; ++k) {
      const V share = Lanes<Acc>::load_n(p + k * p_stride + l, rest);
      for (int u = 0; u < U; ++u)
        sum[k * U + u] += share * L::load_n(x + u * stride + l, rest);
    }
  }
  Acc lanes[K * U];
  reduce_to<Acc, false, K * U>(sum, lanes);
  for (int k = 0; k < K; ++k)
    for (int u = 0; u < U; ++u)
      out[u * out_stride + k] += lanes[k * U + u];
}

// Few maps: P [K, p_stride] by vectors along l. out [rows, out_stride].
template <class T>
void contract_along(const T* x, int64_t stride, int64_t rows, int64_t length, const acc_t<T>* p, int64_t p_stride,
                    int K, acc_t<T>* out, int64_t out_stride) {
  for_map_blocks(K, [&](auto block, int k) {
    constexpr int B = decltype(block)::value, U = Panel<B>::beside;
    int64_t r = 0;
    for (; r + U <= rows; r += U)
      contract_rows<T, B, U>(x + r * stride, stride, length, p + k * p_stride, p_stride, out + r * out_stride + k,
                             out_stride);
    for (; r < rows; ++r)
      contract_rows<T, B, 1>(x + r * stride, stride, length, p + k * p_stride, p_stride, out + r * out_stride + k,
                             out_stride);
  });
}

template <class T, int R, int U>
AXNET_INLINE void contract_block(const T* x, int64_t stride, int64_t length, const acc_t<T>* q, int64_t q_stride,
                                 acc_t<T>* out, int64_t out_stride) {
  using Acc = acc_t<T>;
  using LA = Lanes<Acc>;
  using V = typename LA::V;
  constexpr int64_t strip = 64;
  Acc wide[R][sizeof(T) == sizeof(Acc) ? 1 : strip];  // a narrow type is widened once, not once per broadcast
  V sum[R][U] = {};
  for (int64_t l0 = 0; l0 < length; l0 += strip) {
    const int64_t span = length - l0 < strip ? length - l0 : strip;
    if constexpr (sizeof(T) != sizeof(Acc))
      for (int r = 0; r < R; ++r)
        for (int64_t l = 0; l < span; l += LA::W) {
          const T* from = x + r * stride + l0 + l;
          LA::store(wide[r] + l,
                    span - l < LA::W ? Lanes<T>::load_n(from, static_cast<int>(span - l)) : Lanes<T>::load(from));
        }
    for (int64_t l = 0; l < span; ++l) {
      V v[U];
      for (int u = 0; u < U; ++u)
        v[u] = LA::load(q + (l0 + l) * q_stride + u * LA::W);
      for (int r = 0; r < R; ++r) {
        Acc element;
        if constexpr (sizeof(T) == sizeof(Acc)) element = x[r * stride + l0 + l];
        else element = wide[r][l];
        for (int u = 0; u < U; ++u)
          sum[r][u] += splat<Acc>(element) * v[u];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < U; ++u)
      LA::store(out + r * out_stride + u * LA::W, LA::load(out + r * out_stride + u * LA::W) + sum[r][u]);
}

// Many maps: Q [length, q_stride] and out [rows, out_stride] hold the maps in the lanes, padded to `padded` columns, so
// nothing is reduced across lanes and any length is taken as it is.
template <class T>
void contract_across(const T* x, int64_t stride, int64_t rows, int64_t length, const acc_t<T>* q, int64_t q_stride,
                     int padded, acc_t<T>* out, int64_t out_stride) {
  constexpr int W = Lanes<T>::W, R = 10;  // rows at a step of 4 KiB share a cache set: fewer than its ways
  for (int k = 0; k < padded; k += W) {
    int64_t r = 0;
    for (; r + R <= rows; r += R)
      contract_block<T, R, 1>(x + r * stride, stride, length, q + k, q_stride, out + r * out_stride + k, out_stride);
    for (; r + 4 <= rows; r += 4)
      contract_block<T, 4, 1>(x + r * stride, stride, length, q + k, q_stride, out + r * out_stride + k, out_stride);
    for (; r < rows; ++r)
      contract_block<T, 1, 1>(x + r * stride, stride, length, q + k, q_stride, out + r * out_stride + k, out_stride);
  }
}

template <class T, int R, int U>
AXNET_INLINE void expand_block(const acc_t<T>* b0, const acc_t<T>* b1, int64_t b_stride, const acc_t<T>* q0,
                               const acc_t<T>* q1, int64_t q_stride, int K, T* dx, int64_t stride, int lanes) {
  using L = Lanes<T>;
  using Acc = acc_t<T>;
  using V = typename L::V;
  V sum[R][U] = {};
  for (int half = 0; half < 2; ++half) {
    const Acc *b = half ? b1 : b0, *q = half ? q1 : q0;
    for (int j = 0; j < K; ++j) {
      V v[U];
      for (int u = 0; u < U; ++u)
        v[u] = (U == 1 && lanes < L::W) ? Lanes<Acc>::load_n(q + j * q_stride, lanes)
                                        : Lanes<Acc>::load(q + j * q_stride + u * L::W);
      for (int r = 0; r < R; ++r) {
        const V weight = splat<Acc>(b[r * b_stride + j]);
        for (int u = 0; u < U; ++u)
          sum[r][u] += weight * v[u];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < U; ++u) {
      if (U == 1 && lanes < L::W) L::store_n(dx + r * stride, sum[r][u], lanes);
      else L::store(dx + r * stride + u * L::W, sum[r][u]);
    }
}

// The sum of two products, B0 with Q0 and B1 with Q1.
template <class T>
void expand(const acc_t<T>* b0, const acc_t<T>* b1, int64_t b_stride, const acc_t<T>* q0, const acc_t<T>* q1,
            int64_t q_stride, int K, T* dx, int64_t stride, int64_t rows, int64_t length) {
  using L = Lanes<T>;
  constexpr int R = AXNET_VECTOR_BYTES == 64 ? 6 : 4, U = AXNET_VECTOR_BYTES == 64 ? 4 : 2;
  int64_t r = 0;
  auto strip = [&](auto height) {
    constexpr int H = decltype(height)::value;
    int64_t l = 0;
    for (; l + U * L::W <= length; l += U * L::W)
      expand_block<T, H, U>(b0 + r * b_stride, b1 + r * b_stride, b_stride, q0 + l, q1 + l, q_stride, K,
                            dx + r * stride + l, stride, L::W);
    for (; l < length; l += L::W)
      expand_block<T, H, 1>(b0 + r * b_stride, b1 + r * b_stride, b_stride, q0 + l, q1 + l, q_stride, K,
                            dx + r * stride + l, stride, length - l < L::W ? static_cast<int>(length - l) : L::W);
    r += H;
  };
  while (r + R <= rows)
    strip(Maps<R>{});
  while (r < rows)
    strip(Maps<1>{});
}
