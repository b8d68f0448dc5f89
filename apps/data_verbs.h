// The parts of `dropless data`: each adds its own subcommand.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace dropless::apps {

void add_data_cat(CLI::App& data);
void add_data_info(CLI::App& data);
void add_data_json(CLI::App& data);
void add_data_merge(CLI::App& data);
void add_data_order(CLI::App& data);
void add_data_text(CLI::App& data);
void add_data_tokenizer(CLI::App& data);
void add_data_verify(CLI::App& data);
void add_data_write(CLI::App& data);

// The folder of a set on this machine. Throws Error(kInvalidArgument): a URL, an absent folder or
// split.
std::string local_set(const std::string& folder, const std::string& split);
// "1 sample", "2 samples".
std::string counted(std::int64_t count, const std::string& noun);
// What --hashes says: names with commas between them, or `none`.
std::vector<std::string> hash_names(const std::string& text);

}  // namespace dropless::apps
