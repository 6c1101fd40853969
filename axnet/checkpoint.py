"""Weights in files: safetensors with metadata, written in one step and verified by a fingerprint.

A checkpoint holds tensors and plain values only. Nothing in it is ever executed: a pickle is refused unread.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axnet.paths import StrPath

FORMAT = 1
_KEY = "axnet"
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save(path: StrPath, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to a .safetensors file that replaces an older one in one step.

    state: names to tensors, on any device. metadata: plain values (what json takes), with the entry "kind".
    Raises ValueError without a kind, OSError when the file cannot be written: then the older file is whole.
    """
    from safetensors.torch import save as to_bytes

    if "kind" not in metadata:
        raise ValueError("metadata has no 'kind', expected the kind of checkpoint, such as 'classifier'.")
    target = Path(path)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = to_bytes(tensors, metadata={_KEY: _as_json({**metadata, "format": FORMAT})})
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:  # unlike mkstemp, which nobody else may read, follows the umask
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "; the file that was there before is whole" if target.is_file() else ""
        failure = OSError(f"cannot write checkpoint '{target}': {error.strerror or error}{kept}.")
        failure.errno = error.errno  # set apart, so that the text does not begin with "[Errno 28]"
        raise failure from error


def _as_json(metadata: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"metadata holds a {type(value).__name__}, expected text, numbers, lists and dicts of them.")

    return json.dumps(metadata, sort_keys=True, default=plain)


def load(path: StrPath, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of one kind: its tensors, on the CPU, and its metadata.

    Raises FileNotFoundError, and ValueError for a file that is not an axnet checkpoint (a pickle is refused without
    being read), is damaged, is of another format than this version's, or is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint '{file}' does not exist.")
    with file.open("rb") as opened:
        head = opened.read(9)
    # a header's length can begin like a pickle, but the header itself begins with a brace and lies within the file
    length = int.from_bytes(head[:8], "little")
    if head.startswith(_PICKLES) and not (head[8:] == b"{" and length <= file.stat().st_size - 8):
        raise ValueError(f"checkpoint '{file}' is a pickle, which can run code; expected a .safetensors file of axnet.")
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = json.loads((stored.metadata() or {}).get(_KEY, "null"))
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"checkpoint '{file}' is damaged or not a .safetensors file ({reason}).") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int) or "kind" not in metadata:
        raise ValueError(f"checkpoint '{file}' was not written by axnet, expected one that axnet saved.")
    if metadata["format"] != FORMAT:
        raise ValueError(f"checkpoint '{file}' has format {metadata['format']}, this version reads format {FORMAT}.")
    if metadata["kind"] != kind:
        raise ValueError(f"checkpoint '{file}' holds a {metadata['kind']}, expected a {kind}.")
    return state, metadata


def fingerprint(run: Callable[..., Tensor], shapes: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any]:
    """What a model answers to inputs that a seed determines, to be verified after loading.

    run: called with one float32 tensor in [0, 1) per shape, drawn by numpy's PCG64 and so the same under any torch;
    returns one tensor, best of logits: saturated probabilities hide differences.
    Returns plain values for metadata: the question, and of the answer its shape, up to 64 values spread over it, mean
    and standard deviation. Raises ValueError for an empty answer or one that is not finite (a run that diverged).
    """
    output = _run(run, shapes, seed)
    values = _summary(output)
    if not all(map(math.isfinite, values)):
        raise ValueError("the model answers with values that are not finite, so its weights cannot be saved.")
    return {
        "seed": seed,
        "shapes": [list(shape) for shape in shapes],
        "output_shape": list(output.shape),
        "outputs": values,
    }


def verify_fingerprint(
    run: Callable[..., Tensor],
    record: Mapping[str, Any],
    path: StrPath,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> None:
    """Check that a loaded model answers as the saved one did.

    record: of fingerprint; path: named in errors. Accepted is a difference of atol, plus rtol times the largest
    recorded value. Raises ValueError otherwise.
    """
    output = _run(run, record["shapes"], record["seed"])
    if list(output.shape) != record["output_shape"]:
        raise ValueError(
            f"checkpoint '{path}' fails its fingerprint: outputs of shape {list(output.shape)}, "
            f"expected {record['output_shape']}."
        )
    expected = np.asarray(record["outputs"])
    error = float(np.abs(np.asarray(_summary(output)) - expected).max())
    accepted = atol + rtol * float(np.abs(expected).max())
    if not error <= accepted:
        raise ValueError(
            f"checkpoint '{path}' fails its fingerprint: outputs differ by {error:.3g}, expected at most "
            f"{accepted:.3g}; the weights or the code are not those that were saved."
        )


def _summary(output: Tensor) -> list[float]:
    """Up to 64 values spread over all rows and columns, then mean and standard deviation of all."""
    flat = output.flatten()
    if flat.numel() == 0:
        raise ValueError(f"the model answers with shape {list(output.shape)}, expected at least one value.")
    # Not every n-th value: with n a multiple of the width, that would be one column of a map.
    positions = np.linspace(0, flat.numel() - 1, min(flat.numel(), 64)).round().astype(np.int64)
    deviation, mean = torch.std_mean(flat.double(), correction=0)
    return [*flat[torch.from_numpy(positions)].tolist(), mean.item(), deviation.item()]


def _run(run: Callable[..., Tensor], shapes: Sequence[Sequence[int]], seed: int) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = [torch.from_numpy(generator.random(tuple(shape), dtype=np.float32)) for shape in shapes]
    # the record is of full precision, also where the caller's mixed precision is on
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return run(*inputs).detach().float().cpu()
