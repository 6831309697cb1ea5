#include "legolink_attention/shared_list.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "legokv/export.h"
#include "legokv/query_rows.h"
#include "legolink_attention/plan.h"

namespace legokv {
namespace {

// Strips that one block goes through at least: what begins a block and ends it is a part of that.
constexpr int kMinPartStrips = 32;
// By how much what is not read must outweigh the partial results, which are written and read.
constexpr int kWorthwhile = 2;
// Shared pages stand before every position: all of their rows see all of their keys.
constexpr int32_t kBeforeAll = INT32_MIN / 2;

Sequences sequences_of(const LegokvSharing& s) {
  return {s.query_start, s.num_sequences, s.num_tokens};
}

int num_tokens_of(const LegokvSharing& s, int sequence) {
  return first_token(sequences_of(s), sequence + 1) - first_token(sequences_of(s), sequence);
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

uint64_t mixed(uint64_t digest, int32_t number) {
  digest = (digest ^ static_cast<uint32_t>(number)) * 0x9e3779b97f4a7c15u;
  return digest ^ digest >> 29;
}

void put_row(int32_t* rows, int64_t index, const PageRow& row) {
  int32_t* to = rows + index * 4;
  to[0] = row.page;
  to[1] = row.base;
  to[2] = row.first_position;
  to[3] = row.filled;
}

// Entries of a list from `used` on are of nothing.
void end_list(int32_t* list, int used, int capacity) {
  std::fill(list + int64_t{used} * 4, list + int64_t{capacity} * 4, -1);
}

Status check_sharing(const LegokvSharing& s) {
  if (!is_supported_page_size(s.page_size) || !is_supported_head_size(s.head_size) ||
      s.num_kv_heads <= 0 || s.num_heads <= 0 || s.num_heads % s.num_kv_heads != 0) {
    return invalid_argument(
        "list_shared: no kernel for %d query heads, %d KV heads, head size %d, page size %d",
        s.num_heads, s.num_kv_heads, s.head_size, s.page_size);
  }
  if (s.num_tokens < 0 || s.num_sequences < 0 || s.num_table_rows < 0 || s.num_pool_pages < 0 ||
      s.max_tiles < 0 || s.max_members < 0 || s.max_pages < 0) {
    return invalid_argument(
        "list_shared: a negative count: %d tokens, %d sequences, %d rows; room for %d tiles, %d "
        "members, %d pages",
        s.num_tokens, s.num_sequences, s.num_table_rows, s.max_tiles, s.max_members, s.max_pages);
  }
  return Status::kOk;
}

}  // namespace

SharedList::SharedList(const LegokvSharing& sharing)
    : s_(sharing),
      heads_(sharing.num_heads / sharing.num_kv_heads),
      tile_tokens_(kTileRows / heads_),
      seen_at_(size_t(sharing.num_sequences) * sharing.num_table_rows, -1) {
  see_pages();
  group_pages();
  check_pages();
  choose_groups();
}

bool SharedList::has_few(int sequence) const {
  return num_tokens_of(s_, sequence) > 0 &&
         has_few_tokens(sequences_of(s_), sequence, few_tokens(heads_));
}

PageRow SharedList::row(int sequence, int index) const {
  const int32_t* from = s_.pages + (int64_t{sequence} * s_.num_table_rows + index) * 4;
  return {from[0], from[1], from[2], from[3]};
}

void SharedList::see_pages() {
  std::vector<int32_t> known(s_.num_pool_pages, -1);
  for (int sequence = 0; sequence < s_.num_sequences; ++sequence) {
    if (!has_few(sequence)) continue;
    for (int i = 0; i < s_.num_table_rows; ++i) see_page(sequence, i, &known);
  }
}

// Positions ascend, so what the first of a sequence's tokens sees all of them see.
void SharedList::see_page(int sequence, int index, std::vector<int32_t>* known) {
  const PageRow page = row(sequence, index);
  const int filled = filled_slots(page, s_.num_pool_pages, s_.page_size);
  if (filled <= 0) return;
  const int position = s_.positions[first_token(sequences_of(s_), sequence)];
  if (int64_t{page.first_position} + filled - 1 > position) return;
  int32_t& number = (*known)[page.page];
  if (number < 0) {
    number = static_cast<int32_t>(seen_.size());
    seen_.push_back({page.page, filled, 0});
  }
  SeenPage& seen = seen_[number];
  // Who sees more or less of it than the first who does reads it alone.
  if (seen.filled != filled) return;
  seen.digest = mixed(mixed(seen.digest, sequence), page.base);
  ++seen.num_seers;
  seen_at_[int64_t{sequence} * s_.num_table_rows + index] = number;
}

template <typename Visit>
void SharedList::for_each_seen(Visit visit) const {
  for (int sequence = 0; sequence < s_.num_sequences; ++sequence) {
    for (int i = 0; i < s_.num_table_rows; ++i) {
      const int32_t number = seen_at_[int64_t{sequence} * s_.num_table_rows + i];
      if (number >= 0 && seen_[number].group >= 0) {
        visit(number, Seer{sequence, row(sequence, i).base});
      }
    }
  }
}

void SharedList::group_pages() {
  std::unordered_map<uint64_t, int32_t> by_digest;
  for (size_t number = 0; number < seen_.size(); ++number) {
    SeenPage& seen = seen_[number];
    if (seen.num_seers < 2) continue;
    const auto [known, is_new] = by_digest.emplace(seen.digest, int32_t(groups_.size()));
    if (is_new) groups_.push_back({static_cast<int32_t>(number), {}, {}});
    seen.group = known->second;
  }
  for_each_seen([this](int32_t number, const Seer& seer) {
    Group& group = groups_[seen_[number].group];
    if (group.first == number) group.seers.push_back(seer);
  });
}

// What has a digest by chance is nobody's.
void SharedList::check_pages() {
  std::vector<int32_t> num_met(seen_.size(), 0);
  std::vector<bool> differs(seen_.size(), false);
  for_each_seen([&](int32_t number, const Seer& seer) {
    const std::vector<Seer>& seers = groups_[seen_[number].group].seers;
    const size_t at = num_met[number]++;
    differs[number] = differs[number] || at >= seers.size() ||
                      seers[at].sequence != seer.sequence || seers[at].base != seer.base;
  });
  for (size_t number = 0; number < seen_.size(); ++number) {
    SeenPage& seen = seen_[number];
    if (seen.group < 0) continue;
    Group& group = groups_[seen.group];
    if (differs[number] || size_t(seen.num_seers) != group.seers.size()) {
      seen.group = -1;
      continue;
    }
    group.pages.push_back(static_cast<int32_t>(number));
    group.num_keys += seen.filled;
  }
  for (Group& group : groups_) {
    for (const Seer& seer : group.seers) group.num_tokens += num_tokens_of(s_, seer.sequence);
    const int64_t alone = group.num_tokens * divide_up(heads_, kMaxSplitRows);
    group.saved_keys = group.num_keys * (alone - num_tiles(group));
  }
}

int64_t SharedList::num_tiles(const Group& group) const {
  return divide_up(group.num_tokens, tile_tokens_);
}

int64_t SharedList::num_strips(const Group& group) const {
  return group.pages.size() * (s_.page_size / kStripKeys);
}

// By the bytes of one KV head: keys and values of 16 bits that are not read again, against a
// part's results in float32, written once and read once.
bool SharedList::is_worthwhile(const Group& group) const {
  const int64_t saved = group.saved_keys * s_.head_size * 2 * 2;
  const int64_t results = group.num_tokens * heads_ * (s_.head_size + 2) * 4 * 2;
  return saved >= kWorthwhile * results;
}

// Parts are as long as leaves about one wave of blocks, of all groups together.
void SharedList::choose_groups() {
  int64_t work = 0;
  for (size_t number = 0; number < groups_.size(); ++number) {
    if (!is_worthwhile(groups_[number])) continue;
    order_.push_back(static_cast<int32_t>(number));
    work += num_tiles(groups_[number]) * num_strips(groups_[number]) * s_.num_kv_heads;
  }
  std::stable_sort(order_.begin(), order_.end(), [this](int32_t a, int32_t b) {
    return groups_[a].saved_keys > groups_[b].saved_keys;
  });
  const int64_t strips = std::max<int64_t>(kMinPartStrips, divide_up(work, kTargetTiles));
  int64_t tiles = s_.max_tiles, members = s_.max_members, pages = s_.max_pages;
  for (const int32_t number : order_) {
    Group& group = groups_[number];
    const int64_t parts = std::max<int64_t>(1, num_strips(group) / strips);
    const int64_t most = std::min<int64_t>(parts, group.pages.size());
    if (most * num_tiles(group) > tiles || most * group.num_tokens > members ||
        int64_t(group.pages.size()) > pages) {
      continue;
    }
    tiles -= most * num_tiles(group);
    members -= most * group.num_tokens;
    pages -= group.pages.size();
    group.num_parts = static_cast<int32_t>(most);
  }
}

void SharedList::write(LegokvSharing* out) const {
  out->num_tiles = out->num_members = out->num_pages = 0;
  std::vector<int32_t> places = write_starts(out->shared_start);
  for (const int32_t number : order_) {
    if (groups_[number].num_parts > 0) write_group(groups_[number], &places, out);
  }
  end_list(out->shared_tiles, out->num_tiles, out->max_tiles);
  end_list(out->shared_members, out->num_members, out->max_members);
  end_list(out->shared_pages, out->num_pages, out->max_pages);
  write_own_pages(out);
}

// A token's places stand together, as many as parts that it attends to; the first of each.
std::vector<int32_t> SharedList::write_starts(int32_t* starts) const {
  std::vector<int32_t> counts(s_.num_tokens + 1, 0);
  for (const Group& group : groups_) {
    for (const Seer& seer : group.seers) {
      const int first = first_token(sequences_of(s_), seer.sequence);
      for (int i = 0; i < num_tokens_of(s_, seer.sequence); ++i)
        counts[first + i + 1] += group.num_parts;
    }
  }
  std::partial_sum(counts.begin(), counts.end(), starts);
  return {starts, starts + s_.num_tokens};
}

// Part by part, so that the blocks of one part stand together: the second finds keys in the cache.
void SharedList::write_group(const Group& group, std::vector<int32_t>* places,
                             LegokvSharing* out) const {
  std::vector<Seer> rows;  // of each token
  for (const Seer& seer : group.seers) {
    const int first = first_token(sequences_of(s_), seer.sequence);
    for (int i = 0; i < num_tokens_of(s_, seer.sequence); ++i)
      rows.push_back({first + i, seer.base});
  }
  const int num_pages = static_cast<int>(group.pages.size());
  const int tiles = static_cast<int>(num_tiles(group)), tokens = static_cast<int>(rows.size());
  for (int part = 0; part < group.num_parts; ++part) {
    const int first_page = part_begin(num_pages, part, group.num_parts);
    const int end_page = part_begin(num_pages, part + 1, group.num_parts);
    for (int tile = 0; tile < tiles; ++tile) {
      const int first = part_begin(tokens, tile, tiles), end = part_begin(tokens, tile + 1, tiles);
      put_row(out->shared_tiles, out->num_tiles++,
              {out->num_pages + first_page, end_page - first_page, out->num_members, end - first});
      for (int i = first; i < end; ++i) {
        const auto [token, base] = rows[i];
        put_row(out->shared_members, out->num_members++, {token, base, (*places)[token]++, 0});
      }
    }
  }
  for (const int32_t number : group.pages) {
    put_row(out->shared_pages, out->num_pages++,
            {seen_[number].page, 0, kBeforeAll, seen_[number].filled});
  }
}

void SharedList::write_own_pages(LegokvSharing* out) const {
  out->num_own_rows = 0;
  for (int sequence = 0; sequence < s_.num_sequences; ++sequence) {
    const int64_t first = int64_t{sequence} * s_.num_table_rows;
    int used = 0;
    for (int i = 0; i < s_.num_table_rows; ++i) {
      const int32_t number = seen_at_[first + i];
      const int32_t group = number < 0 ? -1 : seen_[number].group;
      const PageRow page = row(sequence, i);
      if (page.filled <= 0 || (group >= 0 && groups_[group].num_parts > 0)) continue;
      put_row(out->own_pages, first + used++, page);
    }
    out->num_own_rows = std::max(out->num_own_rows, used);
    std::fill(out->own_pages + (first + used) * 4, out->own_pages + (first + s_.num_table_rows) * 4,
              0);
  }
}

}  // namespace legokv

LEGOKV_EXPORT int legokv_list_shared(LegokvSharing* sharing) {
  const legokv::Status status = legokv::check_sharing(*sharing);
  if (status == legokv::Status::kOk) legokv::SharedList(*sharing).write(sharing);
  return static_cast<int>(status);
}
