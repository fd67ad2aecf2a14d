"""What the documentation says that a setting accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from coupon_service.settings.text import expected


def test_a_path_that_is_optional_is_a_file_and_any_other_a_folder() -> None:
    assert expected(FieldInfo(annotation=Path)) == "a folder"
    assert expected(FieldInfo(annotation=Path | None)) == "a file"  # pyright: ignore[reportArgumentType]


def test_a_type_without_words_is_an_error_and_not_a_folder() -> None:
    with pytest.raises(TypeError, match="no words for the values of <class 'float'>"):
        expected(FieldInfo(annotation=float))
