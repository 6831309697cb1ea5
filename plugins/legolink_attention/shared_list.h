// Which pages several sequences see, and who attends to them together. On the host, without a
// device: the lists are copied to it like the step's other tables.
#pragma once

#include <cstdint>
#include <vector>

#include "legokv/launchers.h"
#include "legokv/page_table.h"

namespace legokv {

// Pages go together if the same sequences see them whole, each at one base: a chunk's pages, or
// what of them nobody computes anew. Their keys are read once for a tile of query rows. Only
// sequences of few tokens share: others have rows enough of their own.
class SharedList {
 public:
  explicit SharedList(const LegokvSharing& sharing);

  // Puts what was found where `sharing` says.
  void write(LegokvSharing* sharing) const;

 private:
  // A page that some sequence sees whole; -1: it can't be shared, or is in no group.
  struct SeenPage {
    int32_t page;
    int32_t filled;
    uint64_t digest;  // of who sees it, in order
    int32_t num_seers = 0;
    int32_t group = -1;
  };

  struct Seer {
    int32_t sequence;
    int32_t base;
  };

  struct Group {
    int32_t first;  // of its pages, in seen_
    std::vector<Seer> seers;
    std::vector<int32_t> pages;  // in seen_
    int64_t num_keys = 0;
    int64_t num_tokens = 0;
    int64_t saved_keys = 0;  // that each KV head need not read
    int32_t num_parts = 0;   // of its pages, each read by blocks of their own; 0: not shared
  };

  bool has_few(int sequence) const;
  PageRow row(int sequence, int index) const;
  void see_pages();
  void see_page(int sequence, int index, std::vector<int32_t>* known);
  void group_pages();
  void check_pages();
  void choose_groups();
  bool is_worthwhile(const Group& group) const;
  int64_t num_tiles(const Group& group) const;
  int64_t num_strips(const Group& group) const;
  void write_group(const Group& group, std::vector<int32_t>* places, LegokvSharing* out) const;
  void write_own_pages(LegokvSharing* out) const;
  std::vector<int32_t> write_starts(int32_t* starts) const;
  template <typename Visit>
  void for_each_seen(Visit visit) const;

  const LegokvSharing& s_;
  const int heads_;  // query heads that share a KV head
  const int tile_tokens_;
  std::vector<int32_t> seen_at_;  // by row of the tables: its number in seen_, or -1
  std::vector<SeenPage> seen_;
  std::vector<Group> groups_;
  std::vector<int32_t> order_;  // of the groups that are shared: the most saved first
};

}  // namespace legokv
