"""Groups of trials to laid-out tables: the paper's Table 1 and the parts that all tables share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis import stats
from analysis.cells import Group, Summary, tally
from analysis.columns import TABLE1, Column, column
from analysis.compare import TEST_WORDS
from analysis.frame import BASELINE, Records, short
from analysis.layout import PAPER, REFERENCE, Cell, Heading, Row, Table
from analysis.protocol import (
    Published,
    differences,
    differences_text,
    published,
    published_rows,
    table1_settings,
)
from analysis.ranking import PROCEDURE, rank
from mpcc.config import value_text
from tune.ledger import PLANNED, RUNNING, STOPPED

TABLE1_AXES = ("n_encoder_steps", "prior_lr")


# -- parts that all tables share -------------------------------------------------------------------


def value_cell(table: Table, group: Group, metric: str) -> Cell:
    """mean ± std, with (n/planned) wherever a planned trial has no value, and the reason."""
    summary, spec = group.summary(metric), column(metric)
    if summary.absent and group.done:
        return Cell("n/a", (table.note(absent_reason(group, spec)),))
    notes = _gap_notes(table, group, summary)
    count = f" ({summary.n}/{summary.n_planned})" if summary.n < summary.n_planned else ""
    if not summary.n:
        return Cell(_state_word(group, summary) + count, notes)
    text = spec.shown(summary.mean.estimate)
    if summary.n > 1:
        text += f" ± {spec.shown(summary.std)}"
        if summary.std == 0:
            note = "All seeds gave the same value: a spread of zero allows no interval and no test."
            notes += (table.note(note),)
    return Cell(text + count, notes, sort=summary.mean.estimate)


def _state_word(group: Group, summary: Summary) -> str:
    if summary.not_finite:
        return "not finite"
    states = [state for state in group.counts if state != "done"]
    return states[0] if len(states) == 1 else "none"


def _gap_notes(table: Table, group: Group, summary: Summary) -> tuple[int, ...]:
    notes = []
    missing = group.missing()
    if missing:
        notes.append(table.note(sentence("Without a value: " + "; ".join(missing))))
    if group.part:
        total = sum(group.counts.values())
        notes.append(
            table.note(
                f"The trials of this cell are not alike and are not averaged: {total} of "
                f"{group.n_planned} stand in this row."
            )
        )
    if summary.not_finite:
        seeds = ", ".join(map(str, summary.not_finite))
        notes.append(
            table.note(f"Infinite or undefined for seed {seeds}; the mean is over the others.")
        )
    return tuple(notes)


def failure_notes(table: Table, group: Group) -> tuple[int, ...]:
    """A note where finished models of this cell are saturated or collapsed (Appendix D)."""
    failures = group.failures()
    if not failures:
        return ()
    return (
        table.note(
            f"Failed as in the paper's Appendix D, by the thresholds max_saturation "
            f"{group.settings['max_saturation']:g} and min_diversity "
            f"{group.settings['min_diversity']:g}: {failures}."
        ),
    )


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith(".") else text + "."


def absent_reason(group: Group, spec: Column) -> str:
    """Why no finished trial of this cell has this metric, and what to do about it."""
    settings, label = group.settings, spec.heading.split(",")[0]
    reasons = {t["unavailable"][spec.metric] for t in group.done if spec.metric in t["unavailable"]}
    if "n_generated" in spec.depends_on:
        if settings["n_generated"] is None:
            return (
                "n/a: not computed, since no images were generated for it; "
                "run with --set n_generated=N (50,000 in the paper)."
            )
        why = "; ".join(sorted(reasons)) or "Inception weights missing when it was evaluated"
        return sentence(f"n/a: {why}")
    if reasons:
        return sentence(f"{label} n/a: {'; '.join(sorted(reasons))}")
    if spec.metric.startswith("acc") or spec.metric in ("nmi", "ari"):
        if settings["prior"] == "normal" or settings["conditional"]:
            return f"{label} n/a: this model does not cluster."
        return f"{label} n/a: the images have no labels."
    return f"{label} n/a: no finished trial recorded it."


def with_best(groups: Sequence[Group], cells: Sequence[Cell], metric: str, test: str) -> list[Cell]:
    """The cells with the best mean marked, and every one that cannot be told from it as tied."""
    ranking = rank(groups, metric, column(metric).better, test)
    best, tied = ranking.best, ranking.tied
    return [
        Cell(cell.text, cell.notes, i in best, i in tied, cell.sort) for i, cell in enumerate(cells)
    ]


def kmeans_row(
    table: Table, groups: Sequence[Group], n_axes: int, metrics: Sequence[str]
) -> Row | None:
    """The reference: k-means on the same pixels. Each distinct figure of the trials counts once."""
    cells, found = [], False
    for metric in metrics:
        name = f"{BASELINE}kmeans_{metric}"
        recorded = {t.get(name, math.nan) for group in groups for t in group.done}
        values = sorted(v for v in recorded if math.isfinite(v))
        spec = column(metric)
        text = ""
        if values:
            found, mean = True, float(np.mean(values))
            text = spec.shown(mean)
            if len(values) > 1:
                text += f" ± {spec.shown(stats.std(values))}"
        cells.append(Cell(text, sort=None))
    if not found:
        return None
    note = table.note("k-means on the same pixels, the best of ten starts.")
    label = [Cell("k-means", (note,)), *[Cell("")] * (n_axes - 1)]
    return Row((*label, *cells), REFERENCE)


def spread_lines(
    records: Records, groups: Sequence[Group], metrics: Sequence[str], test: str | None
) -> list[str]:
    """What ± is, which evaluation counts, and what the marks mean."""
    lines = [
        "± is the standard deviation over seeds (ddof 1); a cell shows (n/planned) where a planned "
        f"trial has no value. Values are those of the last iteration (@last); {records.selection}."
    ]
    if test and len(groups) > 1:
        lines.append(
            "Best mean of a column in bold (*), among cells measured alike (images, counts, "
            "iterations, code); ~ marks what is not shown to be worse, "
            f"by {TEST_WORDS[test]} where there is one: {PROCEDURE}."
        )
    protocols = [column(m).protocol for m in metrics if any(g.summary(m).n for g in groups)]
    return [*lines, "; ".join(p for p in protocols if p) + "."] if protocols else lines


def provenance_line(groups: Sequence[Group]) -> str:
    """Images, iterations and code of the trials, in one sentence."""
    done = [trial for group in groups for trial in group.done]
    iterations = _distinct(group.settings["iterations"] for group in groups)
    images = _distinct(trial["n_images"] for trial in done)
    prints = _distinct(trial["fingerprint"] for trial in done)
    code = _distinct(trial["code"] for trial in done)
    notes = "".join(f" {sentence(note)}" for note in _distinct(t["data_notes"] for t in done))
    return (
        f"{' and '.join(iterations)} iterations; {' and '.join(images) or 'unknown'} images "
        f"(content {' and '.join(prints) or 'unknown'}); code {' and '.join(code) or 'unknown'}."
        + notes
    )


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


# -- Table 1 ---------------------------------------------------------------------------------------


def table1_groups(groups: Sequence[Group]) -> list[tuple[Group, dict[str, str]]]:
    """The groups that are Table 1's five rows, each with its published row; empty if they are not.

    Rows of another scale are known by their shape: three values of E_steps at the lowest η_p, then
    two higher η_p at the highest E_steps, all else equal.
    """
    cells: dict[tuple[int, float], list[Group]] = {}
    for group in groups:
        rest = {k: v for k, v in group.settings.items() if k not in TABLE1_AXES}
        first = {k: v for k, v in groups[0].settings.items() if k not in TABLE1_AXES}
        if rest != first or group.variant:
            return []
        cells.setdefault(tuple(group.settings[a] for a in TABLE1_AXES), []).append(group)
    keys = sorted(cells)
    if len(keys) != 5:
        return []
    steps, rates = zip(*keys, strict=True)
    shape = (
        steps[0] < steps[1] < steps[2] == steps[3] == steps[4]
        and rates[0] == rates[1] == rates[2] < rates[3] < rates[4]
    )
    if not shape:
        return []
    rows = published_rows("table1")
    return [(group, rows[i]) for i, key in enumerate(keys) for group in cells[key]]


def table1(records: Records, pairs: Sequence[tuple[Group, dict[str, str]]], test: str) -> Table:
    """The paper's Table 1, each row with the published one below it."""
    groups = [group for group, _ in pairs]
    settings = groups[0].settings
    table = Table("table1", f"Table 1 on {settings['dataset']}: {progress(groups)}")
    table.headings = [Heading(short(axis)) for axis in TABLE1_AXES]
    table.headings += [Heading(column(metric).heading) for metric in TABLE1]
    columns = {
        metric: with_best(
            groups, [value_cell(table, group, metric) for group in groups], metric, test
        )
        for metric in TABLE1
    }
    for i, (group, row) in enumerate(pairs):
        label = [Cell(value_text(group.settings[a]), sort=group.settings[a]) for a in TABLE1_AXES]
        notes = failure_notes(table, group)
        if group.part:
            notes += (table.note(sentence(f"Only {group.part}")),)
        label[0] = Cell(label[0].text, notes, sort=label[0].sort)
        table.rows.append(Row((*label, *(columns[metric][i] for metric in TABLE1))))
        if i + 1 == len(pairs) or pairs[i + 1][1] is not row:
            table.rows.append(_paper_row(table, group, row))
    reference = kmeans_row(table, groups, len(TABLE1_AXES), TABLE1)
    table.rows += [reference] if reference else []
    table.lines = [
        *spread_lines(records, groups, TABLE1, test),
        provenance_line(groups),
        *record_lines(records),
    ]
    return table


def _paper_row(table: Table, group: Group, row: dict[str, str]) -> Row:
    theirs = table1_settings(row)
    shown = [metric for metric in TABLE1 if published(row, metric)]
    differing = [m for m in shown if differences(group.settings, theirs, m)]
    notes: tuple[int, ...] = ()
    if differing:
        common = {k: v for k, v in group.settings.items() if k not in TABLE1_AXES}
        what = differences_text(theirs.to_dict() | common, theirs, differing)
        notes = (
            table.note(
                "Published figures, beside ours for orientation only: another protocol "
                f"({what}). They are not subtracted."
            ),
        )
    elif any(group.summary(m).n for m in shown):
        notes = (table.note(within(group, {m: published(row, m) for m in shown})),)
    cells = [Cell("paper", notes), Cell(value_text(theirs.prior_lr))]
    for metric in TABLE1:
        figure = published(row, metric)
        cells.append(Cell(figure.text if figure else ""))
    return Row(tuple(cells), PAPER, grey=bool(differing))


def within(group: Group, figures: Mapping[str, Published | None]) -> str:
    """Ours minus theirs under the same protocol, and whether ours lies within their spread."""
    parts = []
    for metric, figure in figures.items():
        summary, spec = group.summary(metric), column(metric)
        if figure is None or not summary.n:
            continue
        difference = summary.mean.estimate - figure.mean
        inside = "within" if abs(difference) <= figure.std else "outside"
        spread = "no published spread" if math.isnan(figure.std) else f"{inside} their spread"
        sign = "+" if difference >= 0 else "−"
        label = spec.heading.split(",")[0]
        parts.append(f"{label} {sign}{spec.shown(abs(difference))}, {spread}")
    return "Same protocol as published; ours minus theirs: " + "; ".join(parts) + "."
