// Entries of reference/decode.cc: semantics in include/dropless/decode.h, rules in kernels.h. There is no
// faster form: on a CPU such a pass is its products.
#pragma once

#include "src/common/decode_args.h"

namespace dropless::cpu::reference {

void decode_product(const DecodeProductArgs& args);
void decode_add_norm(const DecodeAddNormArgs& args);
void decode_attention(const DecodeAttentionArgs& args);

}  // namespace dropless::cpu::reference
