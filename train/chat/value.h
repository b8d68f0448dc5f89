// Values of chat templates: those of Python that a Jinja template can hold, without floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dropless::train::chat {

struct Undefined {
  std::string name;  // what was asked for, for messages: its first 100 bytes
  Undefined() = default;
  explicit Undefined(std::string_view asked_for) : name(asked_for.substr(0, 100)) {}
};
struct None {};
struct Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in the order of insertion
using Namespace = std::map<std::string, Value>;  // Jinja's namespace(), the one that changes

// What a template may build at most, counted as if nothing were shared: whatever walks or writes a value ends. Beyond
// it the constructors throw Error(kUnsupported).
inline constexpr std::size_t kMostBytes = 16 << 20;
inline constexpr std::size_t kElementBytes = 64;  // of a list or mapping, beside its own
inline constexpr int kMostHeight = 200;           // of values in each other
inline constexpr std::int64_t kMostInteger = std::int64_t{1} << 62;
void require_bytes(std::size_t bytes);
// A namespace changes, so its size is not known: nothing holds one but a variable.
struct Value;
void require_no_namespace(const Value& element);

// A copy shares what is held.
struct Value {
  std::variant<Undefined, None, bool, std::int64_t, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>>
      data;
  std::size_t bytes = 0;
  int height = 0;

  Value() : data(Undefined{}) {}
  template <class T>
  Value(T value) : data(std::move(value)) {}             // NOLINT(google-explicit-constructor)
  Value(std::string text);                               // NOLINT(google-explicit-constructor)
  Value(const char* text) : Value(std::string(text)) {}  // NOLINT(google-explicit-constructor)
  Value(List list);                                      // NOLINT(google-explicit-constructor)
  Value(Dict dict);                                      // NOLINT(google-explicit-constructor)

  template <class T>
  const T* get() const {
    return std::get_if<T>(&data);
  }
  const std::string* string() const {
    const auto* pointer = get<std::shared_ptr<const std::string>>();
    return pointer ? pointer->get() : nullptr;
  }
  const List* list() const {
    const auto* pointer = get<std::shared_ptr<const List>>();
    return pointer ? pointer->get() : nullptr;
  }
  const Dict* dict() const {
    const auto* pointer = get<std::shared_ptr<const Dict>>();
    return pointer ? pointer->get() : nullptr;
  }
  bool undefined() const { return get<Undefined>() != nullptr; }

  // Of a text, or of the elements without what they hold: what making this took, and what going through it once takes.
  std::size_t own_bytes() const {
    if (string()) return bytes;
    return kElementBytes * (list() ? list()->size() : dict() ? dict()->size() : 0);
  }
};

// As Python has them. Where its rule would need what is not here (a list as text, "a" < 1), they throw
// Error(kUnsupported).
bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
bool less(const Value& a, const Value& b);
bool contains(const Value& whole, const Value& part);  // part in whole
std::int64_t length_of(const Value& whole);            // len(whole)
std::string to_text(const Value& value);               // str(value)
std::string to_json(const Value& value);               // json.dumps(value, ensure_ascii=False)
const char* type_of(const Value& value);

// dict[key], list[i], string[i]; Undefined where there is none.
Value item(const Value& whole, const Value& key);
Value slice(const Value& whole, const Value& begin, const Value& end, const Value& step);

// The characters of valid UTF-8: their number, and the place of each and of the end, in bytes.
std::size_t count_characters(std::string_view text);
std::vector<std::uint32_t> character_places(std::string_view text);
// Where `part` is first found in `text` at or after `from`, or npos; in time that grows with the two sizes' sum.
std::size_t find_text(std::string_view text, std::string_view part, std::size_t from = 0);
// str.strip, lstrip, rstrip of Python's white space, or of the characters of `*set`.
std::string strip(const std::string& text, bool left, bool right, const std::string* set);

}  // namespace dropless::train::chat
