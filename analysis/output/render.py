"""A laid-out table as text for a terminal, Markdown or LaTeX. No numbers are made here."""

from __future__ import annotations

import re
import textwrap

from analysis.tables.layout import REFERENCE, Cell, Heading, Row, Table

_SUPERSCRIPT = str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")
GREY, PLAIN = "\x1b[2m", "\x1b[0m"
WIDTH = 100


def marks(notes: tuple[int, ...]) -> str:
    """Note numbers as superscripts."""
    return ",".join(map(str, notes)).translate(_SUPERSCRIPT)


def text(table: Table, *, colour: bool = False) -> str:
    """For a terminal: aligned columns, `*` best, `~` tied with it, notes below."""
    body = [[_text_cell(cell) for cell in row.cells] for row in table.rows]
    head = [heading.text + marks(heading.notes) for heading in table.headings]
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
    lines += [rule, *_below(table)]
    return "\n".join(lines) + "\n"


def _text_cell(cell: Cell) -> str:
    return cell.text + ("*" if cell.best else "~" if cell.tied else "") + marks(cell.notes)


def _below(table: Table) -> list[str]:
    lines = []
    for number, note in enumerate(table.notes, 1):
        lines += textwrap.wrap(f"{marks((number,))} {note}", WIDTH, subsequent_indent="  ")
    if table.lines:
        lines.append("")
    for line in table.lines:
        lines += textwrap.wrap(line, WIDTH)
    return lines


def markdown(table: Table) -> str:
    """GitHub's Markdown: bold best, `~` tied, published figures in italics."""
    head = [_md(heading.text) + marks(heading.notes) for heading in table.headings]
    align = ["---:" if heading.numeric else ":---" for heading in table.headings]
    lines = [f"**{_md(table.title)}**", "", _md_row(head), _md_row(align)]
    lines += [_md_row([_md_cell(cell, row) for cell in row.cells]) for row in table.rows]
    if table.notes:
        lines.append("")
    for number, note in enumerate(table.notes, 1):
        lines.append(f"{marks((number,))} {_md(note)}  ")
    for line in table.lines:
        lines += ["", _md(line)]
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


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "⁻": r"$^{-}$",
    "³": r"$^{3}$",
    "²": r"$^{2}$",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "<": "$<$",
    "|": "$|$",
    ">": "$>$",
    "η": r"$\eta$",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "φ": r"$\varphi$",
    "α": r"$\alpha$",
    "·": r"$\cdot$",
    "Δ": r"$\Delta$",
    "é": r"\'e",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "→": r"$\rightarrow$",
}


def tex(value: str) -> str:
    """Any text for LaTeX with its default fonts; a character it has no way to set becomes `?`."""
    value = value.replace("⁻³", "\x00")
    body = "".join(_TEX.get(c, c if ord(c) < 128 else "?") for c in value)
    return body.replace("\x00", "$^{-3}$").replace(" --", " -{}-")


_ALONE = r"""% \input this file (with booktabs, graphicx, xcolor) or compile it as it is.
\makeatletter
\ifx\@nodocument\relax
  \let\mpccend\relax
\else
  \documentclass{article}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,graphicx,xcolor}
  \def\mpccend{\end{document}}
  \begin{document}
\fi
\makeatother"""
"""`\\@nodocument` is `\\relax` within a document only: so the file knows whether it is alone."""


MAX_FLOAT_ROWS = 45
"""Longer tables do not fit a page and break over several."""

FLOATS_IN_A_ROW = 8
"""Floats that LaTeX is given before it must place them: it holds but a few."""


def latex(table: Table) -> str:
    r"""A booktabs table that compiles both by `\input` and as it stands."""
    columns = "".join("r" if heading.numeric else "l" for heading in table.headings)
    head = " & ".join(_tex_heading(heading) for heading in table.headings) + r" \\"
    notes = [rf"\par $^{{{number}}}$ {tex(note)}" for number, note in enumerate(table.notes, 1)]
    notes += [rf"\par {tex(line)}" for line in table.lines]
    parts = _long if len(table.rows) > MAX_FLOAT_ROWS else _float
    lines = parts(table, columns, head, _tex_body(table), notes)
    return "\n".join([_ALONE, *lines, r"\mpccend", ""])


def _tex_body(table: Table) -> list[str]:
    body, previous = [], None
    for row in table.rows:
        if previous is not None and row.kind == REFERENCE != previous:
            body.append(r"\midrule")
        previous = row.kind
        body.append(" & ".join(_tex_cell(cell, row) for cell in row.cells) + r" \\")
    return body


def _float(table: Table, columns: str, head: str, body: list[str], notes: list[str]) -> list[str]:
    """One page: a table that floats."""
    return [
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{_caption(table)}}}",
        rf"\label{{tab:{table.name}}}",
        *_fitted(columns, head, body),
        r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize",
        *notes,
        r"\end{minipage}",
        r"\end{table}",
    ]


def _fitted(columns: str, head: str, body: list[str]) -> list[str]:
    """A tabular, made narrower where it is wider than the text."""
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _long(table: Table, columns: str, head: str, body: list[str], notes: list[str]) -> list[str]:
    """Several pages, each with the headings and as wide as the widest: a longtable cannot shrink.

    An invisible line of each column's widest cell gives all pages the same columns.
    """
    rows = [head, *(line for line in body if line != r"\midrule")]
    widest = _widest([row.removesuffix(r" \\") for row in rows])
    lines = []
    for number, start in enumerate(range(0, len(body), MAX_FLOAT_ROWS)):
        caption = rf"\caption{{{_caption(table)}}}\label{{tab:{table.name}}}"
        if number:
            caption = r"\addtocounter{table}{-1}\caption{(continued)}"
        part = [*body[start : start + MAX_FLOAT_ROWS], widest]
        lines += [r"\begin{table}[p]", r"\centering\footnotesize", caption]
        lines += [*_fitted(columns, head, part), r"\end{table}"]
        lines += [r"\clearpage"] if number % FLOATS_IN_A_ROW == FLOATS_IN_A_ROW - 1 else []
    return [*lines, r"\clearpage", r"{\footnotesize", *notes, r"\par}"]


def _widest(lines: list[str]) -> str:
    """A line that takes no height and shows nothing, with the longest cell of every column."""
    cells = zip(*(line.split(" & ") for line in lines), strict=True)
    longest = [max(column, key=lambda cell: len(_COMMAND.sub("", cell))) for column in cells]
    hidden = " & ".join(rf"\hphantom{{{cell}}}" for cell in longest)
    return hidden + r" \\[-\normalbaselineskip]"


_COMMAND = re.compile(r"\\[a-z]+|[{}$^\\]")
"""What of a cell takes no room on the page, about."""


def _caption(table: Table) -> str:
    """LaTeX numbers its tables itself, so the paper's number is named as such."""
    title = table.title
    return tex(f"The paper’s {title}" if title.startswith("Table ") else title)


def _tex_marks(notes: tuple[int, ...]) -> str:
    return f"$^{{{','.join(map(str, notes))}}}$" if notes else ""


def _tex_heading(heading: Heading) -> str:
    return tex(heading.text) + _tex_marks(heading.notes)


def _tex_cell(cell: Cell, row: Row) -> str:
    body = tex(cell.text)
    if cell.best:
        body = rf"\textbf{{{body}}}"
    elif cell.tied:
        body += r"$^{\sim}$"
    elif row.grey and body:
        body = rf"\textcolor{{gray}}{{{body}}}"
    return body + _tex_marks(cell.notes)
