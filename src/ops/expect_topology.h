// Argument checks of block topologies, shared by their ops and the products.
#pragma once

#include <cstdint>

#include "dropless/backend.h"
#include "dropless/block_sparse.h"
#include "dropless/view.h"

namespace dropless {

// 1 to 128.
void expect_block_size(const char* op, std::int64_t block_size);

// The number of blocks that there is room for (on the CPU: that there are), out of row_indices.
std::int64_t expect_blocks(const char* op, const BlockTopology& t);

std::int64_t block_rows(const BlockTopology& t);
std::int64_t block_columns(const BlockTopology& t);

// Shapes, types and device of the walks' tensors, whatever they hold.
void expect_row_walk(const char* op, const BlockTopology& t, Device device);
void expect_column_walk(const char* op, const BlockTopology& t, Device device);

// Sides and row walk; on the CPU, where they can be looked at, every entry too.
void check_row_walk(const char* op, const BlockTopology& t, Device device);
// The same of the column walk, whose entries are compared with the row walk, which has been checked.
void check_column_walk(const char* op, const BlockTopology& t, Device device);

// Throws Error(kUnsupported) where `device` is a GPU that the kernels do not run on.
void expect_device(const char* op, Device device, Backend backend);

inline bool on_gpu(Device device) { return device.type == DeviceType::kCuda; }

}  // namespace dropless
