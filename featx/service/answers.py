"""Features as JSON, .npy, .npz or Arrow, as the request's Accept header asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from featx.service.batching import Row
from featx.service.problems import Problem

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"
_KINDS = {JSON: JSON, NPY: NPY, NPZ: NPZ, ARROW: ARROW, "*/*": JSON, "application/*": JSON}


@dataclass(frozen=True)
class Answer:
    """The layers of some images.

    Attributes:
        names: N, as they were sent.
        rows: N.
        layers: layer -> (N, ...) values, NaN for images that failed; None in place of a row where they are for JSON.
        poolings: layer -> how it was pooled.
    """

    model: str
    fingerprint: str
    names: Sequence[str]
    rows: Sequence[Row]
    layers: dict[str, npt.NDArray[Any]]
    poolings: dict[str, str]


def chosen_kind(accept: str) -> str:
    """The media type to answer with: of those accepted the one with the highest q, the first of equal ones.

    >>> chosen_kind("application/x-npz;q=0.5, application/x-npy")
    'application/x-npy'

    Raises:
        Problem: 406, none of them can be had.
    """
    best, best_q = None, 0.0
    for part in (accept or "*/*").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        q = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    q = float(parameter[2:])
                except ValueError:
                    q = 0.0
        if name in _KINDS and q > best_q:
            best, best_q = _KINDS[name], q
    if best is None:
        raise Problem(406, f"none of {accept[:100]!r} can be had; Accept may be {', '.join((JSON, NPY, NPZ, ARROW))}")
    return best


def encode(answer: Answer, kind: str) -> bytes:
    """The body of an answer.

    Raises:
        Problem: 406, several layers as .npy.
    """
    if kind == NPY:
        if len(answer.layers) != 1:
            raise Problem(406, f"{NPY} is for one layer, and {', '.join(answer.layers)} were asked for; take {NPZ}")
        return _npy(next(iter(answer.layers.values())))
    return {JSON: _json, NPZ: _npz, ARROW: _arrow}[kind](answer)


def _json(answer: Answer) -> bytes:
    images = [
        {
            "name": name, "status": row.status, "reason": row.reason or None, "sha256": row.sha256,
            "features": {layer: values[place] for layer, values in answer.layers.items()} if row.done else None,
        }
        for place, (name, row) in enumerate(zip(answer.names, answer.rows, strict=True))
    ]  # fmt: skip
    layers = {
        name: {"shape": list(values.shape[1:]), "pooling": answer.poolings[name]}
        for name, values in answer.layers.items()
    }
    described = {"model": answer.model, "fingerprint": answer.fingerprint, "layers": layers, "images": images}
    return orjson.dumps(described, option=orjson.OPT_SERIALIZE_NUMPY)


def _npy(values: npt.NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, values, allow_pickle=False)
    return out.getvalue()


def _npz(answer: Answer) -> bytes:
    out = io.BytesIO()
    arrays = {f"features/{name}": values for name, values in answer.layers.items()}
    arrays["name"] = np.array(answer.names)
    arrays["status"] = np.array([row.status for row in answer.rows])
    arrays["reason"] = np.array([row.reason for row in answer.rows])
    arrays["sha256"] = np.array([row.sha256 for row in answer.rows])
    np.savez(out, **arrays)  # type: ignore[arg-type]  # its keywords are arrays
    return out.getvalue()


def _arrow(answer: Answer) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]  # it has no types

    columns: dict[str, Any] = {
        "name": pa.array(answer.names), "status": pa.array([row.status for row in answer.rows]),
        "reason": pa.array([row.reason or None for row in answer.rows], pa.string()),
        "sha256": pa.array([row.sha256 for row in answer.rows]),
    }  # fmt: skip
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    failed = pa.array([not row.done for row in answer.rows])
    for name, values in answer.layers.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        size = int(np.prod(values.shape[1:]))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, size, mask=failed)
        shape = {"shape": ",".join(map(str, values.shape[1:])), "pooling": answer.poolings[name]}
        fields.append(pa.field(name, columns[name].type, metadata=shape))
    schema = pa.schema(fields, metadata={"model": answer.model, "fingerprint": answer.fingerprint})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, schema) as writer:
        writer.write_table(pa.table(list(columns.values()), schema=schema))
    return out.getvalue()
