"""Faults inside the processes of a sweep, for `benchmarks/faults.py`.

Python reads this file at its start where its folder is on PYTHONPATH. MPCC_FAULTS, a JSON list:
    {"kind": "nan" | "exception" | "out of memory", "trial": KEY, "iteration": N}
    {"kind": "full disk", "trial": KEY, "file": NAME, "ballast": FILE, "done": FILE}
    {"kind": "signal", "number": N, "import": MODULE}    to the driver, when it loads this module
The program itself knows nothing of them.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

ORDERS = json.loads(os.environ.get("MPCC_FAULTS") or "[]")


def disturb_training(module):
    """Wrap `train_step`: the fault comes before the iteration that is named."""
    orders = {order["trial"]: order for order in ORDERS if "iteration" in order}
    original = module.train_step

    def train_step(state, *rest):
        order = orders.get(state.config.trial_key)
        if order and state.iteration == order["iteration"]:
            if order["kind"] == "exception":
                raise RuntimeError("a fault that was injected")
            import torch

            if order["kind"] == "out of memory":
                torch.empty(2**50, dtype=torch.uint8)
            for parameter in state.generator.parameters():
                parameter.data.fill_(float("nan"))
        return original(state, *rest)

    module.train_step = train_step


def disturb_writing(module):
    """Wrap what writes files: the disk fills up just before the one that is named, once."""
    orders = {(o["trial"], o["file"]): o for o in ORDERS if "file" in o}

    def fill(path, name):
        order = orders.get((Path(path).name, name))
        if order and not Path(order["done"]).exists():
            Path(order["done"]).touch()
            with open(order["ballast"], "ab", buffering=0) as ballast:
                try:
                    while ballast.write(bytes(4096)) == 4096:
                        pass
                except OSError:
                    pass

    def wrap(name, of_path, of_name):
        original = getattr(module, name)

        def write(path, *rest):
            fill(of_path(Path(path)), of_name(Path(path)))
            return original(path, *rest)

        setattr(module, name, write)

    if (
        module.__name__ == "mpcc.runs.files"
    ):  # Before any other module takes the function from there.
        wrap("write_bytes", lambda path: path.parent, lambda path: path.name.removesuffix(".new"))
    else:
        wrap("append_metrics", lambda path: path, lambda path: module.METRICS)


PATCHES = {
    "mpcc.training.algorithm": disturb_training,
    "mpcc.runs.files": disturb_writing,
    "mpcc.runs.run_dir": disturb_writing,
}


DRIVERS = ("ablation.py", "search.py")
SIGNALS = {order["import"]: order["number"] for order in ORDERS if order["kind"] == "signal"}


class Finder:
    """Hands a module to its patch as soon as it has been imported."""

    def find_spec(self, name, path, target=None):
        if name in SIGNALS and Path(sys.argv[0]).name in DRIVERS:
            os.kill(os.getpid(), SIGNALS.pop(name))
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


if ORDERS:
    sys.meta_path.insert(0, Finder())
