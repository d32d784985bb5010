"""`--config.KEY=VALUE` on a command line: any key of a config, any field of the network, set or unset."""

import ast
import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_flags import tuple_parser

from resnet_jax.models.resnet import ResNet

FIELDS = "model.kwargs"
# Beside the fields of the network, the keys that may be None.
OPTIONAL = {
    "data.augment_ops", "data.augment_magnitude", "data.augment_interpolation", "data.augment_fill",
    "schedule.warmup_start", "loss.target_threshold", "loss.class_weights",
}  # fmt: skip
_FLAG = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]+)(=(?P<value>.*))?", re.DOTALL)
_PARSERS: dict[type, Any] = {bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser()}


def set_keys(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Sets keys of `config`, in order; what they were computed from follows, as where a config file sets them.

    Forms: `--config.KEY=VALUE`, `--config.KEY VALUE`; of a switch also `--config.KEY` and `--noconfig.KEY`. A tuple is
    written as Python does, "(1,2)", or its flag comes once for each entry. None unsets a field of the network, which
    then has its own value, and a key that is None in configs/default.py.

    Raises:
      ValueError: an unknown key or field, with the nearest there are; a value of another type; what is no flag.
    """
    given: dict[str, list[str]] = {}
    for key, text in _parse(config, overrides):
        given.setdefault(key, []).append(text)
    for key, texts in given.items():
        holder, name = _find(config, key)
        try:
            if key.startswith(f"{FIELDS}."):
                with holder.unlocked(), holder.ignore_type():  # for ResNet to judge
                    holder[name] = _literal(texts[-1])
            else:
                holder[name] = _value(key, holder.get_type(name), texts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--config.{key}={texts[-1]}: {error}") from error


def keys_of(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, groups left out."""
    for name in config:
        if isinstance(config[name], ml_collections.ConfigDict):
            yield from keys_of(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _parse(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, text) of each flag."""
    rest = list(overrides)
    while rest:
        flag = rest.pop(0)
        found = _FLAG.fullmatch(flag)
        if not found:
            raise ValueError(f"unknown arguments {[flag, *rest]}: keys of the config are set by --config.KEY=VALUE.")
        key, value = found["key"], found["value"]
        holder, name = _find(config, key)
        if value is None and name in holder and holder.get_type(name) is bool:
            value = "False" if found["no"] else "True"
        elif value is None and rest and not found["no"]:
            value = rest.pop(0)
        elif value is None or found["no"]:
            raise ValueError(f"{flag}: give it a value, --config.{key}=VALUE.")
        yield key, value


def _find(config: ml_collections.ConfigDict, key: str) -> tuple[ml_collections.ConfigDict, str]:
    """The group that holds a key, or may hold it, and its last name."""
    *groups, name = key.split(".")
    holder: Any = config
    for group in groups:
        holder = holder[group] if isinstance(holder, ml_collections.ConfigDict) and group in holder else None
    if not isinstance(holder, ml_collections.ConfigDict):
        raise ValueError(_unknown(config, key))
    if ".".join(groups) == FIELDS and name not in holder:
        fields = [field.name for field in dataclasses.fields(ResNet) if field.name not in ("name", "parent")]
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(fields)}."
            raise ValueError(f"--config.{key}: ResNet has no field {name!r}: {hint}")
    elif name not in holder:
        raise ValueError(_unknown(config, key))
    elif isinstance(holder[name], ml_collections.ConfigDict):
        inside = ", ".join(f"{key}.{inner}" for inner in holder[name])
        raise ValueError(f"--config.{key} is a group of keys: set one of {inside}.")
    return holder, name


def _unknown(config: ml_collections.ConfigDict, key: str) -> str:
    return f"--config.{key}: the config has no such key: {nearest(key, list(keys_of(config)))}"


def nearest(name: str, known: Sequence[str]) -> str:
    """'did you mean ...?', by the last part of a dotted name or else by all of it; or all that there are."""
    last = {other: other.rpartition(".")[2] for other in known}
    by_last = difflib.get_close_matches(name.rpartition(".")[2], set(last.values()), n=2, cutoff=0.75)
    near = [other for part in by_last for other in known if last[other] == part][:3]
    near = near or difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}."


def _value(key: str, kind: type, texts: Sequence[str]) -> Any:
    if texts[-1] == "None" and key in OPTIONAL:
        return None
    if kind is tuple:
        return tuple(entry for text in texts for entry in tuple_parser.TupleParser().parse(text))
    return _PARSERS[kind].parse(texts[-1]) if kind in _PARSERS else texts[-1]


def _literal(text: str) -> Any:
    """A Python value, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
