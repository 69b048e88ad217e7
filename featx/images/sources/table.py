"""Images in Parquet and Arrow files, as Hugging Face's datasets are: a column of bytes, or of {"bytes", "path"}."""

from __future__ import annotations

import bisect
import itertools
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.manifest import Manifest, Skipped, make_manifest
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.read import label_text, not_empty
from featx.status import Status

ENDINGS = (".parquet", ".arrow")
_IMAGE_NAMES = ("image", "img", "bytes", "content", "data", "jpg", "png", "webp")
_PATH_NAMES = ("path", "file_name", "filename", "file", "image")
_LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label")


def is_table(path: Path) -> bool:
    """Whether a name is that of a Parquet or Arrow file."""
    return path.suffix.lower() in ENDINGS


class TableRows:
    """Rows of one Parquet or Arrow file, by their numbers; a group of rows is held in memory at a time."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self._held = -1
        self._rows: Any = None

    @cached_property
    def _file(self) -> Any:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise SourceError(f"{self.path} needs pyarrow: pip install pyarrow") from None
        try:
            if self.path.suffix.lower() == ".parquet":
                return pq.ParquetFile(self.path)
            mapped = pa.memory_map(os.fspath(self.path))
            try:
                return pa.ipc.open_file(mapped).read_all()
            except pa.ArrowInvalid:  # Hugging Face writes streams
                mapped.seek(0)
                return pa.ipc.open_stream(mapped).read_all()
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise SourceError(f"{self.path} cannot be read: {str(error).splitlines()[0]}") from error

    @property
    def schema(self) -> Any:
        """pyarrow's schema."""
        return self._file.schema_arrow if self._is_parquet else self._file.schema

    @property
    def _is_parquet(self) -> bool:
        return hasattr(self._file, "schema_arrow")

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of every group, and the number of rows."""
        if not self._is_parquet:
            return [0, int(self._file.num_rows)]
        about = self._file.metadata
        sizes = (about.row_group(group).num_rows for group in range(about.num_row_groups))
        return [0, *itertools.accumulate(sizes)]

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        try:
            table = self._file.read([name]) if self._is_parquet else self._file
            found: list[Any] = table[name].to_pylist()
        except (OSError, ValueError) as error:  # not UTF-8, or damaged
            raise SourceError(f"{self.path}: the column {name} cannot be read: {error}") from error
        return found

    @cached_property
    def image_column(self) -> str | None:
        """The column that holds bytes of images, by its type and name; None if there is none."""
        import pyarrow.types as pt

        def holds_bytes(kind: Any) -> bool:
            if pt.is_struct(kind):
                return any(
                    one.name == "bytes" and (pt.is_binary(one.type) or pt.is_large_binary(one.type)) for one in kind
                )
            return bool(pt.is_binary(kind) or pt.is_large_binary(kind))

        known: list[str] = [str(one.name) for one in self.schema if holds_bytes(one.type)]
        named = [name for name in known if name.lower() in _IMAGE_NAMES] or (known if len(known) == 1 else [])
        return named[0] if named else None

    @property
    def files_of_images(self) -> list[bytes] | None:
        """Paths, where no row of the image column has bytes and each names a file: {"bytes": null, "path": ...}."""
        import pyarrow.types as pt

        name = self.image_column
        if name is None or not len(self) or not pt.is_struct(kind := self.schema.field(name).type):
            return None
        if kind.get_field_index("path") < 0 or self._value(0).get("bytes") is not None:
            return None
        found = [value or {} for value in self.column(name)]
        if any(value.get("bytes") is not None or not value.get("path") for value in found):
            return None
        return [os.fsencode(value["path"]) for value in found]

    def _value(self, row: int) -> dict[str, Any]:
        name = self.image_column
        whole = self._file.read_row_group(0, [name]) if self._is_parquet else self._file
        return whole[name][row].as_py() or {}

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        import pyarrow.types as pt

        kind = self.schema.field(name).type
        return bool(pt.is_string(kind) or pt.is_large_string(kind))

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        try:
            row = int(path)
            if not 0 <= row < len(self):
                raise ValueError
        except ValueError:
            raise BadImage(Status.MISSING, "no such row of the table") from None
        group = bisect.bisect_right(self._starts, row) - 1
        try:
            if group != self._held:
                name = self.image_column
                whole = self._file.read_row_group(group, [name]) if self._is_parquet else self._file
                self._rows, self._held = whole[name], group
            value = self._rows[row - self._starts[group]].as_py()
        except (OSError, ValueError) as error:
            raise BadImage(Status.DAMAGED, str(error).splitlines()[0]) from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise BadImage(Status.EMPTY, "the row has no bytes")
        if len(content) > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the row has {len(content)} bytes, more than {MAX_FILE_BYTES}")
        need(len(content))
        return not_empty(content)

    def state(self, path: bytes) -> bytes:
        try:
            found = os.stat(self.path)
        except OSError:
            return b"missing"
        return b"%d,%d" % (found.st_size, found.st_mtime_ns)

    def alike(self, path: bytes) -> bytes:
        return b"in the table"

    def close(self) -> None:
        if "_file" in self.__dict__:
            file = self.__dict__.pop("_file")
            if hasattr(file, "close"):
                file.close()


def scan_table(source: Path) -> Manifest:
    """The images of a Parquet or Arrow file, by row, with the names of its label column if it has one.

    A table without bytes but with a column of paths is a list: its paths are relative to its folder.

    Raises:
        SourceError: it cannot be read, or holds neither bytes nor paths of images.
    """
    if not source.is_file():
        raise SourceError(f"no file {source}")
    rows = TableRows(source)
    try:
        names = rows.schema.names
        if len(set(names)) < len(names):
            raise SourceError(f"{source}: a column appears twice: {', '.join(names)}")
        label = next((name for name in names if name.lower() in _LABEL_NAMES), None)
        none: list[str | None] = [None] * len(rows)
        labels = none if label is None else _named(rows, label)
        if (files := rows.files_of_images) is not None:
            return make_manifest("list", source, source.parent, files, labels, none, Skipped())
        if rows.image_column is not None:
            paths = [b"%08d" % row for row in range(len(rows))]
            return make_manifest("table", source, source, paths, labels, none, Skipped())
        path = next((name for name in names if name.lower() in _PATH_NAMES and rows.is_text(name)), None)
        if path is None:
            raise SourceError(
                f"{source} has the columns {', '.join(names)}; needed is one of bytes, or of "
                f'{{"bytes", "path"}}, called image, or one of paths'
            )
        values = rows.column(path)
        for row, value in enumerate(values):
            if not value or "\0" in value:
                raise SourceError(f"{source}, row {row}: {value!r:.80} is no path")
        listed = [os.fsencode(value) for value in values]
        return make_manifest("list", source, source.parent, listed, labels, none, Skipped())
    finally:
        rows.close()


def _named(rows: TableRows, column: str) -> list[str | None]:
    """Labels by name: Hugging Face keeps the names of numbered classes in the schema."""
    where = f"{rows.path}, column {column}"
    names = _names_of_classes(rows, column)
    found: list[str | None] = []
    for value in rows.column(column):
        known = isinstance(value, int) and 0 <= value < len(names)
        found.append(None if value == -1 else label_text(names[value] if known else value, where))
    return found


def _names_of_classes(rows: TableRows, column: str) -> list[Any]:
    """Hugging Face's names of a column's numbers; empty without.

    Raises:
        SourceError: its metadata cannot be read: the numbers would be taken for names.
    """
    content = (rows.schema.metadata or {}).get(b"huggingface")
    if content is None:
        return []
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{rows.path}: its huggingface metadata cannot be read: {error}") from error
    for key in ("info", "features", column, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []
