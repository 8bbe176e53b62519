// SPDX-License-Identifier: Apache-2.0
#include "shplb/error.h"

#include <charconv>

namespace shplb {

namespace {

std::string Message(std::string_view argument, std::string_view got, std::string_view expected) {
  std::string text;
  text.append(argument).append(": got ").append(got).append(", expected ").append(expected);
  return text;
}

template <class T>
std::string Shortest(T value) {
  char buffer[32];
  const auto [end, code] = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return code == std::errc{} ? std::string(buffer, end) : std::string("?");
}

}  // namespace

InvalidArgument::InvalidArgument(std::string_view argument, std::string_view got,
                                 std::string_view expected)
    : Error(Message(argument, got, expected)) {}

std::string ToText(double value) { return Shortest(value); }

std::string ToText(std::int64_t value) { return Shortest(value); }

std::string ElementName(std::string_view name, std::initializer_list<std::int64_t> index) {
  std::string text(name);
  const char* separator = "[";
  for (const std::int64_t i : index) {
    text.append(separator).append(ToText(i));
    separator = ", ";
  }
  return text.append("]");
}

void RequireInRange(std::string_view argument, std::int64_t value, std::int64_t lowest,
                    std::int64_t highest) {
  if (value < lowest || value > highest) {
    throw InvalidArgument(argument, ToText(value),
                          "a value in [" + ToText(lowest) + ", " + ToText(highest) + "]");
  }
}

}  // namespace shplb
