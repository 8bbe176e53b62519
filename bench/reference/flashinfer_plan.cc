// SPDX-License-Identifier: Apache-2.0
// The schedule FlashInfer 0.6.12 computes for its sm90 prefill kernel, written anew from the description of
// its algorithm, to time it without CUDA: sort lists by length, then per query head give every tile to the
// CTA with the least cost so far from a binary heap, collect seven growing arrays per CTA, concatenate.
#include <algorithm>
#include <cstdint>
#include <queue>
#include <vector>

extern "C" void flashinfer_plan(const int32_t* kv_lens, int64_t num_lists, int64_t num_heads,
                                int64_t num_ctas, int64_t tile_rows, int32_t* out,
                                int64_t* makespan) {
  struct List {
    int32_t index, kv_len;
  };
  std::vector<List> lists;
  for (int32_t i = 0; i < num_lists; ++i) lists.push_back({i, kv_lens[i]});
  std::sort(lists.begin(), lists.end(),
            [](const List& a, const List& b) { return a.kv_len > b.kv_len; });
  using Slot = std::pair<float, int>;
  std::priority_queue<Slot, std::vector<Slot>, std::greater<>> heap;
  for (int cta = 0; cta < num_ctas; ++cta) heap.push({0.f, cta});
  std::vector<std::vector<int32_t>> tables[7];
  for (auto& table : tables) table.resize(num_ctas);
  float longest = 0;
  for (int32_t head = 0; head < num_heads; ++head) {
    for (const List& list : lists) {
      const auto [cost, cta] = heap.top();
      heap.pop();
      const float next = cost + 2 * static_cast<float>(tile_rows) + static_cast<float>(list.kv_len);
      heap.push({next, cta});
      longest = std::max(longest, next);
      const int32_t row[7] = {0, list.index * 128, list.index, 128, list.kv_len, head, list.index};
      for (int t = 0; t < 7; ++t) tables[t][cta].push_back(row[t]);
    }
  }
  std::vector<int32_t> indptr(num_ctas + 1, 0);
  for (int64_t c = 0; c < num_ctas; ++c) {
    indptr[c + 1] = indptr[c] + static_cast<int32_t>(tables[0][c].size());
  }
  for (auto& table : tables) {
    std::vector<int32_t> flat;
    flat.reserve(indptr.back());
    for (const auto& part : table) flat.insert(flat.end(), part.begin(), part.end());
    out = std::copy(flat.begin(), flat.end(), out);
  }
  std::copy(indptr.begin(), indptr.end(), out);
  *makespan = static_cast<int64_t>(longest);
}
