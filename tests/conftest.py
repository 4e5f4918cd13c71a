"""Fixtures shared by all tests: the folders of real data and golden outputs, and a deterministic start."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _require(path: Path, what: str) -> Path:
    if path.exists():
        return path
    message = f"{what} not found at {path}"
    if os.environ.get("FRAMEBANK_REQUIRE_GOLDEN") == "1":
        pytest.fail(message + "; FRAMEBANK_REQUIRE_GOLDEN=1 forbids skipping")
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; skips (or fails, when required) where it is absent."""
    return _require(ROOT.parent / "shared", "real data (../shared)")


def golden_directory() -> Path:
    """Where parity fixtures are looked for: ``FRAMEBANK_GOLDEN``, else ../shared/golden/fixtures."""
    return Path(os.environ.get("FRAMEBANK_GOLDEN", ROOT.parent / "shared" / "golden" / "fixtures"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of parity fixtures; skips (or fails, when required) where it is absent."""
    return _require(golden_directory(), "parity fixtures")
