// Damaged tokenizer files are refused with a message or give some tokenizer; nothing crashes or hangs.
#include "tests/train/data/fixture.h"
#include "tests/train/data/mutate.h"
#include "train/tokenizer/pattern.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {
namespace {

TEST(DamagedTokenizers, AreRefusedOrWork) {
  ScratchFolder scratch;
  const std::string text = "Hello world 123 \xe6\x97\xa5\xe6\x9c\xac  x\n\xff";
  int refused = 0, read = 0;
  for (const char* name :
       {"llama3.json", "mixed.json", "small.cl100k_base.tiktoken", "bpe.model", "unigram.model"}) {
    const std::string whole = slurp(fixture_path(std::string("tokenizer/") + name));
    const std::string path = scratch / name;
    for (std::uint32_t seed = 0; seed < mutations(60); ++seed) {
      SCOPED_TRACE(std::string(name) + ", seed " + std::to_string(seed));
      spill(path, mutated(whole, seed));
      try {
        const auto tokenizer = make_tokenizer(path);
        const auto ids = tokenizer->encode(text);
        tokenizer->decode(ids);
        ++read;
      } catch (const Error& error) {
        EXPECT_TRUE(error.kind() == ErrorKind::kInvalidArgument ||
                    error.kind() == ErrorKind::kUnsupported)
            << error.what();
        EXPECT_FALSE(std::string(error.what()).empty());
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(read, 0);
}

TEST(Pattern, RefusesWhatItDoesNotKnow) {
  for (const char* source :
       {"(?<=a)b", "(?P<n>a)", "a\\1", "\\bword", "[[:alpha:]]", "[a&&b]", "(a", "a)", "[a", "a{2",
        "a{3,1}", "*a", "(a*)*", "\\p{Foo}", "[b-a]", "\\x{110000}"}) {
    EXPECT_THROW(Pattern{source}, Error) << source;
  }
}

TEST(Pattern, ChoosesAsPerlDoes) {
  const auto match = [](const char* source, std::string_view text) {
    const std::size_t end = Pattern(source).match_at(text, 0);
    return end == std::string_view::npos ? std::string("-") : std::string(text.substr(0, end));
  };
  EXPECT_EQ(match("a|ab", "ab"), "a");
  EXPECT_EQ(match("(?:a|ab)c", "abc"), "abc");
  EXPECT_EQ(match("a*a", "aaa"), "aaa");
  EXPECT_EQ(match("a*+a", "aaa"), "-");
  EXPECT_EQ(match("a+?b?", "aab"), "a");
  EXPECT_EQ(match("a{2,3}", "aaaa"), "aaa");
  EXPECT_EQ(match("(?:ab){2}", "ababab"), "abab");
  EXPECT_EQ(match("(?:ab)*?c", "ababc"), "ababc");
  EXPECT_EQ(match("(?:ab){1,2}?(?:a|$)", "abab"), "aba");
  EXPECT_EQ(match("(?>a|ab)c", "abc"), "-");
  EXPECT_EQ(match("\\s+(?!\\S)", "   x"), "  ");
  EXPECT_EQ(match("(?i:don't)", "DoN'T"), "DoN'T");
  EXPECT_EQ(match("(?i:s)", "\xc5\xbf"), "\xc5\xbf");
  EXPECT_EQ(match("[^\\r\\n\\p{L}]?\\p{Lu}+", "\xc2\xa0\xc3\x84\xc3\x96x"),
            "\xc2\xa0\xc3\x84\xc3\x96");
}

}  // namespace
}  // namespace dropless::train
