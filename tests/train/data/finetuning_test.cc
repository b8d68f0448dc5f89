#include "train/data/finetuning.h"

#include <sys/stat.h>

#include "tests/train/data/fixture.h"
#include "train/data/loader.h"
#include "train/data/text_writer.h"

namespace dropless::train {
namespace {

using nlohmann::json;

// A set of the lines; tokens are bytes, 256 ends a text.
void write_lines(const ScratchFolder& scratch, const std::vector<json>& lines,
                 const std::string& name) {
  std::string text;
  for (const json& line : lines) text += line.dump() + "\n";
  spill(scratch / (name + ".jsonl"), text);
  LineDocuments documents({scratch / (name + ".jsonl")});
  write_finetuning_set(documents, json_kind(lines[0].dump()), scratch / name, {});
}

TextDatasetConfig finetuning_of(const std::string& local, const std::string& keys = "") {
  const auto document = YamlDocument::parse(
      "loader: {name: finetuning, dataset: {local: '" + local + "'" + keys + "}}", "test.yaml");
  return TextDatasetConfig::from_yaml(document.root().map("loader"));
}

TextLoaderOptions rows_of(std::int64_t batch, std::int64_t seq_len) {
  return {.batch_size = batch, .seq_len = seq_len, .tokenizer = make_tokenizer("bytes")};
}

// Row b as text, "." for 256, "_" for what is not learned: the loss falls on the other characters.
std::pair<std::string, std::string> shown(const Batch& batch, std::int64_t b) {
  std::string text, learned;
  for (std::int64_t s = 0; s < batch.seq_len; ++s) {
    const std::int64_t id = batch.tokens_BS[static_cast<std::size_t>(b * batch.seq_len + s)];
    text += id == 256 ? '.' : static_cast<char>(id);
    learned += batch.is_scored(b, s) ? text.back() : '_';
  }
  return {text, learned};
}

TEST(Finetuning, LearnsResponses) {
  ScratchFolder scratch;
  write_lines(scratch,
              {{{"prompt", "ask"}, {"response", "no"}}, {{"completion", "yes!"}, {"prompt", "q"}}},
              "set");
  TextLoader loader(finetuning_of(scratch / "set"), rows_of(2, 16));
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  using Row = std::pair<std::string, std::string>;
  EXPECT_EQ(shown(batch, 0), Row("askno.", "___no."));
  EXPECT_EQ(shown(batch, 1), Row("qyes!.", "_yes!."));
  EXPECT_EQ(batch.scored_tokens(), 8);
  EXPECT_EQ(batch.samples, 2);
  EXPECT_FALSE(loader.next(batch));
}

TEST(Finetuning, LearnsPromptsWhereAsked) {
  ScratchFolder scratch;
  write_lines(scratch,
              {{{"prompt", "ask"}, {"response", "no"}}, {{"prompt", "q"}, {"response", "a"}}},
              "set");
  const auto learned = [&](const std::string& keys, std::int64_t row) {
    TextLoader loader(finetuning_of(scratch / "set", keys), rows_of(2, 16));
    Batch batch;
    EXPECT_TRUE(loader.next(batch));
    return shown(batch, row).second;
  };
  EXPECT_EQ(learned(", target_prompts: all", 0), "_skno.");  // nothing predicts the first
  EXPECT_EQ(learned(", target_prompts: 'length>=3'", 0), "_skno.");
  EXPECT_EQ(learned(", target_prompts: 'length>=4'", 0), "___no.");
  EXPECT_EQ(learned(", target_prompts: 'length>=3'", 1), "_a.___");
}

TEST(Finetuning, ReadsChats) {
  ScratchFolder scratch;
  const json chat = {{"messages",
                      {{{"role", "user"}, {"content", "a"}},
                       {{"role", "assistant"}, {"content", "b"}},
                       {{"role", "user"}, {"content", "c"}},
                       {{"role", "assistant"}, {"content", "d"}}}}};
  write_lines(scratch, {chat}, "set");
  const std::string first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
  const std::string second = "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n";
  const std::string blank1(first.size(), '_'), blank2(second.size(), '_');
  const auto learned = [&](const std::string& keys) {
    TextLoader loader(finetuning_of(scratch / "set", keys), rows_of(1, 256));
    Batch batch;
    EXPECT_TRUE(loader.next(batch));
    EXPECT_EQ(shown(batch, 0).first, first + "b<|im_end|>\n" + second + "d<|im_end|>\n.");
    return shown(batch, 0).second;
  };
  EXPECT_EQ(learned(""), blank1 + std::string(12, '_') + blank2 + "d<|im_end|>\n.");
  EXPECT_EQ(learned(", target_responses: all"),
            blank1 + "b<|im_end|>\n" + blank2 + "d<|im_end|>\n.");
}

TEST(Finetuning, PacksSamplesIntoRows) {
  ScratchFolder scratch;
  std::vector<json> lines;
  for (const int length : {7, 2, 3, 1, 4, 2, 6, 1})  // with prompt and EOS two more
    lines.push_back(
        {{"prompt", "p"}, {"response", std::string(static_cast<std::size_t>(length), 'r')}});
  write_lines(scratch, lines, "set");
  TextLoader loader(finetuning_of(scratch / "set", ", packing_ratio: 2"), rows_of(2, 10));
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  // Lengths 9, 4, 5, 3: the longest first, each into the first row with room.
  EXPECT_EQ(batch.samples, 4);
  EXPECT_EQ(batch.batch, 3);
  EXPECT_EQ(batch.lengths_B, (std::vector<std::int32_t>{9, 9, 3}));
  using Row = std::pair<std::string, std::string>;
  EXPECT_EQ(shown(batch, 1), Row("prrr.prr.", "_rrr._rr."));
  EXPECT_EQ(
      std::vector<std::int32_t>(batch.documents_BS.begin() + 9, batch.documents_BS.end()),
      (std::vector<std::int32_t>{0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(loader.batches_per_epoch(), 2);
  // The position counts samples: the rest of the epoch is the other four, each once.
  const json position = loader.record_position();
  EXPECT_EQ(position["sample_in_epoch"], 4);
  TextLoader other(finetuning_of(scratch / "set", ", packing_ratio: 2"), rows_of(2, 10));
  other.reload_position(position);
  Batch expected, got;
  ASSERT_TRUE(loader.next(expected));
  ASSERT_TRUE(other.next(got));
  EXPECT_EQ(got.tokens_BS, expected.tokens_BS);
  EXPECT_EQ(got.samples, 4);
  EXPECT_FALSE(other.next(got));
}

TEST(Finetuning, ChoosesAPackingRatio) {
  ScratchFolder scratch;
  write_lines(scratch, std::vector<json>(40, {{"prompt", "p"}, {"response", "rr"}}), "set");
  TextLoader loader(finetuning_of(scratch / "set", ", packing_ratio: auto"), rows_of(2, 12));
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_EQ(batch.samples, 6);  // three of four tokens in a row
  EXPECT_EQ(batch.batch, 2);
  EXPECT_EQ(batch.tokens, 24);
}

TEST(Finetuning, SaysThatAnswersAreCutOff) {
  ScratchFolder scratch;
  write_lines(scratch,
              {{{"prompt", "0123456789"}, {"response", "a"}},
               {{"prompt", "01"}, {"response", "a"}},
               {{"prompt", "0123456789"}, {"response", "b"}}},
              "long");
  TextLoader loader(finetuning_of(scratch / "long"), rows_of(1, 8));
  testing::internal::CaptureStderr();
  Batch batch;
  while (loader.next(batch)) {
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("sample 0 has 12 tokens and is cut to max_seq_len 8"), std::string::npos);
  EXPECT_EQ(said.find("sample 2"), std::string::npos);
  EXPECT_NE(said.find("2 of the samples read were cut"), std::string::npos);
  // A look at the samples for the packing ratio counts none of them.
  TextLoader packing(finetuning_of(scratch / "long", ", packing_ratio: auto"), rows_of(1, 8));
  testing::internal::CaptureStderr();
  while (packing.next(batch)) {
  }
  const std::string packed = testing::internal::GetCapturedStderr();
  EXPECT_NE(packed.find("2 of the samples read were cut"), std::string::npos);
  EXPECT_EQ(packed.find("samples read were cut"), packed.rfind("samples read were cut"));
}

TEST(Finetuning, RefusesWhatItCannotRead) {
  ScratchFolder scratch;
  spill(scratch / "t.txt", "text");
  FileDocuments documents({scratch / "t.txt"});
  write_text_set(documents, scratch / "text", {});
  expect_error(ErrorKind::kInvalidArgument, {"prompt", "messages"},
               [&] { TextLoader(finetuning_of(scratch / "text"), rows_of(1, 8)); });
  for (const char* keys :
       {", hf_name: x", ", decoder_only_format: false", ", target_prompts: some",
        ", target_prompts: 'length>=x'", ", target_responses: none", ", packing_ratio: 0.5",
        ", packing_ratio: many", ", target_prompt: all"}) {
    expect_error(ErrorKind::kInvalidArgument, {"test.yaml:1:"},
                 [&] { finetuning_of(scratch / "text", keys); });
  }
  // `data json` would refuse it; other writers do not.
  MdsWriter writer(scratch / "open", {{"messages", "json"}}, {});
  const std::string_view chat = R"([{"role": "user", "content": "a"}])";
  writer.write(std::span(&chat, 1));
  writer.finish();
  TextLoader loader(finetuning_of(scratch / "open"), rows_of(1, 8));
  Batch batch;
  expect_error(ErrorKind::kDamaged, {"sample 0", "last message"}, [&] { loader.next(batch); });
}

TEST(Documents, NamesTheLineThatIsWrong) {
  ScratchFolder scratch;
  spill(scratch / "a", "{\"text\": \"x\"}\n\n{\"txt\": \"y\"}\n");
  JsonTexts texts({scratch / "a"});
  std::string document;
  ASSERT_TRUE(texts.next(document));
  EXPECT_EQ(document, "x");
  expect_error(ErrorKind::kInvalidArgument, {"a:3", "text"}, [&] { texts.next(document); });

  spill(scratch / "b", "{\"prompt\": \"x\", \"response\": \"y\"}\n{\"text\": \"z\"}\n");
  LineDocuments lines({scratch / "b"});
  expect_error(ErrorKind::kInvalidArgument, {"b:2", "another kind"}, [&] {
    write_finetuning_set(lines, JsonKind::kPromptResponse, scratch / "set", {});
  });
  EXPECT_FALSE(std::filesystem::exists(scratch / "set"));

  // What is no string is named by its key.
  const auto refuse = [&](const std::string& line, const std::vector<std::string>& parts) {
    spill(scratch / "c", "{\"prompt\": \"x\", \"response\": \"y\"}\n" + line + "\n");
    LineDocuments bad({scratch / "c"});
    expect_error(ErrorKind::kInvalidArgument, parts, [&] {
      write_finetuning_set(bad, JsonKind::kPromptResponse, scratch / "set", {});
    });
  };
  refuse(R"({"prompt": "x", "response": 5})", {"c:2: 'response' is 5, not a string"});
  refuse(R"({"prompt": null, "response": "y"})", {"c:2: 'prompt' is null, not a string"});
  refuse(R"({"prompt": "x", "completion": ["y"]})", {"c:2: 'completion' is [\"y\"], not a string"});
  refuse(R"({"prompt": "x", "response": "\ud800"})", {"c:2: 'response': ", "surrogate"});
  refuse(R"({"prompt": "x", "response": "y", "completion": "z"})",
         {"c:2: ", "'response' and 'completion'"});
  refuse(R"({"prompt": "x", "response": {"a": ")" + std::string(500, 'b') + "\"}}",
         {"c:2: 'response' is {\"a\": \"bbb", "..., not a string"});
  spill(scratch / "d", "{\"text\": 5}\n");
  JsonTexts five({scratch / "d"});
  expect_error(ErrorKind::kInvalidArgument, {"d:1: 'text' is 5, not a string"},
               [&] { five.next(document); });
}

// A pipe cannot be read twice, for the kind of the lines and for the lines.
TEST(Documents, RefusesPipes) {
  ScratchFolder scratch;
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  expect_error(ErrorKind::kInvalidArgument, {"pipe is not a regular file"},
               [&] { LineDocuments({scratch / "pipe"}); });
  expect_error(ErrorKind::kInvalidArgument, {"pipe is not a regular file"},
               [&] { FileDocuments({scratch / "pipe"}); });
}

// LLM Foundry reads none of them either, without a word.
TEST(Documents, SaysOnceWhatIsLeftOut) {
  ScratchFolder scratch;
  const auto said = [&](const std::vector<json>& lines, const std::string& name) {
    testing::internal::CaptureStderr();
    write_lines(scratch, lines, name);
    return testing::internal::GetCapturedStderr();
  };
  const json pair = {{"prompt", "x"}, {"response", "y"}};
  json more = pair;
  more["id"] = 3;
  const std::string once = said({pair, more, more}, "a");
  EXPECT_NE(once.find("a.jsonl:2: 'id' is left out"), std::string::npos) << once;
  EXPECT_EQ(once.find("'id'"), once.rfind("'id'"));
  EXPECT_EQ(said({pair, pair}, "b"), "");
  const json chat = {
      {"messages",
       {{{"role", "user"}, {"content", "a"}}, {{"role", "assistant"}, {"content", "b"}}}},
      {"source", "s"}};
  EXPECT_NE(said({chat}, "c").find("c.jsonl:1: 'source' is left out"), std::string::npos);
}

}  // namespace
}  // namespace dropless::train
