"""Packages that add formats or methods by entry points."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, module: str, text: str, target: str
) -> None:
    """Make what pip would make of a package with an entry point."""
    site = folder / "site"
    site.mkdir()
    (site / f"{module}.py").write_text(text)
    information = site / f"{module}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\nadded = {module}:{target}\n")
    monkeypatch.syspath_prepend(str(site))
