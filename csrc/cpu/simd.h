// Short vectors of the accumulation type, written with the compilers' vector extensions so that one source serves
// every instruction set. Included once per instruction set, inside its namespace (see isa.inl.h).
//
//   Lanes<T>::V      AXNET_VECTOR_BYTES of float (T = float, BFloat16, Half) or double (T = double)
//   load / store     W elements of T <-> V;  the _n forms move the first n lanes, the others read as zero

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(AXNET_VECTOR_BYTES)));
  static constexpr int width = AXNET_VECTOR_BYTES / sizeof(A);
};

// As many int32 as a vector of A has lanes.
template <class A>
struct IndexOf;
template <>
struct IndexOf<float> {
  typedef int32_t type __attribute__((vector_size(AXNET_VECTOR_BYTES)));
};
template <>
struct IndexOf<double> {
  typedef int32_t type __attribute__((vector_size(AXNET_VECTOR_BYTES / 2)));
};

#define AXNET_INLINE inline __attribute__((always_inline))

// A kernel: inlined beside its siblings it would be a part of one huge function, which takes longer to compile and to
// run.
#define AXNET_KERNEL __attribute__((noinline)) void

// What rarely runs, in one form for all callers: neither inlined nor copied for the arguments that they pass.
#if defined(__clang__)
#define AXNET_APART __attribute__((noinline)) void
#else
#define AXNET_APART __attribute__((noinline, noclone)) void
#endif

// Before a loop of known length whose body is long: unrolled it would be most of the code, and no faster.
#if defined(__clang__)
#define AXNET_ROLLED _Pragma("nounroll")
#else
#define AXNET_ROLLED _Pragma("GCC unroll 1")
#endif

// Integers as wide as A, one per lane.
template <class A>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  typedef int32_t type __attribute__((vector_size(AXNET_VECTOR_BYTES)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t type __attribute__((vector_size(AXNET_VECTOR_BYTES)));
};

// x - 0 is x for every x, so this is one broadcast (0 + x is not: it turns -0 into 0).
template <class A>
AXNET_INLINE typename VectorOf<A>::type splat(A value) {
  return value - typename VectorOf<A>::type{};
}

template <class V>
AXNET_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
AXNET_INLINE VectorOf<float>::type vmax(VectorOf<float>::type a, VectorOf<float>::type b) {
  return (VectorOf<float>::type)_mm512_max_ps((__m512)a, (__m512)b);
}
#elif defined(__x86_64__) && AXNET_VECTOR_BYTES == 32
AXNET_INLINE VectorOf<float>::type vmax(VectorOf<float>::type a, VectorOf<float>::type b) {
  return (VectorOf<float>::type)_mm256_max_ps((__m256)a, (__m256)b);
}
#elif defined(__x86_64__)
AXNET_INLINE VectorOf<float>::type vmax(VectorOf<float>::type a, VectorOf<float>::type b) {
  return (VectorOf<float>::type)_mm_max_ps((__m128)a, (__m128)b);
}
#endif

// One bit per lane of a comparison.
template <class A>
AXNET_INLINE uint32_t bits_of(typename LaneIndex<A>::type hit) {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
  return sizeof(A) == 4 ? _mm512_movepi32_mask((__m512i)hit) : _mm512_movepi64_mask((__m512i)hit);
#elif defined(__x86_64__) && AXNET_VECTOR_BYTES == 32
  return static_cast<uint32_t>(sizeof(A) == 4 ? _mm256_movemask_ps((__m256)hit) : _mm256_movemask_pd((__m256d)hit));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(sizeof(A) == 4 ? _mm_movemask_ps((__m128)hit) : _mm_movemask_pd((__m128d)hit));
#else
  uint32_t bits = 0;
  for (int i = 0; i < VectorOf<A>::width; ++i)
    bits |= (hit[i] ? 1u : 0u) << i;
  return bits;
#endif
}

// One bit per lane where a equals b.
template <class A>
AXNET_INLINE uint32_t equal_bits(typename VectorOf<A>::type a, typename VectorOf<A>::type b) {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
  else return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
#else
  return bits_of<A>(a == b);
#endif
}

template <class T>
struct Lanes {
  using A = acc_t<T>;
  using V = typename VectorOf<A>::type;
  static constexpr int W = VectorOf<A>::width;

  static AXNET_INLINE V load(const T* p) {
    V v;
    if constexpr (sizeof(T) == sizeof(A)) {
      __builtin_memcpy(&v, p, sizeof(V));
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      typedef uint16_t Narrow __attribute__((vector_size(AXNET_VECTOR_BYTES / 2)));
      typedef uint32_t Wide __attribute__((vector_size(AXNET_VECTOR_BYTES)));
      Narrow raw;
      __builtin_memcpy(&raw, p, sizeof(raw));
      Wide bits = __builtin_convertvector(raw, Wide) << 16;
      __builtin_memcpy(&v, &bits, sizeof(v));
    } else {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
      v = (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__x86_64__) && AXNET_VECTOR_BYTES == 32
      v = (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
      for (int i = 0; i < W; ++i)
        v[i] = static_cast<float>(p[i]);
#endif
    }
    return v;
  }

  static AXNET_INLINE void store(T* p, V v) {
    if constexpr (sizeof(T) == sizeof(A)) {
      __builtin_memcpy(p, &v, sizeof(V));
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      typedef uint16_t Narrow __attribute__((vector_size(AXNET_VECTOR_BYTES / 2)));
      typedef uint32_t Wide __attribute__((vector_size(AXNET_VECTOR_BYTES)));
      Wide bits;
      __builtin_memcpy(&bits, &v, sizeof(v));
      Wide rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
      Wide nan = (Wide)(v != v);
      rounded = (rounded & ~nan) | (0x7FC0u & nan);
      Narrow out = __builtin_convertvector(rounded, Narrow);
      __builtin_memcpy(p, &out, sizeof(out));
    } else {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__x86_64__) && AXNET_VECTOR_BYTES == 32
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
      for (int i = 0; i < W; ++i)
        p[i] = T(static_cast<float>(v[i]));
#endif
    }
  }

  static AXNET_INLINE V load_n(const T* p, int n) {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<T, float>) return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#endif
    T buffer[W];
    __builtin_memset(static_cast<void*>(buffer), 0, sizeof(buffer));
    for (int i = 0; i < n; ++i)
      buffer[i] = p[i];
    return load(buffer);
  }

  static AXNET_INLINE void store_n(T* p, V v, int n) {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<T, float>) {
      _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
      return;
    }
#endif
    T buffer[W];
    store(buffer, v);
    for (int i = 0; i < n; ++i)
      p[i] = buffer[i];
  }

  // Elements until the next address that a streaming store accepts.
  static constexpr bool can_stream = sizeof(T) == sizeof(A);
  static AXNET_INLINE int64_t to_aligned(const T* p) {
    const uintptr_t over = reinterpret_cast<uintptr_t>(p) % sizeof(V);
    return over ? static_cast<int64_t>((sizeof(V) - over) / sizeof(T)) : 0;
  }
  // A store that bypasses the caches (and needs no read of the line first); p is aligned to a vector.
  static AXNET_INLINE void stream(T* p, V v) {
#if defined(__x86_64__) && AXNET_VECTOR_BYTES == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__x86_64__) && AXNET_VECTOR_BYTES == 32
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
    store(p, v);
#endif
  }

  // After streaming stores, before another thread is told that they are done: they pass no other store by themselves.
  static AXNET_INLINE void end_stream() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }

  // value in the first n lanes, other in the rest
  static AXNET_INLINE V first_n(V value, A other, int n) {
    using Index = typename LaneIndex<A>::type;
    Index here;
    for (int i = 0; i < W; ++i)
      here[i] = i;  // a constant
    const Index end = Index{} + n;
    return here < end ? value : splat(other);
  }
};

// Lanes of a and b, which are counted on from those of a.
template <int... AT, class V>
AXNET_INLINE V pick(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, AT...);
#else
  using A = std::decay_t<decltype(a[0])>;
  using Index = typename LaneIndex<A>::type;
  return __builtin_shuffle(a, b, Index{AT...});
#endif
}

// Sums (or maxima) of up to W vectors at once: a tree of two-source shuffles, so K horizontal reductions cost about 3K
// instructions instead of 8K. Lane k of the result is the reduction of v[k].
template <class V, int G, int... I>
AXNET_INLINE V take_low(V a, V b, std::integer_sequence<int, I...>) {
  return pick<((I / (G / 2)) * G + I % (G / 2))...>(a, b);
}
template <class V, int G, int... I>
AXNET_INLINE V take_high(V a, V b, std::integer_sequence<int, I...>) {
  return pick<((I / (G / 2)) * G + I % (G / 2) + G / 2)...>(a, b);
}

template <class V, int W, bool MAX, int G, int K>
AXNET_INLINE V reduce_tree(const V* v) {
  if constexpr (G == 1) {
    return v[0];
  } else {
    using Index = std::make_integer_sequence<int, W>;
    constexpr int H = (K + 1) / 2;
    V merged[H];
    for (int i = 0; i < H; ++i) {
      const V& a = v[2 * i];
      const V& b = (2 * i + 1 < K) ? v[2 * i + 1] : a;
      V low = take_low<V, G>(a, b, Index{}), high = take_high<V, G>(a, b, Index{});
      merged[i] = MAX ? vmax(low, high) : low + high;
    }
    return reduce_tree<V, W, MAX, G / 2, H>(merged);
  }
}

// K <= W vectors -> one vector whose lane k holds the reduction of v[k]
template <class A, bool MAX, int K>
AXNET_INLINE typename VectorOf<A>::type reduce_lanes(const typename VectorOf<A>::type* v) {
  constexpr int W = VectorOf<A>::width;
  static_assert(K <= W, "more vectors than lanes");
  return reduce_tree<typename VectorOf<A>::type, W, MAX, W, K>(v);
}

template <class A, bool MAX, int K>
AXNET_INLINE void reduce_to(const typename VectorOf<A>::type* v, A* out) {
  constexpr int W = VectorOf<A>::width;
  if constexpr (K <= W) {
    auto r = reduce_lanes<A, MAX, K>(v);
    for (int i = 0; i < K; ++i)
      out[i] = r[i];
  } else {
    reduce_to<A, MAX, W>(v, out);
    reduce_to<A, MAX, K - W>(v + W, out + W);
  }
}

// e^x, |relative error| < 2e-7 for float; flushes to 0 below -87 (callers pass x <= 0 where that is the right limit)
AXNET_INLINE VectorOf<float>::type vexp(VectorOf<float>::type x) {
  typedef int32_t Int __attribute__((vector_size(AXNET_VECTOR_BYTES)));
  using V = VectorOf<float>::type;
  V low = splat(-87.3f), high = splat(88.0f);
  Int tiny = x < low;
  V clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  V shifted = clamped * 1.44269504088896341f + 12582912.0f;  // round to nearest by the 1.5 * 2^23 trick
  V n = shifted - 12582912.0f;
  V r = clamped - n * 0.693145751953125f;  // Cody-Waite: ln 2 in two parts
  r = r - n * 1.42860682030941723212e-6f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Int exponent = (__builtin_convertvector(n, Int) + 127) << 23;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  V result = p * scale;
  V nan = x;
  result = tiny ? V{} : result;
  return (x != x) ? nan : result;
}
AXNET_INLINE VectorOf<double>::type vexp(VectorOf<double>::type x) {
  for (int i = 0; i < VectorOf<double>::width; ++i)
    x[i] = __builtin_exp(x[i]);
  return x;
}
