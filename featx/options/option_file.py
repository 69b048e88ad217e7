"""Options from a YAML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.errors import UsageError


def read_option_file(path: Path, command: str, is_flag: Mapping[str, bool]) -> dict[str, Any]:
    """Options from a YAML file, by name; texts, or true and false for flags.

    Args:
        command: its name, for messages.
        is_flag: the command's options, and which of them are flags.

    Raises:
        UsageError: not YAML, not a mapping, an option the command does not have, a value that is none.
    """
    import yaml

    try:
        text = path.read_text()
        values = yaml.safe_load(text) or {}
        written = yaml.compose(text, yaml.SafeLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold one mapping of options to values")
    # A mapping keeps the last of several equal keys; what was written has them all.
    keys = [key.value for key, _ in written.value] if isinstance(written, yaml.MappingNode) else []
    for key, count in Counter(keys).items():
        if count > 1:
            raise UsageError(f"{path}: {key} appears {count} times")
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key not in is_flag:
            raise UsageError(f"{path}: {command} has no option {key!r}; it has {', '.join(sorted(is_flag))}")
        if key in found:
            raise UsageError(f"{path}: {key} appears twice")
        if isinstance(value, bool) != is_flag[key] or not isinstance(value, bool | int | float | str):
            wanted = "true or false" if is_flag[key] else "one number or text"
            raise UsageError(f"{path}: {key} is {value!r}; it must be {wanted}")
        found[key] = value if isinstance(value, bool) else str(value)
    return found
