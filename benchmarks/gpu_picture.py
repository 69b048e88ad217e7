"""The picture of a run of gpu.py: what every case of extraction reaches, and what each of its stages allows alone.

python benchmarks/gpu_picture.py benchmarks/results/gpu-NAME.json benchmarks/results/gpu-NAME.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STAGES = {"decode": "v", "copy": "s", "network": "D", "disk": "^"}


def draw(found: dict[str, Any], picture: Path) -> Path:
    """Bars of images per second, marks of the stages' own rates."""
    cases = {name: case for name, case in found["extraction"].items() if isinstance(case, dict)}
    axes = (figure := Figure(figsize=(8.0, 1.2 + 0.45 * len(cases)), layout="constrained", dpi=150)).subplots()
    places = range(len(cases))
    axes.barh(places, [case["images_per_second"] for case in cases.values()], color="#4878a8", label="featx")
    for stage, marker in STAGES.items():
        rates = [case["limits"][stage] for case in cases.values()]
        axes.plot(rates, places, marker, color="black", fillstyle="none", label=f"{stage} alone")
    axes.set_yticks(places, [f"{name}: bound by {case['bound_by']}" for name, case in cases.items()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("images per second")
    axes.set_xlim(left=300)
    figure.suptitle("\n".join(str(found["machine"]).split("; ")), fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(picture, metadata={"Software": None})
    return picture


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
