#include "apps/output.h"

#include <cerrno>
#include <cstdio>
#include <iostream>
#include <string>
#include <system_error>

#include "dropless/error.h"

namespace dropless::apps {

void flush_output() {
  errno = 0;
  std::cout.flush();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && !std::cout.bad()) return;
  const int number = errno;  // 0: an earlier write failed
  throw Error(ErrorKind::kResource,
              "cannot write to standard output" +
                  (number == 0 ? "" : ": " + std::generic_category().message(number)),
              "the results are not complete: give it a place with room");
}

}  // namespace dropless::apps
