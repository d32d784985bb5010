"""Refusals, which are told in one message, and everything else, which keeps its traceback."""

import dis
import sys
import traceback
import types

PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, try again

_RAISE = dis.opmap["RAISE_VARARGS"]
_FILE_SYSTEM = sys.stdlib_module_names | {"etils"}  # by way of which we read and write
_PACKAGE = __name__.partition(".")[0]


class Refusal(Exception):
    """The base of this library's own errors: the message says all that there is to know.

    Attributes:
      exit_code: of a command that ends with it.
    """

    exit_code = 1


def is_refusal(error: BaseException) -> bool:
    """Whether somebody who meets `error` is helped by its message alone.

    So it is with a `Refusal`, with any error that a `raise` of this package has made, its ValueErrors above all, and
    with what a file system or an import refuses to this package. What Python, JAX, NumPy, or a user's own config, model
    or data raise is a bug until it is looked at, wherever it lies and whoever called it.
    """
    if isinstance(error, Refusal):
        return True
    of_system = isinstance(error, OSError | ImportError)
    last, at = None, error.__traceback__
    while at is not None:
        if not (of_system and _package(at) in _FILE_SYSTEM):
            last = at
        at = at.tb_next
    # By the name of the module, and not of its file: a checkout may be called what it likes. And by the instruction: a
    # slip of ours, an int("x"), is no refusal either.
    if last is None or _package(last) != _PACKAGE:
        return False
    return of_system or last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


def _package(at: types.TracebackType) -> str:
    return str(at.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def message(error: BaseException) -> str:
    """What a command says of `error`: one message of a refusal, with its notes, and of all else the whole traceback."""
    if is_refusal(error):
        return "\n".join([str(error), *getattr(error, "__notes__", [])])
    return "".join(traceback.format_exception(error)).rstrip()
