"""The one exception that users are meant to see."""


class UserError(Exception):
    """Bad input: one clear line that says what is wrong, what is allowed and what to try.

    The command line prints it without a traceback and exits with code 2. `kind` is that of the
    plugin in whose method it was raised, if it was in one's.
    """

    kind: str = ""
