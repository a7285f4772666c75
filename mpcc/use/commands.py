"""`python -m mpcc cluster|sample|reconstruct RUN ...`: use a trained model from a shell."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcc.data.folder import as_text
from mpcc.options import OneLineParser, checked_device, path
from mpcc.shell import message_of, own_name

if TYPE_CHECKING:
    from mpcc.use.model import Model

EXAMPLES = """examples:
  python -m mpcc cluster runs/digits --cell best --images DIR --out clusters.csv
  python -m mpcc sample runs/one --cluster 3 -n 64 --out sheet.png
  python -m mpcc reconstruct runs/one --images DIR --out sheet.png

RUN is the folder of a trial, or of a sweep with --cell, or in MLflow, which MLFLOW_TRACKING_URI
names, runs:/ID or models:/NAME/VERSION. --out of sample and reconstruct is one sheet (NAME.png) or
a folder of single images.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    p = OneLineParser(
        prog=own_name(),
        description="Use what was trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    for name, what in (
        ("cluster", "the cluster of every image, as CSV"),
        ("sample", "new images of a cluster, or of all"),
        ("reconstruct", "images beside what the model makes of them"),
    ):
        one = commands.add_parser(name, help=what, description=what)
        one.add_argument("run", metavar="RUN", type=path, help="a trial, a sweep, or runs:/ID")
        one.add_argument(
            "--cell", help="of a sweep: best (by I(x; y)), settings like esteps=4, or a cell's key"
        )
        one.add_argument(
            "--seed", type=int, default=0, help="seed of the trial within the cell (default: 0)"
        )
        one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        one.add_argument("--out", required=True, type=path, help="file or folder to write")
        if name == "sample":
            one.add_argument("--cluster", type=int, help="draw this one (default: from p(y))")
            one.add_argument("-n", type=int, default=64, help="number of images (default: 64)")
            one.add_argument("--draw-seed", type=int, default=0, help="of the drawing (default: 0)")
            continue
        one.add_argument(
            "--images", required=True, nargs="+", type=path, metavar="DIR", help="folder, or files"
        )
        one.add_argument(
            "--skip-damaged", action="store_true", help="leave damaged files out, and count them"
        )
        one.add_argument(
            "--inverted",
            choices=("yes", "no"),
            help="yes: invert the images; no: take them as they are (default: refuse if inverted)",
        )
    return p


def main(argv: list[str]) -> int:
    """Run a command; returns the exit status: 0 done, 2 bad input or files, 130 interrupted."""
    options = parser().parse_args(argv)
    # MLflow would retry a missing server for minutes, and log to stderr.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    command: Callable[[Model, argparse.Namespace], str] = COMMANDS[options.command]
    try:
        checked_device(options.device)
        _check_out(options.out, options.command)
        from mpcc.use.load import load

        model = load(options.run, options.cell, seed=options.seed, device=options.device)
        print(model, file=sys.stderr)
        print(command(model, options), file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"{own_name()} {options.command}: {message_of(error)}", file=sys.stderr)
        return 2
    return 0


def _check_out(out: Path, command: str) -> None:
    """ValueError if --out cannot be written, or is a device or pipe that would be replaced."""
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise ValueError(f"--out {out} is a device or a pipe and would be replaced; name a file")
    if command == "cluster" and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file, such as clusters.csv")
    if (command == "cluster" or _is_sheet(out)) and not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")


def cluster(model: Model, options: argparse.Namespace) -> str:
    """Write file, cluster, probability and second cluster of every image as CSV; returns a note."""
    from mpcc.data.folder import counted
    from mpcc.runs.clusters import csv_text
    from mpcc.runs.files import write_bytes

    files, how = _images(model, options)
    shares = model.predict_proba(files, **how)
    order = (-shares).argsort(1, kind="stable")
    first = order[:, 0]
    columns: dict[str, Any] = {"file": _names(options, files), "cluster": first}
    columns["probability"] = [f"{row[k]:.6f}" for row, k in zip(shares, first, strict=True)]
    columns["second_cluster"] = order[:, 1] if model.n_clusters > 1 else [""] * len(files)
    write_bytes(options.out.resolve(), csv_text(columns).encode())
    found = counted(len({*first.tolist()}), "cluster")
    return f"{counted(len(files), 'image')} in {found}: {options.out}"


def sample(model: Model, options: argparse.Namespace) -> str:
    """Write a sheet, or single images, drawn from a cluster or from all; returns a note."""
    from mpcc.evaluation.pictures import sample_sheet

    images = model.sample(options.n, options.cluster, options.draw_seed)
    if _is_sheet(options.out):
        heading = "p(y)" if options.cluster is None else f"cluster {options.cluster}"
        columns = math.ceil(math.sqrt(options.n))
        alike = [0] * options.n
        sample_sheet(images, alike, 1, options.out, columns=columns, headings=[heading])
    else:
        names = [f"{i:0{len(str(options.n - 1))}}" for i in range(options.n)]
        _write_each(images, names, options.out)
    return f"{options.n:,} images: {options.out}"


def reconstruct(model: Model, options: argparse.Namespace) -> str:
    """Write a sheet of pairs, or single reconstructions; returns a note."""
    from mpcc.evaluation.pictures import reconstruction_sheet

    files, how = _images(model, options)
    images = model.prepare(files, **how)
    found = model.reconstruct(images, inverted=False)
    if _is_sheet(options.out):
        reconstruction_sheet(images.numpy(), found, options.out)
    else:
        _write_each(found, [f"{i}-{file.stem[:60]}" for i, file in enumerate(files)], options.out)
    return f"{len(files):,} images: {options.out}"


COMMANDS = {"cluster": cluster, "sample": sample, "reconstruct": reconstruct}


def _images(model: Model, options: argparse.Namespace) -> tuple[list[Path], dict[str, Any]]:
    """The files that --images names, and keyword arguments for the methods of `Model`."""
    from mpcc.data.own_images import sound_files
    from mpcc.use.images import files_of

    files = [file for place in options.images for file in files_of(place) or ()]
    if options.skip_damaged:
        files, left_out = sound_files(files, model.config.image_ground)
        print(*left_out, sep="\n", end="\n" if left_out else "", file=sys.stderr)
    return files, {"inverted": {"yes": True, "no": False, None: None}[options.inverted]}


def _names(options: argparse.Namespace, files: list[Path]) -> list[str]:
    """Files relative to --images if that is one folder, else as given."""
    root = options.images[0]
    if len(options.images) == 1 and root.is_dir():
        files = [file.relative_to(root) for file in files]
    return [as_text(file) for file in files]


def _is_sheet(out: Path) -> bool:
    if out.suffix.lower() == ".png":
        return True
    if out.suffix or out.is_file():
        raise ValueError(f"--out {out} is neither a sheet (NAME.png) nor a folder")
    return False


def _write_each(images: Any, names: list[str], folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({file.name for file in folder.iterdir()} - {f"{name}.png" for name in names})
    if others:
        raise ValueError(
            f"--out {folder} holds other files, such as {others[0]}; name a new folder"
        )
    for pixels, name in zip(images, names, strict=True):
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
            folder / f"{name}.png"
        )
