#include "apps/bench_rival_program.h"

#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>

#include "dropless/error.h"
#include "train/base/signals.h"

extern char** environ;

namespace dropless::apps {
namespace {

constexpr std::size_t kLongestAnswer = 1 << 20;
constexpr int kPatienceMs = 60'000;  // then we say for what we wait
constexpr int kSliceMs = 100;  // between looks for a signal, which another thread may have got

// What a program says of itself goes to a terminal.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

bool is_name(const std::string& name) {
  return !name.empty() && name.size() <= 40 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || std::strchr("_.+-", c) != nullptr;
         });
}

}  // namespace

RivalProgram::RivalProgram(std::string command) : command_(std::move(command)) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    fail(std::strerror(errno));
  }
  socket_ = ends[0];
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  // A process group of its own, so that what the shell starts ends with us.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::string shell = "sh", option = "-c";
  std::array<char*, 4> arguments = {shell.data(), option.data(), command_.data(), nullptr};
  const int error =
      ::posix_spawn(&child_, "/bin/sh", &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (error != 0) {
    ::close(socket_);
    fail(std::strerror(error));
  }
  train::end_group_with_us(child_);
}

RivalProgram::~RivalProgram() {
  ::close(socket_);  // ends its loop over questions
  end_within(5000);
  // What it has not waited for itself. Its number is ours until the last line.
  ::kill(-child_, SIGKILL);
  train::end_group_with_us(0);
  while (::waitpid(child_, nullptr, 0) == -1 && errno == EINTR) {
  }
}

void RivalProgram::fail(const std::string& what) const {
  throw Error(
      ErrorKind::kResource, fmt::format("--rivals \"{}\": {}", command_, what),
      "what it wrote to standard error stands above; benchmarks/moe_rivals.py says what it has "
      "to answer");
}

// The end or stop (wait's WEXITED, WSTOPPED) that it has come to, if it has.
std::optional<siginfo_t> RivalProgram::state(int options) const {
  siginfo_t info{};
  const int failed = ::waitid(P_PID, static_cast<id_t>(child_), &info, options | WNOHANG | WNOWAIT);
  return failed == 0 && info.si_pid == child_ ? std::optional(info) : std::nullopt;
}

std::optional<siginfo_t> RivalProgram::end_within(int milliseconds) const {
  constexpr int kPause = 50;
  for (int waited = 0; waited < milliseconds && !state(WEXITED); waited += kPause) {
    std::this_thread::sleep_for(std::chrono::milliseconds(kPause));
  }
  return state(WEXITED);
}

// How it ended, once it closed its end; "" where that is not known in time.
std::string RivalProgram::ending() const {
  const std::optional<siginfo_t> end = end_within(1000);
  if (!end) return "";
  return fmt::format(" ({} {})", end->si_code == CLD_EXITED ? "exit code" : "signal",
                     end->si_status);
}

void RivalProgram::wait_for_answer(const nlohmann::json& question) const {
  pollfd readable{.fd = socket_, .events = POLLIN, .revents = 0};
  for (int waited = 0;;) {
    train::check_interrupted();
    const int ready = ::poll(&readable, 1, kSliceMs);
    if (ready > 0 || (ready == -1 && errno != EINTR)) return;  // read() says what it is
    if (ready == 0) waited += kSliceMs;
    if (ready != 0 || waited % kPatienceMs != 0) continue;
    if (state(WEXITED)) fail("ended, and what it started does not answer");
    if (state(WSTOPPED)) fail("was stopped; a program that reads the terminal cannot be a rival");
    std::cerr << fmt::format("--rivals: no answer for {} s to {}\n", waited / 1000,
                             question.dump().substr(0, 200));
  }
}

nlohmann::json RivalProgram::ask(const nlohmann::json& question) {
  const std::string line = question.dump() + "\n";
  for (std::string_view left = line; !left.empty();) {
    // Not write(): a program that has ended is an error here, not a SIGPIPE.
    const ssize_t sent = ::send(socket_, left.data(), left.size(), MSG_NOSIGNAL);
    if (sent == -1 && errno == EINTR) continue;
    if (sent == -1) fail("ended before it was asked" + ending());
    left.remove_prefix(static_cast<std::size_t>(sent));
  }
  for (;;) {
    if (const std::size_t end = unread_.find('\n'); end != std::string::npos) {
      const std::string answer = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      nlohmann::json parsed = nlohmann::json::parse(answer, nullptr, /*allow_exceptions=*/false);
      if (!parsed.is_object()) fail("answered " + printable(answer.substr(0, 200)));
      return parsed;
    }
    if (unread_.size() > kLongestAnswer) fail("answered more than 1 MB without a line's end");
    wait_for_answer(question);
    std::array<char, 4096> buffer{};
    const ssize_t got = ::read(socket_, buffer.data(), buffer.size());
    if (got == -1 && errno == EINTR) continue;
    if (got <= 0) fail("ended without an answer to " + question.dump() + ending());
    unread_.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

RivalProgram::Prepared RivalProgram::prepare(const LayerShape& s, const std::string& dtype,
                                             const RoutingChoice& routing,
                                             const at::Device& device) {
  std::ostringstream device_name;
  device_name << device;
  const nlohmann::json answer = ask({{"prepare",
                                      {{"T", s.T},
                                       {"d", s.d},
                                       {"f", s.f},
                                       {"E", s.E},
                                       {"k", s.k},
                                       {"dtype", dtype},
                                       {"routing", routing.name},
                                       {"loads", routing.loads},
                                       {"device", device_name.str()}}}});
  Prepared prepared;
  try {
    prepared = {answer.at("rivals").get<std::map<std::string, std::string>>(),
                answer.at("absent").get<std::map<std::string, std::string>>()};
  } catch (const nlohmann::json::exception&) {
    fail("answered " + answer.dump());
  }
  if (prepared.rivals.empty() && prepared.absent.empty()) {
    fail("has no rival and does not say why");
  }
  for (auto* texts : {&prepared.rivals, &prepared.absent}) {
    for (auto& [name, text] : *texts) {
      if (!is_name(name)) fail("names a rival " + nlohmann::json(name).dump());
      text = printable(text);
    }
  }
  return prepared;
}

std::optional<double> RivalProgram::time_ms(const std::string& name, bool backward, int calls) {
  const nlohmann::json answer = ask({{"time", name}, {"backward", backward}, {"calls", calls}});
  const auto ms = answer.find("ms");
  const bool absent = ms != answer.end() && ms->is_null();
  if (!absent && (ms == answer.end() || !ms->is_number() || !(ms->get<double>() > 0))) {
    fail("answered " + answer.dump());
  }
  return absent ? std::nullopt : std::optional(ms->get<double>());
}

}  // namespace dropless::apps
