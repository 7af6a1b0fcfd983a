"""What a user is told of an error."""

import pytest

from framework.errors import StudyError, describe_error


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("too long"), "too long"), (StudyError("two"), "two"), (KeyError("x"), "KeyError: 'x'")],
)
def test_only_an_error_that_no_user_can_mend_has_its_kind(error, told):
    assert describe_error(error) == told
