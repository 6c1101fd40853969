// The numbers between A3's passes, per (n, c) in double: batch statistics from the moments, the folded coefficients of
// the forward pass, and the coefficients of the backward pass (docs/method.md, "A3 from moments").
//
//   G = b + sum_a w_a m_a,  Y = X G,  x' = x - c
//   sum G   = b S + sum w_a M_a            sum G^2 = b^2 S + 2b sum w_a M_a + sum w_a w_b M_ab
//   sum Gx' = b s1 + sum w_a t_a = Q_0     sum Y   = c sum G + Q_0
//   sum Y^2 = c^2 sum G^2 + 2c (b^2 s1 + 2b sum w t + sum ww q1) + (b^2 s2 + 2b sum w t2 + sum ww q2)
//   Q_a = b t_a + sum_b w_b q1_ab          E_0 = sum Y x' = c Q_0 + b s2 + sum w t2
//   E_a = sum Y m_a x' = c Q_a + b t2_a + sum_b w_b q2_ab
//
// A task holds kGateChannels channels, one vector of doubles at a time, and walks the images in order.

using D = VectorOf<double>::type;
constexpr int kDoubles = VectorOf<double>::width;
typedef float HalfVector __attribute__((vector_size(AXNET_VECTOR_BYTES / 2)));

AXNET_INLINE D load_doubles(const double* p, int n) {
  return n >= kDoubles ? Lanes<double>::load(p) : Lanes<double>::load_n(p, n);
}
AXNET_INLINE D load_doubles(const float* p, int n) {
  HalfVector narrow = {};
  n >= kDoubles ? __builtin_memcpy(&narrow, p, sizeof(narrow)) : __builtin_memcpy(&narrow, p, n * sizeof(float));
  return __builtin_convertvector(narrow, D);
}
AXNET_INLINE void store_doubles(double* p, D v, int n) {
  n >= kDoubles ? Lanes<double>::store(p, v) : Lanes<double>::store_n(p, v, n);
}
AXNET_INLINE void store_doubles(float* p, D v, int n) {
  const HalfVector narrow = __builtin_convertvector(v, HalfVector);
  n >= kDoubles ? __builtin_memcpy(p, &narrow, sizeof(narrow)) : __builtin_memcpy(p, &narrow, n * sizeof(float));
}
AXNET_INLINE D square_root(D v) {
  for (int i = 0; i < kDoubles; ++i)
    v[i] = __builtin_sqrt(v[i]);
  return v;
}

inline int pair_index(int A, int a, int b) { return a < b ? pair_row(A, a, b) : pair_row(A, b, a); }

// The gate of one (image, block): b and w_a.
template <int B>
struct Gate {
  D b, w[B ? B : kMaxAnatomies];
};
template <int B, class Acc>
AXNET_INLINE Gate<B> load_gate(const Acc* gate, int count, int64_t C, bool concat, int lanes) {
  Gate<B> g;
  const double share = concat ? 1.0 : 1.0 / count;
  g.b = splat(1.0);
  for (int a = 0; a < (B ? B : count); ++a) {
    g.w[a] = load_doubles(gate + a * C, lanes) * share;
    g.b -= g.w[a];
  }
  return g;
}

template <class Acc, int B>
AXNET_KERNEL gate_forward_typed(const GateArgs& g, int64_t begin, int64_t end) {
  const int count = g.concat ? 1 : g.A, blocks = g.concat ? g.A : 1, P = pairs(g.A);
  const int64_t C = g.C, rows = moment_rows(g.A);
  const double S = static_cast<double>(g.S), total = S * static_cast<double>(g.N);
  for (int64_t c = begin * kGateChannels; c < end * kGateChannels && c < C; c += kDoubles) {
    const int lanes = C - c < kDoubles ? static_cast<int>(C - c) : kDoubles;
    for (int o = 0; o < blocks; ++o) {
      D sum_y = {}, sum_yy = {};
      if (g.moments) {
        for (int64_t n = 0; n < g.N; ++n) {
          const Acc* m = static_cast<const Acc*>(g.moments) + n * rows * C + c;
          const double* mass = g.mass + n * (g.A + P);
          auto row = [&](int k) { return load_doubles(m + k * C, lanes); };
          Gate<B> gate =
              load_gate<B>(static_cast<const Acc*>(g.gate) + (n * g.A + o) * C + c, count, C, g.concat, lanes);
          const D shift = row(0), s1 = row(1), s2 = row(2);
          D sum_g = gate.b * S, wt = {}, wt2 = {}, wm = {}, wwm = {}, wwq1 = {}, wwq2 = {};
          D q[B ? B : kMaxAnatomies], e[B ? B : kMaxAnatomies];
          for (int a = 0; a < (B ? B : count); ++a) {
            const D t = row(3 + o + a), t2 = row(3 + g.A + o + a);
            wt += gate.w[a] * t;
            wt2 += gate.w[a] * t2;
            wm += gate.w[a] * mass[o + a];
            D inner_m = {}, inner1 = {}, inner2 = {};
            for (int b = 0; b < (B ? B : count); ++b) {
              const int ab = pair_index(g.A, o + a, o + b);
              inner_m += gate.w[b] * mass[g.A + ab];
              inner1 += gate.w[b] * row(3 + 2 * g.A + ab);
              inner2 += gate.w[b] * row(3 + 2 * g.A + P + ab);
            }
            wwm += gate.w[a] * inner_m;
            wwq1 += gate.w[a] * inner1;
            wwq2 += gate.w[a] * inner2;
            q[a] = gate.b * t + inner1;
            e[a] = shift * q[a] + gate.b * t2 + inner2;
          }
          sum_g += wm;
          const D q0 = gate.b * s1 + wt;
          sum_y += shift * sum_g + q0;
          sum_yy += shift * shift * (gate.b * gate.b * S + 2.0 * gate.b * wm + wwm) +
                    2.0 * shift * (gate.b * gate.b * s1 + 2.0 * gate.b * wt + wwq1) +
                    (gate.b * gate.b * s2 + 2.0 * gate.b * wt2 + wwq2);
          if (g.saved) {
            const int n_rows = saved_rows(count);
            Acc* out = static_cast<Acc*>(g.saved) + (n * blocks + o) * n_rows * C + c;
            int k = 0;
            auto keep = [&](D v) { store_doubles(out + (k++) * C, v, lanes); };
            keep(shift);
            keep(s1);
            for (int a = 0; a < (B ? B : count); ++a)
              keep(row(3 + o + a));
            keep(q0);
            for (int a = 0; a < (B ? B : count); ++a)
              keep(q[a]);
            keep(shift * q0 + gate.b * s2 + wt2);
            for (int a = 0; a < (B ? B : count); ++a)
              keep(e[a]);
          }
        }
      }
      if (!g.fold) continue;
      Acc* mean_at = static_cast<Acc*>(g.mean) + o * C + c;
      Acc* var_at = static_cast<Acc*>(g.var) + o * C + c;
      if (g.batch_statistics) {
        const D mu = sum_y / total;
        D v = sum_yy / total - mu * mu;
        v = v < 0.0 ? D{} : v;  // rounding alone
        store_doubles(mean_at, mu, lanes);
        store_doubles(var_at, v, lanes);
      }
      const D mean = load_doubles(mean_at, lanes), var = load_doubles(var_at, lanes);
      D scale = 1.0 / square_root(var + g.eps);
      if (g.weight) scale *= load_doubles(static_cast<const Acc*>(g.weight) + o * C + c, lanes);
      D offset = g.bias ? load_doubles(static_cast<const Acc*>(g.bias) + o * C + c, lanes) : D{};
      offset -= mean * scale;
      for (int64_t n = 0; n < g.N; ++n) {
        Gate<B> gate = load_gate<B>(static_cast<const Acc*>(g.gate) + (n * g.A + o) * C + c, count, C, g.concat, lanes);
        Acc* out = static_cast<Acc*>(g.fold) + (n * blocks + o) * fold_rows(count) * C + c;
        store_doubles(out, gate.b * scale, lanes);
        for (int a = 0; a < (B ? B : count); ++a)
          store_doubles(out + (1 + a) * C, gate.w[a] * scale, lanes);
        store_doubles(out + (1 + count) * C, offset, lanes);
      }
    }
  }
}

template <class Acc, int B>
AXNET_KERNEL gate_backward_typed(const GateBackwardArgs& g, int64_t begin, int64_t end) {
  const int count = g.concat ? 1 : g.A, blocks = g.concat ? g.A : 1, P = pairs(g.A);
  const int64_t C = g.C;
  const double S = static_cast<double>(g.S), total = S * static_cast<double>(g.N);
  for (int64_t c = begin * kGateChannels; c < end * kGateChannels && c < C; c += kDoubles) {
    const int lanes = C - c < kDoubles ? static_cast<int>(C - c) : kDoubles;
    for (int o = 0; o < blocks; ++o) {
      auto gate_of = [&](int64_t n) {
        return load_gate<B>(static_cast<const Acc*>(g.gate) + (n * g.A + o) * C + c, count, C, g.concat, lanes);
      };
      auto sums_of = [&](int64_t n) {
        return static_cast<const Acc*>(g.sums) + (n * blocks + o) * sum_rows(count) * C + c;
      };
      auto saved_of = [&](int64_t n) {
        return static_cast<const Acc*>(g.saved) + (n * blocks + o) * saved_rows(count) * C + c;
      };
      const D mean = load_doubles(static_cast<const Acc*>(g.mean) + o * C + c, lanes);
      const D r = 1.0 / square_root(load_doubles(static_cast<const Acc*>(g.var) + o * C + c, lanes) + g.eps);
      const D gamma = g.weight ? load_doubles(static_cast<const Acc*>(g.weight) + o * C + c, lanes) : splat(1.0);
      D dgamma = {}, dbeta = {};
      for (int64_t n = 0; n < g.N; ++n) {
        const Acc* e = sums_of(n);
        const Gate<B> gate = gate_of(n);
        const D shift = load_doubles(saved_of(n), lanes), e0 = load_doubles(e, lanes), e1 = load_doubles(e + C, lanes);
        D far = gate.b * e0, near = gate.b * e1;
        for (int a = 0; a < (B ? B : count); ++a) {
          far += gate.w[a] * load_doubles(e + (2 + a) * C, lanes);
          near += gate.w[a] * load_doubles(e + (2 + count + a) * C, lanes);
        }
        dgamma += shift * far + near - mean * e0;
        dbeta += e0;
      }
      dgamma *= r;
      store_doubles(static_cast<Acc*>(g.weight_grad) + o * C + c, dgamma, lanes);
      store_doubles(static_cast<Acc*>(g.bias_grad) + o * C + c, dbeta, lanes);
      const D k1 = gamma * r;
      D k2 = {}, k3 = {};
      if (g.batch_statistics) {
        k3 = -gamma * r * r * dgamma / total;
        k2 = -gamma * r * dbeta / total - k3 * mean;
      }
      for (int64_t n = 0; n < g.N; ++n) {
        const Acc* e = sums_of(n);
        const Acc* kept = saved_of(n);
        const double* mass = g.mass + n * (g.A + P);
        const Gate<B> gate = gate_of(n);
        auto row = [&](int k) { return load_doubles(kept + k * C, lanes); };
        auto sum = [&](int k) { return load_doubles(e + k * C, lanes); };
        const D shift = row(0), s1 = row(1), q0 = row(2 + count), e0 = row(3 + 2 * count);
        D sum_g = gate.b * S;
        for (int a = 0; a < (B ? B : count); ++a)
          sum_g += gate.w[a] * mass[o + a];
        const D sum_dy = k1 * sum(0) + k2 * S + k3 * (shift * sum_g + q0);
        const D db = shift * sum_dy + k1 * sum(1) + k2 * s1 + k3 * e0;
        Acc* out = static_cast<Acc*>(g.coef) + (n * blocks + o) * coef_rows(count) * C + c;
        store_doubles(out, k1, lanes);
        store_doubles(out + C, k2, lanes);
        store_doubles(out + 2 * C, k3, lanes);
        store_doubles(out + 3 * C, gate.b, lanes);
        Acc* dg = static_cast<Acc*>(g.gate_grad) + (n * g.A + o) * C + c;
        for (int a = 0; a < (B ? B : count); ++a) {
          store_doubles(out + (4 + a) * C, gate.w[a], lanes);
          D sum_gm = gate.b * mass[o + a];
          for (int b = 0; b < (B ? B : count); ++b)
            sum_gm += gate.w[b] * mass[g.A + pair_index(g.A, o + a, o + b)];
          const D sum_dym = k1 * sum(2 + a) + k2 * mass[o + a] + k3 * (shift * sum_gm + row(3 + count + a));
          const D dw = shift * sum_dym + k1 * sum(2 + count + a) + k2 * row(2 + a) + k3 * row(4 + 2 * count + a);
          store_doubles(dg + a * C, (dw - db) * (g.concat ? 1.0 : 1.0 / count), lanes);
        }
      }
    }
  }
}

void gate_forward(const GateArgs& g, int64_t begin, int64_t end) {
  const auto run = [&](auto t) {
    using Acc = decltype(t);
    with_anatomies<Acc>(g.concat ? 1 : g.A,
                        [&](auto b) { gate_forward_typed<Acc, decltype(b)::value>(g, begin, end); });
  };
  g.type == Type::f64 ? run(double{}) : run(float{});
}

void gate_backward(const GateBackwardArgs& g, int64_t begin, int64_t end) {
  const auto run = [&](auto t) {
    using Acc = decltype(t);
    with_anatomies<Acc>(g.concat ? 1 : g.A,
                        [&](auto b) { gate_backward_typed<Acc, decltype(b)::value>(g, begin, end); });
  };
  g.type == Type::f64 ? run(double{}) : run(float{});
}
