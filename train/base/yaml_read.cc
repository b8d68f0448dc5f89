// YAML text to a tree: yaml-cpp scans and parses, the handler below builds, checks and expands.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <sstream>
#include <unordered_map>

#include "train/base/scalar.h"
#include "train/base/utf8.h"
#include "train/base/yaml_node.h"
#include "train/base/yaml_syntax.h"

namespace dropless::train {
namespace {

using Kind = YamlNode::Kind;

std::string with_key(const std::string& key, const std::string& message) {
  return key.empty() ? message : cut_to_width(key, 200) + ": " + message;
}

class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::shared_ptr<const std::string> source, bool one_line, YamlBudget& budget)
      : source_(std::move(source)), one_line_(one_line), budget_(budget) {}

  YamlPlace place(const YAML::Mark& mark) const {
    if (one_line_) return {source_, 0, 0};
    return {source_, mark.line + 1, mark.column + 1};
  }
  YamlNode::Pointer take() { return std::move(root_); }
  // Says what is wrong at `mark`, or where the text shows that a person has to look.
  [[noreturn]] void fail_syntax(std::string_view text, YAML::Mark mark, const std::string& message,
                                const std::string& hint) const {
    if (one_line_ || mark.is_null()) fail_yaml(place(mark), message, hint);
    const YamlSyntaxPlace found = locate_syntax_error(text, mark.line, mark.column, message);
    mark.line = found.line;
    mark.column = found.column;
    fail_yaml(place(mark), with_key(found.key, found.message.empty() ? message : found.message),
              found.hint.empty() ? hint : found.hint);
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (started_) {
      fail_yaml(place(mark), "text after the end of the document",
                "a config is one YAML document; look for a stray bracket or a `---` above");
    }
    started_ = true;
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode::Pointer node = make(Kind::kNull, mark);
    // Where nothing stands the mark is that of what comes next, lines below.
    const YamlNode* key = stack_.empty() ? nullptr : stack_.back().key.get();
    if (key != nullptr && key->place.line != node->place.line) node->place = key->place;
    accept(std::move(node), anchor);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode::Pointer node = make(Kind::kScalar, mark, value.size());
    node->text = value;
    node->plain = tag == "?" || tag.empty();
    if (tag == "tag:yaml.org,2002:int" || tag == "tag:yaml.org,2002:float" ||
        tag == "tag:yaml.org,2002:bool") {
      node->plain = true;
    } else if (!node->plain && tag != "!" && tag != "tag:yaml.org,2002:str") {
      refuse_tag(mark, tag);
    }
    if (node->plain && is_null_text(value)) {
      node->kind = Kind::kNull;
      node->text.clear();
    }
    accept(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      fail_yaml(place(mark), with_key(path(), "an alias inside the value it stands for"),
                "write the value out, or point the alias at another one");
    }
    YamlNode::Pointer node = copy_yaml(*found->second, budget_, static_cast<int>(stack_.size()));
    node->place = place(mark);
    accept(std::move(node), 0);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    if (!tag.empty() && tag != "?" && tag != "tag:yaml.org,2002:seq") refuse_tag(mark, tag);
    open(make(Kind::kSequence, mark), mark, anchor);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    if (!tag.empty() && tag != "?" && tag != "tag:yaml.org,2002:map") refuse_tag(mark, tag);
    YamlNode::Pointer node = make(Kind::kMap, mark);
    node->map = std::make_unique<YamlNode::Map>();
    open(std::move(node), mark, anchor);
  }
  void OnMapEnd() override {
    apply_merges(stack_.back());
    close();
  }

 private:
  // A collection still being read. In a mapping, `key` waits for its value.
  struct Level {
    YamlNode::Pointer node;
    YAML::anchor_t anchor = 0;
    YamlNode::Pointer key;
    std::vector<YamlNode::Pointer> merges;  // values of `<<`
    bool merged = false;
  };

  YamlNode::Pointer make(Kind kind, const YAML::Mark& mark, std::size_t text_bytes = 0) {
    auto node = std::make_unique<YamlNode>();
    node->kind = kind;
    node->place = place(mark);
    budget_.charge(text_bytes, node->place);
    return node;
  }

  // Of the value that comes next: "model.n_heads".
  std::string path() const {
    std::string path;
    for (const Level& level : stack_) {
      if (!level.key && level.node->kind == Kind::kMap) continue;  // a key comes next
      if (!path.empty()) path += '.';
      path += level.key ? level.key->text : std::to_string(level.node->items.size());
    }
    return path;
  }

  [[noreturn]] void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    fail_yaml(place(mark), with_key(path(), "tag " + tag + " is not supported"),
              "a config holds plain mappings, sequences and scalars; remove the tag");
  }

  void open(YamlNode::Pointer node, const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (static_cast<int>(stack_.size()) >= kMaxYamlDepth) {
      fail_yaml(place(mark), "nested deeper than " + std::to_string(kMaxYamlDepth) + " levels",
                kDepthHint);
    }
    stack_.push_back({std::move(node), anchor, nullptr, {}, false});
  }

  void close() {
    Level level = std::move(stack_.back());
    stack_.pop_back();
    accept(std::move(level.node), level.anchor);
  }

  // A complete node: the root, a sequence's item, a mapping's key or its value.
  void accept(YamlNode::Pointer node, YAML::anchor_t anchor) {
    if (anchor != 0) anchors_[anchor] = copy_yaml(*node, budget_);
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = stack_.back();
    if (level.node->kind == Kind::kSequence) {
      level.node->items.push_back(std::move(node));
    } else if (!level.key) {
      accept_key(level, std::move(node));
    } else if (is_merge(*level.key)) {
      accept_merge(level, std::move(node));
    } else {
      level.node->add(level.key->text, level.key->place, std::move(node));
      level.key = nullptr;
    }
  }

  static bool is_merge(const YamlNode& key) { return key.plain && key.text == "<<"; }

  void accept_key(Level& level, YamlNode::Pointer key) {
    if (key->kind != Kind::kScalar) {
      fail_yaml(key->place, "a key must be a scalar", "quote it if it is meant as text");
    }
    if (is_merge(*key) ? level.merged : level.node->find(key->text) != nullptr) {
      const std::string first =
          is_merge(*key) ? std::string()
                         : " (first at " + level.node->find(key->text)->place.str() + ")";
      fail_yaml(key->place,
                with_key(path(), "key \"" + key->text + "\" stands twice in one mapping" + first),
                "remove one of the two");
    }
    level.key = std::move(key);
  }

  void accept_merge(Level& level, YamlNode::Pointer value) {
    std::vector<YamlNode::Pointer> parts;
    if (value->kind == Kind::kSequence) {
      parts = std::move(value->items);
    } else {
      parts.push_back(std::move(value));
    }
    for (YamlNode::Pointer& part : parts) {
      if (!part->is_map()) {
        fail_yaml(part->place, "`<<` takes a mapping or a sequence of mappings",
                  "give it the alias of a mapping, like `<<: *base`");
      }
      level.merges.push_back(std::move(part));
    }
    level.merged = true;
    level.key = nullptr;
  }

  // Keys written out win over merged ones, earlier merged mappings over later ones.
  static void apply_merges(Level& level) {
    for (YamlNode::Pointer& part : level.merges) {
      for (YamlNode::Entry& entry : part->map->entries) {
        if (level.node->find(entry.key) == nullptr) {
          level.node->add(entry.key, entry.place, std::move(entry.value));
        }
      }
    }
  }

  std::shared_ptr<const std::string> source_;
  bool one_line_;
  YamlBudget& budget_;
  bool started_ = false;
  std::vector<Level> stack_;
  std::unordered_map<YAML::anchor_t, YamlNode::Pointer> anchors_;
  YamlNode::Pointer root_;
};

void check_text(std::string_view text, const TreeBuilder& builder) {
  YAML::Mark mark;
  const auto fail = [&](std::size_t position, const std::string& message, const std::string& hint) {
    for (std::size_t i = 0; i < position; ++i) {
      mark.line += text[i] == '\n';
      mark.column = text[i] == '\n' ? 0 : mark.column + 1;
    }
    builder.fail_syntax(text, mark, message, hint);
  };
  if (text.size() > kMaxYamlBytes) {
    fail_yaml(builder.place(mark),
              "a config of " + std::to_string(text.size()) + " bytes; at most " +
                  std::to_string(kMaxYamlBytes) + " are read",
              "is this the right file?");
  }
  const std::size_t bad = find_invalid_utf8(text);
  if (bad != std::string_view::npos) fail(bad, "not valid UTF-8", "save the file as UTF-8");
  for (std::size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f) {
      fail(i, "a control character (byte " + std::to_string(c) + ")", "is this a text file?");
    }
  }
}

// For what yaml-cpp says in its own terms.
std::string hint_of(const std::string& message) {
  if (message.starts_with("illegal EOF in scalar") ||
      message.starts_with("illegal document indicator in scalar")) {
    return "a quote is opened and not closed";
  }
  if (message.starts_with("end of map flow")) {
    return "a { is not closed, or a } stands in a value without quotes, as in {a: \"${b}\"}";
  }
  if (message.starts_with("end of sequence flow")) {
    return "a [ is not closed, or a ] stands in a value without quotes";
  }
  if (message.starts_with("illegal flow end")) {
    return "a [ or { is not closed, or closed by the other's bracket";
  }
  if (message.starts_with("illegal tab")) return "YAML is indented by spaces";
  if (message.starts_with("illegal map value"))
    return "quote a value that holds a colon and a space, and look at the indentation here and "
           "above";
  if (message.find("anchor") != std::string::npos) {
    return "an alias *name needs its anchor &name above it; quote text that begins with *";
  }
  return "look here and above for a wrong indentation, an open bracket or a missing quote";
}

}  // namespace

YamlNode::Pointer read_yaml(std::string_view text, const std::string& source, bool one_line,
                            YamlBudget& budget) {
  TreeBuilder builder(std::make_shared<const std::string>(source), one_line, budget);
  check_text(text, builder);
  // yaml-cpp takes the end of a file for the end of a quoted scalar, unless a mark stands there.
  std::istringstream stream{std::string(text) + (text.ends_with('\n') ? "...\n" : "")};
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    // yaml-cpp 0.8 quotes what it read, however long.
    std::string message = cut_to_width(error.msg, 200);
    if (message.size() < error.msg.size()) message += "...";
    builder.fail_syntax(text, error.mark, message, hint_of(error.msg));
  }
  YamlNode::Pointer root = builder.take();
  if (!root) {
    root = std::make_unique<YamlNode>();
    root->place = builder.place(YAML::Mark());
  }
  return root;
}

}  // namespace dropless::train
