"""Trials under Ray Tune: a dict in, a run directory out.

The run directory is the record; what `step` returns to Ray only moves the display. Ray starts a
trial again when its process dies, and the trainer goes on from its own checkpoint.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

from ray import tune

from mpcc import run_dir
from mpcc.config import Config, from_dict
from tune import cluster, ledger, node_data
from tune.lock import process_lives
from tune.place import place_of

OUT_OF_MEMORY = "out of memory"
DEVICE_FAULT = "device fault"
"""The GPU's context is lost, and with it every trial of the process, whichever began it."""
ATTEMPTS = "attempts"


class Course:
    """One trial on its way through this process, a step at a time."""

    _context_lost = False
    """Whether a fault of the GPU has spoilt the process for all trials."""

    def begin(self, spec: dict[str, Any]) -> None:
        """Take a trial in hand, see `tune.settings.trial_spec`; nothing is read or written yet."""
        self._spec = spec
        self._config: Config = from_dict(spec["config"])
        self._place = place_of(spec)
        self._path = self._place.path
        self._progress: Iterator[Any] | None = None

    def end(self) -> None:
        """Let go of the trial, wherever it stands."""
        self._close()
        self._place.leave()

    def step(self) -> dict[str, Any]:
        """Train for about a second; the returned `state` is running, stopped or how it ended."""
        if self._progress is None and self._taken():
            return self._report(ledger.STOPPED)  # It runs elsewhere: nothing here is ours.
        if self._orphaned():
            os._exit(1)  # Another driver may be at this trial by now: write nothing more.
        if self._place.stop_asked():
            self._close()
            self._place.finish()
            return self._report(ledger.STOPPED)
        try:
            if self._progress is None:
                dataset = self._config.dataset
                cluster.check_here(self._spec.get("needed"), dataset, self._place.stop_asked)
                self._place.fetch()
                run_dir.open_run(self._path, self._config)
                self._back_off()
                if self._pruned():
                    return self._report(ledger.PRUNED)
                self._progress = self._start()
            progress = next(self._progress)
            self._place.send()
        except Exception as error:  # the boundary of a trial: recorded, or given to Ray to retry
            self._close()
            return self._fault(error)
        if progress.metrics is not None and progress.state == ledger.RUNNING and self._pruned():
            return self._report(ledger.PRUNED, progress.iteration, progress.metrics)
        report = self._report(progress.state, progress.iteration, progress.metrics)
        if report["done"]:
            self._close()
            (self._path / ATTEMPTS).unlink(missing_ok=True)
            (self._path / run_dir.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
            self._place.finish()
        return report

    def _start(self) -> Iterator[Any]:
        import torch

        from mpcc.trainer import train

        torch.set_num_threads(self._config.cpu_threads)
        return train(
            self._config,
            self._path,
            data_dir=node_data.folder_here(self._spec["data_dir"], self._config.dataset),
            device=self._spec["device"],
            checkpoint_seconds=self._spec["checkpoint_seconds"],
            checkpoint_iterations=self._spec["checkpoint_iterations"],
            fingerprint=self._spec["fingerprint"],
        )

    def _close(self) -> None:
        """End the training in hand; the trainer then writes a checkpoint."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.close()  # type: ignore[attr-defined]

    def _report(
        self, state: str, iteration: int | None = None, metrics: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return report_of(self._spec["key"], state, iteration, metrics)

    def _fault(self, error: Exception) -> dict[str, Any]:
        """Record the trial's own fault; raise what another try can mend, for Ray to retry."""
        cause = cause_of(error)
        self._context_lost |= is_device_fault(error)
        if cause is None:
            raise error
        if not self._spec["alone"]:
            if cause.startswith(OUT_OF_MEMORY):
                return self._report(OUT_OF_MEMORY)
            if self._spec["shares_process"] and is_device_fault(error):
                return self._report(DEVICE_FAULT)
        ledger.record_failed(self._path, self._config, cause)
        self._place.finish()
        return self._report(ledger.FAILED)

    def _pruned(self) -> bool:
        """Whether an evaluation is worse than its search allows; the trial's end is then written.

        All evaluations are looked at, so a trial that was killed after one is pruned all the same.
        """
        limit = self._spec.get("limit")
        if not limit or run_dir.read_result(self._path) is not None:
            return False
        sign = 1.0 if limit["higher"] else -1.0
        for row in run_dir.read_metrics(self._path):
            bound = limit["at"].get(str(row["iteration"]))
            value = float(row.get(limit["metric"], "nan"))
            if bound is not None and not sign * value >= sign * bound:
                self._close()
                cause = f"{limit['metric']} {value:.4g} at {row['iteration']}, {limit['why']}"
                ledger.record_end(self._path, self._config, ledger.PRUNED, f"{cause} {bound:.4g}")
                self._place.finish()
                return True
        return False

    def _orphaned(self) -> bool:
        """Whether the driver of this trial, on this machine, is gone, or another has taken it."""
        host, pid = self._spec["driver"]
        return self._taken() or (host == socket.gethostname() and not process_lives(pid))

    def _taken(self) -> bool:
        """Whether another driver of the search runs this trial, having given ours up for dead."""
        file = self._spec.get("taken_file")
        return file is not None and os.path.exists(file)

    def _back_off(self) -> None:
        """Wait before another try in the same sweep: 2 seconds, then 4 (`engine.MAX_FAILURES`)."""
        session = self._spec["session"]
        try:
            with (self._path / ATTEMPTS).open("a+") as attempts:
                attempts.seek(0)
                tries = attempts.read().split().count(session)
                attempts.write(f"{session}\n")
        except (OSError, UnicodeError):
            return
        until = time.monotonic() + (2.0**tries if tries else 0.0)
        while time.monotonic() < until and not self._place.stop_asked():
            time.sleep(0.1)


def report_of(
    key: str, state: str, iteration: int | None = None, metrics: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the driver is told of a trial."""
    return {
        "trial_key": key,
        "state": state,
        "iteration": iteration,
        "accuracy": (metrics or {}).get("acc_majority"),
        "evaluated": metrics is not None,
        "done": state != ledger.RUNNING,
    }


class _WithoutCheckpoints(tune.Trainable):
    """What Tune keeps no checkpoints of: the trainer's own, in the run directory, are the only
    ones."""

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class TrialRunner(Course, _WithoutCheckpoints):
    """A process of Ray's that runs the trial of the parameter `trial`; used again for others."""

    def setup(self, config: dict[str, Any]) -> None:
        self.begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._context_lost:
            os._exit(1)  # Ray starts a new process for the trial that comes next.
        self.end()
        free_gpu_memory()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self.end()


class GroupRunner(_WithoutCheckpoints):
    """A process of Ray's that runs the trials of the parameter `trials` side by side on one device.

    Each step returns the news of one of them. What ends one trial leaves the others alone; a fault
    of the machine ends the process, and Ray takes all of them up again from their checkpoints.
    """

    def setup(self, config: dict[str, Any]) -> None:
        from mpcc.together import side_by_side

        self._courses = {spec["key"]: Course() for spec in config["trials"]}
        for spec in config["trials"]:
            self._courses[spec["key"]].begin(spec)
        self._open = set(self._courses)
        runs = {key: _reports(course) for key, course in self._courses.items()}
        self._news = side_by_side(runs, config["trials"][0]["device"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if any(course._context_lost for course in self._courses.values()):
            os._exit(1)  # Ray starts a new process for the trials that come next.
        self.cleanup()
        free_gpu_memory()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        key, report = next(self._news)
        if isinstance(report, Exception):
            self._news.close()
            raise report
        if report["done"]:
            self._open.discard(key)
        return {"report": report, "done": not self._open}

    def cleanup(self) -> None:
        self._news.close()
        for course in self._courses.values():
            course.end()


def _reports(course: Course) -> Generator[dict[str, Any]]:
    """Every report of a trial; closed early, it lets the trial write a checkpoint."""
    try:
        done = False
        while not done:
            report = course.step()
            done = report["done"]
            yield report
    finally:
        course._close()


def cause_of(error: BaseException) -> str | None:
    """Why a trial failed, beginning with one of the ledger's words; None for a machine's fault.

    A full disk or a broken connection is not the trial's fault: another try may succeed. Nor is
    MLflow ever a cause: trials do not speak to it, and what it lacks is delivered later.
    """
    text = " ".join(str(error).split())[:500] or type(error).__name__
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {text}"
    if type(error).__name__ == "DataError" or isinstance(error, run_dir.RunDirError):
        return f"data: {text}"
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, None):
        return None
    where = _where(error)
    return f"code: {type(error).__name__}: {text}{where}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU; known without importing torch."""
    text = str(error).lower()
    phrases = [
        *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate"),
        "cublas_status_alloc_failed",  # cuBLAS's word for it
    ]
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, (RuntimeError, OSError)) and any(p in text for p in phrases))
    )


def is_device_fault(error: BaseException) -> bool:
    """Whether a GPU's context is lost: whatever runs in this process meets the same error."""
    return not is_out_of_memory(error) and (
        type(error).__name__ == "AcceleratorError"
        or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    )


def free_gpu_memory() -> None:
    """Give the GPU what the last trial has left in torch's store, for whoever is beside us."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _where(error: BaseException) -> str:
    """` (file.py:12)`: where the error came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
