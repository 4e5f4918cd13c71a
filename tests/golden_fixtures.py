"""Parity fixtures: outputs of the original code, found by family prefix, with their own tolerances.

``NAME.safetensors`` holds ``weight/*``, ``input/*`` and ``output/*``, ``NAME.json`` what each of them is.
Every parameter of a test comes from the JSON, so that fixtures of other sizes can be dropped into the folder.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, golden_directory
from safetensors.torch import load_file


@dataclass(frozen=True)
class Golden:
    """One fixture."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def part(self, kind: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors under ``weight``, ``input`` or ``output`` whose names begin with a prefix."""
        start = f"{kind}/{prefix}"
        return {key[len(start) :]: value for key, value in self._tensors.items() if key.startswith(start)}

    def tolerance(self) -> tuple[float, float, bool]:
        """rtol, atol, and whether rtol counts relative to the reference's largest magnitude."""
        stated = self.meta.get("tolerance")
        if isinstance(stated, dict):
            return stated.get("rtol", 0.0), stated["atol"], False
        found = re.search(
            r"<= ([0-9.e-]+)\*absmax\(reference\)\+([0-9.e-]+)", self.meta["suggested_tolerance"]
        )
        assert found, self.meta["suggested_tolerance"]
        return float(found[1]), float(found[2]), True

    def errors(self, got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
        """|got - want| as a share of what is allowed; above 1 fails."""
        assert got.shape == want.shape, f"{tuple(got.shape)} instead of {tuple(want.shape)}"
        rtol, atol, by_largest = self.tolerance()
        want = want.to(torch.float64)
        scale = want.abs().max() if by_largest and want.numel() else want.abs()
        return (got.to(torch.float64) - want).abs() / (rtol * scale + atol)

    def check(self, got: torch.Tensor, name: str) -> None:
        """Compare with ``output/name`` at the stated tolerance."""
        share = self.errors(got.detach(), self._tensors[f"output/{name}"])
        worst = float(share.max()) if share.numel() else 0.0
        assert worst <= 1, f"{self.path.stem}: {name} is off by {worst:.3g} times the tolerance"


def cases(*prefixes: str, root: Path | None = None) -> list[Any]:
    """Parametrisation over the fixtures whose names begin with a prefix; one that skips without any."""
    folder = root or golden_directory()
    found = sorted(path for prefix in prefixes for path in folder.glob(f"{prefix}*.json"))
    if not found:
        reason = f"no parity fixtures {', '.join(prefixes)} in {folder}"
        # A folder that somebody chose may hold some families only.
        assert os.environ.get("FRAMEBANK_REQUIRE_GOLDEN") != "1" or "FRAMEBANK_GOLDEN" in os.environ, reason
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(Golden(path), id=path.stem) for path in found]


def manifest(name: str) -> dict[str, Any]:
    """Keys and shapes of a full-size official checkpoint; skips where the folder is absent."""
    folders = [golden_directory().parent / "manifests", ROOT.parent / "shared" / "golden" / "manifests"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert os.environ.get("FRAMEBANK_REQUIRE_GOLDEN") != "1", f"no manifest {name} in {folders}"
    pytest.skip(f"no manifest {name} in {folders[0]}")
