"""Files of other programs' kinds: what each is read as, equal to what its own library reads, and what is refused."""

import datetime
import enum
import functools
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from test_formats import assert_same

from handmade import call, legacy, mapping, named, number, tensor, text, zipped
from resnet_jax.weights.files import formats
from resnet_jax.weights.files.formats import (
    WeightFileError,
    load_state_dict,
    load_variables_file,
    open_weights,
    save_state_dict,
)
from resnet_jax.weights.files.pickled import numpy_arrays

RNG = np.random.default_rng(0)
ONE = {"fc.weight": RNG.normal(size=(4, 3)).astype(np.float32), "fc.bias": np.arange(4.0)}
TWO = {name: array + 1 for name, array in ONE.items()}


def written(path, content, protocol=4):
    """A plain pickle, as `pickle.dump` writes it."""
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# Arrays of NumPy's ---------------------------------------------------------------------------------------


def arrays():
    """Every dtype of random bits, every order of axes and bytes, what is empty, small and longer than any name."""
    found = {}
    for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16", "?"):
        bits = RNG.integers(0, 2 if dtype == "?" else 256, 96, np.uint8)
        found[dtype] = bits.view(dtype).reshape(2, 3, -1)
    base = RNG.normal(size=(2, 3, 4, 5))
    return found | {
        "bfloat16": base.astype(ml_dtypes.bfloat16),
        "big-endian": base.astype(">f4"),
        "big-endian integers": np.arange(6, dtype=">i8"),
        "Fortran": np.asfortranarray(base),
        "big-endian Fortran": np.asfortranarray(base).astype(">f8"),
        "axes": base.transpose(1, 3, 0, 2),
        "sliced": base[:, ::2],
        "backwards": base[::-1],
        "read-only": np.frombuffer(base.tobytes()),
        "long": RNG.normal(size=5000),
        "long of ASCII": np.zeros(5000, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "scalar array": np.array(2.5),
        "counter": np.int64(7),
        "scalar": np.float32(1.5),
    }


def assert_native(found, wanted):
    """The same bits in this machine's byte order."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert (found[name].dtype, found[name].shape) == (native.dtype, native.shape), name
        assert found[name].tobytes() == native.tobytes(), name
        assert not found[name].flags.writeable


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_arrays_is_read_as_pickle_reads_it(tmp_path, protocol):
    """As detectron2's model zoo has them."""
    wanted = arrays()
    content = {"model": wanted, "__author__": "torchvision", "matching_heuristics": True}
    found = load_state_dict(written(tmp_path / "R-50.pkl", content, protocol))
    assert_native(found, wanted)


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_in_a_file_of_pytorch_are_read_as_it_reads_them(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    content = {"state_dict": arrays() | {"tensor": torch.arange(3)}, "best": np.float64(3), "seen": np.arange(3)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    wanted = torch.load(tmp_path / "x.pth", weights_only=False)["state_dict"]
    found = load_state_dict(tmp_path / "x.pth")
    assert_native(found, {name: np.asarray(array) for name, array in wanted.items()})


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("chunk", [11, 64])
def test_bytes_that_stand_as_text_are_read_in_parts(tmp_path, monkeypatch, protocol, chunk):
    monkeypatch.setattr(numpy_arrays, "CHUNK", chunk)
    content = {"w": RNG.integers(0, 256, 6000, np.uint8), "v": np.zeros(6000, np.uint8)}
    assert_native(load_state_dict(written(tmp_path / "x.pkl", content, protocol)), content)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_large_arrays_are_the_file_itself(tmp_path, protocol):
    found = load_state_dict(written(tmp_path / "x.pkl", {"w": np.ones(10_000), "again": np.ones(3)}, protocol))["w"]
    assert not found.flags.owndata
    base = found
    while isinstance(base, np.ndarray):
        base = base.base
    assert len(memoryview(base).obj) == (tmp_path / "x.pkl").stat().st_size


def test_an_array_of_two_names_is_one(tmp_path):
    array = np.ones(10_000, ">f8")
    found = load_state_dict(written(tmp_path / "x.pkl", {"a": array, "b": array}))
    assert found["a"] is found["b"]


def python2(value):
    """Opcodes of Python 2's protocol 0, whose strings are `repr`s."""
    if isinstance(value, dict):
        return b"(d" + b"".join(python2(key) + python2(item) + b"s" for key, item in value.items())
    if isinstance(value, bytes):
        return b"S" + repr(value)[1:].encode() + b"\n"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    shape = b"(" + b"".join(b"L%dL\n" % n for n in value.shape) + b"t"
    return made + b"(I1\n" + shape + dtype + b"I00\n" + python2(value.tobytes()) + b"tb"


@pytest.mark.parametrize("size", [6, 3000])
def test_a_pickle_of_python_2_in_its_oldest_protocol(tmp_path, size):
    array = RNG.integers(0, 256, (size, 4), np.uint8).view(np.float32)
    content = python2({b"blobs": {b"conv1_w": array}}) + b"."
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin-1")["blobs"]["conv1_w"], array)
    (tmp_path / "x.pkl").write_bytes(content)
    assert load_state_dict(tmp_path / "x.pkl")["conv1_w"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([{}, []], object), "dtype |O8"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([b"a"]), "dtype |S1"),
        (np.zeros(2, [("a", "f4")]), "dtype |V4"),
        (np.zeros(2, "M8[s]"), "dtype <M8"),
        (np.zeros(2, np.longdouble), "dtype <f16"),
        (np.float16(1).astype("V2"), "dtype |V2"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_arrays_of_other_things_than_numbers_are_refused_as_weights_and_beside_them_passed_over(tmp_path, array, said):
    for protocol in (2, 4, 5):
        path = written(tmp_path / "x.pkl", {"model": {"w": np.ones(3), "v": array}}, protocol)
        with pytest.raises(WeightFileError, match="tensor 'v': it is of dtype ") as caught:
            load_state_dict(path)
        assert said in str(caught.value)
        beside = {"model": ONE, "seen": array, "all": [array]}
        assert_same(load_state_dict(written(tmp_path / "x.pkl", beside, protocol)), ONE)


def array_by_hand(shape=(2,), code="f4", order="<", data=bytes(8), fortran=b"\x89", kind="numpy.ndarray"):
    made = call("numpy.core.multiarray._reconstruct", named(kind), b"K\x00\x85", text("b"))
    dtype = call("numpy.dtype", text(code), b"\x89", b"\x88")
    dtype += b"(" + number(3) + text(order) + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    contents = data if isinstance(data, tuple) else (b"C" + bytes([len(data)]) + data,)
    return made + b"(" + number(1) + sizes + dtype + fortran + contents[0] + b"tb"


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (array_by_hand((3,)), r"has 8 bytes for a shape of \(3,\)"),
        (array_by_hand((1 << 61, 1 << 61)), "has 8 bytes for a shape"),
        (array_by_hand((-2,)), "a shape that no array has"),
        (array_by_hand((1,) * 40_000), "a shape that no array has"),
        (array_by_hand(code="f4,f4"), "of dtype <f4,f4, where weights are plain numbers"),
        (array_by_hand(code="V1000000000"), "of dtype <V1000000000"),
        (array_by_hand(order="="), "of dtype =f4"),
        (array_by_hand(data=(b"]",)), "its contents are a list"),
        (array_by_hand(data=(text("\u0394" * 8),)), "a text that does not stand for bytes"),
        (array_by_hand(data=(call("_codecs.encode", text("abc"), text("rot13")),)), "contents are a '_codecs.encode'"),
        (array_by_hand(kind="argparse.Namespace"), "it is a 'argparse.Namespace', where plain arrays are read"),
        (call("numpy.core.multiarray._reconstruct"), "not written as NumPy writes arrays"),
        (call("numpy.core.numeric._frombuffer", text("x")), "not written as NumPy writes arrays"),
    ],
)  # fmt: skip
def test_an_array_that_lies_is_refused(tmp_path, array, said):
    (tmp_path / "x").write_bytes(zipped(mapping(v=array)))
    with pytest.raises(WeightFileError, match=f"tensor 'v': .*{said}"):
        load_state_dict(tmp_path / "x")


def test_a_pickle_that_is_none_of_weights_says_so(tmp_path):
    path = written(tmp_path / "x.pkl", [np.ones(3)])
    with pytest.raises(WeightFileError, match="a pickle, but not one that torch.save wrote, nor a dictionary"):
        load_state_dict(path)
    path.write_bytes(pickle.dumps(ONE) + pickle.dumps(TWO))
    with pytest.raises(WeightFileError, match="with more behind it"):
        load_state_dict(path)
    path.write_bytes(b"\x80\x02" + mapping(w=tensor()) + b".")
    with pytest.raises(WeightFileError, match="with more behind it|torch.save did not write it"):
        load_state_dict(path)


# Objects of other programs -------------------------------------------------------------------------------


class Loss:
    """As a script defines it, which nobody else can import."""

    def __init__(self):
        self.reduction, self.kind = "mean", Kind.SOFT

    def __setstate__(self, state):
        raise AssertionError("the object was made")


class Kind(enum.Enum):
    SOFT = 1


class Queue(list):
    """A list that pickles as an object with items."""


class Table(dict):
    """A dictionary likewise."""


def strange():
    queue = Queue([Kind.SOFT, 2])
    queue.size = 3
    return {
        "loss": Loss(),
        "classes": [Loss, Kind],
        Kind.SOFT: functools.partial(max, key=len, default=Loss()),
        "queue": queue,
        "table": Table(a=Kind.SOFT),
        "when": datetime.timezone(datetime.timedelta(hours=1)),
        ("a", 1): frozenset([Kind.SOFT]),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("section", ["hyper_parameters", "callbacks", "loops", "optimizer_states", "args"])
def test_strange_objects_beside_the_weights_are_passed_over_and_named(tmp_path, caplog, protocol, section):
    path = written(tmp_path / "x.ckpt", {"epoch": 3, section: strange(), "state_dict": ONE}, protocol)
    assert_same(load_state_dict(path), ONE)
    assert "passed over objects beside the weights, of which nothing was run" in caplog.text
    for name in (f"{__name__}.Loss", f"{__name__}.Kind", "functools.partial", f"{__name__}.Queue"):
        assert repr(name) in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"state_dict": ONE, "epoch": Loss()},
        lambda: {"state_dict": ONE, "more": {"deep": [(Loss(),)]}},
        lambda: {"state_dict": ONE | {"hyper_parameters": Loss()}},
        lambda: {"state_dict": ONE | {"fc.scale": Kind.SOFT}},
        lambda: ONE | {"callbacks": Loss()},
        Loss,
        lambda: [Loss()],
    ],
)  # fmt: skip
def test_strange_objects_anywhere_else_are_refused_by_name(tmp_path, content):
    path = written(tmp_path / "x.ckpt", content())
    with pytest.raises(WeightFileError, match="its pickle names '.*(Loss|Kind)', which is not among the names"):
        load_state_dict(path)


def test_what_holds_itself_is_looked_through_once(tmp_path):
    circle = [Kind]
    circle[:] = [circle, {"again": circle}]
    path = written(tmp_path / "x.ckpt", {"state_dict": ONE, "args": Loss(), "graph": circle})
    assert_same(load_state_dict(path), ONE)


def test_an_object_with_attributes_of_strange_kinds_is_looked_through(tmp_path):
    """In what is remembered of a known name, and in the attributes of a parameter."""
    namespace = call("argparse.Namespace") + b"}" + text("f") + named("mine.Loss") + b"sb"
    hooks, function = call("collections.OrderedDict"), b"}" + text("f") + named("mine.f") + b"s"
    parameter = call("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88", hooks, function)
    rebuild = named("torch._utils._rebuild_tensor_v2")
    subclass = call("torch._tensor._rebuild_from_type_v2", rebuild, named("mine.T"), b")", b"}")
    for content in (mapping(a=namespace, state_dict=mapping(w=tensor())), mapping(w=parameter), mapping(w=subclass)):
        (tmp_path / "x").write_bytes(zipped(content))
        with pytest.raises(WeightFileError, match=r"its pickle names 'mine\.(Loss|f|T)'"):
            load_state_dict(tmp_path / "x")


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_run_in_a_section(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    harm = call("os.system", text("touch harmed"))
    write = globals()["legacy"] if legacy else zipped
    (tmp_path / "x").write_bytes(write(mapping(hyper_parameters=harm, state_dict=mapping(w=tensor()))))
    assert load_state_dict(tmp_path / "x").keys() == {"w"}
    assert not (tmp_path / "harmed").exists()


# Containers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["resnet", "backbone", "encoder", "best_model", "net", "blobs", "anything"])
def test_the_only_weights_of_a_file_are_taken_whatever_they_are_called(tmp_path, caplog, container):
    opened = open_weights(written(tmp_path / "x", {container: ONE, "epoch": 3, "metrics": {"top1": np.float64(0.7)}}))
    assert_same(opened.tensors, ONE)
    assert (opened.container, opened.others) == (container, ())
    assert not caplog.records


def test_the_trunk_of_classy_vision_and_vissl(tmp_path, caplog):
    model = {
        "trunk": {f"_feature_blocks.{name}": array for name, array in ONE.items()},
        "heads": {"0.clf.0.weight": np.ones((3, 2))},
    }
    content = {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": model, "meta": {"a": 1}}, "hooks": {}}}
    opened = open_weights(written(tmp_path / "x.torch", content))
    assert opened.tensors.keys() == {"_feature_blocks.fc.weight", "_feature_blocks.fc.bias"}
    assert opened.container == "classy_state_dict.base_model.model.trunk"
    assert opened.others == ("classy_state_dict.base_model.model.heads",)
    assert "and passed over container='classy_state_dict.base_model.model.heads' (1 tensors)" in caplog.text


@pytest.mark.parametrize(
    ("taken", "other", "asked"),
    [
        ("student", "teacher", "'teacher' (2 tensors; ema=True or --ema)"),
        ("model", "model_ema", "'model_ema' (2 tensors; ema=True or --ema)"),
        ("online_encoder", "target_encoder", "'target_encoder' (2 tensors; ema=True or --ema)"),
        ("model", "best_model", "container='best_model' (2 tensors)"),
        ("model", "Model", "container='Model' (2 tensors)"),
        ("state_dict", "discriminator", "container='discriminator' (2 tensors)"),
    ],
)
def test_of_two_sets_one_line_says_which_was_taken_and_how_to_take_the_other(tmp_path, caplog, taken, other, asked):
    path = written(
        tmp_path / "x", {other: TWO, taken: ONE, "optimizer": {"state": {"momentum": {"fc.bias": np.ones(3)}}}}
    )
    opened = open_weights(path)
    assert_same(opened.tensors, ONE)
    assert (opened.container, opened.others) == (taken, (other,))
    assert [record.getMessage() for record in caplog.records] == [
        f"took the weights under '{taken}' (2 tensors) and passed over {asked}"
    ]
    assert_same(load_state_dict(path, container=other), TWO)
    assert_same(load_state_dict(path, container=taken), ONE)
    if "ema" in asked:
        assert_same(load_state_dict(path, ema=True), TWO)
        assert open_weights(path, ema=True).others == (taken,)


def test_sets_in_a_container_of_an_unknown_name(tmp_path):
    path = written(tmp_path / "x", {"checkpoint": {"model": ONE, "ema": TWO}})
    assert open_weights(path).container == "checkpoint.model"
    assert_same(load_state_dict(path, ema=True), TWO)
    assert_same(load_state_dict(path, container="checkpoint.ema"), TWO)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"generator": ONE, "discriminator": TWO}, ["generator", "discriminator"]),
        ({"a": {"state_dict": ONE}, "b": {"state_dict": TWO}}, ["a.state_dict", "b.state_dict"]),
        ({"ema": ONE, "current": TWO}, ["current", "ema"]),
        ({"Teacher": ONE, "TEACHER": TWO}, ["Teacher", "TEACHER"]),
    ],
)
def test_sets_that_are_alike_are_refused_with_their_names(tmp_path, content, names):
    path = written(tmp_path / "x", content)
    with pytest.raises(WeightFileError, match="it holds 2 sets of weights: .* Say which to take") as caught:
        load_state_dict(path)
    assert all(repr(name) in str(caught.value) for name in names)
    for name in names:
        inner = functools.reduce(dict.__getitem__, name.split("."), content)
        assert_same(load_state_dict(path, container=name), inner)


def test_a_container_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = written(tmp_path / "x", {"student": ONE, "teacher": TWO})
    with pytest.raises(WeightFileError, match="no weights under 'Teacher', but container='student' .*, 'teacher'"):
        load_state_dict(path, container="Teacher")
    with pytest.raises(ValueError, match="give one of the two"):
        load_state_dict(path, container="teacher", ema=True)
    save_state_dict(tmp_path / "x.safetensors", ONE)
    with pytest.raises(WeightFileError, match="one set of weights.*read it without naming a container"):
        load_state_dict(tmp_path / "x.safetensors", container="teacher")


# Names of files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".Safetensors", ".PTH", ".Pt", ".BIN"])
def test_a_suffix_is_the_same_in_upper_case(tmp_path, suffix):
    save_state_dict(tmp_path / f"a{suffix}", ONE)
    save_state_dict(tmp_path / f"a{suffix.lower()}", ONE)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"a{suffix.lower()}").read_bytes()
    assert formats.holds_weights(f"gs://bucket/a{suffix}")


@pytest.mark.parametrize("name", ["x.npz", "x.msgpack", "x.safetensor", "x", "x.h5", "x.safetensors.gz"])
def test_another_suffix_is_refused_with_those_there_are(tmp_path, name):
    with pytest.raises(WeightFileError, match=r"end in \.safetensors, \.pth, \.pt, \.th, \.bin, \.tar; give a name"):
        save_state_dict(tmp_path / name, ONE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["best.safetensors", "BEST.SAFETENSORS", "last.pth", "last.PT", "a.bin", "a.pth.tar"])
def test_the_only_file_of_weights_in_a_folder_is_read_whatever_its_name(tmp_path, name):
    save_state_dict(tmp_path / name, ONE)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "data.tar").write_bytes(b"photographs")
    (tmp_path / "more.pth").mkdir()
    assert formats.holds_weights(tmp_path)
    assert_same(load_state_dict(tmp_path), ONE)


def test_the_usual_name_wins_over_what_stands_beside_it(tmp_path):
    save_state_dict(tmp_path / "optimizer.pt", TWO)
    save_state_dict(tmp_path / "pytorch_model.bin", ONE)
    assert_same(load_state_dict(tmp_path), ONE)
    save_state_dict(tmp_path / "model.safetensors", TWO)
    assert_same(load_state_dict(tmp_path), TWO)


def test_several_files_of_weights_in_a_folder_are_refused_and_listed(tmp_path):
    for name in ("a.safetensors", "b.PTH", "c.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightFileError, match=r"several files of weights: a\.safetensors, b\.PTH, c\.ckpt\. Name one"):
        load_state_dict(tmp_path)
    for name in ("model.safetensors.index.json", "other.safetensors.index.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(WeightFileError, match=r"several files of weights: model\.safetensors\.index\.json, other"):
        load_state_dict(tmp_path)


@pytest.mark.parametrize("mark", ["checkpoints", "_METADATA", "variables"])
def test_a_folder_of_orbax_or_of_a_run_is_not_taken_for_what_was_exported_into_it(tmp_path, mark):
    save_state_dict(tmp_path / "exported.safetensors", ONE)
    (tmp_path / mark).mkdir()
    assert not formats.holds_weights(tmp_path)


# Flax's own files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variables():
    import jax

    import resnet_jax

    model = resnet_jax.create_model("cifar_resnet20", stage_sizes=(1, 1, 1))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(leaf.dtype), tree)


def same_trees(left, right):
    import jax

    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, np.asarray(y).tobytes())


def test_msgpack_of_flax_is_read_as_flax_reads_it(tmp_path, variables, caplog):
    from flax import serialization

    path = tmp_path / "x.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    same_trees(load_variables_file(path), serialization.msgpack_restore(path.read_bytes()))
    same_trees(load_variables_file(path), variables)
    assert formats.holds_weights(tmp_path)
    same_trees(load_variables_file(tmp_path), variables)
    leaf = load_variables_file(path)["params"]["conv1"]["kernel"]
    assert not leaf.flags.writeable
    assert not leaf.flags.owndata
    path.write_bytes(serialization.to_bytes(variables["params"]))
    same_trees(load_variables_file(path), {"params": variables["params"]})
    assert not caplog.records
    state = {"step": 3, "opt_state": {"0": None, "1": {"count": np.int32(3), "rate": 0.5, "z": 1j}}, "flag": True}
    path.write_bytes(serialization.to_bytes(variables | state))
    same_trees(load_variables_file(path), dict(variables))
    assert "passed over what is not among the variables: 'flag', 'opt_state', 'step'" in caplog.text


def test_every_dtype_of_flax_msgpack(tmp_path):
    from flax import serialization

    tree = {"params": {"long" * 20: {name: array for name, array in arrays().items() if array.dtype.isnative}}}
    (tmp_path / "x").write_bytes(serialization.to_bytes(tree))
    same_trees(load_variables_file(tmp_path / "x"), serialization.msgpack_restore((tmp_path / "x").read_bytes()))


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("alone", [False, True], ids=["variables", "params alone"])
def test_flattened_variables_under_flax_names(tmp_path, variables, separator, kind, alone):
    from flax import traverse_util

    tree = variables["params"] if alone else variables
    flat = traverse_util.flatten_dict(tree, sep=separator)
    if kind == "pickle":
        written(tmp_path / "x", flat)
    else:
        safetensors.numpy.save_file(flat, tmp_path / "x")
    same_trees(load_variables_file(tmp_path / "x"), {"params": tree} if alone else dict(variables))
    assert open_weights(tmp_path / "x").tensors == {}


def test_each_door_names_the_other(tmp_path, variables):
    from flax import serialization

    (tmp_path / "x").write_bytes(serialization.to_bytes(variables))
    with pytest.raises(WeightFileError, match="it holds Flax's variables.*: load_variables_file"):
        load_state_dict(tmp_path / "x")
    with pytest.raises(WeightFileError, match="one set of weights"):
        load_state_dict(tmp_path / "x", ema=True)
    save_state_dict(tmp_path / "y.pth", ONE)
    with pytest.raises(WeightFileError, match="under PyTorch's names.*: load_state_dict"):
        load_variables_file(tmp_path / "y.pth")


def test_a_pickled_tree_of_variables_is_refused_with_what_to_do(tmp_path, variables):
    with pytest.raises(WeightFileError, match=r"Flax's variables as a pickle: write flax.serialization.to_bytes"):
        load_variables_file(written(tmp_path / "x", variables))


def test_a_kernel_among_weights_makes_no_names_of_flax(tmp_path):
    """A layer of blurring that keeps its filter under this name."""
    save_state_dict(tmp_path / "x.safetensors", ONE | {"layer1.blur.kernel": np.ones(3)})
    assert len(load_state_dict(tmp_path / "x.safetensors")) == 3


def test_names_that_make_no_tree_are_refused(tmp_path):
    for names in (["a.kernel", "a.kernel.b"], ["a.kernel.b", "a.kernel"], ["a." * 40 + "kernel"]):
        safetensors.numpy.save_file({name: np.ones(1) for name in names} | {"kernel": np.ones(1)}, tmp_path / "x")
        with pytest.raises(WeightFileError, match="no place in a tree of variables"):
            load_variables_file(tmp_path / "x")


# Bits of tensors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_negative_and_conjugate_bits_are_honoured(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    for complex_type in (torch.complex64, torch.complex128):
        x = torch.randn(3, 4, dtype=complex_type)
        for lazy in (x.conj(), x.conj().imag, x.conj().T, x.conj().imag[1:], torch.nn.Parameter(x.conj().imag)):
            assert lazy.is_conj() or lazy.is_neg()
            torch.save({"w": lazy}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
            found = load_state_dict(tmp_path / "x")["w"]
            assert found.tobytes() == lazy.detach().resolve_conj().resolve_neg().numpy().tobytes()
            assert not found.flags.writeable


@pytest.mark.parametrize(
    ("bits", "values"),
    [(b"N", 1), (b"}", 1), (b"}" + text("neg") + b"\x89s", 1), (b"}" + text("neg") + b"\x88s", -1)],
    ids=["none", "empty", "false", "true"],
)
def test_bits_by_hand(tmp_path, bits, values):
    made = tensor()[: -len(b"tR")] + bits + b"tR"
    for write in (zipped, legacy):
        (tmp_path / "x").write_bytes(write(mapping(w=made)))
        expected = values * np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(load_state_dict(tmp_path / "x")["w"], expected)


@pytest.mark.parametrize(
    "bits", [b"}" + text("zero") + b"\x88s", b"}" + text("neg") + b"K\x01s", b"]N" + b"a", text("neg")]
)
def test_other_bits_are_refused(tmp_path, bits):
    (tmp_path / "x").write_bytes(zipped(mapping(w=tensor()[: -len(b"tR")] + bits + b"tR")))
    with pytest.raises(WeightFileError, match="its pickle says of a tensor .* conj or neg at most"):
        load_state_dict(tmp_path / "x")


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"constants.pkl": b"", "code/x.py": b""}, r"a TorchScript program: .*torch.jit.load\(FILE\).state_dict"),
        ({"w.npy": b""}, "a .npz: safetensors.numpy.save_file"),
    ],
)
def test_other_zips_are_refused_with_what_they_are(tmp_path, members, said):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}" if "npy" not in name else name, content)
    with pytest.raises(WeightFileError, match=said):
        load_state_dict(tmp_path / "x")


def test_a_name_that_no_network_needs_is_refused(tmp_path):
    save_state_dict(tmp_path / "fits.safetensors", {"a" * 512: np.ones(1)})
    assert load_state_dict(tmp_path / "fits.safetensors")
    for name in ("." * 4000, "layer1." + "9" * 5000 + ".conv1.weight"):
        save_state_dict(tmp_path / "x.safetensors", {name: np.ones(1)})
        save_state_dict(tmp_path / "x.pth", {name: np.ones(1)})
        for suffix in ("safetensors", "pth"):
            with pytest.raises(WeightFileError, match=r"name.* \d+ (characters|bytes), which no network needs"):
                load_state_dict(tmp_path / f"x.{suffix}")


def test_an_index_of_many_parts_is_read_once(tmp_path):
    places = {}
    for i in range(3):
        save_state_dict(tmp_path / f"part-{i}.bin", {f"{i}.{name}": array for name, array in ONE.items()})
        places |= {f"{i}.{name}": f"part-{i}.bin" for name in ONE}
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert load_state_dict(tmp_path).keys() == places.keys()
