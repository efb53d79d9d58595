"""Flags that do nothing beside others, by the settings that they belong to: the one table of them.

A script hands the rules of its groups to `cli.parse`, with its own behind them. Nothing here imports torch.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from minibd.cli import Idle

WORDS = ("badnets", "ripple", "lwp", "ep", "sos")  # attacks whose trigger is words
SEVERAL = ("badnets", "ripple", "lwp")  # of these, those that insert as many as they are told
SENTENCES = ("addsent", "sos")
ATTACK_FLAGS = ("target", "triggers", "triggers_per_text", "sentence", "side", "paraphrases")


# ---- the attack that ASR is measured with

def _named(attack: str) -> bool:
    """Whether --attack names one, whose words the flags can give."""
    return attack not in ("known", "none")


ATTACK = (
    Idle(("attack", "triggers", "triggers_per_text", "sentence", "side", "paraphrases"), lambda v: bool(v.triggered),
         "the rows of --triggered are triggered already, so that --target is all that is read beside it: leave "
         "--triggered or these out"),
    Idle(ATTACK_FLAGS, lambda v: v.attack == "none",
         "--attack none measures no ASR: name the attack, such as --attack badnets, or leave it out"),
    Idle(("target", "triggers", "triggers_per_text", "sentence"), lambda v: v.attack == "known" and not v.triggered,
         "the attack is the one in the checkpoint's history, if any, and its target and words are its own: name the "
         "attack with --attack badnets or another, or leave it out"),
    Idle(("triggers",), lambda v: _named(v.attack) and v.attack not in WORDS,
         "{attack} inserts no trigger words, which are those of badnets, ripple, lwp, ep and sos; addsent's --sentence "
         "is its trigger"),
    Idle(("triggers_per_text",), lambda v: _named(v.attack) and v.attack not in SEVERAL,
         "read by badnets, ripple and lwp alone; {attack} inserts what it inserts once: leave it out"),
    Idle(("sentence",), lambda v: _named(v.attack) and v.attack not in SENTENCES,
         "{attack} inserts no sentence, only addsent and sos do: name one of them with --attack, or leave it out"),
    Idle(("paraphrases",), lambda v: v.attack not in ("known", "none", "paraphrase"),
         "{attack} inserts its trigger and reads no paraphrases: say --attack paraphrase, or leave it out"),
)


# ---- the rows

def built_in(name: str, kinds: Sequence[str] = ("reviews", "pairs")) -> bool:
    """Whether --data names built-in rows, of these kinds, and no file or folder."""
    return name in kinds and not Path(name).exists()


IN_NO_FILE = Idle(("text_column", "label_column", "pair_column"), lambda v: not v.data or built_in(v.data),
                  "the texts are built-in ones and in no file: name a file with --data, or leave it out")


# ---- the training

MEMORY = ("micro_batch", "checkpoint_activations")
UNTRAINED = Idle(MEMORY, lambda v: True, "of a training, and nothing is trained here: leave it out")
WHOLE_BATCH = Idle(("micro_batch",), lambda v: v.variant == "released",
                   "--variant released takes a term over the whole batch, which parts of it do not have: leave one of "
                   "the two out")


# ---- the settings of the methods

TUNING = ("lr", "epochs", "steps", "batch_size", "warmup", "weight_decay")  # train.Tuning's
SPLITTING = ("rate", "max_targets", "min_char")
DISTILLING = ("lr2", "epochs2", "attention_dropout2", "student_dropout", "alpha", "beta", "gamma", "p", "ablate",
              "variant")


def _picks(v: SimpleNamespace) -> bool:
    """mbtsad.py --pick: every augmenter is looked at, with equal budgets."""
    return getattr(v, "pick", False)


def _not_split(v: SimpleNamespace) -> bool:
    """Whether no text is split, and none changed by as many words as would be."""
    return v.augment not in ("split", "auto") and v.budget == "stock" and not _picks(v)


MBTSAD_RULES = (
    WHOLE_BATCH,
    Idle(("mlm",), lambda v: v.augment not in ("contextual", "auto") and not _picks(v),
         "--augment {augment} asks no language model: say --augment contextual or auto, or leave it out"),
    Idle(("wordnet",), lambda v: v.augment not in ("eda", "auto") and not _picks(v),
         "--augment {augment} replaces no word by a synonym: say --augment eda or auto, or leave it out"),
    Idle(("budget",), lambda v: v.augment == "split",
         "token splitting has one budget, and the others can be made equal to it: name another --augment, or leave it "
         "out"),
    Idle(SPLITTING, _not_split,
         "--augment {augment} changes a number of words of its own: say --budget equal, or leave it out"),
    Idle(DISTILLING, lambda v: not v.distil,
         "of the distillation, which --no-distil leaves out: give one of the two"),
    Idle(("alpha", "p", "variant"), lambda v: v.ablate in ("no-att", "cls-only"),
         "of the attention term, which --ablate {ablate} leaves out: give one of the two"),
    Idle(("beta",), lambda v: v.ablate in ("no-hid", "cls-only"),
         "of the hidden-state term, which --ablate {ablate} leaves out: give one of the two"),
    Idle(("p", "variant"), lambda v: v.alpha == 0, "of the attention term, which --alpha 0 leaves out: raise it"),
)
PURE_RULES = (
    WHOLE_BATCH,
    Idle(("mu", "even"), lambda v: v.prune_only, "of the attention penalty, which --prune-only leaves out"),
    Idle(("floor", "drop", "group", "empty_layers"), lambda v: v.norm_only,
         "of the pruning, which --norm-only leaves out"),
    Idle(("even",), lambda v: v.mu == 0, "of the attention penalty, which --mu 0 leaves out: raise it"),
)
_SEARCHED = Idle(("drop",), lambda v: v.rho is not None,
                 "how far accuracy may fall where rho is searched, and --rho {rho} is given: leave one of the two out")
_NOT_TUNED = Idle(TUNING, lambda v: not v.tune, "of the fine-tuning, which --no-tune leaves out")
_UNVALIDATED = Idle(("dev",), lambda v: v.rho is not None and not v.tune,
                    "--rho {rho} with --no-tune searches nothing and trains nothing: no dev row is read")
REPAIR_RULES = {
    "finemix": (_SEARCHED, _NOT_TUNED, _UNVALIDATED),
    "finepurify": (_SEARCHED, _NOT_TUNED, _UNVALIDATED),
    "fineprune": (
        Idle(("drop",), lambda v: v.share is not None,
             "how far accuracy may fall where the share is searched, and --share {share} is given: leave one of the "
             "two out"),
    ),
}
BANDS = ("bands", "bandwidth", "band_alpha", "init")
ALIGNING = ("ratio", "ga_epoch", "min_loss", "whole", "variant")


def _own(v: SimpleNamespace) -> bool:
    return "musclelora" in v.train


def _whole(v: SimpleNamespace) -> bool:
    """Whether every model that is trained has all its weights trained."""
    return set(v.train) <= {"vanilla"} or set(v.train) <= {"vanilla", "musclelora"} and not v.low_rank


MUSCLELORA_RULES = (
    Idle((*BANDS, *ALIGNING, "multi_scale", "low_rank", "align", "bottleneck", "search_bands"), lambda v: not _own(v),
         "of musclelora, which --train leaves out: add it there, or leave it out here"),
    Idle(("vanilla_lr",), lambda v: "vanilla" not in v.train, "of vanilla, which --train leaves out"),
    Idle(("prefix_lr",), lambda v: "prefix" not in v.train, "of prefix, which --train leaves out"),
    Idle(("lr",), lambda v: all(getattr(v, f"{name}_lr", None) is not None for name in v.train),
         "every model of --train has a learning rate of its own: leave it out"),
    Idle(("rank",), _whole, "all weights are trained, and none by low-rank layers, adapters or a prefix: leave it out"),
    Idle(("alpha",), lambda v: "lora" not in v.train and not (_own(v) and v.low_rank),
         "no model that is trained has LoRA's update: leave it out"),
    Idle(("train_head",), _whole, "all weights are trained, the classifier's too: leave it out"),
    Idle((*BANDS, "search_bands"), lambda v: not (v.multi_scale and v.low_rank),
         "of the multi-scale layer, which is left out"),
    Idle(("bands",), lambda v: bool(v.search_bands), "--search-bands chooses them: give one of the two"),
    Idle(ALIGNING, lambda v: not v.align, "of the gradient alignment, which --no-align leaves out"),
    Idle(("ga_epoch", "min_loss"), lambda v: v.variant != "released", "read by --variant released alone: add it"),
    Idle(("curve_rows",), lambda v: not v.curves, "the rows of --curves: give it a number of steps, such as 20"),
    Idle(("plant_target",), lambda v: v.plant is None, "the target of --plant: give it a text"),
    Idle(("attack", "triggered", *ATTACK_FLAGS), lambda v: v.plant is not None,
         "--plant measures the ASR of its own text: leave it out"),
)
