"""Data sets that lie in a storage, fetched once per machine into the cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mpcc import data_files, inception, run_dir
from mpcc.data_files import FILES, MODIFIED, DataError
from tune.storage import Storage, Stored

FETCHED = "fetched"


def is_address(data_dir: Path | str | None) -> bool:
    """Whether this names a storage and no folder."""
    return isinstance(data_dir, str) and "://" in data_dir


def folder_here(data_dir: str | None, dataset: str) -> Path | None:
    """The folder of data files on this machine; what a storage holds of the data set is fetched.

    Trials that start together wait for one of them to fetch. Raises DataError for files that are
    not sound, StorageError where the storage does not answer.
    """
    from mpcc.cache import locked  # numpy comes with it

    if data_dir is None or not is_address(data_dir):
        return Path(data_dir) if data_dir else None
    name = hashlib.sha256(data_dir.encode()).hexdigest()[:16]
    place = data_files.cache_dir() / FETCHED / name
    storage = Storage(data_dir)
    with locked(place / dataset):
        for file, about in files_of(storage, dataset).items():
            _fetch(storage, file, about, place / file)
    _use_weights(place / inception.WEIGHTS_NAME)
    data_files.check_available(dataset, place)
    return place


def _use_weights(fetched: Path) -> None:
    """Have trials here use the fetched Inception weights, unless the file named is here as well.

    The driver's variable comes along, and may name a file of its own machine.
    """
    named = os.environ.get(inception.WEIGHTS_VARIABLE)
    if fetched.exists() and not (named and Path(named).expanduser().is_file()):
        os.environ[inception.WEIGHTS_VARIABLE] = str(fetched)


def check_stored(address: str, datasets: Sequence[str]) -> None:
    """DataError, one line, where the storage lacks files of a data set; nothing is fetched."""
    storage = Storage(address, 8.0)
    for dataset in datasets:
        found = files_of(storage, dataset)
        names = [Path(name).name for name in found if Path(name).name != inception.WEIGHTS_NAME]
        wanted = FILES[dataset].checksums if dataset in FILES else ()
        missing = [n for n in wanted if n not in names and n.removesuffix(".gz") not in names]
        if missing or (dataset != "digits" and not names):
            what = ", ".join(missing) or "no file"
            folder = FILES[dataset].folder if dataset in FILES else ""
            raise DataError(
                f"{dataset}: {what} {'not ' if missing else ''}found in {address}/{folder}; "
                "copy the data there or correct --data-dir"
            )


def files_of(storage: Storage, dataset: str) -> dict[str, Stored]:
    """The storage's files that belong to a data set, and the Inception weights."""
    found: dict[str, Stored] = {}
    if dataset in FILES:
        names = {*FILES[dataset].checksums, MODIFIED}
        names |= {name.removesuffix(".gz") for name in names}
        listed = storage.list(FILES[dataset].folder)
        found = {name: about for name, about in listed.items() if Path(name).name in names}
    elif dataset != "digits":
        endings = (*data_files.IMAGE_SUFFIXES, *([".zip"] if dataset == "omniglot" else []))
        places = ("Omniglot/", "omniglot-py/", "images_background") if dataset == "omniglot" else ()
        for name, about in storage.list().items():
            wanted = name.lower().endswith(endings) or Path(name).name == MODIFIED
            if wanted and (not places or name.startswith(places)) and ".." not in name:
                found[name] = about
    weights = storage.info(inception.WEIGHTS_NAME)
    return found | ({inception.WEIGHTS_NAME: weights} if weights else {})


def _fetch(storage: Storage, name: str, about: Stored, file: Path) -> None:
    """Bring a file that is not here as it is there; its time goes with it."""
    try:
        here = file.stat()
        if (here.st_size, here.st_mtime_ns) == (about.size, about.time_ns):
            return
    except FileNotFoundError:
        pass
    data = storage.read(name)
    if data is None:
        raise DataError(f"{storage.address}/{name} has gone; copy the data there again")
    file.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_bytes(file, data)
    os.utime(file, ns=(about.time_ns, about.time_ns))
