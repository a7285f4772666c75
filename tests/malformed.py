"""Malformed input as data: command lines, settings and run directories.

A `Case` says which program is called, how, and what was spoilt before. Hypothesis draws the cases
from one seed, so that everybody tries the same ones; `tests.malformed_runs` lays them out and
judges what the program does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from mpcc.config import DEFAULTS

MPCC, ABLATION, SEARCH = "python -m mpcc", "ablation.py", "search.py"
TABLES = "make_tables"

SHARES = {"command line": 0.5, "configuration": 0.25, "run directory": 0.25}

REFUSED = frozenset({2})
TOLERATED = frozenset({0, 2, 3})
"""Damage that may not show (a flipped digit), or that a table or a status may speak of."""


@dataclass(frozen=True)
class Damage:
    """What is done to one file: `how`, with an argument where it needs one."""

    file: str
    how: str
    value: Any = None


@dataclass(frozen=True)
class Case:
    """One call. `{work}` in `argv` stands for the folder of the case, `{out}` for one beside it."""

    kind: str
    program: str
    argv: tuple[str, ...]
    folder: str
    """What lies in the folder before the damage: `plain` or `sweep`."""
    damage: tuple[Damage, ...] = ()
    codes: frozenset[int] = REFUSED

    def __str__(self) -> str:
        spoilt = "; ".join(f"{d.file} {d.how} {str(d.value)[:60]}" for d in self.damage)
        return f"{self.program} {list(self.argv)}" + (f" after {spoilt}" if spoilt else "")


def cases(n: int, number: int) -> list[Case]:
    """`n` different cases over all kinds, the same for the same seed."""
    found: list[Case] = []
    for kind, share in SHARES.items():
        wanted = n - len(found) if kind == "run directory" else round(n * share)
        found += _draw(KINDS[kind], wanted, number)
    return found


def _draw(strategy: SearchStrategy[Case], wanted: int, number: int) -> list[Case]:
    drawn: dict[str, Case] = {}
    attempt = 0
    while len(drawn) < wanted:
        # As a decorator hypothesis would run the function as a test of its own.
        collect = settings(
            max_examples=2 * wanted + 10,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(lambda case: drawn.setdefault(repr(case), case) and None))
        seed(number * 1000 + attempt)(collect)()
        attempt += 1
    return list(drawn.values())[:wanted]


# -- command lines -------------------------------------------------------------------------------

_word = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10)
_name = st.builds("no{}".format, _word.map(lambda text: text.replace("=", "")))
_path = st.sampled_from(
    ["", "{work}/file/below", "{work}/loop", "{work}/" + "n" * 300, "~no-such-user/x"]
)
_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1e9",
    "",
    "x",
    "0x10",
    "1,5",
    "\u0663\u00bd",
    "9" * 400,
)
_BAD: dict[type, tuple[str, ...]] = {
    bool: ("yes", "1", "", "2", "truefalse"),
    int: (*_NUMBERS, "1.5", "-1"),
    float: _NUMBERS,
    str: ("", "no", "NONE", "gaussian", "\u00e9t\u00e9"),
    tuple: ("1/2", "x/1", "nan", "/", "-1/2/3/4/5/6/7/8/9/10"),
}
_SPECIAL = {"n_generated": int, "given_cluster_weights": tuple}


def _field_type(name: str) -> type:
    return _SPECIAL.get(name) or type(DEFAULTS[name])


_assignment = st.sampled_from(sorted(DEFAULTS)).flatmap(
    lambda name: st.sampled_from(_BAD[_field_type(name)]).map(lambda value: f"{name}={value}")
)
_bad_set = st.one_of(
    _assignment, _name, st.builds("{}=1".format, _name), st.sampled_from(["=1", "=", ""])
)


def _with(option: str, values: SearchStrategy[str]) -> SearchStrategy[list[str]]:
    return values.map(lambda value: [f"{option}={value}"])


def _one(*lines: tuple[str, ...]) -> SearchStrategy[list[str]]:
    return st.sampled_from(lines).map(list)


_foreign = st.one_of(
    st.builds(lambda text: [f"--zz{text}"], _word), st.builds(lambda text: [f"stray{text}"], _word)
)
_bad_seconds = st.sampled_from(["nan", "inf", "-1", "x", "", "1e99", "1s"])
_weights = st.sampled_from(["{work}/file", "{work}/other", "{work}/none"]) | _path
_mpcc = st.one_of(
    _with("--set", _bad_set),
    _with("--preset", _name),
    _with("--variant", _name),
    _with("--device", st.sampled_from(["", "gpu", "cuda:99", "meta", "cuda:x", "mps", "cpu:-1"])),
    _with("--checkpoint-seconds", _bad_seconds),
    _with("--out", st.sampled_from(["{work}/file", "{work}/other"]) | _path),
    _with("--inception-weights", _weights),
    _foreign,
    _one(
        ("--set", "width=1", "C=2"),
        ("--set",),
        ("--out",),
        ("--preset", "mnist", "--data-dir", "{work}/none"),
        ("--preset", "mnist", "--data-dir", "{work}/file"),
        ("--preset", "cifar10", "--data-dir", ""),
        ("--preset", "omniglot", "--data-dir", "{work}/other"),
        ("--preset", "mnist", "--data-dir", "~no-such-user/x"),
    ),
)

_not_storages = st.sampled_from(
    ["", "{work}/file", "{work}/file/below", "{work}/loop/x", "~no-such-user/x", "ftp://x", "s3://",
     "s3://a:b@c/d", "gs://UPPER", "s3:///x", "http://x/y"]
)  # fmt: skip
_where = st.one_of(
    _with("--data-dir", st.sampled_from(["{work}/none", "{work}/file"]) | _path),
    _with("--inception-weights", _weights),
    _with("--tracking-uri", _name | st.sampled_from(
        ["", "sqlite:///", "sqlite:///{work}", "ftp://x", "http://", "sqlite:///{work}/file/x",
         "sqlite:///~no-such-user/x.db", "sqlite:///{work}/loop/x.db"]
    )),
    _with("--address", st.sampled_from(["", "here", "host:port", "1.2.3.4", "host:99999"])),
    _with("--cpus-per-trial", st.sampled_from(["0", "-1", "nan", "x", "", "1e9", "1000"])),
    _with("--gpus-per-trial", st.sampled_from(["-1", "nan", "x", "", "1e9", "1.5"])),
    _with("--max-concurrent", st.sampled_from(["0", "1.5", "inf", "x", ""])),
    _with("--checkpoint-seconds", _bad_seconds),
    _with("--checkpoint-iterations", st.sampled_from(["0", "-1", "1.5", "nan", "x", "", "1e99"])),
    _with("--storage", _not_storages),
    _one(("--pilot",), ("--pilot", "--sync"), ("--status", "--sync"), ("--release", "--status"),
         ("--release", "--dry-run"), ("--dry-run", "--cpus-per-trial", "x"), ("--pilot=1",),
         ("--release=1",)),
    _foreign,
)  # fmt: skip
"""What the two programs that run trials share."""

_grid = st.one_of(
    st.sampled_from(
        "esteps=1,,2|eta_p=1e-3..|eta_p=1e-3,0.001|esteps=1,1|esteps=|=1|,||width|seed=1,1|seed=-1"
        "|esteps=1 esteps=2|esteps=1,2,esteps=4|seed=1.5|C=1 width=2|eta_p=1e-3;2e-3|esteps==1"
        "|latent_mode=split latent_size=5 image_size=8|conditional=true prior=normal".split("|")
    ),
    _assignment.filter(lambda text: "," not in text),  # `esteps=1,5` is an axis.
    _name,
    st.just(",".join(["seed=0", *map(str, range(1, 400))]) + " width=" + ",".join("1234567")[:13]
            + " batch_size=" + ",".join(map(str, range(2, 400)))),
)  # fmt: skip
_ablation = st.one_of(
    _grid.map(lambda text: ["--grid", *text.split(" ")]),
    st.one_of(
        _with("--set", _bad_set),
        _with("--preset", _name),
        _with("--variant", _name),
        _with("--seeds", st.sampled_from(["0", "-1", "x", "", ",", "1,1", "1.5", "1,x", "9" * 30])),
        _with("--iterations", st.sampled_from(["0", "-5", "none", "", "1.5", "9" * 400, "nan"])),
        _with("--only", _name | st.just("esteps=9")),
        _with("--skip", _name | st.just("esteps=1")),
        _with("--confirm", _name),
        _with("--retry", _name | st.just("done")),
        _with("--out", st.sampled_from(["{work}/file", "{work}/other"]) | _path),
        _where,
        _with("--ablate", _name | st.sampled_from(["x,y", "no-floor,x", "no-floor,no-floor,x"])),
        _with("--ablate-from", _name | st.sampled_from(["", "best", "esteps=9"])),
        _one(("--status", "--dry-run"), ("--scale", "laptop"), ("--grid",),
             ("--seeds", "2", "--grid", "seed=1"), ("--table", "1"), ("--set", "esteps=2"),
             ("--set", "C=1", "--set", "width=1"),
             ("--set", "seed=3"), ("--iterations", "5", "--set", "iterations=5"),
             ("--continue-training",), ("--continue-training", "--iterations", "5"),
             ("--ablate", "no-floor"), ("--ablate", "--table", "1")),
    ).map(lambda words: ["--grid", "esteps=1", *words]),
    st.one_of(
        _with("--table", _name | st.sampled_from(["", "0", "3", "3A"])),
        _with("--scale", _name).map(lambda words: ["--table=1", *words]),
        _one(("--table", "1", "--preset", "tiny"), ("--table", "4", "--only", "dataset=digits")),
    ),
)  # fmt: skip

_begun = st.one_of(
    _with("--ablate", _name | st.sampled_from(["x,y", "no-floor,x"])),
    st.one_of(_name, st.sampled_from(["", "esteps=9"])).map(
        lambda cell: ["--ablate", "--ablate-from", cell]
    ),
    st.sampled_from(["0", "1", "-3", "x", "", "1.5"]).map(
        lambda n: ["--continue-training", f"--iterations={n}"]
    ),
    _with("--confirm", _name),
    _with("--storage", _not_storages),
    _one(("--continue-training",), ("--confirm", "--ablate"), ("--confirm", "--grid", "esteps"),
         ("--seeds", "0"), ("--set", "width=3"), ("--preset", "mnist"), ("--iterations", "7")),
)  # fmt: skip
"""In a folder that holds a sweep."""

_space = st.sampled_from(
    "eta_p=1..|eta_p=..1|eta_p=2..1|eta_p=0..1:log|eta_p=1..2:step=0|eta_p=1..2:lin|eta_p=nan..1"
    "|esteps=1.5..2|esteps=1|esteps=1,1|=1..2|eta_p|width=1..99999|seed=0..3|eta_p=1e-3..2e-3:log:x"
    "|{work}/file|{work}/none|{work}/other|{work}/loop|~no-such-user/x.toml"
    "|eta_p=1..2 eta_p=3..4|no=1..2".split("|")
)
_search = st.one_of(
    _space.map(lambda text: ["--space", *text.split(" ")]),
    st.one_of(
        _where,
        _with("--objective", _name | st.sampled_from(["", ",", "mse,mse", "mse,x"])),
        *(
            _with(f"--{option}", st.sampled_from(["0", "-1", "x", "", "1.5", "nan", "9" * 30]))
            for option in ("points", "startup", "ahead", "seeds")
        ),
        _with("--sampler", _name | st.sampled_from(["", "TPE"])),
        _with("--sampler-seed", st.sampled_from(["-1", "x", "", "1.5", "1e99"])),
        _with("--prune", _name),
        _with("--set", _bad_set),
        _with("--preset", _name),
        _with("--iterations", st.sampled_from(["0", "-5", "none", "", "1.5", "nan"])),
        _with("--retry", _name | st.just("done")),
        _with("--out", st.sampled_from(["{work}/file", "{work}/other"]) | _path),
        _one(("--set", "eta_p=1e-3"), ("--space",), ("--grid", "esteps"), ("--confirm",),
             ("--prune", "median", "--objective", "mse,cluster_information")),
    ).map(lambda words: ["--space", "eta_p=1e-3..2e-3:log", *words]),
)  # fmt: skip

_tables = st.one_of(
    _with("--table", _name),
    _with("--format", _name | st.sampled_from([",", "", "md,pdf", "md;csv"])),
    _with("--test", _name),
    _with("--baseline", _name | st.sampled_from(["esteps=9", "esteps", "esteps=x", "0000"])).map(
        lambda words: ["--table", "grid", *words]
    ),
    _with("--explain", _name | st.sampled_from(["esteps=9", "esteps=x", "=", "seed=0", "0000"])),
    _with("--runs", st.sampled_from(["{work}/none", "{work}/file", "{work}/other"]) | _path),
    _with("--out", st.sampled_from(["{work}/file"]) | _path),
    _with("--mlflow", _name | st.sampled_from(["ftp://x", "sqlite:///{work}/none.db", "sqlite:///"])),
    _foreign,
    _with("--sweep", _name).map(lambda words: ["--mlflow", "sqlite:///{work}/none.db", *words]),
    _with("--mlflow", st.sampled_from(["sqlite:///~no-such-user/x", "sqlite:///{work}/loop/x"])),
    _one(("--sweep", "digits"), ("--mlflow", "sqlite:///x.db"), ("--table",), ("--table", "1"),
         ("--runs",), ("--table", "search"), ("--check=1",), ("--pool-code=x",),
         ("--tests", "welch"), ("--baseline", "{work}/none"), ("--format", "md,", "csv")),
)  # fmt: skip


def _in_a_sweep(words: list[str]) -> Case:
    return Case("command line", ABLATION, ("--out", "{work}/sweep", *words), "sweep")


def _command(program: str, words: list[str]) -> Case:
    if program == SEARCH:
        words = ["--preset", "tiny", "--out", "{work}/s", *words]
        return Case("command line", program, tuple(words), "plain")
    if program == MPCC:
        words = ["--preset", "tiny", "--out", "{work}/r", *words]
        return Case("command line", program, tuple(words), "plain")
    if program == ABLATION:
        preset = [] if any(w.startswith("--table") for w in words) else ["--preset", "tiny"]
        words = [*preset, "--out", "{work}/s", *words]
        return Case("command line", program, tuple(words), "plain")
    words = ["--runs", "{work}/sweep", "--out", "{out}", *words]
    return Case("command line", program, tuple(words), "sweep")


_commands = st.one_of(
    _mpcc.map(lambda words: _command(MPCC, words)),
    _ablation.map(lambda words: _command(ABLATION, words)),
    _search.map(lambda words: _command(SEARCH, words)),
    _begun.map(_in_a_sweep),
    _tables.map(lambda words: _command(TABLES, words)),
)

# -- files ---------------------------------------------------------------------------------------

_JUNK: list[Any] = [None, True, -1, 0, 2.5, "x", "", [], [[]], {}, {"a": 1}, [1, 2], "nan"]
_JUNK += [10**400, "9" * 50, {"schema": 1}, [None], "\u2028\n", float("nan")]

_unreadable = st.one_of(
    st.sampled_from([("truncate", 0.0), ("truncate", 0.5), ("folder", None), ("loop", None)]),
    st.sampled_from(["", "{", "[]", "null", "7", '"text"', "{}}", "[" * 100_000]).map(
        lambda text: ("text", text)
    ),
    st.binary(min_size=4, max_size=40).map(lambda data: ("bytes", b"\xff\xfe" + data)),
    st.just(("pickle", None)),
)
"""Damage after which no JSON object can be read."""
_harm = st.one_of(
    _unreadable,
    st.floats(0, 0.99).map(lambda part: ("flip", round(part, 3))),
    st.sampled_from([("remove", None), ("dangling", None), ("forbid", None)]),
)


def _changed(keys: list[str]) -> SearchStrategy[tuple[str, Any]]:
    """A key of a JSON object, `a/b/c`, that is removed, or has another value."""
    key = st.sampled_from(keys)
    return st.one_of(
        key.map(lambda k: ("drop", k)),
        st.tuples(key, st.sampled_from(_JUNK)).map(lambda pair: ("set", pair)),
    )


_base_field = st.sampled_from([n for n in sorted(DEFAULTS) if n != "seed"])
_plan_keys = "schema id preset base cells code code_files data extra cells/0 cells/0/key".split()
_plan_keys += [f"cells/0/{name}" for name in "changes seeds grids variant confirm_seeds".split()]
_plan_keys += ["cells/0/seeds/0", "cells/0/changes/n_encoder_steps", "base/width", "base/extra"]


def _spoilt(file: str, harm: SearchStrategy[tuple[str, Any]]) -> SearchStrategy[tuple[Damage, ...]]:
    return harm.map(lambda how: (Damage(file, *how),))


def _on(
    kind: str, program: str, words: str, damage: SearchStrategy[tuple[Damage, ...]], codes: Any
) -> SearchStrategy[Case]:
    argv = tuple(words.split())
    return damage.map(lambda d: Case(kind, program, argv, "sweep", d, codes))


_STATUS, _DRY = "--out {work}/sweep --status", "--out {work}/sweep --dry-run"
_MAKE = "--runs {work}/sweep --out {out} --format md,csv,html"
_RUN = "--preset tiny --set seed=0 n_encoder_steps=1 --out {work}/sweep/trials/done"
_wrong_setting = st.tuples(
    _base_field.map("base/{}".format), st.sampled_from([{}, [[]], "?", -1e99])
)
_configuration = st.one_of(
    *(
        _on("configuration", program, words, _spoilt("sweep.json", _unreadable), codes)
        for program, words, codes in (
            (ABLATION, _STATUS, TOLERATED),  # Its copy restores it.
            (ABLATION, _DRY, TOLERATED),
            (TABLES, _MAKE, REFUSED),
        )
    ),
    *(
        _on("configuration", program, words, _spoilt("sweep.json", _changed(_plan_keys)), TOLERATED)
        for program, words in ((ABLATION, _STATUS), (ABLATION, _DRY), *[(TABLES, _MAKE)] * 2)
    ),
    *(
        _on(
            "configuration",
            program,
            words,
            _spoilt("sweep.json", _wrong_setting.map(lambda pair: ("set", pair))),
            codes,
        )
        for program, words, codes in (
            (ABLATION, _STATUS, TOLERATED),
            (TABLES, _MAKE, REFUSED),
        )
    ),
    _on("configuration", MPCC, _RUN, _spoilt("trials/done/config.json", _unreadable), REFUSED),
    _on(
        "configuration",
        MPCC,
        _RUN,
        _spoilt("trials/done/config.json", _base_field.flatmap(
            lambda name: st.sampled_from([{}, "?", [[]], 10**400]).map(lambda v: ("set", (name, v)))
        )),
        REFUSED,
    ),
    _on(
        "configuration",
        TABLES,
        "--runs {work}/sweep/trials/done --out {out}",
        _spoilt("trials/done/config.json", _unreadable | _changed(["width", "seed", "extra"])),
        TOLERATED,
    ),
)  # fmt: skip

_result_keys = "state cause iteration trial_key metrics failures unavailable baseline".split()
_result_keys += ["seconds", "metrics/acc_majority", "seconds/train", "baseline/kmeans_acc_majority"]
_provenance_keys = "code code_files device data data/fingerprint data/notes data/n_images".split()
_records = st.one_of(
    *(
        _spoilt(f"trials/{trial}/{file}", harm)
        for trial in ("done", "half", "failed")
        for file, harm in (
            ("result.json", _harm | _changed(_result_keys)),
            ("metrics.jsonl", _harm),
            ("provenance.json", _harm | _changed(_provenance_keys)),
            ("config.json", _harm),
            ("checkpoint.pt", _harm),
        )
    ),
    _spoilt("trials/done", st.sampled_from([("text", "file"), ("dangling", None)])),
    _spoilt("driver.lock", _harm),
    _spoilt("trials/half/metrics.jsonl", st.sampled_from(_JUNK).map(lambda v: ("row", v))),
    _spoilt("trials/done/mlflow.json", _harm | st.sampled_from(_JUNK).map(lambda v: ("json", v))),
)
_stopped = _spoilt("trials/done/result.json", _unreadable)
"""A finished trial whose end cannot be read must be shown as stopped, with the cause."""
_directories = st.one_of(
    _on("run directory", ABLATION, _STATUS, _records, frozenset({3})),
    _on("run directory", ABLATION, _DRY, _records, frozenset({0})),
    _on("run directory", TABLES, _MAKE, _records, TOLERATED),
    _on("run directory", TABLES, _MAKE, _records, TOLERATED),
    _on("run directory", ABLATION, _STATUS, _stopped, frozenset({3})),
    _on("run directory", MPCC, _RUN, _spoilt("trials/done/result.json", _unreadable), REFUSED),
)

KINDS: Mapping[str, SearchStrategy[Case]] = {
    "command line": _commands,
    "configuration": _configuration,
    "run directory": _directories,
}
