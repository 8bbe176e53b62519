// SPDX-License-Identifier: Apache-2.0
// Prints a digest of the core's answers: print_digest [rounds] [threads] [order_seed]. Equal for
// every compiler, optimisation level, thread count and order.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "digest.h"

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  const int num_threads = argc > 2 ? std::atoi(argv[2]) : 1;
  const auto order = static_cast<std::uint64_t>(argc > 3 ? std::atoi(argv[3]) : 0);
  std::vector<std::uint64_t> digests(static_cast<std::size_t>(num_threads));
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < digests.size(); ++t) {
    threads.emplace_back([&digests, rounds, order, t] {
      digests[t] = shplb::sample::DigestOfCore(rounds, order + t);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::set<std::uint64_t> distinct(digests.begin(), digests.end());
  for (const std::uint64_t digest : distinct) {
    std::printf("%016llx\n", static_cast<unsigned long long>(digest));
  }
  return distinct.size() == 1 ? 0 : 1;
}
