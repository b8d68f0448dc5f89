#include "train/tokenizer/added_tokens.h"

#include <algorithm>

#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

bool word_before(std::string_view text, std::size_t at) {
  if (at == 0) return false;
  return is_word_character(code_point_at(text, code_point_before(text, at)).value);
}

bool word_at(std::string_view text, std::size_t at) {
  return at < text.size() && is_word_character(code_point_at(text, at).value);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), nodes_(1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].text.empty()) continue;
    begins_[static_cast<std::uint8_t>(tokens_[i].text[0])] = true;
    std::uint32_t node = 0;
    for (const char c : tokens_[i].text) {
      auto& children = nodes_[node].children;
      const auto child = std::find_if(children.begin(), children.end(),
                                      [&](const auto& entry) { return entry.first == c; });
      if (child != children.end()) {
        node = child->second;
      } else {
        const auto made = static_cast<std::uint32_t>(nodes_.size());
        children.emplace_back(c, made);
        nodes_.emplace_back();
        node = made;
      }
    }
    if (nodes_[node].token < 0) nodes_[node].token = static_cast<std::int32_t>(i);
  }
}

const AddedToken* AddedTokens::match(std::string_view text, std::size_t at) const {
  const AddedToken* longest = nullptr;
  std::uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto& children = nodes_[node].children;
    const auto child = std::find_if(children.begin(), children.end(),
                                    [&](const auto& entry) { return entry.first == text[at]; });
    if (child == children.end()) break;
    node = child->second;
    if (nodes_[node].token >= 0) longest = &tokens_[static_cast<std::size_t>(nodes_[node].token)];
  }
  return longest;
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& piece,
                        const std::function<void(TokenId)>& token) const {
  std::size_t begin = 0;  // of the piece
  for (std::size_t at = 0; !tokens_.empty() && at < text.size();) {
    if (!begins_[static_cast<std::uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* found = match(text, at);
    if (found == nullptr) {
      ++at;
      continue;
    }
    std::size_t from = at, to = at + found->text.size();
    at = to;
    if (found->single_word && (word_before(text, from) || word_at(text, to))) continue;
    while (found->strip_left && from > begin) {
      const std::size_t before = code_point_before(text, from);
      if (!is_white_space(code_point_at(text, before).value)) break;
      from = before;
    }
    while (found->strip_right && to < text.size()) {
      const CodePoint c = code_point_at(text, to);
      if (!is_white_space(c.value)) break;
      to += c.bytes;
    }
    if (begin < from) piece(text.substr(begin, from - begin));
    token(found->id);
    begin = to;
    at = std::max(at, to);
  }
  if (begin < text.size()) piece(text.substr(begin));
}

}  // namespace dropless::train
