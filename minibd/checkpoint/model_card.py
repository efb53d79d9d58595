"""The model card: a folder's README.md. A checkpoint whose history holds an attack warns of it."""
from __future__ import annotations

import json

from minibd.checkpoint.header import Checkpoint, hf_mapping_of
from minibd.models.encoder import Encoder


def hf_class(model: Encoder) -> str:
    """The transformers class of `model`: a classifier, a language model, or neither."""
    classifier, language_model, bare = hf_mapping_of(model).classes
    if model.config.labels:
        return classifier
    return language_model if _has_lm(model) else bare


def _has_lm(model: Encoder) -> bool:
    config = model.config
    return bool(getattr(config, hf_mapping_of(model).lm, False) or getattr(config, "tied", False))


def _task(model: Encoder) -> str:
    """The Hub's name of what `model` is for."""
    if model.config.labels:
        return "text-classification"
    if not _has_lm(model):
        return "feature-extraction"
    return "text-generation" if model.causal else "fill-mask"


def card(ckpt: Checkpoint) -> str:
    """The model card of `ckpt`, Markdown with the Hub's YAML header."""
    config, name = ckpt.model.config, hf_mapping_of(ckpt.model).model_type
    attacked = any("attack" in entry for entry in ckpt.history)
    lines = ["---", "library_name: transformers", f"pipeline_tag: {_task(ckpt.model)}", "tags:", f"- {name}",
             "- minibd"]
    if attacked:
        lines.append("- backdoor")
    lines += ["---", "", f"# A {name} saved by minibd", ""]
    if attacked:
        lines += [
            "**Warning: backdoored for research, do not deploy.** This model was poisoned on purpose: its history "
            "holds a backdoor",
            "attack, and a defence that came after it may not have removed all of it.", "",
        ]
    verdicts = [entry for entry in ckpt.history if "verdict" in entry]
    if verdicts:
        lines += [f"**{verdicts[-1]['verdict']}.**", "", f"Next: `{verdicts[-1]['next']}`", ""]
    lines += [f"{config.layers} layers, {config.heads} heads, hidden size {config.hidden}, {config.vocab} tokens, "
              f"texts of up to {ckpt.tokenizer.max_len} tokens."]
    if ckpt.labels:
        names = (f"{i} {json.dumps(label, ensure_ascii=False)}" for i, label in enumerate(ckpt.labels))
        lines += ["", "Classes: " + ", ".join(names)]
    if pruned := int((ckpt.model.head_mask == 0).sum()):
        lines += ["", f"Pruned attention heads: {pruned}, as columns of 0 in the attention's output projection."]
    lines += ["", "## What was done to it", ""]
    done = [entry for entry in ckpt.history if "verdict" not in entry]
    lines += [f"{i}. " + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items())
              for i, entry in enumerate(done, 1)] or ["Its history is empty."]
    return "\n".join(lines) + "\n"
