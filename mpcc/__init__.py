"""MPCC: clusters images without labels and draws new ones.

    model = mpcc.load("runs/digits", cell="best")   # the trained model of a trial
    mpcc.MPCC(n_clusters=10).fit(X).predict(X)      # a scikit-learn estimator

The names below are imported when first used, so that `import mpcc` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcc.config import Config
    from mpcc.use.estimator import MPCC
    from mpcc.use.load import load
    from mpcc.use.model import Model

_HOMES = {
    "Config": "mpcc.config",
    "MPCC": "mpcc.use.estimator",
    "Model": "mpcc.use.model",
    "load": "mpcc.use.load",
}

__all__ = ["MPCC", "Config", "Model", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mpcc' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
