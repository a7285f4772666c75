"""The tables of any ablation: values of every cell, differences from a baseline, effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.records.frame import Records, short
from analysis.statistics import factorial as designs
from analysis.tables.columns import GRID, column
from analysis.tables.comparable import p_text, spread
from analysis.tables.compare import (
    TEST_WORDS,
    Line,
    default_baseline,
    effects,
    find_group,
    lines,
    seed_correlation,
)
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.resolution import resolution
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    kmeans_rows,
    progress,
    row_notes,
    shown_metrics,
    value_cell,
    with_best,
)
from mpcc.config import value_text
from mpcc.runs.run_dir import DONE


def swept(records: Records) -> list[str]:
    """The axes of a table: what was swept, but the seed, which is averaged over."""
    return [axis for axis in records.axes if axis != "seed"]


def baseline_of(records: Records, groups: Sequence[Group], name: str | None) -> Group:
    """The named baseline, else the cell with the base settings, else the first with values."""
    if name:
        return find_group(groups, name, swept(records))
    return default_baseline(groups, dict(records.sweeps[0].base))


def labels(
    table: Table, group: Group, axes: Sequence[str], variants: bool, *, notes: bool = True
) -> list[Cell]:
    """The first cells of a row: the variant where there are any, then the swept settings.

    notes: whether the row says which part of a cell it is and how its models failed.
    """
    cells = [Cell(group.variant or "–"), Cell(group.changes)] if variants else []
    for axis in axes:
        value = group.settings[axis]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        cells.append(Cell(value_text(value), sort=value if number else value_text(value)))
    cells = cells or [Cell("base settings")]
    marks = row_notes(table, group) if notes else ()
    return [Cell(cells[0].text, marks, sort=cells[0].sort), *cells[1:]]


def label_headings(groups: Sequence[Group], axes: Sequence[str], variants: bool) -> list[Heading]:
    """The headings over `labels`."""
    heads = [Heading(name, numeric=False) for name in ("variant", "change")] if variants else []
    return [*heads, *(Heading(short(axis)) for axis in axes)] or [Heading("cell", numeric=False)]


@dataclass(frozen=True)
class GridResult:
    """The tables of a grid and the comparisons and effects in them, as numbers."""

    tables: list[Table]
    lines: list[Line]
    effects: dict[str, tuple[list[designs.Effect], str]]


def grid_tables(
    records: Records, groups: Sequence[Group], test: str, baseline: Group
) -> GridResult:
    """Values, differences and effects, those that the grid has."""
    goals = [name for search in records.searches for name in search["objectives"]]
    metrics = list(dict.fromkeys([*shown_metrics(groups), *goals]))
    judged, selection = judged_on(records, baseline)
    compared = [judged if group is baseline else group for group in groups]
    found = {m: lines(compared, judged, m, test, swept(records)) for m in metrics}
    if records.searches:  # Each point has levels of its own: fANOVA stands in its table instead.
        measured: dict[str, tuple[list[designs.Effect], str]] = {m: ([], "") for m in metrics}
    else:
        measured = {m: effects(groups, swept(records), m) for m in metrics}
    tables = [values_table(records, groups, metrics, test)]
    if any(found.values()):
        tables.append(differences_table(records, compared, judged, found, test))
        tables[-1].lines += selection
    effect_table = effects_table(measured)
    if effect_table:
        tables.append(effect_table)
    else:
        tables[0].made += dict.fromkeys(remark for _, remark in measured.values() if remark)
    fresh = groups_of(records, confirm=True)
    if fresh:
        tables.append(confirm_table(records, groups, fresh, metrics))
    return GridResult(tables, [line for many in found.values() for line in many], measured)


def judged_on(records: Records, baseline: Group) -> tuple[Group, list[str]]:
    """The baseline with the seeds that may judge it, and a line on those that chose it.

    A best cell is too good on the seeds that chose it, and every part left out of it then seems to
    matter. Where it has fresh seeds only they count.
    """
    chose = records.chosen_on(baseline.cell_key)
    if not chose:
        return baseline, []
    named = ", ".join(map(str, chose))
    fresh = tuple(trial for trial in baseline.trials if trial["seed"] not in chose)
    if sum(trial["state"] == DONE for trial in fresh) < 2:
        return baseline, [
            f"The full model was chosen as the best on seeds {named}, which judge it here too; "
            "that favours it, and what is left out seems to matter more than it does. Fresh seeds "
            "avoid that: --ablate --ablate-from best --seeds A,B,C."
        ]
    seeds = ", ".join(str(trial["seed"]) for trial in fresh if trial["state"] == DONE)
    return replace(baseline, trials=fresh, n_planned=len(fresh)), [
        f"The full model was chosen as the best on seeds {named}; the differences are from its "
        f"fresh seeds {seeds} alone."
    ]


def values_table(
    records: Records, groups: Sequence[Group], metrics: Sequence[str], test: str
) -> Table:
    """Every cell with its swept settings and metrics."""
    axes, variants = swept(records), any(g.variant for g in groups)
    name = " × ".join(map(short, axes)) or ("one part less" if variants else "seeds")
    dataset = " and ".join(sorted({g.settings["dataset"] for g in groups}))
    table = Table("grid", f"{name} on {dataset}: {progress(groups)}")
    table.counts = counts_differ(groups)
    table.headings = label_headings(groups, axes, variants)
    table.headings += [Heading(column(metric).heading) for metric in metrics]
    columns = [
        with_best(groups, [value_cell(table, g, metric) for g in groups], metric, test)
        for metric in metrics
    ]
    for i, group in enumerate(groups):
        label = labels(table, group, axes, variants)
        table.rows.append(Row((*label, *(cells[i] for cells in columns))))
    table.rows += kmeans_rows(table, groups, len(table.headings) - len(metrics), metrics)
    return explain_numbers(table, records, groups, list(dict.fromkeys([*metrics, *GRID])), test)


def differences_table(
    records: Records,
    groups: Sequence[Group],
    baseline: Group,
    found: dict[str, list[Line]],
    test: str,
) -> Table:
    """Every cell minus the baseline: difference with interval, g, p, Holm's p, a word."""
    axes, variants = swept(records), any(g.variant for g in groups)
    table = Table("grid-differences", f"Differences from {baseline.label(axes)}")
    table.headings = [Heading("metric", numeric=False), *label_headings(groups, axes, variants)]
    table.headings += [Heading("difference"), Heading("95 % interval"), Heading("g")]
    table.headings += [Heading("p"), Heading("p (Holm)"), Heading("seeds needed")]
    table.headings += [Heading("", numeric=False)]
    for metric, compared in found.items():
        for line in compared:
            label = labels(table, line.group, axes, variants, notes=False)
            head = Cell(column(metric).heading)
            table.rows.append(Row((head, *label, *_difference_cells(line))))
    table.lines = [
        f"Cell minus baseline, by {TEST_WORDS[test]}; Holm over the comparisons of one metric "
        "(5 %). 'Not told apart' is not 'no effect'."
    ]
    table.made = [
        f"The test was chosen before looking. {_effect_line(test)} {_needed_line(test)}",
        "For the next sweep, before looking at it: where seeds are in truth correlated over cells "
        "by more than about 0.2, --test paired finds more than Welch.",
        *(
            design_line(groups, compared, metric, test)
            for metric, compared in found.items()
            if compared
        ),
    ]
    return table


def _effect_line(test: str) -> str:
    if test != "paired":
        return "g is Hedges' g."
    return "g is Hedges' g in the SD of a cell; p and the seeds needed go by the SD of differences."


def _difference_cells(line: Line) -> list[Cell]:
    spec, result = column(line.metric), line.result
    estimate = result.difference

    def signed(value: float) -> str:
        return ("−" if value < 0 else "+") + spec.shown(abs(value))

    interval = "–"
    if math.isfinite(estimate.low):
        interval = f"{signed(estimate.low)} to {signed(estimate.high)}"
    difference = signed(estimate.estimate) if math.isfinite(estimate.estimate) else "–"
    g = f"{result.g:.2f}".replace("-", "−") if math.isfinite(result.g) else "–"
    powered = not line.refused and result.test != "permutation" and math.isfinite(result.effect)
    many = f"> {designs.MAX_SEEDS:,}" if powered else "–"
    needed = str(line.seeds_needed) if line.seeds_needed else many
    return [
        Cell(difference, sort=estimate.estimate),
        Cell(interval),
        Cell(g, sort=result.g),
        Cell(p_text(result.p), sort=result.p),
        Cell(p_text(line.holm), sort=line.holm),
        Cell(needed, sort=line.seeds_needed),
        Cell(line.verdict),
    ]


def _needed_line(test: str) -> str:
    if test not in designs.POWERED:
        return "Seeds needed are not stated: the power of this test depends on the values."
    return (
        "Seeds needed: per cell, for this test to find a difference as large as the one seen with "
        "80 % power at Holm's first step over the comparisons of the metric."
    )


def design_line(groups: Sequence[Group], compared: Sequence[Line], metric: str, test: str) -> str:
    """What this design can find in one metric, whether pooling is fair, what seeds share."""
    spec, pool = column(metric), spread(groups, metric)
    parts = [_least(groups, compared, metric, test)]
    if pool.refusal:
        parts.append(f"no pooled SD: {pool.refusal.replace('pooled SD refused: ', '')}")
    else:
        parts.append(
            f"spreads agree (Brown-Forsythe p {p_text(pool.p)}, ratio {pool.ratio:.1f}): "
            "--test pooled is possible"
        )
    shared = seed_correlation(groups, metric)
    if math.isfinite(shared):
        parts.append(
            f"correlation of seeds over cells {shared:.2f}, estimated from few".replace(
                "-0.", "−0."
            )
        )
    return f"{spec.label}: {'; '.join(part for part in parts if part)}."


def _least(groups: Sequence[Group], compared: Sequence[Line], metric: str, test: str) -> str:
    """The smallest differences that are found, as a phrase; empty where none is stated."""
    found, spec = resolution(groups, compared, metric, test), column(metric)
    if found is None:
        return ""

    def size(least: float) -> str:
        return f"{least:.1f} SD" if found.without else spec.difference(least * found.unit)

    whose = "of the differences" if test == "paired" else "of a cell"
    unit = f"SD {whose}: none for all, {found.without}"
    if not found.without:
        unit = f"SD {whose} {spec.difference(found.unit)}"
    text = (
        f"{found.n} seeds{found.fewer} find a difference of {size(found.alone)} with 80 % power by "
        f"{TEST_WORDS[test]}"
    )
    if found.comparisons > 1:
        text += (
            f" in one comparison, of {size(found.first)} at Holm's first step over "
            f"{found.comparisons}"
        )
    return f"{text} ({unit})"


def effects_table(measured: dict[str, tuple[list[designs.Effect], str]]) -> Table | None:
    """Main effects and interactions of a grid of two or more axes; None for fewer."""
    table = Table("grid-effects", "Effects of the axes")
    table.headings = [Heading("metric", numeric=False), Heading("effect", numeric=False)]
    table.headings += [Heading("df"), Heading("F"), Heading("p"), Heading("η²")]
    for metric, (found, remark) in measured.items():
        notes = (table.note(remark),) if remark and found else ()
        if remark and not found:
            table.lines.append(f"{column(metric).label}: {remark[0].lower()}{remark[1:]}")
        for effect in found:
            name = "seed (block)" if effect.name == "seed" else effect.name
            table.rows.append(
                Row(
                    (
                        Cell(column(metric).heading, notes),
                        Cell(name),
                        Cell(str(effect.df), sort=effect.df),
                        Cell(f"{effect.f:,.2f}", sort=effect.f),
                        Cell(p_text(effect.p), sort=effect.p),
                        Cell(f"{effect.eta2:.3f}", sort=effect.eta2),
                    )
                )
            )
    if not table.rows:
        return None
    table.lines += [
        "Analysis of variance, type II, with the seed as block; η² is the share of the total sum "
        "of squares. p is not adjusted over effects."
    ]
    return table


def confirm_table(
    records: Records,
    groups: Sequence[Group],
    fresh: Sequence[Group],
    metrics: Sequence[str],
    name: str = "grid-confirm",
) -> Table:
    """The chosen cells on the seeds that chose them and on fresh ones, which are to be quoted."""
    axes, variants = swept(records), any(g.variant for g in fresh)
    table = Table(name, f"Confirmation on fresh seeds: {progress(fresh)}")
    table.counts = True
    table.headings = [*label_headings(fresh, axes, variants), Heading("metric", numeric=False)]
    table.headings += [Heading("chosen on"), Heading("fresh seeds (quote these)")]
    table.headings.append(Heading("fresh − chosen"))
    for group in fresh:
        first = next((g for g in groups if g.cell_key == group.cell_key and g.done), None)
        for metric in metrics:
            spec, shift = column(metric), Cell("–")
            if first and first.summary(metric).n and group.summary(metric).n:
                ours, theirs = group.summary(metric).mean, first.summary(metric).mean
                difference = ours.estimate - theirs.estimate
                sign = "−" if difference < 0 else "+"
                shift = Cell(sign + spec.shown(abs(difference)), sort=difference)
            chosen = value_cell(table, first, metric) if first else Cell("–")
            label = labels(table, group, axes, variants)
            cells = (Cell(spec.heading), chosen, value_cell(table, group, metric), shift)
            table.rows.append(Row((*label, *cells)))
    table.lines = [
        "The best of several cells leans to the good side on the seeds that chose it. The fresh "
        "seeds had no part in the choice: quote their figure. The two are never averaged."
    ]
    return table
