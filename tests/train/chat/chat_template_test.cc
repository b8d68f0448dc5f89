// Chat templates against Jinja's own texts (tests/data/chat_cases.jsonl, made by make_chat_cases.py).
#include "train/chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {
namespace {

using ::testing::HasSubstr;

const chat::Dict kTokens{{"bos_token", "<s>"}, {"eos_token", "</s>"}};

std::vector<nlohmann::json> cases() {
  std::vector<nlohmann::json> all;
  std::istringstream lines(read_file(TEST_DATA_DIR "/chat_cases.jsonl"));
  for (std::string line; std::getline(lines, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

std::string render(const nlohmann::json& json) {
  const ChatTemplate chat(json["template"].get<std::string>(), "t.jinja", kTokens);
  return chat.render(messages_from_json(json["messages"], "messages"));
}

TEST(ChatTemplateTest, TextsAreJinjas) {
  int texts = 0, errors = 0;
  for (const nlohmann::json& json : cases()) {
    SCOPED_TRACE(json["name"].get<std::string>());
    if (json.contains("expected")) {
      EXPECT_EQ(render(json), json["expected"].get<std::string>());
      ++texts;
      continue;
    }
    ++errors;
    try {
      ADD_FAILURE() << "made a text: " << render(json);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kInvalidArgument ||
                  error.kind() == ErrorKind::kUnsupported);
      EXPECT_THAT(error.what(), HasSubstr("t.jinja:"));
    }
  }
  EXPECT_GT(texts, 60);
  EXPECT_GT(errors, 20);
}

TEST(ChatTemplateTest, BrokenTemplatesAreErrorsAndNothingElse) {
  std::mt19937 rng(7);
  const std::vector<nlohmann::json> all = cases();
  const auto draw = [&](std::size_t n) { return rng() % n; };
  for (int round = 0; round < 1000; ++round) {
    nlohmann::json json = all[draw(all.size())];
    std::string text = json["template"].get<std::string>();
    for (std::size_t change = 0; change <= draw(3) && !text.empty(); ++change) {
      const std::string pieces[] = {"{%", "%}", "{{", "}}", "-",     "(", ")",
                                    "[",  "]",  "'",  "if", " not ", "|", "endfor"};
      const std::size_t at = draw(text.size());
      if (draw(2) == 0)
        text.erase(at, 1 + draw(8));
      else
        text.insert(at, pieces[draw(std::size(pieces))]);
    }
    json["template"] = text;
    try {
      render(json);
    } catch (const Error&) {
    }
  }
  // Deep nesting and endless loops end in errors too.
  for (const char* deep : {"(", "[", "not ", "-", "{% if x %}", "{{ a[", "{% for a in b %}"}) {
    std::string text = std::string_view(deep).starts_with("{%") ? "" : "{{ ";
    for (int i = 0; i < 100'000; ++i) text += deep;
    EXPECT_THROW(ChatTemplate(text, "deep", {}), Error) << deep;
  }
  // So do chains, which hold a link each.
  for (const char* link : {"[0]", ".a", "()", "|string", " is string", " + a", " ~ a", " * a",
                           " and a", " or a", " if a", "|default(a"}) {
    std::string text = "{{ a";
    for (int i = 0; i < 100'000; ++i) text += link;
    EXPECT_THROW(ChatTemplate(text + " }}", "chain", {}), Error) << link;
  }
  // And what only grows, which ends in time too.
  for (const char* endless :
       {"{% set n = namespace(x=[]) %}{% for i in range(99000) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% "
        "endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
        "{% set n.x = n.x | replace('a', 'aaaa') %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor "
        "%}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor "
        "%}"
        "{{ n.x | tojson }}",
        "{% set n = namespace(x='a,') %}{% for i in range(22) %}{% set n.x = n.x ~ n.x %}{% endfor "
        "%}"
        "{{ n.x.split(',') | join(n.x) }}",
        "{% set n = namespace(x=1) %}{% for i in range(99000) %}{% set n.x = [namespace(x=n.x)] "
        "%}{% endfor %}",
        "{% set n = namespace(x=1) %}{% for i in range(99000) %}{% set n.x = namespace(x=n.x) %}{% "
        "endfor %}",
        "{% for i in range(99000) %}{% set x = range(99000) %}{% endfor %}",
        "{% set a = range(99000) | list %}{% set b = range(99000) | list %}"
        "{% for i in range(99000) %}{% if a == b %}{% endif %}{% endfor %}",
        "{% set a = range(99000) | list %}{% for i in range(99000) %}{% set x = a[1:] %}{% endfor "
        "%}",
        "{% for i in range(99000) %}{% for j in range(99000) %}{% endfor %}{% endfor %}",
        "{% set a = range(99000) | list %}{% for i in range(99000) %}{% set x = a | join %}{% "
        "endfor "
        "%}",
        "{% set n = namespace(x=[]) %}{% for i in range(99000) %}{% set n.x = n.x + [1] %}{% "
        "endfor "
        "%}",
        "{% set n = namespace(x=4611686018427) %}{% for i in range(9) %}{% set n.x = n.x * 9999999 "
        "%}{% endfor %}",
        "{% set n = namespace(x=4611686018427) %}{% for i in range(99) %}{% set n.x = n.x + n.x "
        "%}{% "
        "endfor %}",
        "{{ range(0, 5, 999999999999999) }}"}) {
    EXPECT_THROW(ChatTemplate(endless, "endless", {}).render({{"user", "x"}}), Error) << endless;
  }
  // So does whatever goes through a long text, time after time.
  const std::string long_text =
      "{% set n = namespace(x='ab') %}{% for i in range(22) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
      "{% set t = n.x %}{% for i in range(99000) %}";
  for (const char* use : {"t[1:5]",
                          "t[::-2]",
                          "t[5]",
                          "t[-1]",
                          "t | length",
                          "t | first",
                          "t.strip('c')",
                          "t | trim",
                          "t.split('x')",
                          "t.replace('x', 'y')",
                          "t | upper",
                          "'abx' in t",
                          "t == t ~ ''",
                          "t ~ 'a'",
                          "t.startswith('b')",
                          "t is in [t]",
                          "[t] | tojson",
                          "t.rstrip(t)",
                          "'x'.replace(t, t)",
                          "[t, t] | join",
                          "{'a': t}.items() | list | tojson",
                          "(t ~ 'x') in t",
                          "t | string | safe"}) {
    const std::string looped = long_text + "{% set x = " + use + " %}{% endfor %}";
    EXPECT_THROW(ChatTemplate(looped, "long", {}).render({{"user", "x"}}), Error) << use;
  }
  EXPECT_EQ(
      ChatTemplate(long_text + "{% endfor %}{{ t | length }}", "long", {}).render({{"user", "x"}}),
      "8388608");
  std::string joined = "{{ 'a'";
  for (int i = 0; i < 400; ++i) joined += " + 'a'";
  EXPECT_EQ(ChatTemplate(joined + " }}", "long", {}).render({{"user", "x"}}),
            std::string(401, 'a'));
  const ChatTemplate loops(
      "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}", "l", {});
  EXPECT_THROW(loops.render({{"user", "x"}}), Error);
}

class ChatFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/chat-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) {
    write_file_durable(join_path(folder_, name), text);
  }
  std::string render() { return ChatTemplate::find(folder_).value().render({{"user", "u"}}); }
  std::string folder_;
};

TEST_F(ChatFolderTest, TheFilesOfAFolder) {
  EXPECT_FALSE(ChatTemplate::find(folder_).has_value());
  write("chat_template.json", R"({"chat_template": "json"})");
  EXPECT_EQ(render(), "json");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "a"},
      {"name": "default", "template": "{{ bos_token }}list"}], "bos_token": {"content": "<b>"}})");
  EXPECT_EQ(render(), "<b>list");
  write("tokenizer_config.json", R"({"chat_template": "{{ bos_token }}one", "bos_token": "<c>"})");
  EXPECT_EQ(render(), "<c>one");
  write("chat_template.jinja", "{{ bos_token + messages[0].content }}\n");
  EXPECT_EQ(render(), "<c>u");
  write("tokenizer_config.json", "{}");
  EXPECT_THROW(render(), Error) << "bos_token is not defined";
  std::filesystem::remove(join_path(folder_, "chat_template.jinja"));
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "a"}]})");
  EXPECT_THROW(ChatTemplate::find(folder_), Error);
}

TEST(ChatTemplateTest, Messages) {
  for (const char* bad :
       {"{}", "[]", "[1]", R"([{"role": "user"}])", R"([{"role": 1, "content": ""}])",
        R"([{"role": "user", "content": "a", "tool_calls": []}])"}) {
    EXPECT_THROW(messages_from_json(nlohmann::json::parse(bad), "m"), Error) << bad;
  }
  EXPECT_THROW(ChatTemplate("x", "t", {}).render({{"user", "\xff"}}), Error);
  EXPECT_THROW(ChatTemplate("{{ 'a'.strip('\xf7\xbf\xbf\xbf') }}", "t", {}), Error);
}

}  // namespace
}  // namespace dropless::train
