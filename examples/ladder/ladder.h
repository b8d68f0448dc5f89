// One product, eight kernels: out[r, n] = sum over k of x[r, k] w[e(r), n, k], rows sorted by expert e.
// bf16 in and out, fp32 sums: the up projection of a mixture of experts. README.md walks through them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace dropless::ladder {

// All memory on the device. N is a multiple of 256 and K of 64 here, so that the kernels show what each
// step is about; the shipped one takes multiples of 8.
struct Problem {
  const __nv_bfloat16* x_RK;
  const __nv_bfloat16* w_ENK;
  __nv_bfloat16* out_RN;
  // A count, three ints of padding, then {expert, first row, rows} of tiles of at most 128 rows, made
  // from the experts' offsets on the device: the host knows only how many there may be.
  const void* row_tiles;
  int most_tiles;
  int rows;
  int n;
  int k;
  int experts;
};

void naive(const Problem& problem, cudaStream_t stream);
void shared_memory(const Problem& problem, cudaStream_t stream);
void tensor_cores(const Problem& problem, cudaStream_t stream);
void async_copies(const Problem& problem, cudaStream_t stream);
void copy_engine(const Problem& problem, cudaStream_t stream);
void roles(const Problem& problem, cudaStream_t stream);
void persistent(const Problem& problem, cudaStream_t stream);
void cluster(const Problem& problem, cudaStream_t stream);

}  // namespace dropless::ladder
