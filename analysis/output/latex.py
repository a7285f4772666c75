r"""A laid-out table as LaTeX: the paper's symbols, only booktabs, at most three lines of notes.

The file compiles by `\input` and on its own. The table floats in one column; on a two-column page,
`\def\mpccfloat{table*}` before the `\input` makes it span both. A table that is too wide even in
the smallest type is scaled if graphicx is loaded.
"""

import re
from collections.abc import Sequence

from analysis.tables.layout import REFERENCE, Cell, Heading, Table

SYMBOLS = {
    "esteps": r"E_{\mathrm{steps}}",
    "dsteps": r"D_{\mathrm{steps}}",
    "eta": r"\eta",
    "eta_p": r"\eta_p",
    "lambda_p": r"\lambda_p",
    "sigma_min": r"\sigma_{\min}",
    "K": "K",
    "J": "J",
    "C": "C",
}
"""Short name of a setting -> how the paper writes it, in math."""

_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {c: f"${c}$" for c in "<|>"}
_TEX |= {
    "\\": r"\textbackslash{}",
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


_MATH = re.compile(
    r"(?<![\w.])(?:(?P<name>esteps|dsteps|eta_p|eta|lambda_p|sigma_min|[KJC](?=[ =]\d))"
    r"(?:[ =](?P<value>\d+(?:\.\d+)?(?:e-?\d{1,2})?))?"
    r"|(?P<power>\d(?:\.\d{1,6})?e-?\d{1,2}))(?![\w.])"
)
"""The parts of a text to set in math: a setting with its value, a number with an exponent."""

_NUMBER = re.compile(r"([−-]?)([\d,]+)(\.\d+)?(?: ± ([\d,]+)(\.\d+)?)?( \([^)]*\))?")
"""A value of a table: sign, mean, spread, and how many seeds have one."""

_FLAG = re.compile(r"(?:^|\s)--\w")
_DONE = re.compile(r": (\d+) of \1 trials done$")

MAX_LINES = 3
LINE = 120
"""At most MAX_LINES lines of notes under a table, of LINE characters each."""

MAX_FLOAT_ROWS = 45
"""Rows per page; a longer table is split over several pages."""

_HEAD = r"""% \input this file (with booktabs) or compile it as it is.
\makeatletter
\ifx\@nodocument\relax
  \let\mpccend\relax
\else
  \documentclass{article}
  \usepackage{booktabs}
  \setlength{\textwidth}{17cm}\setlength{\oddsidemargin}{-5mm}
  \setlength{\textheight}{24cm}\setlength{\topmargin}{-15mm}
  \def\mpccend{\end{document}}
  \begin{document}
\fi
\makeatother
\providecommand{\mpccfloat}{table}
\providecommand{\mpccfit}[1]{\leavevmode{\setbox1\hbox{#1}%
  \ifdim\wd1>\linewidth\tabcolsep3pt\footnotesize\setbox1\hbox{#1}\fi
  \ifdim\wd1>\linewidth\tabcolsep2pt\scriptsize\setbox1\hbox{#1}\fi
  \ifdim\wd1>\linewidth\tabcolsep1pt\tiny\setbox1\hbox{#1}\fi
  \ifdim\wd1>\linewidth\ifx\resizebox\undefined\else
    \setbox1\hbox{\resizebox{\linewidth}{!}{\copy1}}\fi\fi\box1}}"""
"""`\\@nodocument` is `\\relax` within a document only: this tells whether the file is `\\input`."""


def latex(table: Table, how: str = "") -> str:
    r"""A booktabs table that compiles both by `\input` and on its own.

    how: the name of the file that says how its numbers were made, which the notes cite.
    """
    columns = "".join("r" if heading.numeric else "l" for heading in table.headings)
    head = " & ".join(_heading(heading) for heading in table.headings) + r" \\"
    notes = [rf"\par {line}" for line in _notes(table, how)]
    body, lines = _body(table), list[str]()
    for start in range(0, len(body) or 1, MAX_FLOAT_ROWS):
        lines += [r"\clearpage"] if start else []
        page = body[start : start + MAX_FLOAT_ROWS]
        last = start + MAX_FLOAT_ROWS >= len(body)
        lines += _float(table, columns, head, page, notes if last else (), again=start > 0)
    return "\n".join([_HEAD, *lines, r"\mpccend", ""])


def tex(value: str) -> str:
    """Any text escaped for LaTeX's default fonts; a character that they lack becomes `?`.

    Settings become the paper's symbols, and 8e-4 becomes 8×10⁻⁴.
    """
    parts, end = [], 0
    for found in _MATH.finditer(value):
        parts += [_escaped(value[end : found.start()]), f"${_math(found)}$"]
        end = found.end()
    return "".join([*parts, _escaped(value[end:])])


def _escaped(value: str) -> str:
    value = value.replace("×10⁻³", "\x00").replace("⁻³", "\x01")
    body = "".join(_TEX.get(c, c if ord(c) < 128 else "?") for c in value)
    body = body.replace("\x00", r"$\times10^{-3}$").replace("\x01", "$^{-3}$")
    return body.replace(" --", " -{}-")


def _math(found: re.Match[str]) -> str:
    if not found["name"]:
        return _power(found["power"])
    return SYMBOLS[found["name"]] + (f"={_power(found['value'])}" if found["value"] else "")


def _power(number: str) -> str:
    mantissa, _, exponent = number.partition("e")
    if not exponent:
        return number
    return ("" if mantissa == "1" else rf"{mantissa}\times") + f"10^{{{int(exponent)}}}"


def _notes(table: Table, how: str) -> list[str]:
    """At most MAX_LINES lines of notes under the table; the file named by `how` has the rest."""
    cite = f"How these numbers were made: {how}." if how else ""
    lines = [line for line in table.lines if not _FLAG.search(line)]
    chosen, marked = [table.chosen] if table.chosen else [], list[str]()
    numbered = [f"{number} {note}" for number, note in enumerate(table.notes, 1)]

    def fits(*texts: str) -> bool:
        return sum(-(-len(text) // LINE) for text in texts) <= MAX_LINES

    if fits(*numbered, " ".join([*lines, *chosen]), cite) and not any(map(_FLAG.search, numbered)):
        marked = [rf"$^{{{i}}}$ {tex(note)}" for i, note in enumerate(table.notes, 1)]
    elif numbered and how:
        which = "Note 1" if len(numbered) == 1 else f"Notes 1–{len(numbered)}"
        cite = f"{which}, and how these numbers were made: {how}."
    while not marked and lines and not fits(" ".join([*lines, *chosen]), cite):
        lines.pop()
    return [*marked, *(tex(part) for part in (" ".join([*lines, *chosen]), cite) if part)]


def _heading(heading: Heading) -> str:
    text = heading.text
    if text in SYMBOLS:
        return f"${SYMBOLS[text]}$"
    label, comma, unit = text.partition(", ")
    return f"{tex(label)} ({tex(unit)})" if comma and unit[0] in "%×" else tex(text)


def _body(table: Table) -> list[str]:
    columns = [_column([row.cells[i] for row in table.rows]) for i in range(len(table.headings))]
    body, previous = [], None
    for i, row in enumerate(table.rows):
        if previous is not None and row.kind == REFERENCE != previous:
            body.append(r"\midrule")
        previous = row.kind
        cells = [column[i] for column in columns]
        if row.grey and row.cells[0].text:
            cells[0] = rf"\textit{{{cells[0]}}}"
        body.append(" & ".join(cells) + r" \\")
    return body


def _column(cells: Sequence[Cell]) -> list[str]:
    """The cells of a column, with means and spreads aligned at the decimal point."""
    found = [_NUMBER.fullmatch(cell.text) for cell in cells]
    spread = [f for f in found if f and f[4]]
    widths = [
        max((len(f[3] or "") for f in found if f), default=0),
        max((len(f[4]) for f in spread), default=0),
        max((len(f[5] or "") for f in spread), default=0),
    ]
    counts = max((f[6] or "" for f in found if f), key=len, default="")
    return [
        _number(cell, one, widths, counts) if one and spread else _cell(cell)
        for cell, one in zip(cells, found, strict=True)
    ]


def _number(cell: Cell, found: re.Match[str], widths: Sequence[int], counts: str) -> str:
    mean_width, whole, fraction = widths
    bold = r"\mathbf{%s}" if cell.best else "%s"

    def shown(text: str) -> str:
        return bold % text.replace(",", "{,}").replace("−", "-")

    text = shown(found[1] + found[2] + (found[3] or ""))
    room = _room(found[3], mean_width)
    if found[4]:
        left = _phantom("0" * (whole - len(found[4])))
        text += rf"{room} \pm {left}{shown(found[4] + (found[5] or ''))}"
        room = _room(found[5], fraction)
    else:
        room += _phantom(r"{}\pm " + "0" * whole + _zeros(fraction))
    marks = ",".join(map(str, cell.notes))
    if cell.tied:
        marks = r"\sim" + ("," + marks if marks else "")
    marked = rf"\rlap{{$^{{{marks}}}$}}" if marks else ""
    if found[6]:
        return f"${text}{room}${tex(found[6])}{marked}"
    return f"${text}${marked}" + (f"${room}$" if room else "") + _phantom(tex(counts))


def _zeros(width: int) -> str:
    """`.00` for a width of three characters."""
    return "." + "0" * (width - 1) if width else ""


def _room(decimals: str | None, width: int) -> str:
    """Padding after these decimals in a column whose longest decimals have this width."""
    return _phantom(_zeros(width)[len(decimals or "") :])


def _phantom(text: str) -> str:
    return rf"\phantom{{{text}}}" if text else ""


def _cell(cell: Cell) -> str:
    body = tex(cell.text)
    if cell.best:
        body = rf"\textbf{{{body}}}"
    elif cell.tied:
        body += r"$^{\sim}$"
    return body + _marks(cell.notes)


def _marks(notes: tuple[int, ...]) -> str:
    return f"$^{{{','.join(map(str, notes))}}}$" if notes else ""


def _caption(table: Table) -> str:
    """Title, n and ±. LaTeX numbers tables itself, so `Table 1` becomes `The paper's Table 1`."""
    title = _DONE.sub("", table.title)
    title = f"The paper’s {title}" if title.startswith("Table ") else title
    parts = [f"{tex(title)}.", tex(table.measured).replace("n = ", "$n$~=~")]
    return " ".join(part for part in parts if part)


def _float(
    table: Table, columns: str, head: str, body: list[str], notes: Sequence[str], *, again: bool
) -> list[str]:
    """A table that floats, in smaller type if it is wider than the text; `again`: continuation."""
    caption = [rf"\caption{{{_caption(table)}}}\smallskip", rf"\label{{tab:{table.name}}}"]
    mini = r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize"
    return [
        r"\expandafter\begin\expandafter{\mpccfloat}[tbp]",
        r"\centering",
        *([r"\addtocounter{table}{-1}\caption{(continued)}\smallskip"] if again else caption),
        r"\mpccfit{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *((mini, *notes, r"\end{minipage}") if notes else ()),
        r"\expandafter\end\expandafter{\mpccfloat}",
    ]
