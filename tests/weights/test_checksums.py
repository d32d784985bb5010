"""Folding with NumPy gives what zlib gives."""

import zlib

import numpy as np
import pytest

from resnet_jax.weights.files import checksums

WORTH, BLOCK = checksums.WORTH_FOLDING, checksums.BLOCK
# Around the size from which it folds, no multiple of a word, whole blocks, and as many as fill the room.
SIZES = [0, 1, *range(WORTH - 2, WORTH + 9), 8 * (20 * BLOCK + checksums.LAGS[-1]), 8 * 25 * BLOCK + 5]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_crc_of_zlib(size):
    data = memoryview(np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes())
    assert checksums.crc32(data) == zlib.crc32(data)


@pytest.mark.parametrize("place", [0, 1_000_000, 1_999_999])
def test_every_bit_counts(place):
    data = bytearray(2_000_000)
    before = checksums.crc32(memoryview(data))
    data[place] ^= 16
    assert checksums.crc32(memoryview(data)) != before
    assert checksums.crc32(memoryview(data)) == zlib.crc32(data)


def test_unaligned_contents():
    data = memoryview(np.random.default_rng(0).integers(0, 256, 2_000_003, np.uint8).tobytes())[3:]
    assert checksums.crc32(data) == zlib.crc32(data)
