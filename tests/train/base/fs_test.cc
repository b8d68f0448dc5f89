// Durable files, errors of the operating system, signals, the progress line.
#include "train/base/fs.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <optional>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/progress.h"
#include "train/base/signals.h"

namespace dropless::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Log, TerminalsAndReadersAreSafe) {
  ::testing::internal::CaptureStderr();
  log_line("error: ", "a\x1b[31m \xc3\xa9 \xff\xfe|\xc3");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "error: a\\x1b[31m \xc3\xa9 \\xff\\xfe|\\xc3\n");
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "dropless_fs_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string path(const std::string& name) const { return join_path(root_, name); }
  std::string root_;
};
using Fs = Folder;
using Signals = Folder;
using Progress = Folder;

// Runs `body` in a child of its own; the wait status.
int in_child(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

ErrorKind kind_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (message) *message = error.what();
    return error.kind();
  }
  ADD_FAILURE() << "no error";
  return ErrorKind::kInternal;
}

TEST_F(Fs, Paths) {
  EXPECT_EQ(parent_folder("a/b"), "a");
  EXPECT_EQ(parent_folder("a/b/"), "a");
  EXPECT_EQ(parent_folder("a"), ".");
  EXPECT_EQ(parent_folder("/a"), "/");
  EXPECT_EQ(parent_folder("/"), "/");
  EXPECT_EQ(parent_folder("a//b"), "a");
  EXPECT_EQ(base_name("a/b/"), "b");
  EXPECT_EQ(base_name("a"), "a");
  EXPECT_EQ(base_name("/"), "/");
  EXPECT_EQ(join_path("a/", "b"), "a/b");
}

TEST_F(Fs, TakenIsAllButAnEmptyFolder) {
  EXPECT_FALSE(is_taken(path("nothing")));
  make_folders(path("folder"));
  EXPECT_FALSE(is_taken(path("folder")));
  write_file_durable(path("folder/f"), "");
  EXPECT_TRUE(is_taken(path("folder")));
  EXPECT_TRUE(is_taken(path("folder/f")));
}

TEST_F(Fs, WriteReadReplace) {
  make_folders(path("x/y/z"));
  make_folders(path("x/y/z"));
  write_file_durable(path("x/y/z/f"), "one");
  write_file_durable(path("x/y/z/f"), "two");
  EXPECT_EQ(read_file(path("x/y/z/f")), "two");
  EXPECT_THAT(list_folder(path("x/y/z")), ElementsAre("f"));
  EXPECT_EQ(file_bytes(path("x/y/z/f")), 3u);
  replace_symlink(path("link"), "x");
  replace_symlink(path("link"), "x/y");
  EXPECT_THAT(list_folder(path("link")), ElementsAre("z"));
  write_file_durable(path("a"), "A");
  write_file_durable(path("b"), "B");
  if (exchange_paths(path("a"), path("b"))) {
    EXPECT_EQ(read_file(path("a")), "B");
    EXPECT_EQ(read_file(path("b")), "A");
  }
  remove_all(path("link"));
  EXPECT_TRUE(path_exists(path("x/y/z/f"))) << "removing a symlink must not follow it";
  remove_all(path("x"));
  remove_all(path("x"));
  EXPECT_FALSE(path_exists(path("x")));
}

TEST_F(Fs, StampTellsAChangedFile) {
  const std::string file = path("a");
  EXPECT_EQ(file_stamp(file), file) << "absent";
  EXPECT_EQ(file_stamp(root_), root_) << "a folder";
  write_new_file(file, "one");
  const std::string before = file_stamp(file);
  EXPECT_THAT(before, HasSubstr(file + " 3 "));
  EXPECT_EQ(file_stamp(file), before);
  // The same size, and a time that differs by a nanosecond.
  struct stat info;
  ASSERT_EQ(stat(file.c_str(), &info), 0);
  timespec times[2] = {info.st_atim, info.st_mtim};
  times[1].tv_nsec = times[1].tv_nsec == 0 ? 1 : times[1].tv_nsec - 1;
  ASSERT_EQ(utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  EXPECT_NE(file_stamp(file), before);
  // The size and the time put back.
  write_new_file(file, "two");
  times[1] = info.st_mtim;
  ASSERT_EQ(utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  EXPECT_NE(file_stamp(file), before);
}

TEST_F(Fs, ErrorsNameThePathAndTheReason) {
  std::string message;
  EXPECT_EQ(kind_of([&] { read_file(path("none")); }, &message), ErrorKind::kInvalidArgument);
  EXPECT_THAT(message, HasSubstr(path("none") + ": No such file or directory"));
  EXPECT_EQ(kind_of([&] { read_file(root_); }, &message), ErrorKind::kInvalidArgument);
  EXPECT_THAT(message, HasSubstr("it is a folder"));
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(kind_of([&] { read_file(path("pipe")); }), ErrorKind::kInvalidArgument);
  write_file_durable(path("f"), "12345");
  EXPECT_EQ(kind_of([&] { read_file(path("f"), 4); }), ErrorKind::kInvalidArgument);
  EXPECT_EQ(kind_of([&] { make_folders(path("f/sub")); }, &message), ErrorKind::kResource);
  EXPECT_THAT(message, HasSubstr("Not a directory"));
  EXPECT_EQ(kind_of([&] { write_file_durable(path("no/f"), "x"); }), ErrorKind::kResource);

  const FileReader reader(path("f"));
  ASSERT_EQ(truncate(path("f").c_str(), 2), 0);
  char bytes[5];
  EXPECT_EQ(kind_of([&] { reader.read(0, bytes, 5); }, &message), ErrorKind::kDamaged);
  EXPECT_THAT(message, HasSubstr("ends at byte 2, 3 bytes early"));
}

TEST_F(Fs, MappedFilesOutliveTheirReaders) {
  write_file_durable(path("f"), "hello");
  write_file_durable(path("empty"), "");
  std::shared_ptr<std::byte> bytes;
  {
    const FileReader reader(path("f"));
    bytes = reader.map();
  }
  remove_all(path("f"));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.get()), 5), "hello");
  bytes.get()[0] = std::byte{'j'};  // a private copy
  EXPECT_EQ(FileReader(path("empty")).map(), nullptr);
}

TEST_F(Fs, FullDisk) {
  std::string message;
  EXPECT_EQ(kind_of([&] { require_free(root_, UINT64_MAX / 2, "checkpoint step-4"); }, &message),
            ErrorKind::kResource);
  EXPECT_THAT(message, HasSubstr("no room for checkpoint step-4 in " + root_ + ": needed"));
  EXPECT_THAT(message, HasSubstr("bytes free"));
  EXPECT_NO_THROW(require_free(root_, 1, "little"));
  if (path_exists("/dev/full")) {
    EXPECT_EQ(kind_of([&] { FileWriter("/dev/full").write("x", 1); }, &message),
              ErrorKind::kResource);
    EXPECT_THAT(message,
                HasSubstr("cannot write /dev/full: No space left on device; needed 1 bytes,"));
  }
  // A file-size limit stops a write in the middle: the old file stays, nothing is left behind.
  write_file_durable(path("f"), "old");
  const int status = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_file_durable(path("f"), std::string(5000, 'x'));
    } catch (const Error& error) {
      _exit(error.kind() == ErrorKind::kResource ? 7 : 8);
    }
  });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(read_file(path("f")), "old");
  EXPECT_THAT(list_folder(root_), ElementsAre("f"));
}

TEST_F(Fs, KilledAnywhereLeavesOldOrNew) {
  int points = 0;
  for (int point = 1;; ++point) {
    write_file_durable(path("f"), "old");
    const int status = in_child([&] {
      setenv("DROPLESS_FAIL_AT", std::to_string(point).c_str(), 1);
      write_file_durable(path("f"), "new!");
    });
    const std::string now = read_file(path("f"));
    if (WIFEXITED(status)) {
      EXPECT_EQ(now, "new!");
      break;
    }
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
    EXPECT_TRUE(now == "old" || now == "new!") << now;
    ++points;
  }
  EXPECT_GE(points, 5);  // create, write, fsync, rename, fsync of the folder
}

// ---- signals ----

TEST_F(Signals, FinishStep) {
  const int status = in_child([] {
    install_signal_handlers(SignalMode::kFinishStep);
    if (stop_signal() != 0 || take_save_request()) _exit(2);
    raise(SIGUSR1);
    if (stop_signal() != 0 || !take_save_request() || take_save_request()) _exit(3);
    raise(SIGTERM);
    raise(SIGTERM);  // a launcher repeats itself: still saving
    if (stop_signal() != SIGTERM) _exit(4);
    check_interrupted();  // nothing in this mode
    reset_signals();
    raise(SIGINT);
    if (stop_signal() != SIGINT) _exit(5);
    raise(SIGINT);
    _exit(6);
  });
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST_F(Signals, Throwing) {
  const int status = in_child([] {
    install_signal_handlers(SignalMode::kThrow);
    check_interrupted();
    raise(SIGTERM);
    try {
      check_interrupted();
      _exit(2);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInterrupted) _exit(3);
    }
    raise(SIGTERM);
    _exit(4);
  });
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

// ---- progress ----

TEST_F(Progress, PlainLinesWhenPiped) {
  FILE* file = fopen(path("out").c_str(), "w+");
  ASSERT_NE(file, nullptr);
  {
    ProgressLine::Options options;
    options.label = "train";
    options.total = 100;
    options.plain_seconds = 1000;
    options.fd = fileno(file);
    ProgressLine line(options);
    for (std::uint64_t step = 1; step <= 100; ++step) line.update(step, {"loss 3.2", "lr 1"});
    line.finish();
    line.update(100, {"late"});
  }
  fclose(file);
  EXPECT_THAT(read_file(path("out")),
              ::testing::MatchesRegex("train    1/100    1%  ETA .*  loss 3.2  lr 1\n"
                                      "train  100/100  100%  ETA 0s  loss 3.2  lr 1\n"));
}

TEST_F(Progress, Disabled) {
  ProgressLine::Options options;
  options.enabled = false;
  ProgressLine line(options);
  EXPECT_FALSE(line.due(5));
  line.update(5, {"x"});
}

// What a child process writes to a terminal of `columns` columns; nullopt where there are none.
std::optional<std::string> on_terminal(int columns, const std::function<void()>& draw) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master == -1 || grantpt(master) != 0 || unlockpt(master) != 0) return std::nullopt;
  const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  winsize size = {};
  size.ws_col = static_cast<unsigned short>(columns);
  size.ws_row = 10;
  EXPECT_EQ(ioctl(slave, TIOCSWINSZ, &size), 0);
  EXPECT_EQ(in_child([&] {
              dup2(slave, 2);
              draw();
            }),
            0);
  char buffer[4096];
  const ssize_t got = read(master, buffer, sizeof buffer);
  close(slave);
  close(master);
  return std::string(buffer, static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
}

ProgressLine::Options train_options(std::uint64_t total) {
  ProgressLine::Options options;
  options.label = "train";
  options.total = total;
  return options;
}

TEST_F(Progress, TerminalLineIsCutAndClearedForMessages) {
  const auto out = on_terminal(40, [] {
    ProgressLine line(train_options(10));
    line.update(1, {std::string(200, 'x')});
    log_info("hello");
    line.update(10, {"done"});
    line.finish();
  });
  if (!out) GTEST_SKIP() << "no terminals";
  EXPECT_LE(out->find("\x1b[K"), 40u);  // \r and 39 columns
  EXPECT_THAT(*out, HasSubstr("\x1b[K\r\x1b[Khello\r\n"));
  EXPECT_TRUE(out->ends_with("done\x1b[K\r\n")) << *out;
}

TEST_F(Progress, NarrowTerminalsLoseTheLeastNeededFirst) {
  const std::vector<std::string> figures{"loss 3.2145", "123.4 k tok/s", "load 1.52x",
                                         "lr 3.0e-03"};
  const auto line_at = [&](int columns) {
    const auto out = on_terminal(columns, [&] {
      ProgressLine line(train_options(4800));
      line.update(1200, figures);
      _exit(0);
    });
    return out ? out->substr(1, out->find("\x1b[K") - 1) : "";  // after \r
  };
  if (line_at(80).empty()) GTEST_SKIP() << "no terminals";
  const std::string rest = " 1200/4800 ETA 0s loss 3.2145 123.4 k tok/s load 1.52x lr 3.0e-03";
  EXPECT_EQ(line_at(120),
            "train [=======" + std::string(6, ' ') + "25%" + std::string(14, ' ') + "]" + rest);
  EXPECT_THAT(line_at(80), ::testing::MatchesRegex("\\[=+ 25% +\\]" + rest));
  EXPECT_EQ(line_at(80).size(), 79u) << "the bar takes what is left";
  EXPECT_EQ(line_at(74), "[ 25%  ]" + rest);
  EXPECT_THAT(line_at(70), ::testing::EndsWith("tok/s load 1.52x"));
  EXPECT_THAT(line_at(50), ::testing::MatchesRegex("\\[.* 25% .*\\] 1200/4800 ETA 0s loss 3.2145"));
  EXPECT_EQ(line_at(20), "1200/4800 ETA 0s");
  EXPECT_EQ(line_at(10), "1200/4800");
}

TEST_F(Progress, PlainLinesOnATerminalWhenAsked) {
  const auto out = on_terminal(80, [] {
    ProgressLine::Options options = train_options(10);
    options.redraw = false;
    ProgressLine line(options);
    for (std::uint64_t step = 1; step <= 10; ++step) line.update(step, {"loss 1"});
  });
  if (!out) GTEST_SKIP() << "no terminals";
  EXPECT_THAT(*out, ::testing::MatchesRegex("train   1/10   10%  ETA .*  loss 1\r\n"
                                            "train  10/10  100%  ETA 0s  loss 1\r\n"));
}

TEST(FormatSeconds, Units) {
  EXPECT_EQ(format_seconds(45.2), "45s");
  EXPECT_EQ(format_seconds(725), "12m05s");
  EXPECT_EQ(format_seconds(3725), "1h02m");
  EXPECT_EQ(format_seconds(3 * 86400 + 4 * 3600), "3d04h");
  EXPECT_EQ(format_seconds(-1), "?");
  EXPECT_EQ(format_seconds(1e30), "?");
}

}  // namespace
}  // namespace dropless::train
