// The files page.html, page.css and page.js, as CMake puts them into the program.
#pragma once

#include <string_view>

namespace dropless::train {

extern const std::string_view kPageHtml, kPageCss, kPageJs;

}  // namespace dropless::train
