"""Archives of the shapes in which data sets are published, made small."""

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n02105855", "n03085013", "n15075141")  # labels 0, 1, 230, 508, 999


def encode(rng, mode="RGB", size=(20, 16), kind="JPEG"):
    pixels = rng.integers(256, size=(*size, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.frombytes(mode, size[::-1], pixels.tobytes()).save(buffer, kind)
    return buffer.getvalue()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_of(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return buffer.getvalue()


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def ilsvrc_images(per_synset=4, validation=6):
    """{file name: bytes} of training and of validation images; one of each synset is CMYK, and one is a PNG."""
    rng = np.random.default_rng(0)
    names = [f"{synset}_{7 * i + 3}.JPEG" for synset in SYNSETS for i in range(per_synset)]
    train = {name: encode(rng, "CMYK" if name.endswith("_10.JPEG") else "RGB") for name in names}
    train["n02105855_3.JPEG"] = encode(rng, kind="PNG")
    numbers = [1 + 8000 * i for i in range(validation)]
    return train, {f"ILSVRC2012_val_{number:08d}.JPEG": encode(rng) for number in numbers}


def write_ilsvrc(folder, train, validation):
    """The two tars of ILSVRC2012 in `folder`: a tar of tars, and a flat one."""
    synsets = sorted({name.split("_")[0] for name in train})
    inner = {f"{s}.tar": tar_of({n: data for n, data in train.items() if n.startswith(s)}) for s in synsets}
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
    return str(folder)


def cifar_tables(classes=10, per_batch=4, batches=5):
    """(labels, coarse labels, pixels [n, 3072]) of each training batch and of the test batch."""
    rng = np.random.default_rng(1)

    def table(size):
        labels = rng.integers(classes, size=size)
        return labels.tolist(), (labels % 20).tolist(), rng.integers(256, size=(size, 3072), dtype=np.uint8)

    return [table(per_batch) for _ in range(batches)] + [table(per_batch)]


def cifar10_binary(tables):
    rows = [
        b"".join(bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True)) for labels, _, pixels in tables
    ]
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = dict(zip(names, rows, strict=True)) | {"batches.meta.txt": "\n".join(class_names(10)).encode() + b"\n\n"}
    return tar_of({f"cifar-10-batches-bin/{name}": data for name, data in files.items()}, "w:gz")


def cifar10_python(tables, dump=None):
    dump = dump or python2_pickle
    batches = [dump({"data": pixels, "labels": labels}) for labels, _, pixels in tables]
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = dict(zip(names, batches, strict=True)) | {"batches.meta": dump({"label_names": class_names(10)})}
    return tar_of({f"cifar-10-batches-py/{name}": data for name, data in files.items()}, "w:gz")


def cifar100_python(train, test):
    def batch(table):
        labels, coarse, pixels = table
        return python2_pickle({"data": pixels, "fine_labels": labels, "coarse_labels": coarse})

    names = {"fine_label_names": class_names(100), "coarse_label_names": class_names(20)}
    files = {"train": batch(train), "test": batch(test), "meta": python2_pickle(names)}
    return tar_of({f"cifar-100-python/{name}": data for name, data in files.items()}, "w:gz")


def class_names(number):
    return [f"class_{i}" for i in range(number)]


def python3_pickle(value):
    return pickle.dumps({key.encode(): item for key, item in value.items()}, protocol=2)


def python2_pickle(value):
    """As Python 2 with NumPy 1 has pickled CIFAR: strings of bytes, and arrays by their old names."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_python2, value.shape)) + b"\x86"
    return made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", value.size) + value.tobytes() + b"tb"
