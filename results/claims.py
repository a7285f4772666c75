"""`python results/claims.py`: what the records in this folder say of the paper's claims.

Prints the rows of README.md's table and draws claims.png, from claims.csv: in each of its lines two
cells and a metric, whose difference is positive where the paper is right. The numbers are those of
`make_tables.py --table grid --baseline CELL`: Welch's t test, Holm over the cells that are compared
with that baseline.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[0:1] = [str(HERE.parent)]

from analysis.output.figures import STYLE, saved  # noqa: E402
from analysis.output.html import COLOURS  # noqa: E402
from analysis.paper.protocol import published, published_rows  # noqa: E402
from analysis.records.load import load  # noqa: E402
from analysis.statistics.stats import p_text  # noqa: E402
from analysis.tables.columns import column  # noqa: E402
from analysis.tables.compare import Line, find_group, lines  # noqa: E402
from analysis.tables.groups import Group, groups  # noqa: E402
from mpcc.evaluation.plots import own_style  # noqa: E402
from mpcc.runs.run_dir import write_bytes  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "omniglot": "Omniglot"}
HOLDS, CONTRADICTED, OPEN = "holds here", "contradicted here", "not decided"
COLOUR = {HOLDS: COLOURS[0], CONTRADICTED: COLOURS[1], OPEN: COLOURS[6]}


@dataclass(frozen=True)
class Effect:
    """A line of claims.csv, and what the records say of it."""

    claim: str
    words: str
    metric: str
    sign: int
    """-1 where the difference is baseline minus cell."""
    line: Line
    """Cell minus baseline, as the tables have it, in recorded units."""
    paper: tuple[str, float] | None
    """The paper's metric (FID where ours is FID-CNN) and difference, in the unit of the tables."""

    @property
    def difference(self) -> tuple[float, float, float]:
        """Estimate, low and high of the 95 % interval, in the unit of the tables."""
        found, unit = self.line.result.difference, self.sign * column(self.metric).scale
        low, high = sorted((unit * found.low, unit * found.high))
        return unit * found.estimate, low, high

    @property
    def dataset(self) -> str:
        """Its name."""
        return NAMES[self.line.group.settings["dataset"]]

    @property
    def decision(self) -> str:
        """A key of COLOUR."""
        if self.line.verdict != "differs":
            return OPEN
        return HOLDS if self.difference[0] > 0 else CONTRADICTED

    @property
    def row(self) -> str:
        """Its row of README.md's table."""
        n, heading = self.line.result.difference.n, column(self.metric).heading.replace("|", "\\|")
        estimate, low, high = (signed(self.metric, value) for value in self.difference)
        effect = [f"{estimate} ({low} to {high})", p_text(self.line.holm), str(n)]
        paper = f"{column(self.paper[0]).label} {signed(*self.paper)}" if self.paper else ""
        decision = self.decision
        if decision == OPEN:
            needed = f"about {self.line.seeds_needed}" if self.line.seeds_needed else "over 1,000"
            decision += f" with n = {n}, needs {needed}"
        cells = (self.claim, self.dataset, f"{heading}: {self.words}", *effect, paper, decision)
        return f"| {' | '.join(cells)} |"


def signed(metric: str, value: float) -> str:
    """A difference in the unit of the tables, with their digits."""
    return f"{value:+.{column(metric).decimals}f}".replace("-", "−")


@cache
def read(folder: str) -> list[Group]:
    """The cells of a folder beside this file."""
    return groups(load([HERE / folder]))


def effects() -> list[Effect]:
    """Every line of claims.csv."""
    found = []
    with (HERE / "claims.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells, metric = read(row["folder"]), row["metric"]
            cell, baseline = (find_group(cells, row[n]) for n in ("cell", "baseline"))
            compared = lines(cells, baseline, metric, "welch")
            (line,) = (line for line in compared if line.group is cell)
            paper = difference_of_paper(row["paper"], metric) if row["paper"] else None
            found.append(Effect(row["claim"], row["words"], metric, int(row["sign"]), line, paper))
    return found


def difference_of_paper(place: str, metric: str) -> tuple[str, float]:
    """`Effect.paper` of a table and two of its rows, such as `table1 3 2`."""
    table, *numbers = place.split()
    metric = metric.removesuffix("_cnn")
    figures = [published(published_rows(table)[int(number)], metric) for number in numbers]
    more, less = (figure.mean for figure in figures if figure)
    return metric, (more - less) * column(metric).scale


def figure(found: list[Effect]) -> Figure:
    """Every effect with its interval, a panel for each metric, coloured by the decision."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels: dict[str, list[Effect]] = {}
    for effect in found:
        panels.setdefault(effect.metric, []).append(effect)
    made = Figure(figsize=(7.2, 0.6 + 0.45 * len(panels) + 0.18 * len(found)))
    axes = made.subplots(len(panels), height_ratios=[len(some) + 0.6 for some in panels.values()])
    for ax, (metric, some) in zip(axes, panels.items(), strict=True):
        ax.axvline(0, color="black", linewidth=0.6)
        for place, effect in enumerate(some):
            estimate, low, high = effect.difference
            colour = COLOUR[effect.decision]
            ax.plot([low, high], [place, place], color=colour)
            ax.plot(estimate, place, "o", color=colour, markersize=4)
            if effect.paper:
                ax.plot(effect.paper[1], place, "D", color="black", mfc="none", markersize=4)
        ax.set_yticks(range(len(some)), [f"{e.claim}. {e.dataset}: {e.words}" for e in some])
        ax.set_ylim(len(some) - 0.5, -0.5)
        theirs = {effect.paper[0] for effect in some if effect.paper} - {metric}
        other = "".join(f" (in the paper {column(name).label})" for name in theirs)
        heading = column(metric).heading.replace("%", "points")
        ax.set_title(heading + other, fontsize=8, loc="left")
    marks = [Line2D([], [], color=c, marker="o", markersize=4, label=d) for d, c in COLOUR.items()]
    diamond = Line2D([], [], color="black", marker="D", mfc="none", ls="", markersize=4)
    diamond.set_label("in the paper, at its scale")
    made.legend(handles=[*marks, diamond], ncols=4, loc="outside upper center")
    made.supxlabel("difference with 95 % interval; above zero is as the paper says", fontsize=8)
    return made


def main() -> None:
    """Print the rows and draw the figure."""
    found = effects()
    for effect in found:
        print(effect.row)
    with own_style(STYLE):
        for name, data in saved(figure(found), "claims", ["png"], 130).items():
            write_bytes(HERE / name, data)


if __name__ == "__main__":
    main()
