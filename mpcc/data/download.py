"""Download the official files of a data set with torchvision's downloader, checked by MD5."""

from __future__ import annotations

from pathlib import Path

from mpcc.data import files as data_files
from mpcc.data.places import DataError, cache_dir, resolve_data_dir
from mpcc.shell import message_of


def download(dataset: str, data_dir: Path | str | None) -> Path:
    """Get the official files that are missing, checked by MD5, and return the data folder.
    DataError if the folder cannot be written or the download fails."""
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    root = resolve_data_dir(data_dir) or cache_dir() / "data"
    try:
        root.mkdir(parents=True, exist_ok=True)
        data_files.check_available(dataset, root)
        return root
    except DataError:
        pass  # what is missing or damaged is fetched below
    except OSError as error:
        raise DataError(f"cannot write to data folder {root}: {error.strerror}") from None
    files = (data_files.FILES | {"omniglot": data_files.OMNIGLOT}).get(dataset)
    try:
        if files is not None and files.archive is not None:
            name, md5 = files.archive
            download_and_extract_archive(files.url, str(root), filename=name, md5=md5)
        elif files is not None:
            for name, md5 in files.checksums.items():
                download_url(files.url + name, str(root / files.folder), md5=md5)
    except (OSError, RuntimeError) as error:
        why = message_of(error, 200)
        raise DataError(f"{dataset}: the download into {root} failed ({why})") from None
    return root
