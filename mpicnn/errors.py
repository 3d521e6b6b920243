"""Errors that end a run with one line instead of a traceback."""


class UserError(Exception):
    """Report something the user can mend: what, where, what was expected, what to do.

    Every rank leaves with exit code 2; rank 0 prints the message once, without a traceback.
    """

    code = 2


class DeviceError(UserError):
    """Report a device that was asked for and is not there (exit code 69, `EX_UNAVAILABLE`)."""

    code = 69
