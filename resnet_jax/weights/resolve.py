"""The one way in: from a source of weights to its tensors, the network that they are of, and what is known of both.

Whoever takes weights comes through here: `load_pretrained`, the verbs of the command line, `config.init_from`. What a
source states is kept to; where it states nothing, the tensors decide as far as they can, and `left_open` says how far.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import ALIASES, create_model
from resnet_jax.weights import convert, recognise
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.names import Renamed, rename
from resnet_jax.weights.sources import Source, locate

logger = logging.getLogger(__name__)

# Fields of `ResNet` that change what a network computes, and of which its tensors tell nothing.
OF_THE_FUNCTION = ("stride_in_1x1", "first_stage_stride", "anti_alias", "act", "stem_pool")


@dataclasses.dataclass(frozen=True)
class Opened:
    """Weights that have been read, and what is known of them.

    Attributes:
      source: where they come from, and what that states.
      what: they are, in words: weights, or the average or the last variables of a run.
      renamed: their tensors, under torchvision's names.
      name: of the network, if the source states it or somebody has said so.
      fields: of `ResNet`, in which it differs from the table's entry, likewise.
    """

    source: Source
    what: str
    renamed: Renamed
    name: str | None
    fields: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Any]:
        """`{name: array}` under torchvision's names, in the dtypes that they are stored in."""
        return self.renamed.tensors

    @functools.cached_property
    def identity(self) -> recognise.Identity:
        """The network, and what neither the source nor the tensors tell of it.

        Raises:
          ConversionError: the source does not state it, and the tensors do not tell.
        """
        if self.name is None:
            found = recognise.identify_renamed(self.renamed)
            open_ = [item for item in found.left_open if item.decides not in self.fields]
            return recognise.Identity(found.name, found.fields | dict(self.fields), tuple(open_))
        told = recognise.overrides(self.name, self.tensors)
        if self.source.name is not None:
            head = {"num_classes": told["num_classes"]} if "num_classes" in told else {}
            return recognise.Identity(self.name, head | dict(self.fields), ())
        fields = told | dict(self.fields)
        open_ = [item for item in recognise.left_open(fields, self.renamed) if item.decides not in self.fields]
        return recognise.Identity(self.name, fields, tuple(open_))

    def network(self) -> tuple[ResNet, convert.Variables]:
        """The network, with its variables as NumPy arrays; what is left open is logged. Values are not looked at.

        Raises:
          ConversionError: as `identity`; or the tensors are not those of the network.
        """
        found = self.identity
        for item in found.left_open:
            logger.warning("%s: %s", self.source.text, item)
        model = create_model(found.name, **found.fields)
        self.check_evidence(model)
        try:
            return model, convert.from_native(model, self.tensors, allow_nonfinite=True)
        except ConversionError as error:
            raise ConversionError(f"{self.source.text}: {error}{self._really()}") from error

    def without_head(self) -> "Opened":
        """The same without `fc`."""
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith("fc.")}
        fields = {**self.fields, "num_classes": 0}
        return dataclasses.replace(self, renamed=self.renamed._replace(tensors=kept), fields=fields)

    def check_evidence(self, model: ResNet) -> None:
        """Refuses a network that is another function than the weights are of, although its tensors are the same.

        Raises:
          ConversionError: what the source states, or a tensor that only some networks have, contradicts `model`.
        """
        if self.renamed.blurred and model.anti_alias != "blur":
            raise ConversionError(
                f"{self.source.text} has the filters of blur-pools, and the network anti_alias={model.anti_alias!r}: "
                "give one with anti_alias='blur', as resnetblur50."
            )
        if self.source.name is None:
            return
        stated = create_model(self.source.name, **self.source.arguments)
        for field in OF_THE_FUNCTION:
            theirs, ours = getattr(stated, field), getattr(model, field)
            if theirs != ours:
                raise ConversionError(
                    f"{self.source.text} states a network of {field}={theirs!r}, and this one has {field}={ours!r}, "
                    "which is another function of the same tensors: give both the same."
                )

    def _really(self) -> str:
        """What the tensors are of, if somebody has said something else."""
        try:
            found = recognise.identify_renamed(self.renamed)
        except ConversionError:
            return ""
        fields = "".join(f", {field}={value!r}" for field, value in found.fields.items())
        return f"\nBy their names and shapes they are those of {found.name}{fields}."


def resolve(
    source: str | os.PathLike[str] | Source,
    *,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
    ema: bool | None = None,
    container: str | None = None,
    prefix: str | None = None,
    drop: Sequence[str] = (),
) -> Opened:
    """Reads weights from anywhere, and says what was passed over in them.

    Args:
      source: as for `load_pretrained`, or what `sources.locate` has made of it.
      name: the network, where the source does not state it.
      fields: of `ResNet`, likewise.
      ema: the moving average of the weights. By default that of a run which kept one, and of others not.
      container: of several sets of weights in a file, the one under this name ("teacher").
      prefix: of several networks in a file, the one whose tensors' names begin so.
      drop: beginnings of names to leave out, such as "fc"; without `fc` the network has no head.

    Raises:
      ValueError: no such source or network; what is given contradicts what the source states.
      WeightFileError, DownloadError, ConversionError: as `load_pretrained`.
    """
    found = source if isinstance(source, Source) else locate(source)
    given = dict(fields or {})
    if name is not None:
        create_model(name)  # refuses an unknown one before anything is read
        if found.name is not None and ALIASES.get(name, name) != found.name:
            raise ValueError(
                f"{found.text} states that its network is {found.name}, and not {name}: leave the name out."
            )
    for field, value in found.arguments.items():
        if field in given and given[field] != value and field in OF_THE_FUNCTION:
            raise ValueError(f"{found.text} states {field}={value!r}, and not {given[field]!r}: leave it out.")
    tensors, what = found.read(ema=ema, container=container)
    renamed = rename(tensors, prefix=prefix, drop=drop)
    renamed.log()
    stated = dict(found.arguments)
    if "fc.weight" not in renamed.tensors and any("fc" in part.split(".") for part in drop):
        stated["num_classes"] = 0
    return Opened(found, what, renamed, name or found.name, stated | given)
