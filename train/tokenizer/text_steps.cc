#include "train/tokenizer/text_steps.h"

#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/base/utf8.h"
#include "train/tokenizer/pattern.h"
#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kInvalidArgument, message);
}

std::string strip(const std::string& text, bool left, bool right) {
  std::size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const CodePoint c = code_point_at(text, begin);
    if (!is_white_space(c.value)) break;
    begin += c.bytes;
  }
  while (right && end > begin) {
    const std::size_t before = code_point_before(text, end);
    if (!is_white_space(code_point_at(text, before).value)) break;
    end = before;
  }
  return text.substr(begin, end - begin);
}

TextStep replace_step(const json& step) {
  const json& pattern = step.at("pattern");
  const auto content = step.at("content").get<std::string>();
  if (pattern.contains("String")) {
    return [from = pattern["String"].get<std::string>(), content](std::string text) {
      replace_all(text, from, content);
      return text;
    };
  }
  // TextStep is copied; a Pattern is not.
  const auto regex = std::make_shared<Pattern>(pattern.at("Regex").get<std::string>());
  return [regex, content](std::string text) {
    std::string out;
    std::size_t at = 0, begin = 0, end = 0;
    while (regex->find(text, at, begin, end)) {
      out += text.substr(at, begin - at) + content;
      at = end;
    }
    return out + text.substr(at);
  };
}

}  // namespace

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(from, at)) != std::string::npos;) {
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
  }
  if (at == 0) return;
  out.append(text, at);
  text = std::move(out);
}

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  return error == std::errc() && end == token.data() + 5 && value >= 0 ? value : -1;
}

// ---- normalizer ----

Normalizer::Normalizer(const json& json) {
  if (!json.is_null()) add(json);
}

void Normalizer::add(const json& json) {
  const auto type = json.at("type").get<std::string>();
  const auto form = [&](NormalForm form) {
    steps_.push_back([form](const std::string& text) { return normalize(form, text); });
  };
  if (type == "Sequence") {
    for (const auto& part : json.at("normalizers")) add(part);
  } else if (type == "NFC") {
    form(NormalForm::kC);
  } else if (type == "NFD") {
    form(NormalForm::kD);
  } else if (type == "NFKC") {
    form(NormalForm::kKC);
  } else if (type == "NFKD") {
    form(NormalForm::kKD);
  } else if (type == "Lowercase") {
    steps_.push_back([](const std::string& text) { return lowercase(text); });
  } else if (type == "StripAccents") {
    steps_.push_back([](const std::string& text) { return strip_accents(text); });
  } else if (type == "Strip") {
    const bool left = json.value("strip_left", true), right = json.value("strip_right", true);
    steps_.push_back([left, right](const std::string& text) { return strip(text, left, right); });
  } else if (type == "Prepend") {
    const auto added = json.at("prepend").get<std::string>();
    steps_.push_back(
        [added](const std::string& text) { return text.empty() ? text : added + text; });
  } else if (type == "Replace") {
    steps_.push_back(replace_step(json));
  } else {
    refuse(fmt::format("normalizer: type '{}' is not supported", type));
  }
}

std::string Normalizer::operator()(std::string_view text) const {
  std::string out(text);
  for (const TextStep& step : steps_) out = step(std::move(out));
  return out;
}

// ---- decoder ----

TokenDecoder::TokenDecoder(const json& json) : spaced_(json.is_null()) {
  if (!json.is_null()) add(json);
}

void TokenDecoder::add(const json& json) {
  const auto type = json.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const auto& part : json.at("decoders")) add(part);
  } else if (type == "Replace") {
    const TextStep replace = replace_step(json);
    steps_.push_back([replace](std::vector<std::string>& tokens, bool, bool) {
      for (std::string& token : tokens) token = replace(std::move(token));
    });
  } else if (type == "ByteFallback") {
    steps_.push_back([](std::vector<std::string>& tokens, bool, bool raw) {
      std::vector<std::string> out;
      std::string bytes;
      const auto end_bytes = [&] {
        if (bytes.empty()) return;
        if (!raw && find_invalid_utf8(bytes) != std::string::npos) {
          std::string marks;
          for (std::size_t i = 0; i < bytes.size(); ++i) marks += "\xef\xbf\xbd";
          bytes = marks;
        }
        out.push_back(std::move(bytes));
        bytes.clear();
      };
      for (std::string& token : tokens) {
        if (const int byte = byte_of_token(token); byte >= 0) {
          bytes += static_cast<char>(byte);
        } else {
          end_bytes();
          out.push_back(std::move(token));
        }
      }
      end_bytes();
      tokens = std::move(out);
    });
  } else if (type == "Fuse") {
    steps_.push_back([](std::vector<std::string>& tokens, bool, bool) {
      std::string all;
      for (const std::string& token : tokens) all += token;
      tokens = {all};
    });
  } else if (type == "Strip") {
    const auto content = json.at("content").get<std::string>();
    const auto start = json.at("start").get<std::size_t>(),
               stop = json.at("stop").get<std::size_t>();
    if (content.empty()) refuse("decoder: Strip without content");
    steps_.push_back([content, start, stop](std::vector<std::string>& tokens, bool first, bool) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        std::string& token = tokens[i];
        // Behind a Fuse, the one token begins the text or does not.
        for (std::size_t n = 0; n < start && (first || i > 0) && token.starts_with(content); ++n)
          token.erase(0, content.size());
        for (std::size_t n = 0; n < stop && token.ends_with(content); ++n)
          token.erase(token.size() - content.size());
      }
    });
  } else if (type == "Metaspace") {
    const std::string mark = json.value("replacement", "\xe2\x96\x81");
    const bool prepends =
        json.value("prepend_scheme", json.value("add_prefix_space", true) ? "always" : "never") !=
        std::string("never");
    steps_.push_back([mark, prepends](std::vector<std::string>& tokens, bool first, bool) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (i == 0 && first && prepends && tokens[i].starts_with(mark))
          tokens[i].erase(0, mark.size());
        replace_all(tokens[i], mark, " ");
      }
    });
  } else {
    refuse(fmt::format("decoder: type '{}' is not supported", type));
  }
}

std::string TokenDecoder::decode(std::vector<std::string> tokens, bool first, bool raw) const {
  for (const Step& step : steps_) step(tokens, first, raw);
  std::string out;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (spaced_ && (i > 0 || !first)) out += ' ';
    out += tokens[i];
  }
  return out;
}

}  // namespace dropless::train
