// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace shplb {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Bad input. The message reads "<argument>: got <got>, expected <expected>".
class InvalidArgument : public Error {
 public:
  InvalidArgument(std::string_view argument, std::string_view got, std::string_view expected);
};

/// Valid input for which no answer exists within the stated bounds.
class Infeasible : public Error {
 public:
  using Error::Error;
};

/// Shortest decimal text that reads back as the same value.
std::string ToText(double value);
std::string ToText(std::int64_t value);

/// "name[3]", "name[3, 7]" or "name[3, 7, 0]" for messages about one element.
std::string ElementName(std::string_view name, std::initializer_list<std::int64_t> index);

/// Throws InvalidArgument unless lowest <= value <= highest.
void RequireInRange(std::string_view argument, std::int64_t value, std::int64_t lowest,
                    std::int64_t highest);

}  // namespace shplb
