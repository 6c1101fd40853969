"""Classifiers as programs of standard ops: ONNX, torch.export, AOTInductor. They run without axnet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from axnet import __version__
from axnet.backends import use_backend
from axnet.data.files import replacing
from axnet.folding import Folded, fold
from axnet.models import AnatomyXNet, ClassifierInfo, load_classifier
from axnet.paths import StrPath

__all__ = ["FORMATS", "METADATA", "TOLERANCE", "Folded", "Program", "export", "fold", "metadata_of", "output_names"]

Format = Literal["onnx", "pt2", "aoti"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2", "aoti")
METADATA = "axnet.json"
"""Under this name a program's metadata stands in it: a property of the ONNX model, a file within the .pt2 of
torch.export, an entry of an AOTInductor package's metadata."""
TOLERANCE = 1e-4
"""By which outputs of a program may differ from the classifier's."""

Outputs = tuple[Tensor, ...]


class Program(nn.Module):
    """What is exported of a classifier: image [N,1,S,S] with grey values in [0,1] after the preprocessing's stretch and
    resize, and for Anatomy-XNet the mask [N,A,S,S] in [0,1], to logits [N,K], calibrated probabilities [N,K] and, per
    stage, probability maps [N,K or 1,h,w]. The normalisation is part of it.
    """

    def __init__(self, model: nn.Module, info: ClassifierInfo) -> None:
        """Around a classifier in eval mode."""
        super().__init__()
        self.model = model
        self.guided = isinstance(model, AnatomyXNet)
        self.preprocessing, self.calibration = info.preprocessing, info.calibration

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Outputs:
        """Logits, probabilities and maps."""
        normalised = self.preprocessing.normalize(image)
        out = self.model(normalised, mask) if self.guided else self.model(normalised)
        logits = out.logits
        probabilities = logits.sigmoid() if self.calibration is None else self.calibration.probabilities(logits)
        return logits, probabilities, *out.prob_maps


def metadata_of(model: nn.Module, info: ClassifierInfo) -> dict[str, Any]:
    """What a program's user has to know: inputs, outputs, preprocessing, findings, calibration and operating points."""
    size = info.preprocessing.size
    inputs: dict[str, Any] = {"image": {"shape": ["N", 1, size, size], "range": [0.0, 1.0]}}
    if isinstance(model, AnatomyXNet):
        anatomies = info.config.get("num_anatomies", 2)
        inputs["mask"] = {"shape": ["N", anatomies, size, size], "range": [0.0, 1.0]}
        if anatomies == 2:
            inputs["mask"]["anatomies"] = ["lungs", "heart"]
    return {
        "axnet": __version__,
        "architecture": info.architecture,
        "inputs": inputs,
        "outputs": output_names(model),
        "findings": list(info.classes),
        "preprocessing": info.preprocessing.to_dict() | {"normalisation": "inside the program"},
        "calibration": None if info.calibration is None else info.calibration.to_dict(),
    }


def output_names(model: nn.Module) -> list[str]:
    """Names of a program's outputs."""
    stages = len(cast(Any, model).pooling) if isinstance(model, AnatomyXNet) else 0
    return ["logits", "probabilities", *(f"prob_map_{i}" for i in range(stages))]


def export(weights: StrPath, out: StrPath, format: Format, say: Callable[[str], None] | None = None) -> float:
    """Write the classifier of a checkpoint as a program, its batch normalisations folded, and compare the two.

    weights: a file of axnet fit. out: the file to write: .onnx, or .pt2 for torch.export.load and for
    torch._inductor.aoti_load_package ("aoti", compiled for this machine's processor). Any number of images may be given
    to the program, in NCHW or channels_last; to an AOTInductor package contiguous ones. say: takes what was folded.
    Returns by how much the outputs for random images differ at most from those of the classifier on axnet's kernels.
    Raises ValueError for another format or suffix, where outputs differ by more than TOLERANCE, or for a checkpoint
    that does not load; ImportError where a package is missing (`pip install 'axnet[export]'`).
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {FORMATS}.")
    suffix = ".onnx" if format == "onnx" else ".pt2"
    if Path(out).suffix != suffix:
        raise ValueError(f"out is '{out}', expected a file {suffix} for format '{format}'.")
    if format == "onnx":
        import onnx  # noqa: F401  # said before the work, not after it
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    elif format == "aoti":
        _compiler()
    model, info = load_classifier(weights)
    program = Program(model, info).eval()
    folded = fold(model)
    if say is not None:
        say(str(folded))
    lean = Program(folded.model, info).eval()
    text = json.dumps(metadata_of(model, info))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        examples = [_inputs(program, info, count) for count in (2, 3, 1)]
    examples[1] = tuple(t.to(memory_format=torch.channels_last) for t in examples[1])
    with torch.no_grad(), use_backend("reference"):
        batch = torch.export.Dim("batch", min=1, max=65535)
        shapes = tuple({0: batch} for _ in examples[0])
        exported = torch.export.export(lean, examples[0], dynamic_shapes=shapes).run_decompositions()
    with replacing(out) as partial:
        named = partial.with_name(f"{partial.name}{suffix}")  # some writers insist on the suffix
        try:
            run = {"onnx": _onnx, "pt2": _pt2, "aoti": _aoti}[format](exported, named, text, output_names(model))
            with torch.no_grad():
                worst = max(_difference(program(*given), run(*given)) for given in examples)
            if not worst <= TOLERANCE:
                raise ValueError(
                    f"the program's outputs differ from the classifier's by {worst:.1e}, over {TOLERANCE:.0e}."
                )
            named.replace(partial)
        finally:
            named.unlink(missing_ok=True)
    return worst


def _inputs(program: Program, info: ClassifierInfo, count: int) -> tuple[Tensor, ...]:
    side = (info.preprocessing.size, info.preprocessing.size)
    image = torch.rand(count, 1, *side)
    return (image, torch.rand(count, info.config.get("num_anatomies", 2), *side)) if program.guided else (image,)


def _difference(wanted: Outputs, found: Outputs) -> float:
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return float("inf")
    return max((a - b).abs().max().item() for a, b in zip(wanted, found, strict=True))


def _onnx(exported: torch.export.ExportedProgram, path: Path, text: str, names: list[str]) -> Callable[..., Outputs]:
    import onnxruntime

    given = ["image", "mask"][: len(exported.graph_signature.user_inputs)]
    program = torch.onnx.export(exported, input_names=given, output_names=names, dynamo=True, verbose=False)
    assert program is not None
    program.model.metadata_props[METADATA] = text
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Outputs:
        fed = {name: t.contiguous().numpy() for name, t in zip(given, inputs, strict=True)}
        return tuple(torch.from_numpy(a) for a in session.run(None, fed))

    return run


def _pt2(exported: torch.export.ExportedProgram, path: Path, text: str, names: list[str]) -> Callable[..., Outputs]:
    torch.export.save(exported, path, extra_files={METADATA: text})
    return cast(Callable[..., Outputs], torch.export.load(path).module())


def _compiler() -> None:
    """Raise ValueError where AOTInductor finds no C++ compiler, before the work and not after it."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError("format is 'aoti', which needs a C++ compiler: install g++ or set CXX.") from error


def _aoti(exported: torch.export.ExportedProgram, path: Path, text: str, names: list[str]) -> Callable[..., Outputs]:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    settings = {"aot_inductor.metadata": {METADATA: text}}
    aoti_compile_and_package(exported, package_path=str(path), inductor_configs=settings)
    loaded = aoti_load_package(str(path))

    def run(*inputs: Tensor) -> Outputs:
        return tuple(loaded(*(t.contiguous() for t in inputs)))

    return run
