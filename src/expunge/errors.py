"""The one exception that is a message to the user rather than a defect of ours."""


class UsageError(Exception):
    """The user's input or environment is at fault; shown without a traceback, exit status 2.

    The message states the rule, the value that was found, and how to mend it.
    """
