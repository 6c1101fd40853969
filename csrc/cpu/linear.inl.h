// The linear layers of A3's gate: few rows of input, large weights. A row of weights is read from memory once, for all
// images; a matrix library packs the weights first, which costs more than the product.

template <class T>
void linear_typed(const LinearArgs& g, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int64_t blocks = (g.O + kLinearOutputs - 1) / kLinearOutputs;
  const int N = static_cast<int>(g.N);
  Acc part[kLinearOutputs * kLinearRows];  // [outputs, N]
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task / blocks, first = task % blocks * kLinearOutputs;
    const int outputs = static_cast<int>(g.O - first < kLinearOutputs ? g.O - first : kLinearOutputs);
    const T* bias = static_cast<const T*>(g.bias) + group * g.O + first;
    for (int o = 0; o < outputs; ++o)
      for (int n = 0; n < N; ++n)
        part[o * N + n] = static_cast<Acc>(bias[o]);
    contract_along<T>(static_cast<const T*>(g.weight) + (group * g.O + first) * g.I, g.I, outputs, g.I,
                      static_cast<const Acc*>(g.x) + group * g.N * g.I, g.I, N, part, N);
    const int64_t skip = group * g.N * g.O + first;
    for (int n = 0; n < N; ++n)
      for (int o = 0; o < outputs; ++o) {
        const int64_t at = skip + n * g.O + o;
        if (g.wide) static_cast<Acc*>(g.out)[at] = part[o * N + n];
        else static_cast<T*>(g.out)[at] = T(part[o * N + n]);
      }
  }
}

void linear(const LinearArgs& g, int64_t begin, int64_t end) {
  with_type(g.type, [&](auto t) { linear_typed<decltype(t)>(g, begin, end); });
}
