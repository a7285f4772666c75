"""Which cells' values may stand together: be compared, pooled, ranked, or averaged over an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.records.frame import short
from analysis.statistics import factorial as designs
from analysis.statistics import stats
from analysis.tables.columns import column
from analysis.tables.groups import Group, unlike
from mpcc.config import DEFAULTS, EVALUATION, value_text
from mpcc.runs.run_dir import DIVERGED

WATCHING = tuple(name for name in EVALUATION if name != "n_standing_passes")
"""Settings that look at a model without changing it; `unlike` knows which metrics they touch."""
SPEED = ("cpu_threads", "fast")


@dataclass(frozen=True)
class Spread:
    """The spread of one metric over a grid, and whether one SD may stand for all cells."""

    std: float
    """Pooled residual SD."""
    df: int
    cells: int
    """Cells that have a spread."""
    agree: bool
    p: float
    """Brown-Forsythe."""
    ratio: float
    collapsed: str
    """The cell that forbids pooling, by name; empty where none does."""

    @property
    def refusal(self) -> str:
        """Why a pooled SD is refused; empty where it is not."""
        if self.collapsed:
            return f"pooled SD refused: {self.collapsed}"
        if not self.agree:
            if math.isnan(self.ratio):
                return "pooled SD refused: fewer than two cells have two seeds"
            if math.isnan(self.p) and math.isfinite(self.ratio):
                return "pooled SD refused: two seeds are too few to compare spreads"
            if math.isinf(self.ratio):
                return "pooled SD refused: a cell has no spread"
            if self.p >= stats.ALPHA:
                return f"pooled SD refused: the largest SD is {self.ratio:.1f} times the smallest"
            test = f"Brown-Forsythe p {p_text(self.p)}, ratio {self.ratio:.1f}"
            return f"pooled SD refused: spreads differ ({test})"
        return ""


def spread(groups: Sequence[Group], metric: str) -> Spread:
    """The pooled residual SD of a metric and whether it may be used."""
    values = [g.summary(metric).array for g in groups if g.summary(metric).n]
    agree, p, ratio = designs.spreads_agree(values)
    df = sum(x.size - 1 for x in values)
    cells = sum(x.size > 1 for x in values)
    return Spread(stats.pooled_std(values), df, cells, agree, p, ratio, collapse(groups))


def spread_with(groups: Sequence[Group], reference: Group, metric: str) -> Spread:
    """The spread over the cells measured like `reference`, and those without any result.

    A cell that diverged altogether has no value to pool, and forbids pooling all the same.
    """
    alike = [g for g in groups if not g.done or not apart(g, reference, metric)]
    return spread(alike, metric)


def collapse(groups: Sequence[Group]) -> str:
    """The first sign that these cells' values do not scatter alike, in words; empty without one."""
    for group in groups:
        if group.counts.get(DIVERGED):
            return "a cell diverged"
        if any("collapsed" in trial["failures"] for trial in group.done):
            return "a cell collapsed"
    return ""


def apart(a: Group, b: Group, metric: str, axes: Sequence[str] | None = None) -> str:
    """Why these cells may not be set against each other; empty where they may.

    They may where they are measured alike, by the same code, on the same kind of device, after
    equally many iterations. With
    `axes` also: where they differ in nothing that was not swept. What was swept may differ.
    """
    why = unlike(a, b, metric)
    if why or not (a.done and b.done):
        return why or ""
    first, second = a.done[0], b.done[0]
    if not a.code_pooled and first["code_id"] != second["code_id"]:
        return f"code {first['code'] or 'unknown'} and {second['code'] or 'unknown'}"
    if first["device_kind"] != second["device_kind"]:
        return f"on {first['device_kind'] or 'unknown'} and {second['device_kind'] or 'unknown'}"
    swept = axes or ()
    full = all(g.done[0]["iteration"] == g.settings["iterations"] for g in (a, b))
    if first["iteration"] != second["iteration"] and not ("iterations" in swept and full):
        return f"after {first['iteration']:,} and {second['iteration']:,} iterations"
    if axes is None or a.variant or b.variant:
        return ""
    may_differ = {"seed", *axes, *WATCHING, *SPEED}
    differ = [n for n in DEFAULTS if n not in may_differ and a.settings[n] != b.settings[n]]
    texts = {n: (value_text(a.settings[n]), value_text(b.settings[n])) for n in differ}
    named = [f"{short(n)} {x} and {y}" for n, (x, y) in texts.items() if x != y]
    return f"run with {', '.join(named)}" if named else ""


def p_text(p: float) -> str:
    """A p value to three digits, the least as a bound."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def kind(group: Group, metric: str) -> dict[str, str]:
    """What must be the same for two cells to be ranked by this metric, in words."""
    names = ("dataset", "split", "image_size", *column(metric).depends_on)
    found = {short(n): value_text(group.settings[n]) for n in names if n != "batch_size"}
    trial = group.done[0]
    found |= {"images": f"{trial['n_images']} ({trial['fingerprint']})"}
    found["iterations reached"] = f"{trial['iteration']:,}"
    found["device"] = str(trial["device_kind"] or "unknown")
    return found if group.code_pooled else found | {"code": str(trial["code_id"])}
