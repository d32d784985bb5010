"""Verifies a prepared data set against the manifest that was written with it."""

import concurrent.futures
import os
from typing import Any

from resnet_jax.data.prepare.metadata import MANIFEST, read_manifest
from resnet_jax.data.prepare.shards import count_records, sha256


def find_damage(folder: str, workers: int = 0) -> list[str]:
    """A line for each file that is missing or not as it was written; none if all is well.

    Each shard's size, number of records and SHA-256 are compared, and the SHA-256 of TFDS's metadata.

    Args:
      folder: DATA_DIR/NAME/VERSION.
      workers: threads; 0: as many as there are cores.

    Raises:
      FileNotFoundError: there is no manifest.
    """
    manifest = read_manifest(folder)
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads:  # hashing frees the lock
        shards = threads.map(lambda item: _shard_damage(folder, *item), manifest["shards"].items())
        files = threads.map(lambda item: _file_damage(folder, *item), manifest["files"].items())
        damage = [line for line in (*shards, *files) if line]
    strangers = sorted(set(os.listdir(folder)) - {MANIFEST, *manifest["shards"], *manifest["files"]})
    return damage + [f"{name}: was not there when the data set was prepared" for name in strangers]


def _shard_damage(folder: str, name: str, report: dict[str, Any]) -> str:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return f"{name}: missing"
    if (size := os.path.getsize(path)) != report["bytes"]:
        return f"{name}: {size:,} bytes, not {report['bytes']:,}"
    if damage := _file_damage(folder, name, report["sha256"]):
        return damage
    records = count_records(path)
    return "" if records == report["records"] else f"{name}: {records:,} records, not {report['records']:,}"


def _file_damage(folder: str, name: str, expected: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return f"{name}: missing"
    found = sha256(path)
    return "" if found == expected else f"{name}: SHA-256 {found[:12]}..., not {expected[:12]}...: its bytes changed"
