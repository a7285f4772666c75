"""The tables of any ablation: values of every cell, differences from a baseline, effects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.records.frame import Records, short
from analysis.statistics import factorial
from analysis.statistics.stats import p_text
from analysis.tables.columns import GRID, column
from analysis.tables.comparable import spread_of
from analysis.tables.compare import (
    TEST_WORDS,
    Line,
    effects,
    find_group,
    lines,
    resolution,
    seed_correlation,
)
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.pivot import label_cells, label_headings, table_of
from analysis.tables.shared import explain_numbers, progress, row_notes, shown_metrics, value_cell
from mpcc.runs.run_dir import DONE
from tune.plan.plan import FULL_MODEL

Effects = Mapping[str, tuple[list[factorial.Effect], str]]
"""Metric -> its effects and a line on the design."""


def baseline_of(records: Records, groups: Sequence[Group], name: str | None) -> Group:
    """The named baseline, else the full model of an ablation, else the cell of the base settings.

    If there is none of these: the first cell with a finished trial.
    """
    if name:
        return find_group(groups, name)
    full = [g for g in groups if g.variant == FULL_MODEL]
    own = [g for g in groups if g.cell_key == records.sweeps[0].base_key]
    return [*full, *own, *(g for g in groups if g.done), groups[0]][0]


def labels_of(groups: Sequence[Group]) -> list[str]:
    """The fields that label the rows in the first columns of a grid's table (`label_cells`)."""
    variants = ["variant", "changes"] if any(group.variant for group in groups) else []
    return [*variants, *groups[0].axes] or ["cell"]


@dataclass(frozen=True)
class GridResult:
    """The tables of a grid and the comparisons and effects in them, as numbers."""

    tables: list[Table]
    lines: list[Line]
    effects: Effects


def grid_tables(
    records: Records, groups: Sequence[Group], test: str, baseline: Group
) -> GridResult:
    """The tables of values, differences, effects and confirmation, those that the grid has."""
    goals = [name for search in records.searches for name in search["objectives"]]
    metrics = list(dict.fromkeys([*shown_metrics(groups), *goals]))
    judged, selection = judged_on(records, baseline)
    compared = [judged if group is baseline else group for group in groups]
    found = {m: lines(compared, judged, m, test) for m in metrics}
    # Points of a search share no levels to average over: the search's tables have fANOVA instead.
    axes = [] if records.searches else records.swept
    measured = {m: effects(groups, axes, m) for m in metrics}
    labels = labels_of(groups)
    seeds = "one part less" if "variant" in labels else "seeds"
    what = " × ".join(map(short, records.swept)) or seeds
    values = table_of("grid", what, groups, (labels, ()), metrics, test, each=True)
    asked = list(dict.fromkeys([*metrics, *GRID]))
    tables = [explain_numbers(values, records, groups, asked, test)]
    if any(found.values()):
        tables.append(differences_table(compared, judged, found, test))
        tables[-1].lines[:0] = selection  # In front: LaTeX drops the last lines.
    effect_table = effects_table(measured)
    if effect_table.rows:
        tables.append(effect_table)
    else:
        tables[0].made += dict.fromkeys(remark for _, remark in measured.values() if remark)
    fresh = groups_of(records, confirm=True)
    if fresh:
        tables.append(confirm_table("grid-confirm", groups, fresh, metrics))
    return GridResult(tables, [line for many in found.values() for line in many], measured)


def judged_on(records: Records, baseline: Group) -> tuple[Group, list[str]]:
    """The baseline with the seeds that may judge it, and lines on the seeds that chose it.

    On the seeds that chose it, a best cell looks too good, so that every part left out of it seems
    to matter. If two or more of its fresh seeds have finished, only fresh seeds are used.
    """
    chose = records.chosen_on(baseline.cell_key)
    if not chose:
        return baseline, []
    named = ", ".join(map(str, chose))
    fresh = tuple(trial for trial in baseline.trials if trial["seed"] not in chose)
    done = [str(trial["seed"]) for trial in fresh if trial["state"] == DONE]
    if len(done) < 2:
        return baseline, [
            f"The full model was chosen as the best on seeds {named}, which judge it here too; "
            "that favours it, and what is left out seems to matter more than it does.",
            "Fresh seeds avoid that: --ablate --ablate-from best --seeds A,B,C.",
        ]
    return replace(baseline, trials=fresh, n_planned=len(fresh)), [
        f"The full model was chosen as the best on seeds {named}; the differences are from its "
        f"fresh seeds only ({', '.join(done)})."
    ]


def differences_table(
    groups: Sequence[Group], baseline: Group, found: dict[str, list[Line]], test: str
) -> Table:
    """Every cell minus the baseline: difference with interval, g, p, Holm's p, verdict."""
    labels = labels_of(groups)
    table = Table("grid-differences", f"Differences from {baseline.label()}")
    heads = ("difference", "95 % interval", "g", "p", "p (Holm)", "seeds needed")
    table.headings = [Heading("metric", numeric=False), *label_headings(labels)]
    table.headings += [*map(Heading, heads), Heading("", numeric=False)]
    for metric, compared in found.items():
        for line in compared:
            label = [Cell(column(metric).heading), *label_cells(line.group, labels)]
            table.rows.append(Row((*label, *_difference_cells(line))))
    table.lines = [
        f"Cell minus baseline, by {TEST_WORDS[test]}; Holm over the comparisons of one metric "
        "(5 %). 'Not significant' is not 'no effect'."
        + " Where pooling is refused, the interval is Welch's."
        * (test == "pooled")
    ]
    units = "g is Hedges' g."
    if test == "paired":
        units = "g is Hedges' g in the SD of a cell; p and the seeds needed go by the SD of "
        units += "differences."
    needed = "Seeds needed are not stated: the power of this test depends on the values."
    if test in factorial.POWERED:
        needed = "Seeds needed: per cell, for this test to find a difference as large as the one "
        needed += "seen with 80 % power at Holm's first step over the comparisons of the metric. "
        needed += "The true difference is often smaller than the one seen."
    table.made = [
        f"The test was chosen before looking. {units} {needed}",
        "For the next sweep, before looking at it: where seeds are in truth correlated over cells "
        "by more than about 0.2, --test paired finds more than Welch.",
        *(design_line(groups, some, metric, test) for metric, some in found.items() if some),
    ]
    return table


def _difference_cells(line: Line) -> list[Cell]:
    spec, result = column(line.metric), line.result
    estimate = result.difference
    interval = "–"
    if math.isfinite(estimate.low):
        interval = f"{spec.signed(estimate.low)} to {spec.signed(estimate.high)}"
    difference = spec.signed(estimate.estimate) if math.isfinite(estimate.estimate) else "–"
    g = f"{result.g:.2f}".replace("-", "−") if math.isfinite(result.g) else "–"
    powered = not line.refused and result.test != "permutation" and math.isfinite(result.effect)
    many = f"> {factorial.MAX_SEEDS:,}" if powered else "–"
    return [
        Cell(difference, sort=estimate.estimate),
        Cell(interval),
        Cell(g, sort=result.g),
        Cell(p_text(result.p), sort=result.p),
        Cell(p_text(line.holm), sort=line.holm),
        Cell(str(line.seeds_needed or many), sort=line.seeds_needed),
        Cell(line.verdict),
    ]


def design_line(groups: Sequence[Group], compared: Sequence[Line], metric: str, test: str) -> str:
    """One metric's smallest detectable differences, whether pooling is valid, seed correlation."""
    pool, shared = spread_of(groups, metric), seed_correlation(groups, metric)
    fair = f"no sign that spreads differ (Brown-Forsythe p {p_text(pool.p)}, ratio "
    fair += f"{pool.ratio:.1f}); for the next sweep --test pooled may be considered"
    parts = [
        _least(groups, compared, metric, test),
        f"no pooled SD: {pool.refusal}" if pool.refusal else fair,
    ]
    if math.isfinite(shared):
        text = f"correlation of seeds over cells {shared:.2f}, estimated from few seeds"
        parts.append(text.replace("-0.", "−0."))
    return f"{column(metric).label}: {'; '.join(part for part in parts if part)}."


def _least(groups: Sequence[Group], compared: Sequence[Line], metric: str, test: str) -> str:
    """The smallest detectable differences, as a phrase; empty if none is stated."""
    found, spec = resolution(groups, compared, metric, test), column(metric)
    if found is None:
        return ""

    def size(least: float) -> str:
        return f"{least:.1f} SD" if found.without else spec.difference(least * found.unit)

    whose = "of the differences" if test == "paired" else "of a cell"
    unit = (
        f": none for all, {found.without}" if found.without else " " + spec.difference(found.unit)
    )
    text = (
        f"{found.n} seeds{found.fewer} find a difference of {size(found.alone)} with 80 % power by "
        f"{TEST_WORDS[test]}"
    )
    if found.comparisons > 1:
        text += f" in one comparison, of {size(found.first)} at Holm's first step over "
        text += str(found.comparisons)
    return f"{text} (SD {whose}{unit})"


def effects_table(measured: Effects) -> Table:
    """Main effects and interactions of a grid of two or more axes; no rows if there are fewer."""
    table = Table("grid-effects", "Effects of the axes")
    table.headings = [Heading("metric", numeric=False), Heading("effect", numeric=False)]
    table.headings += map(Heading, ("df", "F", "p", "η²"))
    for metric, (found, remark) in measured.items():
        if remark and not found:
            table.lines.append(f"{column(metric).label}: {remark[0].lower()}{remark[1:]}")
        for effect in found:
            cells = (
                Cell(column(metric).heading, table.noted((remark, remark))),
                Cell("seed (block)" if effect.name == "seed" else effect.name),
                Cell(str(effect.df), sort=effect.df),
                Cell(f"{effect.f:,.2f}", sort=effect.f),
                Cell(p_text(effect.p), sort=effect.p),
                Cell(f"{effect.eta2:.3f}", sort=effect.eta2),
            )
            table.rows.append(Row(cells))
    table.lines += [
        "Analysis of variance, type II, with the seed as block; η² is the share of the total sum "
        "of squares. p is not adjusted over effects."
    ]
    return table


def confirm_table(
    name: str, groups: Sequence[Group], fresh: Sequence[Group], metrics: Sequence[str]
) -> Table:
    """The chosen cells on the seeds that chose them and on fresh ones (quote these)."""
    labels = labels_of(fresh)
    table = Table(name, f"Confirmation on fresh seeds: {progress(fresh)}", counts=True)
    table.headings = [*label_headings(labels), Heading("metric", numeric=False)]
    table.headings += map(Heading, ("chosen on", "fresh seeds (quote these)", "fresh − chosen"))
    for group in fresh:
        first = next((g for g in groups if g.cell_key == group.cell_key and g.done), None)
        for metric in metrics:
            spec, shift = column(metric), Cell("–")
            if first and first.summary(metric).n and group.summary(metric).n:
                ours, theirs = group.summary(metric).mean, first.summary(metric).mean
                difference = ours.estimate - theirs.estimate
                shift = Cell(spec.signed(difference), sort=difference)
            chosen = value_cell(table, first, metric) if first else Cell("–")
            label = label_cells(group, labels, row_notes(table, group))
            cells = (Cell(spec.heading), chosen, value_cell(table, group, metric), shift)
            table.rows.append(Row((*label, *cells)))
    table.lines = [
        "On the seeds that chose it the best of several cells looks better than it is (the "
        "winner's curse). The fresh seeds had no part in the choice: quote their figure. The two "
        "are never averaged."
    ]
    return table
