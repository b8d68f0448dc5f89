// Standard output, checked.
#pragma once

namespace dropless::apps {

// Writes out what still stands in its buffers. Throws Error(kResource) when standard output did not
// take everything: an exit alone says nothing of a write that fails.
void flush_output();

}  // namespace dropless::apps
