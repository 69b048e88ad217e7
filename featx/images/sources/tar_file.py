"""Tars of images, WebDataset's shards among them, read without unpacking."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from featx.errors import SourceError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder, make_manifest
from featx.images.sources.containers import TarMembers, expand_braces
from featx.images.sources.read import label_text
from featx.images.sources.remote import url_of
from featx.runtime.text import printable

_LABELS_IN_JSON = ("label", "cls", "class")
_MOST_LABEL_BYTES = 1 << 20


def scan_tar(source: Path) -> Manifest:
    """The images of a tar, or of the shards that NAME-{000..099}.tar names, shard by shard, sorted by path in each.

    Where a KEY.cls or KEY.json stands beside KEY.jpg, as in WebDataset, it says the label: the text of the one,
    "label", "cls" or "class" of the other. Else the first folder of a path is its class, as in a folder.

    Raises:
        SourceError: a shard that is not there or no uncompressed tar; a name that is there twice; no images.
    """
    for shard in expand_braces(source):
        if url_of(shard) is None and not shard.is_file():
            raise SourceError(f"no file {shard}")
    found = TarMembers(source)
    try:
        for name in found.twice:
            raise SourceError(f"{source} holds {printable(name)} more than once; which one is meant?")
        return _manifest(source, found)
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error}") from error
    finally:
        found.close()


def _manifest(source: Path, found: TarMembers) -> Manifest:
    skipped = Skipped()
    for reason, names in found.skipped.items():
        for name in names:
            skipped.add(reason, name)
    images: list[bytes] = []
    beside: dict[bytes, bytes] = {}  # key -> the member that says its label
    for name in found.members:
        base = name.rpartition(b"/")[2]
        if base.startswith(b"."):
            skipped.add("hidden", name)
        elif has_image_suffix(name):
            images.append(name)
        elif base.lower().endswith((b".cls", b".json")):
            beside.setdefault(_key(name), name)
        else:
            skipped.add("not an image name", name)
    images.sort(key=lambda name: (found.members[name][0], name))
    if not beside:
        inner = [name.partition(b"/")[2] if len(found.shards) > 1 else name for name in images]
        return replace(label_by_folder("tar", source, inner, skipped), paths=tuple(images))
    images = _one_a_sample(images, skipped)
    labels = [None if (key := _key(name)) not in beside else _label(found, beside[key]) for name in images]
    return make_manifest("tar", source, source, images, labels, [None] * len(images), skipped)


def _one_a_sample(images: list[bytes], skipped: Skipped) -> list[bytes]:
    """The images without other pictures of the same samples: of KEY.jpg and KEY.seg.png the first."""
    plain = {_key(name) for name in images if _is_plain(name)}
    for name in images:
        if not _is_plain(name) and _key(name) in plain:
            skipped.add("another picture of its sample", name)
    return [name for name in images if _is_plain(name) or _key(name) not in plain]


def _is_plain(name: bytes) -> bool:
    """Whether a name has one dot."""
    return name.rpartition(b"/")[2].count(b".") == 1


def _key(name: bytes) -> bytes:
    """What the members of a sample have in common: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _label(found: TarMembers, name: bytes) -> str | None:
    """The label that a .cls or .json says; None if it says none.

    Raises:
        SourceError: it is not readable text or JSON.
    """
    where = f"{found.shards[found.members[name][0]]}, {printable(name)}"
    if found.members[name][2] > _MOST_LABEL_BYTES:
        raise SourceError(f"{where} has {found.members[name][2]:,} bytes, too many for a label")
    try:
        text = found.read(name).decode("utf-8").strip()
        if not name.lower().endswith(b".json"):
            return label_text(text, where)
        content = json.loads(text)
    except BadImage:
        return None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is no label: {error}") from error
    said = [content[key] for key in _LABELS_IN_JSON if key in content] if isinstance(content, dict) else []
    return label_text(said[0], where) if said and isinstance(said[0], str | int | float) else None


def is_tar(path: Path) -> bool:
    """Whether a name is that of tars."""
    return os.fspath(path).lower().endswith(".tar")
