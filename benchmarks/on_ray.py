"""featx on a local Ray beside featx itself, and beside what is usually written for Ray.

    python benchmarks/on_ray.py PHOTOS [--backbone alexnet] [--copies 4]

Images per second while the actors are at work, from the first batch to the last, of `featx.extract_with_ray` and of
`ray.data.read_images` with a class of plain PyTorch (resize, crop, one forward pass per batch), and of
`featx.extract_features`, all on this machine, in one process each, one after the other. How long a job takes until
its actors work is said as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RAY, USUAL, PLAIN = "featx on Ray", "ray.data.read_images", "featx extract"


def note_times(times: str, started: float, count: int) -> None:
    with open(times, "a", encoding="ascii") as file:
        file.write(json.dumps([started, time.time(), count]) + "\n")


def on_ray(photos: str, backbone: str, folder: str) -> None:
    import featx
    from featx.commands.exchange import ray_extract

    class Timed(ray_extract.ExtractRows):
        def __call__(self, batch: dict[str, Any]) -> Any:
            started = time.time()
            found = super().__call__(batch)
            note_times(f"{folder}/times", started, len(batch["id"]))
            return found

    ray_extract.ExtractRows = Timed
    featx.extract_with_ray(
        photos, f"{folder}/parquet", featx.ExtractConfig(backbone=backbone, weights="random:0", device="cpu")
    )


class Usual:
    """What a tutorial writes."""

    def __init__(self, backbone: str, folder: str) -> None:
        import torch
        from torchvision.models import get_model

        torch.manual_seed(0)
        self.network, self.times = get_model(backbone, weights=None).eval(), f"{folder}/times"
        self.network.classifier = self.network.classifier[:-1]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch
        from torchvision.transforms.v2.functional import normalize

        started = time.time()
        pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float().div(255)
        with torch.inference_mode():
            found = self.network(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).numpy()
        note_times(self.times, started, len(found))
        return {"path": batch["path"], "fc7": found}


def usual(photos: str, backbone: str, folder: str) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR"}
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    images = ray.data.read_images(photos, size=(224, 224), mode="RGB", include_paths=True)
    computed = images.map_batches(
        Usual, batch_size=32, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1,
        fn_constructor_args=(backbone, folder),
    )  # fmt: skip
    computed.write_parquet(f"{folder}/parquet")


def plain(photos: str, backbone: str, folder: str) -> None:
    import featx

    report = featx.extract_features(
        photos, f"{folder}/f.h5", featx.ExtractConfig(backbone=backbone, weights="random:0", device="cpu")
    )
    with open(f"{folder}/times", "w", encoding="ascii") as file:
        file.write(json.dumps([time.time() - report.seconds, time.time(), report.computed]) + "\n")


WAYS = {RAY: on_ray, USUAL: usual, PLAIN: plain}


def measure(way: str, photos: Path, backbone: str) -> tuple[float, float]:
    """Images per second at work, and seconds until then."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        subprocess.run(
            [sys.executable, __file__, str(photos), "--backbone", backbone, "--way", way, "--folder", folder],
            check=True, capture_output=True,
        )  # fmt: skip
        rows = [json.loads(line) for line in Path(folder, "times").read_text().splitlines()]
    first, last = min(row[0] for row in rows), max(row[1] for row in rows)
    return sum(row[2] for row in rows) / (last - first), first - begun


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("photos", type=Path)
    arguments.add_argument("--backbone", default="alexnet")
    arguments.add_argument("--copies", type=int, default=4, help="of every photograph")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        WAYS[given.way](str(given.photos), given.backbone, given.folder)
        return
    from environment import machine

    from featx.runtime.text import table

    with tempfile.TemporaryDirectory() as folder:
        for copy in range(given.copies):
            for photo in sorted(given.photos.iterdir()):
                shutil.copy(photo, f"{folder}/{copy}-{photo.name}")
        found = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                found[way].append(measure(way, Path(folder), given.backbone))
    rows = []
    whole = sorted(rate for rate, _ in found[PLAIN])[given.rounds // 2]
    for way, times in found.items():
        rate, start = (sorted(values)[given.rounds // 2] for values in zip(*times, strict=True))
        rows.append([way, f"{rate:.1f}", f"{rate / whole:.2f}", f"{start:.1f} s"])
    print(machine())
    print("\n".join(table([f"{given.backbone}, in turns", "images/s", "of extract", "until it works"], rows, left=1)))


if __name__ == "__main__":
    main()
