// Runs a package of `rmeeto.export.to_package` without Python: logits, one a line, of raw float32 input in a file.
//
//   c++ -std=c++20 run.cpp -I $TORCH/include -I $TORCH/include/torch/csrc/api/include \
//       -L $TORCH/lib -Wl,-rpath,$TORCH/lib -ltorch -ltorch_cpu -lc10 -ldl -o run
//   ./run ./librmeeto.so vim.pt2 images.bin 2 3 224 224
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int argc, char** argv) {
    if (argc < 5) return std::fprintf(stderr, "usage: run LIBRARY PACKAGE INPUT SHAPE...\n"), 2;
    setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 0);  // another shape than the package takes is an error, not a wrong read
    if (!dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL)) return std::fprintf(stderr, "error: %s\n", dlerror()), 2;
    try {
        torch::inductor::AOTIModelPackageLoader model(argv[2]);
        int64_t count = 1;
        std::vector<int64_t> shape;
        for (int i = 4; i < argc; ++i) count *= shape.emplace_back(std::atoll(argv[i]));
        const auto input = at::from_file(argv[3], false, count, at::kFloat).reshape(shape);
        const c10::InferenceMode no_gradients;
        const auto logits = model.run({input})[0].contiguous();
        for (int64_t i = 0; i < logits.numel(); ++i) std::printf("%.9g\n", logits.data_ptr<float>()[i]);
    } catch (const std::exception& error) {
        const std::string what = error.what();  // and behind its first line where in torch it was
        return std::fprintf(stderr, "error: %s\n", what.substr(0, what.find('\n')).c_str()), 1;
    }
}
