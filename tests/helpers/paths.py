"""Where things are."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
