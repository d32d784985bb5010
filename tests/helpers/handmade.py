"""Files of PyTorch's format written by hand, opcode by opcode, so that a test can put anything into them."""

import io
import struct
import zipfile

PROTOCOL = b"\x80\x02"


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def named(full):
    """A global, `module.name`."""
    module, _, name = full.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(full, *arguments):
    """The global called with arguments that are pickled already."""
    return named(full) + b"(" + b"".join(arguments) + b"tR"


def storage(count=6, key="0", kind="torch.FloatStorage", location="cpu", view=b""):
    return b"(" + text("storage") + named(kind) + text(key) + text(location) + number(count) + view + b"tQ"


def tensor(store=None, offset=0, size=(2, 3), stride=(3, 1), function="torch._utils._rebuild_tensor_v2"):
    store = storage() if store is None else store
    size, stride = (x if isinstance(x, bytes) else numbers(x) for x in (size, stride))
    return call(function, store, number(offset), size, stride, b"\x89", call("collections.OrderedDict"))


def mapping(**values):
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def pickled(value):
    return PROTOCOL + value + b"."


DATA = {"data/0": struct.pack("<6f", *range(6))}


def zipped(value, members=DATA, compression=zipfile.ZIP_STORED, folder="archive/"):
    """What torch.save writes, holding `value`, an opcode sequence."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in {"data.pkl": pickled(value), "byteorder": b"little", **members, "version": b"3\n"}.items():
            archive.writestr(folder + name, content)
    return buffer.getvalue()


MAGIC = PROTOCOL + b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."


def legacy(value, keys=("0",), contents=(DATA["data/0"],), counts=(6,), little=b"\x88", version=1001, magic=MAGIC):
    """What torch.save wrote before PyTorch 1.6."""
    system = pickled(b"}" + text("little_endian") + little + b"s")
    listed = pickled(b"](" + b"".join(map(text, keys)) + b"e")
    stored = b"".join(struct.pack("<q", count) + content for count, content in zip(counts, contents, strict=True))
    return magic + pickled(number(version)) + system + pickled(value) + listed + stored


def safetensors(header, content=b""):
    header = header if isinstance(header, bytes) else header.encode()
    return len(header).to_bytes(8, "little") + header + content
