"""A sweep in words: what a reader asks first, each with its answer."""

import inspect
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis.records.frame import Records, short
from analysis.report.best import beside_kmeans, best_cell, count, many
from analysis.statistics import factorial
from analysis.statistics.stats import p_text
from analysis.tables.columns import column
from analysis.tables.compare import TEST_WORDS, Line, resolution
from analysis.tables.grid import GridResult
from analysis.tables.groups import Group, tally
from analysis.tables.layout import own_sentence
from analysis.tables.ranking import best_of
from analysis.tables.shared import cost_line, shown_metrics, sorted_levels
from mpcc.config import Config, full_name, value_text
from mpcc.evaluation.metrics import NEED_LABELS
from mpcc.runs.run_dir import DIVERGED, DONE
from tune.plan.plan import FULL_MODEL

MAX_LEVELS = 8
"""Levels of an axis that the paragraph names; figures and tables have all."""


def answers(
    records: Records, groups: Sequence[Group], result: GridResult | None, test: str
) -> dict[str, str]:
    """Question -> answer; a question that these records do not answer is left out."""
    metric = shown_metrics(groups)[0]
    found = {
        "What was varied?": [_design(records, groups), *_ends(records, groups)],
        "What is best?": best_cell(records, groups, metric, test),
        "Is it better than k-means?": beside_kmeans(records, groups, metric, test),
    }
    if result:
        lines = [line for line in result.lines if line.metric == metric]
        question = "How do the others compare with the baseline?"
        found[question] = _baseline(lines, groups, metric, test)
        found["What mattered?"] = _effects(groups, *result.effects[metric], metric)
        found["What can so few seeds show?"] = _resolution(groups, lines, metric, test)
    labels = ["The best above is named by a metric that needs them."] * (metric in NEED_LABELS)
    found["Were labels used to choose?"] = [own_sentence(records.selection), *labels]
    found["What did it cost?"] = [cost_line(groups).removeprefix("Cost: ")]
    found["How is the best model used?"] = _use(groups, metric, test)
    return {question: " ".join(texts) for question, texts in found.items() if texts}


def _design(records: Records, groups: Sequence[Group]) -> str:
    axes = " and ".join(_axis(axis, groups) for axis in records.swept) or "the seed"
    if any(g.variant for g in groups):
        axes = "one part of the model at a time" if not records.swept else f"{axes}, and parts"
        parts = {g.variant: _part(g.changes) for g in groups if g.variant and g.changes}
        axes += f" ({'; '.join(f'{name}: {change}' for name, change in parts.items())})"
    planned = sorted({g.n_planned for g in groups})
    seeds = " to ".join(count(n) for n in (planned[0], planned[-1])[: len(planned)])
    iterations = sorted({g.settings["iterations"] for g in groups})
    dataset = " and ".join(sorted({g.settings["dataset"] for g in groups}))
    steps = " and ".join(f"{i:,}" for i in iterations)
    sizes = {(t["n_images"], g.settings["image_size"]) for g in groups for t in g.done}
    if len(sizes) == 1 and (size := sizes.pop())[0]:
        dataset += f" ({int(size[0]):,} images of {size[1]}×{size[1]} pixels)"
    cells = many(len({g.cell_key for g in groups}), "configuration")
    return (
        f"We varied {axes} on {dataset}: {cells} "
        f"with {seeds} {'seed' if seeds == 'one' else 'seeds'} each (repetitions with other random "
        f"numbers), {steps} iterations per trial."
    )


def _axis(axis: str, groups: Sequence[Group]) -> str:
    """`esteps (encoder updates per generator update: 1, 2, 4)`."""
    levels = sorted_levels(groups, axis)
    values = ", ".join(value_text(v) for v in levels[:MAX_LEVELS])
    values += " …" * (len(levels) > MAX_LEVELS)
    meaning = _meaning(axis)
    return short(axis) + (f"{meaning[:-1]}: {values})" if meaning else f" ({values})")


def _meaning(field: str) -> str:
    """` (encoder updates per generator update)`: the first sentence of the field's docstring."""
    own = rf'\n    {field}: (?:(?!\n    \w).)*?\n    """(.*?)"""'  # Not a later field's docstring.
    found = re.search(own, inspect.getsource(Config), re.DOTALL)
    if found is None:
        return ""
    first = re.split(r"(?<!eq)\. ", found[1])[0].removesuffix(".").replace("\n    ", " ")
    return f" ({re.sub(r'^[^ ]+: ', '', first)})"  # Without its symbol.


def _part(changes: str) -> str:
    """`lambda_p=0 (the weight of Loss III, eq. (5))`; for several settings only the values."""
    name, several = changes.partition("=")[0], ", " in changes
    return changes if several else changes + _meaning(full_name(name))


def _ends(records: Records, groups: Sequence[Group]) -> list[str]:
    """How many trials finished, and whether their models are sound (Appendix D)."""
    counts = tally(groups)
    total, done = sum(counts.values()), counts.get(DONE, 0)
    if done == total:
        odd = "; ".join(f"{g.label()}: {g.failures()}" for g in groups if g.failures())
        if odd or records.moment != Records.moment:  # Soundness is known only at the end.
            return ["Every trial finished" + (f", but {odd} (Appendix D)." if odd else ".")]
        return ["Every trial finished; none diverged, saturated or collapsed."]
    rest = ", ".join(f"{n} {state}" for state, n in counts.items() if state != DONE)
    note = " Trials that diverged have no value and are counted in their cells."
    return [f"{done} of {total} trials finished ({rest}).{note if counts.get(DIVERGED) else ''}"]


def _baseline(lines: Sequence[Line], groups: Sequence[Group], metric: str, test: str) -> list[str]:
    differing = [line for line in lines if line.verdict == "differs"]
    tested = [line for line in lines if not line.refused]
    if not lines:
        return []
    if not tested:
        counts = Counter(line.verdict.removeprefix("not compared: ") for line in lines)
        whys = [f"{why} ({many(n, 'configuration')})" for why, n in counts.items()]
        return [f"No configuration was compared with the baseline: {'; '.join(whys)}."]
    baseline, spec = lines[0].baseline, column(metric)
    base, best = baseline.label(), best_of(groups, metric, test)
    own = best is not None and best.cell_key == baseline.cell_key
    itself = "The best configuration is the baseline."
    if not differing:
        return [
            *[itself] * own,
            f"No configuration differs significantly from the baseline ({base}); that does not "
            "mean that there is no effect.",
        ]
    top = max(differing, key=lambda line: abs(line.result.difference.estimate))
    d, g = top.result.difference, ""
    low = spec.signed(d.low, unit=True).removesuffix(" points")
    if math.isfinite(top.result.g):
        g = f"Hedges' g {top.result.g:.1f}, ".replace("-", "−")
    verb = "differs" if len(differing) == 1 else "differ"
    who = f"{count(len(differing))} of {count(len(tested))} other configurations {verb}"
    if len(tested) == 1:
        who = "the one other configuration differs"
    return [
        *[itself] * own,
        f"Against the baseline ({base}), {who}; the largest difference, "
        f"{spec.signed(d.estimate, unit=True)} (95 % interval {low} to "
        f"{spec.signed(d.high, unit=True)}, {g}adjusted p {_equals(top.holm)}), is that of "
        f"{top.group.label()}.",
    ]


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _effects(
    groups: Sequence[Group], found: Sequence[factorial.Effect], remark: str, metric: str
) -> list[str]:
    """How the total sum of squares divides between axes and seeds, in percent, as a sentence."""
    named = [e for e in found if e.name != "seed"]
    if not named:
        return []
    cells = [g.summary(metric).array for g in groups if g.variant in (None, FULL_MODEL)]
    values = np.concatenate(cells)
    seeds = sum(float(((x - x.mean()) ** 2).sum()) for x in cells if x.size)
    seeds /= float(((values - values.mean()) ** 2).sum())
    parts = [f"{100 * e.eta2:.0f} % goes with {e.name} (p {_equals(e.p)})" for e in named]
    shared = 1 - seeds - sum(e.eta2 for e in named)
    if shared >= 0.005:
        remark = remark and "Not every combination was run."
        parts.append(f"{100 * shared:.0f} % cannot be attributed to a single axis")
    text = (
        f"Of the variation in {column(metric).label}, {100 * seeds:.0f} % is between the seeds of "
        f"one configuration; {', '.join(parts)} (analysis of variance, η²)."
    )
    return [text + (" " + remark if remark else "")]


def _resolution(
    groups: Sequence[Group], lines: Sequence[Line], metric: str, test: str
) -> list[str]:
    found = resolution(groups, lines, metric, test)
    if found is None or found.without:
        return []
    spec = column(metric)
    alone, first = (spec.difference(size * found.unit) for size in (found.alone, found.first))
    text = f"Only large differences. With {many(found.n, 'seed')} in each configuration, a true "
    text += f"difference of {alone} is found four times in five ({TEST_WORDS[test]})"
    if found.comparisons > 1:
        text += f"; with {count(found.comparisons)} comparisons at once it must be {first} (Holm)"
    return [text + ". Where no difference was found, a smaller one may be there."]


def _use(groups: Sequence[Group], metric: str, test: str) -> list[str]:
    """The command that clusters a folder of images with the best cell's model."""
    best = best_of(groups, metric, test)
    if best is None or not best.done:
        return []
    return [
        f"python -m mpcc cluster SWEEP --cell {best.cell_key} --seed {best.done[0]['seed']} "
        "--images FOLDER --out clusters.csv gives each image of a folder its cluster by the model "
        "of that seed; SWEEP is the folder of this sweep. More is in docs/using-a-model.md."
    ]
