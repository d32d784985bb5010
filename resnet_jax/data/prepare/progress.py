"""Progress of a preparation: a bar on a terminal, else a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from resnet_jax.data.prepare.shards import Shard

INTERVAL = 10.0  # seconds between two lines


@contextlib.contextmanager
def meter(shards: Sequence[Shard], say: Callable[[str], None]) -> Iterator[Callable[[Shard], None]]:
    """Gives a function to be called with each shard that is done."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=sum(len(shard.entries) for shard in shards), unit=" images") as bar:
            yield lambda shard: bar.update(len(shard.entries)) and None
        return
    lines = _Lines(shards, say)
    yield lines.advance
    lines.write()


class _Lines:
    def __init__(self, shards: Sequence[Shard], say: Callable[[str], None]):
        self.say = say
        self.total = sum(len(shard.entries) for shard in shards)
        self.images, self.bytes = 0, 0
        self.start = self.last = time.monotonic()

    def advance(self, shard: Shard) -> None:
        self.images += len(shard.entries)
        self.bytes += shard.size
        if time.monotonic() - self.last > INTERVAL:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        seconds = max(self.last - self.start, 1e-3)
        left = seconds * (self.total - self.images) / max(self.images, 1)
        self.say(
            f"{self.images:,} of {self.total:,} images, {self.images / seconds:,.0f} images/s, "
            f"{self.bytes / seconds / 1e6:,.1f} MB/s, {left / 60:.0f} min left"
        )
