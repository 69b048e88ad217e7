"""Options that several commands share."""

from __future__ import annotations

from typing import Any

from featx.options.option import option
from featx.options.parsing import parse_bytes, parse_c, parse_fraction, parse_mean, parse_pad_color, parse_std

# The options that say how an image becomes the pixels that a network sees.
PREPARATION = (
    "preprocess", "resize", "crop", "squash", "fit", "pad_color", "mean", "std", "interpolation", "grey", "exif",
)  # fmt: skip

FITS = ("crop", "pad", "squash")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "nearest")
VIEWS = {"center": 1, "corners": 5, "ten": 10}
AGGREGATES = ("mean", "max", "stack")


def device_option() -> Any:
    return option("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one.", metavar="DEVICE")


def batch_size_option() -> Any:
    return option(
        None, "Images per forward pass; by default chosen from the network and device.", low=1, high=4096, metavar="N"
    )


def decode_option() -> Any:
    return option(
        "cpu",
        "Who decodes JPEGs: cpu (Pillow, exact); fast (libjpeg-turbo and PyTorch, a level or two off); gpu (nvJPEG, "
        "likewise); auto (Pillow and nvJPEG, whoever is free).",
        choices=("cpu", "fast", "gpu", "auto"),
    )


def workers_option() -> Any:
    return option(
        None,
        "Threads that read, decode and compute; by default one per core.",
        low=1,
        high=1024,
        metavar="N",
        recorded=False,
    )


def image_timeout_option() -> Any:
    return option(
        30.0,
        "Seconds to decode one image; one that takes longer has failed.",
        low=0.1,
        high=86_400.0,
        metavar="SECONDS",
        recorded=False,
    )


def max_bad_option() -> Any:
    return option(
        0.01,
        "Largest share of images that may fail before the run stops: 0.05 or 5%.",
        parse=parse_fraction,
        metavar="SHARE",
        recorded=False,
    )


def follow_links_option() -> Any:
    return option(False, "Follow links to folders (off: a link can lead in circles).")


def c_option(when: str = "") -> Any:
    return option(
        None, f"Inverse regularisation as scikit-learn means it, or auto: cross-validated{when}.", parse=parse_c,
        metavar="C|auto",
    )  # fmt: skip


def class_weight_option() -> Any:
    return option(
        None, "How much the images of each class count: balanced, as much for every class; or a CSV file with the "
        "columns class,weight; by default all images the same.", metavar="balanced|FILE",
    )  # fmt: skip


def score_option(what: str, weights: str = "--class-weight") -> Any:
    return option(
        None, f"What {what} is chosen by: accuracy; balanced, the mean accuracy per class; ap, the mean average "
        f"precision; by default accuracy, with {weights} balanced.", choices=("accuracy", "balanced", "ap"),
    )  # fmt: skip


def preprocess_option() -> Any:
    return option(
        None,
        "Prepare images as for these published weights, as IMAGENET1K_V1; by default as for those given, or the "
        "network's default.",
        metavar="WEIGHTS",
    )


def resize_option() -> Any:
    return option(
        None,
        "Shorter side in pixels before the crop, instead of the weights' own.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )


def squash_option() -> Any:
    return option(False, "Resize the whole image to the crop size, ignoring its aspect: as --fit squash.")


def fit_option() -> Any:
    return option(
        None, "How an image becomes a square: crop (resize the shorter side, cut out the centre), pad (resize the "
        "longer side, with a border) or squash; by default as the weights want it, which is crop.",
        choices=FITS,
    )  # fmt: skip


def pad_color_option() -> Any:
    return option(
        None, "Colour of the border of --fit pad: R,G,B from 0 to 255, or mean; by default black.",
        parse=parse_pad_color, metavar="COLOUR",
    )  # fmt: skip


def mean_option() -> Any:
    return option(
        None, "Mean to subtract from colours of 0 to 1, as 0.485,0.456,0.406, instead of the weights' own.",
        parse=parse_mean, metavar="R,G,B",
    )  # fmt: skip


def std_option() -> Any:
    return option(None, "Deviation to divide them by, instead of the weights' own.", parse=parse_std, metavar="R,G,B")


def interpolation_option() -> Any:
    return option(
        None, "How images are resized, instead of the weights' own; all but nearest with antialias.",
        choices=INTERPOLATIONS,
    )  # fmt: skip


def grey_option() -> Any:
    return option(False, "Turn colours into grey (Rec. 601 luma), three times, after the resize.")


def group_by_option() -> Any:
    return option(
        None, "What must not be torn apart by a split or fold: a regular expression, whose first group (or all it "
        "finds) in a path names the patient, video or photographer.", metavar="REGEX",
    )  # fmt: skip


def exif_option() -> Any:
    return option(False, "Turn images as their EXIF orientation says.")


def memory_option() -> Any:
    return option(
        None,
        "Memory the fit may use, as 4G or 512M; by default half of what is free. Larger features are streamed.",
        parse=parse_bytes,
        metavar="BYTES",
        recorded=False,
    )
