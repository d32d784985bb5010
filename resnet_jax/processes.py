"""Processes that end with the one that started them; a function in one, so that a crash there is an exception here."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any

from resnet_jax import compiler, errors


class Crashed(Exception):
    """The process ended without an answer.

    Attributes:
      cause: the signal that ended it, such as "SIGSEGV"; "exit code N" where no signal did.
      log: path of what it wrote to standard error, which is kept.
    """

    def __init__(self, cause: str, log: str) -> None:
        super().__init__(cause, log)
        self.cause, self.log = cause, log

    def __str__(self) -> str:
        return f"{self.cause}; its last words are in {self.log}"


def end_with_parent() -> None:
    """Makes this process, one of `multiprocessing`, end at once when its parent does, however that ends.

    A parent that is killed tells nobody: its processes would wait for ever, with the memory that they hold.
    """
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, computed by a fresh interpreter. All three must be picklable, and so must the answer.

    The process ends with ours, however ours ends.

    Raises:
      Crashed: it was killed, or left without an answer.
      Exception: whatever `function` raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with JAX in it can lock up
    receiver, sender = context.Pipe(duplex=False)
    handle, log = tempfile.mkstemp(prefix="resnet-jax-", suffix=".log")
    os.close(handle)
    process = context.Process(target=_answer, args=(sender, log, function, arguments), daemon=True)
    process.start()
    sender.close()  # ours; the other one is the process's, and with it the pipe ends
    try:
        succeeded, answer = receiver.recv()
    except EOFError:
        process.join()
        raise Crashed(name_end(process.exitcode), log) from None
    except BaseException:  # as by Ctrl-C: nobody waits for the answer any more
        process.kill()
        os.remove(log)
        raise
    process.join()
    os.remove(log)
    if not succeeded:
        raise answer
    return answer


def _answer(
    sender: multiprocessing.connection.Connection, log: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_with_parent()
    compiler.guard()  # ours from its beginning, whoever began the parent
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        answer = True, function(*arguments)
    except Exception as error:
        if not errors.is_refusal(error):  # its frames stay behind here
            error.add_note("".join(traceback.format_exception(error)))
        answer = False, error
    sender.send(answer)


def name_end(exit_code: int | None) -> str:
    """What ended a process: a signal, such as "SIGKILL", or "exit code N"."""
    return signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
