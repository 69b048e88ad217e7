"""featx on a Ray cluster: the features of SOURCE as a folder of Parquet files, and of those a features file.

    python ray_extract.py /data/photos /out/photos --backbone vgg16 --layers fc7 --address auto

Every machine needs featx and Ray, and sees the images and the weights under the same paths. One actor works on each
machine, with all its cores, or one on each GPU. Killed actors are replaced; a job that was killed as a whole begins
again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads them when it is imported
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")

import featx

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("source", type=Path)
arguments.add_argument("output", type=Path, help="OUTPUT.parquet/ and OUTPUT.h5 are made")
arguments.add_argument("-b", "--backbone", default="alexnet")
arguments.add_argument("-l", "--layers")
arguments.add_argument("--weights", default="default")
arguments.add_argument("--pool", default="none")
arguments.add_argument("--device", default="auto")
arguments.add_argument("--max-bad", type=float, default=0.01)
arguments.add_argument("--actors", type=int)
arguments.add_argument("--address", help="of the cluster; without it, this machine alone")
given = arguments.parse_args()

config = featx.ExtractConfig(
    backbone=given.backbone, layers=given.layers, weights=given.weights, pool=given.pool, device=given.device,
    max_bad=given.max_bad,
)  # fmt: skip
parquet = given.output.with_name(f"{given.output.name}.parquet")
if not parquet.exists():
    print(featx.extract_with_ray(given.source, parquet, config, actors=given.actors, address=given.address))
print(featx.import_parquet(parquet, given.output.with_name(f"{given.output.name}.h5")))
