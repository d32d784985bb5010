"""A data set's name -> a `Dataset`."""

from resnet_jax.data.sources.base import SPLITS, STOCK, TFDS_PREFIX, Dataset

KNOWN = ("digits", "folder", "synthetic", *STOCK, TFDS_PREFIX + "NAME")


def open_dataset(
    name: str,
    split: str,
    *,
    path: str = "",
    data_dir: str = "",
    image_size: int = 32,
    channels: int = 3,
    num_examples: int = 1024,
    num_classes: int = 10,
    seed: int = 0,
) -> Dataset:
    """Opens one split of a data set; the digits are prepared on first use.

    Args:
      name: "digits" (scikit-learn's handwritten digits, 8x8 grey), "folder" (of images, or a zip or tar of one),
        "synthetic" (made up, with something to learn in it), "imagenet2012", "cifar10" or "cifar100", or "tfds:NAME":
        prepared as ArrayRecord by `resnet-jax prepare` or by TFDS.
      split: "train" or "test". Where a folder or TFDS data set has no test split, its validation split is used.
      path: "folder" only: the folder, zip or tar that holds {train,test}/CLASS/*.jpg.
      data_dir: "digits" and prepared data only: where TFDS keeps prepared data; "" is TFDS's own choice.
      image_size: "synthetic" only: pixels, height and width.
      channels: "synthetic" only: 1 or 3.
      num_examples: "synthetic" only: size of the split.
      num_classes: "synthetic" only.
      seed: "synthetic" only.

    Raises:
      ValueError: an unknown name or split, or data that contradicts itself.
      FileNotFoundError: there is nothing at `path`, or nothing prepared in `data_dir`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known: use 'train' or 'test'.")
    if path and name != "folder":
        raise ValueError(f"path={path!r} is given, but the data set {name!r} reads no path: use the name 'folder'.")
    # Each kind needs packages of its own, which the others do without.
    if name == "folder":
        from resnet_jax.data.sources.folder import open_folder

        return open_folder(path, split)
    if name == "synthetic":
        from resnet_jax.data.sources.synthetic import open_synthetic

        return open_synthetic(split, image_size, channels, num_examples, num_classes, seed)
    if name == "digits":
        from resnet_jax.data.sources.digits import open_digits

        return open_digits(split, data_dir)
    if name in STOCK or name.startswith(TFDS_PREFIX):
        from resnet_jax.data.sources.records import open_tfds

        return open_tfds(name.removeprefix(TFDS_PREFIX), split, data_dir)
    raise ValueError(f"data set {name!r} is not known: use one of {', '.join(map(repr, KNOWN))}.")
