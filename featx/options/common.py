"""Options that several commands share."""

from __future__ import annotations

from typing import Any

from featx.options.option import option
from featx.options.parsing import parse_bytes, parse_fraction


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
    return option(False, "Resize the whole image to the crop size, ignoring its aspect.")


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
