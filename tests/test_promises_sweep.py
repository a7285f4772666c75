"""What a sweep promises, from end to end: two small stories, a grid's and a search's.

Nothing here knows how sweeps are made: command lines, files, MLflow and Optuna from outside.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import mlflow_runs
from tests.test_promises import PROGRAMS, answered, call, said

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of MLflow, where it is called in this process
]

COMMON = ["--preset", "tiny", "--set", "eval_every=10", "--iterations", "20"]
GRID = [*COMMON, "--seeds", "2", "--grid", "esteps=1,2"]
SECRET = "0pen-sesame-0f-this-test"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"id-{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "GOOGLE_APPLICATION_CREDENTIALS": f"/nowhere/{SECRET}.json",
}
DONE = re.compile(r"(\d+) of (\d+) trials done")
OF_OLD = {"attempts", "owner.json", "mlflow.json"}
"""Files of a trial that may be there and may go."""


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Trial key -> what its result says."""
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("trials/*/result.json")}


def weights(out: Path) -> dict[str, str]:
    return {key: result["weights_sha256"] for key, result in results(out).items()}


def written(out: Path) -> dict[str, int]:
    """Trial key -> when its result was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/result.json")}


def one_at_a_time(trials: Iterable[Path]) -> bool:
    """Whether each of these trials began when the one before it had ended."""
    times = sorted(
        ((p / "config.json").stat().st_mtime_ns, (p / "result.json").stat().st_mtime_ns)
        for p in trials
    )
    return all(after[0] >= before[1] for before, after in zip(times, times[1:], strict=False))


def rows(path: Path) -> list[dict[str, Any]]:
    """A trial's evaluations, but for their times."""
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read]


def runs(database: Path) -> dict[str | None, tuple[str, int, int]]:
    """Trial key, None for the sweep's own -> status, rows of accuracy, steps; of active runs."""
    found = mlflow_runs(database)
    assert len({key for key, *_ in found}) == len(found), "two runs of one trial"
    return {key: (status, n, steps) for key, status, n, steps in found}


def start(program: str, *words: object, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *PROGRAMS[program], *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # not so under nohup
    )


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 300
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail("\n".join(process.communicate()))
        time.sleep(0.02)


def copied(out: Path, place: Path) -> Path:
    """A copy of a sweep, under the same name; its MLflow would go on writing to the original's."""
    ignored = shutil.ignore_patterns("mlflow*")
    return Path(shutil.copytree(out, place / out.name, ignore=ignored))


def edited(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what is in a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# -- a grid --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    base: Path
    out: Path
    text: str
    noise: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A grid of four trials, one at a time, done."""
    base = tmp_path_factory.mktemp("promises")
    done = call("ablation", *GRID, "--out", "grid", "--max-concurrent", "1", cwd=base)
    assert done.returncode == 0, done.stderr
    return Story(base, base / "grid", done.stdout, done.stderr)


def test_a_finished_sweep_has_these_files_and_no_others(story: Story) -> None:
    assert DONE.search(story.text).groups() == ("4", "4")  # type: ignore[union-attr]
    names = {path.name for path in story.out.iterdir()}
    assert names - {"driver.lock", "mlflow.json"} == {
        "sweep.json", "sweep-copy.json", "trials", "mlflow.db", "mlflow-artifacts",
    }  # fmt: skip
    plan = json.loads((story.out / "sweep.json").read_text())
    assert plan["schema"] == 1 and plan["preset"] == "tiny" and plan["base"]["iterations"] == 20
    assert [cell["seeds"] for cell in plan["cells"]] == [[0, 1], [0, 1]]
    assert len(results(story.out)) == 4
    for path in (story.out / "trials").iterdir():
        assert {file.name for file in path.iterdir()} - OF_OLD == {
            "config.json", "provenance.json", "metrics.jsonl", "result.json", "checkpoint.pt",
            "samples.png", "reconstructions.png", "latent.png", "curves.png",
            "model.mpcc", "clusters.csv.gz",
        }  # fmt: skip
        assert results(story.out)[path.name]["state"] == "done"
        assert [row["iteration"] for row in rows(path)] == [10, 20]
    assert set(runs(story.out / "mlflow.db")) == {None, *results(story.out)}
    assert "make_tables.py --runs grid" in story.text and "http://localhost:5000/#/" in story.text


def test_progress_goes_to_stderr_and_nothing_of_rays_is_seen(story: Story) -> None:
    lines = story.noise.strip().splitlines()
    assert len([line for line in lines if " done at 20: esteps=" in line]) == 4
    assert all(line.startswith("[") or "trials to run" in line for line in lines), lines


def test_a_trial_of_a_sweep_equals_the_same_run_alone(story: Story, tmp_path: Path) -> None:
    run = alone(tmp_path, "iterations=20", "esteps=2", "seed=1")
    expected = json.loads((run / "result.json").read_text())
    key = expected["trial_key"]
    swept = results(story.out)[key]
    for name in ("weights_sha256", "metrics", "iteration", "state"):
        assert swept[name] == expected[name]
    assert rows(story.out / "trials" / key) == rows(run)


def test_at_most_as_many_trials_run_at_a_time_as_were_allowed(story: Story) -> None:
    assert one_at_a_time(story.out.glob("trials/*"))


def alone(place: Path, *settings: str) -> Path:
    """The run directory of the trial with these settings that `python -m mpcc` has trained."""
    words = ["--preset", "tiny", "--set", "eval_every=10", *settings]
    said("mpcc", *words, "--out", "alone", cwd=place)
    return place / "alone"


def ended_otherwise(path: Path, state: str, cause: str) -> None:
    """Have a trial end like this, its checkpoints gone."""
    for file in path.glob("checkpoint*"):
        file.unlink()
    result = {"state": state, "cause": cause, "iteration": 10, "metrics": {}}
    (path / "result.json").write_text(json.dumps(result | {"trial_key": path.name}))


def ended_badly(out: Path) -> list[str]:
    """Have both trials of esteps=2 end badly; their keys."""
    bad = sorted(
        path.name
        for path in (out / "trials").iterdir()
        if json.loads((path / "config.json").read_text())["n_encoder_steps"] == 2
    )
    ended_otherwise(out / "trials" / bad[0], "failed", "code: KeyError: 'a'")
    ended_otherwise(out / "trials" / bad[1], "diverged", "loss/encoder is not finite")
    return bad


def test_failed_and_diverged_trials_run_again_only_where_retry_says_so(
    story: Story, stored: "Stored", tmp_path: Path
) -> None:
    out = copied(story.out, tmp_path)
    bad, before = ended_badly(out), written(out)
    done = answered("ablation", *GRID, "--out", out, cwd=tmp_path)
    assert done.returncode == 3 and written(out) == before
    assert "KeyError" in done.stdout and "--retry" in done.stdout
    after = written(stored.out)
    assert {key for key in stored.before if after[key] != stored.before[key]} == set(bad)
    assert weights(story.out).items() <= weights(stored.out).items()


def test_a_choice_of_cells_that_are_done_ends_with_0_whatever_else_failed(
    story: Story, tmp_path: Path
) -> None:
    out = copied(story.out, tmp_path)
    ended_badly(out)
    before = written(out)
    words = [*GRID, "--out", out]
    for choice, code in (
        (["--only", "esteps=1"], 0),
        (["--skip", "esteps=2"], 0),
        (["--only", "esteps=2"], 3),
    ):
        assert answered("ablation", *words, *choice, cwd=tmp_path).returncode == code
    assert written(out) == before


def test_parts_are_left_out_of_the_best_cell_of_a_folder(story: Story) -> None:
    words = ["--out", story.out, "--dry-run", "--ablate", "no-floor", "--ablate-from"]
    for cell in ("best", "esteps=2"):
        told = said("ablation", *words, cell, cwd=story.base)
        assert "full model: esteps=" in told and "2 cells, 6 trials" in told


def test_of_cells_that_have_all_collapsed_none_is_the_best_to_confirm(story: Story) -> None:
    """As after twenty iterations. What is confirmed of others: tests/test_confirm.py."""
    words = ["--out", story.out, "--dry-run", "--confirm", "--seeds", "2"]
    done = call("ablation", *words, cwd=story.base)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "without a collapsed or diverged seed" in done.stderr


def test_mlflow_gets_what_it_lacks_by_hand_once_wherever_it_is(
    story: Story, tmp_path: Path
) -> None:
    out = copied(story.out, tmp_path)
    expected = runs(story.out / "mlflow.db")
    other = tmp_path / "other.db"
    before = written(out)
    for uri, database in (
        ([], out / "mlflow.db"),
        (["--tracking-uri", f"sqlite:///{other}"], other),
    ):
        for number in ("4", "0"):
            told = said("ablation", "--out", out, "--sync", *uri, cwd=tmp_path)
            assert told.startswith(f"{number} trials delivered to sqlite:///"), told
            assert runs(database) == expected
    assert {status for status, *_ in expected.values()} == {"FINISHED"}
    assert {value[1:] for key, value in expected.items() if key} == {(2, 2)}
    assert written(out) == before


def test_a_sweep_of_other_seeds_is_joined_and_nothing_of_it_runs_again(
    story: Story, tmp_path: Path
) -> None:
    there = copied(story.out, tmp_path)
    for _ in range(2):
        said("ablation", *GRID, "--seeds", "0,", "--out", "here", "--next", cwd=tmp_path)
    adopted = answered("ablation", "--out", "here", "--adopt", there, cwd=tmp_path)
    assert adopted.returncode == 0, adopted.stderr
    assert "2 trials adopted" in adopted.stdout and "4 of 4 trials done" in adopted.stdout
    assert weights(tmp_path / "here") == weights(story.out)
    shutil.rmtree(there)
    again = answered("ablation", "--out", "here", cwd=tmp_path)
    assert "4 of 4 trials done" in again.stdout


# -- a storage -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    base: Path
    out: Path
    store: Path
    before: dict[str, int]
    bad: list[str]
    text: str


@pytest.fixture(scope="module")
def stored(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The grid, half of it failed, grown and sent to a storage, with secrets in the environment.

    Two trials to a GPU: without one so many processes, here of all cores each, one at a time.
    """
    base = tmp_path_factory.mktemp("stored")
    out = copied(story.out, base)
    bad, before = ended_badly(out), written(out)
    words = [*COMMON, "--seeds", "2", "--grid", "esteps=1,2,3", "--out", out]
    words += ["--trials-per-gpu", "2", "--cpus-per-trial", str(len(os.sched_getaffinity(0)))]
    places = {"MPCC_SCRATCH_DIR": str(base / "scratch"), "MPCC_CACHE_DIR": str(base / "cache")}
    words += ["--retry", "failed,diverged", "--storage", base / "store"]
    done = call("ablation", *words, cwd=base, **SECRETS, **places)
    assert done.returncode == 0, done.stderr
    return Stored(base, out, base / "store", before, bad, done.stdout)


def test_a_sweep_that_was_begun_here_goes_to_a_storage_later_and_runs_nothing_again(
    story: Story, stored: Stored
) -> None:
    assert DONE.search(stored.text).groups() == ("6", "6")  # type: ignore[union-attr]
    for key in stored.before.keys() - stored.bad:
        here = story.out / "trials" / key
        for name in ("result.json", "metrics.jsonl"):
            for folder in (stored.out, stored.store):
                assert (folder / "trials" / key / name).read_bytes() == (here / name).read_bytes()
        about = json.loads((stored.store / "trials" / key / "provenance.json").read_text())
        assert about["starts"] == [0], "trained again"
    assert weights(stored.out) == weights(stored.store) and len(weights(stored.store)) == 6
    assert weights(story.out).items() <= weights(stored.store).items()
    for path in (stored.store / "trials").iterdir():
        assert (path / "checkpoint.pt").is_file()


def test_several_trials_to_a_gpu_give_the_results_of_each_alone(
    stored: Stored, tmp_path: Path
) -> None:
    new = [stored.out / "trials" / key for key in results(stored.out).keys() - stored.before.keys()]
    assert len(new) == 2 and one_at_a_time(new)
    run = alone(tmp_path, "iterations=20", "esteps=3", "seed=1")
    key = json.loads((run / "result.json").read_text())["trial_key"]
    assert rows(stored.out / "trials" / key) == rows(run)


def test_a_cache_and_a_scratch_folder_lie_where_the_variables_say(stored: Stored) -> None:
    assert list((stored.base / "cache" / "prepared").iterdir())
    scratch = stored.base / "scratch"
    assert scratch.is_dir() and not list(scratch.rglob("*.pt"))


def test_no_credential_is_written_anywhere(stored: Stored) -> None:
    for file in stored.base.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_the_state_in_a_storage_is_seen_from_an_empty_folder(
    stored: Stored, tmp_path: Path
) -> None:
    words = ["--out", "laptop", "--storage", stored.store, "--status"]
    assert "6 trials: 6 done" in said("ablation", *words, cwd=tmp_path)


def test_a_folder_remembers_its_storage(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    shutil.copytree(stored.out, out)
    shutil.rmtree(out / "trials")
    words = ["--out", out, "--status"]
    refused = call("ablation", *words, cwd=tmp_path)
    assert refused.returncode == 2 and "is a copy of the folder whose trials" in refused.stderr
    assert "6 done" in said("ablation", *words, "--storage", stored.store, cwd=tmp_path)
    shutil.rmtree(out / "trials")
    assert "6 trials: 6 done" in said("ablation", *words, cwd=tmp_path)
    assert weights(out) == weights(stored.store)


# -- searches ------------------------------------------------------------------------------------

PRUNED = [
    "--preset", "tiny", "--iterations", "20", "--set", "eval_every=5", "--objective", "mse",
    "--space", "eta_p=1e-4..1e-1:log", "eta=1e-4..1e-1:log", "--prune", "median", "--points", "12",
    "--seeds", "1", "--sampler", "random", "--sampler-seed", "3", "--ahead", "2",
]  # fmt: skip
FRONT = [
    *COMMON, "--space", "eta_p=1e-3..1e-1:log", "esteps=1..4",
    "--objective", "mse,cluster_information", "--points", "6", "--seeds", "1",
    "--ahead", "1", "--startup", "1",
]  # fmt: skip


@dataclass(frozen=True)
class Searches:
    base: Path
    pruned: Path
    text: str
    front: Path
    front_text: str
    pid: int
    second: "subprocess.CompletedProcess[str]"
    stopped_code: int
    stopped_status: "subprocess.CompletedProcess[str]"
    after_stop: dict[str, int]


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """One search that prunes; one of two objectives, stopped on the way and gone on with."""
    base = tmp_path_factory.mktemp("searches")
    text = said("search", *PRUNED, "--out", "pruned", cwd=base)
    front = base / "front"
    driver = start("search", *FRONT, "--out", front, cwd=base)
    wait_for(driver, lambda: results(front))
    second = answered("search", *FRONT, "--out", front, cwd=base)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    status = call("search", "--out", front, "--status", cwd=base)
    after_stop = written(front)
    (front / "study.db").unlink(missing_ok=True)
    front_text = said("search", *FRONT, "--out", front, cwd=base)
    return Searches(
        base, base / "pruned", text, front, front_text, driver.pid, second, driver.returncode,
        status, after_stop,
    )  # fmt: skip


def test_a_search_gives_up_what_lies_behind_and_ends_with_0(searches: Searches) -> None:
    found = results(searches.pruned)
    states = [result["state"] for result in found.values()]
    assert len(states) == 12 and set(states) == {"done", "pruned"}
    for result in found.values():
        if result["state"] == "pruned":
            assert re.match(r"mse [\d.]+ at \d+, worse than the median of earlier", result["cause"])
            assert result["iteration"] < 20
    assert "Pruning by median: tends to prune slow starters" in searches.text
    assert "Best: " in searches.text and "--confirm" in searches.text.splitlines()[-1]
    said("search", "--out", "pruned", "--status", cwd=searches.base)
    words = ["--runs", "pruned", "--format", "md", "--out", "pruned-tables"]
    printed = " ".join(said("make_tables", *words, cwd=searches.base).split())
    assert "pruned" in printed and "slow starters" in printed


def test_a_search_keeps_its_options_in_its_plan(searches: Searches) -> None:
    kept = json.loads((searches.pruned / "sweep.json").read_text())["search"]
    for name, value in {"sampler": "random", "sampler_seed": 3, "ahead": 2}.items():
        assert kept[name] == value
    assert kept["prune"] == "median" and kept["objectives"] == ["mse"]
    assert kept["n_points"] == 12 and kept["seeds"] == [0] and len(kept["points"]) == 12
    done = call("search", "--out", "pruned", "--ahead", "3", "--dry-run", cwd=searches.base)
    assert done.returncode == 2 and "with ahead 2, now 3" in done.stderr


def test_optuna_finds_every_point_in_the_study(searches: Searches) -> None:
    import optuna

    for out, n_objectives in ((searches.pruned, 1), (searches.front, 2)):
        storage = f"sqlite:///{out / 'study.db'}"
        (name,) = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=name, storage=storage)
        states = sorted(result["state"] for result in results(out).values())
        words = {"COMPLETE": "done", "PRUNED": "pruned"}
        assert sorted(words[trial.state.name] for trial in study.trials) == states
        assert len(study.directions) == n_objectives
        assert all(trial.params for trial in study.trials)


def test_two_objectives_give_a_pareto_front(searches: Searches) -> None:
    assert "On the Pareto front: eta_p=" in searches.front_text
    words = ["--runs", "front", "--format", "md", "--out", "front-tables"]
    assert "Pareto front" in said("make_tables", *words, cwd=searches.base)
    values = [
        (result["metrics"]["mse"], -result["metrics"]["cluster_information"])
        for result in results(searches.front).values()
    ]
    best = [v for v in values if not any(o != v and o[0] <= v[0] and o[1] <= v[1] for o in values)]
    assert searches.front_text.count("On the Pareto front: ") == len(best)


def test_a_second_driver_is_refused_with_the_owners_name(searches: Searches) -> None:
    assert searches.second.returncode == 2 and searches.second.stdout == ""
    assert searches.second.stderr.count("\n") == 1
    assert f"in use by process {searches.pid} on " in searches.second.stderr


def test_a_search_that_was_stopped_ends_where_an_undisturbed_one_does(
    searches: Searches, tmp_path: Path
) -> None:
    """By SIGTERM, and its study was lost: the points rest on the records alone."""
    assert searches.stopped_code == 143
    assert searches.stopped_status.returncode == 3 and len(searches.after_stop) < 6
    after = written(searches.front)
    assert {key: after[key] for key in searches.after_stop} == searches.after_stop
    assert len(weights(searches.front)) == 6
    again = copied(searches.front, tmp_path)  # With every record, and none of its points drawn.
    edited(again / "sweep.json", lambda plan: plan["search"].update(points=[]))
    edited(again / "sweep.json", lambda plan: plan.update(cells=[]))
    (again / "sweep-copy.json").unlink()
    (again / "study.db").unlink()
    assert answered("search", *FRONT, "--out", again, cwd=tmp_path).returncode == 0
    assert written(again) == after
    plans = [json.loads((out / "sweep.json").read_text()) for out in (again, searches.front)]
    assert plans[0]["search"] == plans[1]["search"] and plans[0]["cells"] == plans[1]["cells"]
    assert study(again) == study(searches.front)


def study(out: Path) -> list[Any]:
    """The trials of study.db, as Optuna reads them."""
    import optuna

    found = optuna.load_study(study_name=out.name, storage=f"sqlite:///{out / 'study.db'}")
    return [(t.number, t.state.name, t.params, t.values) for t in found.get_trials()]


def test_a_search_is_held_against_the_best_cell_of_a_sweep(
    searches: Searches, story: Story
) -> None:
    words = ["--runs", "front", "--baseline", str(story.out), "--format", "md"]
    printed = said("make_tables", *words, "--out", "against", cwd=searches.base)
    assert "best cell of grid" in " ".join(printed.split())
    done = call("make_tables", "--runs", story.out, "--baseline", "front", cwd=searches.base)
    assert done.returncode == 2 and "only a search takes" in done.stderr
