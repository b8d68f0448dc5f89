# CUDA for the kernel library: Hopper's own instruction set (wgmma, setmaxnreg need sm_90a), a static
# runtime, and a build that fails where a kernel spills registers or uses local memory.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit 13.0 REQUIRED)

set(DROPLESS_CUDA_FLAGS -Xcompiler=-Wall,-Wextra)
# Compressed, the kernels take a third of the room; each file's are unpacked when one of them is first used.
set(DROPLESS_KERNEL_FLAGS "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror" --compress-mode=size)
