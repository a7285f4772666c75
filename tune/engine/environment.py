"""All environment variables set for Ray and Tune. Ray reads most of them when it is imported.

Head, driver and workers of a local Ray see the same values. LOCAL is applied only to a Ray that we
start; a cluster keeps its own values, apart from RAY_AUTH_MODE.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune.engine.spec import Settings

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Nothing is sent to Ray's makers.
    "RAY_DEDUP_LOGS": "1",  # Without it the next one has no effect.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints nothing into the display when a worker dies.
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune prints no banner.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # The run directories hold what those would write.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `tune.signals` has handlers of its own.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # Nobody reads Tune's own state of a sweep.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # One by one, a second each, would leave cores idle.
    "TUNE_WARN_THRESHOLD_S": "30",  # No warnings that the machine is busy: it should be.
}
LOCAL = {
    "RAY_AUTH_MODE": "token",  # Other users of this machine cannot run code as us.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Loopback sockets: unreachable from other machines.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # A worker without a GPU may still count them.
    "RAY_prestart_worker_first_driver": "0",  # Tune does not use workers started ahead.
}
CLUSTER = {
    "RAY_gcs_server_request_timeout_seconds": "15",  # For `ray.init` to find a node here.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # `ray job submit` may have set trials' variables too.
}
DROPPED = ("TUNE_RESULT_DIR", "RAY_CLIENT_MODE", "RAY_LOG_TO_STDERR")
"""Variables of other projects: the first makes Tune raise, the others change the driver."""
DROPPED_LOCALLY = (
    *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_TOKEN"),  # of another cluster
    *("RAY_REDIS_ADDRESS", "RAY_START_HOOK", "RAY_OVERRIDE_RESOURCES"),  # for another head
)
PASSED_ON = ("MPCC_CACHE_DIR", "MPCC_INCEPTION_WEIGHTS", "MPCC_SCRATCH_DIR")
CREDENTIALS = ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS")
"""Prefixes of the variables that workers need to reach a remote; roles of the nodes are safer."""


def apply(*, local: bool) -> None:
    """Set the variables of this process and of those that it starts, before Ray is imported."""
    for name in DROPPED + (DROPPED_LOCALLY if local else ()):
        os.environ.pop(name, None)
    os.environ.update(ALWAYS | (LOCAL if local else CLUSTER))
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Else nodes that use a token refuse us.


def worker_variables(settings: Settings, threads: int) -> Mapping[str, str]:
    """Return the variables of every trial's process."""
    from mpcc.runs.code_version import VERSION_VARIABLE, code_version
    from tune.store.remote import is_address

    found = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    found |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if settings.local:  # The code lies here; a cluster's nodes are sent it.
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        return found | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if settings.remote or is_address(settings.data_dir):
        found |= {name: v for name, v in os.environ.items() if name.startswith(CREDENTIALS)}
    return found | {VERSION_VARIABLE: code_version()}
