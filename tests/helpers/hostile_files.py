"""The table of files made to harm, written by hand: a name -> the bytes, and a pattern that the message must match."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

from handmade import (
    DATA,
    MAGIC,
    call,
    legacy,
    mapping,
    named,
    number,
    pickled,
    safetensors,
    storage,
    tensor,
    text,
    zipped,
)

GOOD = mapping(w=tensor())
TOUCH = text("touch harmed")


def patched(data, find, replace, count=1):
    """`data` with bytes of its zip structures changed."""
    assert find in data
    return data.replace(find, replace, count)


def central(data, offset, layout, value, entry=0):
    """`data` with a field of the n-th entry of the zip directory changed."""
    place = -1
    for _ in range(entry + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return data[: place + offset] + struct.pack(layout, value) + data[place + offset + struct.calcsize(layout) :]


def end(data, offset, layout, *values):
    """`data` with fields of the end of the zip directory changed."""
    place = data.rindex(b"PK\x05\x06") + offset
    return data[:place] + struct.pack(layout, *values) + data[place + struct.calcsize(layout) :]


def extra(field):
    """A zip whose last entry in the directory has an extra field."""
    data = zipped(GOOD)
    place = data.rindex(b"PK\x05\x06")
    last = data.rindex(b"PK\x01\x02")
    size = struct.unpack_from("<L", data, place + 12)[0]
    data = data[:place] + field + data[place:]
    data = data[: last + 30] + struct.pack("<H", len(field)) + data[last + 32 :]
    return end(data, 12, "<L", size + len(field))


def local(data, offset, layout, value):
    """`data` with a field of its first local header changed."""
    return data[:offset] + struct.pack(layout, value) + data[offset + struct.calcsize(layout) :]


def with_pickles(*pickles):
    """A zip of several members that have the name of the pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, content in enumerate(pickles):
            archive.writestr(f"archive/data.{i}kl", content)
        archive.writestr("archive/data/0", DATA["data/0"])
    data = buffer.getvalue()
    for i in range(len(pickles)):
        data = data.replace(f"archive/data.{i}kl".encode(), b"archive/data.pkl")
    return data


def overlapping():
    """A member that stands inside another one, header and all, as in zip bombs: everything else agrees."""
    plain = zipped(GOOD, DATA | {"data/1": DATA["data/0"]})
    inner = plain.index(b"PK\x03\x04", plain.index(DATA["data/0"]))
    inside = plain[inner : plain.index(b"PK\x03\x04", inner + 1)]
    data = zipped(GOOD, {"data/0": inside, "data/1": DATA["data/0"]})
    return central(data, 42, "<L", data.index(inside), entry=3)


def zip64_bomb():
    data = zipped(GOOD)
    place = data.rindex(b"PK\x05\x06")
    return data[:place] + b"PK\x06\x07" + struct.pack("<LQL", 0, 1 << 62, 1) + data[place:]


def wide_end(signature=b"PK\x06\x06", length=44, disk=0, disks=1, here=None, count=None):
    """A zip whose directory has the end of 64 bits, as writers make it from 65,536 members on."""
    data = zipped(GOOD)
    place = data.rindex(b"PK\x05\x06")
    there, size, start = struct.unpack_from("<H2L", data, place + 10)
    here, count = (there if given is None else given for given in (here, count))
    wide = struct.pack("<4sQ2H2L4Q", signature, length, 45, 45, disk, 0, here, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, place, disks)
    return data[:place] + wide + locator + end(end(data, 8, "<H", 0xFFFF), 10, "<H", 0xFFFF)[place:]


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            payload = pickled(call("os.system", TOUCH))
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def nested_tuple(depth):
    return b")" + b"\x85" * depth


def collisions(count):
    """Integers that all have one hash."""
    return b"}(" + b"".join(number((1 << 61) * 8 * i - 8 * i) + b"N" for i in range(100, 100 + count)) + b"u"


def plain(value):
    """What pickle.dump writes."""
    return pickled(value)


def flax_array(shape, dtype=b"\xa7float32", contents=b"\xc4\x04" + bytes(4), more=b""):
    """An array in Flax's msgpack."""
    inner = b"\x93" + shape + dtype + contents + more
    return b"\xc7" + bytes([len(inner)]) + b"\x01" + inner


class Eval:
    def __reduce__(self):
        return eval, ("__import__('os').system('touch harmed')",)


# Functions that attacks on weights-only loaders and on scanners of pickles have used.
GADGETS = (
    "os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec", "__builtin__.eval", "builtins.getattr",
    "builtins.__import__", "builtins.compile", "builtins.open", "builtins.breakpoint", "subprocess.Popen",
    "subprocess.check_output", "runpy._run_code", "importlib.import_module", "pip.main", "webbrowser.open",
    "timeit.timeit", "code.InteractiveInterpreter.runcode", "operator.attrgetter", "operator.methodcaller",
    "functools.partial", "_pickle.loads", "pickle.loads", "marshal.loads", "types.FunctionType", "ctypes.CDLL",
    "socket.socket", "shutil.rmtree", "pty.spawn", "bdb.Bdb.run", "cProfile.run", "doctest.debug_script", "pdb.run",
    "idlelib.pyshell.ModifiedInterpreter.runcommand", "lib2to3.pgen2.grammar.Grammar.loads",
    "asyncio.create_subprocess_shell",
    "numpy.testing._private.utils.runstring", "numpy.load", "torch.load", "torch.hub.load", "torch.jit.load",
    "torch.jit.unsupported_tensor_ops.execWrapper", "torch.serialization.load",
    "torch.utils._config_module.load_config",
    "torch.utils.collect_env.run", "torch.storage._load_from_bytes", "torch.distributed.rpc.internal._run_function",
    "torch.fx.graph_module._exec_with_source", "copyreg.__newobj__", "collections.OrderedDict.__init__.__globals__",
    "transformers.AutoModel.from_pretrained", "joblib.load", "dill.loads", "cloudpickle.loads",
)  # fmt: skip

HOSTILE = {
    # pickles that call
    **{f"zip calls {name}": (zipped(call(name, TOUCH)), f"names '{name}'") for name in GADGETS},
    "legacy calls os.system": (legacy(call("os.system", TOUCH)), "names 'os.system'"),
    "legacy calls in its version": (MAGIC + pickled(call("os.system", TOUCH)), "names 'os.system'"),
    "legacy calls before its magic": (pickled(call("os.system", TOUCH)), "names 'os.system'"),
    "legacy calls in its list of storages": (
        legacy(GOOD).replace(pickled(b"](" + text("0") + b"e"), pickled(call("os.system", TOUCH))),
        "names 'os.system'",
    ),
    "legacy calls in its system": (
        legacy(GOOD, little=call("os.system", TOUCH)),
        "names 'os.system'",
    ),
    "python's own pickle": (pickle.dumps({"w": Eval()}, protocol=2), "names '__builtin__.eval'"),
    "protocol 4": (pickle.dumps({"w": Eval()}, protocol=4), "names 'builtins.eval'"),
    "calls, then breaks off": (zipped(call("os.system", TOUCH) + b"\xff"), "opcode 0xff"),
    "newobj": (zipped(named("subprocess.Popen") + b"(" + TOUCH + b"t\x81"), "names 'subprocess.Popen'"),
    "newobj_ex": (zipped(named("subprocess.Popen") + b"(" + TOUCH + b"t}\x92"), "names 'subprocess.Popen'"),
    "inst": (zipped(b"(" + TOUCH + b"ios\nsystem\n"), "opcode 0x69"),
    "obj": (zipped(b"(" + named("os.system") + TOUCH + b"o"), "opcode 0x6f"),
    "ext1": (zipped(b"\x82\x01"), "opcode 0x82"),
    "persistent id as a line": (zipped(b"Pharm\n"), "opcode 0x50"),
    "calls a harmless object": (zipped(call("argparse.Namespace") + b")R"), "calls a 'argparse.Namespace'"),
    "calls a storage class": (zipped(call("torch.FloatStorage")), "calls a StorageType"),
    "calls a dtype": (zipped(call("torch.float32")), "calls a StorageType"),
    "calls with no tuple": (zipped(named("collections.OrderedDict") + b"}R"), "calls a 'collections.OrderedDict'"),
    "type_v2 of a class": (
        zipped(call("torch._tensor._rebuild_from_type_v2", named("builtins.dict"), named("torch.Tensor"), b")", b"}")),
        "in a way that torch.save does not",
    ),
    "type_v2 of itself": (
        zipped(
            call(
                "torch._tensor._rebuild_from_type_v2",
                named("torch._tensor._rebuild_from_type_v2"), named("torch.Tensor"), b")", b"}",
            )
        ),
        "in a way that torch.save does not",
    ),
    "a dotted way to globals": (zipped(text("collections") + text("OrderedDict.pop") + b"\x93"), "OrderedDict.pop"),
    "a global named by a list": (zipped(b"]" + text("system") + b"\x93"), "is no text"),
    "a whole model": (zipped(named("torchvision.models.resnet.ResNet") + b")\x81}b"), "a whole model is pickled"),
    "a whole model, in the legacy way": (legacy(b"(" + text("module") + text("x") + b"tQ"), "a whole model is pickled"),
    # CVE-2025-32434: the tar format, which PyTorch read with an unpickler that was not restricted
    "tar, as in CVE-2025-32434": (tar(), "a tar archive"),
    # CVE-2026-24747: opcodes on objects that are not what they say, and storages of another size
    "setitem on a tensor, as in CVE-2026-24747": (zipped(tensor() + text("a") + b"Ns"), "items into a Tensor"),
    "setitem on a storage": (zipped(storage() + text("a") + b"Ns"), "items into a Storage"),
    "setitems on a list": (zipped(b"](" + text("a") + b"Nu"), "items into a list"),
    "setitem on a harmless object": (zipped(call("argparse.Namespace") + text("a") + b"Ns"), "'argparse.Namespace'"),
    "setitem on a class": (zipped(named("torch.FloatStorage") + text("a") + b"Ns"), "items into a StorageType"),
    "append to a dictionary": (zipped(b"}Na"), "appends to a dict"),
    "append to a tensor": (zipped(tensor() + b"(NNe"), "appends to a Tensor"),
    "build on a tensor": (zipped(tensor() + b"}b"), "sets attributes of a Tensor"),
    "build on a name": (zipped(named("collections.OrderedDict") + b"}b"), "sets attributes of a 'collections.Ord"),
    "storage larger than its member, as in CVE-2026-24747": (
        zipped(mapping(w=tensor(storage(7)))), "said to have 28 bytes, the file has 24",
    ),
    "storage smaller than its member": (zipped(mapping(w=tensor(storage(5)))), "said to have 20 bytes"),
    "storage of wider elements": (zipped(mapping(w=tensor(storage(6, kind="torch.DoubleStorage")))), "have 48 bytes"),
    "storage that is not there": (zipped(mapping(w=tensor(storage(key="9")))), "no data for storage '9'"),
    "storage in another folder": (zipped(mapping(w=tensor(storage(key="../../x")))), "no data for storage"),
    "storage of a negative count": (zipped(mapping(w=tensor(storage(-6)))), "that none can have"),
    "storage of an overflowing count": (zipped(mapping(w=tensor(storage(1 << 63)))), "that none can have"),
    "storage that is no storage": (zipped(mapping(w=tensor(b"]"))), "something that is no storage"),
    "persistent id of no kind": (zipped(text("0") + b"Q"), "names a storage in a way"),
    # tensors that lie
    "negative size": (zipped(mapping(w=tensor(size=(-2, -3)))), "none can have"),
    "negative stride": (zipped(mapping(w=tensor(stride=(-3, 1)))), "none can have"),
    "negative offset": (zipped(mapping(w=tensor(offset=-1))), "none can have"),
    "offset beyond the storage": (zipped(mapping(w=tensor(offset=1))), "reaches beyond its storage"),
    "stride beyond the storage": (zipped(mapping(w=tensor(stride=(4, 1)))), "reaches beyond its storage"),
    "size that overflows": (zipped(mapping(w=tensor(size=(1 << 61, 8)))), "reaches beyond its storage"),
    "stride that overflows": (zipped(mapping(w=tensor(stride=(1 << 61, 8)))), "reaches beyond its storage"),
    "size of 600 digits": (zipped(mapping(w=tensor(size=(1 << 2000, 1)))), "none can have"),
    "larger than memory by strides of 0": (
        zipped(mapping(w=tensor(size=(1 << 31, 1 << 30), stride=(0, 0)))), "larger than the whole file",
    ),
    "size that is text": (zipped(mapping(w=tensor(size=b"(" + text("2") + b"K\x03t"))), "none can have"),
    "size that is a bool": (zipped(mapping(w=tensor(size=b"\x88\x88\x86"))), "none can have"),
    "size that is a list": (zipped(mapping(w=tensor(size=b"]"))), "none can have"),
    "more sizes than strides": (zipped(mapping(w=tensor(size=(2, 3, 1)))), "none can have"),
    "a thousand axes": (zipped(mapping(w=tensor(size=[1] * 1000, stride=[1] * 1000))), "reaches beyond"),
    "parameter of text": (zipped(mapping(w=call("torch._utils._rebuild_parameter", text("x")))), "no tensor"),
    "tensor of nothing": (zipped(mapping(w=call("torch._utils._rebuild_tensor_v2"))), "no storage"),
    "quantised": (zipped(mapping(w=tensor(storage(6, kind="torch.QInt32Storage")))), "only dense tensors"),
    "sparse": (zipped(mapping(w=call("torch._utils._rebuild_sparse_tensor", b"N"))), "only dense tensors"),
    # bombs
    "a million nested lists": (zipped(b"]" * 1_000_000 + b"a" * 999_999), "much more memory|holds a list"),
    "nested tuples as a key": (zipped(b"}" + nested_tuple(100_000) + b"Ns"), "holds a dictionary with the keys"),
    "a list as a key": (zipped(b"}]Ns"), "whose key is a list"),
    "colliding keys": (zipped(collisions(10_000)), "whose key is a int"),
    "a dictionary for each byte": (zipped(b"(" + b"}" * 4_000_000 + b"t"), "much more memory"),
    "a list for each byte": (zipped(b"(" + b"]" * 4_000_000 + b"t"), "much more memory"),
    "a memo entry for each byte": (zipped(b"N" + b"\x94" * 4_000_000), "much more memory"),
    "a mark for each byte": (zipped(b"(" * 4_000_000), "much more memory|ends too early"),
    "a memo index of 2**32 - 1": (zipped(b"]r\xff\xff\xff\xff"), "holds a list"),
    "a list copied again and again": (
        zipped(
            named("collections.OrderedDict") + b"q\x00](" + b"](NNe" * 20_000 + b"eq\x01" + b"h\x00h\x01\x85R" * 20_000
        ),
        "much more memory",
    ),
    "a billion laughs": (zipped(b"]q\x000" + b"](h\x00h\x00eq\x000" * 64 + b"h\x00"), "holds a list"),
    "a dictionary that holds itself": (zipped(b"}q\x00" + text("state_dict") + b"h\x00s"), "holds a dictionary"),
    "wide text": (
        zipped(b"(" + text("a" * 500_000 + "\U0001f600") * 40 + b"t"), "much more memory|holds a tuple",
    ),
    "text of 4 GiB": (zipped(b"X\xff\xff\xff\xff"), "cut short"),
    "text of 2**63 bytes": (zipped(b"\x8d" + b"\xff" * 8), "cut short"),
    "bytes of negative length": (zipped(b"T\xff\xff\xff\xff"), "negative length"),
    "an integer of 2 GiB": (zipped(b"\x8b\xff\xff\xff\x7f"), "opcode 0x8b"),
    # pickles that are broken
    "no stop": (with_pickles(pickled(GOOD)[:-1]), "cut short"),
    "pop from nothing": (zipped(b"0"), "where there is none"),
    "pop from below a mark": (zipped(b"N(0"), "where there is none"),
    "no mark": (zipped(b"Nt"), "looks for a mark"),
    "memo without an entry": (zipped(b"h\x07"), "has not kept"),
    "values left over": (zipped(b"NN"), "ends too early"),
    "text that is not UTF-8": (zipped(b"X\x01\x00\x00\x00\xff"), "not UTF-8"),
    "a name without end": (zipped(b"c" + b"a" * 1000), "a line without an end"),
    # zips that lie
    "checksum of a tensor": (patched(zipped(GOOD), DATA["data/0"], bytes(24)), "checksums of 1 of 1"),
    "checksum of the pickle": (patched(zipped(GOOD), text("w"), text("v")), "checksums of 1 of 1"),
    "two pickles of one name": (with_pickles(pickled(GOOD), pickled(call("os.system", TOUCH))), "two members"),
    "another name in the directory": (
        patched(zipped(GOOD), b"archive/data.pkl", b"archive/dota.pkl"), "contradict|members data.pkl",
    ),
    "encrypted, says the directory": (central(zipped(GOOD), 8, "<H", 1), "is encrypted"),
    "encrypted, says the header": (local(zipped(GOOD), 6, "<H", 1), "is encrypted"),
    "masked header": (local(central(zipped(GOOD), 8, "<H", 0x2000), 6, "<H", 0x2000), "contradict"),
    "a flag in the header only": (local(zipped(GOOD), 6, "<H", 0x0800), "contradict"),
    "compressed": (zipped(GOOD, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "a zip bomb": (
        zipped(GOOD, {"data/0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED), "is compressed",
    ),
    "compressed, says the header": (local(zipped(GOOD), 8, "<H", 8), "is compressed"),
    "another size in the directory": (central(zipped(GOOD), 24, "<L", 1 << 30), "is compressed"),
    "sizes beyond the file": (central(central(zipped(GOOD), 24, "<L", 1 << 30), 20, "<L", 1 << 30), "lies over"),
    "another checksum in the directory": (central(zipped(GOOD), 16, "<L", 1), "contradict"),
    "a header outside of the file": (central(zipped(GOOD), 42, "<L", 1 << 30), "outside of the file"),
    "a header that is none": (central(zipped(GOOD), 42, "<L", 7), "contradict|compressed|encrypted|lies over another"),
    "members over each other": (overlapping(), "lies over another one"),
    "fewer entries than there are": (end(end(zipped(GOOD), 8, "<H", 2), 10, "<H", 2), "fewer entries"),
    "more entries than there are": (end(end(zipped(GOOD), 8, "<H", 9), 10, "<H", 9), "damaged"),
    "counts that contradict": (end(zipped(GOOD), 8, "<H", 9), "contradicts the file"),
    "another disk": (end(zipped(GOOD), 4, "<H", 1), "contradicts the file"),
    "directory elsewhere": (end(zipped(GOOD), 16, "<L", 4), "not where the file says"),
    "a zip joined to another": (zipped(GOOD) + zipped(call("os.system", TOUCH)), "not where the file says"),
    "bytes behind the end": (zipped(GOOD) + b"x", "contradicts the file"),
    "a 64-bit directory outside": (zip64_bomb(), "outside of the file"),
    "a million million members": (wide_end(here=1 << 40, count=1 << 40), "1099511627776 members, more than"),
    "a 64-bit end of another signature": (wide_end(signature=b"PK\x06\x08"), "64-bit end of its zip directory contra"),
    "a 64-bit end of another length": (wide_end(length=43), "64-bit end of its zip directory contradicts"),
    "a 64-bit end of another disk": (wide_end(disk=1), "64-bit end of its zip directory contradicts"),
    "a 64-bit end of two disks": (wide_end(disks=2), "64-bit end of its zip directory contradicts"),
    "64-bit counts that contradict": (wide_end(here=3), "64-bit end of its zip directory contradicts"),
    "an empty zip": (b"PK\x05\x06" + bytes(18), "0 members data.pkl"),
    "a zip of other things": (zipped(GOOD, folder="a/b/"), "0 members data.pkl"),
    "a program of TorchScript": (zipped(GOOD, {"constants.pkl": b"", "code/x.py": b""}), "a TorchScript program"),
    "big-endian": (patched(zipped(GOOD), b"little", b"bigbig", 9), "big-endian"),
    "two pickles whose names differ in case": (
        zipped(GOOD, {"DATA.pkl": pickled(call("os.system", TOUCH)), **DATA}),
        "called alike, 'archive/data.pkl' and 'archive/DATA.pkl'",
    ),
    "two storages whose names differ in case": (zipped(GOOD, {**DATA, "Data/0": bytes(24)}), "called alike"),
    **{
        f"a 64-bit end that contradicts the other one at byte {at}": (
            end(wide_end(), at, layout, *value), "64-bit end of its zip directory contradicts|contradicts the file",
        )
        for at, layout, value in ((8, "<2H", (5, 5)), (12, "<L", (7,)), (16, "<L", (7,)))
    },
    "a 64-bit field twice": (extra(struct.pack("<2HQ", 1, 8, 24) * 2), "lie over each other"),
    "an extra field beyond the others": (extra(struct.pack("<2H", 9, 1)), "lie over each other"),
    "a 64-bit field for what stands in 32 bits": (extra(struct.pack("<2HQ", 1, 8, 99)), "two values for a number"),
    "a member on another disk": (central(zipped(GOOD), 34, "<H", 1), "entry of its zip directory is damaged"),
    "a member without contents over another one": (
        central(zipped(GOOD, {**DATA, "data/1": b""}), 42, "<L", 0, entry=3), "lies over another one",
    ),
    # plain pickles, of every protocol, and objects of other programs
    "a plain pickle that calls under its weights": (
        plain(mapping(w=call("os.system", TOUCH), v=tensor())), "names 'os.system'|torch.save did not write it",
    ),
    "calls in a section without weights": (
        zipped(mapping(hyper_parameters=call("os.system", TOUCH))), "holds a dictionary with the keys",
    ),
    "calls in the weights and in a section": (
        zipped(mapping(args=named("os.system") + b"q\x00", w=tensor(), v=b"h\x00" + b"(" + TOUCH + b"tR")),
        "names 'os.system'",
    ),
    "calls among the weights of a section's name": (
        zipped(mapping(w=tensor(), v=tensor(), args=named("os.system"))), "names 'os.system'",
    ),
    "an unknown name that swallows the weights": (
        zipped(call("a.B") + text("w") + tensor() + b"s(" + text("v") + tensor() + b"u"), "names 'a.B'",
    ),
    "a tensor made of an unknown name": (
        zipped(mapping(w=call("torch._utils._rebuild_tensor_v2", named("a.B"), number(0), b")", b")"))), "names 'a.B'",
    ),
    "a memo index below 0": (b"(dp-1\n.", "a number that none can have"),
    "a memo index of 90 digits": (b"(dp" + b"9" * 90 + b"\n.", "a number that none can have"),
    "a number of 200 digits": (b"(dI" + b"9" * 200 + b"\n.", "a line that is no number"),
    "a number of letters": (b"(dFx\n.", "a line that is no number"),
    "a text without quotes": (b"(dSab\n.", "a text without quotes"),
    "a text of one quote": (b"(dS'\n.", "a text without quotes"),
    "a text with an escape that is none": (b"(dS'\\q'\n.", "an escape that Python does not write"),
    "a text with half an escape": (b"(dV\\u12\n.", "a text that is not RAW-UNICODE-ESCAPE"),
    "a persistent id in a line": (b"(dPharm\n.", "opcode 0x50"),
    "a buffer that is not in the file": (plain(b"\x97"), "opcode 0x97"),
    "a key without a value": (plain(b"}(" + text("a") + b"u"), "a key without a value"),
    "a name of a tensor of 5000 bytes": (plain(mapping(**{"a" * 5000: tensor()})), "a name of 5000 bytes"),
    "a very long global": (plain(text("a" * 400) + text("b" * 400) + b"\x93"), "a very long one"),
    "a storage of a long key": (zipped(mapping(w=tensor(storage(key="0" * 600)))), "names a storage in a way"),
    "two plain pickles": (plain(b"}") * 2, "a pickle with more behind it"),
    # Flax's msgpack that lies
    **{
        f"msgpack {name}": (b"\x81\xa6params" + value, said)
        for name, value, said in (
            ("of an array of another size", flax_array(b"\x92\x02\x03"), "is not as Flax writes it"),
            ("of an array of a negative size", flax_array(b"\x92\xff\xff"), "is not as Flax writes it"),
            ("of an array of many axes", flax_array(b"\xdc\x00\x28" + b"\x01" * 40), "is not as Flax writes it"),
            ("of an array of objects", flax_array(b"\x91\x01", b"\xa6object", b"\xc4\x08" + bytes(8)), "is not as"),
            ("of an array with more in it", flax_array(b"\x91\x01", more=b"\xc0"), "is not as Flax writes it"),
            ("of an array in an array", b"\xc7\x03\x01\x91\x91\xc0", "is not as Flax writes it"),
            ("that is deep", b"\x81\xa1a" * 100_000, "containers in containers"),
            ("of lists that are deep", b"\x91" * 100_000, "containers in containers"),
            ("of a map said to be large", b"\xdf\xff\xff\xff\xff", "is cut short"),
            ("of a list said to be large", b"\xdd\xff\xff\xff\xff", "is cut short"),
            ("of contents said to be large", b"\xc6\xff\xff\xff\xff", "is cut short"),
            ("of a text said to be large", b"\xdb\xff\xff\xff\xff", "longer than any name"),
            ("of a text that is none", b"\xa1\xff", "not UTF-8"),
            ("of a number as a key", b"\x81\x01\x01", "a key that is no text"),
            ("of one key twice", b"\x82\xa1a\x80\xa1a\x80", "stands there twice"),
            ("of a byte that is none", b"\xc1", "the byte 0xc1"),
            ("with more behind it", b"\x80\x80", "does not end like it"),
            ("of a number for the parameters", b"\x03", "'params' is a int"),
            ("of an unknown extension", b"\xd4\x07\x00", "'params' is a NoneType"),
            ("of many empty maps", b"\xdd\x00\x04\x93\xe0" + b"\x80" * 300_000, "much more memory"),
        )
    },
    # legacy files that lie
    "legacy with another magic": (legacy(GOOD, magic=pickled(number(3))), "not one that torch.save wrote"),
    "legacy of another version": (legacy(GOOD, version=7), "of a version"),
    "legacy, big-endian": (legacy(GOOD, little=b"\x89"), "big-endian"),
    "legacy with another count": (legacy(GOOD, counts=(5,)), "has 5 in the file"),
    "legacy with a negative count": (legacy(GOOD, counts=(-1,)), "has -1 in the file"),
    "legacy with storages missing": (legacy(GOOD, keys=(), contents=(), counts=()), "list of storages"),
    "legacy with storages of no tensor": (legacy(b"}"), "list of storages"),
    "legacy with a storage twice": (
        legacy(GOOD, keys=("0", "0"), contents=(b"",) * 2, counts=(0, 0)), "list of storages",
    ),
    "legacy with a storage of two sizes": (
        legacy(mapping(a=tensor(), b=tensor(storage(7)))), "said to have two sizes",
    ),
    "legacy with a view beyond its storage": (
        legacy(mapping(w=tensor(storage(view=b"(" + text("v") + number(3) + number(6) + b"t")))),
        "larger than the storage",
    ),
    "legacy with a storage larger than the file": (
        legacy(mapping(w=tensor(storage(1 << 40))), counts=(1 << 40,)), "its last tensors are missing",
    ),
    # safetensors that lie
    "safetensors with a huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "its header is said to have"),
    "safetensors that overlap": (
        safetensors(
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
            bytes(12),
        ),
        "no whole safetensors",
    ),
    "safetensors beyond the file": (
        safetensors('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(8)), "no whole safetensors",
    ),
    "safetensors with a gap": (
        safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)), "no whole safetensors",
    ),
    "safetensors of another size": (
        safetensors('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}', bytes(8)), "no whole safetensors",
    ),
    "safetensors that overflow": (
        safetensors(
            '{"a":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}',
        ),
        "no whole safetensors|a shape that NumPy does not have",
    ),
    "safetensors of a thousand axes": (
        safetensors(json.dumps({"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}), bytes(4)),
        "a shape that NumPy does not have",
    ),
    "safetensors of deep JSON": (safetensors("{" + '"a":[' * 100_000, b""), "no whole safetensors"),
    # indices that lie
    **{
        f"index that names {place!r}": (json.dumps({"weight_map": {"w": place}}).encode(), "not a file beside it")
        for place in ("../secret.pth", "/etc/passwd", "a\\b", "none.pth", "", "..", ".")
    },
    "index that names itself": (b'{"weight_map": {"w": "x.pth"}}', "is damaged, cut short"),
    "index in UTF-32": ('{"weight_map": {"w": "x"}}'.encode("utf-32-le"), "is none"),
    "index of nothing": (b'{"weight_map": {}}', "not the index"),
    "index of numbers": (b'{"weight_map": {"w": 3}}', "not the index"),
    "index that is deep": (b'{"a":' * 100_000, "is none"),
    "index that is large": (b'{"a": ["' + b"a" * (3 << 20), "not the index"),
    # what else is saved under a name that ends in .pth
    "an error page": (b"<!DOCTYPE html><html>404 Not Found</html>", "a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "an empty file": (b"", "it is empty"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "a gzip archive"),
    "zeros": (bytes(4096), "damaged, cut short or of another kind"),
}  # fmt: skip
