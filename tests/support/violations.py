"""The field violations of invalid requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coupon_service.errors import InvalidArgument


def bad_fields(read: Callable[[], object]) -> list[str]:
    """The paths of the violations that reading a request raises, in order."""
    with pytest.raises(InvalidArgument) as caught:
        read()
    return [violation.field for violation in caught.value.violations]
