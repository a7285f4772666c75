"""Which files a data set is read from, and whether they are there and sound.

Standard library only, so that a missing file is reported at once, before torch is imported.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpcc.data.folder import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from mpcc.data.folder import find
from mpcc.data.places import DataError as DataError
from mpcc.data.places import cache_dir as cache_dir
from mpcc.data.places import required_dir

MODIFIED = "MODIFIED.txt"
"""A file of this name beside data files says in its first line how they differ from the official
ones. Without it files with a wrong MD5 are refused; the line is recorded with every result."""


@dataclass(frozen=True)
class FileSet:
    """The files of a data set in the layout that torchvision uses."""

    folder: str
    checksums: Mapping[str, str]
    """Official MD5 sum of each file by its name, training files before test files."""
    url: str
    """Address of the archive or, without one, of the folder of the files."""
    archive: tuple[str, str] | None = None
    """Name and MD5 sum of the archive that holds `folder`, if the files come in one."""


FILES = {
    "mnist": FileSet(
        "MNIST/raw",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fmnist": FileSet(
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "cifar10": FileSet(
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ),
    "cifar20": FileSet(
        "cifar-100-python",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    ),
}

UNPACKED_MNIST = {
    # torchvision checks the .gz files alone; these are the MD5 sums of what is in them.
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


OMNIGLOT_CHARACTERS = 100
OMNIGLOT_ARCHIVE = "images_background.zip"
OMNIGLOT = FileSet(
    "Omniglot",
    {OMNIGLOT_ARCHIVE: "68d2efa1b9178cc56df9314c21c6e718"},
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
)
OMNIGLOT_FOLDERS = (OMNIGLOT.folder, "omniglot-py", ".")


def check_available(dataset: str, data_dir: Path | str | None = None) -> None:
    """Check that all files exist with the right MD5; DataError otherwise. Decodes no image."""
    if dataset == "omniglot":
        find_omniglot(data_dir)
    elif dataset == "folder":
        find(data_dir)
    elif dataset in FILES:
        for path in missing_or_found(dataset, data_dir):
            read_checked(path, checksum(dataset, path), unpack=False)


def checksum(dataset: str, path: Path) -> str | None:
    """The MD5 sum that this file must have; None if none is known (unpacked Fashion-MNIST)."""
    return FILES[dataset].checksums.get(path.name) or UNPACKED_MNIST.get(
        path.name if dataset == "mnist" else ""
    )


def source_files(dataset: str, data_dir: Path | str | None) -> list[Path]:
    """All files that this data set is read from, MODIFIED.txt included."""
    if dataset == "digits":
        return []
    if dataset == "folder":
        return [path for path, _ in find(data_dir).images]
    if dataset == "omniglot":
        place = find_omniglot(data_dir)
        return [place] if place.is_file() else sorted(place.glob("*/*/*.png"))
    files = missing_or_found(dataset, data_dir)
    note = files[0].parent / MODIFIED
    return [*files, note] if note.is_file() else files


def missing_or_found(dataset: str, data_dir: Path | str | None) -> list[Path]:
    """The files to read, in the order of `FileSet.checksums`, each as .gz or unpacked.

    Raises DataError with one line that names each missing file and where to put it.
    """
    root, files = required_dir(dataset, data_dir), FILES[dataset]
    found, missing = [], []
    for name in files.checksums:
        packed = root / files.folder / name
        choices = [packed, packed.with_suffix("")] if name.endswith(".gz") else [packed]
        here = next((c for c in choices if c.is_file()), None)
        if here is None:
            missing.append(name)
        else:
            found.append(here)
    if missing:
        what = f"from {files.url}" if files.archive is None else f"out of the archive {files.url}"
        raise DataError(
            f"{dataset}: {', '.join(missing)} not found in {root / files.folder}; "
            f"put {'it' if len(missing) == 1 else 'them'} there ({what}) or add --download"
        )
    return found


def find_omniglot(data_dir: Path | str | None) -> Path:
    """The folder `images_background`, or the archive that holds it, with 100 characters or more.

    Of several, one with exactly 100 characters is taken, else the first found. Raises DataError.
    """
    root = required_dir("omniglot", data_dir)
    counts: dict[Path, int] = {}
    for folder in (root / name for name in OMNIGLOT_FOLDERS):
        drawings = folder / "images_background"
        if drawings.is_dir():
            counts[drawings] = len({p.parent for p in drawings.glob("*/*/*.png")})
        pattern = OMNIGLOT_ARCHIVE if folder == root / "." else "*.zip"
        for archive in sorted(folder.glob(pattern)):
            counts[archive] = len({name.rpartition("/")[0] for name in omniglot_names(archive)})
    if not counts:
        raise DataError(
            f"omniglot: {OMNIGLOT_ARCHIVE} not found in {root / OMNIGLOT.folder}; put it, or "
            f"the folder images_background/<alphabet>/<character>/*.png, there "
            f"(from {OMNIGLOT.url}) or add --download"
        )
    enough = [place for place, n in counts.items() if n >= OMNIGLOT_CHARACTERS]
    if not enough:
        place, n = max(counts.items(), key=lambda item: item[1])
        raise DataError(
            f"{place} holds {n} characters, {OMNIGLOT_CHARACTERS} are needed; get it again"
        )
    return next((p for p in enough if counts[p] == OMNIGLOT_CHARACTERS), enough[0])


def omniglot_names(archive: Path) -> list[str]:
    """Sorted names of the drawings in an archive, `.../images_background/alphabet/character/x.png`.
    DataError if the archive is not a valid zip file."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} is not a sound zip archive ({error}); get it again") from None
    return sorted(n for n in names if n.endswith(".png") and "images_background/" in n)


def read_checked(path: Path, checksum: str | None, *, unpack: bool = True) -> bytes:
    """The content of a file after a check of its MD5; a .gz is decompressed if `unpack`.

    Without a checksum, or beside MODIFIED.txt, the MD5 is not checked. DataError for a file that
    cannot be read or unpacked, or has another MD5.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if checksum is not None and modification(path.parent) is None:
        actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if actual != checksum:
            raise DataError(
                f"{path} is damaged or not the official file: {len(data):,} bytes with MD5 "
                f"{actual}, expected {checksum}; get it again, or say in a file {MODIFIED} beside "
                "it in what way it differs"
            )
    if not unpack or path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from None


def modification(folder: Path) -> str | None:
    """The first line of the folder's MODIFIED.txt; None if there is no such file."""
    try:
        text = (folder / MODIFIED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(
            f"{folder / MODIFIED} cannot be read ({reason}); write in its first line how the "
            "files beside it differ from the official ones"
        ) from None
    lines = text.strip().splitlines()
    return lines[0] if lines else "changed, without a word on how"
