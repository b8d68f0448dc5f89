#include "train/base/yaml_node.h"

#include <fmt/format.h>

#include "dropless/error.h"
#include "train/base/scalar.h"

namespace dropless::train {

using Kind = YamlNode::Kind;

std::string YamlPlace::str() const {
  if (!source) return "config";
  return line == 0 ? *source : fmt::format("{}:{}:{}", *source, line, column);
}

void fail_yaml(const YamlPlace& place, const std::string& message, const std::string& hint) {
  throw Error(ErrorKind::kInvalidArgument, place.str() + ": " + message, hint);
}

void YamlBudget::charge(std::size_t text_bytes, const YamlPlace& place) {
  text_ += text_bytes;
  if (++nodes_ > kMaxYamlNodes || text_ > kMaxYamlText) {
    fail_yaml(place,
              fmt::format("the config grows beyond {} values or {} bytes of text here",
                          kMaxYamlNodes, kMaxYamlText),
              "aliases and ${} that contain each other multiply; write less of them");
  }
}

YamlNode::Entry* YamlNode::find(std::string_view key) {
  const auto found = map->index.find(key);
  return found == map->index.end() ? nullptr : &map->entries[found->second];
}

const YamlNode::Entry* YamlNode::find(std::string_view key) const {
  const auto found = map->index.find(key);
  return found == map->index.end() ? nullptr : &map->entries[found->second];
}

YamlNode::Entry& YamlNode::add(std::string key, YamlPlace where, Pointer value) {
  map->index.emplace(key, map->entries.size());
  map->entries.push_back({std::move(key), std::move(where), std::move(value), false, false});
  return map->entries.back();
}

YamlNode::Pointer copy_yaml(const YamlNode& node, YamlBudget& budget, int depth) {
  if (depth > kMaxYamlDepth) {
    fail_yaml(node.place, fmt::format("nested deeper than {} levels", kMaxYamlDepth), kDepthHint);
  }
  budget.charge(node.text.size(), node.place);
  auto copy = std::make_unique<YamlNode>();
  copy->kind = node.kind;
  copy->resolved = node.resolved;
  copy->plain = node.plain;
  copy->place = node.place;
  copy->text = node.text;
  copy->via = node.via;
  for (const YamlNode::Pointer& item : node.items) {
    copy->items.push_back(copy_yaml(*item, budget, depth + 1));
  }
  if (node.is_map()) {
    copy->map = std::make_unique<YamlNode::Map>();
    for (const YamlNode::Entry& entry : node.map->entries) {
      copy->add(entry.key, entry.place, copy_yaml(*entry.value, budget, depth + 1));
    }
  }
  return copy;
}

// ---- writing ----

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        out += c;
    }
  }
  return out + "\"";
}

// What the reader gives back unquoted as the same text: letters, digits and a few marks that mean
// nothing to YAML there.
bool is_bare(const std::string& text) {
  if (text.empty() || text == "<<") return false;
  for (const char c : text) {
    const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!word && c != '_' && c != '.' && c != '/' && c != '+' && c != '-') return false;
  }
  return text[0] != '-' || text.size() > 1;
}

// Literal `${` leaves with its backslash, so that the dump reads back to the same values.
std::string with_escapes(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "${") == 0) out += '\\';
    out += text[i];
  }
  return out;
}

std::string scalar(const YamlNode& node) {
  const bool typed = parse_bool_text(node.text) || parse_float_text(node.text) ||
                     parse_int_text(node.text) || is_null_text(node.text);
  if (is_bare(node.text) && (node.plain || !typed)) return node.text;
  return quoted(with_escapes(node.text));
}

std::string key_text(const std::string& key) {
  return is_bare(key) && !is_null_text(key) ? key : quoted(key);
}

void emit(const YamlNode& node, int indent, std::string& out);

// The value after "key:" or "-": on the same line when it is a scalar or empty.
void emit_value(const YamlNode& node, int indent, std::string& out) {
  if (node.kind == Kind::kNull) {
    out += " null\n";
  } else if (node.kind == Kind::kScalar) {
    out += " " + scalar(node) + "\n";
  } else if (node.is_map() && node.map->entries.empty()) {
    out += " {}\n";
  } else if (node.kind == Kind::kSequence && node.items.empty()) {
    out += " []\n";
  } else {
    out += "\n";
    emit(node, indent, out);
  }
}

void emit(const YamlNode& node, int indent, std::string& out) {
  const std::string margin(static_cast<std::size_t>(indent), ' ');
  if (node.is_map()) {
    for (const YamlNode::Entry& entry : node.map->entries) {
      if (entry.is_taken_out()) continue;
      out += margin + key_text(entry.key) + ":";
      emit_value(*entry.value, indent + 2, out);
    }
  }
  for (const YamlNode::Pointer& item : node.items) {
    out += margin + "-";
    emit_value(*item, indent + 2, out);
  }
}

}  // namespace

std::string emit_yaml(const YamlNode& root) {
  std::string out;
  emit(root, 0, out);
  return out.empty() ? "{}\n" : out;
}

}  // namespace dropless::train
