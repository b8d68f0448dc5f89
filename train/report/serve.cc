#include "train/report/serve.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/report/history.h"
#include "train/report/report.h"

namespace dropless::train {
namespace {

constexpr const char* kLoopback = "127.0.0.1";
// What is sent every few seconds needs less than the page that is kept: about 600 kB.
constexpr std::size_t kMostPoints = 20'000;
constexpr auto kBetweenReads = std::chrono::seconds(1);
constexpr int kSecondsIdle = 10;
constexpr ev_ssize_t kMostRequestBytes = 16 << 10;

using Base = std::unique_ptr<event_base, decltype(&event_base_free)>;
using Http = std::unique_ptr<evhttp, decltype(&evhttp_free)>;
using Event = std::unique_ptr<event, decltype(&event_free)>;

// "localhost:8080", and no name that a stranger has pointed at 127.0.0.1.
bool names_loopback(std::string_view host) {
  const std::string_view name = host.substr(0, host.rfind(':'));
  return name == kLoopback || name == "localhost";
}

const char* header_of(evhttp_request* request, const char* name) {
  const char* value = evhttp_find_header(evhttp_request_get_input_headers(request), name);
  return value == nullptr ? "" : value;
}

void send(evhttp_request* request, int code, const char* type, const std::string& body) {
  evkeyvalq* headers = evhttp_request_get_output_headers(request);
  evhttp_add_header(headers, "Content-Type", type);
  evhttp_add_header(headers, "Cache-Control", "no-store");
  evhttp_add_header(headers, "X-Content-Type-Options", "nosniff");
  evhttp_add_header(headers, "Cross-Origin-Resource-Policy", "same-origin");
  evbuffer_add(evhttp_request_get_output_buffer(request), body.data(), body.size());
  evhttp_send_reply(request, code, nullptr, nullptr);
}

// A thread without signals, which are the training loop's, and of the lowest priority.
template <class Work>
std::thread background_thread(Work work) {
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  std::thread thread([work = std::move(work)] {
    ::setpriority(PRIO_PROCESS, 0, 19);  // on Linux the calling thread's alone
    work();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace

// Everything but the ends of its life runs in `thread`.
struct ReportServer::State {
  State(const std::string& folder, std::string yaml)
      : name(base_name(folder)), config_yaml(std::move(yaml)), history(folder) {}
  ~State() {
    if (stop_fd >= 0) ::close(stop_fd);
  }

  // Reads on and makes the data anew, where the run has gone on.
  void refresh() {
    const auto now = std::chrono::steady_clock::now();
    if (!data.empty() && now - read_at < kBetweenReads) return;
    history.read();
    read_at = now;
    std::string newest = fmt::format("\"{}\"", history.version());
    if (!data.empty() && newest == tag) return;
    data = report_data({history.json(name, config_yaml, kMostPoints)}, /*live=*/true);
    tag = std::move(newest);
  }

  void answer(evhttp_request* request, bool page) {
    if (!names_loopback(header_of(request, "Host"))) {
      return send(request, 403, "text/plain", fmt::format("ask for {} or localhost\n", kLoopback));
    }
    refresh();
    if (page) {
      return send(request, HTTP_OK, "text/html; charset=utf-8", report_page(data, /*live=*/true));
    }
    evhttp_add_header(evhttp_request_get_output_headers(request), "ETag", tag.c_str());
    const bool known = header_of(request, "If-None-Match") == tag;
    send(request, known ? HTTP_NOTMODIFIED : HTTP_OK, "application/json", known ? "" : data);
  }

  template <bool kPage>
  static void on_request(evhttp_request* request, void* state) {
    try {
      static_cast<State*>(state)->answer(request, kPage);
    } catch (const std::exception& error) {  // libevent is C
      send(request, HTTP_INTERNAL, "text/plain", std::string(error.what()) + "\n");
    }
  }

  std::string name, config_yaml;
  RunHistory history;
  std::string data, tag;
  std::chrono::steady_clock::time_point read_at;

  Base base{nullptr, event_base_free};
  Http http{nullptr, evhttp_free};
  Event stop{nullptr, event_free};
  int stop_fd = -1;
  int port = 0;
  std::thread thread;
};

ReportServer::ReportServer(const std::string& run_folder, const std::string& config_yaml, int port)
    : state_(std::make_unique<State>(run_folder, config_yaml)) {
  State& state = *state_;
  event_set_log_callback([](int, const char*) {});  // what it has to say is said below
  state.base.reset(event_base_new());
  state.http.reset(state.base ? evhttp_new(state.base.get()) : nullptr);
  state.stop_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (!state.http || state.stop_fd < 0) throw_errno("serve", run_folder, errno);

  errno = 0;
  evhttp_bound_socket* socket =
      evhttp_bind_socket_with_handle(state.http.get(), kLoopback, static_cast<std::uint16_t>(port));
  if (socket == nullptr) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot serve the report on port {} of {}: {}", port, kLoopback,
                            std::strerror(errno)),
                "name another port, or 0 for any that is free");
  }
  sockaddr_in address = {};
  socklen_t size = sizeof address;
  ::getsockname(evhttp_bound_socket_get_fd(socket), reinterpret_cast<sockaddr*>(&address), &size);
  state.port = ntohs(address.sin_port);

  evhttp_set_allowed_methods(state.http.get(), EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
  evhttp_set_max_headers_size(state.http.get(), kMostRequestBytes);
  evhttp_set_max_body_size(state.http.get(), kMostRequestBytes);
  evhttp_set_timeout(state.http.get(), kSecondsIdle);
  evhttp_set_cb(state.http.get(), "/", State::on_request<true>, &state);
  evhttp_set_cb(state.http.get(), "/data.json", State::on_request<false>, &state);
  state.stop.reset(event_new(
      state.base.get(), state.stop_fd, EV_READ,
      [](int, short, void* base) { event_base_loopbreak(static_cast<event_base*>(base)); },
      state.base.get()));
  event_add(state.stop.get(), nullptr);
  state.thread = background_thread([&state] { event_base_dispatch(state.base.get()); });
}

ReportServer::~ReportServer() {
  // An eventfd of 0 always takes this.
  ::eventfd_write(state_->stop_fd, 1);
  state_->thread.join();
}

int ReportServer::port() const { return state_->port; }

}  // namespace dropless::train
