#include "src/cuda/sm90_block_sparse.cuh"

namespace dropless::cuda::sm90_block_sparse {
template void run<__half>(const Sdd& x);
template void run<__half>(const SparseDense& x);
}  // namespace dropless::cuda::sm90_block_sparse
