"""A laid-out table as text for a terminal or as Markdown. No numbers are computed here."""

import textwrap
from collections.abc import Sequence

from analysis.tables.layout import Cell, Row, Table

_SUPERSCRIPT = str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")
GREY, PLAIN = "\x1b[2m", "\x1b[0m"
WIDTH = 100


def marks(notes: tuple[int, ...]) -> str:
    """Note numbers as superscripts."""
    return ",".join(map(str, notes)).translate(_SUPERSCRIPT)


def text(table: Table, *, colour: bool = False, full: bool = False) -> str:
    """The table for a terminal: aligned columns, `*` best, `~` tied with it, notes below.

    full: also say how the numbers were made.
    """
    body = [
        [c.text + ("*" if c.best else "~" if c.tied else "") + marks(c.notes) for c in row.cells]
        for row in table.rows
    ]
    head = [heading.text for heading in table.headings]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def aligned(line: list[str]) -> str:
        parts = [
            item.rjust(width) if heading.numeric else item.ljust(width)
            for item, width, heading in zip(line, widths, table.headings, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [table.title, "", aligned(head), rule]
    for row, items in zip(table.rows, body, strict=True):
        line = aligned(items)
        lines.append(f"{GREY}{line}{PLAIN}" if colour and row.grey else line)
    lines.append(rule)
    for number, note in enumerate(table.notes, table.notes_above + 1):
        lines += textwrap.wrap(f"{marks((number,))} {note}", WIDTH, subsequent_indent="  ")
    told = table.told(full=full)
    lines += [""] if told else []
    for line in told:
        lines += textwrap.wrap(line.replace("Bold:", "*:"), WIDTH)
    return "\n".join(lines) + "\n"


def markdown(table: Table, how: str = "", *, full: bool = False) -> str:
    """The table in GitHub's Markdown: best in bold, `~` tied, published figures in italics.

    how: the name of the file that says how the numbers were made; `full` says it here instead.
    """
    head = [_md(heading.text) for heading in table.headings]
    align = ["---:" if heading.numeric else ":---" for heading in table.headings]
    lines = [f"**{_md(table.title)}**", "", _md_row(head), _md_row(align)]
    lines += [_md_row([_md_cell(cell, row) for cell in row.cells]) for row in table.rows]
    if table.notes:
        lines.append("")
    for number, note in enumerate(table.notes, 1):
        lines.append(f"{marks((number,))} {_md(note)}  ")
    for line in table.told(full=full):
        lines += ["", _md(line)]
    if how and not full:
        lines += ["", f"[How these numbers were made]({how})"]
    return "\n".join(lines) + "\n"


def _md_row(items: list[str]) -> str:
    return "| " + " | ".join(items) + " |"


def _md(value: str) -> str:
    for character in ("\\", "|", "*", "_", "<", "~", "`"):
        value = value.replace(character, "\\" + character)
    return value


def _md_cell(cell: Cell, row: Row) -> str:
    body = _md(cell.text)
    if cell.best:
        body = f"**{body}**"
    elif cell.tied:
        body += " \\~"
    elif row.grey and body:
        body = f"*{body}*"
    return body + marks(cell.notes)


def how(tables: Sequence[Table], name: str) -> str:
    """How the numbers of these tables were made, in Markdown, without repeated lines."""
    lines, seen = [f"# How the numbers of {name} were made"], set[str]()
    for table in tables:
        numbered = [f"{i}. {note}" for i, note in enumerate(table.notes, 1)]
        rest = [line for line in table.told(full=True) if line not in seen]
        seen |= {*rest}
        if numbered or rest:
            lines += ["", f"## {_md(table.title)}"]
            lines += ["", *map(_md, numbered)] if numbered else []
            lines += [text for line in rest for text in ("", _md(line))]
    return "\n".join(lines) + "\n"
