"""Data sets that lie in a remote, fetched once per machine into the cache folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mpcc.data import files as data_files
from mpcc.data.files import FILES, MODIFIED, DataError
from mpcc.evaluation import inception
from tune.store.remote import Remote, Stored, is_address
from tune.store.transfer import copy

FETCHED = "fetched"


def folder_on_node(data_dir: Path | str | None, dataset: str) -> Path | None:
    """The folder of data files on this machine; a data set in a remote is downloaded first.

    Of trials that start together one downloads, others wait. DataError for files that are missing
    or damaged, RemoteError if the remote does not answer.
    """
    from mpcc.data.cache import locked  # numpy comes with it

    if not is_address(data_dir):
        return Path(data_dir) if data_dir else None
    address = str(data_dir)
    folder = data_files.cache_dir() / FETCHED / hashlib.sha256(address.encode()).hexdigest()[:16]
    with locked(folder / dataset):
        remote, here = Remote(address), Remote(str(folder), 0.0)
        here.prepare()
        copy(remote, here, _files_of(remote, dataset), here.list())
    fetched, named = folder / inception.WEIGHTS_NAME, os.environ.get(inception.WEIGHTS_VARIABLE)
    # The driver passes its variable on, and that may name a file of the driver's machine.
    if fetched.exists() and not (named and Path(named).expanduser().is_file()):
        os.environ[inception.WEIGHTS_VARIABLE] = str(fetched)
    try:
        data_files.check_available(dataset, folder)
    except DataError as error:
        text = str(error).replace(str(folder), address)
        raise DataError(text.removesuffix(" or add --download")) from None
    return folder


def _files_of(remote: Remote, dataset: str) -> dict[str, Stored]:
    """The remote's files that belong to a data set, and the Inception weights."""
    found: dict[str, Stored] = {}
    if dataset in FILES:
        found = remote.list(FILES[dataset].folder)
    elif dataset != "digits":
        endings = (*data_files.IMAGE_SUFFIXES, ".zip", MODIFIED.lower())
        found = {n: about for n, about in remote.list().items() if n.lower().endswith(endings)}
    weights = remote.info(inception.WEIGHTS_NAME)
    return found | ({inception.WEIGHTS_NAME: weights} if weights else {})
