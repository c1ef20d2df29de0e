"""Writes the model of a run to a folder that stands on its own."""

import dataclasses
from pathlib import Path

import tyro

from flaxattn.training.config import to_json
from flaxattn.translation.commands.screen import SCREEN
from flaxattn.translation.config import Quantization
from flaxattn.translation.layout import CARD, OF_EXPORTED

__all__ = ["Export"]


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the model of a run to a folder that stands on its own, with a model card.

    $ flaxattn export runs/tiny tiny-en-de
    """

    run_folder: tyro.conf.Positional[Path]
    """The folder of a run."""
    folder: tyro.conf.Positional[Path]
    """The folder to write: a new one, or one that holds an exported model alone."""
    ctranslate2: Quantization | None = None
    """Write it in the format of CTranslate2 instead, which translates on CPUs and GPUs without
    jax, with weights of this type; int8 is a quarter of float32. Needs the package ctranslate2."""

    def run(self) -> None:
        """Writes the folder, or refuses."""
        if self.ctranslate2:
            from flaxattn.translation.trained.loading import load
            from flaxattn.translation.trained.to_ctranslate2 import export_ctranslate2

            export_ctranslate2(self.folder, load(self.run_folder), self.ctranslate2)
            SCREEN.say(f"wrote {self.folder}, for ctranslate2.Translator, and tokenizer.model")
            return
        self._export()

    def _export(self) -> None:
        from flaxattn.training.record import is_outdated, run_name
        from flaxattn.training.storage.folders import check_only
        from flaxattn.translation.trained.exporting import export
        from flaxattn.translation.trained.loading import is_exported, load
        from flaxattn.translation.trained.record import read_result, read_run

        if is_exported(self.run_folder):
            raise ValueError(f"{self.run_folder} is an exported model already; copy it.")
        check_only(self.folder, OF_EXPORTED)
        loaded = load(self.run_folder)
        export(
            self.folder,
            loaded,
            run=to_json(read_run(self.run_folder)),
            result={} if is_outdated(self.run_folder) else read_result(self.run_folder),
            name=run_name(self.run_folder),
        )
        SCREEN.say(f"wrote {self.folder}; {self.folder / CARD} tells of it")
