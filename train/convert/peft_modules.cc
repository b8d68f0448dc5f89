#include "train/convert/peft_modules.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string_view>
#include <utility>

#include "dropless/error.h"
#include "train/base/regex.h"

namespace dropless::train {
namespace {

using Json = nlohmann::json;

// One matrix's adapter.
struct Module {
  at::Tensor a, b;   // [r, in], [out, r], fp32
  double scale = 0;  // 0: not known yet
};
// By their names without "base_model.model.".
using Modules = std::map<std::string, Module>;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";

Modules read_modules(const TensorFolder& file, const std::string& path) {
  Modules modules;
  for (const auto& [name, entry] : file.tensors()) {
    const bool is_a = name.ends_with(kA);
    if (!name.starts_with(kPrefix) || !(is_a || name.ends_with(kB)) ||
        entry.info.shape.size() != 2) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: {} [{}] is not supported", path, name,
                              fmt::join(entry.info.shape, ", ")),
                  "lora_A and lora_B of linear layers and of stacked experts are");
    }
    const std::string module =
        name.substr(kPrefix.size(), name.size() - kPrefix.size() - kA.size());
    (is_a ? modules[module].a : modules[module].b) = read_whole(file, name);
  }
  for (const auto& [name, module] : modules) {
    if (module.a.defined() && module.b.defined() && module.a.size(0) == module.b.size(1)) continue;
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: the two sides of {} do not fit each other", path, name));
  }
  return modules;
}

// PEFT wraps the stacked experts of transformers 5 as parameters: one module for gate_up_proj and one for
// down_proj, called `experts` and, inside it, `experts.base_layer`, in either order. A is [E * r, in] and B
// is [out, r * E], of which the experts are the columns e, e + E, e + 2E ...; the halves of gate_up_proj share
// their A. Replaces such modules by those of each expert's linear layers. `scale` gives that of a path.
void split_experts(Modules& modules, const ModelConfig& model, Family family,
                   const std::function<double(const std::string&, std::int64_t)>& scale) {
  const MoELayerConfig* moe = model.moe();
  if (moe == nullptr) return;
  const std::int64_t E = moe->moe.num_experts, D = model.d_model;
  const bool mixtral = family == Family::kMixtral;
  static constexpr std::string_view kStack = ".mlp.experts", kInner = ".base_layer";
  Modules each;
  std::erase_if(modules, [&](const auto& entry) {
    std::string_view path = entry.first;
    if (path.ends_with(kInner)) path.remove_suffix(kInner.size());
    const Module& stack = entry.second;
    if (!path.ends_with(kStack) || stack.a.size(0) % E != 0) return false;
    const bool down = stack.b.size(0) == D;
    const std::int64_t r = stack.a.size(0) / E;
    const double s = scale(std::string(path) + (down ? ".down_proj" : ".gate_up_proj"), r);
    const at::Tensor b_EOR = stack.b.view({-1, r, E}).permute({2, 0, 1});
    const std::string prefix =
        fmt::format("{}.{}.experts.", path.substr(0, path.size() - kStack.size()),
                    mixtral ? "block_sparse_moe" : "mlp");
    for (std::int64_t e = 0; e < E; ++e) {
      const auto add = [&](const char* name, const at::Tensor& b) {
        each[fmt::format("{}{}.{}", prefix, e, name)] = {stack.a.narrow(0, e * r, r), b, s};
      };
      if (down) {
        add(mixtral ? "w2" : "down_proj", b_EOR[e]);
        continue;
      }
      const std::int64_t F = stack.b.size(0) / 2;
      add(mixtral ? "w1" : "gate_proj", b_EOR[e].narrow(0, 0, F));
      add(mixtral ? "w3" : "up_proj", b_EOR[e].narrow(0, F, F));
    }
    return true;
  });
  modules.merge(each);
}

// What alpha_pattern has for `module`: its expressions match the whole path, or its end behind a dot.
double alpha_of(const Json& json, const std::string& path, const std::string& module,
                double usual) {
  const auto patterns = json.find("alpha_pattern");
  if (patterns == json.end() || !patterns->is_object()) return usual;
  const auto refuse = [&](const std::string& pattern) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{}: alpha_pattern '{}' is not supported for {}", path, pattern, module));
  };
  std::optional<double> alpha;
  for (const auto& [pattern, value] : patterns->items()) {
    try {
      if (!std::regex_match(module, user_regex("(.*\\.)?(?:" + pattern + ")"))) continue;
    } catch (const Error&) {
      refuse(pattern);
    }
    // Of several that match PEFT takes the first in the file, whose order is lost here.
    if (!value.is_number() || (alpha && *alpha != value)) refuse(pattern);
    alpha = value.get<double>();
  }
  return alpha.value_or(usual);
}

void replace_tensors(TensorFolder& file, const Modules& modules) {
  std::set<std::string> old;
  for (const auto& [name, entry] : file.tensors()) old.insert(name);
  file.leave_out(old);
  for (const auto& [name, module] : modules) {
    file.add_tensor(fmt::format("{}{}{}", kPrefix, name, kA), module.a.contiguous());
    file.add_tensor(fmt::format("{}{}{}", kPrefix, name, kB), module.b.contiguous());
  }
}

}  // namespace

void unify_modules(const Json& json, const std::string& path, const ModelConfig& model,
                   Family family, TensorFolder& file, LoraConfig& lora) {
  Modules modules = read_modules(file, path);
  const auto scale = [&](const std::string& module, std::int64_t r) {
    LoraConfig own = lora;
    own.r = r;
    own.alpha = alpha_of(json, path, module, lora.alpha);
    return own.scale();
  };
  split_experts(modules, model, family, scale);
  const bool one_rank = json.value("rank_pattern", Json::object()).empty();
  std::int64_t r = 1;
  for (auto& [name, module] : modules) {
    const std::int64_t own = module.a.size(0);
    if (one_rank && own != lora.r) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: {} has rank {}, and r is {}", path, name, own, lora.r));
    }
    if (module.scale == 0) module.scale = scale(name, own);
    r = std::max(r, own);
  }
  if (r != lora.r) {
    const double all = lora.scale(), rank = static_cast<double>(r);
    lora.alpha = all * (lora.rslora ? std::sqrt(rank) : rank);
    lora.r = r;
  }
  for (auto& [name, module] : modules) {
    const std::int64_t more = r - module.a.size(0);
    if (more > 0) {
      module.a = at::constant_pad_nd(module.a, {0, 0, 0, more});
      module.b = at::constant_pad_nd(module.b, {0, more});
    }
    if (module.scale != lora.scale()) module.b = module.b * (module.scale / lora.scale());
  }
  replace_tensors(file, modules);
}

}  // namespace dropless::train
