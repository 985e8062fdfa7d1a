"""The doctor's checks: what is broken is reported with what mends it, and nothing after it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_models import doctor
from vla_models.doctor import examine


def test_every_check_has_a_fix_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    checks = list(examine(quick=True))
    assert {c.group for c in checks} == {"machine", "packages", "frameworks"}
    assert all(bool(c.fix) == (c.status in ("missing", "broken")) for c in checks if c.group != "frameworks")


@pytest.mark.parametrize(("free", "fix"), [(0, "larger/disk"), (1 << 50, "")])
def test_a_full_disk_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, fix: str) -> None:
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    cache = next(c for c in examine(quick=True) if c.name == "cache")
    assert cache.status == ("broken" if fix else "ok")
    assert fix in cache.fix


def test_the_chain_stops_at_its_first_broken_link(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ValueError("the road ends here\nand a second line")

    monkeypatch.setattr(doctor, "_CHAIN", (("torch", doctor._check_torch), ("roads", broken), ("never", broken)))
    works = [c for c in examine() if c.group == "works"]
    assert [(c.name, c.status) for c in works] == [("torch", "ok"), ("roads", "broken")]
    assert works[1].detail == "ValueError: the road ends here"


@pytest.mark.slow
def test_the_whole_chain_works_here() -> None:
    works = [c for c in examine() if c.group == "works"]
    assert [c.status for c in works] == ["ok"] * len(doctor._CHAIN), works
