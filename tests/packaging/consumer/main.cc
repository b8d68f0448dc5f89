// Sorts the tokens of three rows by expert; exits 0 when the answer is right.
#include <dropless/dropless.h>

#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  using namespace dropless;
  const std::vector<std::int32_t> experts_TK = {1, 0, 1};
  std::vector<std::int32_t> rows_TK(3);
  std::vector<std::int64_t> offsets_E1(3);
  struct alignas(64) Line {  // workspaces begin at a multiple of 64 bytes
    char bytes[64];
  };
  std::vector<Line> workspace(dispatch_order_workspace_bytes(3, 2) / sizeof(Line) + 1);
  dispatch_order({experts_TK.data(), DType::kInt32, {3, 1}},
                 {rows_TK.data(), DType::kInt32, {3, 1}}, {offsets_E1.data(), DType::kInt64, {3}},
                 {}, workspace.data(), workspace.size() * sizeof(Line));
  // Expert 0 owns token 1; expert 1 owns tokens 0 and 2, in their order.
  const bool right = rows_TK == std::vector<std::int32_t>{1, 0, 2} &&
                     offsets_E1 == std::vector<std::int64_t>{0, 1, 3};
  if (!right) std::fprintf(stderr, "rows %d %d %d\n", rows_TK[0], rows_TK[1], rows_TK[2]);
  return right ? 0 : 1;
}
