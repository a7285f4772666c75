"""Which tables were asked for, and all their files: records in, file contents out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.options import listed
from analysis.output import export
from analysis.output.latex import latex
from analysis.output.render import how, markdown
from analysis.paper.beside import add_published
from analysis.paper.tables import (
    DATASETS,
    plan_names,
    table1,
    table1_groups,
    table2,
    table3,
    table4,
)
from analysis.records.frame import Records
from analysis.tables.columns import TABLE1, recorded
from analysis.tables.grid import GridResult, baseline_of, confirm_table, grid_tables
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Table, own_sentence
from analysis.tables.shared import explain_numbers

if TYPE_CHECKING:
    from analysis.searches.search import Found


@dataclass(frozen=True)
class Product:
    """One named result: its tables and the groups they are made from."""

    name: str
    tables: list[Table]
    groups: list[Group]
    fresh: list[Group] = field(default_factory=list)
    """Cells of `groups` on fresh seeds, which confirm a choice among them."""
    result: GridResult | None = None
    search: Found | None = None


def products(
    records: Records,
    groups: Sequence[Group],
    options: argparse.Namespace,
    verdicts: Sequence[str] = (),
) -> list[Product]:
    """The tables that were asked for; ValueError, with a one-line message, if the cells do not fit.

    options: from `analysis.options.parser`. verdicts: lines comparing a search with another sweep.
    """
    if not groups:
        raise ValueError("the sweep has no trials; plan some with tune/ablation.py --grid")
    settings = [group.settings for group in groups]
    in_grid = records.planned_by("esteps,eta_p", *plan_names("1"))
    pairs = table1_groups([g for g in groups if g.cell_key in in_grid] or groups)
    no_clusters = any(
        s["prior"] == "normal" or not s["encoder_shares_discriminator"] for s in settings
    )
    scored = any(s["n_generated"] is not None and not s["conditional"] for s in settings)
    conditional = any(s["conditional"] for s in settings)
    known = any(s["dataset"] in DATASETS for s in settings)
    made: dict[str, tuple[bool, Callable[[], Product]]] = {
        "1": (bool(pairs), lambda: _table1(records, pairs, options)),
        "2": (no_clusters, lambda: _paper(*table2(records, groups))),
        "3a": (scored, lambda: _paper(*table3(records, groups, conditional=False))),
        "3b": (conditional, lambda: _paper(*table3(records, groups, conditional=True))),
        "4": (known, lambda: _paper(*table4(records, groups))),
        "grid": (True, lambda: _grid(records, groups, options, verdicts)),
        "search": (bool(records.searches), lambda: _search(records, groups, verdicts)),
        "layout": (False, lambda: _layout(records, groups, options)),
    }
    if options.metrics or options.rows or options.columns:
        names = ["layout"]
    elif options.table == "all":
        names = [name for name, (has_rows, _) in made.items() if has_rows]
    else:
        names = [options.table or ("search" if records.searches else "1" if pairs else "grid")]
    if names == ["search"] and not records.searches:
        raise ValueError("these records hold no search; run tune/search.py, or use --table grid")
    if names == ["1"] and not pairs:
        raise ValueError(
            "these cells are not Table 1's five rows (three esteps at the lowest eta_p, then two "
            "higher eta_p); use --table grid, or sweep --grid esteps,eta_p"
        )
    found = [made[name][1]() for name in names]
    for product in found:
        for table in product.tables:
            table.chosen = own_sentence(records.selection)
            table.lines += records.pruning
        if options.beside:
            add_published(product.name, product.tables[0], product.groups, options)
    return found


def _table1(
    records: Records, pairs: Sequence[tuple[Group, dict[str, str]]], options: argparse.Namespace
) -> Product:
    """Table 1 and its confirmation on fresh seeds, unless the grid's tables are made as well."""
    groups = [group for group, _ in pairs]
    tables, fresh = [table1(records, pairs, options.test)], _fresh(records, groups)
    if fresh and options.table != "all":
        metrics = [m for m in recorded(TABLE1, groups) if any(g.summary(m).n for g in groups)]
        tables.append(confirm_table("table1-confirm", groups, fresh, metrics))
    return Product("table1", tables, groups, fresh)


def _fresh(records: Records, groups: Sequence[Group]) -> list[Group]:
    keys, pooled = {g.cell_key for g in groups}, any(g.code_pooled for g in groups)
    fresh = groups_of(records, pool_code=pooled, confirm=True)
    return [group for group in fresh if group.cell_key in keys]


def _paper(table: Table, groups: list[Group]) -> Product:
    return Product(table.name, [table], groups)


def _grid(
    records: Records, groups: Sequence[Group], options: argparse.Namespace, verdicts: Sequence[str]
) -> Product:
    baseline = baseline_of(records, groups, None if verdicts else options.baseline)
    result = grid_tables(records, groups, options.test, baseline)
    return Product("grid", result.tables, list(groups), _fresh(records, groups), result)


def _layout(records: Records, groups: Sequence[Group], options: argparse.Namespace) -> Product:
    from analysis.tables.pivot import layout_table

    metrics, rows = listed(options.metrics) or None, listed(options.rows) or None
    table = layout_table(records, groups, options.test, metrics, rows, listed(options.columns))
    return Product("layout", [table], list(groups), _fresh(records, groups))


def _search(records: Records, groups: Sequence[Group], verdicts: Sequence[str]) -> Product:
    from analysis.searches import rival, search

    found = search.found(records, groups)
    assert found is not None
    made = search.tables(found)
    made[0].lines += search.left_out(records)
    explain_numbers(made[0], records, groups, found.objectives)
    made[0].lines += [*rival.against_base(records, groups), *verdicts]
    return Product("search", made, list(groups), _fresh(records, groups), search=found)


def search_of(
    records: Records, groups: Sequence[Group], products: Sequence[Product]
) -> Found | None:
    """The search that one of `products` shows, else the first one in the records, if any."""
    from analysis.searches import search

    known = next((product.search for product in products if product.search), None)
    return known or search.found(records, groups)


def files(
    records: Records, product: Product, options: argparse.Namespace, formats: Sequence[str]
) -> dict[str, str]:
    """File name -> content. Every format comes with the companion file (provenance)."""
    groups, result = [*product.groups, *product.fresh], product.result
    made: dict[str, str] = {}
    beside, full = f"{product.name}-how.md", options.style == "full"
    if "md" in formats:
        made |= {f"{t.name}.md": markdown(t, beside, full=full) for t in product.tables}
    if {"md", "tex"} & {*formats}:
        made[beside] = how(product.tables, product.name)
    if "csv" in formats:
        made[f"{product.name}.csv"] = export.cells_csv(records, groups)
        made[f"{product.name}-trials.csv"] = export.trials_csv(records, groups)
        if result:
            made["grid-differences.csv"] = export.differences_csv(records, result.lines)
            made["grid-effects.csv"] = export.effects_csv(result.effects)
    if "tex" in formats:
        made |= {f"{table.name}.tex": latex(table, beside) for table in product.tables}
    return made | export.companion(records, groups, product.name, options.test)
