"""Reads every chunk that Redis keeps of one model, and removes what is not whole."""

from collections.abc import Callable

from legokv.chunks.stored_form import check_chunk
from legokv.chunks.tier import Repair, StoredRow
from legokv.errors import ChunkUnreadable
from legokv.stores.fleet.tier import RemoteTier


def verify_remote(tier: RemoteTier, progress: Callable[[int, int], object]) -> Repair:
    """What was found wrong, and removed; `progress` gets (chunks, bytes) done."""
    rows = tier.rows()
    repair = Repair()
    for row in rows:
        repair += _verified(tier, row)
        progress(1, row.num_bytes)
    # Asked for after the rows: what was stored in between has a row by now.
    named = {row.key for row in (*rows, *tier.rows())}
    for key in tier.keys() - named:
        content = tier.content(key) or b""
        tier.discard(key)
        repair += Repair(files_without_row=1, removed_bytes=len(content))
    return repair


def _verified(tier: RemoteTier, row: StoredRow) -> Repair:
    content = tier.content(row.key)
    if content is None:
        if all(row.key != other.key for other in tier.rows()):
            return Repair()  # evicted meanwhile
        tier.discard(row.key)
        return Repair(rows_without_file=1)
    try:
        check_chunk(content, row.key)
    except ChunkUnreadable:
        tier.discard(row.key)
        return Repair(checked_files=1, damaged_files=1, removed_bytes=len(content))
    return Repair(checked_files=1)
