"""Which code produced a result: the commit, and a hash of every module that can change it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VERSION_VARIABLE = "MPCC_CODE_VERSION"
"""Environment variable with the code's version, for code that runs without its repository."""

PACKAGE = Path(__file__).resolve().parents[1]

COUNTED = ("model/", "training/", "fast/", "evaluation/", "data/image_set.py")
"""The parts of mpcc that can change a result of a trial. The keys cover what `config` says, and the
data set's fingerprint covers what the readers of `data` return."""

NOT_COUNTED = ("__init__.py", "pace.py", "pictures.py", "plots.py")
"""Modules of those parts that cannot change a result."""


@cache
def code_version() -> str:
    """The git commit of this code, with `+changes` if mpcc or tune differ in the working tree.

    Outside its repository, the value of MPCC_CODE_VERSION, else `unknown`.
    """
    root = PACKAGE.parent
    unknown = os.environ.get(VERSION_VARIABLE) or "unknown"

    def git(*arguments: str) -> str:
        # Git refuses a repository of another user; its code runs here already.
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return unknown
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "mpcc", "tune")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return unknown


@cache
def code_fingerprints() -> dict[str, str]:
    """Module -> hash of its code without comments, docstrings and layout."""
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    return {
        f"mpcc/{name}": code_hash(files[name].read_text(encoding="utf-8"))
        for name in sorted(files)
        if name.startswith(COUNTED) and not name.endswith(NOT_COUNTED)
    }


def code_id(files: object) -> str | None:
    """Twelve hexadecimal digits of `code_fingerprints`, as a provenance holds them; None without
    any."""
    text = json.dumps(files, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12] if files else None


def latest_code(code: str | None, equal: Mapping[str, Mapping[str, object]]) -> str | None:
    """The `code_id` of the latest code that gave the same results; `code` itself if there is none.

    equal: `code_id` -> `code`, the id of a later code, and `trials`, on which the two were equal.
    """
    for _ in equal:  # At most len(equal) steps: an edited file may hold a cycle.
        if code is not None and code in equal:
            code = str(equal[code]["code"])
    return code


def code_hash(source: str) -> str:
    """Twelve hexadecimal digits of the code itself: comments and docstrings do not count."""
    dump = ast.dump(_without_docstrings(ast.parse(source)))
    return hashlib.sha256(dump.encode()).hexdigest()[:12]


def _without_docstrings(node: ast.AST) -> ast.AST:
    """The node without bare strings: docstrings, and what is written under a field."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, name, ()):
            _without_docstrings(statement)
    if hasattr(node, "body"):
        node.body = [s for s in node.body if not _is_bare_string(s)] or [ast.Pass()]
    return node


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
