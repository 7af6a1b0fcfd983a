"""Errors that others than their raiser tell apart, and any error in words for a user."""


class StudyError(RuntimeError):
    """Some points of a study failed; the others are on disk."""


class NoRateError(ValueError):
    """A trace was asked for an arrival rate, and another rate would not change when its requests arrive."""


def describe_error(error: BaseException) -> str:
    """An error that a user can mend in its own words, any other with its kind."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    is_for_users = isinstance(error, ValueError | OSError | StudyError)
    return str(error) if is_for_users else f"{type(error).__name__}: {error}"
