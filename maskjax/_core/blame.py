"""Errors that name the function a user called, not the one that noticed."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def instead_of(inner: str, fn: str) -> Iterator[None]:
    """Let errors that name the function `inner` name `fn` instead.

    For a public function that passes its arguments on to another one, whose checks it
    does not repeat.

    Args:
        inner: The dotted public name of the function that is called inside.
        fn: The dotted public name of the function that the user called.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        named = f"`{inner}`"
        if named not in str(error):
            raise
        message = str(error).replace(named, f"`{fn}`")
        raise type(error)(message) from error.__cause__
