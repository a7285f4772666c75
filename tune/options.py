"""The options that `tune/ablation.py` and `tune/search.py` share, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from mpcc import config as configs
from mpcc.config import Config
from mpcc.evaluation import inception
from mpcc.options import path, usable
from mpcc.runs.code_version import code_fingerprints
from mpcc.shell import shown
from tune.command import number, option
from tune.display import log
from tune.engine.spec import LOCAL, Settings
from tune.plan.cells import Trial
from tune.plan.plan import Plan, PlanError, check_same_base, check_same_code, differences, new_plan
from tune.plan.state import ENDED
from tune.store import same_code
from tune.store.folder import Store
from tune.store.remote import is_address, refuse_credentials

if TYPE_CHECKING:
    from tune.tracking.model import LogModels

DEFAULT_PRESET = "digits"
COUNT = number(int, 1, 10**9)
RETRY = ("failed", "diverged", "failed,diverged", "diverged,failed")


def _gpus(text: str) -> float:
    value = number(float, 0, 64)(text)
    if value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(f"above 1 must be a whole number, got '{text}'")
    return value


def _trials_per_gpu(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else number(int, 1, 64)(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    known = host and "/" not in host and port.isdecimal() and 0 < int(port) < 65536
    if text in (LOCAL, "auto") or known:
        return text
    raise argparse.ArgumentTypeError(f"must be local, auto or HOST:PORT, got '{text}'")


def _data_dir(text: str) -> Path | str:
    return text if is_address(text) else path(text)


_base = partial(option, "base settings")
_where = partial(option, "where")
_instead = partial(option, "instead of running")


@dataclass(frozen=True)
class Options:
    """The options of both commands."""

    EXCLUDED: ClassVar = {
        "dry_run": ("prints what would run, and stops", "status sync release"),
        "status": ("prints, and stops", "sync release"),
        "sync": ("delivers, and stops", "release"),
        "trials_per_gpu": ("says what part of a GPU each has", "gpus_per_trial"),
    }
    """Option -> what it does, and the options that therefore cannot be given with it."""
    preset: str | None = _base(
        f"settings to start from: {', '.join(configs.PRESETS)} (default {DEFAULT_PRESET})",
        "NAME",
        names=("--preset", "--dataset"),
    )
    variant: str | None = _base("named change of them: " + ", ".join(configs.VARIANTS), "NAME")
    changes: Sequence[str] = _base(
        "change any setting",
        "FIELD=VALUE",
        names=("--set",),
        nargs="+",
        action="extend",
        default=(),
    )
    iterations: str | None = _base("iterations of every trial (default: the preset's)", "N")
    retry: str | None = _base(
        "rerun trials in these states: failed, diverged or failed,diverged", "STATES", choices=RETRY
    )
    accept_changed_code: bool = _base(
        "go on in a folder that was written by other code; finished trials are trained anew, one "
        "of each kind to its first evaluation, and where the numbers are equal tables count both "
        "codes as one"
    )
    out: Path | None = _where("where everything is written", "DIR", type=path)
    data_dir: Path | str | None = _where(
        "the data sets' files ($MPCC_DATA_DIR): a folder (on a cluster: the same path on every "
        "node), or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX",
        "DIR|URI",
        type=_data_dir,
    )
    download: bool = _where("get the data sets that are missing")
    inception_weights: Path | None = _where(
        "weights of pytorch-fid's Inception, for IS, FID and KID ($MPCC_INCEPTION_WEIGHTS)",
        "FILE",
        type=path,
    )
    tracking_uri: str | None = _where("MLflow (default: a SQLite file in the out folder)", "URI")
    log_models: LogModels = _where(
        "models in MLflow: of the best cell by I(x; y) once all trials have ended (best, the "
        "default), of each trial that is done (always), or none (never)",
        "WHICH",
        default="best",
        choices=("best", "always", "never"),
    )
    address: str = _where("a Ray cluster, or auto", "HOST:PORT", default=LOCAL, type=_address)
    storage: str | None = _where(
        "where trials keep their files on a cluster without a shared disk: a folder, "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX (default: in the out folder)",
        "DIR|URI",
    )
    cpus_per_trial: float | None = _where(
        "cores of a trial (default: its cpu_threads)", "X", type=number(float, 0.01, 1024)
    )
    gpus_per_trial: float | None = _where(
        "GPU share of a trial (default 0.25 if there are any)", "X", type=_gpus
    )
    trials_per_gpu: int | Literal["auto"] | None = _where(
        "run N trials in one process per GPU; auto measures the fastest N. Results do not change. "
        "Without a GPU: at most N processes",
        "N",
        type=_trials_per_gpu,
    )
    max_concurrent: int | None = _where("at most N trials at a time", "N", type=COUNT)
    checkpoint_seconds: float = _where(
        "seconds between checkpoints (default 60)", "S", default=60.0, type=number(float, 0, 1e6)
    )
    checkpoint_iterations: int | None = _where(
        "also write a checkpoint N iterations after the last one", "N", type=COUNT
    )
    dry_run: bool = _instead(
        "print the cells, trials, keys, sizes and the time they take, and stop; without a finished "
        "trial to go by, a short run measures the time (about a minute)"
    )
    pilot: bool = _instead(argparse.SUPPRESS)
    status: bool = _instead("print the state of every cell, and stop")
    sync: bool = _instead("deliver to MLflow what it lacks, and stop")
    release: bool = _instead(
        "print which driver holds the folder, release its lock, and stop; for a driver whose "
        "machine is lost"
    )

    def __post_init__(self) -> None:
        if self.pilot:
            raise ValueError("--pilot is no more: --dry-run measures the time where it must")
        given = {one.name for one in fields(self) if getattr(self, one.name) != one.default}
        for name, (does, others) in self.EXCLUDED.items():
            for other in others.split():
                if {name, other} <= given:
                    one, two = (f"--{option.replace('_', '-')}" for option in (name, other))
                    raise ValueError(f"{one} and {two} exclude each other: {one} {does}")


def changes(options: Options) -> dict[str, object]:
    """The changes that --variant, --set and --iterations make, by full field names."""
    found: dict[str, object] = {}
    for text in options.changes:
        name, value = configs.parse_assignment(text)
        if name in found:
            raise ValueError(f"--set {name} is given twice")
        found[name] = value
    if options.iterations is not None:
        if "iterations" in found:
            raise ValueError("the iterations are given by both --iterations and --set")
        found["iterations"] = configs.parse_value("iterations", options.iterations)
    if "seed" in found:
        raise ValueError(f"--set seed: give the seeds as --seeds {found['seed']},")
    return (configs.variant(options.variant) if options.variant else {}) | found


def begun(
    options: Options, store: Store, old: Plan | None, preset: str, base: Config, *, given: bool
) -> Plan:
    """The folder's plan (`old`), or a new one with these base settings.

    given: whether the user typed base settings; if so, PlanError if they differ from the folder's.
    """
    if old is None:
        return new_plan(preset, base)
    if given:  # Evaluation settings that are not given stay as they are.
        unsaid = (name for name in configs.EVALUATION if name not in changes(options))
        base = base.override(**{name: getattr(old.base, name) for name in unsaid})
        check_same_base(store.out, old, base)
    if options.accept_changed_code:
        return replace(old, code_files=code_fingerprints())
    return old


def check_code(options: Options, store: Store, plan: Plan, trains: Callable[[], bool]) -> None:
    """PlanError if the code has changed since the folder was begun and this command trains.

    trains: tells from the records whether it trains; called only if the code has changed.
    """
    if options.status or options.sync:
        return
    try:
        check_same_code(store.out, plan)
    except PlanError:
        if options.retry or trains():
            raise


def with_equal_code(
    options: Options, store: Store, plan: Plan, trials: Sequence[Trial], *, more: bool = False
) -> Plan:
    """Call `same_code.with_equal_code` if --accept-changed-code is given and a trial is still to
    run on this machine. more: a search will suggest further trials."""
    where = settings(options, store)
    if not options.accept_changed_code or options.sync or not where.local:
        return plan
    ended = all(status.state in ENDED for status in store.statuses(trials).values())
    if (ended and not more) or isinstance(where.data_dir, str):
        return plan
    return same_code.with_equal_code(store, plan, where.data_dir, log)


def print_kept_settings(store: Store, plan: Plan, preset: str, base: Config) -> None:
    """Print the settings that the folder keeps although the preset's are different."""
    others = differences(plan, base)
    if others:
        print(
            f"{shown(store.out)} goes on with the settings that it was begun with, not those of "
            f"preset {preset}: {'; '.join(others.values())}"
        )


def settings(options: Options, store: Store) -> Settings:
    """Where and how trials run, from the options and the environment."""
    from tune.tracking.uri import checked_uri, default_uri

    data_dir = options.data_dir or os.environ.get("MPCC_DATA_DIR") or None
    if is_address(data_dir):
        refuse_credentials("--data-dir or MPCC_DATA_DIR", str(data_dir))
    elif data_dir is not None:
        try:
            data_dir = usable(data_dir).resolve()
        except ValueError as error:
            raise ValueError(f"MPCC_DATA_DIR: {error}") from None
    uri = options.tracking_uri
    return Settings(
        out=store.out,
        uri=default_uri(store.out) if uri is None else checked_uri(uri),
        log_models=options.log_models,
        data_dir=data_dir,
        address=options.address,
        cpus=options.cpus_per_trial,
        gpus=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        trials_per_gpu=options.trials_per_gpu,
        checkpoint_seconds=options.checkpoint_seconds,
        checkpoint_iterations=options.checkpoint_iterations,
        remote=None if store.remote is None else store.remote.address,
    )


def use_inception_weights(options: Options) -> None:
    """Make this process and its children use the weights of --inception-weights, if given."""
    if options.inception_weights is not None:
        inception.find_weights(options.inception_weights)
        os.environ[inception.WEIGHTS_VARIABLE] = str(options.inception_weights.resolve())
