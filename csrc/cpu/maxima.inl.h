// The maxima of a row, of x and of every m_a x, and their first positions: a lane whose maximum rose takes the number
// of the pixel (channels_last), of the vector (short rows), or, cheaper, of the granule of kGranule vectors (long
// rows), so that only one granule is searched afterwards.

constexpr int64_t kGranule = 4;  // its comparisons fill one word of bits

template <class T>
constexpr int64_t granule_of(int64_t S) {
  return (S <= kGranule * Lanes<T>::W ? 1 : kGranule) * Lanes<T>::W;
}

// First position in the granule from `from` on where m x equals its maximum, without a branch that could be guessed
// wrong.
template <class T, class Acc>
AXNET_INLINE int32_t first_position(const T* x, const Acc* mask, int64_t from, int64_t S, Acc top) {
  using L = Lanes<T>;
  uint64_t hits = 0;
  for (int64_t j = 0, s = from; j < kGranule && s < S; ++j, s += L::W) {
    const int lanes = S - s < L::W ? static_cast<int>(S - s) : L::W;
    auto v = lanes == L::W ? L::load(x + s) : L::load_n(x + s, lanes);
    if (mask) v = v * (lanes == L::W ? Lanes<Acc>::load(mask + s) : Lanes<Acc>::load_n(mask + s, lanes));
    hits |= static_cast<uint64_t>(equal_bits<Acc>(v, splat(top)) & ((1u << lanes) - 1u)) << (j * L::W);
  }
  return static_cast<int32_t>(from) + (hits ? __builtin_ctzll(hits) : 0);
}

// The maxima of a row and their positions, plainly: NaN counts as the largest value, as in torch.max. Called where a
// sum is not finite.
template <class T, class Acc>
void maxima_with_nan(const T* x, int64_t stride, const Acc* mask, int64_t S, Acc* top, int32_t* at) {
  *top = -__builtin_inf();
  *at = 0;
  for (int64_t s = 0; s < S; ++s) {
    const Acc v = static_cast<Acc>(x[s * stride]) * (mask ? mask[s] : Acc(1));
    if (v > *top || v != v) {
      *top = v;
      *at = static_cast<int32_t>(s);
      if (v != v) return;
    }
  }
}

// 0 in the lanes where x and every m_a x sum to a finite number, so that no NaN lies in x or in a mask; else NaN.
template <int A, bool SECOND, class V>
AXNET_INLINE V not_a_number(const V* total, int count) {
  V sum = total[0];
  for (int a = 0; a < (A ? A : count); ++a)
    sum += total[(SECOND ? 2 : 1) + a];
  return sum - sum;
}
