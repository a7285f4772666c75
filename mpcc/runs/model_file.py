"""The file of a trained model: what its use needs, without the state to resume training.

    mpcc model 1
    hash of all that follows
    {"config": ..., "iteration": ..., "tensors": [[name, shape], ...]}
    the tensors one after the other, float32, little-endian

It is read without pickle and without torch, so it cannot run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcc.runs.files import RunDirError, dumps, with_hash, without_hash

_MAGIC = b"mpcc model 1\n"

Arrays = Mapping[str, NDArray[np.float32]]


def model_bytes(head: Mapping[str, Any], tensors: Arrays) -> bytes:
    """The content of a model's file; the same for the same model."""
    head = {**head, "tensors": [[name, array.shape] for name, array in tensors.items()]}
    arrays = (np.ascontiguousarray(array, "<f4").tobytes() for array in tensors.values())
    return with_hash(_MAGIC, dumps(head).encode() + b"\n" + b"".join(arrays))


def read_model(data: bytes, name: str) -> tuple[dict[str, Any], Arrays]:
    """Head and tensors of a model's file; RunDirError, with its name, if invalid or damaged."""
    line, _, rest = without_hash(data, _MAGIC, name, "model", "; get it again").partition(b"\n")
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
