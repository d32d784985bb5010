"""Mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), inside the step.

One draw a step, the same on every device: which of the two, how much, and the box. Rows mix in pairs of neighbours, 0
with 1, 2 with 3, ..., and not with the mirrored batch as timm's do: neighbours are on one device, so the numbers do not
depend on how many there are. The order of the examples is random, so that a neighbour is as good as any other row.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def draw(key: Array, size: tuple[int, int], *, mixup: float, cutmix: float, prob: float = 1.0) -> tuple[Array, Array]:
    """Draws how a batch is mixed; where both are on, each with the same chance, as in timm and torchvision.

    Args:
      key: of this step.
      size: height and width of the images.
      mixup: both parameters of the Beta distribution of the share; 0 leaves mixup out.
      cutmix: likewise of CutMix.
      prob: share of the steps that mix at all.

    Returns:
      The share of an image that remains at each pixel, `[h, w]`, and that of its label, a scalar.
    """
    which, how_much, where, whether = jax.random.split(key, 4)
    is_cutmix = jax.random.bernoulli(which) if mixup and cutmix else jnp.asarray(bool(cutmix))
    alpha = jnp.where(is_cutmix, cutmix, mixup)
    lam = jnp.where(jax.random.bernoulli(whether, prob), jax.random.beta(how_much, alpha, alpha), 1.0)
    centre = jax.random.randint(where, (2,), 0, jnp.asarray(size))
    cut = cutmix_share(lam, centre, size)
    share = jnp.where(is_cutmix, cut, lam)
    return share, jnp.where(is_cutmix, cut.mean(), lam)


def cutmix_share(lam: Array, centre: Array, size: tuple[int, int]) -> Array:
    """CutMix's box as `[h, w]`: 0 inside, 1 outside. Cut off at the border, it is smaller than the 1 - lam drawn.

    Args:
      lam: share of the area that remains, before the border cuts the box off.
      centre: row and column of the box's centre, int `[2]`.
      size: height and width of the images.
    """
    inside = [
        _between(jnp.arange(length), middle, jnp.floor(length * jnp.sqrt(1 - lam)).astype(int))
        for length, middle in zip(size, centre, strict=True)
    ]
    return 1.0 - (inside[0][:, None] & inside[1][None, :])


def _between(positions: Array, middle: Array, length: Array) -> Array:
    return (positions >= middle - length // 2) & (positions < middle + (length + 1) // 2)


def mix_images(images: Array, mask: Array, share: Array) -> Array:
    """Mixes each row with its neighbour, 0 with 1, 2 with 3, ...; a row beside one of mask 0 stays as it is.

    Args:
      images: float `[batch, h, w, c]`, batch even.
      mask: `[batch]`, 0 for a row that is no example.
      share: of a row's own pixels, `[h, w]`, from `draw`.
    """
    share = jnp.where(_alone(mask)[:, None, None, None], 1, share[None, :, :, None]).astype(images.dtype)
    return share * images + (1 - share) * _swap(images)


def mix_labels(targets: Array, labels: Array, mask: Array, lam: Array) -> tuple[Array, Array]:
    """Targets mixed as `mix_images` mixes images, and of which label each row has the larger share.

    Args:
      targets: `[batch, num_classes]`, batch even.
      labels: int `[batch]`.
      mask: as there.
      lam: share of a row's own target, a scalar, from `draw`.
    """
    lam = jnp.where(_alone(mask), 1, lam)
    weight = lam[:, None].astype(targets.dtype)
    return weight * targets + (1 - weight) * _swap(targets), jnp.where(lam >= 0.5, labels, _swap(labels))


def _alone(mask: Array) -> Array:
    return _swap(mask) == 0


def _swap(rows: Array) -> Array:
    """Neighbours change places."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
