"""What a source of weights stands for: a tag, a repository, a URL, a file or a folder; and what is known of it."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet_jax.weights.published import download, registry, timm_config

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What a repository or a folder may call its weights, the best first.
WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
SOURCES = 'a tag ("resnet50.tv2_in1k"), "hf-hub:ORG/REPO", a URL, a file or a folder'


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights are, and what is known of their network before they are there.

    Attributes:
      name: of the network, if it is known.
      arguments: of `create_model`.
      config: timm's `pretrained_cfg`, or what is like it.
      label_names: of the classes, if they are known.
      fetch: gives the file, and downloads it if need be.
    """

    name: str | None
    arguments: Mapping[str, Any]
    config: Mapping[str, Any]
    label_names: Sequence[str] | None
    fetch: Callable[[], pathlib.Path]


def locate(source: str | os.PathLike[str]) -> Source:
    """Finds out what `source` stands for. Of a repository it downloads the configuration, and else nothing.

    Raises:
      ValueError: it stands for nothing.
    """
    text = os.fspath(source)
    scheme, _, rest = text.partition(":")
    if scheme in ("hf-hub", "hf_hub"):
        return _repository(rest)
    if scheme in ("http", "https"):
        return Source(None, {}, {}, None, functools.partial(download.from_url, text))
    tag = text.removeprefix("timm/")
    if isinstance(source, str) and registry.is_tag(tag):
        return _tag(registry.get_pretrained(tag))
    path = pathlib.Path(text.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return Source(None, {}, {}, None, lambda: path)
    if not isinstance(source, str) or os.sep in text or text.endswith(download.SUFFIXES):
        raise ValueError(f"{text}: there is no such file or folder; give {SOURCES}.")
    return _tag(registry.get_pretrained(text))  # raises, with suggestions


def _tag(entry: registry.Pretrained) -> Source:
    def fetch() -> pathlib.Path:
        _announce(entry.tag)
        if entry.repo and entry.file:
            return download.from_hub(entry.repo, entry.file)
        return download.from_url(str(entry.url), entry.sha256)

    names = registry.imagenet_names() if entry.num_classes == 1000 else None
    return Source(entry.architecture, {"num_classes": entry.num_classes}, dataclasses.asdict(entry), names, fetch)


@functools.cache  # once for each
def _announce(tag: str) -> None:
    entry = registry.get_pretrained(tag)
    logger.warning("weights %s: licence %s (%s)", tag, entry.terms, entry.origin_url or entry.url or entry.repo)


def _repository(text: str) -> Source:
    repo, _, revision = text.partition("@")
    if repo.startswith("timm/") and registry.is_tag(repo.removeprefix("timm/")) and not revision:
        return _tag(registry.get_pretrained(repo.removeprefix("timm/")))  # of which more is known
    of_revision = functools.partial(download.from_hub, revision=revision or "main")
    try:
        config = timm_config.read(of_revision(repo, CONFIG))
    except download.NoSuchFile:
        config = {}

    def fetch() -> pathlib.Path:
        for file in WEIGHT_FILES:
            with contextlib.suppress(download.NoSuchFile):
                return of_revision(repo, file)
        raise download.NoSuchFile(f"{text}: the repository has none of {', '.join(WEIGHT_FILES)}.")

    return _configured(config, fetch)


def _folder(path: pathlib.Path) -> Source:
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise ValueError(f"{path}: the folder has none of {', '.join(WEIGHT_FILES)}; give {SOURCES}.")
    config = timm_config.read(path / CONFIG) if (path / CONFIG).is_file() else {}
    return _configured(config, lambda: file)


def _configured(config: Mapping[str, Any], fetch: Callable[[], pathlib.Path]) -> Source:
    name, arguments = timm_config.network(config)
    return Source(name, arguments, timm_config.pretrained_config(config), config.get("label_names"), fetch)


# What is known of it -----------------------------------------------------------------------------------


def fetch(source: str | os.PathLike[str]) -> pathlib.Path:
    """The file of weights of any source of `load_pretrained`, downloaded if it is not in the cache."""
    return locate(source).fetch()


def preprocessing(source: str | os.PathLike[str], *, train: bool = False) -> "Preprocessing":
    """The transform of an image that the weights are evaluated with.

    It is torchvision's own for torchvision's tags, and for timm's that of timm's test size and crop.

    >>> from resnet_jax import preprocessing
    >>> transform = preprocessing("resnet50.a1_in1k")
    >>> transform.resize_size, transform.image_size, transform.interpolation
    (288, 288, 'bicubic')

    Args:
      source: a tag of `list_pretrained`, "hf-hub:ORG/REPO", or a folder.
      train: the size and crop of training instead, without augmentation; timm's tags have one.

    Raises:
      ValueError: an unknown source, or one that says nothing of it.
    """
    if registry.is_tag(str(source)):
        return registry.preprocessing(str(source), train=train)
    config = locate(source).config
    if missing := [
        field for field in ("input_size", "crop_pct", "interpolation", "mean", "std") if field not in config
    ]:
        raise ValueError(f"{source} does not say how images are to be prepared: it has no {', '.join(missing)}.")
    return registry.from_config(config, train=train)


def class_names(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes, in the order of the logits.

    Args:
      source: a tag of `list_pretrained`, "hf-hub:ORG/REPO", or a folder.

    Raises:
      ValueError: an unknown source, or one whose classes have no names here.
    """
    if registry.is_tag(str(source)):
        return registry.class_names(str(source))
    names = locate(source).label_names
    if names is None:
        raise ValueError(f"{source} does not name its classes: save_pretrained(..., label_names=[...]) does.")
    return tuple(names)
