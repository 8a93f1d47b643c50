// The Python module rio_bench._C. The ops register themselves with PyTorch's dispatcher when it is loaded; the module
// itself only tells how it was built.
#include "feature_bank.h"

#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#ifdef RIO_BENCH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

pybind11::dict build_information() {
  pybind11::dict information;
  information["ops_version"] = rio_bench::kOpsVersion;
  information["torch_version"] = TORCH_VERSION;
#if defined(__clang__)
  information["compiler"] = "clang " __clang_version__;
#else
  information["compiler"] = "gcc " __VERSION__;
#endif
#ifdef RIO_BENCH_CUDA
  information["cuda"] = true;
  information["cuda_version"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  information["architectures"] = RIO_BENCH_ARCHITECTURES;
#else
  information["cuda"] = false;
  information["cuda_version"] = pybind11::none();
  information["architectures"] = "";
#endif
  return information;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_information", &build_information);
}
