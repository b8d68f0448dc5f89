// Out-of-line halves of check.h: message formatting and the throw.
#include "src/common/check.h"

#include <string_view>

namespace dropless {
namespace {

// The path from the repository's root on: builds must not differ by where the tree lies.
const char* source_path(const char* file) {
  const std::string_view path = file;
  for (const char* root : {"/src/", "/include/"}) {
    const std::size_t at = path.rfind(root);
    if (at != std::string_view::npos) return file + at + 1;
  }
  return file;
}

}  // namespace

std::string describe(const ConstTensorView& view) {
  if (!view) return "absent";
  std::ostringstream text;
  if (view.rank > ConstTensorView::kMaxRank) return concat("a view of ", view.rank, " dimensions");
  text << '[';
  for (int i = 0; i < view.rank; ++i) text << (i ? ", " : "") << view.shape[i];
  text << "] " << dtype_name(view.dtype);
  if (view.device.type == DeviceType::kCuda) text << " on cuda:" << view.device.index;
  return text.str();
}

void check_failed(ErrorKind kind, const char* expression, const char* file, int line,
                  const std::string& message, const std::string& hint) {
  const char* place = source_path(file);
  throw Error(kind, concat(message, " [", expression, " at ", place, ":", line, "]"),
              hint.empty() && kind == ErrorKind::kInvalidArgument
                  ? "include/dropless has a header for each op, which says what it takes"
                  : hint,
              place, line);
}

}  // namespace dropless
