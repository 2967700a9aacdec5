"""The one exception that is a message to the user rather than a defect of ours, and how it quotes others."""


class UsageError(Exception):
    """The user's input or environment is at fault; shown without a traceback, exit status 2.

    The message states the rule, the value that was found, and how to mend it.
    """


class ResumeError(UsageError):
    """What stands in an output folder cannot be continued; nothing but a run from the beginning can."""


def one_line(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
