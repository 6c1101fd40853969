// Runs what `axnet export --format aoti` wrote, with libtorch alone: no Python, no axnet.
// usage: classify MODEL.pt2 SIDE IMAGES [ANATOMIES]: raw float32 [N, 1, SIDE, SIDE] on standard input, and behind them,
// for Anatomy-XNet, masks [N, ANATOMIES, SIDE, SIDE]; prints the probabilities, one image a line.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <iostream>
#include <string>
#include <vector>

namespace {

at::Tensor read(int64_t images, int64_t channels, int64_t side) {
  at::Tensor batch = torch::empty({images, channels, side, side});
  std::cin.read(static_cast<char*>(batch.data_ptr()), static_cast<std::streamsize>(batch.nbytes()));
  TORCH_CHECK(std::cin.gcount() == static_cast<std::streamsize>(batch.nbytes()), "the input ends too early");
  return batch;
}

}  // namespace

int main(int count, char** arguments) try {
  TORCH_CHECK(count == 4 || count == 5, "usage: classify MODEL.pt2 SIDE IMAGES [ANATOMIES] < FLOATS");
  const int64_t side = std::stoll(arguments[2]), images = std::stoll(arguments[3]);
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  std::cerr << model.get_metadata().at("axnet.json") << '\n';  // findings, preprocessing, operating points

  std::vector<at::Tensor> inputs{read(images, 1, side)};
  if (count == 5) inputs.push_back(read(images, std::stoll(arguments[4]), side));
  const at::Tensor probabilities = model.run(inputs)[1];

  std::cout.precision(9);
  for (int64_t row = 0; row < probabilities.size(0); ++row)
    for (int64_t finding = 0; finding < probabilities.size(1); ++finding)
      std::cout << probabilities[row][finding].item<float>() << (finding + 1 < probabilities.size(1) ? ' ' : '\n');
  return 0;
} catch (const std::exception& error) {
  std::cerr << "classify: " << error.what() << '\n';
  return 1;
}
