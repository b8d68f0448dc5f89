// The checkpoint protocol: complete or absent, whatever kills the process; every flipped bit found.
#include "train/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class Checkpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "dropless_ck_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    run_ = root_ + "/run";
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // A checkpoint whose content says which save it is.
  static std::string save(const std::string& run, std::int64_t step, float content) {
    CheckpointWriter writer(run, step);
    const std::vector<float> weights(100, content);
    writer.add_tensors("model.safetensors", {{"w", StorageType::kF32, {10, 10}, weights.data()}});
    writer.add_tensors("optimizer.safetensors", {{"m", StorageType::kF32, {100}, weights.data()}});
    writer.add_text("state.json", "{\"content\": " + std::to_string(content) + "}\n");
    return writer.commit();
  }
  static float content(const std::string& folder) {
    verify_checkpoint(folder);
    float value = 0;
    const auto file = SafetensorsFile::open(folder + "/model.safetensors");
    file.read_part(file.at("w"), 0, &value, sizeof value);
    return value;
  }
  std::string root_, run_;
};

int in_child(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    try {
      body();
    } catch (...) {
      _exit(9);
    }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

std::string error_of(const std::function<void()>& action, ErrorKind kind) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

std::string hint_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.hint();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST_F(Checkpoint, SaveAndRead) {
  const std::string folder = save(run_, 40, 1.5f);
  EXPECT_EQ(folder, run_ + "/step-40");
  EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-40"));
  EXPECT_THAT(list_folder(folder), ElementsAre("manifest.json", "model.safetensors",
                                               "optimizer.safetensors", "state.json"));
  EXPECT_EQ(std::filesystem::read_symlink(run_ + "/latest"), "step-40");
  const Manifest manifest = verify_checkpoint(folder);
  EXPECT_EQ(manifest.step, 40);
  EXPECT_EQ(manifest.files.size(), 3u);
  EXPECT_EQ(content(folder), 1.5f);
  EXPECT_EQ(resolve_checkpoint(run_), folder);
  EXPECT_EQ(resolve_checkpoint(folder), folder);
  save(run_, 60, 2);
  EXPECT_EQ(resolve_checkpoint(run_), run_ + "/step-60");
  EXPECT_THAT(list_steps(run_), ElementsAre(40, 60));
  EXPECT_EQ(find_newest_good(run_).folder, run_ + "/step-60");
}

TEST_F(Checkpoint, TheLastSaveIsTheNewestWhateverItsStep) {
  save(run_, 40, 1);
  save(run_, 20, 2);  // a run resumed from step 10 in the same folder
  EXPECT_EQ(find_newest_good(run_).folder, run_ + "/step-20");
  EXPECT_EQ(resolve_checkpoint(run_), run_ + "/step-20");
}

TEST_F(Checkpoint, SavingAStepAgainReplacesIt) {
  save(run_, 5, 1);
  save(run_, 5, 2);
  EXPECT_EQ(content(run_ + "/step-5"), 2);
  EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-5"));
}

TEST_F(Checkpoint, AbandonedLeavesNothing) {
  save(run_, 1, 1);
  {
    CheckpointWriter writer(run_, 2);
    writer.add_text("state.json", "{}");
    EXPECT_TRUE(path_exists(run_ + "/step-2.tmp/state.json"));
  }
  EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-1"));
}

TEST_F(Checkpoint, RefusesBadNames) {
  CheckpointWriter writer(run_, 1);
  writer.add_text("a.json", "{}");
  for (const char* name : {"a.json", "manifest.json", "../x", "a/b", "", ".hidden", "sp ace"}) {
    error_of([&] { writer.add_text(name, ""); }, ErrorKind::kInvalidArgument);
  }
  error_of([&] { CheckpointWriter(run_, -1); }, ErrorKind::kInvalidArgument);
}

TEST_F(Checkpoint, ResolveExplainsItself) {
  EXPECT_THAT(error_of([&] { resolve_checkpoint(run_); }, ErrorKind::kInvalidArgument),
              HasSubstr("no such checkpoint: " + run_));
  make_folders(run_ + "/step-3.tmp");
  EXPECT_THAT(error_of([&] { resolve_checkpoint(run_); }, ErrorKind::kInvalidArgument),
              HasSubstr("no complete checkpoint in " + run_));
  save(run_, 2, 1);
  std::filesystem::remove(run_ + "/latest");
  EXPECT_EQ(resolve_checkpoint(run_), run_ + "/step-2");
  // Never another one than the name says.
  replace_symlink(run_ + "/latest", "step-99");
  EXPECT_THAT(error_of([&] { resolve_checkpoint(run_); }, ErrorKind::kDamaged),
              HasSubstr("step-99, which is not there"));
  make_folders(run_ + "/step-99");
  EXPECT_THAT(error_of([&] { resolve_checkpoint(run_); }, ErrorKind::kDamaged),
              HasSubstr("step-99, which has no manifest.json"));
}

// As copies that follow links leave it.
TEST_F(Checkpoint, LatestThatIsNoLink) {
  check_latest(run_);  // not there
  save(run_, 2, 1);
  check_latest(run_);
  std::filesystem::remove(run_ + "/latest");
  std::filesystem::copy(run_ + "/step-2", run_ + "/latest");
  EXPECT_EQ(resolve_checkpoint(run_), run_ + "/latest");
  EXPECT_THAT(error_of([&] { check_latest(run_); }, ErrorKind::kInvalidArgument),
              HasSubstr("latest is not a link"));
  EXPECT_THAT(hint_of([&] { check_latest(run_); }), HasSubstr("a second " + run_ + "/step-2"));
  std::filesystem::remove_all(run_ + "/step-2");
  EXPECT_THAT(hint_of([&] { check_latest(run_); }),
              HasSubstr("mv " + run_ + "/latest " + run_ + "/step-2"));
  write_file_durable(run_ + "/latest/manifest.json", "{}");
  EXPECT_THAT(hint_of([&] { check_latest(run_); }), HasSubstr("move " + run_ + "/latest away"));
}

TEST_F(Checkpoint, NothingElseIsReplaced) {
  make_folders(run_ + "/step-1");
  write_file_durable(run_ + "/step-1/notes", "mine");
  write_file_durable(run_ + "/step-2", "mine too");
  for (const int step : {1, 2}) EXPECT_EQ(content(save(run_, step, 3)), 3);
  EXPECT_EQ(read_file(run_ + "/step-1.kept/notes"), "mine");
  EXPECT_EQ(read_file(run_ + "/step-2.kept"), "mine too");
  save(run_, 2, 4);
  EXPECT_FALSE(path_exists(run_ + "/step-2.kept-2")) << "a checkpoint is replaced";
}

TEST_F(Checkpoint, DamageNamesTheLastGoodOne) {
  for (const int step : {1, 2, 3}) save(run_, step, 1);
  const std::string newest = run_ + "/step-3";
  const auto named = HasSubstr("last good checkpoint: " + run_ + "/step-1");
  write_file_durable(run_ + "/step-2/model.safetensors", "damaged");
  write_file_durable(newest + "/model.safetensors", "damaged");
  EXPECT_THAT(hint_of([&] { verify_checkpoint(newest); }), named);
  const Manifest manifest = read_manifest(newest);
  EXPECT_THAT(hint_of([&] { verify_file(newest, manifest, "model.safetensors"); }), named);
  write_file_durable(newest + "/manifest.json", "");
  EXPECT_THAT(error_of([&] { read_manifest(newest); }, ErrorKind::kDamaged),
              HasSubstr("manifest.json: it is empty"));
  EXPECT_THAT(hint_of([&] { read_manifest(newest); }), named);
  std::filesystem::remove_all(run_ + "/step-1");
  EXPECT_THAT(hint_of([&] { read_manifest(newest); }),
              HasSubstr("no other checkpoint stands beside it"));
}

TEST_F(Checkpoint, Prune) {
  for (int step = 1; step <= 5; ++step) save(run_, step, 1);
  EXPECT_THAT(prune_checkpoints(run_, -1), IsEmpty());
  EXPECT_THAT(prune_checkpoints(run_, 3), ElementsAre(run_ + "/step-2", run_ + "/step-1"));
  EXPECT_THAT(list_steps(run_), ElementsAre(3, 4, 5));
  replace_symlink(run_ + "/latest", "step-3");
  prune_checkpoints(run_, 1);
  EXPECT_THAT(list_steps(run_), ElementsAre(3, 5)) << "latest is never removed";
  prune_checkpoints(run_, 0);
  EXPECT_THAT(list_steps(run_), ElementsAre(3));
  error_of([&] { prune_checkpoints(run_, -2); }, ErrorKind::kInvalidArgument);
}

TEST_F(Checkpoint, ParsesOnlyItsOwnFolders) {
  save(run_, 7, 1);
  for (const char* name : {"step-007", "step-", "step-x", "step-7b", "step--7", "other",
                           "step-8.bak", "notes.tmp", "step-x.tmp"}) {
    make_folders(run_ + "/" + name);
  }
  EXPECT_THAT(list_steps(run_), ElementsAre(7));
  EXPECT_THAT(sweep_stale(run_), IsEmpty());
}

// ---- damage ----

TEST_F(Checkpoint, DamageIsNamed) {
  const std::string folder = save(run_, 1, 1);
  const std::string state = read_file(folder + "/state.json");
  write_file_durable(folder + "/state.json", state + " ");
  EXPECT_THAT(error_of([&] { verify_checkpoint(folder); }, ErrorKind::kDamaged),
              HasSubstr("state.json: 23 bytes, should be 22"));
  write_file_durable(folder + "/state.json", std::string(state.size(), 'x'));
  EXPECT_THAT(error_of([&] { verify_checkpoint(folder); }, ErrorKind::kDamaged),
              HasSubstr("state.json: altered"));
  remove_all(folder + "/state.json");
  EXPECT_THAT(error_of([&] { verify_checkpoint(folder); }, ErrorKind::kDamaged),
              HasSubstr("state.json: missing"));
  remove_all(folder + "/manifest.json");
  error_of([&] { verify_checkpoint(folder); }, ErrorKind::kInvalidArgument);
}

TEST_F(Checkpoint, EveryFlippedBitAndTruncationIsFound) {
  save(run_, 1, 1);
  const std::string folder = save(run_, 2, 2);
  std::mt19937 random(5);
  for (const std::string& name : list_folder(folder)) {
    SCOPED_TRACE(name);
    const std::string path = folder + "/" + name;
    const std::string original = read_file(path);
    const auto damage = [&](const std::string& bytes) {
      // A new file each time: ext4 flushes one that is truncated and written again.
      std::filesystem::remove(path);
      std::ofstream(path, std::ios::binary) << bytes;
      EXPECT_THAT(error_of([&] { verify_checkpoint(folder); }, ErrorKind::kDamaged),
                  HasSubstr(name));
    };
    // The manifest is checked bit by bit, the others at 200 random places.
    const bool all = name == "manifest.json";
    const std::size_t flips = all ? 8 * original.size() : 200;
    for (std::size_t i = 0; i < flips; ++i) {
      const std::size_t bit = all ? i : random() % (8 * original.size());
      std::string bytes = original;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      damage(bytes);
    }
    for (int i = 0; i < 50; ++i) damage(original.substr(0, random() % original.size()));
    const NewestGood newest = find_newest_good(run_);
    EXPECT_EQ(newest.folder, run_ + "/step-1");
    ASSERT_THAT(newest.rejected, SizeIs(1));
    EXPECT_EQ(newest.rejected[0].folder, folder);
    EXPECT_THAT(newest.rejected[0].reason, HasSubstr(name));
    write_file_durable(path, original);
  }
  EXPECT_EQ(find_newest_good(run_).folder, folder);
}

TEST_F(Checkpoint, ManifestOfAnotherKind) {
  const auto kind = [](const std::string& text) {
    try {
      parse_manifest(text, "m");
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::kInternal;
  };
  EXPECT_EQ(kind("{\"format\": \"other\"}"), ErrorKind::kInvalidArgument);
  EXPECT_EQ(kind("[]"), ErrorKind::kInvalidArgument);
  EXPECT_EQ(kind("{\"format\": \"dropless-checkpoint\", \"version\": 2}"),
            ErrorKind::kInvalidArgument);
  EXPECT_EQ(kind("{\"format\": \"dropless-checkpoint\", \"version\": 1}"), ErrorKind::kDamaged);
  EXPECT_EQ(kind("{"), ErrorKind::kDamaged);
  // Sealed, but pointing out of its folder.
  EXPECT_EQ(kind(make_manifest({1, 1, {{"../../x", 1, std::string(32, '0')}}})),
            ErrorKind::kDamaged);
  const Manifest back =
      parse_manifest(make_manifest({3, 4, {{"f", 9, std::string(32, 'a')}}}), "m");
  EXPECT_EQ(back.step, 3);
  EXPECT_EQ(back.sequence, 4);
  EXPECT_EQ(back.files.at(0).bytes, 9u);
}

// With one piece of it replaced, and a seal that fits.
std::string resealed(std::string text, const std::string& piece, const std::string& by) {
  const std::size_t tail = text.rfind(",\n  \"manifest_xxh3_128\"");
  std::string body = text.substr(0, tail);
  for (std::size_t at = body.find(piece); at != std::string::npos; at = body.find(piece)) {
    body.replace(at, piece.size(), by);
  }
  return body + ",\n  \"manifest_xxh3_128\": \"" + xxh3_hex(body) + "\"\n}\n";
}

TEST_F(Checkpoint, ManifestIsTheCaseOfOneRank) {
  const std::string text = make_manifest({3, 4, {{"f", 9, std::string(32, 'a')}}});
  EXPECT_THAT(text, HasSubstr("\"world_size\": 1"));
  EXPECT_THAT(text, HasSubstr("\"shards\": []"));
  EXPECT_THAT(text, HasSubstr("{\"name\": \"f\", \"rank\": 0, "));
  const auto parse = [](const std::string& manifest) { parse_manifest(manifest, "m"); };
  EXPECT_THAT(error_of([&] { parse(resealed(text, "size\": 1", "size\": 4")); },
                       ErrorKind::kInvalidArgument),
              HasSubstr("saved by 4 ranks"));
  for (const auto& [piece, by] :
       {std::pair("\"shards\": []", "\"shards\": [{\"tensor\": \"w\"}]"),
        std::pair("\"rank\": 0", "\"rank\": 1"), std::pair("\"rank\": 0", "\"rank\": \"0\""),
        std::pair("size\": 1", "size\": \"1\"")}) {
    error_of([&] { parse(resealed(text, piece, by)); }, ErrorKind::kDamaged);
  }
  // Of before ranks were written.
  std::string old = resealed(text, "  \"world_size\": 1,\n  \"shards\": [],\n", "");
  old = resealed(old, "\"rank\": 0, ", "");
  EXPECT_EQ(old.find("rank"), std::string::npos);
  EXPECT_EQ(parse_manifest(old, "m").files.at(0).bytes, 9u);
}

// ---- crashes ----

// Kills `body` at its 1st, 2nd, ... fail point; `check` runs after each death. Returns how many
// there were.
int kill_everywhere(const std::function<void()>& prepare, const std::function<void()>& body,
                    const std::function<void(int)>& check) {
  for (int point = 1;; ++point) {
    prepare();
    const int status = in_child([&] {
      setenv("DROPLESS_FAIL_AT", std::to_string(point).c_str(), 1);
      body();
    });
    SCOPED_TRACE("fail point " + std::to_string(point));
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      check(0);
      return point - 1;
    }
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
    check(point);
  }
}

TEST_F(Checkpoint, KilledAnywhereWhileSavingANewStep) {
  bool saw_old = false, saw_new = false;
  const int points = kill_everywhere(
      [&] {
        remove_all(run_);
        save(run_, 10, 1);
      },
      [&] { save(run_, 20, 2); },
      [&](int) {
        EXPECT_NO_THROW(content(resolve_checkpoint(run_))) << "usable before any clean-up";
        sweep_stale(run_);
        const NewestGood newest = find_newest_good(run_);
        ASSERT_TRUE(newest.folder);
        EXPECT_THAT(newest.rejected, IsEmpty());
        const bool fresh = base_name(*newest.folder) == "step-20";
        EXPECT_EQ(content(*newest.folder), fresh ? 2 : 1);
        (fresh ? saw_new : saw_old) = true;
        for (const std::string& name : list_folder(run_))
          EXPECT_FALSE(name.ends_with(".tmp")) << name;
        save(run_, 30, 3);  // the run goes on
        EXPECT_EQ(content(resolve_checkpoint(run_)), 3);
      });
  EXPECT_TRUE(saw_old && saw_new);
  EXPECT_GE(points, 20);  // creates, writes and fsyncs of four files, folders, renames, link
}

TEST_F(Checkpoint, KilledAnywhereWhileReplacingAStep) {
  bool saw_old = false, saw_new = false;
  kill_everywhere(
      [&] {
        remove_all(run_);
        save(run_, 20, 1);
      },
      [&] { save(run_, 20, 2); },
      [&](int) {
        sweep_stale(run_);
        const NewestGood newest = find_newest_good(run_);
        ASSERT_EQ(newest.folder, run_ + "/step-20");
        (content(*newest.folder) == 2 ? saw_new : saw_old) = true;
        EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-20"));
      });
  EXPECT_TRUE(saw_old && saw_new);
}

TEST_F(Checkpoint, KilledWhereTheFileSystemCannotExchange) {
  // The states that the three renames of the other way pass through, made by hand.
  const std::string folder = save(run_, 20, 1);
  rename_path(folder, folder + ".old");
  make_folders(folder + ".tmp");
  EXPECT_THAT(sweep_stale(run_), SizeIs(2));
  EXPECT_EQ(content(folder), 1);
  std::filesystem::copy(folder, folder + ".old");
  EXPECT_THAT(sweep_stale(run_), ElementsAre(HasSubstr("removed " + folder + ".old")));
  EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-20"));
}

// Between the folder's rename and the link's: what a resume does first.
TEST_F(Checkpoint, PointsLatestAtWhatItGoesOnFrom) {
  const std::string first = save(run_, 10, 1), second = save(run_, 20, 2);
  EXPECT_FALSE(point_latest(run_, second));
  std::filesystem::remove(run_ + "/latest");
  std::filesystem::create_symlink("step-10", run_ + "/latest");
  EXPECT_EQ(newest_complete(run_), second);
  EXPECT_TRUE(point_latest(run_, second));
  EXPECT_EQ(resolve_checkpoint(run_), second);
  std::filesystem::remove(run_ + "/latest");
  EXPECT_TRUE(point_latest(run_, first));
  EXPECT_EQ(resolve_checkpoint(run_), first);
  // A link of the same name into another folder is another checkpoint.
  std::filesystem::remove(run_ + "/latest");
  std::filesystem::create_symlink("/nowhere/step-20", run_ + "/latest");
  EXPECT_TRUE(point_latest(run_, second));
  EXPECT_EQ(newest_complete(run_ + "/nowhere"), std::nullopt);
}

TEST_F(Checkpoint, KilledAnywhereWhilePruning) {
  kill_everywhere(
      [&] {
        remove_all(run_);
        for (int step = 1; step <= 4; ++step) save(run_, step, static_cast<float>(step));
      },
      [&] { prune_checkpoints(run_, 2); },
      [&](int) {
        sweep_stale(run_);
        const NewestGood newest = find_newest_good(run_);
        EXPECT_EQ(newest.folder, run_ + "/step-4");
        EXPECT_THAT(newest.rejected, IsEmpty());
        for (const std::int64_t step : list_steps(run_)) {
          EXPECT_NO_THROW(verify_checkpoint(run_ + "/" + step_folder_name(step)));
        }
      });
}

TEST_F(Checkpoint, KilledAnywhereInTheFirstSave) {
  kill_everywhere([&] { remove_all(run_); }, [&] { save(run_, 1, 1); },
                  [&](int point) {
                    sweep_stale(run_);
                    const NewestGood newest = find_newest_good(run_);
                    EXPECT_THAT(newest.rejected, IsEmpty());
                    if (point == 0) {
                      EXPECT_TRUE(newest.folder);
                    }
                    if (newest.folder) {
                      EXPECT_EQ(content(*newest.folder), 1);
                    }
                  });
}

// ---- full disk ----

TEST_F(Checkpoint, DiskFullAtAnyPointKeepsTheOldOne) {
  int failures = 0;
  for (int point = 1; point < 1000; ++point) {
    remove_all(run_);
    save(run_, 10, 1);
    const int status = in_child([&] {
      setenv("DROPLESS_FAIL_AT", (std::to_string(point) + ":ENOSPC").c_str(), 1);
      try {
        save(run_, 20, 2);
      } catch (const Error& error) {
        const std::string what = error.what();
        const bool told = what.find("No space left on device") != std::string::npos &&
                          what.find("; needed ") != std::string::npos &&
                          what.find("bytes free") != std::string::npos;
        _exit(error.kind() == ErrorKind::kResource && told ? 7 : 8);
      }
    });
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 0) break;
    EXPECT_EQ(WEXITSTATUS(status), 7) << point;
    ++failures;
    const NewestGood newest = find_newest_good(run_);
    ASSERT_TRUE(newest.folder);
    EXPECT_EQ(content(*newest.folder), base_name(*newest.folder) == "step-20" ? 2 : 1);
    EXPECT_FALSE(path_exists(run_ + "/step-20.tmp")) << "point " << point;
  }
  EXPECT_GE(failures, 20);
}

TEST_F(Checkpoint, RealWriteLimit) {
  save(run_, 10, 1);
  const int status = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{300, 300};  // inside the first tensor file
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      save(run_, 20, 2);
    } catch (const Error& error) {
      _exit(error.kind() == ErrorKind::kResource ? 7 : 8);
    }
  });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_THAT(list_folder(run_), ElementsAre("latest", "step-10"));
}

TEST_F(Checkpoint, PreflightSpaceCheck) {
  EXPECT_THAT(error_of([&] { CheckpointWriter(run_, 3, UINT64_MAX / 2); }, ErrorKind::kResource),
              HasSubstr("no room for checkpoint step-3"));
  EXPECT_FALSE(path_exists(run_ + "/step-3.tmp"));
}

}  // namespace
}  // namespace dropless::train
