// GPT-2's way to write bytes as printable characters, in tokenizer.json files of the kind ByteLevel; and
// Llama 3's pattern, which two kinds of files need.
#pragma once

#include <string>

namespace dropless::train {

// Bytes that are printable in Latin-1 stand for themselves, the others follow from U+0100 on.
std::string character_of_byte(int byte);
// A token's bytes; its own text where a character stands for none.
std::string bytes_of_characters(const std::string& text);

inline constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace dropless::train
