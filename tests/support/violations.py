"""What tests of bad requests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coupon_service.errors import InvalidArgument


def bad_fields(read: Callable[[], object]) -> list[str]:
    """The paths of the fields that a request is refused for, in the order of the answer."""
    with pytest.raises(InvalidArgument) as caught:
        read()
    return [violation.field for violation in caught.value.violations]
