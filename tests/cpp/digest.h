// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace shplb::sample {

/// Digest of everything the core returns for `rounds` random problems of each kind, in an order
/// that depends on `order_seed`; the result does not.
std::uint64_t DigestOfCore(int rounds, std::uint64_t order_seed);

}  // namespace shplb::sample
