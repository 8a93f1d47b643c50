"""What a record says of how it was made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rio_bench import provenance


def test_the_revision_is_this_checkouts_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.check_output(["git", "-C", str(tmp_path), *who, *arguments], text=True).strip()

    module = tmp_path / "site-packages" / "provenance.py"
    module.parent.mkdir()
    module.write_text("one")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.code_state.__wrapped__() == {"revision": None, "dirty": None}

    git("init", "-q")
    (tmp_path / "theirs").write_text("")
    git("add", "theirs")
    git("commit", "-qm", "theirs")
    assert provenance.code_state.__wrapped__() == {"revision": None, "dirty": None}

    git("add", "site-packages/provenance.py")
    git("commit", "-qm", "ours")
    assert provenance.code_state.__wrapped__() == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    module.write_text("two")
    assert provenance.code_state.__wrapped__() == {"revision": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance.code_state.__wrapped__() == {"revision": None, "dirty": None}
