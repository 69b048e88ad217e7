"""Every picture of docs/gallery.md, and that page: with what is shipped, on scikit-learn's digits and photographs.

python docs/draw_gallery.py WORK      (WORK keeps what is computed; it takes some minutes)
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
WIDTH, COLOURS = 1100, 255
# (title, what it shows, command, picture it leaves); {photos} and {digits} are folders, {out} is the output.
ENTRIES = (
    ("Saliency", "Which pixels decide for the class, by four methods.",
     "featx show saliency photos/flower.png -b alexnet-mini --method gradient,smoothgrad,integrated,gradcam"
     " -o saliency", "saliency/flower.png"),
    ("Occlusion", "A grey square moves over the image.",
     "featx show occlusion photos/flower.png -b vgg-mini -o occlusion", "occlusion/flower.png"),
    ("Filters", "The first convolution.", "featx show filters alexnet-mini -o filters", "filters/filters.png"),
    ("Maps", "Activation maps of an image, strongest first.",
     "featx show maps photos/china.png -b alexnet-mini -l conv2 --strongest 24 -o maps", "maps/china.conv2.png"),
    ("Top", "The images that excite units most, and what of them does.",
     "featx show top digits -b alexnet-mini -l conv3 --units random:8 -o top", "top/top.conv3.png"),
    ("Invariance", "Features and probability while the image is moved, enlarged and turned.",
     "featx show invariance photos/china.png photos/flower.png -b vgg-mini -l conv1_1,fc7 -o invariance",
     "invariance/invariance.png"),
    ("Class images", "What a network takes for the essence of a class.",
     "featx show class-image vgg-mini --target 'tarantula,monarch,bell pepper,school bus' -o classes",
     "classes/classes.png"),
    ("Correspondence", "Whether hiding the same part of different images changes features alike.",
     "featx show correspondence parts.csv -b alexnet-mini -l conv5,fc7 -o parts", "parts/correspondence.png"),
    ("Map", "Alike images side by side, as points; also as a page to zoom into.",
     "featx show map digits.h5 -l fc7 -o map", "map/map.png"),
    ("Map as a grid", "The images themselves, each in a cell of its own.",
     "featx show map digits.h5 -l fc7 -o map", "map/grid.jpg"),
    ("Neighbors", "The nearest images, by layer.",
     "featx show neighbors digits.h5 --query 700 -l conv3,fc7 -o neighbors", "neighbors/row-700.png"),
    ("Evolution", "What units looked for at the snapshots of a training.",
     "featx show evolution run -l conv3 --units random:4 -o evolution", "evolution/evolution.png"),
    ("Probe", "Which layer transfers best.", "featx probe digits.h5 --per-class 10 --repeats 3 -o probe",
     "probe/probe.png"),
    ("Augmentation", "What a training sees of images.",
     "featx show augment photos --augment flip,crop,jitter:0.4,cutmix -b alexnet -o augment", "augment/augment.png"),
    ("Learning rates", "The loss while all rates grow.",
     "featx lr-find digits -b alexnet-mini --init-head random --lr conv1-conv4=0,conv5-fc7=1e-3,fc8=1e-2 -o lr",
     "lr/lr.png"),
    ("Dissimilarities", "How different a layer finds every two images.", "featx rdm digits.h5 -l fc7 -o rdm",
     "rdm/fc7.png"),
    ("Similarities", "How similar every two layers are: CKA.", "featx similarity digits.h5 digits.h5 -o similarity",
     "similarity/similarity.png"),
)  # fmt: skip
INTRODUCTION = (
    "Every picture with its command, made by `python docs/draw_gallery.py` with the two small networks that featx",
    "brings along, on the digits and the two photographs of scikit-learn. [show.md](show.md) says what each is,",
    "where it comes from, and what to believe.",
)
FIRST = (
    "featx extract digits -b alexnet-mini -l conv1,conv3,conv5,fc7 --pool avg -o digits.h5",
    "featx finetune digits -b alexnet-mini --from-scratch --epochs 4 --snapshots 0,1,2,4 -o run",
)
WRITE = "python pipelines/digits/write_digits.py digits photos"
FILES = (
    "## The files behind them", "", "```sh", WRITE, *FIRST, "```", "",
    "`parts.csv` has the bar and the foot of six sevens, `digits/7/NAME.png,bar,16,2,32,16` and `foot,16,46,32,16`,",
    "under the line `path,part,left,top,width,height`.",
)  # fmt: skip
# Left, top, width and height of the same parts of six digits: the upper and the lower end of sevens.
PARTS = "path,part,left,top,width,height\n"


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    write = HERE.parent / "pipelines" / "digits" / "write_digits.py"
    subprocess.run([sys.executable, write, work / "digits", work / "photos"], check=True)
    sevens = sorted((work / "digits" / "7").glob("*.png"))[:6]
    lines = [f"{path.relative_to(work)},{part},16,{top},32,16" for path in sevens
             for part, top in (("bar", 2), ("foot", 46))]  # fmt: skip
    (work / "parts.csv").write_text(PARTS + "\n".join(lines) + "\n")
    for command in (*FIRST, *dict.fromkeys(entry[2] for entry in ENTRIES)):
        print(command)
        subprocess.run(shlex.split(command), cwd=work, check=True, stdout=subprocess.DEVNULL)
    text = ["# Gallery", "", *INTRODUCTION, "", *FILES, ""]
    for title, what, command, picture in ENTRIES:
        name = title.lower().replace(" ", "-") + Path(picture).suffix
        shrink(work / picture, PICTURES / name)
        text += [f"## {title}", "", what, "", "```sh", command, "```", "", f"![{title}](pictures/{name})", ""]
    (HERE / "gallery.md").write_text("\n".join(text))


def shrink(source: Path, target: Path) -> None:
    """A copy that is small enough for a repository."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    if target.suffix == ".jpg":
        image.save(target, quality=70)
    else:
        image.quantize(COLOURS, Image.Quantize.MEDIANCUT).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
