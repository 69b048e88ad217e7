"""A map of images as one HTML page: it needs no other file and no network."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour
from featx.figures.thumbnails import jpeg, sprite


def map_page(
    points: npt.NDArray[np.float64],
    pictures: npt.NDArray[np.uint8],
    paths: Sequence[str],
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
    *,
    title: str,
    summary: str,
) -> str:
    """The page of N points, with a picture of each to zoom in on.

    Args:
        pictures: (N, side, side, 3) uint8.
        labels: (N,) into `classes`, -1 for none.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scale = float((high - low).max()) or 1.0
    places = (points - (low + high) / 2) / scale + 0.5
    places[:, 1] = 1 - places[:, 1]  # y grows downwards on a screen
    data = {
        "x": [round(float(x), 5) for x in places[:, 0]],
        "y": [round(float(y), 5) for y in places[:, 1]],
        "label": labels.tolist(),
        "path": list(paths),
        "classes": list(classes),
        "count": [int((labels == label).sum()) for label in range(len(classes))],
        "colours": [class_colour(label) for label in range(-1, len(classes))],
        "side": pictures.shape[1],
        "columns": math.ceil(math.sqrt(len(pictures))),
        "sprite": data_url(jpeg(sprite(pictures)), "image/jpeg"),
    }
    return page("map.html", title=title, summary=summary, data=data)


def page(name: str, *, data: Any = None, **texts: str) -> str:
    """A page of this package, with texts and data put in; texts are escaped."""
    template = Template((files("featx.figures") / "pages" / name).read_text(encoding="utf-8"))
    # In a script nothing is escaped but what could end it.
    script = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return template.substitute({key: html.escape(text) for key, text in texts.items()}, data=script)


def data_url(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
