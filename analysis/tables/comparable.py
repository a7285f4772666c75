"""Which cells are comparable: may be compared, pooled, ranked, or averaged over an axis."""

from collections.abc import Sequence

from analysis.records.frame import AGREEMENT, short
from analysis.statistics import stats
from analysis.tables.columns import column
from analysis.tables.groups import MIX, Group
from mpcc.config import DEFAULTS, EVALUATION, value_text
from mpcc.runs.run_dir import DIVERGED

WATCHING = tuple(name for name in EVALUATION if name != "n_standing_passes")
"""Settings of the evaluation; `_measured_by` says which metrics depend on them."""
SPEED = ("cpu_threads", "fast")


def spread_of(groups: Sequence[Group], metric: str, like: Group | None = None) -> stats.Spread:
    """The pooled spread of a metric over the cells that have values.

    like: use only cells comparable with this one and cells without a finished trial. A cell of
    which every seed diverged has no value to pool, but it still forbids pooling.
    """
    pooled = [g for g in groups if like is None or not g.done or not apart(g, like, metric)]
    values = [g.summary(metric).array for g in pooled if g.summary(metric).n]
    return stats.spread(values, collapse(pooled))


def collapse(groups: Sequence[Group]) -> str:
    """Why a pooled SD is not valid for these cells; empty if none diverged or collapsed."""
    for group in groups:
        if group.counts.get(DIVERGED):
            return "a cell diverged"
        if any("collapsed" in trial["failures"] for trial in group.done):
            return "a cell collapsed"
    return ""


def identical(a: Group, b: Group) -> bool:
    """Whether two cells are the same trials under two names: equal results on all common seeds."""
    common = a.outcome.keys() & b.outcome.keys()
    return bool(common) and all(a.outcome[seed] == b.outcome[seed] for seed in common)


def _measured_by(metric: str) -> list[str]:
    """The settings that determine the images and the method by which a metric is measured."""
    names = ("dataset", "split", "image_size", *column(metric).depends_on)
    return [name for name in names if name != "batch_size"]


def _measured_apart(a: Group, b: Group, metric: str) -> str:
    """Why this metric of two groups was not measured the same way; empty if it was."""
    if metric == AGREEMENT:
        return "the figures of a cell's seeds depend on each other"
    pairs = [
        f"{n} {value_text(a.settings[n])} and {value_text(b.settings[n])}"
        for n in _measured_by(metric)
        if a.settings[n] != b.settings[n]
    ]
    if pairs:
        return "measured with " + ", ".join(pairs)
    images = [n for n in ("fingerprint", "n_images") if a.done and b.done]
    other = [MIX[n] for n in images if a.done[0][n] != b.done[0][n]]
    return f"measured on other images ({other[0]})" if other else ""


def apart(a: Group, b: Group, metric: str, axes: Sequence[str] | None = None) -> str:
    """Why two cells are not comparable; empty if they are.

    Cells are comparable if the metric is measured the same way, by the same code, on the same kind
    of device, at the same iteration. With `axes`, cells of a grid may differ only on these axes.
    """
    why = _measured_apart(a, b, metric)
    if why or not (a.done and b.done):
        return why
    first, second = a.done[0], b.done[0]
    if not a.code_pooled and first["code_id"] != second["code_id"]:
        return f"code {first['code'] or 'unknown'} and {second['code'] or 'unknown'}"
    if first["device_kind"] != second["device_kind"]:
        return f"on {first['device_kind'] or 'unknown'} and {second['device_kind'] or 'unknown'}"
    full = all(g.done[0]["iteration"] == g.settings["iterations"] for g in (a, b))
    swept = full and "iterations" in (axes or ())
    if first["iteration"] != second["iteration"] and not swept:
        return f"after {first['iteration']:,} and {second['iteration']:,} iterations"
    if axes is None or a.variant or b.variant:
        return ""
    may_differ = {"seed", *axes, *WATCHING, *SPEED}
    rest = [name for name in DEFAULTS if name not in may_differ]
    texts = {n: (value_text(a.settings[n]), value_text(b.settings[n])) for n in rest}
    named = [f"{short(n)} {x} and {y}" for n, (x, y) in texts.items() if x != y]
    return f"run with {', '.join(named)}" if named else ""


def kind(group: Group, metric: str) -> dict[str, str]:
    """What must be equal for two cells to be ranked by this metric: name -> value, as text."""
    found = {short(n): value_text(group.settings[n]) for n in _measured_by(metric)}
    trial = group.done[0]
    found |= {"images": f"{trial['n_images']} ({trial['fingerprint']})"}
    found["iterations reached"] = f"{trial['iteration']:,}"
    found["device"] = str(trial["device_kind"] or "unknown")
    return found if group.code_pooled else found | {"code": str(trial["code_id"])}
