"""Ray, kept quiet and out of the way: start it, run a list of trials through Tune, end it.

Nothing that Ray stores is needed again: the plan and the run directories are the record, so its
folders are temporary and `Tuner.restore` stays unused.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before Ray is imported: it reads these once.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_THRESHOLD_S": "30",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray._private.node  # noqa: E402
import ray._private.services  # noqa: E402
from ray import cloudpickle, tune  # noqa: E402
from ray.tune import Callback  # noqa: E402
from ray.tune.execution import class_cache  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from tune import cluster, joined, processes  # noqa: E402
from tune.groups import gpus_here, leading, shared  # noqa: E402
from tune.lock import process_lives  # noqa: E402
from tune.trainable import (  # noqa: E402
    DEVICE_FAULT,
    GroupRunner,
    TrialRunner,
    cause_of,
    is_out_of_memory,
    report_of,
)

MAX_FAILURES = 2
"""Times a trial whose process died, or whose machine failed it, is taken up again from its
checkpoint."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Hardly used; Ray's default takes a third of the memory."""

TEMP_PREFIX = "mpcc-ray-"

_watch: joined.Watch | None = None
"""Of the cluster that was joined."""


class Reporter(Callback):
    """Hands Tune's events on, as keys and plain values."""

    def __init__(
        self,
        started: Callable[[str], None],
        retried: Callable[[str], None],
        reported: Callable[[dict[str, Any]], None],
        failed: Callable[[str, str | None, str], None],
    ) -> None:
        self._started, self._retried = started, retried
        self._reported, self._failed = reported, failed
        self._ended: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a pickle of its callbacks, which nobody reads: one that does nothing."""
        return Callback, ()

    def _open(self, trial: Any) -> list[str]:
        """The keys of what Tune calls a trial, one of ours or a group, that have not ended."""
        return [spec["key"] for spec in _specs(trial) if spec["key"] not in self._ended]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for key in self._open(trial):
            self._started(key)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        report = result.get("report", result)
        if report["trial_key"] in self._ended:
            return  # A group that was taken up again says this once more.
        if report["done"]:
            self._ended.add(report["trial_key"])
        self._reported(report)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for key in self._open(trial):
            self._retried(key)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause, text = _cause(trial)
        shared = len(_specs(trial)) > 1
        for key in self._open(trial):
            if shared and cause is not None:  # Which of them it was shows when each is alone.
                self._reported(report_of(key, DEVICE_FAULT))
            else:
                self._failed(key, cause, text)


class Feed(Searcher):
    """Trials that are handed to Tune while it runs, in the order they are put in."""

    def __init__(
        self,
        group_size: int = 1,
        claim: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda spec: spec,
    ) -> None:
        """`claim` gives the trial as it is to run, None where it is not this driver's to run."""
        super().__init__()
        self._specs: deque[dict[str, Any]] = deque()
        self._claim = claim
        self.group_size = group_size
        self.closed = False

    def put(self, spec: dict[str, Any]) -> None:
        """One more trial."""
        self._specs.append(spec)

    def close(self) -> None:
        """No more: Tune ends when those that it has have ended."""
        self.closed = True

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune: the next trial, nothing for now, or the end."""
        closed = self.closed  # Looked at first: what was put in before is not lost.
        while self._specs:
            group = leading(list(self._specs), self.group_size)
            for _ in group:
                self._specs.popleft()
            ours = [spec for spec in map(self._claim, group) if spec is not None]
            if ours:
                return {"trial": ours[0]} if self.group_size == 1 else {"trials": shared(ours)}
        return Searcher.FINISHED if closed else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the run directories say how a trial ended."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: Tune's own state is never read again."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a pickle of its searcher, which nobody reads: an empty one."""
        return Feed, ()


class _Apart(ray._private.services.ConsolePopen):
    """A process of Ray's, in a process group of its own; it still ends with this process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"process_group": 0})


def start(
    address: str,
    n_trials: int,
    cpus: float,
    temp_dir: Path,
    environment: Mapping[str, str],
) -> None:
    """Start Ray on this machine (`local`), with room for so many trials, or join a cluster.

    A cluster is sent the packages that trials import; nothing is read from its disks.
    """
    global _watch
    # Whatever dies is told by us, in one line; Ray would print a paragraph into the display.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    # Off, Ray takes the loopback for this machine's address, and all its ports listen there alone.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = address != cluster.LOCAL
    # A signal to our whole process group, as a terminal or a batch system sends it, is for us: Ray
    # has to live on until the checkpoints are written.
    logging.getLogger("ray").setLevel(logging.ERROR)  # It misses the main thread's signals.
    setattr(ray._private.services, "ConsolePopen", _Apart)  # noqa: B010
    if address != cluster.LOCAL:
        runtime = {
            "env_vars": dict(environment),
            "py_modules": cluster.code(),
            "excludes": ["**/__pycache__"],
        }
        _watch = joined.join(address, runtime)
        return
    os.environ.update(environment)
    _be_lean(each_a_core=cpus == 1 and not gpus_here())
    here = ray._private.utils.get_num_cpus()
    room = math.ceil(max(cpus, min(here, n_trials * cpus)))
    try:
        ray.init(
            "local",
            num_cpus=room,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            _temp_dir=str(temp_dir),
        )
    except Exception as error:  # Ray raises nothing narrower where its half minute was too short
        raise joined.not_started(error) from None


def _be_lean(*, each_a_core: bool) -> None:
    """No parts of a local Ray that only look on, and trials' processes that start while Tune does.

    The autoscaler, the dashboard and the reader of logs are left out. Ray starts a process for each
    core ahead, and keeps those idle for 10 s (`QUIET`); Tune takes them only as long as it wants no
    environment of its own for its trials, who have ours. Where `each_a_core` all are wanted, and
    load what trials need meanwhile.
    """
    for part in ("start_monitor", "start_api_server", "start_log_monitor"):
        setattr(ray._private.node.Node, part, lambda *_, **__: None)
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    if each_a_core:
        os.environ.setdefault("RAY_preload_python_modules", "ray.tune,mpcc.trainer")


def on_one_gpu(function: Callable[[Any], Any], argument: Any) -> Any:
    """`function(argument)`, run in a process that has a GPU to itself."""
    return ray.get(ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(function).remote(argument))


def n_gpus() -> float:
    """GPUs that Ray has."""
    return float(ray.cluster_resources().get("GPU", 0))


def on_every_node(
    probe: Callable[[Any], str | None], argument: Any, seconds: float
) -> dict[str, str]:
    """Call `probe(argument)` on every machine that has cores for trials, all at once.

    Returns node's address -> what it says, where it does.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    said: dict[str, str] = {}
    calls = [
        (
            node["NodeManagerAddress"],
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(argument),
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    until = time.monotonic() + seconds
    for address, call in calls:
        try:
            answer = ray.get(call, timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.RayError as error:  # a timeout is one of them
            answer = " ".join(str(error).split())[:200] or type(error).__name__
        if answer is not None:
            said[address] = answer
    return said


def fit(
    groups: Sequence[list[dict[str, Any]]] | Feed,
    resources: Mapping[str, float],
    max_concurrent: int | None,
    storage: Path,
    reporter: Reporter,
) -> None:
    """Run the groups of trials, in this order as far as there is room; returns when all have ended.

    A group shares a process, and all groups are of one trial or all may be of several.
    """
    feed = groups if isinstance(groups, Feed) else None
    space: dict[str, Any] = {}
    if isinstance(groups, Feed):
        many = groups.group_size > 1
    else:
        many = any(len(group) > 1 for group in groups)
        values = list(groups) if many else [group[0] for group in groups]
        space = {"trials" if many else "trial": tune.grid_search(values)}
    tuner = tune.Tuner(
        tune.with_resources(GroupRunner if many else TrialRunner, dict(resources)),
        param_space=space,
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            search_alg=feed,
            num_samples=sys.maxsize if feed else 1,
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda trial: _specs(trial)[0]["key"],
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{os.getpid()}-{len(os.listdir(storage))}",
            storage_path=str(storage),
            verbose=0,
            callbacks=[reporter],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    tuner.fit()


def room_for(cpus: float, gpus: float) -> bool:
    """Whether some machine is large enough for a trial."""
    return any(
        node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
        for node in ray.nodes()
        if node["Alive"]
    )


def death() -> str | None:
    """How Ray has ended without being asked to, in words; None while it runs."""
    if _watch is not None:
        return _watch.problem()
    dead = dead_processes()
    return f"Ray has died ({', '.join(dead)} ended)" if dead else None


def dead_processes() -> list[str]:
    """Names of the parts of a local Ray that have ended without being asked to."""
    node = ray._private.worker._global_node
    if node is None:
        return []
    dead = [str(kind) for kind, _ in node.dead_processes()]
    return [kind for kind in dead if kind in ("raylet", "gcs_server")]


def kill() -> None:
    """End a local Ray at once, with the processes of its own that would look around for a while."""
    below = processes.descendants(os.getpid())
    node = ray._private.worker._global_node
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    processes.kill(below)


def shutdown() -> None:
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None
    ray.shutdown()


def make_temp_dir() -> Path:
    """A short path of our own for Ray's sockets and logs; those of dead drivers are removed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > 40:
        parent = Path("/tmp")  # A socket's path may have about 100 characters.
    for old in parent.glob(f"{TEMP_PREFIX}*-*"):
        pid = old.name.removeprefix(TEMP_PREFIX).split("-")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=parent))


def _specs(trial: Any) -> list[dict[str, Any]]:
    """The specifications of what Tune calls a trial: one of ours, or a group of them."""
    config = trial.config
    return list(config["trials"]) if "trials" in config else [config["trial"]]


def _cause(trial: Any) -> tuple[str | None, str]:
    """The cause of a trial that Ray gave up, None for a machine's fault; and the error's text."""
    try:
        # Tune's own `get_pickled_error` reads a copy that is not there yet.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # Ray's record may be torn by a full disk; any cause is then unknown
        return None, "Ray gave it up"
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return cause_of(cause), " ".join(str(cause).split())
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory: {text}", text
    if "node has died" in str(error):
        return None, "its machine was lost again and again"
    return f"killed: its process died {MAX_FAILURES + 1} times", text
