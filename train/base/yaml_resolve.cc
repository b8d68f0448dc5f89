// Overrides (`a.b.c=v`) and interpolation (`${variables.x}`), both on the tree.
#include <algorithm>
#include <charconv>

#include "train/base/suggest.h"
#include "train/base/utf8.h"
#include "train/base/yaml_node.h"

namespace dropless::train {
namespace {

using Kind = YamlNode::Kind;

std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (true) {
    const std::size_t dot = path.find('.', begin);
    parts.emplace_back(path.substr(begin, dot - begin));
    if (dot == std::string_view::npos) return parts;
    begin = dot + 1;
  }
}

// Puts `value` over `target`: mappings merge key by key, all else is replaced.
void merge_into(YamlNode::Pointer& target, YamlNode::Pointer value) {
  if (!target->is_map() || !value->is_map()) {
    target = std::move(value);
    return;
  }
  for (YamlNode::Entry& entry : value->map->entries) {
    if (YamlNode::Entry* existing = target->find(entry.key)) {
      existing->place = entry.place;
      merge_into(existing->value, std::move(entry.value));
    } else {
      target->add(entry.key, entry.place, std::move(entry.value));
    }
  }
}

YamlNode::Pointer empty_map(const YamlPlace& place, YamlBudget& budget) {
  auto node = std::make_unique<YamlNode>();
  node->kind = Kind::kMap;
  node->map = std::make_unique<YamlNode::Map>();
  node->place = place;
  budget.charge(0, place);
  return node;
}

// ---- interpolation ----

class Resolver {
 public:
  Resolver(YamlNode::Pointer& root, YamlBudget& budget) : root_(root), budget_(budget) {}

  void resolve(YamlNode::Pointer& slot, const std::string& path) {
    if (slot->kind == Kind::kSequence) {
      const Visit visit(*this, path, slot->place);
      for (std::size_t i = 0; i < slot->items.size(); ++i) {
        resolve(slot->items[i], join(path, std::to_string(i)));
      }
    } else if (slot->is_map()) {
      const Visit visit(*this, path, slot->place);
      for (YamlNode::Entry& entry : slot->map->entries) {
        resolve(entry.value, join(path, entry.key));
      }
    } else if (slot->kind == Kind::kScalar && !slot->resolved &&
               slot->text.find("${") != std::string::npos) {
      const Visit visit(*this, path, slot->place);
      resolve_scalar(slot, path);
    }
  }

 private:
  // A value being resolved: coming back to it is a cycle.
  class Visit {
   public:
    Visit(Resolver& resolver, const std::string& path, const YamlPlace& place)
        : resolver_(resolver) {
      std::vector<std::string>& open = resolver.open_;
      if (static_cast<int>(open.size()) > kMaxYamlDepth) {
        fail_yaml(place, path + ": nested deeper than " + std::to_string(kMaxYamlDepth) + " levels",
                  kDepthHint);
      }
      open.push_back(path);
    }
    ~Visit() { resolver_.open_.pop_back(); }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

   private:
    Resolver& resolver_;
  };

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  void resolve_scalar(YamlNode::Pointer& slot, const std::string& path) {
    const YamlPlace place = slot->place;
    const std::string text = slot->text;
    std::string out;
    std::size_t at = 0;
    while (at < text.size()) {
      if (text.compare(at, 3, "\\${") == 0) {  // `\${` is a literal `${`
        out += "${";
        at += 3;
      } else if (text.compare(at, 2, "${") == 0) {
        const std::size_t begin = at;
        const std::string target = read_reference(text, at, place, path);
        const YamlNode& value = lookup(target, place, path);
        if (begin == 0 && at == text.size()) {  // the whole scalar: the value itself, with its type
          YamlNode::Pointer copy = copy_yaml(value, budget_, static_cast<int>(open_.size()));
          copy->place = place;
          copy->via = "${" + target + "}, " + value.place.str();
          slot = std::move(copy);
          return;
        }
        append_text(out, value, target, place, path);
      } else {
        out += text[at++];
      }
    }
    budget_.charge(out.size(), place);
    slot->text = out;
    slot->plain = false;
    slot->resolved = true;
  }

  // text[at] is the `$` of `${`; moves behind the `}` and returns what stands between, inner ones
  // resolved.
  std::string read_reference(const std::string& text, std::size_t& at, const YamlPlace& place,
                             const std::string& path, int depth = 0) {
    if (depth > kMaxYamlDepth) fail_yaml(place, path + ": ${ } nested too deeply", kDepthHint);
    std::string name;
    at += 2;
    while (at < text.size() && text[at] != '}') {
      if (text.compare(at, 2, "${") == 0) {
        const std::string inner = read_reference(text, at, place, path, depth + 1);
        append_text(name, lookup(inner, place, path), inner, place, path);
      } else {
        name += text[at++];
      }
    }
    if (at == text.size()) {
      fail_yaml(place, path + ": \"${\" without its \"}\"", "write \\${ for a literal ${");
    }
    ++at;
    check_reference(name, place, path);
    return name;
  }

  static void check_reference(const std::string& name, const YamlPlace& place,
                              const std::string& path) {
    const bool usable = !name.empty() && name[0] != '.' && name.back() != '.' &&
                        name.find("..") == std::string::npos &&
                        name.find_first_of(" \t\n:,[]{}$\"'") == std::string::npos;
    if (usable) return;
    fail_yaml(
        place, path + ": ${" + name + "} is not an absolute dotted path",
        "write the whole path, like ${variables.max_seq_len}; relative paths and resolvers such as "
        "${oc.env:HOME} are not supported");
  }

  void append_text(std::string& out, const YamlNode& value, const std::string& target,
                   const YamlPlace& place, const std::string& path) {
    if (value.kind != Kind::kScalar) {
      const char* what = value.kind == Kind::kNull ? "null"
                         : value.is_map()          ? "a mapping"
                                                   : "a sequence";
      fail_yaml(place,
                path + ": ${" + target + "} is " + what + " and cannot stand inside a string",
                "name one of its values, like ${model.d_model}");
    }
    out += value.text;
    if (out.size() > kMaxYamlText) {
      fail_yaml(place, path + ": ${} makes more text than is allowed",
                "values that contain each other multiply; write less of them");
    }
  }

  // The resolved value at an absolute path.
  const YamlNode& lookup(const std::string& target, const YamlPlace& place,
                         const std::string& path) {
    YamlNode::Pointer* slot = &root_;
    std::string walked;
    const std::vector<std::string> parts = split_path(target);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      // A value on the way may itself come out of a ${}.
      if ((*slot)->kind == Kind::kScalar) enter(*slot, walked, place);
      YamlNode::Pointer* next = step_into(**slot, parts[i]);
      if (next == nullptr) fail_unknown(**slot, parts[i], target, place, path);
      walked = join(walked, parts[i]);
      slot = next;
    }
    enter(*slot, walked, place);
    return **slot;
  }

  void enter(YamlNode::Pointer& slot, const std::string& path, const YamlPlace& place) {
    const auto begin = std::find(open_.begin(), open_.end(), path);
    if (begin != open_.end()) {
      std::string chain;
      for (auto step = begin; step != open_.end(); ++step) chain += *step + " -> ";
      fail_yaml(place, "${} in a circle: " + chain + path, "give one of them a value of its own");
    }
    resolve(slot, path);
  }

  [[noreturn]] static void fail_unknown(const YamlNode& node, const std::string& part,
                                        const std::string& target, const YamlPlace& place,
                                        const std::string& path) {
    std::string message = path + ": ${" + target + "}: there is no \"" + part + "\"";
    if (node.is_map()) {
      std::vector<std::string> keys;
      for (const YamlNode::Entry& entry : node.map->entries) keys.push_back(entry.key);
      const std::string nearest = nearest_word(part, keys);
      if (!nearest.empty()) message += "; did you mean \"" + nearest + "\"?";
    }
    fail_yaml(place, message, "${} takes the whole path of a key of this file");
  }

  YamlNode::Pointer& root_;
  YamlBudget& budget_;
  std::vector<std::string> open_;  // paths of the values being resolved, outermost first
};

}  // namespace

YamlNode::Pointer* step_into(YamlNode& node, std::string_view component) {
  if (node.is_map()) {
    YamlNode::Entry* entry = node.find(component);
    return entry ? &entry->value : nullptr;
  }
  if (node.kind == Kind::kSequence) {
    std::size_t index = 0;
    const char* end = component.data() + component.size();
    const auto result = std::from_chars(component.data(), end, index);
    if (result.ec == std::errc() && result.ptr == end && index < node.items.size()) {
      return &node.items[index];
    }
  }
  return nullptr;
}

void apply_override(YamlNode::Pointer& root, const std::string& text, YamlBudget& budget) {
  // A block's override may be long, and each message about one of its keys begins with the place.
  constexpr std::size_t kShown = 100;
  const std::string shown = text.size() <= kShown ? text : cut_to_width(text, kShown) + "...";
  const YamlPlace place{std::make_shared<const std::string>("override \"" + shown + "\""), 0, 0};
  const std::size_t equals = text.find('=');
  const std::vector<std::string> parts = split_path(std::string_view(text).substr(0, equals));
  const bool named = std::none_of(parts.begin(), parts.end(), [](const std::string& part) {
    return part.empty() || part.find_first_of(" \t\n\"'") != std::string::npos;
  });
  if (equals == std::string::npos || !named || text.rfind("--", 0) == 0) {
    fail_yaml(place, "not of the form key.path=value", "for example optimizer.lr=3e-4");
  }
  if (parts.size() > kMaxYamlDepth) fail_yaml(place, "the path has too many parts", kDepthHint);
  YamlNode::Pointer value =
      read_yaml(std::string_view(text).substr(equals + 1), *place.source, true, budget);
  YamlNode::Pointer* slot = &root;
  YamlNode::Entry* last = nullptr;  // the key that is set, where it stood there before
  std::string walked;
  for (const std::string& part : parts) {
    if ((*slot)->kind == Kind::kNull) *slot = empty_map(place, budget);
    YamlNode::Pointer* next = step_into(**slot, part);
    last = next != nullptr && (*slot)->is_map() ? (*slot)->find(part) : nullptr;
    if (next == nullptr && (*slot)->is_map()) {
      next = &(*slot)->add(part, place, empty_map(place, budget)).value;
    }
    if (next == nullptr) {
      const char* what =
          (*slot)->kind == Kind::kScalar ? "a single value" : "a sequence without it";
      fail_yaml(place,
                "cannot set \"" + part + "\": " + (walked.empty() ? "the config" : walked) +
                    " is " + what + " (" + (*slot)->place.str() + ")",
                "set the whole of it instead");
    }
    if ((*slot)->is_map()) (*slot)->find(part)->place = place;
    walked += (walked.empty() ? "" : ".") + part;
    slot = next;
  }
  if (last != nullptr) last->nulled = value->kind == Kind::kNull;
  merge_into(*slot, std::move(value));
}

void resolve_interpolations(YamlNode::Pointer& root, YamlBudget& budget) {
  Resolver(root, budget).resolve(root, "");
}

}  // namespace dropless::train
