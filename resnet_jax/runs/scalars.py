"""The numbers of a run as TensorBoard reads them: WORKDIR/tensorboard, on a disk or in a bucket; no TensorFlow."""

import logging
import numbers
import socket
import struct
import time
from typing import Any

from etils import epath

from resnet_jax.runs import storage

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


class Scalars:
    """Writes one event file for each start of a run; the numbers of `record` appear as SPLIT/NAME.

    Args:
      workdir: the run's folder.
      first_step: steps already made. TensorBoard drops what earlier files say of later ones: they are made again.

    Raises:
      ImportError: tensorboardX, which has the format, is not installed.
      NotWritten: disk full, no permission, bucket gone.
    """

    def __init__(self, workdir: str, *, first_step: int) -> None:
        from tensorboardX.proto import event_pb2  # optional, and slow to import

        self._event = event_pb2.Event
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads the files in the order of their names
        start = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{rest:09}"
        folder = epath.Path(workdir) / TENSORBOARD
        self._log = storage.open_log(
            lambda part: folder / f"{start}.{part:05}", header=self._frame(file_version="brain.Event:2")
        )
        again = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._log.append(self._frame(step=first_step + 1, session_log=again))

    def append(self, record: dict[str, Any]) -> None:
        """Adds the numbers of one record."""
        values = [
            {"tag": f"{record['split']}/{name}", "simple_value": float(value)}
            for name, value in record.items()
            if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool)
        ]
        self._log.append(self._frame(step=record["step"], summary={"value": values}))

    def flush(self) -> None:
        """Returns when every number would survive a kill."""
        self._log.flush()

    def close(self) -> None:
        """Flushes, and lets go of the file."""
        self._log.close()

    def _frame(self, **fields: Any) -> bytes:
        """An event as a TFRecord: length and its checksum, the event and its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        return length + next(sums) + data + next(sums)


def open_if_installed(workdir: str, *, first_step: int) -> Scalars | None:
    """`Scalars`, or None and a line in the log where tensorboardX is missing."""
    try:
        return Scalars(workdir, first_step=first_step)
    except ImportError as error:
        logger.warning("no TensorBoard files: %s. `pip install tensorboardX`; metrics.jsonl has every number", error)
        return None
