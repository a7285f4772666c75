"""Opens a sweep's folder, with the remote that it has or is to have."""

from __future__ import annotations

import json
from pathlib import Path

from mpcc import run_dir
from tune.plan.plan import PLAN, Plan, PlanError
from tune.store.claim import DRIVERS
from tune.store.folder import REMEMBERED, Store
from tune.store.lock import LOCK, sweep_owner
from tune.store.remote import Remote, checked_address, is_address
from tune.store.transfer import download_records

OURS = (LOCK, DRIVERS, REMEMBERED, "claims")
"""What a folder without a plan may hold; earlier code wrote claims/."""
FIRST_SECONDS = 8.0
"""How long a remote may keep a command waiting."""


def open_store(given: Path, storage: str | None = None) -> Store:
    """The store of an output folder; ValueError, one line, where it is a file or not ours.

    storage: `--storage` as given; without it the folder's own remote is used, where it has one.
    From a remote the plan and the records are downloaded, unless a driver works here: its records
    are newer.
    """
    out = given.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose another --out")
    plan = Store(out).read_plan()
    if plan is None and out.is_dir() and any(file.name not in OURS for file in out.iterdir()):
        raise ValueError(f"--out {out} holds other files and no {PLAN}; choose another --out")
    address = remote_address(out, storage)
    if address is None:
        return Store(out)
    store = Store(out, Remote(address, FIRST_SECONDS))
    known = (out / REMEMBERED).exists()
    if not known and not is_address(address) and not Path(address).exists():
        return store  # A folder that the sweep will make.
    if sweep_owner(out) is None and refresh(store) is not None:
        download_records(store)
        store.remember_remote()
    return store


def remote_address(out: Path, storage: str | None) -> str | None:
    """The remote of this folder: as given, or as the folder remembers it.

    ValueError, one line, for one that cannot be, or another than the folder's.
    """
    known = (run_dir.read_json(out / REMEMBERED) or {}).get("storage")
    address = None if storage is None else checked_address(storage)
    if known and address and address != known:
        raise ValueError(f"{out} belongs to --storage {known}, now {address}; choose another --out")
    return address or (str(known) if known else None)


def refresh(store: Store) -> Plan | None:
    """The plan as it is now; that of the remote, if it has one, replaces the folder's.

    A driver calls it again once it has the lock. PlanError where the two are of different sweeps,
    or the remote's is damaged; nothing of the folder is changed then.
    """
    mine = store.read_plan()
    data = None if store.remote is None else store.remote.read(PLAN)
    if store.remote is None or data is None:
        return mine
    address = store.remote.address
    try:
        values = json.loads(data)
        theirs = Plan.from_dict(values)
    except (ValueError, AttributeError) as error:
        reason = error if isinstance(error, PlanError) else "is damaged"
        raise PlanError(f"{address}/{PLAN} {reason}; choose another --storage") from None
    if mine is not None and mine.id != theirs.id:
        raise PlanError(
            f"{store.out} and {address} hold different sweeps; choose another --out or --storage"
        )
    if mine is None or run_dir.read_json(store.out / PLAN) != values:
        store.out.mkdir(parents=True, exist_ok=True)
        run_dir.write_json(store.out / PLAN, values)
    return theirs
