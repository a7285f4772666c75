"""A table as plain data, before any format: columns, rows of cells, numbered notes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """What stands in one place. `text` uses ±, ×, –; each format writes them its own way."""

    text: str
    notes: tuple[int, ...] = ()
    best: bool = False
    tied: bool = False
    """Cannot be told from the best."""
    sort: float | str | None = None
    """What a sortable table sorts by."""


@dataclass(frozen=True)
class Heading:
    """A column; `spread` columns hold numbers and are set right."""

    text: str
    numeric: bool = True
    notes: tuple[int, ...] = ()


OURS, PAPER, REFERENCE = "ours", "paper", "reference"


@dataclass(frozen=True)
class Row:
    """One line. `paper` rows are published figures and set in grey, unless the protocol agrees."""

    cells: tuple[Cell, ...]
    kind: str = OURS
    grey: bool = False


@dataclass
class Table:
    """A finished table: name of its files, title, body, notes by number, lines below."""

    name: str
    title: str
    headings: list[Heading] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured: str = ""
    """What ± and n are; part of the caption in LaTeX."""
    lines: list[str] = field(default_factory=list)
    """What every reader needs, a sentence or two each: what the marks mean, what is amiss."""
    chosen: str = ""
    """Whether labels chose what it shows; no format leaves that out."""
    absent: str = ""
    """Which columns are left out since nobody measured them, and how to get them."""
    made: list[str] = field(default_factory=list)
    """How these numbers were made: protocols, tests, images, code; beside the table, not in it."""
    counts: bool = False
    """Whether cells say their number of seeds, because it differs between them."""

    def note(self, text: str) -> int:
        """The number of this note; the same text keeps its number."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1
