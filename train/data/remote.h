// Files of a data set that lies elsewhere: http(s):// and s3://, through libcurl.
//
// s3: Signature Version 4 with the credentials of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN, else of AWS_PROFILE (default) in ~/.aws/credentials; without any, unsigned.
// Region: AWS_REGION, AWS_DEFAULT_REGION, ~/.aws/config, us-east-1. Another server than Amazon's:
// S3_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, with the bucket in the path.
//
// libcurl is loaded when the first file is fetched, so that the command runs where it is not
// installed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "train/data/mds_index.h"

namespace dropless::train {

struct RemoteOptions {
  int retries = 2;             // further tries of a file after the first
  double timeout = 60;         // seconds below 16 KiB/s that end a try
  double first_backoff = 1.0;  // seconds before the first retry; doubles, with up to half on top
  // Of a file whose size nothing tells, the index.
  std::uint64_t most_index_bytes = kMostIndexBytes;
  // For messages: what sets the above.
  std::string knobs = "download_retry and download_timeout";
};

bool is_url(const std::string& place);  // SCHEME://...
// "file:///a/b" -> "/a/b"; paths and other URLs stay as they are.
std::string strip_file_scheme(const std::string& place);

// Any number of threads may call it.
class Remote {
 public:
  // Throws Error(kInvalidArgument) for another scheme than http, https and s3.
  static std::unique_ptr<Remote> open(const std::string& url, const RemoteOptions& options);
  virtual ~Remote() = default;
  const std::string& url() const { return url_; }

  // Downloads NAME below the URL to the file `path`, which then has exactly `bytes` bytes, if
  // given, else at most most_index_bytes. False: there is no such file. Throws Error naming the URL and the last try's trouble:
  // kInvalidArgument where access is denied, kResource for a network, server or disk that fails,
  // kDamaged for a wrong number of bytes, kInterrupted after cancel(). On any of these no file is
  // left.
  bool fetch(const std::string& name, const std::string& path,
             std::optional<std::uint64_t> bytes = std::nullopt);
  // Ends what runs, and refuses what comes, until resume().
  void cancel() { cancelled_ = true; }
  void resume() { cancelled_ = false; }

 protected:
  struct Request {
    std::string url;
    std::string headers;  // "Name: value\n"...
    bool redirects = false;
  };
  Remote(std::string url, RemoteOptions options)
      : url_(std::move(url)), options_(std::move(options)) {}
  virtual Request request(const std::string& name) const = 0;
  virtual std::string denied_hint() const { return "check the address"; }

 private:
  enum class Outcome { kDone, kAbsent, kRetry };
  Outcome try_once(const std::string& name, const std::string& path,
                   std::optional<std::uint64_t> bytes, std::string& trouble, bool& damaged) const;
  void wait_before_retry(int attempt) const;

  const std::string url_;
  const RemoteOptions options_;
  std::atomic<bool> cancelled_ = false;
};

// "a b/ä" -> "a%20b/%C3%A4": what may stand in the path of a URL.
std::string percent_encode(const std::string& path);

// The value of `key` in `[section]` of an ini file as ~/.aws has them; empty where it is not. A line that is indented
// deeper than the key above it goes on with that key's value, as Python's configparser has it: so do the settings of one
// service (`s3 =`), which are none of the section's.
std::string ini_value(const std::string& path, const std::string& section, const std::string& key);

struct S3Credentials {
  std::string access_key, secret_key, session_token;  // empty access_key: unsigned
};

// Signature Version 4 for the service s3, as hexadecimal digits. `time` is "20130524T000000Z".
std::string s3_signature(const std::string& secret_key, const std::string& region,
                         const std::string& time, const std::string& canonical_request);
// The headers of a signed GET without a body.
std::string sign_s3_get(const S3Credentials& credentials, const std::string& region,
                        const std::string& host, const std::string& encoded_path,
                        const std::string& time);

}  // namespace dropless::train
