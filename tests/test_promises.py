"""What the outside of the tool promises: `promises.toml` names each promise with its test.

These tests hold the table against the programs, and what no other test holds. They know the
programs by their command lines and their files alone.
"""

import ast
import fnmatch
import importlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.records import SweepBuilder, metrics_of, table1_changes, table1_sweep

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
PROGRAMS = {
    "ablation": [str(ROOT / "tune" / "ablation.py")],
    "search": [str(ROOT / "tune" / "search.py")],
    "mpcc": ["-m", "mpcc"],
    "make_tables": [str(ROOT / "analysis" / "make_tables.py")],
}
SWEEPS = ("ablation", "search")
KINDS = {"option", "variable", "exit-code", "file", "command", "behaviour"}
PROMISES: dict[str, dict[str, Any]] = tomllib.loads((TESTS / "promises.toml").read_text())
"""Kind -> name -> what is promised, and the tests that hold it."""
WITHOUT_RAY = {"--help", "--dry-run", "--status", "--release", "--sync", "--next"}
DRY = ["--dry-run", "--address", "auto"]
"""A dry run that has no time to measure: it would be a cluster's."""
START = {"ablation": ["--grid", "esteps=1,2"], "search": ["--space", "eta_p=1e-3..1e-2:log"]}


def call(
    program: str, *words: object, cwd: Path, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """What a program answers; a variable of None is taken out of the environment."""
    if program not in SWEEPS or WITHOUT_RAY & set(words):
        return answered(program, *words, cwd=cwd, **variables)
    given = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
    environment = {name: value for name, value in given.items() if value is not None}
    command = [sys.executable, *PROGRAMS[program], *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def answered(
    program: str, *words: object, cwd: Path, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """The same in this process: it costs no imports, and is for what starts no Ray."""
    module = {
        "ablation": "tune.ablation", "search": "tune.search", "mpcc": "mpcc.__main__",
        "make_tables": "analysis.make_tables",
    }[program]  # fmt: skip
    out, err, argv = io.StringIO(), io.StringIO(), [str(word) for word in words]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        for name, value in {"COLUMNS": "200", **variables}.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        try:
            code = importlib.import_module(module).main(argv)
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def said(program: str, *words: object, cwd: Path, **variables: str | None) -> str:
    """The same where all is well: what was printed."""
    done = call(program, *words, cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the table -----------------------------------------------------------------------------------


def programs_of(option: str) -> list[str]:
    """Which commands know an option of the table."""
    first = option.partition(" --")[0]
    known = SWEEPS if option.startswith("--") else [first]
    return list(PROMISES["option"][option].get("programs", known))


def test_every_promise_has_a_name_a_sentence_and_a_test() -> None:
    assert set(PROMISES) == KINDS
    for kind, promises in PROMISES.items():
        for name, promise in promises.items():
            assert promise["what"].endswith(".") and "\n" not in promise["what"], name
            assert promise["tests"], name
            assert set(promise) <= {"what", "tests", "programs", "refused"}, name
            assert kind == "option" or "programs" not in promise, name


def test_every_test_of_the_table_is_there() -> None:
    there = {
        f"{file.name}::{node.name}"
        for file in TESTS.glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    rows = [row for promises in PROMISES.values() for row in promises.values()]
    named = {test for row in rows for test in row["tests"]}
    assert sorted(named - there) == []


def options_of_help(program: str, cwd: Path) -> set[str]:
    """The long options that --help explains."""
    lines = said(program, "--help", cwd=cwd).splitlines()
    heads = [
        re.split(r"\s{2,}", line.strip())[0] for line in lines if re.match(r"  --?[a-z]", line)
    ]
    return {option for head in heads for option in re.findall(r"--[a-z][a-z-]*", head)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_of_a_program_is_in_the_table_and_the_other_way_round(
    program: str, tmp_path: Path
) -> None:
    promised = {
        "--" + name.partition("--")[2]
        for name, promise in PROMISES["option"].items()
        if program in programs_of(name) and not promise.get("refused")
    }
    assert options_of_help(program, tmp_path) == promised


READ = r"(MPCC|AWS|GOOGLE|XDG)_\w*|TORCH_HOME|NO_COLOR|PYTHONPATH|CUDA_VISIBLE_DEVICES"


def variables_of_code() -> Iterator[str]:
    """Variables of the environment that the packages name, and what the files of deploy/ take."""
    for package in ("mpcc", "tune", "analysis"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if re.fullmatch(READ, node.value):
                        yield node.value
    for name in ("compose.yaml", "slurm.sh"):
        text = (ROOT / "deploy" / name).read_text()
        yield from re.findall(r"(?<!\$)\$\{([A-Z][A-Z_]+):", text)
    yield from re.findall(r"name: (MPCC_\w+)", (ROOT / "deploy" / "kuberay.yaml").read_text())


def test_every_variable_that_is_read_is_in_the_table() -> None:
    promised = set(PROMISES["variable"])
    found = set(variables_of_code())
    assert {"MPCC_DATA_DIR", "NO_COLOR", "MLFLOW_DB_PASSWORD"} <= found
    unknown = [n for n in found if not any(fnmatch.fnmatch(n, name) for name in promised)]
    assert sorted(unknown) == []


def test_every_target_of_make_is_explained_and_runs_what_is_there() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.M))
    assert targets == set(re.findall(r"^# make ([a-z-]+) ", text, re.M))
    if not shutil.which("make"):
        pytest.skip("no make here")
    for target in targets:
        words = ["make", "--dry-run", "--old-file", ".venv/installed", target]
        told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        scripts = re.findall(r"(?:tune|analysis|benchmarks|tests)/[\w$]+\.py", told)
        for script in scripts:
            assert "$" in script or (ROOT / script).is_file(), script
        assert scripts or "ruff" in told or "pytest" in told, target
    for name in re.findall(r"for name in ([\w ]+);", text):
        for script in name.split():
            assert (ROOT / "benchmarks" / f"{script}.py").is_file()


OUTSIDE = r"\b(ray [a-z][a-z-]+|kubectl (?:apply|exec|get)|docker (?:compose|build)|sbatch)\b"


def commands_of_deploy() -> Iterator[str]:
    """What deploy/ tells a reader or a machine to type, of programs that are not ours."""
    for file in sorted((ROOT / "deploy").iterdir()):
        text = re.sub(r"\\\n\s*", " ", file.read_text())
        if file.suffix == ".md":
            text = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
        for line in text.splitlines():
            if file.suffix in (".md", ".sh") or "ray st" in line or line.startswith("#   "):
                yield from re.findall(OUTSIDE, line.partition(" #")[0] or line)


def test_every_file_and_command_of_deploy_is_in_the_table() -> None:
    promised = set(PROMISES["command"])
    assert {f"deploy/{file.name}" for file in (ROOT / "deploy").iterdir()} <= promised
    found = set(commands_of_deploy())
    assert {"ray up", "kubectl apply", "sbatch", "docker compose"} <= found
    assert found <= promised


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's import
def test_every_command_of_ray_in_deploy_is_one_of_rays_with_these_options() -> None:
    from ray.scripts.scripts import cli

    checked = set()
    for file in sorted((ROOT / "deploy").iterdir()):
        text = re.sub(r"\\\n\s*", " ", file.read_text())
        for line in text.splitlines():
            code = re.sub(r"\$\([^)]*\)", "", line.partition(" #")[0])
            if file.suffix == ".md" and not re.match(r"(ray|RAY_AUTH_MODE=token ray) ", code):
                continue
            for name, rest in re.findall(r"(?<![\w/.-])ray ([a-z][a-z-]+)((?: [^'|;&>]*)?)", code):
                if line.lstrip().startswith("#") or name not in cli.commands:
                    assert line.lstrip().startswith("#") or file.suffix in (".yaml", ""), line
                    continue
                command, words = cli.commands[name], rest.partition(" -- ")[0]
                if hasattr(command, "commands"):  # `ray job` has commands of its own.
                    command = command.commands[words.split()[0]]
                known = {option for p in command.params for option in p.opts}
                given = set(re.findall(r"(--[a-z-]+)", words))
                assert given <= known, (file.name, line, given - known)
                checked.add(name)
    used = "get-auth-token start stop up exec down health-check job"
    assert set(used.split()) <= checked


# -- options of the sweeps -----------------------------------------------------------------------


REFUSED = {
    "cores that are no number": (
        ["--cpus-per-trial", "many"],
        "--cpus-per-trial: must be a number",
    ),
    "more cores than there are": (["--cpus-per-trial", "1000"], "so no trial could start"),
    "a GPU and a half": (["--gpus-per-trial", "1.5"], "above 1 must be a whole number"),
    "no trials on a GPU": (
        ["--trials-per-gpu", "0"],
        "--trials-per-gpu: must be a whole number from 1 to 64",
    ),
    "GPUs by a word": (["--trials-per-gpu", "many"], "a whole number from 1 to 64"),
    "GPUs in two ways": (
        ["--trials-per-gpu", "2", "--gpus-per-trial", "1"],
        "--trials-per-gpu and --gpus-per-trial exclude each other",
    ),
    "nothing at a time": (["--max-concurrent", "0"], "--max-concurrent: must be"),
    "seconds before now": (["--checkpoint-seconds", "-1"], "--checkpoint-seconds: must be"),
    "no iterations": (["--checkpoint-iterations", "0"], "--checkpoint-iterations: must be"),
    "an address without a port": (["--address", "head"], "--address: must be local, auto or HOST"),
    "a tracker that is none": (["--tracking-uri", "ftp://x"], "--tracking-uri must start with"),
    "a storage with a password": (["--storage", "s3://me:secret@bucket/x"], "credentials"),
    "credentials in the data's address": (
        ["--preset", "mnist", "--data-dir", "s3://KEY:SECRET@bucket/data"],
        "--data-dir or MPCC_DATA_DIR must hold no credentials: give them by AWS_ACCESS_KEY_ID",
    ),
    "a folder of data that is none": (["--data-dir", "none"], "none is no folder"),
    "weights that are not there": (["--inception-weights", "none.pth"], "none.pth do not exist"),
    "states that do not end": (["--retry", "planned"], "--retry: invalid choice: 'planned'"),
    "a variant that is none": (["--variant", "publishd-code"], "did you mean 'published-code'?"),
    "a field that is none": (["--set", "widht=3"], "did you mean 'width'?"),
    "iterations that are none": (["--iterations", "0"], "iterations must be at least 1"),
    "two ways not to run": (["--status", "--dry-run"], "exclude each other"),
    "a pilot": (["--pilot"], "--pilot is no more: --dry-run measures"),
    "a download into an address": (
        ["--preset", "mnist", "--download", "--data-dir", "s3://bucket/data"],
        "--download fills a folder",
    ),
}


@pytest.mark.parametrize("program", SWEEPS)
@pytest.mark.parametrize("why", REFUSED)
def test_a_value_that_makes_no_sense_is_one_line_with_exit_code_2(
    program: str, why: str, tmp_path: Path
) -> None:
    words, message = REFUSED[why]
    preset = [] if "--data-dir" in words else ["--preset", "tiny"]
    done = answered(program, *preset, *START[program], *words, "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert done.stderr.startswith(f"{program}.py: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and list(tmp_path.iterdir()) == []


def test_the_output_folder_is_named_by_what_runs(tmp_path: Path) -> None:
    for program, words, name in (
        ("ablation", ["--preset", "tiny", *START["ablation"]], "tiny"),
        ("ablation", ["--table", "1", "--scale", "minute"], "paper-minute"),
        ("ablation", ["--table", "2"], "paper-full"),
        ("search", ["--preset", "tiny", *START["search"]], "search-tiny"),
    ):
        if not (ROOT / "runs" / name).exists():  # else it may have been begun with other settings
            folder = f"output folder {ROOT / 'runs' / name}\n"
            assert folder in said(program, *words, *DRY, cwd=tmp_path)
    out = said("ablation", *START["ablation"], "--out", "mine", *DRY, cwd=tmp_path)
    assert out.startswith("preset digits, ") and f"{tmp_path / 'mine'}\n" in out


def keys(program: str, cwd: Path, *words: str) -> list[str]:
    """The keys of the cells that a dry run prints."""
    start = START[program] if "--grid" not in words else []
    argv = ["--preset", "tiny", "--out", "none", *DRY, *start, *words]
    return re.findall(r"^(?:cell|point +\d+) +(\w{12})", said(program, *argv, cwd=cwd), re.M)


@pytest.mark.parametrize("program", SWEEPS)
def test_variant_set_iterations_and_preset_make_other_trials(program: str, tmp_path: Path) -> None:
    plain = keys(program, tmp_path)
    assert plain and plain == keys(program, tmp_path, "--dataset", "tiny")
    others = [
        keys(program, tmp_path, *words)
        for words in (
            ["--variant", "published-code"],
            ["--set", "lambda_p=0.5"],
            ["--iterations", "8"],
            ["--preset", "digits"],
        )
    ]
    assert len({tuple(found) for found in [plain, *others]}) == 5
    assert all(len(found) == len(plain) for found in others)


def test_a_grid_its_seeds_and_a_choice_of_its_cells_are_what_is_planned(tmp_path: Path) -> None:
    def told(*words: str) -> str:
        argv = ["--preset", "tiny", "--out", "none", *DRY, *words]
        return said("ablation", *argv, cwd=tmp_path)

    grid = ["--grid", "esteps=1,2,4", "eta_p=1e-3,1e-2"]
    assert "6 cells, 18 trials, 18 to run" in told(*grid)
    assert "6 cells, 12 trials" in told(*grid, "--seeds", "2")
    some = told(*grid, "--seeds", "5,9", "--only", "esteps=4", "--only", "esteps=1")
    assert "4 cells, 8 trials" in some and set(re.findall(r"seed (\d+)", some)) == {"5", "9"}
    assert "3 cells, 9 trials" in told(*grid, "--skip", "eta_p=1e-2")
    parts = told("--ablate", "no-floor,normal-prior")
    assert "full model: base settings" in parts and "3 cells, 9 trials" in parts
    assert "not a part of it: no-average, plain-latent" in told("--ablate")
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_the_paper_is_planned_at_each_scale(tmp_path: Path) -> None:
    for scale, iterations in (("minute", 200), ("laptop", 1000), ("full", 75000)):
        words = ["--table", "1", "--scale", scale, "--out", "none", *DRY]
        out = said("ablation", *words, cwd=tmp_path)
        assert "5 cells" in out and f"{iterations} iterations" in out
    for table in ("2", "3a", "3b", "4"):
        words = ["--table", table, "--scale", "minute", "--out", "none", *DRY]
        assert " to run" in said("ablation", *words, cwd=tmp_path)


def test_a_search_is_what_its_options_say(tmp_path: Path) -> None:
    def told(*words: str) -> str:
        argv = ["--preset", "tiny", *START["search"], "--out", "none", *DRY, *words]
        return said("search", *argv, cwd=tmp_path)

    plain = told()
    assert "20 points of 3 seeds, 60 trials" in plain and len(points_of(plain)) == 4
    assert "cluster_information" in plain and "no labels" in plain and "tpe" in plain
    assert "9 points of 2 seeds, 18 trials" in told("--points", "9", "--seeds", "2")
    assert len(points_of(told("--ahead", "7"))) == 7
    assert points_of(told("--sampler-seed", "1")) != points_of(plain) == points_of(told())
    assert "random" in told("--sampler", "random")
    assert "labels chose (acc_majority)" in told("--objective", "acc_majority")
    assert "mse and" in told("--objective", "mse,silhouette")
    assert "tends to prune slow starters" in told("--prune", "median")
    assert "tends to prune slow starters" in told("--prune", "halving")
    assert answered("search", *START["search"], "--startup", "0", cwd=tmp_path).returncode == 2
    file = tmp_path / "space.toml"
    shutil.copy(ROOT / "tune" / "space.toml", file)
    argv = ["--preset", "tiny", "--space", str(file), "--out", "none", *DRY]
    assert "space " in said("search", *argv, cwd=tmp_path)


def points_of(told: str) -> list[str]:
    return re.findall(r"^point .*$", told, re.M)


def cpu_seconds(command: list[str], cwd: Path, code: int) -> float:
    """What the command takes of the processor, which other work does not change much.

    As at a user's second start: with compiled modules, and without a thread of numpy's OpenBLAS
    that turns idle beside the program for a tenth of a second.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cwd / "compiled")}
    with (cwd / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code, (cwd / "log").read_text()
    return usage.ru_utime + usage.ru_stime


def test_help_status_dry_run_and_errors_take_half_a_second(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    for program, words, code in (
        ("ablation", ["--help"], 0),
        ("ablation", ["--out", str(sweep.path), "--status"], 0),
        ("ablation", [*START["ablation"], "--out", "none", *DRY], 0),
        ("ablation", ["--grid", "nope"], 2),
        ("search", ["--help"], 0),
        ("search", [*START["search"], "--out", "none", *DRY], 0),
        ("search", ["--space", "nope"], 2),
        ("make_tables", ["--help"], 0),
        ("make_tables", ["--runs", "nowhere"], 2),
        ("mpcc", ["--help"], 0),
        ("mpcc", ["--dry-run"], 0),
        ("mpcc", ["--preset", "x"], 2),
        ("mpcc", ["cluster", "--help"], 0),
        ("mpcc", ["sample"], 2),
    ):
        command = [sys.executable, *PROGRAMS[program], *words]
        assert any(cpu_seconds(command, tmp_path, code) < 0.5 for _ in range(6)), command


# -- tables --------------------------------------------------------------------------------------


@pytest.fixture
def digits_sweep(tmp_path: Path) -> SweepBuilder:
    return table1_sweep(tmp_path / "digits")


def on_a_terminal(command: list[str], cwd: Path, **variables: str) -> str:
    """What a program prints where it believes to be on a terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=cwd, env=environment | variables, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed.
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait(60) == 0, printed
    return printed.decode()


def test_tables_are_in_colour_on_a_terminal_unless_no_color_is_set(
    digits_sweep: SweepBuilder,
) -> None:
    command = [sys.executable, *PROGRAMS["make_tables"], "--runs", str(digits_sweep.path)]
    assert "\x1b[" in on_a_terminal(command, digits_sweep.path)
    plain = on_a_terminal(command, digits_sweep.path, NO_COLOR="1")
    assert "\x1b[" not in plain and "Table 1 on digits" in plain


def test_trials_of_several_code_versions_are_averaged_only_on_request(
    digits_sweep: SweepBuilder,
) -> None:
    import numpy as np

    change = table1_changes()[0]
    digits_sweep.trial(change, 2, metrics_of(0.6, np.random.default_rng(0)), code="other")
    words = ["--runs", digits_sweep.path, "--table", "grid", "--format", "md"]
    apart = said("make_tables", *words, cwd=digits_sweep.path)
    assert "Only code c0de." in apart and "Only code other." in apart
    together = said("make_tables", *words, "--pool-code", cwd=digits_sweep.path)
    assert "Only code other." not in together
    assert "Trials of several code versions are averaged (--pool-code)." in together
    assert "several code versions" not in apart


@pytest.mark.parametrize("test", ["welch", "paired", "pooled", "permutation"])
def test_differences_are_tested_as_was_asked(test: str, digits_sweep: SweepBuilder) -> None:
    words = ["--runs", digits_sweep.path, "--table", "grid", "--format", "md", "--test", test]
    said("make_tables", *words, cwd=digits_sweep.path)
    companion = digits_sweep.path / "tables" / "grid-provenance.json"
    assert json.loads(companion.read_text())["statistics"]["test"] == test


def test_sample_sheets_are_in_the_page_unless_left_out(digits_sweep: SweepBuilder) -> None:
    from PIL import Image

    for change in table1_changes():
        Image.new("RGB", (8, 8)).save(digits_sweep.folder(change, 0) / "samples.png")
    words = ["--runs", digits_sweep.path, "--format", "html"]
    page = digits_sweep.path / "tables" / "report.html"
    said("make_tables", *words, cwd=digits_sweep.path)
    assert "drawn by the model" in page.read_text()
    said("make_tables", *words, "--no-pictures", cwd=digits_sweep.path)
    assert "drawn by the model" not in page.read_text()


def test_a_reader_who_goes_away_is_no_traceback(digits_sweep: SweepBuilder) -> None:
    words = ["--runs", str(digits_sweep.path), "--format", "md"]
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *PROGRAMS["make_tables"], *words],
        cwd=digits_sweep.path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")  # The files are written all the same.


# -- one run -------------------------------------------------------------------------------------


def test_one_run_leaves_its_files_in_a_folder_of_its_name_and_a_cache_where_xdg_says(
    tmp_path: Path,
) -> None:
    words = ["--preset", "tiny", "--set", "seed=7", "--device", "cpu", "--download"]
    cache = str(tmp_path / "xdg")
    done = call("mpcc", *words, cwd=tmp_path, XDG_CACHE_HOME=cache, MPCC_CACHE_DIR=None)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "runs" / "tiny-seed7").iterdir()} == {
        "config.json", "provenance.json", "metrics.jsonl", "result.json", "checkpoint.pt",
        "samples.png", "reconstructions.png", "latent.png", "curves.png",
        "model.mpcc", "clusters.csv.gz",
    }  # fmt: skip
    about = json.loads((tmp_path / "runs" / "tiny-seed7" / "provenance.json").read_text())
    assert about["device"].startswith("cpu") and about["data"]["dataset"] == "digits"
    assert list((tmp_path / "xdg" / "mpcc" / "prepared").iterdir())


def test_a_run_that_diverges_ends_with_exit_code_1_and_goes_on_saying_so(tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--out", "run", "--set", "network_lr=10", "prior_lr=10",
             "iterations=400", "eval_every=400"]  # fmt: skip
    for _ in range(2):
        done = call("mpcc", *words, cwd=tmp_path)
        assert done.returncode == 1 and done.stdout == ""
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert result["state"] == "diverged" and result["metrics"] == {}
        at = f"is not finite at iteration {result['iteration']}"
        assert re.fullmatch(rf"loss/\w+ {at}", result["cause"])
        assert f"diverged: {result['cause']}" in done.stderr.splitlines()[-1]


# -- Slurm ---------------------------------------------------------------------------------------

STAND_INS = {
    "scontrol": "echo one; echo two",
    "hostname": "echo 127.0.0.1",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": '[ "$1" = health-check ] || sleep 600',
    "python": 'if [ "$1" = -c ]; then echo 0123; exit; fi\n'
    'echo "$@" > words; trap "echo warned > warned; exit 143" TERM\n'
    "echo > begun; while true; do sleep 0.1; done",
}
"""Slurm's commands, Ray's, and a driver that ends as ours does where it is told to."""


def test_slurms_warning_reaches_the_driver_whose_exit_code_is_the_jobs(tmp_path: Path) -> None:
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    variables |= {"SLURM_JOB_NODELIST": "one,two", "MPCC_RAY_PORT": "7777"}
    job = subprocess.Popen(
        ["bash", str(ROOT / "deploy" / "slurm.sh"), "--table", "1"],
        env=os.environ | variables,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)  # as `#SBATCH --signal=B:TERM@120` has it, to the script
        assert job.wait(60) == 143
    finally:
        os.killpg(job.pid, signal.SIGKILL) if job.poll() is None else None
    assert (tmp_path / "warned").exists()
    words = (tmp_path / "words").read_text().strip()
    assert words == "tune/ablation.py --address 127.0.0.1:7777 --table 1"
    assert "#SBATCH --signal=B:TERM@120\n" in (ROOT / "deploy" / "slurm.sh").read_text()
