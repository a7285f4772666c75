"""Environment variables of Ray and Tune, set before either is imported.

The head, the driver and all worker processes of a local Ray see the same values.
"""

from __future__ import annotations

import os

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_THRESHOLD_S": "30",
}
LOCAL = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
}
DROPPED = ("TUNE_RESULT_DIR",)
DROPPED_LOCALLY = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR")


def apply(*, local: bool) -> None:
    """Set the variables for this process and those that it starts."""
    for name in DROPPED + (DROPPED_LOCALLY if local else ()):
        os.environ.pop(name, None)
    os.environ.update(ALWAYS | (LOCAL if local else {}))
