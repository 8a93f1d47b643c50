// Schemas of the feature bank's ops, and their CPU kernels. The CUDA kernels are in feature_bank.cu.
#include "feature_bank.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

// Built a second time for AVX2; which of the two runs is chosen when the extension is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define RIO_BENCH_AVX2 __attribute__((target_clones("avx2", "default")))
#else
#define RIO_BENCH_AVX2
#endif

namespace rio_bench {
namespace {

using Replays = std::tuple<Tensor, Tensor, Tensor, Tensor>;                // features, labels, proposal_boxes, gt_boxes
using PaddedReplays = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // the same, and valid

// A task of at least this many bytes is worth waking a thread for.
constexpr int64_t kTaskBytes = 1 << 16;

int64_t rows_per_task(int64_t row_bytes) {
  return std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, row_bytes));
}

int64_t row_of_label(const char* op, int64_t label, int64_t index, const int64_t* category_to_row,
                     const BankShape& shape) {
  TORCH_CHECK(label >= 0 && label < shape.labels, op, ": labels[", index, "] is ", label, ", but category_to_row has ",
              shape.labels, " entries");
  const int64_t row = category_to_row[label];
  TORCH_CHECK(row < shape.rows, op, ": category_to_row[", label, "] is ", row, ", but the bank has ", shape.rows,
              " rows");
  return row;
}

void check_pushed(const char* op, int64_t pushed, int64_t row) {
  TORCH_CHECK(pushed >= 0, op, ": pushed[", row, "] must not be negative, but is ", pushed);
}

// The lowest bit of a dtype's exponent. Added to a value without its sign it carries into the sign's place exactly where
// the exponent is all ones: infinity or NaN.
template <typename Stored>
constexpr auto kExponentBit = uint32_t{1} << 23;
template <>
constexpr auto kExponentBit<at::Half> = uint16_t{1 << 10};
template <>
constexpr auto kExponentBit<at::BFloat16> = uint16_t{1 << 7};

// Whether all values, given as their bits, are finite. Gathers the carries rather than stopping early: it vectorises.
template <typename Bits>
RIO_BENCH_AVX2 bool all_finite_bits(const void* values, int64_t size, Bits exponent_bit) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits carried = 0;
  for (int64_t i = 0; i < size; ++i) {
    Bits bits;
    std::memcpy(&bits, static_cast<const char*>(values) + i * sizeof(Bits), sizeof(Bits));
    carried |= static_cast<Bits>((bits & ~kSign) + exponent_bit);
  }
  return (carried & kSign) == 0;
}

template <typename Stored>
bool all_finite(const Stored* values, int64_t size) {
  return all_finite_bits(values, size, kExponentBit<Stored>);
}

// The values in the dtype they are stored in: as they are, or converted into `converted`.
template <typename Source, typename Stored>
const Stored* as_stored(const Source* values, int64_t size, std::vector<Stored>& converted) {
  if constexpr (std::is_same_v<Source, Stored>) {
    return values;
  } else {
    for (int64_t i = 0; i < size; ++i) {
      converted[i] = static_cast<Stored>(static_cast<float>(values[i]));
    }
    return converted.data();
  }
}

template <typename T>
void copy_row(const T* from, T* to, int64_t size) {
  std::memcpy(to, from, size * sizeof(T));
}

struct Push {
  int64_t source;  // row of the batch
  int64_t row;     // row of the bank
};

std::vector<Push> find_pushes(const Tensor& labels, const Tensor& category_to_row, const Tensor& pushed,
                              const std::optional<Tensor>& keep, const BankShape& shape) {
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const int64_t* row_of = category_to_row.const_data_ptr<int64_t>();
  const int64_t* pushed_to = pushed.const_data_ptr<int64_t>();
  const bool* kept = keep ? keep->const_data_ptr<bool>() : nullptr;
  std::vector<Push> pushes;
  for (int64_t n = 0; n < labels.size(0); ++n) {
    const int64_t row = row_of_label("enqueue", label[n], n, row_of, shape);
    if (row >= 0 && (kept == nullptr || kept[n])) {
      check_pushed("enqueue", pushed_to[row], row);
      pushes.push_back({n, row});
    }
  }
  return pushes;
}

void enqueue_cpu(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                 const Tensor& pushed, const Tensor& rejected, const Tensor& features, const Tensor& proposal_boxes,
                 const Tensor& gt_boxes, const Tensor& labels, const Tensor& category_to_row,
                 const std::optional<Tensor>& keep) {
  const BankShape shape = check_enqueue(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, rejected, features,
                                        proposal_boxes, gt_boxes, labels, category_to_row, keep);
  const std::optional<Tensor> dense_keep = keep ? std::make_optional(keep->contiguous()) : std::nullopt;
  const std::vector<Push> pushes =
      find_pushes(labels.contiguous(), category_to_row.contiguous(), pushed, dense_keep, shape);
  const Tensor dense_features = features.contiguous();
  const Tensor dense_proposal_boxes = proposal_boxes.contiguous();
  const Tensor dense_gt_boxes = gt_boxes.contiguous();
  const float* proposal_box = dense_proposal_boxes.const_data_ptr<float>();
  const float* gt_box = dense_gt_boxes.const_data_ptr<float>();
  float* proposal_box_slot = proposal_boxes_bank.mutable_data_ptr<float>();
  float* gt_box_slot = gt_boxes_bank.mutable_data_ptr<float>();
  int64_t* pushed_to = pushed.mutable_data_ptr<int64_t>();
  const int64_t dim = shape.feature_dim;
  const int64_t bytes = static_cast<int64_t>(pushes.size()) * dim * features_bank.element_size();
  const int64_t tasks = std::clamp<int64_t>(bytes / kTaskBytes, 1, at::get_num_threads());
  std::vector<int64_t> rejected_by_task(tasks, 0);

  with_feature_type(features.scalar_type(), [&](auto source_value) {
    with_feature_type(features_bank.scalar_type(), [&](auto stored_value) {
      using Source = decltype(source_value);
      using Stored = decltype(stored_value);
      const Source* feature = dense_features.const_data_ptr<Source>();
      Stored* feature_slot = features_bank.mutable_data_ptr<Stored>();

      // A bank row belongs to one task, which fills it in batch order: the result is that of one thread.
      const auto fill_rows = [&](int64_t task) {
        std::vector<Stored> converted(std::is_same_v<Source, Stored> ? 0 : dim);
        for (const auto [n, row] : pushes) {
          if (row % tasks != task) {
            continue;
          }
          const Stored* stored = as_stored(feature + n * dim, dim, converted);
          if (!all_finite(stored, dim) || !all_finite(proposal_box + n * 4, 4) || !all_finite(gt_box + n * 4, 4)) {
            ++rejected_by_task[task];
            continue;
          }
          const int64_t slot = row * shape.capacity + pushed_to[row]++ % shape.capacity;
          copy_row(stored, feature_slot + slot * dim, dim);
          copy_row(proposal_box + n * 4, proposal_box_slot + slot * 4, 4);
          copy_row(gt_box + n * 4, gt_box_slot + slot * 4, 4);
        }
      };
      at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          fill_rows(task);
        }
      });
    });
  });
  rejected.mutable_data_ptr<int64_t>()[0] += std::accumulate(rejected_by_task.begin(), rejected_by_task.end(), int64_t{0});
}

struct Replay {
  int64_t category;
  int64_t slot;  // row of the bank * capacity + slot
};

// The slots of one category's replays: the newest, newest first, or those of the smallest random values.
void choose_slots(int64_t category, int64_t row, int64_t pushed, int64_t count, const float* random, int64_t capacity,
                  std::vector<Replay>& replays) {
  if (random == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      replays.push_back({category, row * capacity + (pushed - 1 - i) % capacity});
    }
    return;
  }
  std::vector<uint64_t> keys(std::min(pushed, capacity));
  for (size_t slot = 0; slot < keys.size(); ++slot) {
    keys[slot] = slot_key(random[row * capacity + slot], slot);
  }
  std::partial_sort(keys.begin(), keys.begin() + count, keys.end());
  for (int64_t i = 0; i < count; ++i) {
    replays.push_back({category, row * capacity + static_cast<int64_t>(keys[i] & 0xffffffffu)});
  }
}

std::vector<Replay> plan_sample(const char* op, const BankShape& shape, const Tensor& pushed, const Tensor& labels,
                                const Tensor& category_to_row, const Tensor& counts,
                                const std::optional<Tensor>& random) {
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const int64_t* row_of = category_to_row.const_data_ptr<int64_t>();
  const int64_t* pushed_to = pushed.const_data_ptr<int64_t>();
  const int64_t* count_of = counts.const_data_ptr<int64_t>();
  std::vector<uint8_t> present(shape.labels, 0);
  for (int64_t n = 0; n < labels.size(0); ++n) {
    present[label[n]] = row_of_label(op, label[n], n, row_of, shape) >= 0;
  }
  std::vector<Replay> replays;
  for (int64_t category = 0; category < shape.labels; ++category) {
    if (!present[category]) {
      continue;
    }
    const int64_t row = row_of[category];
    check_pushed(op, pushed_to[row], row);
    TORCH_CHECK(count_of[row] >= 0, op, ": counts[", row, "] must not be negative, but is ", count_of[row]);
    const int64_t count = std::min({count_of[row], pushed_to[row], shape.capacity});
    choose_slots(category, row, pushed_to[row], count, random ? random->const_data_ptr<float>() : nullptr,
                 shape.capacity, replays);
  }
  return replays;
}

// The replays, and rows of padding up to `rows`; what does not fit is left out.
Replays gather(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
               const std::vector<Replay>& replays, int64_t rows) {
  const int64_t filled = std::min<int64_t>(rows, replays.size());
  const Tensor features = at::empty({rows, features_bank.size(2)}, features_bank.options());
  const Tensor labels = at::empty({rows}, features_bank.options().dtype(at::kLong));
  const Tensor proposal_boxes = at::empty({rows, 4}, proposal_boxes_bank.options());
  const Tensor gt_boxes = at::empty({rows, 4}, gt_boxes_bank.options());

  const int64_t row_bytes = features_bank.size(2) * features_bank.element_size();
  const char* feature_slot = static_cast<const char*>(features_bank.const_data_ptr());
  const float* proposal_box_slot = proposal_boxes_bank.const_data_ptr<float>();
  const float* gt_box_slot = gt_boxes_bank.const_data_ptr<float>();
  char* feature = static_cast<char*>(features.mutable_data_ptr());
  int64_t* label = labels.mutable_data_ptr<int64_t>();
  float* proposal_box = proposal_boxes.mutable_data_ptr<float>();
  float* gt_box = gt_boxes.mutable_data_ptr<float>();

  at::parallel_for(0, filled, rows_per_task(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Replay& replay = replays[m];
      std::memcpy(feature + m * row_bytes, feature_slot + replay.slot * row_bytes, row_bytes);
      copy_row(proposal_box_slot + replay.slot * 4, proposal_box + m * 4, 4);
      copy_row(gt_box_slot + replay.slot * 4, gt_box + m * 4, 4);
      label[m] = replay.category;
    }
  });
  std::fill(feature + filled * row_bytes, feature + rows * row_bytes, 0);
  std::fill(label + filled, label + rows, kPaddingLabel);
  std::fill(proposal_box + filled * 4, proposal_box + rows * 4, 0.0f);
  std::fill(gt_box + filled * 4, gt_box + rows * 4, 0.0f);
  return {features, labels, proposal_boxes, gt_boxes};
}

std::vector<Replay> plan_sample_checked(const char* op, const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                                        const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& labels,
                                        const Tensor& category_to_row, const Tensor& counts,
                                        const std::optional<Tensor>& random) {
  const BankShape shape = check_sample(op, features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels,
                                       category_to_row, counts, random);
  const std::optional<Tensor> dense_random = random ? std::make_optional(random->contiguous()) : std::nullopt;
  return plan_sample(op, shape, pushed, labels.contiguous(), category_to_row.contiguous(), counts.contiguous(),
                     dense_random);
}

Replays sample_cpu(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                   const Tensor& pushed, const Tensor& labels, const Tensor& category_to_row, const Tensor& counts,
                   const std::optional<Tensor>& random) {
  const std::vector<Replay> replays =
      plan_sample_checked("sample", features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels, category_to_row,
                          counts, random);
  return gather(features_bank, proposal_boxes_bank, gt_boxes_bank, replays, static_cast<int64_t>(replays.size()));
}

PaddedReplays sample_padded_cpu(const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                                const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& labels,
                                const Tensor& category_to_row, const Tensor& counts, int64_t rows,
                                const std::optional<Tensor>& random) {
  TORCH_CHECK(rows >= 0, "sample_padded: rows must not be negative, but is ", rows);
  const std::vector<Replay> replays =
      plan_sample_checked("sample_padded", features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels,
                          category_to_row, counts, random);
  const Tensor valid = at::empty({rows}, features_bank.options().dtype(at::kBool));
  bool* is_valid = valid.mutable_data_ptr<bool>();
  for (int64_t m = 0; m < rows; ++m) {
    is_valid[m] = m < static_cast<int64_t>(replays.size());
  }
  return std::tuple_cat(gather(features_bank, proposal_boxes_bank, gt_boxes_bank, replays, rows), std::tuple(valid));
}

}  // namespace

TORCH_LIBRARY(rio_bench, m) {
  m.set_python_module("rio_bench.ops");
  m.def(
      "enqueue(Tensor(a!) features_bank, Tensor(b!) proposal_boxes_bank, Tensor(c!) gt_boxes_bank, "
      "Tensor(d!) pushed, Tensor(e!) rejected, Tensor features, Tensor proposal_boxes, Tensor gt_boxes, "
      "Tensor labels, Tensor category_to_row, Tensor? keep=None) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sample(Tensor features_bank, Tensor proposal_boxes_bank, Tensor gt_boxes_bank, Tensor pushed, Tensor labels, "
      "Tensor category_to_row, Tensor counts, Tensor? random=None) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  m.def(
      "sample_padded(Tensor features_bank, Tensor proposal_boxes_bank, Tensor gt_boxes_bank, Tensor pushed, "
      "Tensor labels, Tensor category_to_row, Tensor counts, SymInt rows, Tensor? random=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(rio_bench, CPU, m) {
  m.impl("enqueue", &enqueue_cpu);
  m.impl("sample", &sample_cpu);
  m.impl("sample_padded", &sample_padded_cpu);
}

}  // namespace rio_bench
