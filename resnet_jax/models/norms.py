"""Normalisation as PyTorch sets it, and the one place where its mode is decided for a whole net."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from resnet_jax.models.layers import ModuleDef

Array = jax.Array


def batch_norm(*, param_dtype: Any = jnp.float32, cls: ModuleDef = nn.BatchNorm, **kwargs: Any) -> Any:
    """`nn.BatchNorm` as PyTorch sets it: decay 0.9 (PyTorch's momentum 0.1), epsilon 1e-5, two-pass variance.

    Flax's one-pass variance E[x^2] - E[x]^2 cancels, and can even turn negative. Statistics stay float32 when
    the net computes in bfloat16, and are float64 in a float64 net.

    In bfloat16 the variance is one-pass: a second pass reads every activation once more, a sixth of all that a step
    moves. The cancellation multiplies float32's rounding, 2^-24, by mean^2 / variance. Where that ratio reaches 2^16,
    and costs the variance 8 bits, the 8 bits of a bfloat16 input hold nothing but its mean.
    """
    single = jnp.finfo(param_dtype).bits <= 32
    one_pass = single and kwargs.get("dtype") is not None and jnp.dtype(kwargs["dtype"]) == jnp.bfloat16
    defaults = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": one_pass, "force_float32_reductions": single}
    return cls(param_dtype=param_dtype, **(defaults | kwargs))


class UnbiasedBatchNorm(nn.BatchNorm):
    """Batch norm whose running variance is PyTorch's: normalise with the biased variance, store the unbiased one.

    PyTorch multiplies the stored variance by n / (n - 1), n being the number of values a channel is averaged
    over (batch * height * width, over all devices of `axis_name` when synchronised). It matters where n is
    small, and it is what makes a training run, and not only inference, comparable step by step.

    Raises:
      ValueError: n is 1 in training mode: there is no variance to learn (PyTorch refuses it as well).
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        frozen = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        mode = None if self.use_running_average is not None else frozen  # merged again there, so given once
        if frozen or self.is_initializing():
            return super().__call__(x, mode, mask=mask)
        if mask is not None:
            raise ValueError("UnbiasedBatchNorm counts every position: it does not take a mask.")
        n = x.size // x.shape[self.axis]
        if self.axis_name is not None:
            n *= jax.lax.psum(1, self.axis_name, axis_index_groups=self.axis_index_groups)
        if n == 1:
            raise ValueError(
                f"batch norm in training mode needs more than 1 value per channel, got an input of shape {x.shape}: "
                "use a larger batch or image, or call the model with train=False."
            )
        old: Array = self.get_variable("batch_stats", "var")
        y = super().__call__(x, mode)
        decayed = self.momentum * old
        new: Array = self.get_variable("batch_stats", "var")
        self.put_variable("batch_stats", "var", decayed + (new - decayed) * (n / (n - 1)))
        return y


def group_norm(*, num_groups: int = 32, **kwargs: Any) -> nn.GroupNorm:
    """`nn.GroupNorm` as PyTorch sets it: epsilon 1e-5 (Flax: 1e-6), two-pass variance (Wu & He 2018)."""
    return nn.GroupNorm(num_groups=num_groups, **({"epsilon": 1e-5, "use_fast_variance": False} | kwargs))


class Shift(nn.Module):
    """Adds a bias for each channel: what is left of a batch norm whose scale went into the convolution before it."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        x, bias = promote_dtype(x, bias, dtype=self.dtype)
        return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


NORMS: dict[str, ModuleDef] = {
    "batch": batch_norm,
    "batch_unbiased": functools.partial(batch_norm, cls=UnbiasedBatchNorm),
    "group": group_norm,
}


def bind_norm(
    norm: str | ModuleDef,
    *,
    train: bool,
    axis_name: str | None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    zero_init: bool = False,
    **kwargs: Any,
) -> ModuleDef:
    """The norm layer of a whole net, its mode decided once: blocks then only name it.

    Args:
      norm: a name in `NORMS`, or any callable that builds a Linen norm layer (`nn.LayerNorm`,
        `partial(nn.GroupNorm, num_groups=8)`, ...).
      train: training mode; reaches only layers that have a `use_running_average`.
      axis_name: mapped axis over which batch statistics are averaged; refused by layers without statistics.
      axis_index_groups: places on that axis that average among themselves; None averages over all.
      zero_init: whether blocks will start the scale of some layers at 0, by `scale_init`.
      **kwargs: further arguments for the layer, such as `dtype` and `param_dtype`.

    Raises:
      ValueError: an unknown name, an `axis_name` for a norm layer that has no batch statistics, or a layer that does
        not take what it is to be given.
    """
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(
                f"unknown norm {norm!r}: give one of {sorted(NORMS)} or a callable that builds a Linen layer."
            )
        norm = NORMS[norm]
    if not callable(norm) or isinstance(norm, nn.Module):
        raise ValueError(f"norm must be one of {sorted(NORMS)} or what builds a Linen layer, got {norm!r}.")
    fixed = _fixed_mode(norm)
    if fixed is None and _has_statistics(norm):
        kwargs |= {"use_running_average": not train, "axis_name": axis_name}
        if axis_index_groups is not None:  # a layer of the user's own need not know of groups
            kwargs["axis_index_groups"] = axis_index_groups
    elif axis_name is not None:
        raise ValueError(
            f"axis_name={axis_name!r} synchronises batch statistics, but {norm} keeps none, or fixes its mode: leave "
            "it None."
        )
    if fixed is False and not train:
        raise ValueError(
            f"norm={norm} fixes use_running_average=False, so it can be neither frozen nor evaluated: leave it open."
        )
    if missing := _not_taken(norm, [*kwargs, "name", *(["scale_init"] if zero_init else [])]):
        raise ValueError(
            f"norm={norm} takes no {', '.join(missing)}, which a network gives to its norms: add such fields to it "
            "(scale_init is for zero_init_residual=True alone)."
        )
    return functools.partial(norm, **kwargs)


def freeze(norm: ModuleDef) -> ModuleDef:
    """A factory of `norm` layers whose scale and bias get no gradient; bind it with `train=False` for the statistics.

    The parameters stay where they are in the tree. Weight decay is not a gradient: leave frozen parameters out of it
    in the optimizer (Flax's `traverse_util.path_aware_map` tells them apart).
    """

    def build(**kwargs: Any) -> Callable[[Array], Array]:
        layer = norm(**kwargs)

        def apply(x: Array) -> Array:
            stopped = nn.map_variables(
                lambda layer, x: layer(x),
                "params",
                functools.partial(jax.tree.map, jax.lax.stop_gradient),
                init=layer.is_initializing(),
            )
            y = cast(Array, stopped(layer, x))
            if not hasattr(layer, "use_running_average") and layer.variables.get("batch_stats"):
                raise ValueError(
                    f"{type(layer).__name__} has batch statistics but no field use_running_average, by which "
                    "freeze_norm keeps them still: give it one."
                )
            return y

        return apply

    return build


def _not_taken(norm: ModuleDef, arguments: Sequence[str]) -> list[str]:
    """Those of the arguments that `norm` does not have."""
    parameters = inspect.signature(norm).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in arguments if name not in parameters]


def _fixed_mode(norm: ModuleDef) -> bool | None:
    """The `use_running_average` that the caller has fixed in a partial; None where it is open."""
    while isinstance(norm, functools.partial):
        if "use_running_average" in norm.keywords:
            return bool(norm.keywords["use_running_average"])
        norm = norm.func
    return None


def _has_statistics(norm: ModuleDef) -> bool:
    """Whether `norm` builds a batch norm: by its fields, or, for a plain function, by what it builds."""
    while isinstance(norm, functools.partial):
        norm = norm.func
    if norm is batch_norm:
        return True
    parameters = inspect.signature(norm).parameters
    if "use_running_average" in parameters:
        return True
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any and not inspect.isclass(norm) and hasattr(norm(parent=None), "use_running_average")
