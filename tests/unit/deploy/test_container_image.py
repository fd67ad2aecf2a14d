"""Preconditions of `make image-check`, and the pip settings that its build gets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import container_image as image_check


def test_missing_root_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(image_check.CheckError, match=r"^The image was not checked: .* root.*\.$"):
        image_check.require_machine(None)


def test_missing_programs_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def which(program: str) -> str | None:
        return None if "b" in program else program

    monkeypatch.setattr(shutil, "which", which)
    with pytest.raises(image_check.CheckError, match=r"buildah and debootstrap cannot be found \("):
        image_check.require_machine(None)
    with pytest.raises(image_check.CheckError, match=r": buildah cannot be found \("):
        image_check.require_machine("python:3.13-slim")


def test_build_gets_the_package_index_in_a_private_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = "global.index-url='https://user:secret@host/simple'\n:env:.cert='/etc/ca.pem'\nx.y='z'"

    def call(*_: str) -> str:
        return listed

    monkeypatch.setattr(image_check, "call", call)
    conf = tmp_path / "pip.conf"
    assert image_check.write_pip_conf(conf) == ["/etc/ca.pem"]
    assert conf.read_text().splitlines() == [
        "[global]",
        "cert = /etc/ca.pem",
        "index-url = https://user:secret@host/simple",
    ]
    assert conf.stat().st_mode & 0o077 == 0
