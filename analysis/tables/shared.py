"""Groups of trials to laid-out tables: the cells, notes and lines that all tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.records.frame import PLANNED, RUNNING, STOPPED, Records
from analysis.statistics import stats
from analysis.tables.columns import Column, column, protocol_name
from analysis.tables.compare import TEST_WORDS
from analysis.tables.groups import Group, Summary, references, tally
from analysis.tables.layout import REFERENCE, Cell, Row, Table
from analysis.tables.ranking import PROCEDURE, rank
from mpcc.evaluation.metrics import NEED_LABELS

MAX_NAMED = 4
"""Cells that a line names; it counts the others."""


def value_cell(table: Table, group: Group, metric: str) -> Cell:
    """mean ± std, with (n/planned) wherever a planned trial has no value, and the reason."""
    summary, spec = group.summary(metric), column(metric)
    if summary.absent and group.done:
        return Cell("n/a", (table.note(absent_reason(group, spec)),))
    notes = _gap_notes(table, group, summary, spec)
    if summary.n_pruned:
        return Cell(f"pruned ({summary.n_pruned} of {summary.n_planned} seeds)", notes)
    count = f" (n={summary.n})" if table.counts else ""
    if summary.n < summary.n_planned:
        count = f" ({summary.n}/{summary.n_planned})"
    if not summary.n:
        return Cell(state_word(group, summary) + count, notes)
    text = spec.shown(summary.mean.estimate)
    if summary.n > 1:
        text += f" ± {spec.shown(summary.std)}"
        if summary.std == 0:
            note = "All seeds gave the same value: a spread of zero allows no interval and no test."
            notes += (table.note(note),)
    return Cell(text + count, notes, sort=summary.mean.estimate)


def state_word(group: Group, summary: Summary) -> str:
    """What stands in a cell without any value."""
    if summary.not_finite:
        return "not finite"
    states = [state for state in group.counts if state != "done"]
    return states[0] if len(states) == 1 else "none"


def _gap_notes(table: Table, group: Group, summary: Summary, spec: Column) -> tuple[int, ...]:
    notes = []
    missing = group.missing()
    if missing:
        notes.append(table.note(sentence("Without a value: " + "; ".join(missing))))
    if summary.n_pruned and len(missing) < summary.n_planned:
        notes.append(table.note("No mean: the seeds that were not given up are the lucky ones."))
    if group.part:
        total = sum(group.counts.values())
        notes.append(
            table.note(
                f"The trials of this cell are not alike and are not averaged: {total} of "
                f"{group.n_planned} stand in this row."
            )
        )
    notes += [table.note(text) for text in _unrecorded(group, summary, spec)]
    if summary.not_finite:
        seeds = ", ".join(map(str, summary.not_finite))
        rest = "; the mean is over the others" if summary.n else ", so that there is no mean"
        notes.append(table.note(f"Infinite or undefined for seed {seeds}{rest}."))
    return tuple(notes)


def _unrecorded(group: Group, summary: Summary, spec: Column) -> list[str]:
    """A sentence per reason for which finished trials lack a metric that others of a cell have."""
    known = {seed for seed, _ in summary.values} | set(summary.not_finite)
    seeds: dict[str, list[str]] = {}
    for trial in group.done:
        if trial["seed"] not in known:
            why = trial["unavailable"].get(spec.metric) or "not recorded"
            seeds.setdefault(why.rstrip("."), []).append(str(trial["seed"]))
    return [f"{spec.label} n/a for seed {', '.join(s)}: {why}." for why, s in seeds.items()]


def row_notes(table: Table, group: Group) -> tuple[int, ...]:
    """Notes at a row's first cell: which part of a cell it is, how far it came, how it failed.

    A finished model may be saturated or collapsed all the same (Appendix D).
    """
    notes, planned = [], group.settings["iterations"]
    failures, reached = group.failures(), {t["iteration"] for t in group.done} - {planned}
    if failures:
        notes.append(
            "Failed as in the paper's Appendix D, by the thresholds max_saturation "
            f"{group.settings['max_saturation']:g} and min_diversity "
            f"{group.settings['min_diversity']:g}: {failures}."
        )
    if reached:
        far = " and ".join(f"{n:,}" for n in sorted(reached))
        notes.append(f"Reached {far} of {planned:,} iterations.")
    if group.part:
        notes.append(sentence(f"Only {group.part}"))
    return tuple(table.note(text) for text in notes)


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith(".") else text + "."


def own_sentence(clause: str) -> str:
    """A clause that stands alone."""
    return sentence(clause[0].upper() + clause[1:])


def absent_reason(group: Group, spec: Column) -> str:
    """Why no finished trial of this cell has this metric, and what to do about it."""
    settings, label = group.settings, spec.label
    reasons = {t["unavailable"][spec.metric] for t in group.done if spec.metric in t["unavailable"]}
    if "n_generated" in spec.depends_on:
        if settings["n_generated"] is None:
            return (
                "n/a: not computed, since no images were generated for it; "
                "run with --set n_generated=N (50,000 in the paper)."
            )
        why = "; ".join(sorted(reasons)) or "not recorded, nor why (Inception weights missing?)"
        return sentence(f"n/a: {why}")
    if reasons:
        return sentence(f"{label} n/a: {'; '.join(sorted(reasons))}")
    if spec.metric in NEED_LABELS:
        if settings["prior"] == "normal" or settings["conditional"]:
            return f"{label} n/a: this model does not cluster."
        return f"{label} n/a: no finished trial recorded it; images without labels have none."
    return f"{label} n/a: no finished trial recorded it."


def with_best(groups: Sequence[Group], cells: Sequence[Cell], metric: str, test: str) -> list[Cell]:
    """The cells with the best mean marked, and every one that cannot be told from it as tied."""
    ranking = rank(groups, metric, column(metric).better, test)
    best, tied = ranking.best, ranking.tied
    return [
        Cell(cell.text, cell.notes, i in best, i in tied, cell.sort) for i, cell in enumerate(cells)
    ]


def kmeans_rows(
    table: Table, groups: Sequence[Group], n_axes: int, metrics: Sequence[str]
) -> list[Row]:
    """The reference, k-means on the same pixels: a row for each data set that the cells were on.

    Each distinct figure of the trials counts once.
    """
    found = {metric: references(groups, metric) for metric in metrics}
    names = list(dict.fromkeys(name for by_data in found.values() for name in by_data))
    rows = []
    for name in names:
        note = table.note("k-means on the same pixels, the best of ten starts.")
        label = "k-means" if len(names) == 1 else f"k-means on {name}"
        cells = [_reference_cell(found[m].get(name, ()), column(m)) for m in metrics]
        rows.append(Row((Cell(label, (note,)), *[Cell("")] * (n_axes - 1), *cells), REFERENCE))
    return rows


def _reference_cell(values: Sequence[float], spec: Column) -> Cell:
    if not values:
        return Cell("")
    text = spec.shown(float(np.mean(values)))
    return Cell(text + (f" ± {spec.shown(stats.std(values))}" if len(values) > 1 else ""))


def counts_differ(groups: Sequence[Group]) -> bool:
    """Whether cells were planned with different numbers of seeds, so that each must say its own."""
    return len({group.n_planned for group in groups}) > 1


def _counts_line(groups: Sequence[Group]) -> str:
    gaps = "(n/planned) where a planned trial has no value"
    if counts_differ(groups):
        return f"n is the number of seeds of a cell, {gaps}"
    n = groups[0].n_planned
    return f"n = {n} seed{'' if n == 1 else 's'} per cell; a cell shows {gaps}"


def spread_lines(
    records: Records, groups: Sequence[Group], metrics: Sequence[str], test: str | None
) -> list[str]:
    """What ± is, which evaluation counts, and what the marks mean."""
    lines = [
        f"± is the standard deviation over seeds (ddof 1); {_counts_line(groups)}. "
        f"Values are those of the last iteration (@last); {records.selection}."
    ]
    if test and len(groups) > 1:
        lines.append(
            "Best mean of a column in bold (*), among cells measured alike (images, counts, "
            "iterations, code); ~ marks what is not shown to be worse, "
            f"by {TEST_WORDS[test]} where there is one: {PROCEDURE}."
        )
    protocols = [_protocol(groups, m) for m in metrics if any(g.summary(m).n for g in groups)]
    return [*lines, "; ".join(p for p in protocols if p) + "."] if protocols else lines


def _protocol(groups: Sequence[Group], metric: str) -> str:
    """What a metric is, and for one of generated images how many and against which split."""
    text = column(metric).protocol
    names = {protocol_name(metric, g.settings) for g in groups if g.summary(metric).n} - {metric}
    return f"{text} ({' and '.join(sorted(names))})" if names else text


def provenance_line(groups: Sequence[Group]) -> str:
    """Images, iterations reached and code of the trials, in one sentence."""
    done = [trial for group in groups for trial in group.done]
    iterations = _distinct(t["iteration"] for t in done)
    iterations = iterations or _distinct(group.settings["iterations"] for group in groups)
    images = _distinct(trial["n_images"] for trial in done)
    prints = _distinct(trial["fingerprint"] for trial in done)
    notes = "".join(f" {sentence(note)}" for note in _distinct(t["data_notes"] for t in done))
    return (
        f"{' and '.join(iterations)} iterations; {' and '.join(images) or 'unknown'} images "
        f"(content {' and '.join(prints) or 'unknown'}); code {_codes(groups)}." + notes
    )


def _codes(groups: Sequence[Group]) -> str:
    """The code versions of the finished trials; where there are several, the cells of each."""
    cells: dict[str, list[Group]] = {}
    for group in groups:
        for code in {str(trial["code"] or "unknown") for trial in group.done}:
            cells.setdefault(code, []).append(group)
    if len(cells) < 2:
        return next(iter(cells), "unknown")
    first = groups[0].settings
    axes = [n for n in first if any(g.settings[n] != first[n] for g in groups)]
    return " and ".join(f"{code} ({_some(cells[code], axes)})" for code in sorted(cells))


def _some(groups: Sequence[Group], axes: Sequence[str]) -> str:
    """The first few cells by name, and how many more."""
    names = list(dict.fromkeys(group.label(axes) for group in groups))
    more = f"; and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return "; ".join(names[:MAX_NAMED]) + more


def _distinct(values: Any) -> list[str]:
    found = {v for v in values if v is not None}
    return [f"{v:,}" if isinstance(v, int) else str(v) for v in sorted(found, key=str)]


def progress(groups: Sequence[Group]) -> str:
    """`15 of 15 trials done`, or what the others are."""
    counts = tally(groups)
    total = sum(counts.values())
    rest = ", ".join(f"{n} {state}" for state, n in counts.items() if state != "done")
    return f"{counts.get('done', 0)} of {total} trials done" + (f" ({rest})" if rest else "")


def unfinished(groups: Sequence[Group]) -> bool:
    """Whether trials are still to come."""
    counts = tally(groups)
    return any(counts.get(state) for state in (PLANNED, RUNNING, STOPPED))


def record_lines(records: Records) -> list[str]:
    """What loading found to be wrong or merged."""
    shown = list(records.notes[:8])
    if len(records.notes) > len(shown):
        shown.append(f"and {len(records.notes) - len(shown)} more such records")
    return [sentence("Records: " + "; ".join(shown))] if shown else []
