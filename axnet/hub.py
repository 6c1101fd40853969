"""Classifiers on the Hugging Face Hub (`pip install 'axnet[hub]'`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from axnet.models import ClassifierInfo, load_classifier, save_classifier
from axnet.paths import StrPath
from axnet.predictor import Predictor
from axnet.segment import Segmenter

try:
    from huggingface_hub import (
        _CACHED_NO_EXIST,
        ModelCard,
        PyTorchModelHubMixin,
        hf_hub_download,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the Hub is reached through huggingface_hub: pip install 'axnet[hub]'.", name=error.name
    ) from None

WEIGHTS, SEGMENTER = "model.safetensors", "segmenter.safetensors"
"""Files of a repository; each is a checkpoint as axnet writes it, so `axnet predict --weights` takes them too."""

_CARD = """
# Chest X-ray classifier: {architecture} on {backbone}

Reads {findings} on frontal chest X-rays at {size} px, {calibrated}. **Not a medical device.**

```python
from axnet.hub import HubClassifier

predictor = HubClassifier.from_pretrained("REPOSITORY").predictor()
predictor.predict(["film.png"])
```

Nobody has written yet what it was trained on, what it reaches and what it misses: say so here before others use it.
"""


class HubClassifier(  # type: ignore[call-arg, unused-ignore]  # without huggingface_hub the bases are unknown
    nn.Module,
    PyTorchModelHubMixin,
    library_name="axnet",
    pipeline_tag="image-classification",
    tags=["chest-x-ray", "radiology", "medical-imaging"],
):
    """A classifier with what belongs to it, as a repository of the Hub or a folder like one.

    `push_to_hub("me/name")`, `save_pretrained("folder")` and `from_pretrained` are huggingface_hub's own, with their
    arguments (token, private, revision, cache_dir ...). A repository holds model.safetensors, segmenter.safetensors
    where there is one, config.json (findings, preprocessing, calibration; for people) and the card, README.md.
    What is loaded is verified by its fingerprint.
    """

    def __init__(
        self, model: nn.Module, info: ClassifierInfo, segmenter: Segmenter | None = None, card: str | None = None
    ) -> None:
        """Around what load_classifier returns; card: Markdown, None for what the checkpoint says.

        segmenter: the one that drew its masks, None for the one that comes with axnet.
        """
        super().__init__()
        self.model = model
        self.info = info
        self.segmenter = segmenter
        self.card = card
        self.eval()

    @classmethod
    def load(cls, weights: StrPath) -> HubClassifier:
        """From a file of axnet fit, with the segmenter.safetensors and the card (of the same name, .md) beside it."""
        path = Path(weights)
        segmenter, card = path.parent / SEGMENTER, path.with_suffix(".md")
        return cls(
            *load_classifier(path),
            Segmenter.load(segmenter) if segmenter.is_file() else None,
            card.read_text(encoding="utf-8") if card.is_file() else None,
        )

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Any:
        """As the classifier's."""
        return self.model(image, mask)

    def predictor(self) -> Predictor:
        """Reads films: files or arrays."""
        return Predictor(self.model, self.info, self.segmenter)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card under the Hub's header; kwargs: entries of it, such as license="apache-2.0" (model_card_kwargs)."""
        data: Any = cast(Any, self._hub_mixin_info).model_card_data
        header = type(data)(**{**data.to_dict(), **kwargs})
        info = self.info
        text = self.card or _CARD.format(
            architecture=type(self.model).__name__,
            backbone=info.config["backbone"],
            findings=", ".join(info.classes),
            size=info.preprocessing.size,
            calibrated="with calibrated probabilities" if info.calibration else "without calibration",
        )
        return ModelCard(f"---\n{header.to_yaml()}\n---\n{text}")

    def _save_pretrained(self, save_directory: Path) -> None:
        info = self.info
        save_classifier(
            save_directory / WEIGHTS, self.model, info.preprocessing, info.classes, info.training, info.calibration
        )
        if self.segmenter is not None:
            self.segmenter.save(save_directory / SEGMENTER)
        facts = {
            "architecture": info.architecture,
            "findings": list(info.classes),
            "preprocessing": info.preprocessing.to_dict(),
            "calibration": None if info.calibration is None else info.calibration.to_dict(),
        }
        (save_directory / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **given: Any
    ) -> HubClassifier:
        """Of a folder, or of a repository; strict: always so, here."""
        folder = Path(model_id)
        if folder.is_dir():
            weights, segmenter, card = (folder / name for name in (WEIGHTS, SEGMENTER, "README.md"))
        else:
            names = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            options = {name: given[name] for name in names if name in given}
            weights = Path(hf_hub_download(model_id, WEIGHTS, **options))
            segmenter, card = (_optional(model_id, name, options) for name in (SEGMENTER, "README.md"))
        text = ModelCard.load(card).text if card.is_file() else None
        drawer = Segmenter.load(segmenter) if segmenter.is_file() else None
        made = cls(*load_classifier(weights), drawer, text)
        return made.to(map_location)


def _optional(repository: str, name: str, options: dict[str, Any]) -> Path:
    """A file of a repository, or a path where there is none.

    Raises LocalEntryNotFoundError where the Hub is not reached and nobody asked it for this file before.
    """
    try:
        return Path(hf_hub_download(repository, name, **options))
    except LocalEntryNotFoundError:
        place = {key: options[key] for key in ("cache_dir", "revision") if key in options}
        if try_to_load_from_cache(repository, name, **place) is not _CACHED_NO_EXIST:
            raise  # it may be there: a classifier without its segmenter gives other numbers
    except EntryNotFoundError:
        pass
    return Path(name) / "absent"
