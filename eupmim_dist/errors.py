"""The one error a user's mistake becomes."""


class UserError(Exception):
    """A mistake of the user, with a one-line message that names the file, line or key and the mend.

    The command line prints the message as `error: ...` and exits with code 2.
    """
