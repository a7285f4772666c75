"""The trials of a search: its points and bounds rest on the records alone, whatever happens.

search_points.json holds what the code before the redesign (2cd723f) suggested for the records that
`made_up` and `end_of` describe: points and pruning rules.
"""

import json
import math
import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcc.config import PRESETS, Config
from mpcc.evaluation.metrics import NEED_LABELS
from mpcc.runs import run_dir
from tune.plan.cells import Trial, trials
from tune.plan.plan import Plan, PlanError, new_plan
from tune.plan.pruning import PruneRule
from tune.plan.state import State
from tune.store.folder import Store, record_end
from tune.suggest import points, study
from tune.suggest.points import Point, read_points
from tune.suggest.search import NEEDS, Search, check_objectives, search_of
from tune.suggest.source import SearchSource
from tune.suggest.space import parse_space
from tune.suggest.study import write_study

TINY = PRESETS["tiny"]
LONG = TINY.override(iterations=12, eval_every=2)
SPACE = ("eta_p=1e-4..1e-1:log", "esteps=1..4")
RECORDED = json.loads(Path(__file__).with_name("search_points.json").read_text())


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: thousands of small files need not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def value_of(config: Config) -> dict[str, Any]:
    """A valley whose bottom lies at eta_p = 3e-3, esteps = 2; the seed adds a little."""
    distance = abs(math.log10(config.prior_lr / 3e-3)) + 0.2 * abs(config.n_encoder_steps - 2)
    return {"mse": distance + 0.01 * config.seed, "acc_majority": 1 / (1 + distance)}


def finish(
    store: Store, trial: Trial, state: str = "done", metrics: Mapping[str, Any] | None = None
) -> None:
    """Write the record of a trial that has ended."""
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    values = dict(value_of(trial.config) if metrics is None else metrics)
    iterations = trial.config.iterations
    for iteration in (iterations // 2, iterations):
        run_dir.append_metrics(path, {"iteration": iteration} | values)
    result = {"state": state, "cause": None, "iteration": iterations, "metrics": values}
    run_dir.write_json(path / run_dir.RESULT, result)


def begin(base: Config = TINY, **changes: Any) -> Plan:
    """A search as the command line plans it, nothing drawn yet."""
    known = Search(
        parse_space(SPACE, base), ("mse",), seeds=(0, 1), startup=4, ahead=3, n_points=12
    )
    return replace(new_plan("tiny", base), search=replace(known, **changes).to_dict())


def drive(
    out: Path,
    plan: Plan,
    rng: random.Random,
    stop_after: int = 10**6,
    writer: Executor | None = None,
) -> SearchSource:
    """A driver without Ray: what is returned ends in any order, until there is no more."""
    store = Store(out)
    source = SearchSource(store, plan, writer)
    in_flight: list[Trial] = []
    for n in range(stop_after + 1):
        in_flight += source.ready(store.statuses(source.trials()))
        store.write_plan(source.plan)
        if not in_flight or n == stop_after:
            return source
        finish(store, in_flight.pop(rng.randrange(len(in_flight))))
    raise AssertionError


def found(source: SearchSource) -> list[tuple[str, tuple[float, ...]]]:
    return [(point.cell.key, point.values) for point in source.points]


# -- the same search -----------------------------------------------------------------------------


def made_up(config: Config, iteration: int) -> dict[str, Any]:
    """An evaluation in the records of search_points.json."""
    distance = abs(math.log10(config.prior_lr / 3e-3)) + 0.2 * abs(config.n_encoder_steps - 2)
    distance += 0.3 * config.prior_entropy_weight + 0.01 * config.seed + 1 / iteration
    values = {"mse": round(distance, 6), "acc_majority": round(1 / (1 + distance), 6)}
    if end_of(config)[0] == "empty" and iteration == 12:
        values = dict.fromkeys(values, math.nan)
    return {"iteration": iteration} | values


def end_of(config: Config) -> tuple[str, int]:
    """How a trial in these records ends, by its key, and its last iteration."""
    n = int(config.trial_key[:4], 16) % 13
    return {0: ("diverged", 5), 1: ("failed", 7), 2: ("empty", 12)}.get(n, ("done", 12))


class Sweep:
    """Workers, a driver that sees their records late and in any order, and kills of all of them.

    `late`: the records lie on another machine until then.
    """

    def __init__(
        self, out: Path, plan: Plan, workers: int, rng: random.Random, *, late: bool = False
    ) -> None:
        self.store, self.remote = Store(out), Store(out / "remote" if late else out)
        self.late, self.workers, self.rng = late, workers, rng
        self.n_starts = 0
        self.rules: dict[str, set[str]] = {}
        (self.remote.out / "trials").mkdir(parents=True, exist_ok=True)
        self.store.write_plan(plan)
        self.start()

    def start(self) -> None:
        """A driver that begins with the folder."""
        self.n_starts += 1
        plan = self.store.read_plan()
        assert plan is not None
        self.queue: list[tuple[Trial, PruneRule | None]] = []
        self.running: list[tuple[Trial, PruneRule | None]] = []
        self.reports: list[Callable[[], object]] = []
        if self.late:
            shutil.copytree(self.remote.out, self.store.out, dirs_exist_ok=True)
        self.source = SearchSource(self.store, plan)
        self.states = self.store.statuses(self.source.trials())

    def run(self, kill_chance: float = 0.0) -> SearchSource:
        """To the end; by chance killed in between."""
        while True:
            for trial in self.source.ready(self.states):
                rule = self.source.prune_rule(trial)
                self.rules.setdefault(trial.key, set()).add(repr(rule))
                self.queue.append((trial, rule))
            self.store.write_plan(self.source.plan)
            while self.queue and len(self.running) < self.workers:
                self.running.append(self.queue.pop(0))
            if not self.running and not self.reports:
                assert self.source.finished and not self.queue
                return self.source
            if self.rng.random() < kill_chance:
                self.start()
                continue
            if self.running and (not self.reports or self.rng.random() < 0.6):
                worker = self.rng.choice(self.running)
                if self.step(*worker):
                    self.running.remove(worker)
            else:
                self.reports.pop(self.rng.randrange(len(self.reports)))()

    def step(self, trial: Trial, rule: PruneRule | None) -> bool:
        """The next evaluation of a trial; whether it has ended."""
        path = run_dir.open_run(self.remote.trial_dir(trial.key), trial.config)
        state, last = end_of(trial.config)
        rows = self.remote.rows(trial.key)
        cause = rule.cause(rows) if rule else None
        if cause:
            record_end(path, trial.config, State.PRUNED, cause)
            self.report(trial)
        elif rows and int(str(rows[-1]["iteration"])) + 2 > last:
            result = {
                "state": "done" if state == "empty" else state,
                "cause": "made up" if state == "failed" else None,
                "iteration": rows[-1]["iteration"],
                "metrics": rows[-1],
            }
            run_dir.write_result(path, result)
            self.report(trial)
        else:
            run_dir.append_metrics(path, made_up(trial.config, 2 * len(rows) + 2))
            return False
        return True

    def report(self, trial: Trial) -> None:
        def see() -> None:
            if self.late:
                paths = [store.trial_dir(trial.key) for store in (self.remote, self.store)]
                shutil.copytree(*paths, dirs_exist_ok=True)
            self.states |= self.store.statuses([trial])

        self.reports.append(see)


def recorded_plan(name: str) -> Plan:
    case = RECORDED[name]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in case["search"].items()}
    search = Search(parse_space(case["space"].split(), LONG), **given)
    return replace(new_plan("tiny", LONG), search=search.to_dict())


def as_recorded(source: SearchSource) -> list[list[Any]]:
    words = {State.DONE: "complete", State.FAILED: "failed"}
    return [
        [p.cell.key, p.cell.text, words.get(p.state, "pruned"), list(p.values), p.reason]
        for p in source.points
    ]


@pytest.mark.parametrize("name", RECORDED)
def test_points_and_rules_are_those_of_the_code_before(name: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, recorded_plan(name), 1, random.Random(0))
    source = sweep.run()
    assert as_recorded(source) == RECORDED[name]["points"]
    assert source.search.n_points == RECORDED[name]["n_points"] and source.complete()
    metric = source.search.objectives[0]
    for trial in source.trials():
        known = RECORDED[name]["rules"].get(trial.key)
        wanted = None
        if known is not None:
            bounds = {int(iteration): bound for iteration, bound in known["bounds"].items()}
            wanted = PruneRule(metric, metric != "mse", bounds, known["reason"])
        assert source.prune_rule(trial) == wanted
        assert sweep.rules[trial.key] == {repr(wanted)}


def last_iterations(source: SearchSource, store: Store) -> dict[str, int]:
    return {trial.key: store.status(trial).iteration for trial in source.trials()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Sweep, SearchSource]]:
    """Searches with one worker, whose reports all arrive."""
    names = ("median", "halving", "tpe")
    sweeps = {
        name: Sweep(tmp_path_factory.mktemp(name), recorded_plan(name), 1, random.Random(0))
        for name in names
    }
    return {name: (sweep, sweep.run()) for name, sweep in sweeps.items()}


@pytest.mark.parametrize(("workers", "late"), [(1, True), (4, False), (4, True)])
@pytest.mark.parametrize("name", ["median", "halving", "tpe"])
def test_a_search_is_the_same_with_any_workers_order_and_kills(
    name: str,
    workers: int,
    late: bool,
    tmp_path: Path,
    undisturbed: dict[str, tuple[Sweep, SearchSource]],
) -> None:
    once, source = undisturbed[name]
    for seed, kill_chance in ((1, 0.0), (2, 0.06)):
        rng = random.Random(seed)
        sweep = Sweep(tmp_path / f"{seed}", recorded_plan(name), workers, rng, late=late)
        again = sweep.run(kill_chance)
        assert as_recorded(again) == as_recorded(source)
        assert again.plan.cells == source.plan.cells and again.search == source.search
        assert sweep.rules == once.rules  # Killed or not, a trial has one rule.
        assert last_iterations(again, sweep.store) == last_iterations(source, once.store)
        assert bool(kill_chance) == (sweep.n_starts > 5)


def test_points_that_were_lost_with_the_plan_are_drawn_again_with_their_records(
    tmp_path: Path,
) -> None:
    whole = drive(tmp_path, begin(), random.Random(1))
    again = SearchSource(Store(tmp_path), begin())
    assert found(again) == found(whole)
    assert again.ready({}) == [] and again.finished and again.complete()


def test_another_sampler_seed_is_another_search_and_a_longer_one_begins_alike(
    tmp_path: Path,
) -> None:
    first = drive(tmp_path / "a", begin(), random.Random(1))
    other = drive(tmp_path / "b", begin(sampler_seed=1), random.Random(1))
    longer = drive(tmp_path / "c", begin(n_points=15), random.Random(1))
    assert found(first)[1:] != found(other)[1:]
    assert found(longer)[:12] == found(first)


# -- points --------------------------------------------------------------------------------------


def test_the_first_point_is_the_base_where_the_space_holds_it(tmp_path: Path) -> None:
    inside = SearchSource(Store(tmp_path), begin())
    assert inside.points[0].cell.config == TINY
    space = parse_space(["eta_p=1e-1..1"], TINY)
    outside = SearchSource(Store(tmp_path), begin(space=space))
    assert all(point.cell.config.cell_key != TINY.cell_key for point in outside.points)


def test_tpe_finds_the_valley_better_than_chance(tmp_path: Path) -> None:
    def score(sampler: str, seed: int) -> float:
        plan = begin(sampler=sampler, sampler_seed=seed, n_points=25)
        source = drive(tmp_path / f"{sampler}{seed}", plan, random.Random(seed))
        values = sorted(point.values[0] for point in source.points)
        return sum(values[:10])

    assert sum(score("tpe", s) for s in range(3)) < sum(score("random", s) for s in range(3))


def test_no_point_comes_twice_and_a_small_space_ends(tmp_path: Path) -> None:
    space = parse_space(["esteps=1..3", "prior_entropy_weight=0,1"], TINY)
    source = drive(tmp_path, begin(space=space, n_points=50), random.Random(1))
    keys = [point.cell.key for point in source.points]
    assert len(keys) == len(set(keys)) == 6
    assert source.complete() and source.finished and source.search.n_points == 6


def test_settings_that_exclude_each_other_are_no_points(tmp_path: Path) -> None:
    space = parse_space(["prior=normal,gaussian_mixture", "conditional=false,true"], TINY)
    source = drive(tmp_path, begin(space=space, n_points=50), random.Random(1))
    assert len(source.points) == 3


def test_a_point_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    source = drive(tmp_path, begin(n_points=1), random.Random(1))
    values = [value_of(TINY.override(seed=seed))["mse"] for seed in (0, 1)]
    assert source.points[0].values == (pytest.approx(sum(values) / 2),)
    assert source.points[0].seeds == (tuple(values),)
    assert not source.points[0].collapsed
    store, first = Store(tmp_path), source.trials()[0]
    (store.trial_dir(first.key) / "result.json").unlink()
    finish(store, first, metrics=value_of(first.config) | {"n_clusters_collapsed": 1})
    (point,) = read_points(source.search, store.statuses(source.trials()))
    assert point.collapsed and points.best(source.search, [point]) == [point]


def test_a_diverged_point_counts_as_worse_and_a_failed_one_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = SearchSource(store, begin())
    made = source.trials()
    finish(store, made[0], "diverged")
    finish(store, made[2], "failed")
    finish(store, made[4], metrics={"mse": math.inf})
    for trial in (made[1], made[3], made[5]):
        finish(store, trial)
    got = read_points(source.search, store.statuses(made))
    assert [point.state for point in got] == ["diverged", "failed", "diverged"]
    states = [points.frozen(source.search, point).state.name for point in got]
    assert states == ["PRUNED", "FAIL", "PRUNED"]
    assert points.best(source.search, got) == []


def made(number: int, *values: float) -> Point:
    cell = SearchSource(Store(Path("nowhere")), begin()).points[0].cell
    return Point(number, cell, State.DONE, tuple((v,) for v in values))


def test_the_front_has_what_nothing_beats_in_all_objectives() -> None:
    both = Search(parse_space(SPACE, TINY), objectives=("mse", "acc_majority"))
    front = points.best(both, [made(0, 1, 0.5), made(1, 2, 0.9), made(2, 2, 0.8), made(3, 1, 0.4)])
    assert [point.number for point in front] == [0, 1]
    one = replace(both, objectives=("acc_majority",))
    assert [p.number for p in points.best(one, [made(0, 0.2), made(1, 0.7)])] == [1]
    collapsed = replace(made(2, 0.9), collapsed=True)
    assert [p.number for p in points.best(one, [made(0, 0.2), made(1, 0.7), collapsed])] == [1]


# -- trials --------------------------------------------------------------------------------------


def test_a_trial_is_returned_once_and_its_point_ends_with_all_its_seeds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = SearchSource(store, begin())
    first = source.ready({})
    assert first == source.trials() and len(first) == 6 and not source.finished
    for trial in first:
        finish(store, trial)
    assert source.ready({}) == [] and len(source.points) == 3  # nobody has said so yet
    assert source.ready(store.statuses(first[1:])) == [] and len(source.points) == 3
    more = source.ready(store.statuses(first))
    assert [point.state for point in source.points[:3]] == ["done"] * 3
    assert more == source.trials()[6:] and len(more) == 6


def test_a_point_that_runs_again_is_open_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = drive(tmp_path, begin(n_points=3), random.Random(1))
    trial = source.trials()[2]
    (store.trial_dir(trial.key) / run_dir.RESULT).unlink()
    store.record_end(trial, State.FAILED, "killed")
    again = SearchSource(store, source.plan)
    assert again.points[1].state == "failed" and again.complete()
    store.reset(trial, State.FAILED)
    assert again.ready(store.statuses(again.trials())) == [trial]
    assert again.points[1].state == "planned" and not again.complete()


def test_with_pruning_a_trial_waits_for_what_its_bounds_rest_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = drive(tmp_path, begin(prune="median"), random.Random(1)).plan
    made = SearchSource(store, plan).trials()
    for trial in (made[4], made[20]):  # of points 2 and 10: they run again after a repair
        shutil.rmtree(store.trial_dir(trial.key))
    source = SearchSource(store, plan)
    assert source.ready({}) == [made[4]] and not source.finished
    finish(store, made[4])
    assert source.ready(store.statuses(made)) == [made[20]] and source.finished


def test_a_trial_is_bounded_by_earlier_points_of_its_own_seed_alone(tmp_path: Path) -> None:
    source = drive(tmp_path, begin(prune="median"), random.Random(1))
    trial = trials(source.points[9].cell, (1,))[0]
    rule = source.prune_rule(trial)
    earlier = [value_of(p.cell.config.override(seed=1))["mse"] for p in source.points[:7]]
    assert rule is not None and rule.bounds == {2: pytest.approx(sorted(earlier)[3])}
    assert not rule.higher_is_better and rule.metric == "mse"
    early = trials(source.points[6].cell, (1,))[0]
    assert source.prune_rule(early) is None  # four points before it are too few
    plain = SearchSource(Store(tmp_path), begin())
    assert plain.prune_rule(plain.trials()[0]) is None


# -- what the plan holds -------------------------------------------------------------------------


def test_a_search_survives_its_plan(tmp_path: Path) -> None:
    source = SearchSource(Store(tmp_path), begin(prune="halving", sampler="random"))
    assert search_of(Plan.from_dict(json.loads(json.dumps(source.plan.to_dict())))) == source.search
    with pytest.raises(PlanError, match="holds no search"):
        SearchSource(Store(tmp_path), new_plan("tiny", TINY))


@pytest.mark.parametrize(
    "damage",
    [{"space": 3}, {"seeds": None}, {"ahead": "4"}, {"points": ["no cell"]}, {"objectives": ["x"]}],
)
def test_a_damaged_search_is_refused_in_one_line(damage: dict[str, Any]) -> None:
    plan = begin()
    with pytest.raises(PlanError, match="the search in sweep.json is damaged"):
        search_of(replace(plan, search={**(plan.search or {}), **damage}))
    with pytest.raises(PlanError, match="damaged"):
        search_of(replace(plan, search={"space": {}}))


def test_what_metrics_need_is_declared_for_metrics_that_exist() -> None:
    for names in NEEDS.values():
        assert check_objectives(names) == names
    # What looks at labels compares them with clusters, or with generated images.
    assert set(NEED_LABELS) <= {*NEEDS["clusters"], *NEEDS["generated images"]}
    assert set(NEEDS["Inception"]) | set(NEEDS["grey images"]) == set(NEEDS["generated images"])


# -- study.db ------------------------------------------------------------------------------------


def opened(out: Path) -> Any:
    import optuna

    return optuna.load_study(study_name=out.name, storage=f"sqlite:///{out / 'study.db'}")


def content(out: Path) -> list[Any]:
    return [(t.number, t.state.name, t.params, t.values) for t in opened(out).get_trials()]


def write(source: SearchSource) -> None:
    write_study(source._store, source.search, source.ended())


def test_two_objectives_are_searched_and_kept(tmp_path: Path) -> None:
    goals = ("mse", "acc_majority")
    source = drive(tmp_path, begin(objectives=goals), random.Random(1))
    write(source)
    kept = opened(tmp_path)
    assert [d.name for d in kept.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert kept.metric_names == list(goals)
    assert kept.user_attrs["labels chose"] == "acc_majority"
    front = {point.number for point in points.best(source.search, source.points)}
    assert {trial.number for trial in kept.best_trials} == front


def test_the_study_holds_the_records_and_is_made_again_where_it_is_lost(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as writer:
        source = drive(tmp_path, begin(), random.Random(1), writer=writer)
    before = content(tmp_path)
    assert len(before) == 12 and {state for _, state, *_ in before} == {"COMPLETE"}
    assert [values for *_, values in before] == [list(point.values) for point in source.points]
    kept = opened(tmp_path).trials
    assert [t.user_attrs["cell_key"] for t in kept] == [c.key for c in source.search.points]
    assert kept[3].user_attrs["mse by seed"] == list(source.points[3].seeds[0])
    for damage in (lambda f: f.unlink(), lambda f: f.write_bytes(b"torn" * 999)):
        damage(tmp_path / "study.db")
        write(SearchSource(Store(tmp_path), source.plan))
        assert content(tmp_path) == before


def test_points_come_in_order_while_the_search_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = SearchSource(store, begin())
    for trial in source.trials()[2:]:  # all but point 0
        finish(store, trial)
    assert not source.complete()
    write(source)
    assert content(tmp_path) == []
    for trial in source.trials()[:2]:
        finish(store, trial)
    assert not source.complete()
    write(source)
    assert [number for number, *_ in content(tmp_path)] == [0, 1, 2]


def change_record(source: SearchSource) -> None:
    """Another value in the record of point 3."""
    trial = trials(source.points[3].cell, (0,))[0]
    path = source._store.trial_dir(trial.key) / run_dir.RESULT
    run_dir.write_json(path, json.loads(path.read_text()) | {"metrics": {"mse": 7.0}})


def test_a_study_that_disagrees_with_the_records_is_made_again(tmp_path: Path) -> None:
    source = drive(tmp_path, begin(), random.Random(1))
    write(source)
    change_record(source)
    again = SearchSource(Store(tmp_path), source.plan)
    write(again)
    assert again.points[3].values != source.points[3].values
    assert content(tmp_path)[3][3] == list(again.points[3].values)


def test_a_study_that_is_locked_is_left_alone_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LOCK_SECONDS", 0.1)
    source = drive(tmp_path, begin(), random.Random(1))
    write(source)
    before, inode = content(tmp_path), (tmp_path / "study.db").stat().st_ino
    change_record(source)
    again = SearchSource(Store(tmp_path), source.plan)
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(OSError, match="study.db cannot be written: database is locked"):
            write(again)
        assert (tmp_path / "study.db").stat().st_ino == inode
        other.rollback()
    assert content(tmp_path) == before
    write(again)
    assert content(tmp_path)[3][3] == list(again.points[3].values)


def test_a_study_that_takes_long_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, written = threading.Event(), []

    def wait_and_write(store: Store, search: Search, points: list[Point]) -> None:
        assert free.wait(60)
        written.append(len(points))

    monkeypatch.setattr("tune.suggest.source.write_study", wait_and_write)
    with ThreadPoolExecutor(1) as writer:
        source = drive(tmp_path, begin(), random.Random(1), writer=writer)
        assert source.complete() and written == []
        free.set()
    assert written[-1] == 12 and written == sorted(written)


def test_the_study_has_the_times_of_the_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = SearchSource(store, begin(n_points=1))
    write(source)  # as drawn, before anything has run
    for trial, start, end in zip(source.trials(), (1000, 900), (1200, 1300), strict=True):
        finish(store, trial)
        path = store.trial_dir(trial.key)
        begun = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(start))
        run_dir.write_json(path / run_dir.PROVENANCE, {"started": begun})
        os.utime(path / run_dir.RESULT, (end, end))
    assert source.complete()
    for _ in range(2):
        write(source)
        (trial,) = opened(tmp_path).trials
        assert trial.datetime_start.timestamp() == 900
        assert trial.datetime_complete.timestamp() == 1300
        (tmp_path / "study.db").unlink()  # made again: the same
