"""Data sets that lie in a remote, fetched once per machine into the cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mpcc import data_files, inception
from mpcc.data_files import FILES, MODIFIED, DataError
from tune.store.remote import Remote, Stored, is_address
from tune.store.transfer import download_file

FETCHED = "fetched"


def folder_on_node(data_dir: Path | str | None, dataset: str) -> Path | None:
    """The folder of data files on this machine; what a remote holds of the data set is fetched.

    Trials that start together wait for one of them to fetch. DataError for files that are not
    sound, RemoteError where the remote does not answer.
    """
    from mpcc.cache import locked  # numpy comes with it

    if not is_address(data_dir):
        return Path(data_dir) if data_dir else None
    address = str(data_dir)
    folder = data_files.cache_dir() / FETCHED / hashlib.sha256(address.encode()).hexdigest()[:16]
    remote = Remote(address)
    with locked(folder / dataset):
        for name, about in _files_of(remote, dataset).items():
            if not download_file(remote, name, about, folder / name):
                raise DataError(f"{address}/{name} has gone; copy the data there again")
    _use_weights(folder / inception.WEIGHTS_NAME)
    data_files.check_available(dataset, folder)
    return folder


def check_remote_data(address: str, datasets: Sequence[str]) -> None:
    """DataError, one line, where the remote lacks files of a data set; nothing is fetched."""
    remote = Remote(address, 8.0)
    for dataset in datasets:
        found = [Path(name).name for name in _files_of(remote, dataset)]
        names = [name for name in found if name != inception.WEIGHTS_NAME]
        wanted = FILES[dataset].checksums if dataset in FILES else ()
        missing = [n for n in wanted if n not in names and n.removesuffix(".gz") not in names]
        if missing or (dataset != "digits" and not names):
            what = ", ".join(missing) or "no file"
            folder = FILES[dataset].folder if dataset in FILES else ""
            raise DataError(
                f"{dataset}: {what} {'not ' if missing else ''}found in {address}/{folder}; "
                "copy the data there or correct --data-dir"
            )


def _use_weights(fetched: Path) -> None:
    """Have trials here use the fetched Inception weights, unless the file named is here as well.

    The driver's variable comes along, and may name a file of its own machine.
    """
    named = os.environ.get(inception.WEIGHTS_VARIABLE)
    if fetched.exists() and not (named and Path(named).expanduser().is_file()):
        os.environ[inception.WEIGHTS_VARIABLE] = str(fetched)


def _files_of(remote: Remote, dataset: str) -> dict[str, Stored]:
    """The remote's files that belong to a data set, and the Inception weights."""
    found: dict[str, Stored] = {}
    if dataset in FILES:
        names = {*FILES[dataset].checksums, MODIFIED}
        names |= {name.removesuffix(".gz") for name in names}
        listed = remote.list(FILES[dataset].folder)
        found = {name: about for name, about in listed.items() if Path(name).name in names}
    elif dataset != "digits":
        endings = (*data_files.IMAGE_SUFFIXES, *([".zip"] if dataset == "omniglot" else []))
        places = ("Omniglot/", "omniglot-py/", "images_background") if dataset == "omniglot" else ()
        for name, about in remote.list().items():
            wanted = name.lower().endswith(endings) or Path(name).name == MODIFIED
            if wanted and (not places or name.startswith(places)) and ".." not in name:
                found[name] = about
    weights = remote.info(inception.WEIGHTS_NAME)
    return found | ({inception.WEIGHTS_NAME: weights} if weights else {})
