"""What all sources have in common: examples that are listed but not read, and how one is read and encoded."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from resnet_jax.data.images import pillow
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources.archives import READ_ERRORS

KEPT_MODES = ("RGB", "L")


class Entry(NamedTuple):
    """One example that has not been read yet."""

    key: str | int  # unique in its split; its hash is the example's place
    place: Any  # what the source's `read` takes
    size: int  # bytes of the encoded image, about
    values: tuple[Any, ...]  # of the features other than the image, in the order of `Source.columns`


@dataclasses.dataclass(frozen=True)
class Source:
    """All that becomes one data set.

    Attributes:
      name: the data set's name for TFDS.
      version: likewise.
      splits: split -> its examples, in any order.
      columns: names of the features other than "image".
      read: an entry's `place` -> the bytes of an encoded image; is pickled to reach worker processes.
      features: TFDS's features.
      about: other arguments of `tfds.core.DatasetInfo`.
    """

    name: str
    version: str
    splits: Mapping[str, list[Entry]] = dataclasses.field(repr=False)
    columns: tuple[str, ...]
    read: Callable[[Any], bytes] = dataclasses.field(repr=False)
    features: Any = dataclasses.field(repr=False)
    about: Mapping[str, Any] = dataclasses.field(repr=False)


def stock_source(
    name: str,
    splits: Mapping[str, list[Entry]],
    columns: tuple[str, ...],
    read: Callable[[Any], bytes],
    label_names: Mapping[str, list[str]] | None = None,
) -> Source:
    """A source under the name, version, features and description of TFDS's own data set `name`.

    Args:
      name: "imagenet2012", "cifar10" or "cifar100".
      splits: as in `Source`.
      columns: likewise.
      read: likewise.
      label_names: label feature -> names of its classes, where TFDS takes them from the archive.
    """
    builder = tfds.builder_cls(name)(data_dir="/nonexistent", file_format="array_record")
    info = builder.info
    for feature, names in (label_names or {}).items():
        info.features[feature].names = names
    about = {key: getattr(info, key) for key in ("description", "homepage", "citation", "supervised_keys")}
    return Source(name, str(builder.version), splits, columns, read, info.features, about)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Reads an entry and makes a record of it: a serialised `tf.train.Example`. Lives in the worker processes."""

    columns: tuple[str, ...]
    read: Callable[[Any], bytes]
    features: Any
    decode: bool  # decode each image, to find damaged ones

    def __call__(self, entry: Entry) -> tuple[bytes, bool]:
        """The record, and whether the image was converted.

        Raises:
          UnreadableImage: damaged, or no image.
          OSError: the source is gone, or cannot be read; that is no fault of one image, which might be left out.
        """
        try:
            data = self.read(entry.place)
        except (OSError, EOFError) as error:
            raise OSError(f"{entry.key} can no longer be read ({error}): has the source been moved?") from error
        except READ_ERRORS as error:
            raise UnreadableImage(f"reading failed ({error})") from error
        image = plain_image(data, self.decode)
        example = {"image": image, **dict(zip(self.columns, entry.values, strict=True))}
        return serialize(self.features, example), image is not data


def serialize(features: Any, example: Mapping[str, Any]) -> bytes:
    """A `tf.train.Example`, as TFDS serialises it, but for the order of its features.

    TFDS leaves that order to protobuf, where it changes from process to process; here it is always the same.
    """
    serializer = ExampleSerializer(features.get_serialized_info())
    message = serializer.get_tf_example(features.encode_example(example))
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def plain_image(data: bytes, decode: bool = False) -> bytes:
    """The same bytes where they are an 8-bit RGB or grey image, else a PNG of the pixels that our own decoder gives.

    Readers disagree about the rest: of CMYK, palettes, alpha and 16 bits OpenCV, Pillow and TensorFlow make other
    colours, or another number of channels than the features promise. ImageNet has 22 CMYK JPEGs, and one PNG by the
    name of JPEG, which stays a PNG: readers look at the bytes. (TFDS encodes these 23 as JPEG, which changes pixels.)

    Args:
      data: an encoded image.
      decode: decode all of it; by default only the header is read.

    Raises:
      UnreadableImage: no image, or with `decode`, not all of one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            plain = image.mode in KEPT_MODES
    except Exception as error:  # Pillow's readers raise many kinds
        if pillow.is_the_systems(error):
            raise
        raise UnreadableImage(f"the {len(data)} bytes are no image ({error})") from error
    if plain:
        if decode:
            pillow.decode(data)
        return data
    buffer = io.BytesIO()
    pillow.open_image(data).save(buffer, format="PNG")
    return buffer.getvalue()
