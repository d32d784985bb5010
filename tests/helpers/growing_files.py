"""Files made to cost more work than their size warrants: a name -> a function from bytes to a file of about so many."""

import itertools
import json
import struct

from tests.helpers.handmade import (
    PROTOCOL,
    call,
    legacy,
    mapping,
    named,
    number,
    numbers,
    safetensors,
    storage,
    tensor,
    text,
    zipped,
)

DTYPE = call("numpy.dtype", text("f4"))
FLOAT32 = DTYPE + b"(" + number(3) + text("<") + b"NNNtb"
ARRAY = b"(" + named("numpy.ndarray") + b"K\x00\x85" + text("b") + b"t"  # arguments of _reconstruct
MASK = (1 << 64) - 1
PRIMES = 11400714785074694791, 14029467366897019727, 2870177450012600261  # of Python's hash of a tuple


def kept(value, place):
    """A value, left in the memo alone."""
    return value + b"q" + bytes([place]) + b"0"


def times(opcodes, size):
    """Opcodes again and again, half of `size` bytes."""
    return opcodes * (size // 2 // len(opcodes))


def numbered(size, value):
    """A dictionary with `value` under as many names as make `size` bytes."""
    return b"}(" + b"".join(text(f"{i:06x}") + value for i in range(size // (len(value) + 11))) + b"u"


def nones(size):
    """A tuple of half of `size` bytes."""
    return b"(" + b"N" * (size // 2) + b"t"


def colliding_pairs():
    """Integers that have one hash as tuples: the second is what the first leaves to be added to it."""
    first, second, fifth = PRIMES
    inverse = pow(second, -1, 1 << 64)
    for a in itertools.count(100):
        lane = (fifth + a * second) & MASK
        after = ((lane << 31 | lane >> 33) & MASK) * first & MASK
        b = (12345 - after) * inverse & MASK
        b = b - (1 << 64) if b >> 63 else b
        if abs(b) < (1 << 61) - 1:
            yield a, b


def tuple_keys(size):
    pairs = itertools.islice(colliding_pairs(), size // 17)
    return zipped(b"}(" + b"".join(number(a) + number(b) + b"\x86N" for a, b in pairs) + b"u")


def one_tuple_as_a_key(size):
    return zipped(kept(nones(size), 0) + b"}(" + times(b"h\x00N", size) + b"u")


def holds_itself(size):
    names = (
        *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "student"),
        *("model_ema", "ema", "teacher"),
    )
    inside = b"".join(text(name) + b"h\x00" for name in names)
    return zipped(b"}q\x00(" + inside + b"".join(number(i) + b"N" for i in range(size // 6)) + b"u")


def many_axes(size):
    count = size // 15
    return zipped(mapping(w=tensor(size=numbers([1 << 61] * count), stride=numbers([0] * count))))


def many_axes_in_safetensors(size):
    header = {"a": {"dtype": "F32", "shape": [1] * (size // 3), "data_offsets": [0, 4]}}
    return safetensors(json.dumps(header), bytes(4))


def overlapping_extras(size):
    """Headers whose extra fields reach over all headers behind them, into thousands of empty fields that they share."""
    local, central, count = b"", b"", 0
    while len(local) + len(central) < size:
        for i in range(500):
            name, behind = f"{count:06d}".encode(), 40 * (499 - i)
            lengths = struct.pack("<2H", 6, 4 + behind + 40_000)
            entry = struct.pack("<4s6H3L2H", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 6, 0)
            central += entry + struct.pack("<3H2L", 0, 0, 0, 0, len(local)) + name
            local += struct.pack("<4s5H3L", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0) + lengths + name
            local += struct.pack("<2H", 2, behind)
            count += 1
        local += bytes(40_000)
    return local + central + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(central), len(local), 0)


def arguments(name):
    """A tuple of arguments, given again and again to what is called `name`."""
    return lambda size: zipped(
        mapping(args=kept(named(name), 1) + kept(nones(size), 0) + b"(" + times(b"h\x01h\x00R", size) + b"t")
    )


def a_storage_of_a_long_key(size):
    key = "0" * min(size // 2, 60_000)
    value = kept(storage(key=key)[:-1], 0) + b"(" + times(b"h\x00Q", size) + b"t"
    return zipped(value, {f"data/{key}": bytes(24)})


def a_long_name(size):
    name = kept(text("a" * min(size // 4, 4000)), 0)
    return zipped(mapping(args=name + b"(" + times(b"h\x00h\x00\x93", size) + b"t"))


def sets_under_long_names(size):
    path = (text("b" * 500) + b"}") * 5
    leaves = numbered(size, mapping(w=b"h\x01"))[1:]
    return zipped(kept(tensor(), 1) + b"}" + path + leaves + b"s" * 5)


def lists_of_lists(size):
    doubled = b"](h\x00h\x00eq\x000" * (size // 11)
    return zipped(b"]q\x000" + doubled + mapping(args=named("a.B"), more=b"h\x00"))


def objects_in_objects(size):
    return zipped(kept(named("argparse.Namespace"), 1) + b"N" + b"q\x000h\x01)Rh\x00b" * (size // 10))


def arrays_of_one_long_dtype(size):
    dtype = DTYPE + b"(" + number(3) + text("<") + b"NNN" + b"N" * (size // 2) + b"tb"
    made = kept(dtype, 0) + kept(named("numpy.core.multiarray._reconstruct"), 1) + kept(ARRAY, 2)
    return zipped(made + numbered(size // 2, b"h\x01h\x02R(K\x01K\x01\x85h\x00\x89C\x04abcdtb"))


def arrays_of_one_text(size):
    made = kept(call("_codecs.encode", text("\u00e9" * 2000), text("latin1")), 3)
    made += kept(FLOAT32, 0) + kept(named("numpy.core.multiarray._reconstruct"), 1) + kept(ARRAY, 2)
    return zipped(made + numbered(size, b"h\x01h\x02R(K\x01M\xf4\x01\x85h\x00\x89h\x03tb"))


def negative_tensors(size):
    """Copies of one large storage, by the bit of each tensor that says that it is negative."""
    made = kept(storage(size // 8), 0) + kept(named("torch._utils._rebuild_tensor_v2"), 1)
    made += kept(b"}" + text("neg") + b"\x88s", 2) + kept(numbers([size // 8]) + numbers([1]) + b"\x86", 3)
    one = b"h\x01(h\x00K\x00" + numbers([size // 8]) + numbers([1]) + b"\x89}h\x02tR"
    return zipped(made + numbered(size // 2, one), {"data/0": bytes(size // 8 * 4)})


def msgpack(value):
    return b"\x81\xa6params" + value


def many_storages(size):
    keys = [f"{i:x}" for i in range(size // 250)]
    return legacy(
        mapping(**{key: tensor(storage(key=key)) for key in keys}),
        keys=keys, contents=[bytes(24)] * len(keys), counts=[6] * len(keys),
    )  # fmt: skip


GROWING = {
    "tuples of one hash as keys": tuple_keys,
    "one long tuple as a key again and again": one_tuple_as_a_key,
    "a container that holds itself under every name": holds_itself,
    "a tensor of many axes": many_axes,
    "safetensors of many axes": many_axes_in_safetensors,
    "extra fields of a zip over each other": overlapping_extras,
    "many arguments of a harmless name": arguments("argparse.Namespace"),
    "many arguments of an unknown name": arguments("a.B"),
    "a storage of a long key": a_storage_of_a_long_key,
    "a global of a long name": a_long_name,
    "sets of weights under long names": sets_under_long_names,
    "lists of lists beside a strange object": lists_of_lists,
    "objects in objects": objects_in_objects,
    "arrays of one long dtype": arrays_of_one_long_dtype,
    "arrays of one encoded text": arrays_of_one_text,
    "negative tensors of one storage": negative_tensors,
    "a line without an end": lambda size: PROTOCOL + b"V" + b"a" * size,
    "many short lines": lambda size: b"(d(" + b"I1\n0" * (size // 4) + b"t.",
    "msgpack of empty maps": lambda size: msgpack(b"\xdd" + struct.pack(">L", size) + b"\x80" * size),
    "msgpack of lists said to be long": lambda size: msgpack(b"\xdd\x7f\xff\xff\xff" * (size // 5)),
    "a legacy file of many storages": many_storages,
}
