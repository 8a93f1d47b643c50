// CUDA kernels of the feature bank's ops. They give bit for bit what the CPU kernels give, with two differences, both
// because the host does not wait for the device: a label (or a row of category_to_row) out of range is no error but is
// left out (enqueue counts it in `rejected`), and a negative count replays nothing.
#include "feature_bank.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace rio_bench {
namespace {

using Replays = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using PaddedReplays = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kPlanThreads = 1024;
constexpr unsigned kFullWarp = 0xffffffffu;

// What a row of the batch does: a row of the bank (0 or more), or one of these.
constexpr int64_t kIgnored = -1;
constexpr int64_t kRejected = -2;

// V neighbouring values that are loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <typename Stored, typename Source>
__device__ Stored to_stored(Source value) {
  return static_cast<Stored>(static_cast<float>(value));
}

template <typename Source, typename Stored, int V>
__device__ bool all_finite(const Source* values, int64_t size, int thread, int threads) {
  bool finite = true;
  for (int64_t i = thread; i < size / V; i += threads) {
    const auto pack = reinterpret_cast<const Pack<Source, V>*>(values)[i];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      finite = finite && isfinite(static_cast<float>(to_stored<Stored>(pack.values[v])));
    }
  }
  return finite;
}

template <typename Source, typename Stored, int V>
__device__ void store_row(const Source* from, Stored* to, int64_t size) {
  for (int64_t i = threadIdx.x; i < size / V; i += blockDim.x) {
    const auto in = reinterpret_cast<const Pack<Source, V>*>(from)[i];
    Pack<Stored, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out.values[v] = to_stored<Stored>(in.values[v]);
    }
    reinterpret_cast<Pack<Stored, V>*>(to)[i] = out;
  }
}

// The sum of every thread's value, in all threads of the block.
__device__ int64_t block_sum(int64_t value) {
  __shared__ int64_t warp_sums[kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, offset);
  }
  __syncthreads();  // the sums of an earlier call have been read
  if (threadIdx.x % kWarp == 0) {
    warp_sums[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  int64_t sum = 0;
  for (int warp = 0; warp < blockDim.x / kWarp; ++warp) {
    sum += warp_sums[warp];
  }
  return sum;
}

// The sum of the values of the threads before this one; `total` is that of the whole block.
__device__ int64_t block_exclusive_sum(int64_t value, int64_t& total) {
  __shared__ int64_t warp_sums[kWarp];
  const int lane = threadIdx.x % kWarp;
  int64_t inclusive = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t below = __shfl_up_sync(kFullWarp, inclusive, offset);
    inclusive += lane >= offset ? below : 0;
  }
  __syncthreads();
  if (lane == kWarp - 1) {
    warp_sums[threadIdx.x / kWarp] = inclusive;
  }
  __syncthreads();
  int64_t before = 0;
  total = 0;
  for (int warp = 0; warp < blockDim.x / kWarp; ++warp) {
    before += warp < threadIdx.x / kWarp ? warp_sums[warp] : 0;
    total += warp_sums[warp];
  }
  return before + inclusive - value;
}

// enqueue, first step: a warp for each row of the batch finds its bank row, and how many entries that had before.
// The second step reads nothing that it writes itself, so its blocks need no order.
template <typename Source, typename Stored, int V>
__global__ void find_bank_rows(const Source* features, const float* proposal_boxes, const float* gt_boxes,
                               const int64_t* labels, const int64_t* category_to_row, const bool* keep,
                               const int64_t* pushed, int64_t batch, BankShape shape, int64_t* bank_rows,
                               int64_t* pushed_before) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (n >= batch) {
    return;
  }
  const int64_t label = labels[n];
  int64_t row = kRejected;
  if (label >= 0 && label < shape.labels && category_to_row[label] < shape.rows) {
    row = max(category_to_row[label], kIgnored);  // any negative number says that a category is not banked
  }
  if (keep != nullptr && !keep[n]) {
    row = kIgnored;
  }
  if (row >= 0) {
    const bool finite = all_finite<Source, Stored, V>(features + n * shape.feature_dim, shape.feature_dim, lane, kWarp) &&
                        all_finite<float, float, 1>(proposal_boxes + n * 4, 4, lane, kWarp) &&
                        all_finite<float, float, 1>(gt_boxes + n * 4, 4, lane, kWarp);
    row = __all_sync(kFullWarp, finite) ? row : kRejected;
  }
  if (lane == 0) {
    bank_rows[n] = row;
    pushed_before[n] = row < 0 ? 0 : max(pushed[row], int64_t{0});
  }
}

// enqueue, second step: a block for each row of the batch counts the rows of its category before and after it, which
// gives its slot whatever the order of the blocks; one more block counts the rejected. Quadratic in the batch, but a
// batch is some thousand rows.
template <typename Source, typename Stored, int V>
__global__ void push_rows(const Source* features, const float* proposal_boxes, const float* gt_boxes,
                          const int64_t* bank_rows, const int64_t* pushed_before, int64_t batch, BankShape shape,
                          Stored* features_bank, float* proposal_boxes_bank, float* gt_boxes_bank, int64_t* pushed,
                          int64_t* rejected) {
  const int64_t n = blockIdx.x;
  if (n == batch) {
    int64_t count = 0;
    for (int64_t other = threadIdx.x; other < batch; other += blockDim.x) {
      count += bank_rows[other] == kRejected;
    }
    count = block_sum(count);
    if (threadIdx.x == 0) {
      rejected[0] += count;
    }
    return;
  }
  const int64_t row = bank_rows[n];
  if (row < 0) {
    return;
  }
  int64_t before = 0;
  int64_t after = 0;
  for (int64_t other = threadIdx.x; other < batch; other += blockDim.x) {
    const bool same = bank_rows[other] == row;
    before += same && other < n;
    after += same && other > n;
  }
  before = block_sum(before);
  after = block_sum(after);
  const int64_t position = pushed_before[n] + before;
  if (after == 0 && threadIdx.x == 0) {
    pushed[row] = position + 1;
  }
  if (after >= shape.capacity) {
    return;  // newer pushes of this batch fill the whole bank
  }
  const int64_t slot = row * shape.capacity + position % shape.capacity;
  store_row<Source, Stored, V>(features + n * shape.feature_dim, features_bank + slot * shape.feature_dim,
                               shape.feature_dim);
  store_row<float, float, 1>(proposal_boxes + n * 4, proposal_boxes_bank + slot * 4, 4);
  store_row<float, float, 1>(gt_boxes + n * 4, gt_boxes_bank + slot * 4, 4);
}

// Values that one load or store of 16 bytes may hold; 1 where a row does not start at a multiple of them.
int pack_size(int64_t feature_dim, std::initializer_list<std::pair<const void*, size_t>> arrays) {
  size_t widest = 1;
  for (const auto& [pointer, size] : arrays) {
    widest = std::max(widest, size);
  }
  const int pack = static_cast<int>(16 / widest);
  bool aligned = feature_dim % pack == 0;
  for (const auto& [pointer, size] : arrays) {
    aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % (size * pack) == 0;
  }
  return aligned ? pack : 1;
}

template <typename Source, typename Stored, int V>
void launch_enqueue(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                    const Tensor& pushed, const Tensor& rejected, const Tensor& features, const Tensor& proposal_boxes,
                    const Tensor& gt_boxes, const Tensor& labels, const Tensor& category_to_row, const bool* keep,
                    const BankShape& shape) {
  const int64_t batch = labels.size(0);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Tensor scratch = at::empty({2, batch}, labels.options());
  int64_t* bank_rows = scratch.mutable_data_ptr<int64_t>();
  int64_t* pushed_before = bank_rows + batch;
  const Source* feature = features.const_data_ptr<Source>();
  const float* proposal_box = proposal_boxes.const_data_ptr<float>();
  const float* gt_box = gt_boxes.const_data_ptr<float>();
  const auto find_blocks = static_cast<unsigned>((batch * kWarp + kThreads - 1) / kThreads);
  find_bank_rows<Source, Stored, V><<<find_blocks, kThreads, 0, stream>>>(
      feature, proposal_box, gt_box, labels.const_data_ptr<int64_t>(), category_to_row.const_data_ptr<int64_t>(), keep,
      pushed.const_data_ptr<int64_t>(), batch, shape, bank_rows, pushed_before);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  push_rows<Source, Stored, V><<<static_cast<unsigned>(batch + 1), kThreads, 0, stream>>>(
      feature, proposal_box, gt_box, bank_rows, pushed_before, batch, shape, features_bank.mutable_data_ptr<Stored>(),
      proposal_boxes_bank.mutable_data_ptr<float>(), gt_boxes_bank.mutable_data_ptr<float>(),
      pushed.mutable_data_ptr<int64_t>(), rejected.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void enqueue_cuda(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                  const Tensor& pushed, const Tensor& rejected, const Tensor& features, const Tensor& proposal_boxes,
                  const Tensor& gt_boxes, const Tensor& labels, const Tensor& category_to_row,
                  const std::optional<Tensor>& keep) {
  const BankShape shape = check_enqueue(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, rejected, features,
                                        proposal_boxes, gt_boxes, labels, category_to_row, keep);
  TORCH_CHECK(labels.size(0) < std::numeric_limits<int32_t>::max() / kWarp, "enqueue: a batch of ", labels.size(0),
              " rows is too large for one call");
  if (labels.size(0) == 0) {
    return;
  }
  const c10::cuda::CUDAGuard guard(features_bank.device());
  const Tensor dense_features = features.contiguous();
  const Tensor dense_keep = keep ? keep->contiguous() : Tensor();
  with_feature_type(features.scalar_type(), [&](auto source_value) {
    with_feature_type(features_bank.scalar_type(), [&](auto stored_value) {
      using Source = decltype(source_value);
      using Stored = decltype(stored_value);
      const int pack = pack_size(shape.feature_dim, {{dense_features.const_data_ptr(), sizeof(Source)},
                                                     {features_bank.const_data_ptr(), sizeof(Stored)}});
      constexpr int kPack = 16 / std::max(sizeof(Source), sizeof(Stored));
      const auto launch = pack == 1 ? &launch_enqueue<Source, Stored, 1> : &launch_enqueue<Source, Stored, kPack>;
      launch(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, rejected, dense_features,
             proposal_boxes.contiguous(), gt_boxes.contiguous(), labels.contiguous(), category_to_row.contiguous(),
             dense_keep.defined() ? dense_keep.const_data_ptr<bool>() : nullptr, shape);
    });
  });
}

// One row of sample's result: the index-th replay of a category.
struct Replay {
  int32_t category;
  int32_t index;
};

// sample, first step, in one block: the categories among the labels, how many replays each has, and from these the
// replay that each row of the result is. `total` may be more than `most_rows`; what does not fit is left out.
__global__ void plan_replays(const int64_t* labels, const int64_t* category_to_row, const int64_t* pushed,
                             const int64_t* counts, int64_t batch, BankShape shape, int64_t most_rows,
                             unsigned* present, Replay* replays, int64_t* total) {
  for (int64_t word = threadIdx.x; word < (shape.labels + 31) / 32; word += blockDim.x) {
    present[word] = 0;
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < batch; n += blockDim.x) {
    const int64_t label = labels[n];
    if (label >= 0 && label < shape.labels && category_to_row[label] >= 0 && category_to_row[label] < shape.rows) {
      atomicOr(&present[label / 32], 1u << (label % 32));  // the same bits in whatever order
    }
  }
  __syncthreads();
  int64_t first = 0;
  for (int64_t begin = 0; begin < shape.labels; begin += blockDim.x) {
    const int64_t category = begin + threadIdx.x;
    int64_t count = 0;
    if (category < shape.labels && (present[category / 32] >> (category % 32) & 1u)) {
      const int64_t row = category_to_row[category];
      count = max(int64_t{0}, min(min(counts[row], pushed[row]), shape.capacity));
    }
    int64_t total_here;
    const int64_t offset = first + block_exclusive_sum(count, total_here);
    for (int64_t i = 0; i < count && offset + i < most_rows; ++i) {
      replays[offset + i] = {static_cast<int32_t>(category), static_cast<int32_t>(i)};
    }
    first += total_here;
  }
  if (threadIdx.x == 0) {
    *total = first;
  }
}

// The slot of the index-th smallest random value among the filled ones, in all threads of the block.
__device__ int64_t random_slot(const float* random, int64_t filled, int64_t index) {
  __shared__ int64_t chosen;
  for (int64_t slot = threadIdx.x; slot < filled; slot += blockDim.x) {
    const uint64_t key = slot_key(random[slot], slot);
    int64_t smaller = 0;
    for (int64_t other = 0; other < filled; ++other) {
      smaller += slot_key(random[other], other) < key;
    }
    if (smaller == index) {
      chosen = slot;  // one thread alone: keys are distinct
    }
  }
  __syncthreads();
  return chosen;
}

template <typename T, int V>
__device__ void zero_row(T* to, int64_t size) {
  for (int64_t i = threadIdx.x; i < size / V; i += blockDim.x) {
    Pack<T, V> zeros;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      zeros.values[v] = static_cast<T>(0.0f);
    }
    reinterpret_cast<Pack<T, V>*>(to)[i] = zeros;
  }
}

// sample, second step: a block for each row of the result. `valid` is null where every row is.
template <typename Stored, int V>
__global__ void gather_replays(const Stored* features_bank, const float* proposal_boxes_bank,
                               const float* gt_boxes_bank, const int64_t* pushed, const int64_t* category_to_row,
                               const float* random, const Replay* replays, const int64_t* total, BankShape shape,
                               Stored* features, int64_t* labels, float* proposal_boxes, float* gt_boxes, bool* valid) {
  const int64_t m = blockIdx.x;
  const bool is_replay = m < *total;
  if (valid != nullptr && threadIdx.x == 0) {
    valid[m] = is_replay;
  }
  features += m * shape.feature_dim;
  if (!is_replay) {
    zero_row<Stored, V>(features, shape.feature_dim);
    zero_row<float, 1>(proposal_boxes + m * 4, 4);
    zero_row<float, 1>(gt_boxes + m * 4, 4);
    if (threadIdx.x == 0) {
      labels[m] = kPaddingLabel;
    }
    return;
  }
  const Replay replay = replays[m];
  const int64_t row = category_to_row[replay.category];
  int64_t slot;
  if (random == nullptr) {
    slot = (pushed[row] - 1 - replay.index) % shape.capacity;
  } else {
    slot = random_slot(random + row * shape.capacity, min(pushed[row], shape.capacity), replay.index);
  }
  const int64_t entry = row * shape.capacity + slot;
  store_row<Stored, Stored, V>(features_bank + entry * shape.feature_dim, features, shape.feature_dim);
  store_row<float, float, 1>(proposal_boxes_bank + entry * 4, proposal_boxes + m * 4, 4);
  store_row<float, float, 1>(gt_boxes_bank + entry * 4, gt_boxes + m * 4, 4);
  if (threadIdx.x == 0) {
    labels[m] = replay.category;
  }
}

// What the first step of sample leaves on the device for the second.
struct Plan {
  Tensor category_to_row, random;  // contiguous; random is undefined where the newest are taken
  Tensor scratch;                  // total, then the replays, then the bits of the categories present
  int64_t* total;
  Replay* replays;
};

Plan plan_sample(const BankShape& shape, const Tensor& pushed, const Tensor& labels, const Tensor& category_to_row,
                 const Tensor& counts, const std::optional<Tensor>& random, int64_t most_rows) {
  static_assert(sizeof(Replay) == sizeof(int64_t));
  Plan plan;
  plan.category_to_row = category_to_row.contiguous();
  plan.random = random ? random->contiguous() : Tensor();
  plan.scratch = at::empty({1 + most_rows + (shape.labels + 63) / 64}, labels.options());
  plan.total = plan.scratch.mutable_data_ptr<int64_t>();
  plan.replays = reinterpret_cast<Replay*>(plan.total + 1);
  const Tensor dense_labels = labels.contiguous();
  const Tensor dense_counts = counts.contiguous();
  plan_replays<<<1, kPlanThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      dense_labels.const_data_ptr<int64_t>(), plan.category_to_row.const_data_ptr<int64_t>(),
      pushed.const_data_ptr<int64_t>(), dense_counts.const_data_ptr<int64_t>(), labels.size(0), shape, most_rows,
      reinterpret_cast<unsigned*>(plan.total + 1 + most_rows), plan.replays, plan.total);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return plan;
}

PaddedReplays gather(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                     const Tensor& pushed, const BankShape& shape, const Plan& plan, int64_t rows, bool padded) {
  TORCH_CHECK(rows < std::numeric_limits<int32_t>::max(), "sample: ", rows, " rows are too many for one call");
  const Tensor features = at::empty({rows, shape.feature_dim}, features_bank.options());
  const Tensor labels = at::empty({rows}, pushed.options());
  const Tensor proposal_boxes = at::empty({rows, 4}, proposal_boxes_bank.options());
  const Tensor gt_boxes = at::empty({rows, 4}, gt_boxes_bank.options());
  const Tensor valid = padded ? at::empty({rows}, features_bank.options().dtype(at::kBool)) : Tensor();
  if (rows == 0) {
    return {features, labels, proposal_boxes, gt_boxes, valid};
  }
  with_feature_type(features_bank.scalar_type(), [&](auto stored_value) {
    using Stored = decltype(stored_value);
    const int pack = pack_size(shape.feature_dim, {{features_bank.const_data_ptr(), sizeof(Stored)},
                                                   {features.const_data_ptr(), sizeof(Stored)}});
    const auto kernel = pack == 1 ? &gather_replays<Stored, 1> : &gather_replays<Stored, 16 / sizeof(Stored)>;
    kernel<<<static_cast<unsigned>(rows), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        features_bank.const_data_ptr<Stored>(), proposal_boxes_bank.const_data_ptr<float>(),
        gt_boxes_bank.const_data_ptr<float>(), pushed.const_data_ptr<int64_t>(),
        plan.category_to_row.const_data_ptr<int64_t>(),
        plan.random.defined() ? plan.random.const_data_ptr<float>() : nullptr, plan.replays, plan.total, shape,
        features.mutable_data_ptr<Stored>(), labels.mutable_data_ptr<int64_t>(),
        proposal_boxes.mutable_data_ptr<float>(), gt_boxes.mutable_data_ptr<float>(),
        padded ? valid.mutable_data_ptr<bool>() : nullptr);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {features, labels, proposal_boxes, gt_boxes, valid};
}

Replays sample_cuda(const Tensor& features_bank, const Tensor& proposal_boxes_bank, const Tensor& gt_boxes_bank,
                    const Tensor& pushed, const Tensor& labels, const Tensor& category_to_row, const Tensor& counts,
                    const std::optional<Tensor>& random) {
  const BankShape shape = check_sample("sample", features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, labels,
                                       category_to_row, counts, random);
  const c10::cuda::CUDAGuard guard(features_bank.device());
  const int64_t most_rows = std::min(labels.size(0), shape.labels) * shape.capacity;
  const Plan plan = plan_sample(shape, pushed, labels, category_to_row, counts, random, most_rows);
  int64_t rows = 0;
  // The one wait: the size of the result.
  c10::cuda::memcpy_and_sync(&rows, plan.total, sizeof(rows), cudaMemcpyDeviceToHost,
                             c10::cuda::getCurrentCUDAStream());
  auto [features, categories, proposal_boxes, gt_boxes, valid] =
      gather(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, shape, plan, rows, /*padded=*/false);
  return {features, categories, proposal_boxes, gt_boxes};
}

PaddedReplays sample_padded_cuda(const Tensor& features_bank, const Tensor& proposal_boxes_bank,
                                 const Tensor& gt_boxes_bank, const Tensor& pushed, const Tensor& labels,
                                 const Tensor& category_to_row, const Tensor& counts, int64_t rows,
                                 const std::optional<Tensor>& random) {
  TORCH_CHECK(rows >= 0, "sample_padded: rows must not be negative, but is ", rows);
  const BankShape shape = check_sample("sample_padded", features_bank, proposal_boxes_bank, gt_boxes_bank, pushed,
                                       labels, category_to_row, counts, random);
  const c10::cuda::CUDAGuard guard(features_bank.device());
  const Plan plan = plan_sample(shape, pushed, labels, category_to_row, counts, random, rows);
  return gather(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, shape, plan, rows, /*padded=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(rio_bench, CUDA, m) {
  m.impl("enqueue", &enqueue_cuda);
  m.impl("sample", &sample_cuda);
  m.impl("sample_padded", &sample_padded_cuda);
}

}  // namespace rio_bench
