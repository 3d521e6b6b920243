"""Errors that end a run with one line instead of a traceback."""

MOST_CHARACTERS = 800


class UserError(Exception):
    """Report something the user can mend: what, where, what was expected, what to do.

    Every rank leaves with exit code 2; rank 0 prints the message once, without a traceback. Names
    and values from files may be of any kind and length: what does not print is escaped, and the
    middle of a very long message left out.
    """

    code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class DeviceError(UserError):
    """Report a device that was asked for and is not there (exit code 69, `EX_UNAVAILABLE`)."""

    code = 69


def printable(message: str) -> str:
    """Return a text as one line of a sensible length that any terminal shows as it is."""
    if not message.isprintable():
        plain = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        message = "".join(plain)
    if len(message) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        message = f"{message[:half]} … {message[-half:]}"
    return message
