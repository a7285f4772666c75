"""Which tables were asked for, and all their files: records in, file contents out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.output import export
from analysis.output.check import COMPANION
from analysis.output.latex import latex
from analysis.output.render import how, markdown
from analysis.paper.beside import Figure, add
from analysis.paper.table4 import DATASETS, table4
from analysis.paper.tables import plan_names, table1, table1_groups, table2, table3
from analysis.records.frame import Records
from analysis.tables.columns import TABLE1, metric_name, recorded
from analysis.tables.grid import GridResult, baseline_of, confirm_table, grid_tables
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Table, own_sentence
from mpcc.config import full_name


@dataclass(frozen=True)
class Choices:
    """What the command line chose."""

    table: str | None = None
    formats: tuple[str, ...] = ("md", "csv", "tex")
    test: str = "welch"
    baseline: str | None = None
    metrics: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """A layout of its own: metrics, and the fields of rows and columns; empty for the tables'."""
    beside: tuple[Figure, ...] = ()
    """Other methods' published numbers, for the table of values."""
    full: bool = False
    """Whether each table says how its numbers were made, instead of a file beside it."""
    lines: tuple[str, ...] = ()
    """How a search compares with another sweep, for its table."""


@dataclass(frozen=True)
class Product:
    """One named result: its tables, the groups they rest on, CSV of its own."""

    name: str
    tables: list[Table]
    groups: list[Group]
    raw: dict[str, str] = field(default_factory=dict)
    result: GridResult | None = None
    fresh: list[Group] = field(default_factory=list)
    """Cells of `groups` on fresh seeds, which confirm a choice among them."""


def products(records: Records, groups: Sequence[Group], choices: Choices) -> list[Product]:
    """The tables asked for; ValueError, in one line, where the cells do not fit the one named."""
    if not groups:
        raise ValueError("the sweep has no trials; plan some with tune/ablation.py --grid")
    in_grid = records.planned_by("esteps,eta_p", *plan_names("1"))
    pairs = table1_groups([g for g in groups if g.cell_key in in_grid] or groups)
    made: dict[str, Callable[[], Product]] = {
        "1": lambda: _table1(records, pairs, choices),
        "2": lambda: _paper(*table2(records, groups)),
        "3a": lambda: _paper(*table3(records, groups, conditional=False)),
        "3b": lambda: _paper(*table3(records, groups, conditional=True)),
        "4": lambda: _paper(*table4(records, groups)),
        "grid": lambda: _grid(records, groups, choices),
    }
    if records.searches:
        made["search"] = lambda: _search(records, groups, choices)
    if choices.metrics or choices.rows or choices.columns:
        made, names = {"layout": lambda: _layout(records, groups, choices)}, ["layout"]
    elif choices.table == "all":
        names = [name for name in made if _fits(name, bool(pairs), groups)]
    else:
        default = "search" if records.searches else "1" if pairs else "grid"
        names = [choices.table or default]
    if names == ["search"] and not records.searches:
        raise ValueError("these records hold no search; run tune/search.py, or use --table grid")
    if names == ["1"] and not pairs:
        raise ValueError(
            "these cells are not Table 1's five rows (three esteps at the lowest eta_p, then two "
            "higher eta_p); use --table grid, or sweep --grid esteps,eta_p"
        )
    found = [made[name]() for name in names]
    for product in found:
        for table in product.tables:
            table.chosen = own_sentence(records.selection)
            table.lines += records.pruning
        if choices.beside:
            _add_published(product, choices)
    return found


def _add_published(product: Product, choices: Choices) -> None:
    """Other methods' rows in a grid's or one's own table, whose cells are on one data set each."""
    datasets = {group.settings["dataset"] for group in product.groups}
    if product.name not in ("grid", "layout"):
        raise ValueError("--beside goes with --table grid, or with --metrics, --rows and --columns")
    if len(datasets) > 1 and "dataset" not in map(full_name, choices.columns):
        raise ValueError("--beside needs one data set, or --columns dataset")
    given = [metric_name(name) for name in choices.metrics if name != "all"]
    asked = given or list(dict.fromkeys(figure.metric for figure in choices.beside))
    add(product.tables[0], choices.beside, min(datasets), asked)


def _table1(
    records: Records, pairs: Sequence[tuple[Group, dict[str, str]]], choices: Choices
) -> Product:
    """Table 1, and what confirms a choice among its rows, unless the grid's tables say that."""
    groups = [group for group, _ in pairs]
    tables, fresh = [table1(records, pairs, choices.test)], _fresh(records, groups)
    if fresh and choices.table != "all":
        metrics = [m for m in recorded(TABLE1, groups) if any(g.summary(m).n for g in groups)]
        tables.append(confirm_table(records, groups, fresh, metrics, "table1-confirm"))
    return Product("table1", tables, groups, fresh=fresh)


def _fresh(records: Records, groups: Sequence[Group]) -> list[Group]:
    keys, pooled = {g.cell_key for g in groups}, any(g.code_pooled for g in groups)
    fresh = groups_of(records, pool_code=pooled, confirm=True)
    return [group for group in fresh if group.cell_key in keys]


def _paper(table: Table, groups: list[Group]) -> Product:
    return Product(table.name, [table], groups)


def _grid(records: Records, groups: Sequence[Group], choices: Choices) -> Product:
    baseline = baseline_of(records, groups, choices.baseline)
    result = grid_tables(records, groups, choices.test, baseline)
    raw = {"grid-differences.csv": export.differences_csv(records, result.lines)}
    raw["grid-effects.csv"] = export.effects_csv(result.effects)
    return Product("grid", result.tables, list(groups), raw, result, _fresh(records, groups))


def _layout(records: Records, groups: Sequence[Group], choices: Choices) -> Product:
    from analysis.tables.pivot import layout_table

    fields = choices.metrics or None, choices.rows or None, choices.columns
    table = layout_table(records, groups, choices.test, *fields)
    return Product("layout", [table], list(groups), fresh=_fresh(records, groups))


def _search(records: Records, groups: Sequence[Group], choices: Choices) -> Product:
    from analysis.searches import rival, search

    found = search.found(records, groups)
    assert found is not None
    made = search.tables(found)
    made[0].lines += [*rival.against_base(records, groups), *choices.lines]
    return Product("search", made, list(groups), fresh=_fresh(records, groups))


def _fits(name: str, is_table1: bool, groups: Sequence[Group]) -> bool:
    """Whether these cells have anything to say in a table, for `--table all`."""

    def some(choice: Callable[[dict[str, Any]], bool]) -> bool:
        return any(choice(group.settings) for group in groups)

    answers = {
        "1": is_table1,
        "2": some(lambda s: s["prior"] == "normal" or not s["encoder_shares_discriminator"]),
        "3a": some(lambda s: s["n_generated"] is not None and not s["conditional"]),
        "3b": some(lambda s: s["conditional"]),
        "4": some(lambda s: s["dataset"] in DATASETS),
        "grid": True,
        "search": True,
    }
    return answers[name]


def files(records: Records, product: Product, choices: Choices) -> dict[str, str]:
    """File name -> content. The companion file goes with every format."""
    made: dict[str, str] = {}
    groups = [*product.groups, *product.fresh]
    beside = f"{product.name}-how.md"
    if "md" in choices.formats:
        made |= {
            f"{table.name}.md": markdown(table, beside, full=choices.full)
            for table in product.tables
        }
    if {"md", "tex"} & {*choices.formats}:
        made[beside] = how(product.tables, product.name)
    if "csv" in choices.formats:
        made[f"{product.name}.csv"] = export.cells_csv(records, groups)
        made[f"{product.name}-trials.csv"] = export.trials_csv(records, groups)
        made |= product.raw
    if "tex" in choices.formats:
        made |= {f"{table.name}.tex": latex(table, beside) for table in product.tables}
    return made | companion(records, groups, product.name, choices)


def companion(
    records: Records, groups: Sequence[Group], name: str, choices: Choices
) -> dict[str, str]:
    """The file that says what a result rests on, by its name."""
    statistics = {"test": choices.test, "family": "comparisons of one table and metric, Holm"}
    content = export.provenance_json(records, groups, name, statistics)
    return {f"{name}{COMPANION}": content}
