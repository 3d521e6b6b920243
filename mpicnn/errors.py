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


class StoppedError(UserError):
    """Report a request to stop that came while there was nothing to save (75, `EX_TEMPFAIL`)."""

    code = 75


class DeviceError(UserError):
    """Report a device that was asked for and is not there (exit code 69, `EX_UNAVAILABLE`)."""

    code = 69


def printable(message: str) -> str:
    """Return a text as one line of a sensible length that any terminal shows as it is."""
    message = escaped(message)
    if len(message) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        message = f"{message[:half]} … {message[-half:]}"
    return message


def escaped(text: str) -> str:
    """Return a text with escapes for what does not print: \\xNN for a byte of a file's name."""
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # what Python makes of a byte that its encoding lacks
        return f"\\x{number - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
