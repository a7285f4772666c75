"""One trial under Ray Tune: a dict in, a run directory out.

The run directory is the record; what `step` returns to Ray only moves the display. Ray starts a
trial again when its process dies, and the trainer goes on from its own checkpoint.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from ray import tune

from mpcc import run_dir
from mpcc.config import Config, from_dict
from tune import ledger, node_data
from tune.lock import process_lives
from tune.place import place_of

OUT_OF_MEMORY = "out of memory"
ATTEMPTS = "attempts"


class TrialRunner(tune.Trainable):
    """Runs the trial of the parameter `trial`, see `tune.sweep.trial_spec`; used again."""

    def setup(self, config: dict[str, Any]) -> None:
        self._spec: dict[str, Any] = config["trial"]
        self._config: Config = from_dict(self._spec["config"])
        self._place = place_of(self._spec)
        self._path = self._place.path
        self._progress: Iterator[Any] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self._place.leave()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train for about a second; the returned `state` is running, stopped or how it ended."""
        if self._orphaned():
            os._exit(1)  # Another driver may be at this trial by now: write nothing more.
        if self._place.stop_asked():
            self._close()
            self._place.finish()
            return self._report(ledger.STOPPED)
        try:
            if self._progress is None:
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

    def cleanup(self) -> None:
        self._close()
        self._place.leave()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trainer's checkpoint in the run directory is the only one."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, for the same reason."""

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
        return {
            "trial_key": self._spec["key"],
            "state": state,
            "iteration": iteration,
            "accuracy": (metrics or {}).get("acc_majority"),
            "evaluated": metrics is not None,
            "done": state != ledger.RUNNING,
        }

    def _fault(self, error: Exception) -> dict[str, Any]:
        """Record the trial's own fault; raise what another try can mend, for Ray to retry."""
        cause = cause_of(error)
        if cause is None:
            raise error
        if cause.startswith(OUT_OF_MEMORY) and not self._spec["alone"]:
            return self._report(OUT_OF_MEMORY)
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
                return True
        return False

    def _orphaned(self) -> bool:
        """Whether the driver of this trial, on this machine, is gone."""
        host, pid = self._spec["driver"]
        return host == socket.gethostname() and not process_lives(pid)

    def _back_off(self) -> None:
        """Wait before another try in the same sweep: 2, 4, 8 … seconds, and no longer than 30."""
        session = self._spec["session"]
        try:
            with (self._path / ATTEMPTS).open("a+") as attempts:
                attempts.seek(0)
                tries = attempts.read().split().count(session)
                attempts.write(f"{session}\n")
        except (OSError, UnicodeError):
            return
        until = time.monotonic() + (min(30.0, 2.0**tries) if tries else 0.0)
        while time.monotonic() < until and not self._place.stop_asked():
            time.sleep(0.1)


def cause_of(error: BaseException) -> str | None:
    """Why a trial failed, beginning with one of the ledger's words; None for a machine's fault.

    A full disk or a broken connection is not the trial's fault: another try may succeed.
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
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, (RuntimeError, OSError)) and any(p in text for p in phrases))
    )


def _where(error: BaseException) -> str:
    """` (file.py:12)`: where the error came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
