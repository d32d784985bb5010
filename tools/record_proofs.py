"""Writes `proofs/` anew: `python tools/record_proofs.py`. It needs the `torch` extra and takes about a minute.

Each net is narrow, so that its record stays small, and has random weights. Together they have every part of the table.
"""

import pathlib
import sys
from typing import Any

from resnet_jax.proof import recorded

FOLDER = pathlib.Path(__file__).parent.parent / "proofs"
EVEN_AND_ODD = ((64, 64), (65, 97))
# Where a stage more halves the maps: a training step needs more than one pixel of a map for its statistics.
LARGER = ((96, 96), (97, 129))
WIDTHS = (16, 16, 32, 32)
# Two blocks in one stage, so that one of them has no projection.
NARROW = {"num_classes": 10, "stage_features": WIDTHS, "stage_sizes": (1, 2, 1, 1)}
NARROW_IN_TIMM = {"channels": WIDTHS, "layers": (1, 2, 1, 1)}
STEM, STEM_IN_TIMM = {"stem_features": 16}, {"stem_width": 8}
# Group norm has 32 groups, so no width may be less.
WIDE_ENOUGH = (32, 32, 64, 64)

# Strides in other places.
IN_1X1, FIRST_STAGE = {"stride_in_1x1": True, "first_stage_stride": 2}, {"first_stage_stride": 2}

# Network, or "NETWORK what" -> what differs from that network: fields of `create_model`, arguments of timm's builder.
PROOFS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "test_resnet": ({"num_classes": 10}, {}),  # both blocks, deep stem, averaging shortcut
    "cifar_resnet20": ({}, {}),  # the CIFAR stem, padded shortcuts
    "resnext50_32x4d": (NARROW, NARROW_IN_TIMM),  # groups, 7x7 stem
    "resnet50_gn": (NARROW | {"stage_features": WIDE_ENOUGH}, NARROW_IN_TIMM | {"channels": WIDE_ENOUGH}),
    "seresnetaa50d": (NARROW | STEM, NARROW_IN_TIMM | STEM_IN_TIMM),  # SE, average pools
    "ecaresnet26t": (NARROW | STEM, NARROW_IN_TIMM | STEM_IN_TIMM),  # ECA, tiered stem
    "resnetblur18": (NARROW, NARROW_IN_TIMM),  # blur pools, basic blocks
    "resnetrs50": (NARROW | STEM, NARROW_IN_TIMM | STEM_IN_TIMM),  # a convolution for a stem pool
    "resnet50 strides": (NARROW | IN_1X1, NARROW_IN_TIMM | IN_1X1),
    "resnet18 strides": (NARROW | FIRST_STAGE, NARROW_IN_TIMM | FIRST_STAGE),
}


def main() -> int:
    for key, (fields, arguments) in PROOFS.items():
        name = key.partition(" ")[0]
        sizes = ((32, 32), (33, 29)) if name.startswith("cifar") else EVEN_AND_ODD
        sizes = LARGER if "first_stage_stride" in fields else sizes
        library = None if name.startswith("cifar") else "timm"
        path = FOLDER / f"{key.replace(' ', '_')}.safetensors"
        (written,) = recorded.record(path, name, fields=fields, arguments=arguments, library=library, sizes=sizes)
        print(f"{written.name:<32}{written.stat().st_size / 1e6:.2f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
