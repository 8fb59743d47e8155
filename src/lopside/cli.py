"""What every stage's command has in common: read params.yaml, say faults in one line, no traceback."""

import atexit
import errno
import gc
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from lopside.errors import LopsideError
from lopside.params import load_params


def stage(*arguments: Callable[[Any], Any] | Callable[..., None]) -> Any:
    """Turn ``main(params, ...)`` into a click command.

    Use bare (``@stage``) or with click decorators (``@stage(click.argument("side"))``). The command reads and
    validates params.yaml before anything else; a :class:`LopsideError`, a full disk or a file without permission
    becomes one message on stderr and exit status 1.
    """
    if len(arguments) == 1 and getattr(arguments[0], "__name__", None) == "main":
        return _command(arguments[0], ())
    return lambda main: _command(main, arguments)


def _command(main: Callable[..., None], arguments: tuple[Callable[[Any], Any], ...]) -> click.Command:
    @wraps(main)
    def run(**given: Any) -> None:
        # Importing torch and transformers makes millions of objects, none of them garbage: looked through rarely, and
        # not at the exit, where a short stage would spend much of its time on that.
        gc.set_threshold(10_000)
        atexit.register(gc.freeze)
        try:
            main(load_params(), **given)
        except LopsideError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Exception as error:
            fault = _fault_of_files(error)
            if fault is None:
                raise
            print(f"error: {fault}", file=sys.stderr)
            sys.exit(1)

    for argument in reversed(arguments):
        run = argument(run)
    return click.command(context_settings={"help_option_names": ["-h", "--help"]})(run)


def _fault_of_files(error: Exception) -> str | None:
    """One line about a disk that is full or a file that others own; None for any other fault."""
    number, name = getattr(error, "errno", None), getattr(error, "filename", None) or "a file"
    if type(error).__name__ == "SafetensorError":  # it has the number in its text alone
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}: cannot be written: no space is left on the disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}: cannot be used: {os.strerror(number).lower()}"
    return None
