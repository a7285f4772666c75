"""Sweeps on which statistics are undefined: every output says so in words, and holds no nan."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import make_tables
from tests.records import SweepBuilder, metrics_of, table1_changes

NAN, INF = math.nan, math.inf
CHANGES = table1_changes()
FOREIGN = re.compile(r"(?<![A-Za-z])(?:nan|NaN|inf|Infinity|None)(?![A-Za-z])|np\.|float64")

Values = Callable[[int, int], Mapping[str, Any] | None]
"""(cell, seed) -> the metrics of that trial; None for one that was not run."""


def plausible(cell: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(10 * cell + seed)
    return metrics_of(0.6 + cell / 20 + 0.01 * float(rng.standard_normal()), rng)


def same(cell: int, seed: int) -> dict[str, Any]:
    return {"acc_majority": 0.5, "acc_hungarian": 0.5, "mse": 0.1}


def where(hit: Callable[[int, int], bool], other: Mapping[str, Any] | None) -> Values:
    """Plausible values, but these for some trials."""
    return lambda c, s: (None if other is None else plausible(c, s) | other) if hit(c, s) else (
        plausible(c, s)
    )  # fmt: skip


CASES: dict[str, tuple[Sequence[int], Values]] = {
    "one seed": ((0,), plausible),
    "two seeds": ((0, 1), plausible),
    "unequal n": ((0, 1, 2), where(lambda c, s: s > c, None)),
    "no common seed": ((0, 1, 2, 3), where(lambda c, s: s % 2 == c % 2, None)),
    "one common seed": ((0, 1, 2), where(lambda c, s: s == 1 + c % 2, None)),
    "no spread": ((0, 1, 2), same),
    "no spread in one": ((0, 1, 2), lambda c, s: same(c, s) if c == 1 else plausible(c, s)),
    "one trial is nan": ((0, 1, 2), where(lambda c, s: (c, s) == (1, 1), {"mse": NAN})),
    "one cell is nan": ((0, 1, 2), where(lambda c, s: c == 1, {"acc_majority": NAN, "mse": NAN})),
    "the baseline is nan": ((0, 1), where(lambda c, s: c == 0, {"acc_majority": NAN})),
    "all are nan": ((0, 1), lambda c, s: {"acc_majority": NAN, "mse": NAN}),
    "one is infinite": ((0, 1, 2), where(lambda c, s: (c, s) == (0, 0), {"mse": INF})),
    "one cell is infinite": ((0, 1, 2), where(lambda c, s: c == 0, {"mse": -INF})),
    "nothing was run": ((0, 1), where(lambda c, s: True, None)),
    "one cell was run": ((0, 1, 2), where(lambda c, s: c > 0, None)),
    "nothing was measured": ((0, 1), lambda c, s: {}),
}


def built(path: Path, case: str, variants: bool) -> SweepBuilder:
    seeds, values = CASES[case]
    sweep = SweepBuilder(path)
    names = ("full-model", "a", "b", "c", "d") if variants else (None,) * 5
    for change, name in zip(CHANGES, names, strict=True):
        sweep.plan([change], seeds, variant=name)
    for cell, change in enumerate(CHANGES):
        for seed in seeds:
            found = values(cell, seed)
            if found is not None:
                sweep.trial(change, seed, found, kmeans=NAN if "nan" in case else 0.79)
    return sweep


def outputs(folder: Path) -> dict[str, str]:
    """The text of every file that people or programs read, without what only draws."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".md", ".csv", ".tex", ".html", ".json"):
            continue
        text = file.read_text()
        if file.suffix == ".html":
            text = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)
            text = html.unescape(re.sub(r"base64,[\w+/=]+", "", text))
        found[file.name] = text
    return found


def check(name: str, text: str) -> None:
    for line in text.splitlines():
        found = FOREIGN.search(line)
        assert not found, f"{name}: …{line[max(0, found.start() - 120) : found.end() + 60]}…"


@pytest.mark.parametrize("variants", [False, True], ids=["grid", "leave one out"])
@pytest.mark.parametrize("case", CASES)
def test_no_output_of_a_degenerate_sweep_has_a_number_that_is_none(
    tmp_path: Path, case: str, variants: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = built(tmp_path / "s", case, variants)
    command = ["--runs", str(sweep.path), "--table", "all", "--format", "md,csv,tex,html"]
    for test in ("welch", "paired", "pooled", "permutation"):
        assert make_tables.main([*command, "--test", test]) == 0
        check(f"{test}, printed", capsys.readouterr().out)
        for name, text in outputs(sweep.path / "tables").items():
            check(f"{test}, {name}", text)
    key = sweep.config(CHANGES[0], 0).cell_key
    assert make_tables.main(["--runs", str(sweep.path), "--explain", key]) == 0
    check("explain", capsys.readouterr().out)
