"""What a command or a package imports decides how soon it answers; counted in modules, not in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "lightning",
    "monai",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "torchmetrics",
    "tensorboard",
    "numpy",
}
AFTERWARDS = "; import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def modules_after(code: str, *arguments: str) -> set[str]:
    """Packages that an interpreter has imported when it has run the code."""
    done = subprocess.run(
        [sys.executable, "-c", code + AFTERWARDS, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = {['axnet', *arguments]!r}\n"
        "from axnet.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code\n"
        "else: pass\n"
        "import sys"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("fit", "--help"),
        ("predict", "-h"),
        ("evaluate", "--help"),
        ("demo", "--help"),
        ("export", "--help"),
        ("serve", "--help"),
        ("bench", "--help"),
        ("segment", "--help"),
        ("segment", "predict", "--help"),
    ],
)
def test_help_and_version_need_no_torch(arguments: tuple[str, ...]) -> None:
    assert not modules_after(command(*arguments)) & HEAVY


def test_version() -> None:
    import axnet

    done = subprocess.run([sys.executable, "-c", command("--version")], capture_output=True, text=True, check=True)
    assert done.stdout == f"axnet {axnet.__version__}\n"


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import axnet", HEAVY),
        ("import axnet.nn, axnet.functional", HEAVY - {"torch", "numpy"}),
        ("import axnet.models", HEAVY - {"torch", "numpy"}),
        ("import axnet.segment", {"lightning", "monai", "matplotlib", "pandas", "sklearn"}),
        ("from axnet.segment import load_pretrained; load_pretrained()", {"lightning"}),
        ("import axnet.train", {"lightning", "monai", "matplotlib", "sklearn"}),
        ("from axnet.train import predict, read_images, with_predicted_masks, segmenter_for", {"lightning", "monai"}),
    ],
)
def test_packages_import_no_more_than_they_need(code: str, never: set[str]) -> None:
    assert not modules_after(code) & never


@pytest.mark.slow
def test_a_net_brings_monai_and_training_lightning() -> None:
    built = modules_after("from axnet.models import tiny; tiny()")
    assert "monai" in built
    assert "lightning" not in built
    assert "lightning" in modules_after("from axnet.train import fit")


def test_scoring_films_needs_no_lightning(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from axnet.models import DenseNetGAP, Preprocessing, save_classifier

    save_classifier(tmp_path / "m.safetensors", DenseNetGAP(2, "tiny"), Preprocessing(size=32), ("a", "b"))
    Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48).astype(np.uint8)).save(tmp_path / "film.png")
    code = command(
        "predict",
        str(tmp_path / "film.png"),
        "--weights",
        str(tmp_path / "m.safetensors"),
        "--out",
        str(tmp_path / "p.csv"),
    )
    assert "lightning" not in modules_after(code)
    assert (tmp_path / "p.csv").read_text().startswith("image,a,b\n")


def test_lazy_names_are_all_there() -> None:
    import axnet
    import axnet.segment
    import axnet.train

    for module in (axnet, axnet.segment, axnet.train):
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "--data", "nih"),
        ("predict", "none.png", "--weights", "none"),
        ("evaluate", "--weights", "none"),
        ("demo", "--data", "nih"),
        ("segment", "predict", "none.png"),
    ],
)
def test_commands_keep_freed_memory(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from axnet import cli

    calls: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(True))
    assert CliRunner().invoke(cli.app, arguments).exit_code != 0  # the error comes later
    assert calls == [True]


def test_the_library_leaves_the_callers_memory_alone() -> None:
    packages = ", ".join(
        f"axnet.{name}" for name in ("nn", "models", "metrics", "data", "segment", "report", "train.fitting")
    )
    code = f"import {packages}; import sys; assert 'axnet.memory' not in sys.modules"
    assert "axnet" in modules_after(code)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of glibc")
def test_memory_is_kept() -> None:
    count = (
        "import resource, torch\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.empty(2**24).zero_()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "print(faults())"
    )

    def faults(first: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", first + count], capture_output=True, text=True, check=True, timeout=300
        )
        return int(done.stdout)

    # 64 MiB ten times over are 163,840 pages of 4 KiB (fewer where pages are larger)
    assert faults("from axnet.memory import keep_freed_memory; assert keep_freed_memory()\n") < faults("") / 20
