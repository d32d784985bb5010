"""The members of a zip file where they stand: found, checked against each other, and never copied or inflated.

PyTorch stores its tensors uncompressed, so a member is a slice of the file. Everything that a zip file says twice must
agree (PKWARE's APPNOTE 6.3.10, section 4.3), which leaves no room for the tricks by which one reader is shown other
contents than the next.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.checksums import crc32

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END_64, LOCATOR_64 = b"PK\x06\x06", b"PK\x06\x07"
MAX_MEMBERS = 100_000
# Bytes from which checksums are compared on two threads.
WORTH_THREADS = 4 << 20
# Flags that change nothing for a stored member: compression level, sizes behind the data, UTF-8 names.
ENCRYPTED, SIZES_BEHIND = 0x0001, 0x0008
HARMLESS_FLAGS = 0x0006 | SIZES_BEHIND | 0x0800


class Member(NamedTuple):
    """Where the contents of a member stand in the file, and their checksum."""

    start: int
    size: int
    crc: int


class _Entry(NamedTuple):
    """What the directory says of a member."""

    name: str
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int


def read_directory(data: memoryview) -> dict[str, Member]:
    """Every member by name.

    Args:
      data: the whole file.

    Raises:
      WeightFileError: it is cut short, its directory contradicts the members, or a member is encrypted or compressed.
    """
    start, end, count = _directory_span(data)
    entries = list(_entries(data, start, end, count))
    names: dict[str, str] = {}
    for entry in entries:
        name = entry.name.lower()  # by which PyTorch looks for a member, so that it could take either of two
        if name in names:
            both = f"{names[name][:80]!r} and {entry.name[:80]!r}"
            raise WeightFileError(f"two members of its zip are called alike, {both}: it is no file of PyTorch's.")
        names[name] = entry.name
    _refuse_overlaps(data, entries)
    return {entry.name: _member(data, entry, start) for entry in entries}


def check_sums(data: memoryview, members: Iterable[Member]) -> None:
    """Compares the contents with their checksums, where it pays on two threads.

    Raises:
      WeightFileError: one differs.
    """
    # The largest first, so that neither thread ends up with it alone.
    ordered = sorted(set(members), key=lambda member: -member.size)
    small = sum(member.size for member in ordered) < WORTH_THREADS
    with contextlib.nullcontext() if small else ThreadPoolExecutor(2) as pool:
        spans = (data[member.start :][: member.size] for member in ordered)
        sums = pool.map(crc32, spans) if pool else map(crc32, spans)
        wrong = sum(found != member.crc for found, member in zip(sums, ordered, strict=True))
    if wrong:
        raise WeightFileError(
            f"the checksums of {wrong} of {len(ordered)} tensors and tables in it do not agree with their bytes: it is "
            "damaged; download it again."
        )


def _unpack(layout: str, data: memoryview, position: int) -> tuple[Any, ...]:
    if position < 0 or position + struct.calcsize(layout) > len(data):
        raise WeightFileError("its zip directory points outside of the file: it is damaged or cut short.")
    return struct.unpack_from(layout, data, position)


def _directory_span(data: memoryview) -> tuple[int, int, int]:
    """Where the directory begins and ends, and its number of entries."""
    tail = bytes(data[-65557:])
    found = tail.rfind(END)
    if found < 0:
        raise WeightFileError("its zip directory is missing: it is cut short; download it again.")
    end = len(data) - len(tail) + found
    _, disk, first_disk, *narrow, comment = _unpack("<4s4H2LH", data, end)
    here, count, size, start = narrow
    if disk or first_disk or here != count or end + 22 + comment != len(data):
        raise WeightFileError("the end of its zip directory contradicts the file: it is damaged.")
    if bytes(data[max(end - 20, 0) : max(end - 16, 0)]) == LOCATOR_64:
        _, disk, position, disks = _unpack("<4sLQL", data, end - 20)
        signature, length, _, _, disk, first_disk, here, count, size, start = _unpack("<4sQ2H2L4Q", data, position)
        # What fits the fields of 16 and 32 bits stands in them, too.
        fits = zip(narrow, (here, count, size, start), (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        if (
            signature != END_64
            or not all(short in (value, full) for short, value, full in fits)
            or disk
            or first_disk
            or disks > 1
            or here != count
            or position + 12 + length != end - 20
        ):
            raise WeightFileError("the 64-bit end of its zip directory contradicts the file: it is damaged.")
        end = position
    if start + size != end:
        raise WeightFileError("its zip directory is not where the file says it is: it is damaged or was joined on.")
    if count > MAX_MEMBERS:
        raise WeightFileError(f"its zip has {count} members, more than the {MAX_MEMBERS} that are read.")
    return start, end, count


def _entries(data: memoryview, position: int, end: int, count: int) -> Iterator[_Entry]:
    for _ in range(count):
        fields = _unpack("<4s6H3L5H2L", data, position)
        signature, _, _, flags, method, _, _, crc, stored, size, name_size, extra_size, comment_size = fields[:13]
        header, behind = fields[16], position + 46
        position = behind + name_size + extra_size + comment_size
        if signature != CENTRAL or position > end or fields[13]:  # that is its disk
            raise WeightFileError("an entry of its zip directory is damaged.")
        extra = data[behind + name_size : behind + name_size + extra_size]
        (size, stored, header), rest = _wide(extra, size, stored, header)
        if rest:
            raise WeightFileError("an entry of its zip directory has two values for a number: it is damaged.")
        yield _Entry(_name(data[behind : behind + name_size]), flags, method, crc, stored, size, header)
    if position != end:
        raise WeightFileError("its zip directory has fewer entries than bytes for them: it is damaged.")


def _wide(extra: memoryview, *values: int) -> tuple[list[int], memoryview]:
    """The values, where one does not fit 32 bits from the entry's 64-bit field, and what is left of that field."""
    fields, position = [], 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4 + size
        if tag == 1:
            fields.append(extra[position - size : position])
    if len(fields) > 1 or position > len(extra):
        raise WeightFileError("a member of its zip has extra fields that lie over each other: it is damaged.")
    wide = fields[0] if fields else memoryview(b"")
    found = []
    for value in values:
        if value == 0xFFFFFFFF:
            value, wide = _unpack("<Q", wide, 0)[0], wide[8:]
        found.append(value)
    return found, wide


def _refuse_overlaps(data: memoryview, entries: Iterable[_Entry]) -> None:
    """Members must lie one behind the other with their headers, so that no byte is looked at for two of them.

    Raises:
      WeightFileError: one lies over another one.
    """
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < position:
            raise WeightFileError(f"the member {entry.name[:80]!r} of its zip lies over another one: it is damaged.")
        name_size, extra_size = _unpack("<2H", data, entry.header + 26)
        position = entry.header + 30 + name_size + extra_size + entry.stored


def _member(data: memoryview, entry: _Entry, directory: int) -> Member:
    """The member of an entry, which its own header must confirm."""
    said = repr(entry.name[:80])
    signature, _, flags, method, _, _, crc, stored, size, name_size, extra_size = _unpack(
        "<4s5H3L2H", data, entry.header
    )
    name = entry.header + 30
    if (flags | entry.flags) & ENCRYPTED:
        raise WeightFileError(f"the member {said} of its zip is encrypted.")
    if entry.method or method or entry.size != entry.stored:
        raise WeightFileError(f"the member {said} of its zip is compressed: PyTorch stores its tensors as they are.")
    extra = data[name + name_size : name + name_size + extra_size]
    same = flags & SIZES_BEHIND or (crc, *_wide(extra, size, stored)[0]) == (entry.crc, entry.size, entry.stored)
    if (
        signature != LOCAL
        or flags != entry.flags
        or flags & ~HARMLESS_FLAGS
        or not same
        or _name(data[name : name + name_size]) != entry.name
    ):
        raise WeightFileError(f"its zip directory and the header of the member {said} contradict: it is damaged.")
    start = name + name_size + extra_size
    if start + entry.size > directory:
        raise WeightFileError(f"the member {said} of its zip reaches beyond the contents: it is damaged.")
    return Member(start, entry.size, entry.crc)


def _name(data: memoryview) -> str:
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightFileError("a member of its zip has a name that is not UTF-8: it is damaged.") from error
