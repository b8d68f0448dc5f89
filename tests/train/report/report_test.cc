#include "train/report/report.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/report/serve.h"

namespace dropless::train {
namespace {

TEST(Series, KeepsEachValueWhileThereAreFew) {
  Series series;
  for (int step = 1; step <= 3; ++step) series.add(step, 0.5 * step);
  series.add(4, std::nan(""));
  EXPECT_EQ(series.json().dump(), R"({"width":1,"step":[1,2,3],"mean":[0.5,1.0,1.5]})");
}

TEST(Series, IsBoundedAndKeepsPeaksAndMean) {
  Series series;
  for (int step = 0; step < 1'000'000; ++step) series.add(step, step == 700'001 ? 99.0 : step % 2);
  const auto json = series.json(200);
  ASSERT_LE(json["mean"].size(), 200u);
  ASSERT_GT(json["mean"].size(), 99u);
  double highest = 0;
  for (const auto& max : json["max"]) highest = std::max(highest, max.get<double>());
  EXPECT_EQ(highest, 99.0);
  EXPECT_NEAR(json["mean"][0].get<double>(), 0.5, 1e-6);
  EXPECT_EQ(json["min"][0], 0.0);
  EXPECT_EQ(json["step"].back(), 999'999);
}

TEST(Series, AnEarlierStepBeginsAnew) {
  Series series;
  for (int step = 1; step <= 5; ++step) series.add(step, step);
  series.add(3, 30);
  EXPECT_EQ(series.json()["step"].dump(), "[1,2,3]");
  EXPECT_EQ(series.json()["max"].dump(), "[1.0,2.0,30.0]");
}

TEST(LoadMap, ShowsLoadRelativeToAnEvenSpread) {
  LoadMap map;
  const double even = map.add(10, nlohmann::json::parse("[[4,4],[4,4]]"));
  EXPECT_DOUBLE_EQ(even, 1.0);
  EXPECT_NEAR(map.add(20, nlohmann::json::parse("[[8,0],[4,4]]")), 0.5, 1e-12);
  const auto json = map.json();
  EXPECT_EQ(json["step"].dump(), "[10,20]");
  // [layer][expert][step]; twice the even load is 128 + 127 / 3.
  EXPECT_EQ(json["load"], base64({128, 170, 128, 1, 128, 128, 128, 128}));
}

TEST(LoadMap, IgnoresOtherShapes) {
  LoadMap map;
  for (const char* text :
       {"7", "[]", "[[]]", "[[1]]", "[[1,2],[3]]", "[[1,\"a\"]]", "[[0,0]]", "[[-1,2]]"}) {
    EXPECT_TRUE(std::isnan(map.add(1, nlohmann::json::parse(text)))) << text;
  }
  EXPECT_TRUE(map.empty());
  map.add(1, nlohmann::json::parse("[[1,2]]"));
  EXPECT_TRUE(std::isnan(map.add(2, nlohmann::json::parse("[[1,2,3]]"))));
}

TEST(LoadMap, IsBounded) {
  LoadMap map;
  nlohmann::json tokens = nlohmann::json::array();
  for (int layer = 0; layer < 58; ++layer) tokens.push_back(std::vector<int>(256, 3));
  for (int step = 0; step < 100; ++step) map.add(step, tokens);
  EXPECT_LT(map.json()["load"].get<std::string>().size(), 700'000u);
}

TEST(Base64, PadsAsTheStandardSays) {
  EXPECT_EQ(base64({'M', 'a', 'n'}), "TWFu");
  EXPECT_EQ(base64({'M', 'a'}), "TWE=");
  EXPECT_EQ(base64({'M'}), "TQ==");
}

class ReportTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "report_" + std::to_string(::getpid());
    std::filesystem::remove_all(folder_);
    make_folders(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void append(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name, std::ios::app) << text;
  }
  nlohmann::ordered_json run() {
    RunHistory history(folder_);
    history.read();
    return history.json("run", "", 10'000);
  }

  std::string folder_;
};

TEST_F(ReportTest, SkipsWhatIsBroken) {
  append("metrics.jsonl",
         "{\"step\":1,\"loss\":3}\nnonsense\n[1]\n{\"loss\":1}\n{\"step\":-1,\"loss\":1}\n\n"
         "{\"step\":1e3,\"loss\":1}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"loss\":NaN,\"x\":1,"
         "\"n\":\"NaN\"}\n"
         "{\"step\":4,\"loss\":2}\n{\"step\":5,\"lo");
  const auto json = run();
  EXPECT_EQ(json["series"]["loss"]["step"].dump(), "[1,4]");
  EXPECT_EQ(json["series"]["x"]["step"].dump(), "[3]");
  EXPECT_EQ(json["broken_lines"], 6);
  EXPECT_EQ(json["events"].size(), 2u);
}

TEST_F(ReportTest, AStepWithoutUpdateIsOneEvent) {
  append("metrics.jsonl",
         "{\"step\":1,\"loss\":null,\"norm\":null,\"skipped\":true}\n"
         "{\"step\":2,\"loss\":1,\"skipped\":true}\n{\"step\":3,\"loss\":1,\"skipped\":false}\n");
  const auto events = run()["events"];
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["event"], "skip");
  EXPECT_EQ(events[0]["detail"], "not finite: loss, norm");
  EXPECT_EQ(events[1]["detail"], "the gradients overflowed");
}

TEST_F(ReportTest, SamplesOfAStepStayTogether) {
  const auto sample = [&](int step, const std::string& prompt) {
    append("samples.jsonl",
           nlohmann::json{{"step", step}, {"prompt", prompt}, {"text", "t"}}.dump() + "\n");
  };
  for (int step = 5; step <= 1000; step += 5) {
    sample(step, "a");
    sample(step, "b");
  }
  auto samples = run()["samples"];
  EXPECT_LE(samples.size(), 64u);
  EXPECT_EQ(samples[0]["step"], 5);
  EXPECT_EQ(samples.back()["step"], 1000);
  for (const auto& step : samples) EXPECT_EQ(step["texts"].size(), 2u) << step;
  // A resume from an older checkpoint writes later ones again.
  sample(800, "c");
  samples = run()["samples"];
  EXPECT_EQ(samples.back()["step"], 800);
}

TEST_F(ReportTest, ReadsOnFromWhereItWas) {
  append("metrics.jsonl", "{\"step\":1,\"loss\":3}\n{\"step\":2,\"lo");
  RunHistory history(folder_);
  history.read();
  append("metrics.jsonl", "ss\":4}\n{\"step\":3,\"loss\":5}\n");
  history.read();
  history.read();
  auto json = history.json("run", "", 1000);
  EXPECT_EQ(json["series"]["loss"]["mean"].dump(), "[3.0,4.0,5.0]");
  EXPECT_EQ(json["broken_lines"], 0);
  write_file_durable(folder_ + "/metrics.jsonl", "{\"step\":1,\"loss\":7}\n");
  history.read();
  EXPECT_EQ(history.json("run", "", 1000)["series"]["loss"]["mean"].dump(), "[7.0]");
}

TEST_F(ReportTest, SeesThatAFileWasReplacedByALongerOne) {
  append("metrics.jsonl", "{\"step\":1,\"loss\":3}\n");
  append("samples.jsonl", "{\"step\":1,\"prompt\":\"p\",\"text\":\"t\"}\n");
  RunHistory history(folder_);
  history.read();
  const std::int64_t version = history.version();
  history.read();
  EXPECT_EQ(history.version(), version);
  write_file_durable(folder_ + "/metrics.jsonl",
                     "{\"step\":1,\"loss\":4}\n{\"step\":2,\"loss\":5}\n");
  std::filesystem::remove(folder_ + "/samples.jsonl");
  history.read();
  const auto json = history.json("run", "", 1000);
  EXPECT_EQ(json["series"]["loss"]["mean"].dump(), "[4.0,5.0]");
  EXPECT_TRUE(json["samples"].empty());
  EXPECT_GT(history.version(), version);
}

TEST_F(ReportTest, ManyFiguresAndSamplesMakeABoundedPage) {
  for (int step = 1; step <= 3000; ++step) {
    nlohmann::json line{{"step", step}};
    for (int i = 0; i < 330; ++i) line["figure" + std::to_string(i)] = std::sin(i * step);
    append("metrics.jsonl", line.dump() + "\n");
    append(
        "samples.jsonl",
        nlohmann::json{{"step", step}, {"prompt", "p"}, {"text", std::string(9000, 'x')}}.dump() +
            "\n");
  }
  RunHistory history(folder_);
  history.read();
  const auto json = history.json("run", "", 60'000);
  EXPECT_TRUE(json["series_left_out"]);
  EXPECT_LE(json["samples"].size(), 64u);
  EXPECT_GE(json["samples"].size(), 32u);
  EXPECT_EQ(json["samples"][0]["step"], 1);
  EXPECT_EQ(json["samples"].back()["step"], 3000);
  EXPECT_LT(report_page(report_data({json})).size(), 4'000'000u);
}

TEST_F(ReportTest, NothingOfARunBecomesMarkup) {
  append("metrics.jsonl", "{\"step\":1,\"</script><b>\":3}\n");
  append("samples.jsonl",
         "{\"step\":1,\"prompt\":\"<!--\",\"text\":\"</script><script>alert(1)</script>\"}\n");
  RunHistory history(folder_);
  history.read();
  const std::string page =
      report_page(report_data({history.json("</script>/*DATA*/", "a: </SCRIPT>\xff", 1000)}));
  std::size_t ends = 0;
  for (std::size_t at = 0; (at = page.find("</", at)) != std::string::npos; ++at) {
    ends += page.substr(at + 2, 6) == "script" || page.substr(at + 2, 6) == "SCRIPT";
  }
  EXPECT_EQ(ends, 2u);  // of the data and of the program
  EXPECT_EQ(page.find("<!--"), std::string::npos);
}

TEST_F(ReportTest, WriterKeepsEventsAcrossAResume) {
  append("metrics.jsonl", "{\"step\":1,\"loss\":3}\n");
  {
    ReportWriter writer(folder_, "a: 1\n", 0);
    writer.event("save", 1);
    writer.finish();
  }
  ReportWriter writer(folder_, "a: 1\n", 1);
  writer.update();
  const std::string page = read_file(folder_ + "/report.html");
  EXPECT_NE(page.find("\"event\":\"save\""), std::string::npos);
  EXPECT_NE(page.find("\"event\":\"resume\""), std::string::npos);
  writer.event("stop", 1);
  writer.update();  // too soon
  EXPECT_EQ(read_file(folder_ + "/report.html"), page);
  writer.finish();
  EXPECT_NE(read_file(folder_ + "/report.html").find("\"event\":\"stop\""), std::string::npos);
  EXPECT_FALSE(path_exists(folder_ + "/report.html.tmp"));
}

TEST_F(ReportTest, AFolderThatIsGoneStopsNoRun) {
  ReportWriter writer(folder_, "", 0);
  std::filesystem::remove_all(folder_);
  EXPECT_NO_THROW({
    writer.event("save", 1);
    writer.finish();
  });
}

TEST_F(ReportTest, AServerEndsWheneverItIsToldTo) {
  for (int i = 0; i < 20; ++i) {
    const ReportServer server(folder_, "", 0);
    ASSERT_GT(server.port(), 0);
    try {
      const ReportServer second(folder_, "", server.port());
      FAIL() << "two servers on one port";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    }
  }
}

TEST_F(ReportTest, RefusesFoldersWithoutMetrics) {
  EXPECT_THROW(report_of_folders({folder_}), Error);
  EXPECT_THROW(report_of_folders({folder_ + "/none"}), Error);
}

}  // namespace
}  // namespace dropless::train
