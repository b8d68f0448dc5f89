#include "train/data/remote.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <random>
#include <thread>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/signals.h"

namespace dropless::train {
namespace {

// ---- libcurl ----

struct Curl {
  decltype(&::curl_easy_init) init;
  decltype(&::curl_easy_setopt) setopt;
  decltype(&::curl_easy_perform) perform;
  decltype(&::curl_easy_getinfo) getinfo;
  decltype(&::curl_easy_cleanup) cleanup;
  decltype(&::curl_easy_strerror) strerror;
  decltype(&::curl_slist_append) append;
  decltype(&::curl_slist_free_all) free_all;
};

template <class Function>
void load_symbol(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) {
    throw Error(ErrorKind::kUnsupported, fmt::format("libcurl.so.4 has no {}", name));
  }
}

const Curl& curl() {
  static const Curl loaded = [] {
    void* library = ::dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("data sets cannot be downloaded: {}", ::dlerror()),
                  "install libcurl 7.64 or newer (Debian: libcurl4)");
    }
    Curl out;
    decltype(&::curl_global_init) global_init;
    load_symbol(library, "curl_global_init", global_init);
    load_symbol(library, "curl_easy_init", out.init);
    load_symbol(library, "curl_easy_setopt", out.setopt);
    load_symbol(library, "curl_easy_perform", out.perform);
    load_symbol(library, "curl_easy_getinfo", out.getinfo);
    load_symbol(library, "curl_easy_cleanup", out.cleanup);
    load_symbol(library, "curl_easy_strerror", out.strerror);
    load_symbol(library, "curl_slist_append", out.append);
    load_symbol(library, "curl_slist_free_all", out.free_all);
    if (global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
      throw Error(ErrorKind::kUnsupported, "libcurl cannot start");
    }
    return out;
  }();
  return loaded;
}

// Where a body goes, and what may end it early.
struct Transfer {
  FileWriter* file = nullptr;
  std::uint64_t limit = 0;
  const std::atomic<bool>* cancelled = nullptr;
  CURL* handle = nullptr;
  std::uint64_t written = 0, skipped = 0;
  std::string page;  // the beginning of what comes with an error
  bool too_long = false;
  std::exception_ptr error;  // exceptions must not pass through libcurl
};

std::size_t on_body(char* data, std::size_t, std::size_t bytes, void* user) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  long status = 0;
  curl().getinfo(transfer.handle, CURLINFO_RESPONSE_CODE, &status);
  if (status != 200) {  // the page that comes with an error is not the file
    constexpr std::uint64_t kLongestPage = 1 << 20;
    constexpr std::size_t kTellingBytes = 4096;
    transfer.page.append(data, std::min(bytes, kTellingBytes - transfer.page.size()));
    transfer.skipped += bytes;
    return transfer.skipped > kLongestPage ? 0 : bytes;
  }
  if (bytes > transfer.limit - transfer.written) {
    transfer.too_long = true;
    return 0;
  }
  try {
    transfer.file->write(data, bytes);
  } catch (...) {
    transfer.error = std::current_exception();
    return 0;
  }
  transfer.written += bytes;
  return bytes;
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  if (*transfer.cancelled) return 1;
  try {
    check_interrupted();
  } catch (...) {
    transfer.error = std::current_exception();
    return 1;
  }
  return 0;
}

// ---- places ----

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string first_set(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (std::string value = environment(name); !value.empty()) return value;
  }
  return {};
}

std::string trim(std::string text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

std::string aws_file(const char* variable, const char* name) {
  const std::string given = environment(variable);
  return given.empty() ? environment("HOME") + "/.aws/" + name : given;
}

std::string aws_profile() {
  const std::string name = environment("AWS_PROFILE");
  return name.empty() ? "default" : name;
}

S3Credentials find_credentials() {
  S3Credentials out{environment("AWS_ACCESS_KEY_ID"), environment("AWS_SECRET_ACCESS_KEY"),
                    environment("AWS_SESSION_TOKEN")};
  if (!out.access_key.empty()) return out;
  const std::string path = aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
  const std::string profile = aws_profile();
  return {ini_value(path, profile, "aws_access_key_id"),
          ini_value(path, profile, "aws_secret_access_key"),
          ini_value(path, profile, "aws_session_token")};
}

// Of the profile in ~/.aws/config.
std::string config_value(const std::string& key) {
  const std::string profile = aws_profile();
  return ini_value(aws_file("AWS_CONFIG_FILE", "config"),
                   profile == "default" ? profile : "profile " + profile, key);
}

std::string find_region() {
  std::string region = first_set({"AWS_REGION", "AWS_DEFAULT_REGION"});
  if (region.empty()) region = config_value("region");
  return region.empty() ? "us-east-1" : region;
}

// Empty: Amazon's own.
std::string find_endpoint() {
  const std::string set = first_set({"S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"});
  return set.empty() ? config_value("endpoint_url") : set;
}

std::string strip_slashes(std::string text) {
  while (!text.empty() && text.back() == '/') text.pop_back();
  return text;
}

class HttpRemote : public Remote {
 public:
  HttpRemote(const std::string& url, RemoteOptions options) : Remote(url, std::move(options)) {
    if (url.find_first_of("?#") == std::string::npos) return;
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{}: files of the set have addresses of their own, to which what follows "
                    "the {} does not apply",
                    url, url[url.find_first_of("?#")]),
        "name the set's folder alone; a signed address opens one file");
  }

 protected:
  Request request(const std::string& name) const override {
    return {strip_slashes(url()) + "/" + percent_encode(name), "", true};
  }
};

class S3Remote : public Remote {
 public:
  S3Remote(const std::string& url, RemoteOptions options)
      : Remote(url, std::move(options)), credentials_(find_credentials()), region_(find_region()) {
    const std::string rest = url.substr(std::string("s3://").size());
    const std::size_t slash = std::min(rest.find('/'), rest.size());
    const std::string bucket = rest.substr(0, slash);
    if (bucket.empty()) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{} names no bucket", url),
                  "write s3://BUCKET/FOLDER");
    }
    std::string prefix = rest.substr(slash);
    while (prefix.starts_with('/')) prefix.erase(0, 1);
    const std::string endpoint = find_endpoint();
    if (!endpoint.empty()) {
      base_ = strip_slashes(endpoint);
      if (!is_url(base_)) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("the S3 endpoint '{}' is no URL", base_),
                    "write it as http://HOST:PORT or https://HOST");
      }
      path_ = "/" + percent_encode(bucket);
    } else if (bucket.find('.') != std::string::npos) {  // no certificate fits such a host name
      base_ = fmt::format("https://s3.{}.amazonaws.com", region_);
      path_ = "/" + percent_encode(bucket);
    } else {
      base_ = fmt::format("https://{}.s3.{}.amazonaws.com", bucket, region_);
    }
    path_ += "/" + percent_encode(prefix);
    path_ = strip_slashes(path_);
  }

 protected:
  Request request(const std::string& name) const override {
    const std::string path = path_ + "/" + percent_encode(name);
    std::string host = base_.substr(base_.find("://") + 3);
    std::string at = path;
    if (const std::size_t slash = host.find('/'); slash != std::string::npos) {
      at = host.substr(slash) + path;
      host.resize(slash);
    }
    // As libcurl writes it in the request.
    for (const auto& [scheme, port] : {std::pair("http://", ":80"), {"https://", ":443"}}) {
      if (base_.starts_with(scheme) && host.ends_with(port)) host.resize(host.rfind(':'));
    }
    Request out{base_ + path, "", false};
    if (!credentials_.access_key.empty()) {
      out.headers = sign_s3_get(credentials_, region_, host, at,
                                fmt::format("{:%Y%m%dT%H%M%SZ}", fmt::gmtime(std::time(nullptr))));
    }
    return out;
  }

  std::string denied_hint() const override {
    if (credentials_.access_key.empty()) {
      return fmt::format(
          "no credentials were found: set AWS_ACCESS_KEY_ID and "
          "AWS_SECRET_ACCESS_KEY, or write them to {} under [{}] (AWS_PROFILE)",
          aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), aws_profile());
    }
    return "check the address and the credentials; S3 also denies what does not exist where "
           "listing "
           "is not allowed";
  }

 private:
  S3Credentials credentials_;
  std::string region_, base_, path_;
};

std::string s3_scope(const std::string& region, const std::string& time) {
  return fmt::format("{}/{}/s3/aws4_request", time.substr(0, 8), region);
}

std::string hmac_sha256(const std::string& key, const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int bytes = 0;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest,
           &bytes) == nullptr) {
    throw Error(ErrorKind::kInternal, "libcrypto refuses an HMAC");
  }
  return std::string(reinterpret_cast<const char*>(digest), bytes);
}

}  // namespace

bool is_url(const std::string& place) { return place.find("://") != std::string::npos; }

std::string strip_file_scheme(const std::string& place) {
  constexpr std::string_view kScheme = "file://";
  return place.starts_with(kScheme) ? place.substr(kScheme.size()) : place;
}

std::string ini_value(const std::string& path, const std::string& section, const std::string& key) {
  std::ifstream file(path);
  bool inside = false, has_key = false;  // has_key: lines may go on with its value
  std::size_t key_indent = 0;
  for (std::string line; std::getline(file, line);) {
    const std::string text = trim(line);
    if (text.empty() || text[0] == '#' || text[0] == ';') continue;
    const std::size_t indent = line.find_first_not_of(" \t");
    if (has_key && indent > key_indent) continue;
    key_indent = indent;
    const std::size_t bracket = text.rfind(']');
    has_key = text[0] != '[' || bracket == std::string::npos;
    if (!has_key) {
      std::string name = text.substr(1, bracket - 1);
      if (name.starts_with("profile")) {  // [profile  'a b']
        std::erase_if(name, [](char c) { return c == '\'' || c == '"'; });
        name = "profile " + trim(name.substr(7));
      }
      inside = name == section;
      continue;
    }
    const std::size_t end = text.find_first_of("=:");
    if (!inside || end == std::string::npos) continue;
    std::string name = trim(text.substr(0, end));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (name == key) return trim(text.substr(end + 1));
  }
  return {};
}

std::string percent_encode(const std::string& path) {
  std::string out;
  for (const char c : path) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~' || c == '/';
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

std::string s3_signature(const std::string& secret_key, const std::string& region,
                         const std::string& time, const std::string& canonical_request) {
  const std::string to_sign = fmt::format("AWS4-HMAC-SHA256\n{}\n{}\n{}", time,
                                          s3_scope(region, time), sha256_hex(canonical_request));
  std::string key = hmac_sha256("AWS4" + secret_key, time.substr(0, 8));
  for (const std::string& part : {region, std::string("s3"), std::string("aws4_request")}) {
    key = hmac_sha256(key, part);
  }
  const std::string signature = hmac_sha256(key, to_sign);
  return to_hex(signature.data(), signature.size());
}

std::string sign_s3_get(const S3Credentials& credentials, const std::string& region,
                        const std::string& host, const std::string& encoded_path,
                        const std::string& time) {
  const std::string body_hash = sha256_hex("");
  std::string headers =
      fmt::format("host:{}\nx-amz-content-sha256:{}\nx-amz-date:{}\n", host, body_hash, time);
  std::string names = "host;x-amz-content-sha256;x-amz-date";
  if (!credentials.session_token.empty()) {
    headers += fmt::format("x-amz-security-token:{}\n", credentials.session_token);
    names += ";x-amz-security-token";
  }
  const std::string canonical =
      fmt::format("GET\n{}\n\n{}\n{}\n{}", encoded_path, headers, names, body_hash);
  std::string out = fmt::format(
      "x-amz-content-sha256: {}\nx-amz-date: {}\nAuthorization: AWS4-HMAC-SHA256 "
      "Credential={}/{}, SignedHeaders={}, Signature={}\n",
      body_hash, time, credentials.access_key, s3_scope(region, time), names,
      s3_signature(credentials.secret_key, region, time, canonical));
  if (!credentials.session_token.empty()) {
    out += fmt::format("x-amz-security-token: {}\n", credentials.session_token);
  }
  return out;
}

std::unique_ptr<Remote> Remote::open(const std::string& url, const RemoteOptions& options) {
  if (url.starts_with("http://") || url.starts_with("https://")) {
    return std::make_unique<HttpRemote>(url, options);
  }
  if (url.starts_with("s3://")) return std::make_unique<S3Remote>(url, options);
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: sets cannot be read from there", url),
              "use a folder, file://, http://, https:// or s3://");
}

void Remote::wait_before_retry(int attempt) const {
  thread_local std::minstd_rand random(std::random_device{}());
  const double jitter = std::uniform_real_distribution<double>(0, 0.5)(random);
  const double seconds =
      options_.first_backoff * (static_cast<double>(1 << std::min(attempt, 10)) + jitter);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end && !cancelled_) {
    check_interrupted();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Remote::Outcome Remote::try_once(const std::string& name, const std::string& path,
                                 std::optional<std::uint64_t> bytes, std::string& trouble,
                                 bool& damaged) const {
  const Curl& library = curl();
  const std::unique_ptr<CURL, decltype(library.cleanup)> handle(library.init(), library.cleanup);
  if (!handle) throw std::bad_alloc();
  const Request request = this->request(name);
  FileWriter file(path);
  Transfer transfer;
  transfer.file = &file;
  transfer.limit = bytes.value_or(options_.most_index_bytes);
  transfer.cancelled = &cancelled_;
  transfer.handle = handle.get();
  curl_slist* list = nullptr;
  for (std::size_t begin = 0; begin < request.headers.size();) {
    const std::size_t end = request.headers.find('\n', begin);
    list = library.append(list, request.headers.substr(begin, end - begin).c_str());
    begin = end + 1;
  }
  const std::unique_ptr<curl_slist, decltype(library.free_all)> headers(list, library.free_all);
  char reason[CURL_ERROR_SIZE] = "";
  const auto set = [&](CURLoption option, auto value) {
    library.setopt(handle.get(), option, value);
  };
  set(CURLOPT_URL, request.url.c_str());
  set(CURLOPT_HTTPHEADER, headers.get());
  set(CURLOPT_ERRORBUFFER, reason);
  set(CURLOPT_NOSIGNAL, 1L);
  // A large shard may take its time on a slow line; one that stands nearly still may not.
  constexpr long kLeastBytesPerSecond = 16 << 10;
  set(CURLOPT_LOW_SPEED_LIMIT, kLeastBytesPerSecond);
  // What does not fit libcurl's int of milliseconds is refused there, and it would wait without an end; 0 is its default.
  const double timeout = std::min(std::max(1e-3, options_.timeout), 1e6);
  set(CURLOPT_LOW_SPEED_TIME, static_cast<long>(std::ceil(timeout)));
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(timeout * 1000));
  set(CURLOPT_FOLLOWLOCATION, request.redirects ? 1L : 0L);
  set(CURLOPT_MAXREDIRS, 5L);
  // Their successors are unknown to libcurl before 7.85, which may be the one that is loaded.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  set(CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  set(CURLOPT_REDIR_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#pragma GCC diagnostic pop
  // Where the server tells the length, nothing of too long an index is read. (Of a shard, the length would
  // be that of the page that comes with an error, too.)
  if (!bytes) set(CURLOPT_MAXFILESIZE_LARGE, static_cast<curl_off_t>(transfer.limit));
  set(CURLOPT_WRITEFUNCTION, &on_body);
  set(CURLOPT_WRITEDATA, &transfer);
  set(CURLOPT_XFERINFOFUNCTION, &on_progress);
  set(CURLOPT_XFERINFODATA, &transfer);
  set(CURLOPT_NOPROGRESS, 0L);
  const CURLcode code = library.perform(handle.get());
  long status = 0;
  library.getinfo(handle.get(), CURLINFO_RESPONSE_CODE, &status);

  if (transfer.error) std::rethrow_exception(transfer.error);
  if (cancelled_) {
    throw Error(ErrorKind::kInterrupted, fmt::format("{}: the download was stopped", request.url));
  }
  if (!bytes && (transfer.too_long || code == CURLE_FILESIZE_EXCEEDED)) {
    throw Error(ErrorKind::kDamaged,
                fmt::format("{}: longer than the {} bytes that an index may have", request.url,
                            transfer.limit),
                "name the place of an MDS set; larger sets are split into several streams");
  }
  if (transfer.too_long) {
    trouble = fmt::format("more than the {} bytes that the index says", transfer.limit);
    damaged = true;
    return Outcome::kRetry;
  }
  // Of an error the page may be cut short: the status says enough.
  if (code != CURLE_OK && !(code == CURLE_WRITE_ERROR && status != 200)) {
    trouble = reason[0] != '\0' ? reason : library.strerror(code);
    return Outcome::kRetry;
  }
  if (status == 404 && transfer.page.find("<Code>NoSuchBucket</Code>") != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: there is no bucket of that name", url_),
                "check the address, and the endpoint where one is set");
  }
  if (status == 404) return Outcome::kAbsent;
  if (status == 401 || status == 403) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: access is denied (HTTP {})", request.url, status), denied_hint());
  }
  if (status != 200) {
    trouble = fmt::format("HTTP {}{}", status,
                          status == 206 ? ", a part of the file, though all of it was asked for"
                                        : ", in the place of the file");
    if (status >= 500 || status == 408 || status == 429) return Outcome::kRetry;
    throw Error(
        ErrorKind::kResource, fmt::format("{}: {}", request.url, trouble),
        status >= 300 && status < 400 ? "is the bucket in another region? set AWS_REGION" : "");
  }
  if (bytes && transfer.written != *bytes) {
    trouble = fmt::format("{} bytes came, but the index says {}", transfer.written, *bytes);
    damaged = true;
    return Outcome::kRetry;
  }
  file.finish();
  return Outcome::kDone;
}

bool Remote::fetch(const std::string& name, const std::string& path,
                   std::optional<std::uint64_t> bytes) {
  const std::string url = strip_slashes(url_) + "/" + name;
  std::string trouble;
  bool damaged = false;
  try {
    for (int attempt = 0; attempt <= options_.retries; ++attempt) {
      if (attempt > 0) wait_before_retry(attempt - 1);
      if (cancelled_) {
        throw Error(ErrorKind::kInterrupted, fmt::format("{}: the download was stopped", url));
      }
      damaged = false;
      const Outcome outcome = try_once(name, path, bytes, trouble, damaged);
      if (outcome == Outcome::kDone) return true;
      if (outcome == Outcome::kAbsent) {
        ::unlink(path.c_str());
        return false;
      }
    }
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
  ::unlink(path.c_str());
  throw Error(
      damaged ? ErrorKind::kDamaged : ErrorKind::kResource,
      fmt::format("cannot download {}: {} (tries: {})", url, trouble, options_.retries + 1),
      damaged ? "the file there is not the one of the index"
              : "check the network and the server" +
                    (options_.knobs.empty() ? "" : "; " + options_.knobs + " say how long to try"));
}

}  // namespace dropless::train
