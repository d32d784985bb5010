"""Reading what may fail for a while: too many open files or a lost disk are no property of an image."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from resnet_jax.data.images.pillow import UnreadableImage

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAITS = (0.1, 0.5, 2.0, 5.0)  # seconds before the second, third, ... attempt


class SourceFailed(OSError):
    """An example cannot be read for a reason that is none of its own: it is never left out."""


def patiently(read: Callable[[], T], origin: Callable[[], str]) -> T:
    """What `read` returns; what the operating system refuses it is tried again, for some seconds.

    Args:
      read: reads one example.
      origin: where that comes from, for messages.

    Raises:
      UnreadableImage: as `read`, or its OSError is none of the operating system's but, as Pillow's, of a damaged image.
      SourceFailed: it was refused each time.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except SourceFailed:  # of a data set in this one
            raise
        except OSError as error:
            if error.errno is None:
                raise UnreadableImage(f"reading failed ({error})") from error
            if wait is None:
                raise SourceFailed(
                    f"{origin()}: reading failed {1 + len(WAITS)} times in {sum(WAITS):.0f} seconds ({error}). That is "
                    "no fault of the image, which is not left out: look at the disk, its mount, its permissions and "
                    "`ulimit -n`, and start again."
                ) from error
            logger.warning("%s: reading failed (%s); once more in %g seconds", origin(), error, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")
