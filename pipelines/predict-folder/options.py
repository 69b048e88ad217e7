"""The options of `featx extract` that make the features a head takes, quoted for a shell: python options.py HEAD"""

from __future__ import annotations

import shlex
import sys

import featx


def main(head: str) -> None:
    words = shlex.split(featx.LinearHead.load(head).extract_command)
    print(shlex.join(words[3:-2]))  # between "featx extract SOURCE" and "-o NEW.h5"


if __name__ == "__main__":
    main(sys.argv[1])
