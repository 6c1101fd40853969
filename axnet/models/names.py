"""Names of weights in state dicts: what wrappers put before them, and what older files call them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

_LAYER = re.compile(r"(^|\.)(denseblock\d+\.denselayer\d+)\.(norm|relu|conv)\.?([12])\.")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def as_named_here(stored: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """A state dict under the names of the module that it is for.

    stored: as some program saved it. A prefix that all names of the module share there ("module." of DataParallel,
    "model." or "net." of Lightning's modules, one within another) is taken off, "_orig_mod." of torch.compile wherever
    it stands, and layers of a DenseNet get MONAI's names from torchvision's, of today or of 2017. What stands beside
    the prefix (an optimizer's, a loss's) is left out; without a prefix, every other name stays as it is.
    wanted: names of the module. Raises ValueError when two parts of stored fit the module equally well.
    """
    unwrapped = {_WRAPPERS.sub("", name): value for name, value in stored.items()}
    renamed = {_LAYER.sub(r"\1\2.layers.\3\4.", name): value for name, value in unwrapped.items()}
    choices = [(form, prefix) for form in (stored, unwrapped, renamed) for prefix in _prefixes(form, wanted)]
    form, best = max(choices, key=lambda one: _found(one[0], one[1], wanted))  # of equal ones the first, the plainest
    found = _found(form, best, wanted)
    rivals = [prefix for prefix in _prefixes(form, wanted) if prefix and _found(form, prefix, wanted) == found]
    if best and len(rivals) > 1:
        raise ValueError(f"weights for this model stand under {rivals[0]!r} and under {rivals[1]!r}, expected one set.")
    return {name.removeprefix(best): value for name, value in form.items() if name.startswith(best)}


def _prefixes(stored: Collection[str], wanted: Collection[str]) -> list[str]:
    """No prefix, then those under which one of the module's first two names occurs: either may be missing."""
    anchors = list(wanted)[:2]
    ends = [name.removesuffix(anchor) for anchor in anchors for name in stored if name.endswith(f".{anchor}")]
    return ["", *dict.fromkeys(ends)]


def _found(stored: Collection[str], prefix: str, wanted: Collection[str]) -> int:
    return sum(prefix + name in stored for name in wanted)
