// The feature bank of rio_bench: what the CPU and CUDA kernels share.
//
// A bank has R rows, one for each banked category, each a ring buffer of `capacity` entries (a feature of D numbers, a
// proposal box, a ground-truth box). `pushed[r]` counts the entries ever pushed to row r: entry p lies in slot
// p % capacity, and min(pushed[r], capacity) slots are filled. `category_to_row` maps a label to its row; a negative
// row means that the category is not banked (background, the last label, never is).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

namespace rio_bench {

using at::Tensor;

// Raised with every change of a schema or of what an op means; rio_bench/ops.py compares it with its own.
constexpr int kOpsVersion = 1;

// The label of the rows that pad sample_padded's results (torch.nn.functional.cross_entropy's ignore_index takes it).
constexpr int64_t kPaddingLabel = -1;

struct BankShape {
  int64_t rows, capacity, feature_dim, labels;  // labels: categories + 1, background being the last
};

inline bool is_feature_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

// Calls f with a value of the C++ type that stands for a feature dtype.
template <typename Function>
void with_feature_type(at::ScalarType type, Function&& f) {
  if (type == at::kFloat) {
    f(float{});
  } else if (type == at::kHalf) {
    f(at::Half{});
  } else {
    f(at::BFloat16{});
  }
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor, at::ScalarType type,
                         at::IntArrayRef shape, const Tensor& features_bank) {
  TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ", type, ", not ", tensor.scalar_type());
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, " must have shape ", shape, ", not ", tensor.sizes());
  TORCH_CHECK(tensor.device() == features_bank.device(), op, ": ", name, " is on ", tensor.device(),
              ", but features_bank is on ", features_bank.device());
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous; its strides are ", tensor.strides());
}

inline BankShape check_bank(const char* op, const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                            const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& labels,
                            const Tensor& category_to_row) {
  TORCH_CHECK(features_bank.dim() == 3, op, ": features_bank must be [rows, capacity, feature_dim], not ",
              features_bank.sizes());
  TORCH_CHECK(is_feature_type(features_bank.scalar_type()), op,
              ": features_bank must be float32, float16 or bfloat16, not ", features_bank.scalar_type());
  const BankShape shape{features_bank.size(0), features_bank.size(1), features_bank.size(2), category_to_row.numel()};
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK(shape.capacity > 0, op, ": the capacity of the bank must be at least 1, not ", shape.capacity);
  TORCH_CHECK(shape.rows < kMost && shape.capacity < kMost && shape.labels < kMost, op,
              ": rows, capacity and labels must each be below 2^31");
  check_contiguous(op, "features_bank", features_bank);
  check_tensor(op, "proposal_boxes_bank", proposal_boxes_bank, at::kFloat, {shape.rows, shape.capacity, 4},
               features_bank);
  check_contiguous(op, "proposal_boxes_bank", proposal_boxes_bank);
  check_tensor(op, "gt_boxes_bank", gt_boxes_bank, at::kFloat, {shape.rows, shape.capacity, 4}, features_bank);
  check_contiguous(op, "gt_boxes_bank", gt_boxes_bank);
  check_tensor(op, "pushed", pushed, at::kLong, {shape.rows}, features_bank);
  check_contiguous(op, "pushed", pushed);
  TORCH_CHECK(labels.dim() == 1, op, ": labels must have one dimension, not shape ", labels.sizes());
  check_tensor(op, "labels", labels, at::kLong, {labels.size(0)}, features_bank);
  check_tensor(op, "category_to_row", category_to_row, at::kLong, {shape.labels}, features_bank);
  return shape;
}

inline BankShape check_enqueue(const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                               const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& rejected,
                               const Tensor& features, const Tensor& proposal_boxes, const Tensor& gt_boxes,
                               const Tensor& labels, const Tensor& category_to_row, const std::optional<Tensor>& keep) {
  const char* op = "enqueue";
  const BankShape shape =
      check_bank(op, features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels, category_to_row);
  const int64_t batch = labels.size(0);
  check_tensor(op, "rejected", rejected, at::kLong, {1}, features_bank);
  TORCH_CHECK(is_feature_type(features.scalar_type()), op, ": features must be float32, float16 or bfloat16, not ",
              features.scalar_type());
  check_tensor(op, "features", features, features.scalar_type(), {batch, shape.feature_dim}, features_bank);
  check_tensor(op, "proposal_boxes", proposal_boxes, at::kFloat, {batch, 4}, features_bank);
  check_tensor(op, "gt_boxes", gt_boxes, at::kFloat, {batch, 4}, features_bank);
  if (keep) {
    check_tensor(op, "keep", *keep, at::kBool, {batch}, features_bank);
  }
  // A row read while another is written over it would be stored half old, half new.
  TORCH_CHECK(!features.is_alias_of(features_bank) && !proposal_boxes.is_alias_of(proposal_boxes_bank) &&
                  !gt_boxes.is_alias_of(gt_boxes_bank),
              op, ": features and boxes must not be views of the bank itself; clone them first");
  return shape;
}

inline BankShape check_sample(const char* op, const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                              const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& labels,
                              const Tensor& category_to_row, const Tensor& counts,
                              const std::optional<Tensor>& random) {
  const BankShape shape =
      check_bank(op, features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels, category_to_row);
  check_tensor(op, "counts", counts, at::kLong, {shape.rows}, features_bank);
  if (random) {
    check_tensor(op, "random", *random, at::kFloat, {shape.rows, shape.capacity}, features_bank);
  }
  return shape;
}

#if defined(__CUDACC__)
#define RIO_BENCH_HOST_DEVICE __host__ __device__
#else
#define RIO_BENCH_HOST_DEVICE
#endif

// One 64-bit key that orders slots by (random value, slot); NaN comes last, as in torch.sort.
RIO_BENCH_HOST_DEVICE inline uint64_t slot_key(float value, int64_t slot) {
  const float unsigned_zero = value + 0.0f;  // -0 and 0 are ties
  uint32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof(bits));
  bits = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  if (value != value) {
    bits = 0xffffffffu;
  }
  return (static_cast<uint64_t>(bits) << 32) | static_cast<uint64_t>(slot);
}

}  // namespace rio_bench
