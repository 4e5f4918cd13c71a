"""Expected errors: one line that says where, what is wrong with which value, and what fixes it."""


class FrameBankError(Exception):
    """An error that the user can act on; shown as one line at the command line, without a traceback.

    Messages read ``<where>: <what is wrong, with the value>; <what is accepted, or the command that fixes
    it>``. Subclasses also derive from the builtin that a caller would catch (``KeyError``, ``OSError``, ...).
    """

    def __str__(self) -> str:
        """The message itself (``KeyError`` alone would quote it)."""
        return str(self.args[0]) if self.args else self.__class__.__name__


class UnknownNameError(FrameBankError, KeyError):
    """A name that is in no table; the message lists the names that are."""

    def __init__(self, where: str, kind: str, name: str, known: list[str]):
        import difflib

        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        super().__init__(f"{where}: no {kind} named {name!r}{hint}; there are: {', '.join(known) or 'none'}")
