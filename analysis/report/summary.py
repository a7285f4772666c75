"""A sweep in words: what a reader asks first, each with its answer."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
from collections.abc import Sequence

from analysis.records.frame import Records, short
from analysis.statistics import factorial as designs
from analysis.tables.columns import Column, column
from analysis.tables.comparable import p_text
from analysis.tables.compare import TEST_WORDS, Line, resolution
from analysis.tables.grid import GridResult
from analysis.tables.groups import Group, references, tally
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import own_sentence
from analysis.tables.ranking import Class, rank
from analysis.tables.shared import shown_metrics
from mpcc.config import Config, full_name
from mpcc.runs.run_dir import DIVERGED, DONE

MAX_CLASSES = 3
"""Kinds of cells whose best the paragraph names; the tables have all."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def answers(
    records: Records, groups: Sequence[Group], result: GridResult | None, test: str
) -> dict[str, str]:
    """Question -> answer; a question that these records do not answer is left out."""
    metric = shown_metrics(groups)[0]
    found = {
        "What was varied?": [_design(records, groups), *_gaps(groups)],
        "What is best?": _best(records, groups, metric, test),
    }
    if result:
        lines = [line for line in result.lines if line.metric == metric]
        found["Is it better than the baseline?"] = _baseline(lines, groups, metric, records, test)
        found["What mattered?"] = _effects(*result.effects[metric], metric)
        found["How sure is that?"] = _resolution(groups, lines, metric, test)
    found["Did labels choose anything?"] = [own_sentence(records.selection)]
    return {question: " ".join(texts) for question, texts in found.items() if texts}


def count(n: int) -> str:
    """Small numbers as words."""
    return _NUMBERS[n] if n < len(_NUMBERS) else f"{n:,}"


def _many(n: int, word: str) -> str:
    return f"{count(n)} {word}{'' if n == 1 else 's'}"


def _design(records: Records, groups: Sequence[Group]) -> str:
    axes = " and ".join(short(axis) + _meaning(axis) for axis in records.swept) or "the seed"
    if any(g.variant for g in groups):
        axes = "one part of the model at a time" if not records.swept else f"{axes}, and parts"
        parts = {g.variant: _part(g.changes) for g in groups if g.variant and g.changes}
        axes += f" ({'; '.join(f'{name}: {change}' for name, change in parts.items())})"
    planned = sorted({g.n_planned for g in groups})
    seeds = " to ".join(count(n) for n in (planned[0], planned[-1])[: len(planned)])
    iterations = sorted({g.settings["iterations"] for g in groups})
    dataset = " and ".join(sorted({g.settings["dataset"] for g in groups}))
    steps = " and ".join(f"{i:,}" for i in iterations)
    cells = _many(len({g.cell_key for g in groups}), "configuration")
    return (
        f"We varied {axes} on {dataset}: {cells} "
        f"with {seeds} {'seed' if seeds == 'one' else 'seeds'} each (repetitions with other random "
        f"numbers), {steps} iterations per trial."
    )


def _meaning(field: str) -> str:
    """` (encoder updates per generator update)`: what the settings' own page says of a field."""
    (config,) = ast.parse(inspect.getsource(Config)).body
    assert isinstance(config, ast.ClassDef)
    for one, after in itertools.pairwise(config.body):
        match one, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                if name == field and isinstance(text, str):
                    first = (
                        re.split(r"(?<!eq)\. ", text)[0].removesuffix(".").replace("\n    ", " ")
                    )
                    return f" ({re.sub(r'^[^ ]+: ', '', first)})"  # Without its symbol.
    return ""


def _part(changes: str) -> str:
    """`lambda_p=0 (the weight of Loss III, eq. (5))`; of several settings the values alone."""
    name, several = changes.partition("=")[0], ", " in changes
    return changes if several else changes + _meaning(full_name(name))


def _gaps(groups: Sequence[Group]) -> list[str]:
    counts = tally(groups)
    total, done = sum(counts.values()), counts.get(DONE, 0)
    if done == total:
        return []
    rest = ", ".join(f"{n} {state}" for state, n in counts.items() if state != DONE)
    note = " Trials that diverged have no value and are counted in their cells."
    return [f"{done} of {total} trials finished ({rest}).{note if counts.get(DIVERGED) else ''}"]


def _value(group: Group, spec: Column) -> str:
    summary = group.summary(spec.metric)
    mean = summary.mean
    text = spec.shown(mean.estimate) + (" %" if spec.heading.endswith("%") else "")
    if summary.n < 2:
        return f"{text} (one seed)"
    if not summary.std:
        return f"{text} (the same for all {summary.n} seeds)"
    interval = f"{spec.shown(mean.low)} to {spec.shown(mean.high)}"
    return f"{text} (SD {spec.shown(summary.std)}, 95 % interval {interval}, n = {summary.n})"


def _kmeans(groups: Sequence[Group], metric: str) -> list[str]:
    """What k-means reaches on each data set, as a sentence; none where that is not known."""
    spec, known = column(metric), references(groups, metric)
    reached = [
        spec.amount(sum(values) / len(values)) + (f" on {name}" if len(known) > 1 else "")
        for name, values in known.items()
    ]
    return [f"k-means on the same pixels reaches {' and '.join(reached)}."] if reached else []


def _best(records: Records, groups: Sequence[Group], metric: str, test: str) -> list[str]:
    spec, axes, ranking = column(metric), records.swept, rank(groups, metric, test)
    failed = _unranked(ranking.failed, "with a collapsed or diverged seed")
    if not ranking.classes:
        valued = [g for g in groups if g.summary(metric).n]
        told = [
            f"{g.label(axes).capitalize()} gave {_name(spec)} {_value(g, spec)}."
            for g in valued[:MAX_CLASSES]
        ]
        if len(valued) > 1 and not ranking.failed:
            told.append("Cells that are not measured alike are not ranked.")
        return told + failed + _kmeans(groups, metric)
    whole, n_kinds = not ranking.failed, len(ranking.classes)
    told = [_winner(one, groups, spec, axes, test, whole) for one in ranking.classes[:MAX_CLASSES]]
    if n_kinds > MAX_CLASSES:
        told.append(f"The tables rank {_many(n_kinds, 'kind')} of cells in all.")
    told += failed + _unranked(ranking.alone, "measured like no other")
    best = groups[ranking.classes[0].best]
    again = [g for g in groups_of(records, confirm=True) if g.cell_key == best.cell_key]
    if again and again[0].summary(metric).n:
        told.append(
            f"On fresh seeds it reaches {_value(again[0], spec)}, which is the figure to quote."
        )
    else:
        told.append(
            "As the best of several, this mean leans to the good side; a run on fresh seeds gives "
            "the figure to quote."
        )
    return told + _kmeans(groups, metric)


def _unranked(n: int, which: str) -> list[str]:
    """A sentence on so many cells that are not ranked; none for no cell."""
    verb = "is" if n == 1 else "are"
    return [f"{_many(n, 'cell').capitalize()} {which} {verb} not ranked."] if n else []


def _winner(
    one: Class,
    groups: Sequence[Group],
    spec: Column,
    axes: Sequence[str],
    test: str,
    whole: bool,
) -> str:
    """The best of one kind of cells, and what the test says of the others it compared.

    whole: whether every cell of the kind was ranked.
    """
    best, n_tied, n_worse = groups[one.best], len(one.tied), len(one.worse)
    verb = "highest" if spec.better == "higher" else "lowest"
    where = f" among the cells with {one.label}" if one.label else ""
    text = (
        f"The {verb} mean {_name(spec)}{where}, {_value(best, spec)}, came with {best.label(axes)}"
    )
    if one.refused:
        return f"{text}; no other was compared with it ({one.refused})."
    method = f"from it ({TEST_WORDS[test]}, adjusted for the choice of the best)"
    others = "one other" if n_tied == 1 else f"{count(n_tied)} others"
    differ = f"{_many(n_worse, 'other')} {'differs' if n_worse == 1 else 'differ'}"
    if whole and not one.untested:
        differ = "every other configuration differs"
    same = " and ".join(groups[i].label(axes) for i in sorted(one.same))
    left = f"{_many(len(one.untested), 'other')} {'was' if len(one.untested) == 1 else 'were'}"
    told = [
        (True, text),
        (n_tied, f"{others} cannot be told {method}"),
        (n_worse and not n_tied, f"{differ} {method}"),
        (same, f"{same} is the same in all"),
        (one.untested, f"{left} not compared: n too small or no spread"),
    ]
    return "; ".join(clause for holds, clause in told if holds) + "."


def _name(spec: Column) -> str:
    names = {"acc_majority": "majority accuracy", "acc_hungarian": "one-to-one accuracy"}
    return names.get(spec.metric, spec.label)


def _baseline(
    lines: Sequence[Line], groups: Sequence[Group], metric: str, records: Records, test: str
) -> list[str]:
    differing = [line for line in lines if line.verdict == "differs"]
    tested = [line for line in lines if not line.refused]
    if not lines:
        return []
    if not tested:
        why = lines[0].verdict.removeprefix("not compared: ")
        return [f"No configuration was compared with the baseline: {why}."]
    baseline, spec = lines[0].baseline, column(metric)
    base, classes = baseline.label(records.swept), rank(groups, metric, test).classes
    own = classes and groups[classes[0].best].cell_key == baseline.cell_key
    itself = ["The best configuration is the baseline itself."] if own else []
    if not differing:
        return [
            *itself,
            f"No configuration could be told from the baseline ({base}), which does not mean that "
            "there is no effect.",
        ]
    top = max(differing, key=lambda line: abs(line.result.difference.estimate))
    d, g = top.result.difference, ""
    if math.isfinite(top.result.g):
        g = f"Hedges' g {top.result.g:.1f}, ".replace("-", "−")
    low = _signed(spec, d.low).removesuffix(" points")
    verb = "differs" if len(differing) == 1 else "differ"
    who = f"{count(len(differing))} of {count(len(tested))} configurations compared {verb}"
    if len(tested) == 1:
        who = "the one configuration compared differs"
    return [
        *itself,
        f"Against the baseline ({base}), {who}; the largest difference, "
        f"{_signed(spec, d.estimate)} (95 % interval {low} to {_signed(spec, d.high)}, {g}adjusted "
        f"p {_equals(top.holm)}), is that of {top.group.label(records.swept)}.",
    ]


def _signed(spec: Column, value: float) -> str:
    return ("−" if value < 0 else "+") + spec.difference(abs(value))


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _effects(found: Sequence[designs.Effect], remark: str, metric: str) -> list[str]:
    named = [e for e in found if e.name != "seed"]
    if not named:
        return []
    parts = [f"{100 * e.eta2:.0f} % goes with {e.name} (p {_equals(e.p)})" for e in named]
    text = f"Of the variation in {_name(column(metric))}, {', '.join(parts)}, by analysis "
    text += "of variance (η²); the rest is that of seeds and chance."
    return [text + (" " + remark if remark else "")]


def _resolution(
    groups: Sequence[Group], lines: Sequence[Line], metric: str, test: str
) -> list[str]:
    found = resolution(groups, lines, metric, test)
    if found is None or found.without:
        return []
    spec = column(metric)
    alone, first = (spec.difference(size * found.unit) for size in (found.alone, found.first))
    least, of_all = alone, ""
    if found.comparisons > 1:
        least, of_all = first, f" and of {first} at Holm's first step over "
        of_all += count(found.comparisons)
    return [
        f"Smaller differences than {least} can be missed: with {_many(found.n, 'seed')}, "
        f"{TEST_WORDS[test]} finds one of {alone} with 80 % power in one comparison{of_all}."
    ]
