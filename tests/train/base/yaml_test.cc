// Strict YAML: what is accepted, with which type, and that every refusal names file, line, column
// and cure.
#include "train/base/yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <fstream>
#include <utility>

#include "dropless/error.h"
#include "train/base/yaml_record.h"

namespace dropless::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

YamlMap parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return YamlDocument::parse(text, "c.yaml", overrides).root();
}

// Message and hint of the error that `action` must throw.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return std::string(error.what()) + " | " + error.hint();
  }
  ADD_FAILURE() << "no error";
  return {};
}

std::string parse_error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return error_of([&] { parse(text, overrides); });
}

// ---- values ----

TEST(Yaml, ReadsTypes) {
  const YamlMap map = parse(
      "a: 5\nb: 5.0\nc: 3e4\nd: 1e-3\ne: 6.0e-4\nf: true\ng: text\nh: [1, 2]\ni: [0.9, 1]\nj: [x, "
      "y]\n"
      "k: 1_000\nm: 0x10\nn: -7\no: .5\np: 1.\n");
  EXPECT_EQ(map.get<int>("a"), 5);
  EXPECT_EQ(map.get<std::int64_t>("b"), 5);
  EXPECT_EQ(map.get<std::int64_t>("c"), 30000);
  EXPECT_EQ(map.get<double>("d"), 1e-3);
  EXPECT_EQ(map.get<double>("e"), 6.0e-4);
  EXPECT_TRUE(map.get<bool>("f"));
  EXPECT_EQ(map.get<std::string>("g"), "text");
  EXPECT_THAT(map.get<std::vector<int>>("h"), ElementsAre(1, 2));
  EXPECT_THAT(map.get<std::vector<double>>("i"), ElementsAre(0.9, 1.0));
  EXPECT_THAT(map.get<std::vector<std::string>>("j"), ElementsAre("x", "y"));
  EXPECT_EQ(map.get<int>("k"), 1000);
  EXPECT_EQ(map.get<int>("m"), 16);
  EXPECT_EQ(map.get<int>("n"), -7);
  EXPECT_EQ(map.get<double>("o"), 0.5);
  EXPECT_EQ(map.get<double>("p"), 1.0);
  EXPECT_NO_THROW(map.finish());
}

TEST(Yaml, AnyScalarIsAStringAsWritten) {
  const YamlMap map = parse("a: 10\nb: 1.50\nc: yes\nd: 'quoted'\ne: \"\"\n");
  EXPECT_EQ(map.get<std::string>("a"), "10");
  EXPECT_EQ(map.get<std::string>("b"), "1.50");
  EXPECT_EQ(map.get<std::string>("c"), "yes");
  EXPECT_EQ(map.get<std::string>("d"), "quoted");
  EXPECT_EQ(map.get<std::string>("e"), "");
  EXPECT_FALSE(map.is_string("a"));
  EXPECT_TRUE(map.is_string("c"));
  EXPECT_TRUE(map.is_string("d"));
}

TEST(Yaml, NullAndAbsentTakeTheFallback) {
  const YamlMap map = parse("a: null\nb: ~\nc:\n");
  for (const char* key : {"a", "b", "c", "absent"}) {
    EXPECT_FALSE(map.has(key));
    EXPECT_EQ(map.get<int>(key, 3), 3);
    EXPECT_EQ(map.find<std::string>(key), std::nullopt);
    EXPECT_FALSE(map.find_map(key));
  }
  EXPECT_THAT(error_of([&] { map.get<int>("a"); }), HasSubstr("c.yaml:1:4: a: must not be null"));
  EXPECT_THAT(error_of([&] { map.get<int>("z"); }), HasSubstr("z: required key is missing"));
  EXPECT_NO_THROW(map.finish());
}

TEST(Yaml, RefusesOtherTypesWithThePlace) {
  const YamlMap map =
      parse("m:\n  a: 1.5\n  b: yes\n  c: '5'\n  d: [1, x]\n  e: {}\n  f: 1e30\n  g: 010\n")
          .map("m");
  EXPECT_THAT(error_of([&] { map.get<int>("a"); }),
              HasSubstr("c.yaml:2:6: m.a: expected an integer, got \"1.5\""));
  EXPECT_THAT(error_of([&] { map.get<bool>("b"); }),
              HasSubstr("yes, no, on and off are not bools"));
  EXPECT_THAT(error_of([&] { map.get<int>("c"); }), HasSubstr("remove the quotes"));
  EXPECT_THAT(error_of([&] { map.get<std::vector<int>>("d"); }),
              HasSubstr("c.yaml:5:10: m.d.1: expected"));
  EXPECT_THAT(error_of([&] { map.get<std::string>("e"); }),
              HasSubstr("expected a string, got a mapping"));
  EXPECT_THAT(error_of([&] { map.get<std::int64_t>("f"); }), HasSubstr("expected an integer"));
  EXPECT_THAT(error_of([&] { map.get<int>("g"); }), HasSubstr("expected an integer"));
  EXPECT_THAT(error_of([&] { map.map("a"); }), HasSubstr("expected a mapping"));
  EXPECT_THAT(error_of([&] { map.get<std::vector<int>>("a"); }), HasSubstr("expected a sequence"));
  EXPECT_THAT(error_of([&] { map.fail("a", "too odd", "even it"); }),
              HasSubstr("c.yaml:2:6: m.a: too odd | even it"));
}

TEST(Yaml, AnEmptyValueIsPlacedAtItsKey) {
  const YamlMap map = parse("a: 1\nb:\nc: 2\n");
  EXPECT_THAT(error_of([&] { map.get<int>("b"); }), HasSubstr("c.yaml:2:1: b: must not be null"));
}

TEST(Yaml, FractionsAreFiniteAndWithinFp32) {
  const YamlMap map = parse(
      "a: .inf\nb: -.inf\nc: .nan\nd: 1e39\ne: -1e39\nf: [0, .nan]\ng: 3.4e38\nh: 1e-320\n"
      "i: -1e-38\nj: 0.0\nk: 1.2e-38\nl: 1e999\nm: -1e999\nn: 1e-999\n");
  for (const auto& [key, problem] : {std::pair("a", "a: \".inf\" is too large"),
                                     {"b", "b: \"-.inf\" is too large"},
                                     {"c", "c: \".nan\" is no number"},
                                     {"d", "d: \"1e39\" is too large"},
                                     {"e", "e: \"-1e39\" is too large"},
                                     {"h", "h: \"1e-320\" is too small"},
                                     {"i", "i: \"-1e-38\" is too small"},
                                     {"l", "l: \"1e999\" is too large"},
                                     {"m", "m: \"-1e999\" is too large"},
                                     {"n", "n: \"1e-999\" is too small"}}) {
    const std::string message = error_of([&] { map.get<double>(key); });
    EXPECT_THAT(message, HasSubstr(problem));
    EXPECT_THAT(message, HasSubstr("fp32: 0, or sizes from 1.2e-38 to 3.4e+38"));
  }
  EXPECT_EQ(map.get<double>("j"), 0.0);
  EXPECT_EQ(map.get<double>("k"), 1.2e-38);
  EXPECT_THAT(error_of([&] { map.get<std::vector<double>>("f"); }), HasSubstr("c.yaml:6:8: f.1"));
  EXPECT_EQ(map.get<double>("g"), 3.4e38);
}

TEST(Yaml, IntegersBeyond64BitsAreCalledSo) {
  const YamlMap map = parse("a: 9223372036854775808\nb: 1e30\nc: -9223372036854775808\nd: 1e999\n");
  EXPECT_THAT(error_of([&] { map.get<std::int64_t>("a"); }),
              HasSubstr("c.yaml:1:4: a: expected an integer of 64 bits"));
  EXPECT_THAT(error_of([&] { map.get<std::int64_t>("b"); }), HasSubstr("an integer of 64 bits"));
  EXPECT_EQ(map.get<std::int64_t>("c"), INT64_MIN);
  EXPECT_THAT(error_of([&] { map.get<std::int64_t>("d"); }), HasSubstr("expected an integer, got"));
}

TEST(Yaml, ARecorderWritesDownWhatIsAsked) {
  const auto recorder = std::make_shared<YamlRecorder>();
  const YamlMap map =
      YamlDocument::parse("block: {x: 1}\nlist: [{y: 2}]\nfree: {z: 1}\nidle: 1\nneeded: 1ba\n",
                          "c.yaml")
          .recorded_by(recorder)
          .root();
  map.get<std::string>("word", "a");
  map.positive<int>("count", 3);
  map.positive<int>("wrong", 3);
  map.find<bool>("wrong");
  map.time("t", Time{1, TimeUnit::kEpoch});
  map.time("needed");
  map.map("block").non_negative<double>("x");
  map.maps("list").at(0).get<std::int64_t>("y");
  map.find_map("absent");
  map.skip("free");
  testing::internal::CaptureStderr();
  map.no_effect("idle", "nobody looks");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "no run is warned";
  map.refuse("banned", map.get<bool>("banned", false), "use another");
  EXPECT_NO_THROW(map.finish());

  EXPECT_THAT(recorder->maps, testing::SizeIs(3));
  const auto& keys = recorder->maps.at("").keys;
  EXPECT_THAT(keys.at("word").types, ElementsAre("string"));
  EXPECT_EQ(keys.at("word").fallback, "a");
  EXPECT_FALSE(keys.at("word").required);
  EXPECT_THAT(keys.at("count").types, ElementsAre("integer, at least 1"));
  EXPECT_EQ(keys.at("count").fallback, "3");
  EXPECT_THAT(keys.at("wrong").types, ElementsAre("integer, at least 1", "true or false"));
  EXPECT_EQ(keys.at("t").fallback, "1ep");
  EXPECT_TRUE(keys.at("needed").required && !keys.at("needed").fallback);
  EXPECT_TRUE(keys.at("block").is_map && keys.at("block").required);
  EXPECT_TRUE(keys.at("absent").is_map && !keys.at("absent").required);
  EXPECT_THAT(keys.at("free").types, testing::IsEmpty());
  EXPECT_EQ(keys.at("idle").no_effect, "nobody looks");
  EXPECT_EQ(keys.at("banned").not_served, "use another");
  EXPECT_EQ(keys.at("banned").fallback, "false");
  EXPECT_TRUE(recorder->maps.at("block").keys.at("x").required);
  EXPECT_TRUE(recorder->maps.at("list.0").keys.at("y").required);
}

TEST(Yaml, BoundedNumbers) {
  const YamlMap map = parse("one: 1\nzero: 0\nless: -2\nfraction: 0.5\nnothing: null\n");
  EXPECT_EQ(map.positive<int>("one"), 1);
  EXPECT_EQ(map.positive<double>("fraction"), 0.5);
  EXPECT_EQ(map.positive<int>("absent", 7), 7);
  EXPECT_EQ(map.non_negative<int>("nothing", 7), 7);
  EXPECT_THAT(error_of([&] { map.positive<int>("nothing", 7); }),
              HasSubstr("c.yaml:5:10: nothing: must not be null"));
  EXPECT_EQ(map.non_negative<double>("zero"), 0.0);
  EXPECT_EQ(map.find_positive<std::int64_t>("absent"), std::nullopt);
  EXPECT_THAT(error_of([&] { map.positive<int>("zero"); }),
              HasSubstr("c.yaml:2:7: zero: must be at least 1, not 0"));
  EXPECT_THAT(error_of([&] { map.positive<double>("zero", 1.0); }),
              HasSubstr("must be above 0, not 0"));
  EXPECT_THAT(error_of([&] { map.find_positive<std::int64_t>("less"); }), HasSubstr("not -2"));
  EXPECT_THAT(error_of([&] { map.non_negative<double>("less", 1.0); }),
              HasSubstr("c.yaml:3:7: less: must not be negative, but is -2"));
  EXPECT_THAT(error_of([&] { map.positive<int>("absent"); }), HasSubstr("required key is missing"));
  EXPECT_THAT(error_of([&] { map.non_negative<int>("nothing"); }), HasSubstr("must not be null"));
  EXPECT_NO_THROW(map.finish());
}

TEST(Yaml, TimesAndKeysThatCannotBeHonoured) {
  const YamlMap map = parse("t: 10ba\nbad: 10 parsecs\nnone: null\nset: 1\n");
  EXPECT_EQ(map.time("t", Time{}), (Time{10, TimeUnit::kBatch}));
  EXPECT_EQ(map.time("none", Time{3, TimeUnit::kEpoch}), (Time{3, TimeUnit::kEpoch}));
  EXPECT_THAT(error_of([&] { map.time("bad", Time{}); }), HasSubstr("c.yaml:2:6: bad: "));
  EXPECT_EQ(map.time("t"), (Time{10, TimeUnit::kBatch}));
  EXPECT_THAT(error_of([&] { map.time("absent"); }), HasSubstr("required key is missing"));
  EXPECT_THAT(error_of([&] { map.time("none"); }), HasSubstr("none: must not be null"));
  EXPECT_NO_THROW(map.refuse("none"));
  EXPECT_NO_THROW(map.refuse("absent"));
  EXPECT_NO_THROW(map.refuse("set", false));
  EXPECT_NO_THROW(map.finish());
  EXPECT_THAT(error_of([&] { map.refuse("set"); }),
              HasSubstr("c.yaml:4:6: set: not supported by this version"));
  EXPECT_THAT(error_of([&] { map.refuse("set", true, "remove it"); }), HasSubstr("| remove it"));
}

TEST(Yaml, LocateGivesErrorsOfOtherPartsTheirPlace) {
  const YamlMap map = parse("s: {t: 5}\nl:\n  - {a: 1}\n  - {a: 2}\n");
  const auto refuse = [] { throw Error(ErrorKind::kUnsupported, "too long", "cut it"); };
  EXPECT_THAT(error_of([&] { map.locate("s.t", refuse); }),
              HasSubstr("c.yaml:1:8: s.t: too long | cut it"));
  EXPECT_THAT(error_of([&] { map.locate("l.1.a", refuse); }), HasSubstr("c.yaml:4:9: l.1.a: "));
  // An absent key: the place of what it would stand in.
  EXPECT_THAT(error_of([&] { map.locate("s.u.v", refuse); }), HasSubstr("c.yaml:1:4: s.u.v: "));
  EXPECT_THAT(error_of([&] { map.locate("l.7.a", refuse); }), HasSubstr("c.yaml:3:3: l.7.a: "));
  EXPECT_EQ(map.locate("s", [] { return 3; }), 3);
  // Damage is not of the config.
  const auto damage = [] { throw Error(ErrorKind::kDamaged, "cut short"); };
  try {
    map.locate("s", damage);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
    EXPECT_STREQ(error.what(), "cut short");
  }
}

// ---- keys ----

TEST(Yaml, DuplicateKeyNamesBothPlaces) {
  const std::string message = parse_error("lr: 1\nb:\n  x: 1\n  y: 2\n  x: 3\n");
  EXPECT_THAT(message, HasSubstr("c.yaml:5:3: b: key \"x\" stands twice"));
  EXPECT_THAT(message, HasSubstr("first at c.yaml:3:3"));
}

TEST(Yaml, UnknownKeyGetsASuggestion) {
  const YamlMap map = parse("model:\n  d_modle: 4\n  n_heads: 2\n");
  const YamlMap model = map.map("model");
  model.get<int>("d_model", 1);
  model.get<int>("n_heads");
  EXPECT_THAT(error_of([&] { map.finish(); }),
              HasSubstr("c.yaml:2:3: model.d_modle: unknown key; did you mean \"d_model\"?"));
}

TEST(Yaml, PrefixIsSuggestedAndDistantKeysAreListed) {
  const YamlMap map = parse("opt: 1\n");
  map.get<int>("optimizer", 0);
  EXPECT_THAT(error_of([&] { map.finish(); }), HasSubstr("did you mean \"optimizer\"?"));
  const YamlMap other = parse("a:\n  zzzz: 1\n").map("a");
  other.get<int>("lr", 0);
  EXPECT_THAT(error_of([&] { other.finish(); }), HasSubstr("known here: lr"));
}

TEST(Yaml, FinishAtTheRootCoversWhatWasReached) {
  const YamlMap map = parse("list:\n- {name: a, extra: 1}\nfree: {anything: 1}\n");
  map.skip("free");
  for (const YamlMap& item : map.maps("list")) item.get<std::string>("name");
  EXPECT_THAT(error_of([&] { map.finish(); }), HasSubstr("list.0.extra: unknown key"));
}

TEST(Yaml, MapsTakesOneOrMany) {
  const YamlMap map = parse("one: {a: 1}\nmany: [{a: 2}, {a: 3}]\nbad: [{a: 1}, 4]\n");
  EXPECT_EQ(map.maps("one").size(), 1u);
  EXPECT_EQ(map.maps("many").at(1).get<int>("a"), 3);
  EXPECT_TRUE(map.maps("absent").empty());
  EXPECT_THAT(error_of([&] { map.maps("bad"); }), HasSubstr("bad.1: expected a mapping"));
}

TEST(Yaml, NoEffectCountsAsRead) {
  const YamlMap map = parse("x: 1\n");
  map.no_effect("x", "there is one GPU");
  EXPECT_NO_THROW(map.finish());
}

// ---- interpolation ----

TEST(Yaml, InterpolationKeepsTheType) {
  const YamlMap map = parse(
      "variables:\n  n: 128\n  name: run\n  nested: ${variables.n}\n  which: n\n  list: [1, 2]\n"
      "a: ${variables.nested}\nb: ${variables.name}-${variables.n}\nc: '${variables.n}'\n"
      "d: ${variables.${variables.which}}\ne: ${variables.list}\nf: ${variables.list.1}\n"
      "g: \\${kept}\nh: ${variables}\n");
  EXPECT_EQ(map.get<int>("a"), 128);
  EXPECT_EQ(map.get<std::string>("b"), "run-128");
  EXPECT_EQ(map.get<int>("c"), 128);
  EXPECT_EQ(map.get<int>("d"), 128);
  EXPECT_THAT(map.get<std::vector<int>>("e"), ElementsAre(1, 2));
  EXPECT_EQ(map.get<int>("f"), 2);
  EXPECT_EQ(map.get<std::string>("g"), "${kept}");
  EXPECT_EQ(map.map("h").get<int>("nested"), 128);
}

TEST(Yaml, InterpolatedTextIsAString) {
  const YamlMap map = parse("v: 1\na: ${v}0\n");
  EXPECT_EQ(map.get<std::string>("a"), "10");
  EXPECT_THAT(error_of([&] { map.get<int>("a"); }), HasSubstr("expected an integer"));
}

TEST(Yaml, TypeErrorTellsWhereTheValueCameFrom) {
  const YamlMap map = parse("variables: {lr: fast}\nlr: ${variables.lr}\n");
  const std::string message = error_of([&] { map.get<double>("lr"); });
  EXPECT_THAT(message, HasSubstr("c.yaml:2:5: lr: expected a number, got \"fast\""));
  EXPECT_THAT(message, HasSubstr("${variables.lr}, c.yaml:1:17"));
}

TEST(Yaml, BadInterpolations) {
  EXPECT_THAT(
      parse_error("variables: {seed: 1}\na: ${variables.sede}\n"),
      HasSubstr("c.yaml:2:4: a: ${variables.sede}: there is no \"sede\"; did you mean \"seed\"?"));
  EXPECT_THAT(parse_error("a: ${b}\nb: ${a}\n"), HasSubstr("circle: a -> b -> a"));
  EXPECT_THAT(parse_error("a: ${a}\n"), HasSubstr("circle"));
  EXPECT_THAT(parse_error("m: {x: \"${m}\"}\n"), HasSubstr("circle"));
  EXPECT_THAT(parse_error("a: ${a.b}\n"), HasSubstr("circle"));
  EXPECT_THAT(parse_error("a: ${b\n"), HasSubstr("without its"));
  EXPECT_THAT(parse_error("a: ${.b}\n"), HasSubstr("absolute dotted path"));
  EXPECT_THAT(parse_error("a: ${oc.env:HOME}\n"), HasSubstr("resolvers"));
  EXPECT_THAT(parse_error("a: ${}\n"), HasSubstr("absolute dotted path"));
  EXPECT_THAT(parse_error("m: {x: 1}\na: x${m}\n"), HasSubstr("a mapping and cannot stand inside"));
  EXPECT_THAT(parse_error("n: null\na: x${n}\n"), HasSubstr("null and cannot"));
}

// ---- overrides ----

TEST(Yaml, AnOverrideTakesOutWhatIsUnknown) {
  const char* text = "stale: &shared {x: 1}\nblock: {<<: *shared, y: 2}\n";
  const auto finish = [&](const std::vector<std::string>& overrides) {
    const YamlMap root = YamlDocument::parse(text, "c.yaml", overrides).root();
    const YamlMap block = root.map("block");
    EXPECT_EQ(block.get<int>("x") + block.get<int>("y"), 3);
    root.finish();
  };
  EXPECT_THAT(error_of([&] { finish({}); }), HasSubstr("c.yaml:1:1: stale: unknown key"));
  finish({"stale=null"});
  EXPECT_THAT(error_of([&] {
                finish({"stale=null", "stale.x=5"});
              }),
              HasSubstr("stale: unknown key"));
  // A checkpoint's config is read without the override.
  const YamlDocument taken = YamlDocument::parse(text, "c.yaml", {"stale=null", "block.y=null"});
  taken.root().map("block").find<int>("y");
  EXPECT_EQ(taken.dump(), "block:\n  y: null\n  x: 1\n");
  EXPECT_THAT(error_of([&] {
                finish({"stale=null", "stale=5"});
              }),
              HasSubstr("stale: unknown key"));
  EXPECT_THAT(error_of([&] {
                finish({"stale=null", "stele=null"});
              }),
              HasSubstr("stele: unknown key"));
}

TEST(Yaml, OverridesReplaceCreateAndMerge) {
  const YamlMap map =
      parse("a: {b: 1, c: 2}\nl: [{x: 1}]\nv: 1\nw: ${v}\n",
            {"a.b=3", "a.d.e=[1, 2]", "n=true", "a={c: 7}", "l.0.x=5", "v=9", "z="});
  EXPECT_EQ(map.map("a").get<int>("b"), 3);
  EXPECT_EQ(map.map("a").get<int>("c"), 7);
  EXPECT_THAT(map.map("a").map("d").get<std::vector<int>>("e"), ElementsAre(1, 2));
  EXPECT_TRUE(map.get<bool>("n"));
  EXPECT_EQ(map.maps("l")[0].get<int>("x"), 5);
  EXPECT_EQ(map.get<int>("w"), 9);
  EXPECT_FALSE(map.has("z"));
}

TEST(Yaml, BadOverridesNameThemselves) {
  for (const char* bad : {"novalue", "=1", "a..b=1", ".a=1", "a b=1", "--a=1", "", "a.=1"}) {
    EXPECT_THAT(parse_error("a: 1\n", {bad}),
                HasSubstr("override \"" + std::string(bad) + "\": not of the form key.path=value"));
  }
  EXPECT_THAT(parse_error("a: 1\n", {"a.b=1"}),
              HasSubstr("override \"a.b=1\": cannot set \"b\": a is a single value (c.yaml:1:4)"));
  EXPECT_THAT(parse_error("a: [1]\n", {"a.5=1"}), HasSubstr("override \"a.5=1\""));
  EXPECT_THAT(parse_error("a: 1\n", {"b=[1"}), HasSubstr("override \"b=[1\""));
  EXPECT_THAT(parse_error("a: 1\n", {"b=[1"}), HasSubstr("| a [ is not closed"));
  EXPECT_THAT(parse_error("a: 1\n", {"b={x: ${a}}"}), HasSubstr("in a value without quotes"));
  EXPECT_THAT(parse_error("a: 1\n", {"b=\"1"}), HasSubstr("| a quote is opened and not closed"));
  EXPECT_THAT(parse_error("a: 1\n", {"b={x: 1, x: 2}"}), HasSubstr("stands twice"));
  const YamlMap map = parse("a: 1\n", {"a=x"});
  EXPECT_THAT(error_of([&] { map.get<int>("a"); }),
              HasSubstr("override \"a=x\": a: expected an integer"));
  const YamlMap unknown = parse("a: 1\n", {"optimzer.lr=1"});
  unknown.get<int>("a");
  unknown.find_map("optimizer");
  EXPECT_THAT(
      error_of([&] { unknown.finish(); }),
      HasSubstr("override \"optimzer.lr=1\": optimzer: unknown key; did you mean \"optimizer\"?"));
}

// ---- anchors ----

TEST(Yaml, AnchorsAndMergeKeys) {
  const YamlMap map = parse(
      "base: &base {x: 1, y: 2}\nother: &other {y: 5, z: 6}\n"
      "a:\n  <<: *base\n  x: 9\nb:\n  <<: [*base, *other]\nc: *base\n");
  EXPECT_EQ(map.map("a").get<int>("x"), 9);
  EXPECT_EQ(map.map("a").get<int>("y"), 2);
  EXPECT_EQ(map.map("b").get<int>("y"), 2);
  EXPECT_EQ(map.map("b").get<int>("z"), 6);
  EXPECT_EQ(map.map("c").path(), "c");
  EXPECT_THAT(parse_error("a: {<<: 5}\n"), HasSubstr("`<<` takes a mapping"));
  EXPECT_THAT(parse_error("a: &x [*x]\n"), HasSubstr("alias inside the value"));
  EXPECT_THAT(parse_error("a: *nowhere\n"), HasSubstr("c.yaml:1:4"));
}

// ---- hostile and broken files ----

TEST(Yaml, SyntaxErrorsHaveAPlace) {
  EXPECT_THAT(parse_error("a: [1, 2\nb: 3\n"), HasSubstr("c.yaml:"));
  EXPECT_THAT(parse_error("a: 1\n\tb: 2\n"), HasSubstr("c.yaml:2:"));
  EXPECT_THAT(parse_error("a: \"1\nb: 2\n"),
              HasSubstr("a quote is opened and not closed | close it"));
  EXPECT_THAT(parse_error("a: 1\nb: 'x\n"),
              HasSubstr("a quote is opened and not closed | close it"));
  EXPECT_EQ(parse("a: |\n  b\n").get<std::string>("a"), "b\n");
  EXPECT_EQ(parse("a: 1\n...\n").get<int>("a"), 1);
  EXPECT_THAT(parse_error("a: 1\n---\nb: 2\n"), HasSubstr("after the end of the document"));
  EXPECT_THAT(parse_error("- 1\n- 2\n"), HasSubstr("a config is a mapping"));
  EXPECT_THAT(parse_error("just text"), HasSubstr("a config is a mapping"));
  EXPECT_THAT(parse_error("a: !custom 1\n"),
              HasSubstr("c.yaml:1:4: a: tag !custom is not supported"));
  EXPECT_THAT(parse_error("[1, 2]: x\n"), HasSubstr("a key must be a scalar"));
  EXPECT_THAT(parse_error("a: 1\nb: \xff\n"), HasSubstr("c.yaml:2:4: b: not valid UTF-8"));
  EXPECT_THAT(parse_error(std::string("a: b\0c\n", 7)), HasSubstr("control character"));
  EXPECT_THAT(error_of([] { YamlDocument::load("/nonexistent/x.yaml"); }),
              HasSubstr("/nonexistent/x.yaml is no file here"));
  EXPECT_TRUE(parse("").keys().empty());
  EXPECT_TRUE(parse("# only a comment\n").keys().empty());
}

TEST(Yaml, HostileFilesStayCheap) {
  rusage before;
  getrusage(RUSAGE_SELF, &before);
  EXPECT_THAT(parse_error("a: " + std::string(20'000, '[')), HasSubstr("c.yaml:1:"));
  std::string nested;
  for (int i = 0; i < 500; ++i) nested += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  EXPECT_THAT(parse_error(nested), HasSubstr("nested deeper than"));
  EXPECT_THAT(parse_error("a: " + std::string(10'000'000, 'x')), HasSubstr("10000003 bytes"));

  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  std::string deep = "b0: &b0 [1]\n", doubling = "v0: xxxxxxxxxx\n", wide = "w0: [x, x]\n";
  for (int i = 1; i < 40; ++i) {
    const std::string now = std::to_string(i), last = std::to_string(i - 1);
    bomb += "a" + now + ": &a" + now + " [*a" + last;
    for (int j = 0; j < 9; ++j) bomb += ", *a" + last;
    bomb += "]\n";
    doubling += "v" + now + ": ${v" + last + "}${v" + last + "}\n";
    wide += "w" + now + ": [\"${w" + last + "}\", \"${w" + last + "}\"]\n";
  }
  for (int i = 1; i < 300; ++i) {
    deep += "b" + std::to_string(i) + ": &b" + std::to_string(i) + " [*b" + std::to_string(i - 1) +
            "]\n";
  }
  EXPECT_THAT(parse_error(bomb), HasSubstr("grows beyond"));
  EXPECT_THAT(parse_error(doubling), HasSubstr("grows beyond"));
  EXPECT_THAT(parse_error(wide), HasSubstr("grows beyond"));
  EXPECT_THAT(parse_error(deep), HasSubstr("nested deeper than"));
  std::string chain = "c0: 1\n";
  for (int i = 1; i <= 300; ++i) {
    chain = "c" + std::to_string(i) + ": ${c" + std::to_string(i - 1) + "}\n" + chain;
  }
  EXPECT_THAT(parse_error(chain), HasSubstr("nested deeper than"));
  EXPECT_THAT(parse_error("a: 1\n", {std::string(5000, 'a') + std::string(10'000, '.') + "=1"}),
              HasSubstr("not of the form"));
  rusage after;
  getrusage(RUSAGE_SELF, &after);
#ifndef __SANITIZE_ADDRESS__
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024);
#endif
}

// ---- dump ----

TEST(Yaml, DumpReadsBackToTheSameValues) {
  const std::string text =
      "v: {n: 3}\na: ${v.n}\nb: '5'\nc: \"line\\nbreak: \\\"x\\\"\"\nd: [1, {e: [], f: {}}, [2, "
      "3], null]\n"
      "g: 'true'\nh: true\n'odd: key': 1\ni: |\n  literal\n  text\nj: \\${kept}\nk: '-'\nl: '- "
      "x'\n'<<': 1\n"
      "m: 1e-3\nn: ''\no: '#no comment'\np: \xc3\xa9\n";
  const YamlDocument first = YamlDocument::parse(text, "c.yaml", {"q.r=1"});
  const YamlDocument second = YamlDocument::parse(first.dump(), "d.yaml");
  EXPECT_EQ(first.dump(), second.dump());
  const YamlMap map = second.root();
  EXPECT_EQ(map.get<int>("a"), 3);
  EXPECT_THROW(map.get<int>("b"), Error);
  EXPECT_EQ(map.get<std::string>("c"), "line\nbreak: \"x\"");
  EXPECT_THROW(map.get<bool>("g"), Error);
  EXPECT_TRUE(map.get<bool>("h"));
  EXPECT_EQ(map.get<std::string>("i"), "literal\ntext\n");
  EXPECT_EQ(map.get<std::string>("j"), "${kept}");
  EXPECT_EQ(map.get<std::string>("k"), "-");
  EXPECT_EQ(map.get<std::string>("l"), "- x");
  EXPECT_EQ(map.get<double>("m"), 1e-3);
  EXPECT_EQ(map.get<std::string>("n"), "");
  EXPECT_EQ(map.get<std::string>("o"), "#no comment");
  EXPECT_EQ(map.get<std::string>("p"), "\xc3\xa9");
  EXPECT_EQ(map.get<int>("odd: key"), 1);
  EXPECT_EQ(map.get<int>("<<"), 1);
  EXPECT_EQ(map.map("q").get<int>("r"), 1);
  EXPECT_EQ(YamlDocument::parse("", "e.yaml").dump(), "{}\n");
}

}  // namespace
}  // namespace dropless::train
