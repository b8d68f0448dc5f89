// Entries of decode.cu and decode_product.cu: semantics in include/dropless/decode.h, rules in
// kernels.h.
#pragma once

#include "dropless/backend.h"
#include "src/common/decode_args.h"

namespace dropless::cuda {

void decode_product(const DecodeProductArgs& args, Stream stream);
void decode_add_norm(const DecodeAddNormArgs& args, Stream stream);
void decode_attention(const DecodeAttentionArgs& args, Stream stream);

}  // namespace dropless::cuda
