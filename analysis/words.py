"""A sweep in words: the paragraph that a paper's Results section could start from."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import designs
from analysis.cells import Group, references, tally
from analysis.cells import groups as groups_of
from analysis.columns import Column, column
from analysis.compare import TEST_WORDS, Line, best_and_tied, p_text, spread
from analysis.frame import Records, short
from analysis.grid import GridResult, shown_metrics, swept
from mpcc.run_dir import DIVERGED, DONE

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def paragraph(
    records: Records, groups: Sequence[Group], result: GridResult | None, test: str
) -> str:
    """What was run, what came out best and how sure that is, what varied with what."""
    metric = shown_metrics(groups)[0]
    sentences = [_design(records, groups), *_gaps(groups)]
    sentences += _best(records, groups, metric, test)
    if result:
        lines = [line for line in result.lines if line.metric == metric]
        sentences += _baseline(lines, metric, records)
        sentences += _effects(*result.effects[metric], metric)
    sentences += _resolution(groups, metric)
    return " ".join(sentences)


def count(n: int) -> str:
    """Small numbers as words."""
    return _NUMBERS[n] if n < len(_NUMBERS) else f"{n:,}"


def _many(n: int, word: str) -> str:
    return f"{count(n)} {word}{'' if n == 1 else 's'}"


def _design(records: Records, groups: Sequence[Group]) -> str:
    axes = " and ".join(short(axis) for axis in swept(records)) or "the seed"
    if any(g.variant for g in groups):
        axes = "one part of the model at a time" if not swept(records) else f"{axes}, and parts"
    planned = sorted({g.n_planned for g in groups})
    seeds = " to ".join(count(n) for n in (planned[0], planned[-1])[: len(planned)])
    iterations = sorted({g.settings["iterations"] for g in groups})
    dataset = " and ".join(sorted({g.settings["dataset"] for g in groups}))
    steps = " and ".join(f"{i:,}" for i in iterations)
    cells = _many(len({g.cell_key for g in groups}), "configuration")
    return (
        f"We varied {axes} on {dataset}: {cells} "
        f"with {seeds} {'seed' if seeds == 'one' else 'seeds'} each, {steps} iterations per trial."
    )


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
    unit = " %" if spec.heading.endswith("%") else ""
    if summary.n < 2:
        return f"{spec.shown(summary.mean.estimate)}{unit} (one seed)"
    low, high = spec.shown(summary.mean.low), spec.shown(summary.mean.high)
    return (
        f"{spec.shown(summary.mean.estimate)}{unit} (SD {spec.shown(summary.std)}, 95 % interval "
        f"{low} to {high}, n = {summary.n})"
    )


def _best(records: Records, groups: Sequence[Group], metric: str, test: str) -> list[str]:
    spec = column(metric)
    index, tied = best_and_tied(groups, metric, spec.better, test)
    if index is None:
        alone = [g for g in groups if g.summary(metric).n][:1]
        where = [g.label(swept(records)).capitalize() for g in alone]
        return [
            f"{w} gave {_name(spec)} {_value(g, spec)}." for w, g in zip(where, alone, strict=True)
        ]
    best, label = groups[index], _name(spec)
    verb = "highest" if spec.better == "higher" else "lowest"
    text = f"The {verb} mean {label}, {_value(best, spec)}, came with {best.label(swept(records))}"
    if tied:
        who = "one other" if len(tied) == 1 else f"{count(len(tied))} others"
        text += f"; {who} cannot be told from it ({TEST_WORDS[test]}, Holm-adjusted)."
    else:
        text += f"; every other configuration differs from it ({TEST_WORDS[test]}, Holm-adjusted)."
    found = [text, _confirmed(records, best, spec)]
    known = references(groups, metric)
    reached = [
        spec.amount(sum(values) / len(values)) + (f" on {name}" if len(known) > 1 else "")
        for name, values in known.items()
    ]
    if reached:
        found.append(f"k-means on the same pixels reaches {' and '.join(reached)}.")
    return found


def _confirmed(records: Records, best: Group, spec: Column) -> str:
    fresh = [g for g in groups_of(records, confirm=True) if g.cell_key == best.cell_key]
    if fresh and fresh[0].summary(spec.metric).n:
        return f"On fresh seeds it reaches {_value(fresh[0], spec)}, which is the figure to quote."
    return (
        "As the best of several, this mean leans to the good side; a run on fresh seeds gives the "
        "figure to quote."
    )


def _name(spec: Column) -> str:
    names = {"acc_majority": "majority accuracy", "acc_hungarian": "one-to-one accuracy"}
    return names.get(spec.metric, spec.label)


def _baseline(lines: Sequence[Line], metric: str, records: Records) -> list[str]:
    differing = [line for line in lines if line.verdict == "differs"]
    if not lines:
        return []
    base = lines[0].baseline.label(swept(records))
    if not differing:
        return [
            f"No configuration could be told from the baseline ({base}), which does not mean that "
            "there is no effect."
        ]
    spec, top = (
        column(metric),
        max(differing, key=lambda line: abs(line.result.difference.estimate)),
    )
    d, g = top.result.difference, f"{top.result.g:.1f}".replace("-", "−")
    return [
        f"Against the baseline ({base}), {count(len(differing))} of {count(len(lines))} "
        f"configurations differ; the largest difference, {_signed(spec, d.estimate)} (95 % "
        f"interval {_signed(spec, d.low)} to {_signed(spec, d.high)}, Hedges' g {g}, adjusted p "
        f"{_equals(top.holm)}), is that of {top.group.label(swept(records))}."
    ]


def _signed(spec: Column, value: float) -> str:
    return ("−" if value < 0 else "+") + spec.shown(abs(value))


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _effects(found: Sequence[designs.Effect], remark: str, metric: str) -> list[str]:
    named = [e for e in found if e.name != "seed"]
    if not named:
        return []
    parts = [f"{e.name} (η² = {e.eta2:.2f}, p {_equals(e.p)})" for e in named]
    text = f"Of the total variation in {_name(column(metric))}, the analysis of variance gives "
    text += ", ".join(parts) + "."
    return [text + (" " + remark if remark else "")]


def _resolution(groups: Sequence[Group], metric: str) -> list[str]:
    counts = [g.summary(metric).n for g in groups if g.summary(metric).n > 1]
    pool = spread(groups, metric)
    if not counts or not pool.std > 0:
        return []
    least = designs.detectable(min(counts)) * pool.std
    return [
        f"With {_many(min(counts), 'seed')}, a difference of {column(metric).shown(least)} is "
        "found with 80 % power; smaller ones may exist."
    ]
