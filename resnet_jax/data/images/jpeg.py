"""A JPEG's bytes, read without decoding: its size, whether all of it is there, and a copy that ends below a window.

Of an ordinary JPEG (Huffman-coded, sequential, in one scan, without restart markers) the rows below a window need not
be decoded: the height in the header is lowered, and a decoder stops there. The rows that remain are the very same.
Reference: ITU-T T.81, annex B.
"""

import re
import struct
from typing import NamedTuple

import numpy as np

from resnet_jax.data.images.pillow import UnreadableImage

START, END = b"\xff\xd8", b"\xff\xd9"
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
SCAN = 0xDA
SEGMENT = struct.Struct(">BBH")  # 0xff, the marker, and how many bytes follow it, these two included
FRAME = struct.Struct(">BHHB")  # bits, height, width, channels; three bytes for each channel follow
# Where pixels are, 0xff is followed by 0 (a byte of 255), by 0xd0..0xd7 (a restart) or by itself (filling).
STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# In place of the end marker: libjpeg reads ahead by up to 8 bytes, and waits for more if there are none. With the
# marker, it would make up whatever pixels are missing before it, or complain, on stderr, of rows that are left over.
PADDING = bytes(16)


class Header(NamedTuple):
    """What comes before the pixels.

    Attributes:
      height: pixels.
      width: pixels.
      channels: 1 (grey) or 3 (colour).
      sampling: rows of pixels to a row of the coarsest channel: 2 for 4:2:0, 1 for 4:4:4 and 4:2:2.
      height_at: offset of the two bytes of the height.
      pixels_at: offset of the first byte of pixels.
      one_scan: sequential, with all channels in the one scan.
    """

    height: int
    width: int
    channels: int
    sampling: int
    height_at: int
    pixels_at: int
    one_scan: bool


def read_header(data: bytes) -> Header | None:
    """The header of a grey or colour JPEG of 8 bits; None for CMYK, rarer kinds, damaged headers and other formats."""
    frame, frame_at = b"", 0
    kind, position, last = 0, 2, len(data) - SEGMENT.size
    while kind != SCAN:
        if data[:2] != START or position > last:
            return None
        filling, kind, length = SEGMENT.unpack_from(data, position)
        if filling != 0xFF or kind in OTHER_FRAMES:
            return None
        if kind == 0xFF:  # filling, too
            position += 1
            continue
        body, position = position + 4, position + 2 + length
        if kind in SEQUENTIAL + PROGRESSIVE:
            frame, frame_at, sequential = data[body:position], body, kind in SEQUENTIAL
    if len(frame) < 9 or position >= len(data):
        return None
    bits, height, width, channels = FRAME.unpack_from(frame)
    if bits != 8 or not height or not width or channels not in (1, 3) or len(frame) != 6 + 3 * channels:
        return None
    sampling = max([factors & 15 for factors in frame[7::3]])
    one_scan = sequential and data[body] == channels
    return Header(height, width, channels, sampling, frame_at + 1, position, one_scan)


def rows_needed(header: Header, bottom: int) -> int:
    """Rows to decode so that those above `bottom` are as in the whole image: whole blocks, and the channels' next row.

    The coarser channels are smoothed towards their next row, so that has to be there too.
    """
    block = 8 * header.sampling
    return min(-(-(bottom + header.sampling) // block) * block, header.height)


def cut(data: bytes, header: Header, bottom: int) -> tuple[bytes, int]:
    """A copy of a whole JPEG for a decoder that needs the rows above `bottom` alone, and the height of that copy.

    Args:
      data: the whole file.
      header: of `data`.
      bottom: rows, 1..height.

    Raises:
      UnreadableImage: the end is missing, or something that is no pixels lies among them.
    """
    start, end = header.pixels_at, data.rfind(END, header.pixels_at)
    if end < 0:
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image (the JPEG's end is missing)")
    if not header.one_scan:  # each scan holds a part of every pixel: nothing can be left out
        return data, header.height
    rows = rows_needed(header, bottom) if header.sampling in (1, 2) else header.height
    if _has_markers(data, start, end + 1):
        rows, end = header.height, _end_of_scan(data, start)
    at = header.height_at
    return b"".join((data[:at], rows.to_bytes(2, "big"), memoryview(data)[at + 2 : end], PADDING)), rows


def _has_markers(data: bytes, start: int, end: int) -> bool:
    """Whether an 0xff is followed by anything but 0. In NumPy, as `bytes.find` and `re` take many times as long."""
    pixels = np.frombuffer(data, np.uint8)[start:end]
    found = (pixels[:-1] == 0xFF).view(np.uint8)
    np.minimum(found, pixels[1:], out=found)
    return bool(np.maximum.reduce(found, initial=0))


def _end_of_scan(data: bytes, start: int) -> int:
    """Where the pixels end that have restart markers in them, filling after them, or more images behind them."""
    end = data.find(END, start)
    end = start + len(data[start:end].rstrip(b"\xff"))
    if STRAY_MARKER.search(data, start, end):
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image (a marker lies among the JPEG's pixels)")
    return end
