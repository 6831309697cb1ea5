"""A cache folder is its owner's alone, whatever the umask is and whatever it was made with."""

import os
import stat

import pytest
from small_chunks import small_chunk, small_disk_tier, small_kv

from legokv.stores.local.repair import mend


@pytest.fixture(autouse=True, name="umask")
def umask_fixture():
    """As most systems have it: others may read."""
    usual = os.umask(0o022)
    yield
    os.umask(usual)


def modes(root):
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in (root, *root.rglob("*"))}
    return {mode for path, mode in found.items() if not path.is_symlink()}


def filled(root):
    tier = small_disk_tier(root)
    tier.write(small_chunk(1), small_kv(1))
    mend(tier, lambda keys: {})
    return tier


def test_all_that_a_cache_writes_is_its_owner_s_alone(tmp_path):
    filled(tmp_path / "cache" / "model")
    assert modes(tmp_path / "cache" / "model") == {0o600, 0o700}


def test_a_cache_that_others_could_read_is_taken_from_them_when_it_is_opened(tmp_path, caplog):
    root = tmp_path / "model"
    filled(root)
    secret = tmp_path / "elsewhere"
    secret.write_text("not of this cache")
    secret.chmod(0o644)
    (root / "link").symlink_to(secret)
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    tier = small_disk_tier(root)
    assert modes(root) == {0o600, 0o700}
    assert stat.S_IMODE(secret.stat().st_mode) == 0o644
    assert f"{root} was open to other users" in caplog.text
    assert tier.has(small_chunk(1).key)
