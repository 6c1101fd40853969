"""Imports what decodes films, so that a process forked of one that imported this starts at once."""

import contextlib

from PIL import Image

import axnet.data.image

with contextlib.suppress(ImportError):
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    for _syntax in pydicom.uid.AllTransferSyntaxes:
        with contextlib.suppress(NotImplementedError):
            get_decoder(_syntax)

Image.init()
__all__ = ["axnet"]
