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
from featx.service.messages.problems import Problem

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"
MOST_ANSWERED = 256 << 20  # bytes of features in one answer
_KINDS = (JSON, NPZ, NPY, ARROW)  # in the order in which they are chosen where all are accepted


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


def chosen_kind(accept: str, layers: int) -> str:
    """The media type to answer with: of those that suit the one with the highest q, the first of equal ones.

    Args:
        layers: how many are asked for; .npy is for one.

    >>> chosen_kind("application/x-npz;q=0.5, application/x-npy", 1), chosen_kind("application/*, text/html", 2)
    ('application/x-npy', 'application/json')

    Raises:
        Problem: 406, none of them can be had.
    """
    asked: dict[str, float] = {}
    for part in (accept or "*/*").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        try:
            asked.setdefault(name, float(quality[0]) if quality else 1.0)
        except ValueError:
            asked.setdefault(name, 0.0)
    order = [*(kind for kind in asked if kind in _KINDS), *(kind for kind in _KINDS if kind not in asked)]
    suited = [kind for kind in order if kind != NPY or layers == 1]
    best = max(suited, key=lambda kind: _quality(asked, kind))
    if _quality(asked, best) > 0:
        return best
    if _quality(asked, NPY) > 0:
        raise Problem(406, f"{NPY} is for one layer, and {layers} were asked for; take {NPZ}")
    raise Problem(406, f"none of {accept[:100]!r} can be had; Accept may be {', '.join(_KINDS)}")


def _quality(asked: dict[str, float], kind: str) -> float:
    """The q of a media type: its own, else that of all of its family, else that of all."""
    return next((asked[name] for name in (kind, "application/*", "*/*") if name in asked), 0.0)


def refuse_large_answer(size: int) -> None:
    """Raise Problem 413 for an answer of more bytes than one may have."""
    if size > MOST_ANSWERED:
        raise Problem(
            413, f"the answer would have {size:,} bytes, at most {MOST_ANSWERED:,} are given: pool, or ask for fewer"
        )


def encode(answer: Answer, kind: str) -> bytes:
    """The body of an answer."""
    if kind == NPY:
        return npy(next(iter(answer.layers.values())))
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


def npy(values: npt.NDArray[Any]) -> bytes:
    """An array as an .npy file."""
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
    import pyarrow as pa

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
