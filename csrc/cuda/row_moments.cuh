// What a warp does with 16 rows of bfloat16 in NCHW on the matrix units, up to the places of their maxima
// (masked_moments_matrix.cu). Lane 4 g + t has eight pixels of rows g and g + 8 in one go.
#pragma once

#include "cuda/basis.cuh"
#include "cuda/tops.cuh"

namespace axnet::cuda {

constexpr int kRows = 16;  // of a warp

// Groups of rows that a block takes one after the other for one basis, of N images of `groups` each: an equal part of
// an image's, while a GPU's multiprocessors (132 of an H200) have two blocks each.
inline int groups_for_a_basis(int64_t N, int64_t groups) {
  int own = 1;
  for (int more = 2; more <= std::min(ceil_div(N * groups, 264), groups); ++more)
    if (groups % more == 0) own = more;
  return own;
}

// PLACES: of maxima too.
template <int B, bool FULL, bool PLACES = FULL>
struct RowWork {
  using T = BFloat16;
  using Shape = Basis<B, FULL>;
  static constexpr int tiles = (2 * (1 + B) + 7) / 8;  // of 8 columns: 1, m_a, each with what was left out

  unsigned char* shared;
  int pitch;                                                   // bytes from a row of the basis to the next
  int first_part[tiles], high_part = 0, left_part = 0, masks;  // bytes: where the lane's part of its rows begins
  float sum[tiles][4], squares[4];
  Tops<PLACES> tops[2][1 + B];

  __device__ RowWork(unsigned char* shared, int pitch) : shared(shared), pitch(2 * pitch) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4, square = g < Shape::rows ? g : 0;
    auto part_of = [&](int row) {
      const int at = row * this->pitch + 16 * t;
      return B > 3 ? at : again(at);  // of many anatomies there are no registers for them
    };
#pragma unroll
    for (int k = 0; k < tiles; ++k)
      first_part[k] = part_of(Shape::first_pair(8 * k + g));
    if constexpr (FULL) high_part = part_of(square), left_part = part_of(Shape::rows + square);
    masks = part_of(1);
  }
  __device__ void begin() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      squares[i] = 0;
#pragma unroll
      for (int k = 0; k < tiles; ++k)
        sum[k][i] = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k <= B; ++k)
        tops[r][k] = Tops<PLACES>{};
  }
  // What the products take of 32 pixels of the basis.
  struct Parts {
    uint32_t first[tiles][4], high[4], left[4];
  };
  // at: bytes of a row of the basis before them
  __device__ Parts parts(int at) const {
    Parts b;
#pragma unroll
    for (int k = 0; k < tiles; ++k)
      load_shared(shared + (first_part[k] + at), b.first[k]);
    if constexpr (FULL) load_shared(shared + (high_part + at), b.high), load_shared(shared + (left_part + at), b.left);
    return b;
  }
  // words: of 32 pixels as the products want them: half of them, row i % 2, a pair of pixels
  __device__ void add(const uint32_t (&words)[2][4], int at) { add(words, parts(at)); }
  __device__ void add(const uint32_t (&words)[2][4], const Parts& b) {
#pragma unroll
    for (int k = 0; k < tiles; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        multiply_add<T>(sum[k], words[h], b.first[k][2 * h], b.first[k][2 * h + 1]);
    if constexpr (FULL) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          high[i] = product(words[h][i], words[h][i]), low[i] = left_out(words[h][i], words[h][i], high[i]);
        multiply_add<T>(squares, high, b.high[2 * h], b.high[2 * h + 1]);
        multiply_add<T>(squares, high, b.left[2 * h], b.left[2 * h + 1]);
        multiply_add<T>(squares, low, b.high[2 * h], b.high[2 * h + 1]);
      }
    }
  }
  __device__ void see(const uint32_t (&words)[2][4], const unsigned char* masks, int apart, int unit) {
    see(reinterpret_cast<const uint32_t (&)[1][2][4]>(words), masks, apart, unit);
  }
  // Of HALVES times 32 pixels of a unit, the ONLY ones of a map; masks: theirs, `apart` bytes from an anatomy's to the
  // next.
  template <bool ONLY = false, int HALVES>
  __device__ void see(const uint32_t (&words)[HALVES][2][4], const unsigned char* masks, int apart, int unit) {
    const uint32_t number = static_cast<uint32_t>(unit) * 0x10001u;
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      uint32_t m[HALVES][4];
#pragma unroll
      for (int h = 0; h < HALVES; ++h)
        if (k > 0) load_shared(masks + (k - 1) * apart + h * kChunk * 2, m[h]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t best = 0;
#pragma unroll
        for (int i = 0; i < 4 * HALVES; ++i) {
          const uint32_t v = words[i / 4][i / 2 % 2][i % 2 * 2 + r], y = k > 0 ? product(v, m[i / 4][i % 4]) : v;
          best = i ? greater_of(best, y) : y;
        }
        if (ONLY) tops[r][k].top = best;
        else tops[r][k].see(best, number, k == 0);
      }
    }
  }
};

// The place of the largest of the lanes' values, the first one of equal ones.
__device__ inline int first_of_largest(float top, int at) {
  int key;
  top += 0.f;  // -0 equals 0
  memcpy(&key, &top, sizeof(key));
  key ^= key >> 31 & 0x7fffffff;
  const int most = __reduce_max_sync(0xffffffffu, key);
  return __reduce_min_sync(0xffffffffu, key == most ? at : std::numeric_limits<int>::max());
}

// The place of the highest bit, -1 where none is set.
__device__ inline unsigned highest(unsigned bits) { return static_cast<unsigned>(31 - __clz(static_cast<int>(bits))); }

// Where the maxima of a warp's rows stand, up to 32 rows, of which each lane has one; for maps of whole units of 64
// pixels, whose masks stand in shared memory. A slot (tops.cuh) has 8 of a unit's pixels. A lane looks at the row's
// slot at the first unit in which its maximum stands. If no other slot, no later unit and no other of the pixels there
// has a product that is rounded to the same, this is the place; else the warp goes over all of the row's slots of that
// maximum by the exact products.
template <int B>
struct UnitSearch {
  using T = BFloat16;
  static constexpr int unit = 64, look = 8, words = 2 * (1 + B) * 3 * kWarp;  // words: of 16 rows in shared memory

  uint32_t* slots;
  unsigned step;
  const float* mask;        // of the image, [B, S]
  const uint16_t* rounded;  // the same in shared memory, `pitch` apart
  int S, pitch;

  // slots: of all warps, `together` groups of 16 rows each
  __device__ UnitSearch(unsigned char* slots, int together, const MomentsPlan& p, const float* mask,
                        const Basis<B, true>& basis)
      : slots(reinterpret_cast<uint32_t*>(slots) + threadIdx.x / kWarp * (words * together)),
        step(static_cast<unsigned>(p.x.c)),
        mask(mask),
        rounded(basis.row(1)),
        S(static_cast<int>(p.S)),
        pitch(basis.pitch) {}
  __device__ uint32_t* tops_of(unsigned row, int k) const {
    return slots + (row / 8 * (1 + B) + k) * 3 * kWarp + row % 8 * 4;
  }
  __device__ void keep(const Tops<true> (&tops)[2][1 + B], unsigned row) const {
    uint32_t* to = tops_of(row, 0) + threadIdx.x % kWarp;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k <= B; ++k, to += 3 * kWarp) {
        to[0] = tops[r][k].top, to[kWarp] = tops[r][k].first;
        if (k > 0) to[2 * kWarp] = tops[r][k].last;
      }
  }
  // slot: t + 16 of the upper half
  __device__ static const uint16_t* half_of(const uint32_t* words, unsigned slot) {
    return reinterpret_cast<const uint16_t*>(words) + slot % 16 * 2 + slot / 16;
  }
  // The first of the pixels of row `row` with the largest exact product, by the whole warp.
  __device__ int exact_place(const T* x, unsigned row, int k, uint32_t most) const {
    const unsigned lane = threadIdx.x % kWarp, t = lane / 8, half = lane / 4 % 2, slot = t + 16 * half;
    const uint32_t* own = tops_of(row, k);
    const bool open = above<true>(static_cast<uint32_t>(*half_of(own, slot)), most) & 1;
    const bool again = k > 0 && most << 17 != 0;  // X itself is exact, and so is a zero
    const int first = *half_of(own + kWarp, slot), last = again ? *half_of(own + 2 * kWarp, slot) : first;
    const T* pixels = x + static_cast<uint64_t>(row) * step;
    Spot best;
#pragma unroll 1
    for (int u = first; __ballot_sync(0xffffffffu, open && u <= last) != 0; ++u)
#pragma unroll
      for (int i = 0; i < look / 4; ++i) {
        const int s = u * unit + static_cast<int>(2 * t + half + 8 * (lane % 4)) + kChunk * i;
        if (open && u <= last && s < S)
          best.see((k > 0 ? as_held<T>(mask[(k - 1) * S + s]) : 1.f) * static_cast<float>(pixels[s]), s);
      }
    return first_of_largest(best.top, best.at);
  }

  // found(k, top, place) of the lane's row, of which there are `rows`, the first at x; beyond, of the first one.
  template <class F>
  __device__ void places(const T* x, int rows, const F& found) const {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const unsigned row = lane < rows ? threadIdx.x % kWarp : 0;
    const T* pixels = x + static_cast<uint64_t>(row) * step;
    uint32_t most[1 + B], xs[1 + B][look], ms[1 + B][look];
    int at[1 + B];
    bool sure[1 + B];
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      const uint32_t* own = tops_of(row, 0) + k * 3 * kWarp;
      uint32_t top[4];
      load_shared(own, top);
      most[k] = greater_of(greater_of(top[0], top[1]), greater_of(top[2], top[3]));
      most[k] = greater_of(most[k], most[k] >> 16 | most[k] << 16);
      unsigned open = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        open |= above<true>(top[i], most[k]) & 0x10001u << i;
      const unsigned slot = highest(open) & 19;
      const uint16_t* chunks = half_of(own + kWarp, slot);
      sure[k] = (open & (open - 1)) == 0 && (k == 0 || chunks[2 * kWarp] == chunks[0]);
      at[k] = chunks[0] * unit + static_cast<int>(2 * (slot % 4));
      const auto* pairs = reinterpret_cast<const uint32_t*>(pixels + at[k]);
#pragma unroll
      for (int i = 0; i < look; ++i)
        xs[k][i] = pairs[4 * i];
#pragma unroll
      for (int h = 0; h < look / 4 && k > 0; ++h) {
        uint32_t four[4];
        load_shared(rounded + (k - 1) * pitch + chunks[0] * unit + h * kChunk + 8 * (slot % 4), four);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ms[k][4 * h + i] = four[i];
      }
    }
#pragma unroll
    for (int k = 0; k <= B; ++k) {
      unsigned may = 0;
#pragma unroll
      for (int i = 0; i < look; ++i)
        may |= above<true>(k > 0 ? product(xs[k][i], ms[k][i]) : xs[k][i], most[k]) & 0x10001u << i;
      const unsigned bit = highest(may);
      at[k] += static_cast<int>(bit / 16 % 2 + bit % look * 8);
      const bool tied = lane < rows && !(sure[k] && (may & (may - 1)) == 0);
#pragma unroll 1
      for (unsigned left = __ballot_sync(0xffffffffu, tied); left; left &= left - 1) {
        const int its = __ffs(static_cast<int>(left)) - 1;
        const int s = exact_place(x, static_cast<unsigned>(its), k, __shfl_sync(0xffffffffu, most[k], its));
        if (lane == its) at[k] = s;
      }
      found(k, first_of<T>(most[k]), at[k]);
    }
  }
};

// The sums of a lane's two rows, of which four lanes have the numbers, in the order of Basis::first_pair: to memory.
// Bits of those that must be gone over again. ALL: both rows are there.
template <bool ALL, int B, bool FULL, bool PLACES>
__device__ inline unsigned write_sums(const MomentsPlan& p, float inverse, int bytes, int n, int c,
                                      const RowWork<B, FULL, PLACES>& work) {
  const int C = static_cast<int>(p.C), A = B > 3 ? p.A : B;
  const int t = static_cast<int>(threadIdx.x % 4);
  bool wrong[2] = {};
  auto put = [&](float* rows, bool wanted, int row, float first, float second) {
    float* at = row_at(rows, row, bytes) + c;
    if (wanted && (ALL || c < C)) at[0] = first;
    if (wanted && (ALL || c + 8 < C)) at[8] = second;
  };
  float *descriptors = static_cast<float*>(p.descriptors), *moments = static_cast<float*>(p.moments);
  const int of_descriptors = n * (2 + 2 * A), of_moments = n * moment_rows(B);
#pragma unroll
  for (int k = 0; k < work.tiles; ++k) {
    const int q = 4 * k + t;
    const float first = work.sum[k][0] + work.sum[k][1], second = work.sum[k][2] + work.sum[k][3];
    put(descriptors, q <= A, of_descriptors + q + (q > 0), first * inverse, second * inverse);
    const float sums[2] = {first, second};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float mean = sums[r] * inverse, square = mean * mean;
      // not finite, or far from zero
      float less = sums[r] - sums[r], more = 0;
      if (FULL && t == 0) less = square, more = static_cast<float>(kFar) * (work.squares[2 * r] * inverse - square);
      wrong[r] = wrong[r] || !(less <= more);
    }
    if (!FULL || !p.moments) continue;
    constexpr int shifts = 3 + 2 * B, sums_of_squares = Basis<B, FULL>::rows;
    put(moments, t <= B, of_moments + t + 1 + (t > 0), first, second);
    put(moments, t <= pairs(B), of_moments + (t > 0 ? shifts + t - 1 : 0), 0, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int square = 2 * t + i;
      const int row = square == 0 ? 2 : square <= B ? 2 + B + square : shifts + pairs(B) + square - 1 - B;
      put(moments, square < sums_of_squares, of_moments + row, work.squares[i], work.squares[2 + i]);
    }
  }
  return (wrong[0] ? 1u : 0u) | (wrong[1] ? 2u : 0u);
}

// The sums of up to 32 rows of a warp, which pass through shared memory from the four lanes that have a row's to the
// one that writes them.
template <int B, bool FULL>
struct RowNumbers {
  using Sums = RowSums<B, FULL>;
  static constexpr int pitch = 40, words = Sums::count * pitch;

  float* at;  // [numbers, pitch]

  __device__ explicit RowNumbers(unsigned char* shared) : at(reinterpret_cast<float*>(shared)) {}

  // Of the lane's two rows: `row`, and `apart` further.
  template <bool PLACES>
  __device__ void keep(const RowWork<B, FULL, PLACES>& work, int row, int apart) const {
    static_assert(work.tiles == 1);
    const int t = static_cast<int>(threadIdx.x % 4);
    auto put = [&](float* to, float first, float second) { to[0] = first, to[apart] = second; };
    if (t <= B) put(at + t * pitch + row, work.sum[0][0] + work.sum[0][1], work.sum[0][2] + work.sum[0][3]);
    if (!FULL) return;
    float* squares = at + (Sums::maxima + 2 * t) * pitch + row;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (2 * t + i < Basis<B, FULL>::rows) put(squares + i * pitch, work.squares[i], work.squares[2 + i]);
  }
  // The lane's row, channel c of image n, as write_row (moments.cuh) does.
  __device__ bool write(const MomentsPlan& p, float inverse, int bytes, int n, int c, const float (&top)[1 + B],
                        const int (&place)[1 + B]) const {
    float sum[Sums::count];
#pragma unroll
    for (int i = 0; i < Sums::count; ++i)
      sum[i] = at[i * pitch + threadIdx.x % kWarp];
    return write_row<B, FULL>(p, bytes, inverse, n, c, sum, top, place);
  }
};

// The maxima of a lane's two rows, by four lanes, whose results each take every fourth.
template <bool ALL, int B>
__device__ inline void write_tops(const MomentsPlan& p, int bytes, int n, int c, const Tops<false> (&tops)[2][1 + B]) {
  const int C = static_cast<int>(p.C), A = B > 3 ? p.A : B, t = static_cast<int>(threadIdx.x % 4);
  uint32_t top[1 + B];  // of both rows
#pragma unroll
  for (int k = 0; k <= B; ++k) {
    top[k] = greater_of(firsts(tops[0][k].top, tops[1][k].top), seconds(tops[0][k].top, tops[1][k].top));
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2)
      top[k] = greater_of(top[k], __shfl_xor_sync(0xffffffffu, top[k], lanes));
  }
#pragma unroll
  for (int k0 = 0; k0 <= B; k0 += 4) {
    uint32_t own = top[k0];
#pragma unroll
    for (int k = 1; k < 4 && k0 + k <= B; ++k)
      own = t == k ? top[k0 + k] : own;
    const int k = k0 + t;
    if (k > A) break;
    float* at = row_at(static_cast<float*>(p.descriptors), n * (2 + 2 * A) + (k > 0 ? 1 + A + k : 1), bytes) + c;
    if (ALL || c < C) at[0] = first_of<BFloat16>(own);
    if (ALL || c + 8 < C) at[8] = second_of<BFloat16>(own);
  }
}

// Bits of a warp's 16 rows of which one of four lanes says, by bits of its two rows, that they are wrong.
__device__ inline unsigned wrong_rows(unsigned wrong) {
  unsigned bits = 0;
  if (__ballot_sync(0xffffffffu, wrong != 0) == 0) return bits;
#pragma unroll 1
  for (int row = 0; row < kRows; ++row) {
    const unsigned lanes = __ballot_sync(0xffffffffu, wrong >> row / 8 & 1);
    bits |= lanes >> 4 * (row % 8) & 15 ? 1u << row : 0u;
  }
  return bits;
}

}  // namespace axnet::cuda
