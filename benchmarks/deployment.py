"""What folding, channels_last and torch.compile gain: DenseNet-121 with A3 and PWAP at 224 px, against plain eager.

`python benchmarks/deployment.py [--batch 1 4] [--out FILE]`: the whole network in inference on the CPU, float32, in
turns, one thread, for one film and for several at once. Plain eager is the network in PyTorch's own operations
(backend="reference"), as it was trained. Times are of the processor, which other work slows less than the clock;
outputs are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

import axnet
from axnet.export import fold
from axnet.models import AnatomyXNet
from axnet.report.environment import environment


def measure(model: AnatomyXNet, lean: nn.Module, batch: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Every form's time and its difference from the network in PyTorch's own operations."""
    image, mask = torch.rand(batch, 1, size, size), torch.rand(batch, 2, size, size)
    last = image.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(lean, dynamic=False)

    def reference() -> Tensor:
        with axnet.use_backend("reference"):
            return model(image, mask).logits

    forms = {
        "plain eager": reference,
        "axnet's kernels": lambda: model(image, mask).logits,
        "folded, channels_last": lambda: lean(last, mask).logits,
        "folded, channels_last, compiled": lambda: compiled(last, mask).logits,
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    wanted = reference()
    differences = {name: (call() - wanted).abs().max().item() for name, call in forms.items()}
    assert max(differences.values()) <= 1e-4, differences
    for _ in range(rounds):
        for name, call in forms.items():
            start = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - start) / batch)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "processor ms per image": {name: round(value, 2) for name, value in medians.items()},
        "times faster": {name: round(medians["plain eager"] / value, 2) for name, value in medians.items()},
        "largest difference of a logit": differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AnatomyXNet(14, backbone=options.backbone).eval()
    folded = fold(model)
    lean = folded.model.to(memory_format=torch.channels_last)
    # not torch.compile's options={"freezing": True}: torch 2.13 takes that and freezes nothing
    with inductor.patch(freezing=True, cpp_wrapper=True, max_autotune=True), torch.inference_mode():
        measured = {
            f"batch {batch}": measure(model, lean, batch, options.size, options.rounds) for batch in options.batch
        }
    result = {
        "environment": environment(),
        "network": f"AnatomyXNet, {options.backbone}, {options.size} px, one thread",
        "folded": str(folded).splitlines(),
        "rounds": options.rounds,
        **measured,
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
