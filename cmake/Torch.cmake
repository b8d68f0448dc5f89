# dropless_torch: libtorch out of the PyPI wheel, CPU side only.
#
# TorchConfig.cmake of the CUDA wheel stops where no CUDA toolkit is installed, so the target is made here.
# libtorch_cuda is not linked but loaded at run time where a driver is present (train/bridge/device.cc): one
# binary serves machines with and without a GPU, and starts fast on those without.
if(NOT DROPLESS_TORCH_DIR)
  message(FATAL_ERROR "DROPLESS_TORCH_DIR is not set.\n"
    "HINT: ./dev build sets it; by hand: -DDROPLESS_TORCH_DIR=$(python3 -c 'import torch; print(torch.__path__[0])')")
endif()
if(NOT EXISTS ${DROPLESS_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no libtorch_cpu.so under ${DROPLESS_TORCH_DIR}/lib\nHINT: install the wheel: pip install torch==2.11.0")
endif()

add_library(dropless_torch INTERFACE)
target_include_directories(dropless_torch SYSTEM INTERFACE
  ${DROPLESS_TORCH_DIR}/include ${DROPLESS_TORCH_DIR}/include/torch/csrc/api/include)
# The wheel brings its own OpenMP runtime; linking it by path keeps one thread pool in the process.
target_link_libraries(dropless_torch INTERFACE
  ${DROPLESS_TORCH_DIR}/lib/libtorch_cpu.so
  ${DROPLESS_TORCH_DIR}/lib/libc10.so
  ${DROPLESS_TORCH_DIR}/lib/libgomp.so.1)
target_link_options(dropless_torch INTERFACE -Wl,-rpath,${DROPLESS_TORCH_DIR}/lib -Wl,--no-as-needed)
