# CUDA: a static runtime, and a build that fails where a kernel spills registers or uses local memory. The kernel
# library says file by file which GPUs it compiles for (src/cuda/CMakeLists.txt); what else is CUDA, the tests'
# and the benchmarks', follows CMAKE_CUDA_ARCHITECTURES.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90-real)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit 13.0 REQUIRED)

set(DROPLESS_CUDA_FLAGS -Xcompiler=-Wall,-Wextra)
# Compressed, the kernels take a third of the room; each file's are unpacked when one of them is first used.
# Warnings are errors by nvcc's -Werror: ptxas' would travel with the PTX, and a driver that compiles it for a newer
# GPU would fail where a register spills there.
set(DROPLESS_KERNEL_FLAGS -Werror=all-warnings "-Xptxas=-warn-spills,-warn-lmem-usage" --compress-mode=size)
