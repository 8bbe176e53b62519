// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace shplb::internal {

/// Threads that sleep until there is something to do together. Waking them takes some 20 us, so
/// the caller begins at once and takes what they have not begun yet.
class Crew {
 public:
  /// num_threads counts the caller in.
  explicit Crew(int num_threads);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls work(0) here and work(1) .. work(size() - 1) on the others; returns when all are back.
  /// `work` must not throw.
  void Run(const std::function<void(int)>& work);

 private:
  void Serve(int worker);

  std::mutex mutex_;
  std::condition_variable begin_, done_;
  const std::function<void(int)>* work_ = nullptr;  // guarded by mutex_, like those below
  std::uint64_t round_ = 0;
  int busy_ = 0;
  bool leaving_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace shplb::internal
