"""Join the shards' predictions: python table.py OUT SHARDS"""

from __future__ import annotations

import sys
from pathlib import Path

from featx.runtime.files import replacing


def main(out: Path, shards: int) -> None:
    lines = 0
    with replacing(out / "table.csv") as partial, partial.open("wb") as joined:
        for index in range(shards):
            with (out / f"predictions.{index}-of-{shards}.csv").open("rb") as part:
                header = part.readline()
                if index == 0:
                    joined.write(header)
                for line in part:
                    joined.write(line)
                    lines += 1
    print(f"{out / 'table.csv'}: {lines:,} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
