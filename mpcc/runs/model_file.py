"""The file of a trained model: what it takes to use it, without what training goes on from.

    mpcc model 1
    hash of all that follows
    {"config": ..., "iteration": ..., "tensors": [[name, shape], ...]}
    the tensors one after the other, float32, little-endian

Read without pickle and without torch: nothing in it can be run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcc.runs.files import RunDirError, dumps

_MAGIC = b"mpcc model 1\n"
_HASH = 65
"""Bytes of a hash and its end of line."""

Arrays = Mapping[str, NDArray[np.float32]]


def model_bytes(head: Mapping[str, Any], tensors: Arrays) -> bytes:
    """The content of a model's file; the same for the same model."""
    head = {**head, "tensors": [[name, array.shape] for name, array in tensors.items()]}
    arrays = (np.ascontiguousarray(array, "<f4").tobytes() for array in tensors.values())
    content = dumps(head).encode() + b"\n" + b"".join(arrays)
    return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def read_model(data: bytes, name: str) -> tuple[dict[str, Any], Arrays]:
    """Head and tensors of a model's file; RunDirError with its name for what is none or damaged."""
    if not data.startswith(_MAGIC):
        raise RunDirError(f"{name} is not a model of this program")
    content = data[len(_MAGIC) + _HASH :]
    seal = hashlib.sha256(content).hexdigest().encode() + b"\n"
    if data[len(_MAGIC) : len(_MAGIC) + _HASH] != seal:
        raise RunDirError(f"{name} is damaged ({len(data):,} bytes, wrong hash); get it again")
    line, _, rest = content.partition(b"\n")
    try:
        head = json.loads(line)
        shapes = {str(tensor): tuple(map(int, shape)) for tensor, shape in head.pop("tensors")}
        sizes = [math.prod(shape) for shape in shapes.values()]
        if min(sizes, default=0) < 0 or 4 * sum(sizes) != len(rest):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise RunDirError(f"{name} is damaged (its head says nothing); get it again") from None
    values, ends = np.frombuffer(rest, "<f4"), np.cumsum(sizes)
    parts = np.split(values, ends[:-1]) if shapes else []
    return head, {
        tensor: part.reshape(shape)
        for (tensor, shape), part in zip(shapes.items(), parts, strict=True)
    }
