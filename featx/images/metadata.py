"""What a file says beside its pixels: orientation, its format, and comments that must not cost the picture."""

from __future__ import annotations

import struct

from PIL import Image

ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_JPEG_COLOURS = {0xE0, 0xEE}  # JFIF and Adobe say what the components are; the other APPn and comments are metadata
_START_OF_SCAN = 0xDA


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is none or it is nonsense.

    TIFF's own orientation is part of that format, and Pillow applies it in any case: it counts as upright.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    if isinstance(value, bytes) and len(value) == 1:  # written as a byte, not as the standard's 16 bits
        value = value[0]
    return value if value in range(1, 9) else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as it is meant to be seen, from its EXIF orientation, 1 to 8; anything else leaves it as it is."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def without_metadata(content: bytes) -> bytes | None:
    """The same picture without text, profiles, EXIF and the like; None of files that are not PNG or JPEG."""
    if content.startswith(PNG_SIGNATURE):
        return _plain_png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _plain_jpeg(content)
    return None


def _plain_png(content: bytes) -> bytes:
    kept, offset = [content[:8]], 8
    while offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        end = offset + 12 + length
        if kind in _PNG_PIXELS:
            kept.append(content[offset:end])
        offset = end
    return b"".join(kept)


def _plain_jpeg(content: bytes) -> bytes:
    kept, offset = [content[:2]], 2
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            offset += 1
            continue
        if marker == _START_OF_SCAN:
            break
        end = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_COLOURS:
            kept.append(content[offset:end])
        offset = end
    return b"".join([*kept, content[offset:]])


_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF"}
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance", b"DDS ": "DDS",
    b"SIMPLE  =": "FITS", b"gimp xcf": "GIMP",
}  # fmt: skip
_LOSSLESS = {0xC3: "lossless", 0xC5: "differential", 0xC6: "differential", 0xC7: "differential lossless",
             0xCB: "lossless arithmetic"}  # fmt: skip


def unsupported_variety(content: bytes) -> str | None:
    """The name of a picture that is known but cannot be read: a format, or a kind of JPEG; None of anything else."""
    if content[4:8] == b"ftyp":
        return _BRANDS.get(content[8:12])
    if content.startswith(b"\xff\xd8\xff"):
        return _unsupported_jpeg(content)
    return next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)


def _unsupported_jpeg(content: bytes) -> str | None:
    offset = 2
    while offset + 9 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == 0xFF:
            offset += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # tables, not frames
            bits, components = content[offset + 4], content[offset + 9] if offset + 9 < len(content) else 0
            if bits != 8:
                return f"JPEG of {bits} bits"
            if components not in (1, 3, 4):
                return f"JPEG of {components} components"
            return f"{_LOSSLESS[marker]} JPEG" if marker in _LOSSLESS else None
        offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return None
