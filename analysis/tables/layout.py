"""A table as plain data, before any format: columns, rows of cells, numbered notes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Cell:
    """What stands in one place. `text` uses ±, ×, –; each format writes them its own way."""

    text: str
    notes: tuple[int, ...] = ()
    best: bool = False
    tied: bool = False
    """Tested against the best; no significant difference."""
    sort: float | None = None
    """The value that a sortable table sorts by."""


@dataclass(frozen=True)
class Heading:
    """A column; `numeric` columns are right-aligned."""

    text: str
    numeric: bool = True


OURS, PAPER, REFERENCE = "ours", "paper", "reference"


@dataclass(frozen=True)
class Row:
    """One row. `paper` rows are published figures, set in grey unless the protocol agrees."""

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
    """What every reader needs, a sentence or two each: what the marks mean, what is wrong."""
    chosen: str = ""
    """Whether labels chose what the table shows; every format prints this."""
    absent: str = ""
    """Which columns are left out because no trial measured them, and how to get them."""
    made: list[str] = field(default_factory=list)
    """How the numbers were made (protocols, tests, images, code); normally in a separate file."""
    notes_above: int = 0
    """How many notes the tables above it on a page have; cells may refer to those notes too."""
    counts: bool = False
    """Whether each cell states its number of seeds, because the numbers differ."""

    def told(self, *, full: bool = False) -> list[str]:
        """The lines under the table, in order; `full` adds how its numbers were made."""
        made = self.made if full else ()
        return [x for x in (self.measured, *self.lines, self.chosen, self.absent, *made) if x]

    def note(self, text: str) -> int:
        """The number of this note; the same text keeps its number."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1

    def noted(self, *told: tuple[object, str]) -> tuple[int, ...]:
        """The numbers of the notes whose condition holds; `told`: (condition, text) pairs."""
        return tuple(self.note(sentence(text)) for holds, text in told if holds)


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith(".") else text + "."


def own_sentence(clause: str) -> str:
    """A clause as a sentence of its own."""
    return sentence(clause[:1].upper() + clause[1:])


def on_one_page(tables: Sequence[Table]) -> list[Table]:
    """The tables for one page: notes numbered consecutively, no note or line repeated."""
    notes: list[str] = []
    said: set[str] = set()
    return [_below_others(table, notes, said) for table in tables]


def _below_others(table: Table, notes: list[str], said: set[str]) -> Table:
    above = len(notes)
    notes += [note for note in table.notes if note not in notes]

    def numbered(cell: Cell) -> Cell:
        own = tuple(notes.index(table.notes[number - 1]) + 1 for number in cell.notes)
        return replace(cell, notes=own)

    def new(lines: Sequence[str]) -> list[str]:
        return [line for line in lines if line and line not in said]

    made = replace(
        table,
        rows=[replace(row, cells=tuple(map(numbered, row.cells))) for row in table.rows],
        notes=notes[above:],
        notes_above=above,
        lines=new(table.lines),
        made=new(table.made),
        measured="".join(new([table.measured])),
        chosen="".join(new([table.chosen])),
        absent="".join(new([table.absent])),
    )
    said |= {*table.told(full=True)}
    return made
