"""The mitigations that repair a classifier, by the name of their sub-command."""
from __future__ import annotations

from minibd.mitigations.finemix import FineMixing, finemix
from minibd.mitigations.fineprune import FinePruning, fineprune
from minibd.mitigations.finepurify import FinePurifying, finepurify
from minibd.mitigations.finetune import cft
from minibd.mitigations.reinit import Reinit, reinit
from minibd.train import Tuning

# cli.REPAIRS: the settings, and the function of (victim, clean rows, validation rows, settings), a blend's of (victim,
# pretrained, ...).
MENDS = {
    "cft": (Tuning, cft), "reinit": (Reinit, reinit), "fineprune": (FinePruning, fineprune),
    "finemix": (FineMixing, finemix), "finepurify": (FinePurifying, finepurify),
}
