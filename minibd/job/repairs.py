"""The mitigations that repair a classifier with its head and a few clean rows: the one table of them.

Nothing is imported until it is asked for: --help needs the settings alone, and a run its own method alone.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from minibd.cli import settings_of


@dataclass(frozen=True, slots=True)
class Repair:
    """Where a mitigation's settings class and its function are, as module.name under minibd.

    takes_pretrained: the function is called with (victim, pretrained, clean, validation, settings), else with (victim,
    clean, validation, settings); both with seed, dtype, log, on_stage and on_choice.
    """
    settings: str
    function: str
    takes_pretrained: bool = False

    @property
    def flags(self) -> type:
        """The settings class as the command line needs it, read from its source without torch."""
        return settings_of(*self.settings.rsplit(".", 1))

    @property
    def settings_class(self) -> type:
        return _imported(self.settings)

    def __call__(self, victim, pretrained, clean, validation, settings, **options):
        """The repaired checkpoint. `pretrained` is read only where the method takes it."""
        models = (victim, pretrained) if self.takes_pretrained else (victim,)
        return _imported(self.function)(*models, clean, validation, settings, **options)


def takes_pretrained(method: str) -> bool:
    """Whether `method` is one of REPAIRS that reads the pre-trained weights."""
    return method in REPAIRS and REPAIRS[method].takes_pretrained


def _imported(path: str) -> Callable:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(f"minibd.{module}"), name)


REPAIRS = {
    "cft": Repair("train.Tuning", "mitigations.finetune.cft"),
    "reinit": Repair("mitigations.reinit.Reinit", "mitigations.reinit.reinit"),
    "fineprune": Repair("mitigations.fineprune.FinePruning", "mitigations.fineprune.fineprune"),
    "finemix": Repair("mitigations.finemix.FineMixing", "mitigations.finemix.finemix", takes_pretrained=True),
    "finepurify": Repair(
        "mitigations.finepurify.FinePurifying", "mitigations.finepurify.finepurify", takes_pretrained=True
    ),
}
