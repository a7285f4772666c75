"""Groups of trials to laid-out tables: the cells, notes and lines that all tables share."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.records.frame import Records, number
from analysis.tables.columns import GRID, UNLABELLED, Column, column, protocol_name, recorded
from analysis.tables.comparable import collapse
from analysis.tables.compare import TEST_WORDS
from analysis.tables.groups import Group, Summary, references, tally
from analysis.tables.layout import REFERENCE, Cell, Row, Table, own_sentence, sentence
from analysis.tables.ranking import PROCEDURE, rank
from mpcc.config import value_text
from mpcc.evaluation.metrics import COSTS, NEED_LABELS
from mpcc.runs.run_dir import DONE

CHOOSE_K = (
    "I(x; y) / log K, silhouette and the agreement of seeds can help to choose K; agreement tends "
    "to favour a small K. The majority accuracy, I(x; y), clusters used and MSE change with K by "
    "themselves."
)
MAX_NAMED = 4
"""A line names at most this many cells and counts the others."""


def value_cell(table: Table, group: Group, metric: str) -> Cell:
    """mean ± std; if a planned trial has no value, with (n/planned) and a note on the reason."""
    summary, spec = group.summary(metric), column(metric)
    if summary.absent and group.done:
        why = f"{spec.label} n/a: {absent_reason(group, spec)}"
        return Cell("–", table.noted((True, why)))
    notes = table.noted(*_gaps(group, summary, spec))
    if summary.n_pruned:
        return Cell(f"pruned ({summary.n_pruned} of {summary.n_planned} seeds)", notes)
    count = f" (n={summary.n})" if table.counts else ""
    if summary.n < summary.n_planned:
        count = f" ({summary.n}/{summary.n_planned})"
    if not summary.n:
        return Cell(state_word(group, summary) + count, notes)
    text = spec.shown(summary.mean.estimate)
    if summary.n > 1 and (summary.std or metric not in COSTS):
        text += f" ± {spec.shown(summary.std)}"
        flat = "All seeds gave the same value: a spread of zero allows no interval and no test"
        notes += table.noted((summary.std == 0, flat))
    return Cell(text + count, notes, sort=summary.mean.estimate)


def value_cells(table: Table, groups: Sequence[Group], metric: str, test: str) -> list[Cell]:
    """A column of values: the best mean and those not significantly different are marked."""
    cells = [value_cell(table, group, metric) for group in groups]
    ranking = rank(groups, metric, test)
    return [
        replace(cell, best=i in ranking.best, tied=i in ranking.tied)
        for i, cell in enumerate(cells)
    ]


def state_word(group: Group, summary: Summary) -> str:
    """The text of a cell without any value: the state of its trials, or `not finite`."""
    if summary.not_finite:
        return "not finite"
    states = [state for state in group.counts if state != "done"]
    return states[0] if len(states) == 1 else "none"


def _gaps(group: Group, summary: Summary, spec: Column) -> list[tuple[object, str]]:
    """(condition, note) pairs on the trials that are not in this mean."""
    missing, odd = group.missing(), ", ".join(map(str, summary.not_finite))
    rest = "; the mean is over the others" if summary.n else ", so that there is no mean"
    known = {seed for seed, _ in summary.values} | set(summary.not_finite)
    unrecorded: dict[str, list[str]] = {}
    for trial in group.done:
        if trial["seed"] not in known:
            why = trial["unavailable"].get(spec.metric) or "not recorded"
            unrecorded.setdefault(why.rstrip("."), []).append(str(trial["seed"]))
    return [
        (missing, "Without a value: " + "; ".join(missing)),
        (
            summary.n_pruned and len(missing) < summary.n_planned,
            "No mean: a mean over the seeds that survived pruning would be too good",
        ),
        (
            group.part,
            "The trials of this cell are not comparable and are not averaged: this row shows "
            f"{len(group.trials)} of {group.n_planned}",
        ),
        *(
            (True, f"{spec.label} n/a for seed {', '.join(seeds)}: {why}")
            for why, seeds in unrecorded.items()
        ),
        (odd, f"Infinite or undefined for seed {odd}{rest}"),
    ]


def row_notes(table: Table, group: Group) -> tuple[int, ...]:
    """Numbers of a row's notes: which part of a cell it is, iterations reached, how models failed.

    A finished model may still be saturated or collapsed (Appendix D).
    """
    planned, failures = group.settings["iterations"], group.failures()
    reached = sorted({trial["iteration"] for trial in group.done} - {planned})
    far = " and ".join(f"{n:,}" for n in reached)
    limits = (
        "A model is saturated where its excess saturation is above max_saturation "
        f"{group.settings['max_saturation']:g}, and collapsed where a cluster's diversity is "
        f"below min_diversity {group.settings['min_diversity']:g}."
    )
    if failures and limits not in table.made:
        table.made.append(limits)
    return table.noted(
        (failures, own_sentence(f"{failures} (as in the paper's Appendix D)")),
        (reached, f"Reached {far} of {planned:,} iterations"),
        (group.part, f"Only {group.part}"),
    )


def sorted_levels(groups: Iterable[Group], axis: str) -> list[Any]:
    """The settings on an axis, numbers by size, all else by its text."""
    values = {g.settings[axis] for g in groups}
    numbers = all(isinstance(v, int | float) for v in values)
    return sorted(values, key=None if numbers else value_text)


def absent_reason(group: Group, spec: Column) -> str:
    """Why no finished trial of this cell has this metric, and what to do about it; a clause."""
    settings, generated = group.settings, "n_generated" in spec.depends_on
    reasons = {t["unavailable"][spec.metric] for t in group.done if spec.metric in t["unavailable"]}
    if generated and settings["n_generated"] is None:
        return "no images were generated; run with --set n_generated=N (50,000 in the paper)"
    if reasons:
        return "; ".join(sorted(reason.rstrip(".") for reason in reasons))
    if generated:
        return "not recorded, without a reason (Inception weights missing?)"
    if spec.metric not in NEED_LABELS:
        return "no finished trial recorded it"
    if settings["prior"] == "normal" or settings["conditional"]:
        return "this model does not cluster"
    return "no finished trial recorded it; images without labels have none"


def measured_of(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    """The metrics that any finished trial has; all of `metrics` if no trial has any."""
    known = [m for m in metrics if any(not g.summary(m).absent for g in groups)]
    return known or list(metrics)


def shown_metrics(groups: Sequence[Group]) -> list[str]:
    """The metrics of the grid's tables that any finished trial has; the first of GRID if none."""
    labelled = any(group.summary(name).n for group in groups for name in NEED_LABELS)
    clusters = any(group.summary("cluster_information").n for group in groups)
    asked = recorded(UNLABELLED if clusters and not labelled else GRID, groups)
    return [m for m in asked if any(not g.summary(m).absent for g in groups)] or [GRID[0]]


def kmeans_rows(
    table: Table, groups: Sequence[Group], n_axes: int, metrics: Sequence[str]
) -> list[Row]:
    """Rows of the reference, k-means on the same pixels: one for each data set and each K."""
    found = {metric: references(groups, metric) for metric in metrics}
    rows = []
    for name in dict.fromkeys(name for figures in found.values() for name in figures):
        notes = table.noted((True, "k-means on the same pixels, the best of ten starts"))
        cells = [Cell(f"k-means{name}", notes), *[Cell("")] * (n_axes - 1)]
        for metric, figures in found.items():
            cells.append(Cell(column(metric).shown(figures[name]) if name in figures else ""))
        rows.append(Row(tuple(cells), REFERENCE))
    return rows


def counts_differ(groups: Sequence[Group]) -> bool:
    """Whether cells were planned with different numbers of seeds, so that each must say its own."""
    return len({group.n_planned for group in groups}) > 1


def explain_numbers(
    table: Table,
    records: Records,
    groups: Sequence[Group],
    metrics: Sequence[str],
    test: str | None = None,
) -> Table:
    """Add to the table what ± and n mean, what its marks mean and how its numbers were made.

    metrics: all metrics of the table; those that no finished trial has are listed as not measured.
    test: the test behind the marks in each column; None if nothing is marked.
    """
    shown = measured_of(groups, metrics)
    valued = [m for m in shown if any(g.summary(m).n for g in groups)]
    cells = [cell for row in table.rows for cell in row.cells]
    best, tied = any(cell.best for cell in cells), any(cell.tied for cell in cells)
    found, n_more = list(records.notes[:8]), len(records.notes) - 8
    found += [f"and {n_more} more such records"] if n_more > 0 else []
    by, moment = TEST_WORDS.get(test or "", ""), f"Values are those of {records.moment}."
    marks = ["Bold: best mean among comparable cells."] if best else []
    marks += [f"~: no significant difference from it ({by}, adjusted)."] if tied else []
    told = [
        ("@last" not in records.moment, moment),
        *((True, line) for line in table.lines),
        (marks, " ".join(marks)),
        (found, "Records: " + sentence("; ".join(found))),
        *((True, sentence(n)) for n in distinct(t["data_notes"] for g in groups for t in g.done)),
        (
            any(len({trial["code_id"] for trial in group.done}) > 1 for group in groups),
            "Trials of several code versions are averaged (--pool-code).",
        ),
        (len({group.settings["n_clusters"] for group in groups}) > 1, CHOOSE_K),
        (
            test and valued and collapse(groups),
            "No cell with a collapsed or diverged seed is called the best.",
        ),
    ]
    table.measured = table.measured or _measured_line(groups, shown)
    table.absent = table.absent or _absent_line(groups, [m for m in metrics if m not in shown])
    table.lines = [line for holds, line in told if holds]
    table.made += [moment, *([f"~ by {by}, adjusted: {PROCEDURE}."] if tied else [])]
    for metric in valued:  # For generated images also their number and the reference split.
        text, found_by = column(metric).protocol, [g for g in groups if g.summary(metric).n]
        names = {protocol_name(metric, g.settings) for g in found_by} - {metric}
        text += f" ({' and '.join(sorted(names))})" if names else ""
        table.made += [sentence(text)] if text else []
    table.made += [_provenance_line(groups), cost_line(groups)]
    return table


def _absent_line(groups: Sequence[Group], left_out: Iterable[str]) -> str:
    """Which metrics have no column because no trial measured them, and how to get them."""
    done = [group for group in groups if group.done]
    reasons: dict[str, list[str]] = {}
    for spec in map(column, left_out if done else ()):
        why = "; or: ".join(dict.fromkeys(absent_reason(group, spec) for group in done))
        reasons.setdefault(why, []).append(spec.label)
    parts = [f"{' and '.join(labels)}: {why}" for why, labels in reasons.items()]
    return f"Not measured, and left out: {'; '.join(parts)}." if parts else ""


def _measured_line(groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """`Mean ± standard deviation over n = 3 seeds`, and what a cell with fewer shows."""
    summaries = [group.summary(metric) for group in groups for metric in metrics]
    gaps = any(s.n < s.n_planned for s in summaries)
    rest = "; (n/planned) where a planned trial has no value" if gaps else ""
    n = groups[0].n_planned
    if counts_differ(groups):
        return f"Mean ± standard deviation over n seeds (ddof 1), each cell with its n{rest}."
    if n == 1:
        return f"One seed per cell: no spread{rest}."
    return f"Mean ± standard deviation over n = {n} seeds (ddof 1){rest}."


def _provenance_line(groups: Sequence[Group]) -> str:
    """Images, iterations reached and code of the trials, in one sentence."""
    done = [trial for group in groups for trial in group.done]
    iterations = distinct(t["iteration"] for t in done)
    iterations = iterations or distinct(group.settings["iterations"] for group in groups)
    images = distinct(trial["n_images"] for trial in done)
    prints = distinct(trial["fingerprint"] for trial in done)
    return (
        f"{' and '.join(iterations)} iterations; {' and '.join(images) or 'unknown'} images "
        f"(content {' and '.join(prints) or 'unknown'}); code {_codes(groups)}."
    )


def cost_line(groups: Sequence[Group]) -> str:
    """The trials' GPU-hours and core-hours by processor, and model sizes, in one sentence.

    Core-hours are a trial's hours times its threads; trials that share a GPU each count in full.
    """
    trials = [trial for group in groups for trial in group.trials]
    timed = [trial for trial in trials if np.isfinite(_seconds(trial))]
    hours: dict[str, float] = {}
    for trial in timed:
        on_gpu = trial["device_kind"] == "cuda"
        name = trial["processor"] or "a processor not recorded"
        unit = f"{'GPU' if on_gpu else 'core'}-hours on {name}"
        spent = _seconds(trial) * (1 if on_gpu else trial["cpu_threads"]) / 3600
        hours[unit] = hours.get(unit, 0.0) + spent
    parts = [f"{n:.2g} {unit}" for unit, n in sorted(hours.items())] or ["time n/a"]
    untimed = sum(t["state"] == DONE for t in trials) - sum(t["state"] == DONE for t in timed)
    parts += [f"time of {untimed} more n/a"] if timed and untimed else []
    sizes = {number(trial["n_parameters"]) for trial in timed}
    known = sorted(int(n) for n in sizes if np.isfinite(n))
    many = " to ".join(f"{n:,}" for n in dict.fromkeys((*known[:1], *known[-1:]))) or "n/a"
    return (
        f"Cost: {len(timed) or len(trials)} trials, {', '.join(parts)}; parameters of generator "
        f"and encoder {many}."
    )


def _seconds(trial: dict[str, Any]) -> float:
    """Seconds of training and evaluation; NaN if those of training are not recorded."""
    evaluated = number(trial["seconds_evaluate"])
    return number(trial["seconds_train"]) + (evaluated if np.isfinite(evaluated) else 0.0)


def _codes(groups: Sequence[Group]) -> str:
    """The code versions of the finished trials; if there are several, with the cells of each."""
    cells: dict[str, list[Group]] = {}
    for group in groups:
        for code in {str(trial["code"] or "unknown") for trial in group.done}:
            cells.setdefault(code, []).append(group)
    if len(cells) < 2:
        return next(iter(cells), "unknown")
    first = groups[0].settings
    axes = [n for n in first if any(g.settings[n] != first[n] for g in groups)]
    named = []
    for code in sorted(cells):
        names = list(dict.fromkeys(group.label(axes) for group in cells[code]))
        more = f"; and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        named.append(f"{code} ({'; '.join(names[:MAX_NAMED])}{more})")
    return " and ".join(named)


def distinct(values: Iterable[Any]) -> list[str]:
    """The distinct values as text, in order, without None."""
    found = {v for v in values if v is not None}
    return [f"{v:,}" if isinstance(v, int) else str(v) for v in sorted(found, key=str)]


def progress(groups: Sequence[Group]) -> str:
    """`15 of 15 trials done`, with the states of any others in brackets."""
    counts = tally(groups)
    rest = ", ".join(f"{n} {state}" for state, n in counts.items() if state != DONE)
    done = f"{counts.get(DONE, 0)} of {sum(counts.values())} trials done"
    return f"{done} ({rest})" if rest else done
