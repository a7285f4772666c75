"""Every command of README.md, deploy/README.md and docs/ is one that this code takes.

Commands that would train only say what they would do (--dry-run); the others run for real, on
records made by hand of the sweeps that the README's own commands leave. The folder is not the
repository: `runs/` and what is relative to it lie in a temporary one.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import mpcc.__main__ as one_run
from analysis import make_tables
from mpcc.config import PRESETS
from mpcc.runs.run_dir import CHECKPOINT
from mpcc.use.commands import COMMANDS as COMMANDS_OF_USE
from tests.test_suggest import finish
from tune import ablation, search
from tune.plan import grid
from tune.plan.cells import Cell
from tune.plan.plan import Plan, new_plan
from tune.planning import planned
from tune.store.folder import Store
from tune.store.remote import checked_address
from tune.suggest.search import Search
from tune.suggest.space import parse_space

ROOT = Path(ablation.__file__).resolve().parents[1]
PROGRAMS: dict[str, ModuleType] = {
    "tune/ablation.py": ablation,
    "tune/search.py": search,
    "analysis/make_tables.py": make_tables,
    "-m mpcc": one_run,
}
TRAINS = ("tune/ablation.py", "tune/search.py", "-m mpcc")
SAY = ("--dry-run", "--status", "--sync", "--release", "--next")


def commands(file: Path) -> Iterator[tuple[str, str]]:
    """Program and words of each command of ours in a Markdown file's blocks of shell."""
    for block in re.findall(r"^```sh\n(.*?)^```", file.read_text(), re.M | re.S):
        text = re.sub(r"\s*\\\n\s*", " ", block)
        for line in text.splitlines():
            for match in re.finditer(
                r"python (tune/\w+\.py|analysis/\w+\.py|-m mpcc)([^'\n]*)", line
            ):
                yield match[1], match[2].partition(" # ")[0].strip()
            if "deploy/slurm.sh " in line:
                yield "tune/ablation.py", line.partition("deploy/slurm.sh ")[2].strip()


def test_readme_has_its_title() -> None:
    assert (ROOT / "README.md").read_text().startswith("# MPCC ablation suite\n")


COMMANDS = [
    pytest.param(program, words, id=f"{program} {words}")
    for file in (
        *(ROOT / name for name in ("README.md", "deploy/README.md", "results/README.md")),
        *sorted(ROOT.glob("docs/*.md")),
    )
    for program, words in commands(file)
    if words.partition(" ")[0] not in COMMANDS_OF_USE  # They run in test_using_page.py.
]


def metrics_of(rate: float, steps: int, seed: int) -> dict[str, float]:
    value = 0.5 + 10 * rate + 0.02 * steps + 0.01 * (seed % 3)
    return {
        "acc_majority": value,
        "acc_hungarian": value - 0.05,
        "cluster_information": value,
        "mse": 0.1 + 0.01 * (seed % 3),
    }


def leave(out: Path, plan: Plan) -> None:
    """The plan and a record of each of its trials, done."""
    Store(out).write_plan(plan)
    for trial in plan.trials():
        config = trial.config
        metrics = metrics_of(config.prior_lr, config.n_encoder_steps, trial.seed)
        finish(Store(out), trial, metrics=metrics)
        (Store(out).trial_dir(trial.key) / CHECKPOINT).touch()  # Models to evaluate, by their name.


def searched(words: str) -> Plan:
    """What the README's search leaves, its points on a lattice instead of drawn."""
    options = search.parse(shlex.split(words))
    base = PRESETS["digits"]
    space = parse_space(options.space or [], base)
    seeds = grid.parse_seeds(options.seeds or "")
    lattice = itertools.product((1.5e-3, 3e-3, 6e-3, 1.2e-2, 2e-2), (1, 2, 4, 6), (0.01,))
    fields = ("prior_lr", "n_encoder_steps", "prior_entropy_weight")
    values = [dict(zip(fields, point, strict=True)) for point in lattice]
    cells = [Cell(base.override(**changes, seed=0), changes) for changes in values]
    found = Search(space, seeds=seeds, n_points=len(cells))
    found = replace(found, points=tuple(cells))
    plan = new_plan("digits", base).grow(cells, seeds, "search")
    return replace(plan, search=found.to_dict())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweeps that the README's commands build upon."""
    base = tmp_path_factory.mktemp("readme")
    for name in ("DIR", "BUCKET/data", "shared/data"):
        (base / name).mkdir(parents=True)
    shutil.copytree(ROOT / "results", base / "results")
    for i in range(12):  # Images of one's own.
        (base / "DIR" / f"kind{i % 4}").mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (30 * i, 90, 200)).save(base / f"DIR/kind{i % 4}/{i}.png")
    first = next(w for p, w in commands(ROOT / "docs" / "searches.md") if p == "tune/search.py")
    leave(base / "runs" / "search-digits", searched(first))
    kept = (("parts", "--ablate"), ("digits", "--grid esteps,eta_p"))
    for out, words in (*kept, ("more", "--grid esteps,eta_p --seeds 3,4,5")):
        path = base / "runs" / out
        options = ablation.parse([*words.split(), "--out", str(path)])
        leave(path, planned(options, Store(path), None)[0])
    return base


def substituted(words: str, base: Path) -> list[str]:
    """The words with the places that a reader fills in; an S3 bucket becomes a folder."""
    for address in re.findall(r"--storage (s3://\S+)", words):
        assert checked_address(address.replace("BUCKET", "bucket"))
    words = words.replace("s3://BUCKET", f"{base}/BUCKET").replace("HEAD:", "127.0.0.1:")
    words = re.sub(r"\bDIR\b", f"{base}/DIR", words)
    return shlex.split(re.sub(r"(?<= )/shared/", f"{base}/shared/", words))


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_a_command_of_the_readme_is_taken_as_it_is_printed(
    program: str,
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = PROGRAMS[program]
    if hasattr(module, "ROOT"):
        monkeypatch.setattr(module, "ROOT", place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)
    monkeypatch.setattr(
        "analysis.searches.search.N_RESAMPLES", 2
    )  # Its figures are not looked at here.
    argv = substituted(words, place)
    if program in TRAINS and not set(argv) & set(SAY):
        argv.append("--dry-run")
    main: Callable[[list[str]], int] = module.main
    code = main(argv)
    said = capsys.readouterr()
    # --status ends with 3 where not every trial is done, --next with 4 where every one is.
    allowed = {0, *([3] if "--status" in argv else []), *([4] if "--next" in argv else [])}
    assert code in allowed, said.err
    assert said.out.strip()


def test_the_readme_has_commands_of_every_kind() -> None:
    found = [tuple(parameter.values) for parameter in COMMANDS]
    assert len(found) >= 30 and {program for program, _ in found} == set(PROGRAMS)
    for option in ("--address", "--storage", "--table", "--ablate", "--space", "--confirm"):
        assert any(option in str(words) for _, words in found), option


def test_every_file_that_contributing_names_is_there() -> None:
    named = re.findall(
        r"`((?:mpcc|tune|analysis|tests)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == []
