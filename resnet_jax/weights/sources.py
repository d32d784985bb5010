"""What a source of weights stands for: a tag, a repository, a URL, a file or a folder; and what is known of it."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from resnet_jax.errors import Refusal
from resnet_jax.models.variants import create_model
from resnet_jax.weights import convert
from resnet_jax.weights.files import folders, formats
from resnet_jax.weights.published import download, registry, schema, timm_config, transformers_config

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What a repository may call its weights, the best first.
WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
# The index of a sharded file, in a repository.
INDEX = "model.safetensors.index.json"
SOURCES = 'a tag ("resnet50.tv2_in1k"), "hf-hub:ORG/REPO", a URL, a file, a folder or the workdir of a run'
# Parts of `from_config`'s that say how images are prepared; without any of them nothing is stated.
OF_IMAGES = ("crop_pct", "interpolation", "mean", "std", "resize_size", "crop_mode")


# Of a run's config.
OF_RUNS = {
    "model": schema.OBJECT,
    "model.name": schema.TEXT,
    "model.num_classes": schema.COUNT,
    "model.kwargs": schema.OBJECT,
    "model.kwargs.stage_sizes": schema.DEPTHS.or_none(),
    "data": schema.OBJECT,
    "data.image_size": schema.PIXELS,
    **dict.fromkeys(("data.eval_size", "data.eval_resize"), schema.PIXELS.or_zero().or_none()),
    "data.eval_interpolation": schema.TEXT.or_none(),
    **dict.fromkeys(("data.mean", "data.std"), schema.NUMBERS),
}


class NotStated(Refusal, ValueError):
    """A source says nothing of what is asked for: no preprocessing, no names of classes."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights are, and what is stated of them before they are read.

    Attributes:
      text: as it was given.
      name: of the network, if it is stated.
      arguments: of `create_model`.
      fetch: gives the file or folder, and downloads it if need be.
      images: gives what is stated of images, as `registry.from_config` takes it; may raise.
      label_names: of the classes, if they are stated.
      run: the config of the run that it is of.
    """

    text: str
    name: str | None
    arguments: Mapping[str, Any]
    fetch: Callable[[], epath.PathLike]
    images: Callable[[], Mapping[str, Any]] = dict
    label_names: Sequence[str] | None = None
    run: Mapping[str, Any] | None = None

    def read(self, *, ema: bool | None = None, container: str | None = None) -> tuple[dict[str, Any], str]:
        """`{name: array}`, and what they are in words.

        The names are those of the file or, of what this library wrote itself, torchvision's.

        Args:
          ema: the moving average of the weights. By default that of a run which kept one, as it is what the run
            evaluated, and not that of anybody else's file.
          container: of several sets of weights in a file, the one under this name.

        Raises:
          WeightFileError: it cannot be read, or has no average.
          DownloadError: it could not be had.
          NoAverage: it is a run or folder of ours that keeps none.
        """
        place = self.fetch()
        if formats.holds_weights(place):
            opened = formats.open_weights(place, container=container, ema=bool(ema))
            if opened.variables is not None:
                return convert.native(opened.variables), "variables of Flax's"
            return dict(opened.tensors), "weights under PyTorch's names"
        if container is not None:
            raise ValueError(f"{self.text} has no container {container!r}: it is of this library's, and holds one set.")
        from resnet_jax.weights.files import orbax_folder  # Orbax takes a second to import, and files do without it

        with contextlib.nullcontext() if ema else contextlib.suppress(orbax_folder.NoAverage):
            if ema is not False:
                return convert.native(orbax_folder.load_variables(str(place), ema=True)), "its moving average"
        return convert.native(orbax_folder.load_variables(str(place))), "its last variables"

    def preprocessing(self, *, train: bool = False) -> "Preprocessing":
        """What is stated of images.

        Raises:
          NotStated: nothing, or not all.
          ValueError: something that is not supported here.
        """
        try:
            stated = self.images()
            if not any(stated.get(key) is not None for key in OF_IMAGES):
                raise NotStated(f"{self.text} does not say how images are to be prepared.")
            if missing := [key for key in ("input_size", "interpolation", "mean", "std") if stated.get(key) is None]:
                raise ValueError(f"it states how images are prepared, but not {', '.join(missing)}.")
            return registry.from_config(stated, train=train)
        except NotStated:
            raise
        except ValueError as error:
            raise ValueError(f"{self.text}: {error}") from error


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether it is a file on a server."""
    return os.fspath(source).partition(":")[0].lower() in ("http", "https")


def locate(source: str | os.PathLike[str]) -> Source:
    """Finds out what `source` stands for. Of a repository it downloads the configuration, and else nothing.

    What has no configuration beside it, as a URL, is downloaded: what is stated of it stands in the file, if anywhere.

    Raises:
      ValueError: it stands for nothing, or its configuration states a network that this library does not have.
    """
    text = os.fspath(source)
    scheme, _, rest = text.partition(":")
    if scheme.lower() in ("hf-hub", "hf_hub"):
        return _repository(text, rest)
    if is_url(source):
        return _file(text, download.from_url(text))
    tag = text.removeprefix("timm/")
    if isinstance(source, str) and registry.is_tag(tag):
        return _tag(text, registry.get_pretrained(tag))
    place = rest if scheme.lower() == "local-dir" else text
    if not place:
        raise ValueError(f"{text!r} names no source: give {SOURCES}.")
    path = pathlib.Path(place).expanduser()
    if "://" in place:
        return _folder(text, epath.Path(place))
    if path.is_dir():
        return _folder(text, path)
    if path.is_file():
        return _file(text, path)
    if not isinstance(source, str) or os.sep in text or text.lower().endswith(download.SUFFIXES) or place != text:
        raise ValueError(f"{text}: there is no such file or folder; give {SOURCES}.")
    return _tag(text, registry.get_pretrained(text))  # raises, with suggestions


def _tag(text: str, entry: registry.Pretrained) -> Source:
    def fetch() -> pathlib.Path:
        _announce(entry.tag)
        if entry.repo and entry.file:
            return download.from_hub(entry.repo, entry.file)
        return download.from_url(str(entry.url), entry.sha256)

    names = registry.imagenet_names() if entry.num_classes == 1000 else None
    images = functools.partial(dataclasses.asdict, entry)
    return Source(text, entry.architecture, {"num_classes": entry.num_classes}, fetch, images, names)


@functools.cache  # once for each
def _announce(tag: str) -> None:
    entry = registry.get_pretrained(tag)
    logger.warning("weights %s: licence %s (%s)", tag, entry.terms, entry.origin_url or entry.url or entry.repo)


def _repository(text: str, rest: str) -> Source:
    repo, _, revision = rest.partition("@")
    if repo.startswith("timm/") and registry.is_tag(repo.removeprefix("timm/")) and not revision:
        return _tag(text, registry.get_pretrained(repo.removeprefix("timm/")))  # of which more is known
    of_revision = functools.partial(download.from_hub, revision=revision or "main")

    def optional(file: str) -> dict[str, Any]:
        with contextlib.suppress(download.NoSuchFile):
            return timm_config.read(of_revision(repo, file))
        return {}

    def fetch() -> pathlib.Path:
        for file in WEIGHT_FILES:
            with contextlib.suppress(download.NoSuchFile):
                return of_revision(repo, file)
        with contextlib.suppress(download.NoSuchFile):
            index = of_revision(repo, INDEX)
            for shard in formats.shards(index):
                of_revision(repo, shard)
            return index
        raise download.NoSuchFile(f"{rest}: the repository has none of {', '.join([*WEIGHT_FILES, INDEX])}.")

    if not (config := optional(CONFIG)):
        return _file(text, fetch())
    return _configured(text, config, lambda: optional(transformers_config.PROCESSOR), fetch)


def _folder(text: str, path: Any) -> Source:
    from resnet_jax.runs import workdirs  # for those who have a folder

    if found := workdirs.find_run(str(path)):
        return _run(text, path, *found)
    config, processor = (
        timm_config.read(path / name) if (path / name).is_file() else {}
        for name in (CONFIG, transformers_config.PROCESSOR)
    )
    holds = formats.holds_weights(path)
    if not holds and not _is_of_orbax(path):
        raise ValueError(f"{text}: the folder has no file of weights, and is of no run; give {SOURCES}.")
    if holds and not config and not processor:
        return _file(text, folders.find(path))
    return _configured(text, config, lambda: processor, lambda: folders.find(path) if holds else path)


def _is_of_orbax(path: Any) -> bool:
    return "://" in str(path) or any((path / name).exists() for name in ("_METADATA", "variables", "checkpoints"))


def _run(text: str, path: Any, config: Mapping[str, Any], names: Sequence[str] | None) -> Source:
    """A run, or one of its checkpoints: the network, preprocessing and class names are those of the run."""
    with _named(text):
        schema.check("config.json", config, OF_RUNS)
    model, data = config["model"], config["data"]
    arguments = {field: value for field, value in model["kwargs"].items() if value is not None}
    # Runs of before there were these keys are evaluated at the size they are trained at, in bilinear.
    size = data.get("eval_size") or data["image_size"]
    images = {
        "input_size": (len(data["mean"]), size, size),
        "resize_size": data.get("eval_resize") or size,
        "interpolation": data.get("eval_interpolation", "bilinear"),
        "mean": data["mean"],
        "std": data["std"],
    }
    stated = arguments | {"num_classes": model["num_classes"]}
    with _named(text):
        _check_network(model["name"], stated)
    return Source(text, model["name"], stated, lambda: path, lambda: images, names, config)


def _file(text: str, path: pathlib.Path) -> Source:
    """A file, with what `convert` wrote into it of where it comes from."""
    return _configured(text, formats.provenance(path), dict, lambda: path)


def _configured(
    text: str, config: Mapping[str, Any], processor: Callable[[], Mapping[str, Any]], fetch: Callable[[], Any]
) -> Source:
    """A source beside which, or in which, there is a `config.json`; {} is none."""
    of_transformers = transformers_config.is_of_a_resnet(config)
    with _named(text):
        name, arguments = transformers_config.network(config) if of_transformers else timm_config.network(config)
        names: Sequence[str] | None = (transformers_config if of_transformers else timm_config).label_names(config)
        _check_network(name, arguments)

    def images() -> Mapping[str, Any]:
        if config and not of_transformers:
            return timm_config.pretrained_config(config)
        found = processor()
        return transformers_config.images(found) if found else {}

    return Source(text, name, arguments, fetch, images, names)


def _check_network(name: str | None, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments, of a file, that `create_model` does not take."""
    if name is not None:
        try:
            create_model(name, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.json states a network that cannot be built: {error}") from error


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """Says of which source a refusal is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error


# What is known of it -----------------------------------------------------------------------------------


def preprocessing(source: str | os.PathLike[str], *, train: bool = False) -> "Preprocessing":
    """The transform of an image that the weights are evaluated with.

    It is torchvision's own for torchvision's tags, for timm's that of timm's test size and crop, and for a run that of
    its evaluations.

    >>> from resnet_jax import preprocessing
    >>> transform = preprocessing("resnet50.a1_in1k")
    >>> transform.resize_size, transform.image_size, transform.interpolation
    (288, 288, 'bicubic')

    Args:
      source: any of `load_pretrained`'s.
      train: the size and crop of training instead, without augmentation; timm's tags have one.

    Raises:
      ValueError: an unknown source, one that says nothing of it, or states what is not supported here.
    """
    if registry.is_tag(str(source)):
        return registry.preprocessing(str(source), train=train)
    return locate(source).preprocessing(train=train)


def class_names(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes, in the order of the logits.

    Args:
      source: any of `load_pretrained`'s.

    Raises:
      ValueError: an unknown source, or one whose classes have no names here.
    """
    if registry.is_tag(str(source)):
        return registry.class_names(str(source))
    names = locate(source).label_names
    if names is None:
        raise NotStated(f"{source} does not name its classes: save_pretrained(..., label_names=[...]) does.")
    return tuple(names)
