"""What every stage's command has in common: read params.yaml, say faults in one line, no traceback."""

import errno
import gc
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
    validates params.yaml before anything else; a :class:`LopsideError` or a full disk becomes one message on stderr and
    exit status 1.
    """
    if len(arguments) == 1 and getattr(arguments[0], "__name__", None) == "main":
        return _command(arguments[0], ())
    return lambda main: _command(main, arguments)


def _command(main: Callable[..., None], arguments: tuple[Callable[[Any], Any], ...]) -> click.Command:
    @wraps(main)
    def run(**given: Any) -> None:
        gc.set_threshold(10_000)  # importing torch and transformers makes millions of objects, none of them garbage
        try:
            main(load_params(), **given)
        except LopsideError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(
                f"error: {error.filename or 'a file'}: cannot be written: no space is left on the disk", file=sys.stderr
            )
            sys.exit(1)

    for argument in reversed(arguments):
        run = argument(run)
    return click.command(context_settings={"help_option_names": ["-h", "--help"]})(run)
