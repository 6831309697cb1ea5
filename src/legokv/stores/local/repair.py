"""Brings a disk tier's files and rows back together, whatever happened to either."""

from collections.abc import Callable, Collection, Mapping

from legokv.chunks.tier import Repair, StoredRow
from legokv.errors import CacheUnavailable, ChunkUnreadable
from legokv.stores.local.files import ChunkFile
from legokv.stores.local.tier import DiskTier

# Of chunk keys, those that documents name, with their namespace.
NamedKeys = Callable[[Collection[str]], Mapping[str, str]]


def mend(tier: DiskTier, named: NamedKeys) -> Repair:
    """Make files and rows agree, reading no KV; then `trim` the tier.

    Files no process finished go. A row without its file, or with one of another size, goes. A file
    without a row gets one if a document names its chunk, and goes if none does.
    """
    try:
        repair = _mended(tier, named)
    except OSError as error:
        raise CacheUnavailable(
            f"the chunk folder {tier.folder.root} could not be mended: {error.strerror}"
        ) from error
    tier.trim()
    return repair


def _mended(tier: DiskTier, named: NamedKeys) -> Repair:
    with tier.folder.mending():
        files = {file.key: file for file in tier.folder.files()}
        rows = {row.key: row for row in tier.stored.rows()}
        repair = _remove_temporary(tier)
        repair += _mend_rows(tier, files, rows)
        return repair + _mend_files(tier, [files[key] for key in files.keys() - rows.keys()], named)


def verify(tier: DiskTier, progress: Callable[[int, int], object]) -> Repair:
    """Read every file and remove those that are damaged; `progress` gets (files, bytes) done."""
    repair = Repair()
    for file in list(tier.folder.files()):
        repair += _verified(tier, file)
        progress(1, file.num_bytes)
    return repair


def _verified(tier: DiskTier, file: ChunkFile) -> Repair:
    try:
        tier.folder.verify(file.key)
    except ChunkUnreadable:
        if not tier.folder.has(file.key):
            return Repair()  # evicted meanwhile
        tier.discard(file.key)
        return Repair(checked_files=1, damaged_files=1, removed_bytes=file.num_bytes)
    return Repair(checked_files=1)


def _remove_temporary(tier: DiskTier) -> Repair:
    paths = tier.folder.temporary_files()
    num_bytes = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink(missing_ok=True)
    return Repair(temporary_files=len(paths), removed_bytes=num_bytes)


def _mend_rows(
    tier: DiskTier, files: Mapping[str, ChunkFile], rows: Mapping[str, StoredRow]
) -> Repair:
    missing = rows.keys() - files.keys()
    wrong = [
        files[key]
        for key in rows.keys() & files.keys()
        if files[key].num_bytes != rows[key].num_bytes
    ]
    for file in wrong:
        tier.folder.remove(file.key)
    tier.stored.forget([*missing, *(file.key for file in wrong)])
    return Repair(
        rows_without_file=len(missing),
        files_of_wrong_size=len(wrong),
        removed_bytes=sum(file.num_bytes for file in wrong),
    )


def _mend_files(tier: DiskTier, files: list[ChunkFile], named: NamedKeys) -> Repair:
    owners = named([file.key for file in files])
    adopted = [file for file in files if file.key in owners]
    tier.stored.adopt(StoredRow(file.key, owners[file.key], file.num_bytes) for file in adopted)
    removed = [file for file in files if file.key not in owners]
    for file in removed:
        tier.folder.remove(file.key)
    return Repair(
        files_without_row=len(removed),
        files_adopted=len(adopted),
        removed_bytes=sum(file.num_bytes for file in removed),
    )
