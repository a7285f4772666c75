"""Where a sweep runs: variables, users, networks, namesakes; and folders of one's own images."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fault_lab import SETTINGS, Lab, Outcome
from benchmarks.fault_tools import finish, kill, must_come, write_namesakes

NOBODY = 65534
AS_ANOTHER_USER = (
    *("setpriv", f"--reuid={NOBODY}", "--clear-groups"),
    # To read this Python wherever it is installed; nothing more may be written.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
WITHOUT_IPV6 = (
    *("unshare", "--net", "sh", "-c"),
    'ip link set lo up && sysctl -qw net.ipv6.conf.all.disable_ipv6=1 && exec "$@"',
    "sh",
)
"""The loopback is the only device, as on a machine without a network."""
WITHOUT_SHARED_MEMORY = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"',
    "sh",
)
UNKNOWN_HOST = ("unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh")
N_IMAGES = 300
LABELS = ("birds", "boats", "houses", "trees")


def beside_namesakes(lab: Lab, outcome: Outcome) -> None:
    """The directory of the start has a `tune/`, a `types.py` and others that must not be taken."""
    sweep = lab.sweep(parent=lab.folder / f"namesakes-{lab.count}")
    write_namesakes(sweep.out.parent)
    sweep.run()
    lab.resume(sweep, outcome)


def in_environment(lab: Lab, outcome: Outcome, variables: Mapping[str, str]) -> None:
    """Variables that others left in the environment change nothing."""
    sweep = lab.sweep()
    sweep.run(environment=variables)
    lab.resume(sweep, outcome)


def with_home(lab: Lab, outcome: Outcome, kind: str) -> None:
    """HOME is read-only, missing, or `/`."""
    home = lab.folder / f"home-{kind}"
    if kind == "read-only":
        home.mkdir(exist_ok=True)
        home.chmod(0o500)
    in_environment(lab, outcome, {"HOME": "/" if kind == "slash" else str(home)})


def under(lab: Lab, outcome: Outcome, wrapper: tuple[str, ...]) -> None:
    """The sweep runs under another program, which changes its network or its host's name."""
    if possible(wrapper, outcome):
        sweep = replace(lab.sweep(), wrapper=wrapper)
        sweep.run()
        lab.resume(sweep, outcome)


def two_users(lab: Lab, outcome: Outcome) -> None:
    """Two users start a sweep in the same second, one of them without a home; both get theirs."""
    if not possible(AS_ANOTHER_USER, outcome):
        return
    parent = lab.folder / "of-another-user"
    parent.mkdir(exist_ok=True)
    os.chown(parent, NOBODY, -1)
    theirs, ours = replace(lab.sweep(parent=parent), wrapper=AS_ANOTHER_USER), lab.sweep()
    processes = [theirs.start({"HOME": "/nonexistent"}), ours.start()]
    for process in processes:
        finish(process)
    for sweep in (theirs, ours):
        lab.resume(sweep, outcome)


def possible(wrapper: tuple[str, ...], outcome: Outcome) -> bool:
    """Whether commands can be run like this here; says so where they cannot."""
    try:
        works = subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    if not works:
        outcome.not_tried = f"`{' '.join(wrapper[:2])}` needs root"
    return works


def own_images(lab: Lab, outcome: Outcome) -> None:
    """The driver of a sweep over a folder of mixed images is killed."""
    folder = lab.folder / "images"
    write_images(folder)
    images = ("--set", "dataset=folder", "n_clusters=4", "--data-dir", str(folder))
    argv = (*SETTINGS, *images, "--grid", "esteps=1,2", "--checkpoint-seconds", "0")
    own = Lab(lab.folder / "own-images", lab.seed, argv)
    try:
        sweep = own.sweep()
        process = sweep.start()
        must_come(process, lambda: sweep.has_come_to(1))
        kill([process.pid])
        process.communicate()
        own.resume(sweep, outcome)
    finally:
        own.sessions.end()


def write_images(folder: Path, n: int = N_IMAGES) -> None:
    """Write images of four labels as phones, scanners and drawing programs leave them.

    Of each label a colour of its own with noise, and in turn: a JPEG turned by EXIF, a grey TIFF of
    16 bits, a transparent PNG, a GIF with a palette, a WebP, a JPEG in capitals; and beside them
    what macOS and Windows leave.
    """
    random = np.random.default_rng(0)
    for i in range(n):
        place = folder / LABELS[i % 4]
        place.mkdir(parents=True, exist_ok=True)
        size = tuple(int(side) for side in random.integers(20, 60, 2))
        level = np.array([40, 100, 160, 220])[i % 4]
        pixels = (level + random.integers(-25, 25, (*size, 3))).astype(np.uint8)
        image, kind = Image.fromarray(pixels), i // 4 % 6
        if kind == 0:
            turned = Image.Exif()
            turned[0x0112] = 6  # Orientation: a quarter turn.
            image.save(place / f"IMG_{i:04}.jpg", exif=turned)
        elif kind == 1:
            grey = pixels[..., 0].astype(np.uint16) * 257
            Image.fromarray(grey).save(place / f"scan {i}.tiff")
        elif kind == 2:
            image.putalpha(200)
            image.save(place / f"drawing-{i}.png")
        elif kind == 3:
            image.quantize(64).save(place / f"{i}.gif")
        elif kind == 4:
            image.save(place / f"{i}.webp", lossless=True)
        else:
            image.save(place / f"DSC{i:05}.JPG")
    (folder / "__MACOSX").mkdir(exist_ok=True)
    for name in (".DS_Store", f"{LABELS[0]}/._IMG_0000.jpg", f"{LABELS[1]}/Thumbs.db"):
        (folder / name).write_bytes(b"not an image")
