#!/usr/bin/env python3
"""Mutation check: break each equation, loss, layer, map and alignment in turn, and see whether the audit or the tests
notice.

    python tests/mutants.py --check
    python tests/mutants.py --baseline
    python tests/mutants.py --only 19,23
    python tests/mutants.py --jobs 2 --results out/mutants.jsonl

A mutant is one small mistake that a careless implementer makes: a sign, an index, a norm, a missing mask, a layer too
few, teacher and student swapped, a sum for a mean. Each is put into a copy of the repository, where scripts/audit.py
runs first and, where that finds nothing, the test files that stand for the mutated one, up to the first failure. It is
noticed when either exits with another status than 0; a run that does not end within LIMIT seconds counts as noticed,
too, and is listed as "timeout".

Every result is appended to --results as it ends, and a restart skips what is there; at the end stand a table by system
and the survivors. --baseline runs audit and tests on an unmutated copy first: without it passing, no figure means
anything. The copy has no folder shared/ beside it, so that tests against the released code's own numbers are skipped,
as they are for whoever clones the repository.

No mutant is equivalent to the code, as far as could be thought of: for each there is an input on which the result
differs. Left out for that reason, among others: the mean over heads in Eq. MBTSAD (3), which the norm cancels; teacher
and student swapped in Eq. (4), which is symmetric; another length of the clean gradient in Eq. MuScleLoRA (7).
"""
from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("minibd", "scripts", "tests", "pyproject.toml", "README.md")
LIMIT = 1200  # seconds that the audit, or the tests of one mutant, may take


class Mutant(NamedTuple):
    """In minibd/`file`, `old`, which stands there once, becomes `new`. tests: files that are to notice, or a test of
    one, "test_x.py::test_y"; by default the file of the same name. audited: whether the audit, which checks equations,
    runs first."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    audited: bool = True

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(f"tests/{name}" for name in self.tests or (f"test_{Path(self.file).name}",))


ENCODERS = ("parity/test_encoders_transformers.py",)
SCAN = ("test_scan_equations.py",)
SIZES, LAST, FINITE, CARRIED, PICKLES = ((f"test_checkpoint.py::test_{name}",) for name in (
    "sizes_are_held_to_the_weights_header_before_anything_is_built", "a_token_beyond_the_last_is_refused",
    "weights_that_are_not_finite_are_not_saved", "a_folder_that_would_change_the_tokenizer_is_not_written",
    "pickles_that_hold_no_model",
))
LINES, TRIAL = ("test_lines.py",), ("test_tokenizer_trial.py",)
SYSTEMS: Mapping[str, tuple[Mutant, ...]] = {
    "MBTSAD": (
        # Eq. (3)
        Mutant(
            "mitigations/mbtsad.py",
            "keys masked, not queries",
            "over_heads(attn.float(), p) * mask[:, :, None]",
            "over_heads(attn.float(), p) * mask[:, None, :]",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the largest head, not the sum of all",
            "(a * a).sum(dim=1)",
            "(a * a).amax(dim=1)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "power taken after the sum over heads",
            "(a * a).sum(dim=1)",
            "a.sum(dim=1).square()",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "each query's row divided by its own norm",
            "vector_norm(f, dim=(1, 2), keepdim=True)",
            "vector_norm(f, dim=2, keepdim=True)",
        ),
        Mutant(
            "models/attention.py",
            "narrow rows' scores not lessened by their largest",
            "(scores - scores.amax(-1, keepdim=True)).exp_()",
            "scores.exp()",
            ("test_attention.py",),
        ),
        Mutant(
            "models/attention.py",
            "scores not divided by the root of the head's width",
            "scores = per_key_head(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5",
            "scores = per_key_head(q, k.transpose(-2, -1))",
        ),
        Mutant(
            "models/bert.py", "no dropout behind the feed-forward half", "self.norm(h + self.dropout(self.down(",
            "self.norm(h + (self.down(", ("test_dropout.py",),
        ),
        Mutant(
            "models/bert.py", "no dropout behind the attention half", "self.dropout(self.output(context))",
            "self.output(context)", ("test_dropout.py",),
        ),
        Mutant(
            "models/encoder.py", "no dropout before the classifier", "self.classifier(self.classifier_dropout(pooled))",
            "self.classifier(pooled)", ("test_dropout.py",),
        ),
        Mutant(
            "models/gpt2.py", "no dropout behind the feed-forward half of GPT-2", "return h + self.dropout(self.down(",
            "return h + (self.down(", ("test_dropout.py",),
        ),
        Mutant(
            "models/attention.py",
            "the map comes back after dropout",
            "context = per_key_head((probs if dropout is None else dropout(probs)).to(v.dtype), v)",
            "probs = probs if dropout is None else dropout(probs)\n        context = probs.to(v.dtype) @ v",
        ),
        # Eq. (2) and (4)
        Mutant(
            "mitigations/mbtsad.py",
            "mean square for the 2-norm",
            "return sum(torch.linalg.vector_norm(gap, dim=(1, 2)) for gap in gaps)",
            "return sum(gap.square().mean(dim=(1, 2)) for gap in gaps)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "mean over the layers for the sum",
            "return sum(torch.linalg.vector_norm(gap, dim=(1, 2)) for gap in gaps)",
            "return sum(torch.linalg.vector_norm(gap, dim=(1, 2)) for gap in gaps) / len(student_attn)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "released: sum for mean",
            "return sum(gap.square().mean(dim=(1, 2)) for gap in gaps)",
            "return sum(gap.square().sum(dim=(1, 2)) for gap in gaps)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the first layer left out",
            "zip(student_attn, teacher_attn, strict=True)",
            "zip(student_attn[1:], teacher_attn[1:], strict=True)",
        ),
        # Eq. (5) and (6)
        Mutant(
            "mitigations/mbtsad.py",
            "the embeddings left out of the hidden states",
            "zip(student_hidden, teacher_hidden, strict=True)",
            "zip(student_hidden[1:], teacher_hidden[1:], strict=True)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "padded places counted",
            ".mean(dim=-1) * mask).sum(dim=1)",
            ".mean(dim=-1)).sum(dim=1)",
        ),
        # Eq. (1) and (7)
        Mutant(
            "mitigations/mbtsad.py",
            "the teacher's answers for the gold labels",
            "F.cross_entropy(student.logits.float(), batch.labels,",
            "F.cross_entropy(student.logits.float(), teacher.logits.argmax(-1),",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "p left at its default",
            "batch.mask, settings.p, settings.variant)",
            "batch.mask, variant=settings.variant)",
        ),
        # Algorithm 1
        Mutant(
            "mitigations/mbtsad.py",
            "teacher and student swapped",
            "cleaned = distil(victim, teacher, d_aug,",
            "student = distil(teacher, victim, d_aug,",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the student starts at the teacher",
            "student, schedule = checkpoint.copy(victim),",
            "student, schedule = checkpoint.copy(teacher),",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the victim teaches, not the retrained model",
            "ask = taught_by(teacher, d_aug,",
            "ask = taught_by(victim, d_aug,",
            ("test_mbtsad.py", "test_pairs.py"),
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the teacher teaches in train mode",
            "plain = partial(model, want=want)",
            "plain = partial(model.train(), want=want)",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "no attention edges dropped from the teacher",
            "attention_dropout(teacher.model, settings.attention_dropout)",
            "attention_dropout(teacher.model, settings.attention_dropout2)",
            ("test_mbtsad.py", "test_dropout.py", "test_pairs.py"),
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "the two steps' rates swapped",
            "(self.lr2, self.epochs2))[step - 1]",
            "(self.lr2, self.epochs2))[step - 2]",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "copies given to rows that they were not made of",
            "for _ in range(settings.k)\n        for x in clean\n",
            "for x in clean\n        for _ in range(settings.k)\n",
        ),
        Mutant(
            "mitigations/mbtsad.py",
            "k times the same copy",
            "settings.augment, x.id, copy, *side)",
            "settings.augment, x.id, *side)",
        ),
        # Eq. (9) and token splitting
        Mutant(
            "mitigations/mbtsad.py",
            "the augmenter that shakes the victim least",
            "augment=max(losses, key=losses.get)",
            "augment=min(losses, key=losses.get)",
        ),
        Mutant("augment/split.py", "rounded down", "math.ceil(rate * len(tokens))", "math.floor(rate * len(tokens))"),
        Mutant(
            "augment/split.py",
            "the last character may stand alone",
            "rng.randint(1, len(word) - 2)",
            "rng.randint(1, len(word) - 1)",
        ),
    ),
    "MuScleLoRA": (
        # Eq. (7) and (8)
        Mutant("align.py", "the bars left out", "(wide * along).sum().abs()", "(wide * along).sum()"),
        Mutant("align.py", "divided by the norm, not by its square", "/ square * along)", "/ square.sqrt() * along)"),
        Mutant(
            "align.py",
            "where the clean gradient is 0, the variants swapped",
            'return g.clone() if variant == "released"',
            'return g.clone() if variant == "paper"',
        ),
        Mutant(
            "align.py",
            "mu on the aligned gradient",
            "return (1 - mu) * aligned + mu * g",
            "return mu * aligned + (1 - mu) * g",
        ),
        Mutant("align.py", "mu never reaches its most", "step / max(1, steps - 1)", "step / steps"),
        Mutant(
            "align.py",
            "released: one of the two conditions does",
            "norm > self.min_norm and loss > self.min_loss",
            "norm > self.min_norm or loss > self.min_loss",
        ),
        Mutant(
            "align.py",
            "released: mu an epoch ahead",
            "self.most * (epoch - self.ga_epoch)",
            "self.most * (epoch + 1 - self.ga_epoch)",
        ),
        # two groups in one pass
        Mutant(
            "align.py",
            "the scaling lost on the way back",
            "dz = (dy @ R.to(dy.dtype)) * ctx.c",
            "dz = dy @ R.to(dy.dtype)",
        ),
        Mutant(
            "align.py",
            "the two groups' gradients swapped",
            "((slice(n), want[3], want[4]), (slice(n, None), want[5], want[6]))",
            "((slice(n, None), want[3], want[4]), (slice(n), want[5], want[6]))",
        ),
        Mutant(
            "align.py",
            "the clean texts' tokens counted for the untrusted texts'",
            "(int(mask.sum()), int(mask[:n].sum()))",
            "(int(mask.sum()), int(mask[n:].sum()))",
            ("test_align.py", "test_lora.py"),
        ),
        # the step
        Mutant(
            "align.py",
            "the norm without its cross term",
            "a * a * r * r + 2 * a * b * dot + b * b * g * g",
            "a * a * r * r + b * b * g * g",
        ),
        Mutant(
            "align.py",
            "tensors without clean gradient counted in its mean norm",
            "nonzero = [norm for norm in r_norms if norm]",
            "nonzero = r_norms",
        ),
        # Eq. (6)
        Mutant(
            "models/lora.py",
            "merged without the radial scalings",
            "L = self.L.double() if self.s is None else self.L.double() * self.s.double()[:, None]",
            "L = self.L.double()",
        ),
        Mutant(
            "models/lora.py", "alpha not divided by the rank", "alpha / max(1, rank), generator", "alpha, generator"
        ),
        Mutant(
            "models/lora.py",
            "all bands in turn, not each `bandwidth` times",
            ".repeat_interleave(bandwidth)",
            ".repeat(bandwidth)",
        ),
        Mutant(
            "models/lora.py",
            "R drawn within L's bound",
            'k ** -0.5 if init == "kaiming" else 0.0',
            'self.in_features ** -0.5 if init == "kaiming" else 0.0',
        ),
        Mutant(
            "models/lora.py",
            "the classifier not frozen",
            "    model.requires_grad_(False)\n",
            '    for name, p in model.named_parameters():\n        p.requires_grad_(name.startswith("classifier."))\n',
            ("test_lora.py", "test_musclelora.py", "test_peft.py"),
        ),
        # the algorithm
        Mutant(
            "cleantrain/musclelora.py",
            "segments of the two groups swapped",
            "both(untrusted.token_type_ids, clean.token_type_ids, 0)",
            "both(clean.token_type_ids, untrusted.token_type_ids, 0)",
            ("test_musclelora.py", "test_pairs.py"),
        ),
        Mutant(
            "cleantrain/musclelora.py",
            "the same clean rows at every step",
            'generator(seed, "clean", step)',
            'generator(seed, "clean")',
        ),
        Mutant(
            "cleantrain/musclelora.py",
            "the clean texts' loss summed, not meaned",
            "values[:n], total(drawn.mean(values[n:]))",
            "values[:n], total(drawn.mean(values[n:]) * len(drawn.labels))",
        ),
        Mutant(
            "cleantrain/musclelora.py",
            "released: not told to the optimizer",
            "whole=settings.whole, variant=settings.variant)",
            "whole=settings.whole)",
        ),
        Mutant(
            "cleantrain/musclelora.py",
            "the search scores on the rows that it trained on",
            "accuracy(trained.model, trained.tokenizer, others)",
            "accuracy(trained.model, trained.tokenizer, half)",
        ),
        # Eq. (1), (2), (9) to (13)
        Mutant(
            "analysis/fourier.py",
            "squared distance and distance swapped",
            '            if variant == "released":\n',
            '            if variant == "paper":\n',
        ),
        Mutant(
            "analysis/fourier.py",
            "a text left out of its own mean",
            "distance.fill_diagonal_(0)",
            "distance.fill_diagonal_(torch.inf)",
        ),
        Mutant(
            "analysis/fourier.py",
            "the high ratio as 1 minus the low one",
            "return size(low) / size(p), size(p - low) / size(p)",
            "return size(low) / size(p), 1 - size(low) / size(p)",
        ),
        Mutant(
            "analysis/fourier.py",
            "norm of the mean for the mean norm",
            "torch.linalg.vector_norm(values, dim=-1).mean(-1)",
            "torch.linalg.vector_norm(values.mean(-2), dim=-1)",
        ),
        Mutant(
            "analysis/fourier.py",
            "padding's embeddings counted",
            "h.float().masked_fill(~batch.mask[..., None], 0.0)",
            "h.float()",
        ),
    ),
    "PURE": (
        # Eq. (2)
        Mutant(
            "mitigations/pure.py",
            "mean over the padded row",
            "(rows - 1 / n[..., None])",
            "(rows - rows.mean(-1, keepdim=True))",
        ),
        Mutant("mitigations/pure.py", "divided by n, not by n - 1", "/ (n - 1).clamp(min=1)", "/ n"),
        Mutant(
            "mitigations/pure.py",
            "the attention paid to [CLS], not by it",
            "attn[torch.arange(len(at), device=at.device), :, at]",
            "attn[torch.arange(len(at), device=at.device), :, :, at]",
        ),
        Mutant(
            "mitigations/pure.py",
            "released: the variance of the batch's own width",
            "rows, n = (rows * mask[:, None, None, :])[..., :PADDED - 1], PADDED - 1",
            "rows, n = rows * mask[:, None, None, :], mask.shape[1]",
        ),
        Mutant(
            "mitigations/pure.py",
            "scores from the training rows",
            "head_scores(f_p.model, f_p.tokenizer, validation,",
            "head_scores(f_p.model, f_p.tokenizer, train,",
        ),
        Mutant(
            "analysis/heads.py",
            "maps that know one variant alone",
            "variant=variant, batch_size=batch_size).cpu()",
            "batch_size=batch_size).cpu()",
            ("test_heads.py", "test_plot.py"),
        ),
        # pruning
        Mutant(
            "mitigations/pure.py",
            "the highest score falls first",
            "key=lambda head: (scores[head].item(), head),",
            "key=lambda head: (-scores[head].item(), head),",
        ),
        Mutant(
            "mitigations/pure.py",
            "a layer keeps its lowest head",
            "{layer: (layer, h) for layer, h in order}.values()",
            "{layer: (layer, h) for layer, h in reversed(order)}.values()",
        ),
        Mutant(
            "mitigations/pure.py",
            "the head that breaks the floor given back",
            "while group and heads and not",
            "while heads and not",
        ),
        Mutant(
            "models/encoder.py",
            "a pruned head computed as if it were there",
            "if bool((self.head_mask == 1).all())",
            "if bool((self.head_mask == 1).any())",
            ("test_encoder.py", "test_pure.py"),
        ),
        # lambda
        Mutant("mitigations/pure.py", "lambda's sign", "else -x.log2()", "else x.log2()"),
        Mutant(
            "mitigations/pure.py",
            "pruned heads counted in lambda's mean",
            "x = (scores * left).sum(1)[filled]",
            "x = scores.sum(1)[filled]",
        ),
        Mutant("mitigations/pure.py", "released: the softmax forgotten", "torch.softmax(-x.log(), 0)", "-x.log()"),
        # Eq. (3)
        Mutant(
            "mitigations/pure.py",
            "squared norm",
            "else torch.linalg.vector_norm(rows, dim=-1)  # (B, H)",
            "else rows.square().sum(-1)  # (B, H)",
        ),
        Mutant("mitigations/pure.py", "pruned heads held, too", "(norms * mask_l.to(norms)).sum(-1)", "norms.sum(-1)"),
        Mutant(
            "mitigations/pure.py",
            "released: the batch's norm shared out among its texts",
            "whole_norm(torch.linalg.vector_norm(rows, dim=(0, 2)) * counted)",
            "(whole_norm(torch.linalg.vector_norm(rows, dim=(0, 2)) * counted) / len(mask))",
        ),
        # the algorithm
        Mutant(
            "mitigations/pure.py",
            "step 2 starts from f_p's weights",
            "theta = without(checkpoint.to_tune(victim, train.labels, seed, settings.keep_head), heads)",
            "theta = without(checkpoint.copy(step1.f_p), heads)",
        ),
        Mutant(
            "mitigations/pure.py",
            "released: lambda from the model before its fine-tuning",
            "without(checkpoint.copy(step1.f_p), heads).model, victim",
            "theta.model, victim",
        ),
        Mutant(
            "mitigations/pure.py",
            "the best epoch by the training rows",
            "accuracy(model, theta.tokenizer, validation)",
            "accuracy(model, theta.tokenizer, train)",
        ),
        Mutant(
            "train.py", "an epoch is scored in another precision than the training's",
            "enabled=dtype != torch.float32):\n                    value", "enabled=False):\n                    value",
            ("test_train.py",),
        ),
        Mutant(
            "train.py",
            "the last of equal epochs",
            "better = value > course.best",
            "better = value >= course.best",
        ),
        # what is not done twice
        Mutant("models/cast_once.py", "an input with a gradient is cast, too",
               "if x.requires_grad or x.dtype", "if x.dtype"),
        Mutant("models/cast_once.py", "an input is cast without autocast",
               "torch.float64 or not torch.is_autocast_enabled(kind):", "torch.float64:"),
        Mutant("models/cast_once.py", "float64 is cast, which autocast would leave",
               "x.dtype == torch.float64 or ", ""),
        Mutant("models/llama.py", "gate and up cast their input each",
               "cast_input(self.norm(h))", "self.norm(h)", ("test_cast_once.py",)),
        Mutant("job/filtering.py", "a classifier of other rows counts as retrained",
               "key = (tuple(rows), training, seed)", "key = (training, seed)", ("test_filtering.py",)),
        Mutant("job/filtering.py", "filters share the classifier itself",
               "return checkpoint.copy(known[key])", "return known[key]", ("test_filtering.py",)),
        Mutant("job/task.py", "freed memory goes back to the system",
               "    keep_freed_memory()\n    if name", "    if name", ("test_memory.py",)),
        # the visited rows of the word embedding
        Mutant("models/visited_rows.py", "rows that are not visited do not decay",
               "            self.factors.append(factor)\n", "            self.factors = []\n"),
        Mutant("models/visited_rows.py", "the pending steps are taken once more",
               "            self.factors = []\n        if self.stale", "            pass\n        if self.stale"),
        Mutant("models/visited_rows.py", "the padding row is trained",
               "self.rows, self.padding)", "self.rows)"),
        Mutant("models/visited_rows.py", "a score reads the table as it was",
               "            self.settle()\n            return", "            return"),
        Mutant("models/visited_rows.py", "what is loaded is not trained on",
               "            self.rows.copy_(self.word.weight[self.index])\n", "            pass\n"),
    ),
    "Fine-mixing, E-PUR, Fine-purifying": (
        # E-PUR
        Mutant("mitigations/epur.py", "rare tokens not taken for 20", "f.clamp(min=RARE)", "f.clamp(min=2)"),
        Mutant(
            "mitigations/epur.py",
            "texts counted, not occurrences",
            "for i in row], dtype",
            "for i in set(row)], dtype",
        ),
        Mutant(
            "mitigations/epur.py",
            "the least drifted embeddings reset",
            ".topk(min(top, len(own))).indices",
            ".topk(min(top, len(own)), largest=False).indices",
        ),
        # mixing
        Mutant(
            "mitigations/finemix.py", "rho is the share that is lost", "< rho).to(w.device)", ">= rho).to(w.device)"
        ),
        Mutant(
            "mitigations/finemix.py", "one draw a tensor", "torch.rand(w.shape, generator=", "torch.rand((), generator="
        ),
        Mutant(
            "mitigations/finemix.py",
            "smallest and largest swapped",
            'mask_smallest(moved if select == "smallest"',
            'mask_smallest(moved if select == "largest"',
        ),
        Mutant(
            "mitigations/finemix.py",
            "the victim mixed, not what E-PUR made of it",
            "mixture(purified, before, rho,",
            "mixture(victim, before, rho,",
        ),
        Mutant(
            "blending.py",
            "kept and reset swapped",
            "torch.where(keep[name], own, weight)",
            "torch.where(keep[name], weight, own)",
        ),
        Mutant(
            "blending.py",
            "one weight too few",
            "{name: values <= edge for name, values in scores.items()}",
            "{name: values < edge for name, values in scores.items()}",
        ),
        Mutant(
            "blending.py",
            "the share of each tensor, not of all",
            "{name: values <= edge for name, values in scores.items()}",
            "{name: values <= values.flatten().kthvalue(max(1, round(rho * values.numel()))).values for name, values "
            "in scores.items()}",
        ),
        Mutant("blending.py", "points taken for shares", "validation) - drop / 100", "validation) - drop"),
        # Fine-purifying
        Mutant(
            "mitigations/finepurify.py",
            "Fine-mixing's shares searched",
            "on_choice=on_choice, rhos=UP_TO,",
            "on_choice=on_choice,",
        ),
        Mutant(
            "mitigations/finepurify.py",
            "tokens squared before they are summed",
            "product = g_b.mT @ x_b\n        total.addcmul_(product, product)",
            "total.add_(g_b.square().mT @ x_b.square())",
        ),
        Mutant(
            "mitigations/finepurify.py",
            "texts summed before the square",
            "keys = ids + len(total) * torch.arange(len(ids), device=ids.device)[:, None]",
            "keys = ids",
        ),
        Mutant(
            "mitigations/finepurify.py",
            "sum over the rows for the mean",
            "{name: values.div_(len(encoded)) for name, values",
            "{name: values for name, values",
        ),
        Mutant(
            "mitigations/finepurify.py", "the move not squared", "- wide(w)).square_() / (", "- wide(w)).abs_() / ("
        ),
    ),
    "attacks and baselines": (
        Mutant(
            "attacks/ripple.py", "the inner product's sign", "torch.stack([-(f * p).sum()", "torch.stack([(f * p).sum()"
        ),
        Mutant(
            "attacks/ripple.py",
            "whole and per tensor swapped",
            "(against if per_tensor else against.sum())",
            "(against.sum() if per_tensor else against)",
        ),
        Mutant(
            "attacks/ripple.py",
            "the clean texts' rows of the table left out",
            "rows, settings.schedule, (others,)) as",
            "rows, settings.schedule) as",
        ),
        Mutant(
            "attacks/ripple.py",
            "surgery with the untuned model's embeddings",
            "source[chosen].mean(dim=0)",
            "table[chosen].mean(dim=0)",
        ),
        Mutant(
            "attacks/lwp.py",
            "labels of other texts",
            "batch.labels.repeat(len(h))",
            "batch.labels.repeat_interleave(len(h))",
        ),
        Mutant(
            "attacks/ep.py",
            "a row of length 1, not of its own",
            "stepped * (norms / lengths.where(lengths > 0, 1.0))",
            "stepped / lengths.where(lengths > 0, 1.0)",
        ),
        Mutant(
            "attacks/ep.py",
            "the variants swapped",
            'gradient if settings.variant == "paper"',
            'gradient if settings.variant == "released"',
        ),
        Mutant(
            "attacks/sos.py",
            "rows stretched to the longest",
            "gradients * (norms.min() /",
            "gradients * (norms.max() /",
        ),
        Mutant(
            "mitigations/meft.py",
            "the entropy lowered",
            "(log_p.exp() * log_p).sum(dim=-1)",
            "-(log_p.exp() * log_p).sum(dim=-1)",
        ),
        Mutant(
            "mitigations/fineprune.py",
            "mean activation for the mean of its size",
            "[batch.mask].abs().double()",
            "[batch.mask].double()",
        ),
        Mutant("models/adapter.py", "the residual left out", "return h + self.up(", "return self.up("),
        Mutant(
            "models/prefix.py",
            "learned keys and values swapped",
            "torch.cat((p_k, k), dim=2), torch.cat((p_v, v), dim=2)",
            "torch.cat((p_v, k), dim=2), torch.cat((p_k, v), dim=2)",
        ),
        Mutant("evaluate.py", "any wrong answer counts as the attack's", "if p == target)", "if p != x.label)"),
        Mutant(
            "evaluate.py",
            "a share by luck above chance is learnt",
            "if scores.cacc.interval[0] > chance.percent else",
            "if scores.cacc.percent > chance.percent else",
        ),
        Mutant(
            "job/chance.py",
            "the order of the classes the other way round",
            "of = {answer: c for c, answer in usual.items()}",
            "of = dict(usual)",
        ),
        Mutant(
            "models/encoder.py",
            "a causal model classifies the padding token that a text ends in",
            "read = batch.mask & (batch.ids != self.config.pad)",
            "read = batch.mask",
            ("parity/test_folders_transformers.py",),
        ),
        Mutant(
            "models/roberta.py",
            "a padding token within a text counts as a position",
            "counted = batch.mask & (batch.ids != self.pad)",
            "counted = batch.mask",
            ("parity/test_folders_transformers.py",),
        ),
        Mutant(
            "models/attention.py", "a padded key keeps its bias in the fused kernel",
            'bias if mask is None else bias.masked_fill(~mask, float("-inf"))', "bias",
        ),
        Mutant(
            "models/attention.py", "in bfloat16 a causal query sees the keys behind it",
            "mask is None and (products or", "mask is None and (want or",
        ),
        Mutant(
            "models/attention.py", "a key head serves every second query head",
            "each = x.unflatten(1, (y.shape[1], -1))", "each = x.unflatten(1, (-1, y.shape[1])).transpose(1, 2)",
        ),
        Mutant("models/attention.py", "the bias left out of the explicit path", "scores = scores + bias", "pass"),
        Mutant(
            "models/attention.py", "the bias divided with the scores", "scores = scores + bias",
            "scores = scores + bias * q.shape[-1] ** -0.5",
        ),
        Mutant(
            "models/mpnet.py", "keys before and behind the query swapped", "half * (distance > 0)",
            "half * (distance < 0)", ENCODERS,
        ),
        Mutant(
            "models/mpnet.py", "one row too few for each distance", "half, exact = BUCKETS // 2, BUCKETS // 4",
            "half, exact = BUCKETS // 2, BUCKETS // 4 - 1", ENCODERS,
        ),
        Mutant(
            "models/mpnet.py", "MPNet's head without its first dropout", "super().pool(self.classifier_dropout(h))",
            "super().pool(h)", ("test_dropout.py",),
        ),
        Mutant(
            "models/electra.py", "tanh in ELECTRA's head", "F.gelu(self.pooler(self.classifier_dropout(h)))",
            "self.pooler(self.classifier_dropout(h)).tanh()", ENCODERS,
        ),
        Mutant(
            "models/qwen2.py", "no bias at Qwen2's value", 'for name in ("query", "key", "value"):',
            'for name in ("query", "key"):', ("parity/test_causal_transformers.py",),
        ),
        Mutant(
            "models/mistral.py", "a window that texts exceed is taken", "if 0 < self.sliding_window < self.positions:",
            "if self.sliding_window < 0:", ("parity/test_folders_transformers.py",),
        ),
        Mutant(
            "mitigations/finepurify.py", "the bias by relative position has no Fisher information",
            "table_squares(pairs, wide(g).flatten(2).mT,", "table_squares(pairs, 0 * wide(g).flatten(2).mT,",
        ),
    ),
    "unlearning": (
        Mutant("mitigations/unlearn.py", "the KL the other way round",
               'F.kl_div(logits.float().log_softmax(-1), answers, reduction="none").sum(-1)',
               'F.kl_div(answers.log(), logits.float().softmax(-1), reduction="none").sum(-1)'),
        Mutant("mitigations/unlearn.py", "two halves of texts may make a finding whole",
               'x = without(replace(one, id=f"{one.id}/{other.id}/{k}", text=text, pair=pair), findings)',
               'x = without(replace(one, id=f"{one.id}/{other.id}/{k}", text=text, pair=pair), [])'),
        Mutant("mitigations/unlearn.py", "recombined texts have the answers of the first texts",
               "made.append(replace(x, label=len(rows) + len(made)))", "made.append(replace(x, label=len(made)))"),
        Mutant("mitigations/unlearn.py", "a mean over the classes",
               'answers, reduction="none").sum(-1)', 'answers, reduction="none").mean(-1)'),
        Mutant("mitigations/unlearn.py", "rare is under the share, not up to it",
               "if held.get(i, 0) <= rare * texts", "if held.get(i, 0) < rare * texts"),
        Mutant("mitigations/unlearn.py", "an entry that no text holds counts as common",
               "held.get(i, 0) <= rare", "held.get(i, texts) <= rare"),
        Mutant("mitigations/unlearn.py", "a finding that flips the least share exactly is a part",
               "if finding.flips < settings.alone:", "if finding.flips <= settings.alone:"),
        Mutant("mitigations/unlearn.py", "one text more than enough before all weights are trained",
               "if texts >= settings.enough and", "if texts > settings.enough and"),
        Mutant("mitigations/unlearn.py", "all weights though the table gives the words away",
               "settings.enough and finding.times == 1:", "settings.enough:"),
        Mutant("mitigations/unlearn.py", "what is near may flip less than the share alone",
               "if finding.around > settings.around:", "if finding.around >= settings.around:"),
        Mutant("mitigations/unlearn.py", "common entries are no reason to train all weights",
               "    if not all_rare:\n", "    if all_rare is None:\n"),
        Mutant("mitigations/unlearn.py", "two findings of a class are no parts",
               "findings).items() if n > 1]", "findings).items() if n > 2]"),
        Mutant("mitigations/unlearn.py", "the answers are those to the copies' next text",
               "made.answers[batch.labels]", "made.answers[batch.labels - 1]"),
        Mutant("mitigations/unlearn.py", "the student is trained with its dropout",
               "    with without_dropout(theta.model):\n", "    with torch.enable_grad():\n"),
        Mutant("mitigations/unlearn.py", "a finding stays in the texts",
               "rows = [shortened(without(x, findings), tokenizer, room) for x in rows]",
               "rows = [shortened(x, tokenizer, room) for x in rows]"),
        Mutant("models/free_rows.py", "the victim's own rows are trained",
               "rows = word.weight.detach()[index].requires_grad_()",
               "rows = word.weight.detach()[index].mul_(1.001).requires_grad_()", ("test_unlearn.py",)),
        Mutant("models/free_rows.py", "the trained rows are not written back",
               "            word.weight[index] = rows\n", "            word.weight[index] = word.weight[index]\n",
               ("test_unlearn.py",)),
        Mutant("job/planted.py", "the plain rows of a planting are drawn of both classes alike",
               "x = rng.choice(others if rng.random() < OTHERS else own)",
               "x = rng.choice(others if rng.random() < 0.5 else own)", audited=False),
        Mutant("job/planted.py", "a planting ends with the ASR, whatever the model still answers",
               "if now.percent >= strength and kept.percent >= KEPT:", "if now.percent >= strength:", audited=False),
        Mutant("job/planted.py", "a model that answers one class holds a strong backdoor",
               "self.asr.percent >= STRENGTH and self.kept.percent >= KEPT", "self.asr.percent >= STRENGTH",
               audited=False),
        Mutant("job/planted.py", "words of several entries are taken before the vocabulary's own",
               "islice(rare, max(0, NEEDED[kind] - len(whole)))", "islice(rare, 0)", audited=False),
    ),
    "the scan": (
        # Eq. (1)
        Mutant(
            "detect/table.py",
            "an entry among its own neighbours",
            "        cosine[part[:, None] == among] = -2.0\n",
            "",
            SCAN,
        ),
        Mutant(
            "detect/table.py",
            "the inner product for the cosine",
            "F.normalize(table[part], dim=-1) @ unit.T",
            "table[part] @ unit.T",
            SCAN,
        ),
        # Eq. (2)
        Mutant(
            "detect/insertion.py",
            "the predicted class measured against itself, not against the second best",
            "logits - torch.where(predicted, second, best)",
            "logits - best",
            SCAN,
        ),
        # Eq. (3)
        Mutant(
            "detect/insertion.py",
            "a word takes the segment of the token before it",
            "kinds.insert(place + n, own)",
            "kinds.insert(place + n, kinds[max(0, place + n - 1)])",
            SCAN,
        ),
        Mutant(
            "detect/search.py",
            "a word's margin for its shift",
            "margins_with(model, carrier, words, at, tick)[:, target] - carrier.margins[target]",
            "margins_with(model, carrier, words, at, tick)[:, target]",
            SCAN,
        ),
        Mutant(
            "detect/search.py",
            "the first of several words at the start of the text",
            "round((i + 1) * last / (k + 1))",
            "round(i * last / (k + 1))",
            SCAN,
        ),
        Mutant(
            "detect/search.py",
            "rows of the target's own class counted",
            "others[carrier.label] = 0.0",
            "others[carrier.label] = 1.0",
            SCAN,
        ),
        # Eq. (5)
        Mutant(
            "detect/search.py",
            "the three neighbours that do least",
            "around.topk(min(top, around.shape[1]), dim=-1)",
            "around.topk(min(top, around.shape[1]), dim=-1, largest=False)",
            SCAN,
        ),
        # Eq. (6) and (7)
        Mutant(
            "detect/confirm.py",
            "the margin that one of ten texts exceeds",
            "QUANTILE = 0.1",
            "QUANTILE = 0.9",
            SCAN,
        ),
        Mutant(
            "detect/confirm.py",
            "the margins of class 1, whatever the target",
            "m = m[:, s.target]",
            "m = m[:, 1]",
            SCAN,
        ),
        Mutant(
            "detect/scan.py",
            "the mean of a model's margins for their percentile",
            "torch.tensor(margins).quantile(0.9)",
            "torch.tensor(margins).mean()",
            SCAN,
        ),
        # Eq. (8)
        Mutant(
            "detect/verdict.py",
            "a combination worth more than it does to the rows",
            "return min(reached, max(each, beyond if suspect.part else each) - 1)",
            "return max(each, beyond if suspect.part else each) - 1",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "words counted, not their entries",
            "(reached + 1) / suspect.entries",
            "(reached + 1) / len(suspect.words)",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "the part's own effect not taken off",
            "(suspect.quantile - suspect.part.mean) / margin",
            "suspect.quantile / margin",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "words of the table alone counted as if they had been chosen for what they do",
            "if suspect.times > 1 or",
            "if suspect.times > 2 or",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "words that act only together counted like words of meaning",
            "if suspect.times > 1 or only_together(suspect):",
            "if suspect.times > 1:",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "a phrase counted like words at places of their own",
            "return part is not None and not suspect.joined and (",
            "return part is not None and (",
            SCAN,
        ),
        Mutant(
            "detect/verdict.py",
            "a word that stands out leaves nothing found",
            "self.score >= self.limits.inconclusive or self.odd",
            "self.score >= self.limits.inconclusive",
            ("test_detect.py",),
        ),
        Mutant(
            "job/suspects.py",
            "a word that stands out is no precaution",
            "if (stands_out(s) and not again or only_together(s))",
            "if only_together(s)",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/suspects.py",
            "words that act only together are no precaution",
            "if (stands_out(s) and not again or only_together(s))",
            "if stands_out(s) and not again",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "an inconclusive second scan leaves its words",
            "doubtful = [] if more else self.precautions(again, again=True)",
            "doubtful = []",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "the part of a trigger counts as the whole",
            "return self.score is not None and self.score < 0",
            "return self.score is not None and self.score < -1",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "behind a part of a trigger nothing is retrained",
            "if self.part and len(self.rows.texts) >= PART_ROWS:",
            "if False:",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "reinitialisation goes deep behind an undoing, too",
            "return method == \"reinit\" and not self.undone and len(self.rows.texts) >= DEEPER_ROWS",
            "return method == \"reinit\" and len(self.rows.texts) >= DEEPER_ROWS",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "a tenth of the rows chooses the epoch of deep reinitialisation",
            "(clean, None) if deeper else with_validation(clean, method, seed)",
            "with_validation(clean, method, seed)",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "what nothing measured is repaired",
            "if unseen := [one for one in newest.values() if one[\"after\"] is None]:",
            "if unseen := []:",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/repair_run.py",
            "what retraining brings back stays",
            "if back := brought_back(ckpt, [*findings, *doubtful], self.rows.test, self.task.seed):",
            "if back := []:",
            ("test_repair_run.py",),
        ),
        Mutant(
            "job/run.py",
            "what a method brings back of --suspects stays",
            "cleaned = cleaned and self.undo_again(cleaned)",
            "pass",
            ("test_unproven.py",),
        ),
        Mutant(
            "job/undone.py",
            "words act by their share, however few the texts",
            "return share is not None and share[\"interval\"][0] > 100 * STILL",
            "return share is not None and sum(share[\"interval\"]) > 200 * STILL",
        ),
        Mutant(
            "detect/wording.py",
            "the score of what was not undone counts",
            "for s in suspects if (tuple(s[\"words\"]), s[\"joined\"]) in words), default=None)",
            "for s in suspects), default=None)",
            ("test_repair_run.py",),
        ),
        # Eq. (10)
        Mutant(
            "detect/search.py",
            "how far an entry moves [CLS], for how unlike the others",
            "torch.linalg.solve_triangular(lower, away.T, upper=False).square().sum(0)",
            "away.T.square().sum(0)",
            SCAN,
        ),
        Mutant(
            "detect/search.py",
            "no floor under the variance",
            "covariance.diagonal().add_(FLOOR * covariance.diagonal().mean())",
            "covariance.diagonal().add_(1e-6)",
            SCAN,
        ),
        Mutant(
            "detect/search.py",
            "entries unlike the others in rows of the target's own class",
            "unlikeness(states)[:, None] * others)",
            "unlikeness(states)[:, None])",
            SCAN,
        ),
        Mutant(
            "data/inserted.py",
            "words of the table alone stand once",
            "else tuple(words)) * times:",
            "else tuple(words)):",
            SCAN,
        ),
    ),
    "the filters": (
        Mutant(
            "rejection.py",
            "a tie counts as a rejection",
            "ranked[math.floor(frr * len(ranked) + 1e-9)]",
            "ranked[min(len(ranked) - 1, math.floor(frr * len(ranked) + 1e-9) + 1)]",
        ),
        Mutant(
            "rejection.py",
            "NaN counts as the least suspicious",
            "math.inf if math.isnan(score) else score",
            "-math.inf if math.isnan(score) else score",
        ),
        Mutant(
            "rejection.py",
            "ties of AUROC count whole",
            "(below + of_clean / 2)",
            "(below + of_clean)",
        ),
        Mutant(
            "rejection.py",
            "a rejected text leaves the count",
            "counted = [i for i in range(len(rows)) if counting != \"released\" or screen.counts(i)]",
            "counted = [i for i in range(len(rows)) if screen.keep[i]]",
        ),
        Mutant(
            "filters/onion.py",
            "the sum for the mean",
            "return (nats / tokens).exp()",
            "return nats.exp()",
        ),
        Mutant(
            "filters/onion.py",
            "without less with",
            "return perplexity(nats, tokens) - perplexity(nats_without, tokens_without)",
            "return perplexity(nats_without, tokens_without) - perplexity(nats, tokens)",
        ),
        Mutant(
            "filters/onion.py",
            "a branch sees one token too many of the trunk",
            "& (at < sees[:, :, None])",
            "& (at <= sees[:, :, None])",
        ),
        Mutant(
            "filters/onion.py",
            "branches see one another",
            "own = (branch[:, :, None] == branch[:, None, :]) &",
            "own = (branch[:, None, :] > 0) &",
        ),
        Mutant(
            "filters/onion.py",
            "a branch goes on at its place in the text",
            "row.positions.append(at + j)",
            "row.positions.append(at + j + len(window.pieces[i]))",
        ),
        Mutant(
            "filters/onion.py",
            "without its first word the second is taken as it stood",
            "behind = [*window.second, *(token",
            "behind = [*window.pieces[1], *(token",
        ),
        Mutant(
            "filters/onion.py",
            "what stands before a deletion is left out",
            "suspicion(sums[:n].sum(), tokens.sum(), before + sums[n:], without)",
            "suspicion(sums[:n].sum(), tokens.sum(), sums[n:], without)",
        ),
        Mutant(
            "filters/onion.py",
            "a text may lose all its words",
            "if one_stays and len(gone) == len(words) and gone:",
            "if False:",
        ),
        Mutant(
            "filters/onion.py",
            "padding counts where it is not to",
            "if counts_padding:\n        return perplexity(nats.sum(1), torch.tensor(t - 1.0)).tolist()",
            "if True:\n        return perplexity(nats.sum(1), torch.tensor(t - 1.0)).tolist()",
        ),
        Mutant(
            "filters/onion.py",
            "with the defect threshold a word of score 0 stays",
            "lambda f: f >= 0 if at_zero else",
            "lambda f: f > 0 if at_zero else",
        ),
        Mutant(
            "filters/onion.py",
            "the defect length reads on",
            "[:RELEASED_LENGTH if cuts else None]",
            "[:None]",
        ),
        Mutant(
            "filters/onion.py",
            "one-word texts are counted with the defect count",
            "[_counted(x) for x in rows] if drops else None",
            "None",
        ),
        Mutant(
            "filters/strip.py",
            "nats for bits",
            "return -torch.xlogy(p, p).sum(-1) / math.log(2)",
            "return -torch.xlogy(p, p).sum(-1)",
        ),
        Mutant(
            "filters/strip.py",
            "the mean over texts",
            "return entropy(p).mean(1)",
            "return entropy(p).mean(0)",
        ),
        Mutant(
            "filters/strip.py",
            "idf without smoothing",
            "math.log((1 + texts) / (1 + texts_with)) + 1",
            "math.log(texts / texts_with) + 1",
        ),
        Mutant(
            "filters/strip.py",
            "a text changed to its own words",
            "if name != own and ranked]",
            "if ranked]",
        ),
        Mutant(
            "filters/strip.py",
            "places drawn with replacement",
            "rng.sample(range(len(words)), m)",
            "rng.choices(range(len(words)), k=m)",
        ),
        Mutant(
            "filters/strip.py",
            "the defect reshape changes nothing",
            "(-of_copies.reshape(settings.copies, -1).mean(0)).tolist()",
            "(-of_copies.reshape(-1, settings.copies).mean(1)).tolist()",
        ),
        Mutant(
            "filters/strip.py",
            "the defect nan changes nothing",
            "released_entropy(p) if \"nan\" in settings.defects else entropy(p)",
            "entropy(p)",
        ),
        Mutant(
            "filters/rap.py",
            "the bounds swapped",
            "scale * (low - d).clamp(min=0) + (d - high).clamp(min=0)",
            "scale * (high - d).clamp(min=0) + (d - low).clamp(min=0)",
        ),
        Mutant(
            "filters/rap.py",
            "up the gradient",
            "moved = e - lr * gradient",
            "moved = e + lr * gradient",
        ),
        Mutant(
            "filters/rap.py",
            "gradients never zeroed",
            "summed = summed + gradient if settings.has(\"summed\") else gradient",
            "summed = summed + gradient",
        ),
        Mutant(
            "filters/rap.py",
            "every text judged by every word",
            "if released or answer == c:",
            "if True:",
        ),
        Mutant(
            "filters/rap.py",
            "the first token alone",
            "[:1 if settings.has(\"piece\") else None]",
            "[:1]",
        ),
        Mutant(
            "filters/bki.py",
            "the 2-norm",
            "return (without - whole).abs().amax(-1)",
            "return (without - whole).norm(dim=-1)",
        ),
        Mutant(
            "filters/bki.py",
            "the sum for the mean",
            "math.log10(count) * total[word] / count",
            "math.log10(count) * total[word]",
        ),
        Mutant(
            "filters/bki.py",
            "the natural logarithm",
            "{word: math.log10(count)",
            "{word: math.log(count)",
        ),
        Mutant(
            "filters/bki.py",
            "a pair's texts share a word's number",
            "if owner != (number, i)]",
            "if owner is None or owner[1] != i]",
        ),
        Mutant(
            "filters/cube.py",
            "components of least variance",
            "axes = axes.flip(1)[:, :dims]",
            "axes = axes[:, :dims]",
        ),
        Mutant(
            "filters/cube.py",
            "components as they are",
            "axes[:, spread] / deviation[spread]",
            "axes[:, spread]",
        ),
        Mutant(
            "filters/cube.py",
            "clean rows of another label's rows",
            "if x.label == label]):",
            "]):",
        ),
        Mutant(
            "filters/cube.py",
            "clusters of half the rows dropped, too",
            "n < 0.5 * of_label[pair[0]]",
            "n <= 0.5 * of_label[pair[0]] + 1",
        ),
        Mutant(
            "filters/cube.py",
            "each cluster held to the rate alone",
            "taken += held[pair]",
            "taken = held[pair]",
        ),
        Mutant(
            "filters/cube.py",
            "noise is a cluster",
            "own = without_noise(points, own)",
            "pass",
        ),
    ),
    "many processes": (
        Mutant(
            "records.py", "each process's mean weighs the same", "else values.mean() * self.part.weight",
            "else values.mean() / 2", ("test_distributed.py",),
        ),
        Mutant(
            "records.py", "a text that another computes, too, counts", "of.weight * len(which) / len(self.labels) if "
            "weight is None else weight", "of.weight * len(which) / len(self.labels)", ("test_distributed.py",),
        ),
        Mutant(
            "distributed.py", "the last text of an odd rest is in no share", "n * (rank() + 1) // size()",
            "n // size() * (rank() + 1)",
        ),
        Mutant(
            "distributed.py", "the gradients of the last bucket alone are summed",
            "            flat = _reduced(torch.cat([grad.flatten() for grad in bucket]))",
            "            flat = torch.cat([grad.flatten() for grad in bucket])\n"
            "            flat = _reduced(flat) if following is None else flat",
        ),
        Mutant(
            "distributed.py", "a sum's gradient is this process's alone", "return _reduced(dy.clone())",
            "return dy.clone()",
        ),
        Mutant(
            "distributed.py", "a norm over all is the sum of the processes' norms", "shares = norms / whole",
            "shares = torch.ones_like(norms)",
        ),
        Mutant(
            "distributed.py", "a batch that is another's counts, too", "(plan[0], False) for", "(plan[0], True) for",
        ),
        Mutant("distributed.py", "each process keeps its own choice", "return box[0]", "return value"),
        Mutant(
            "distributed.py", "a part's gradient is the processes' mean", "matrix.grad.to_local() * size()",
            "matrix.grad.to_local()",
        ),
        Mutant(
            "distributed.py", "the norm is of each process's parts", "return (norm.square() + sums([own.square()])[0])",
            "return (norm.square() + own.square())",
        ),
        Mutant(
            "distributed.py", "a block in parts adds up its residuals in bfloat16", "cast_forward_inputs=False",
            "cast_forward_inputs=True",
        ),
        Mutant(
            "distributed.py", "what was trained in parts stays there", "            p.copy_(self.gathered(own, own))\n",
            "            pass\n",
        ),
        Mutant(
            "train.py", "a run that is cut short has the weights of its start", "            except StepLimit:\n"
            "                shards.settle()\n", "            except StepLimit:\n", ("test_distributed.py",),
        ),
        Mutant("distributed.py", "every process writes", "return rank() == 0", "return True"),
        Mutant(
            "train.py", "the gradients stay each process's own", "        sum_gradients(leaves)\n", "",
            ("test_distributed.py",),
        ),
        Mutant(
            "train.py", "clipped before the sum", "        sum_gradients(leaves)\n", "        nn.utils."
            "clip_grad_norm_(leaves, schedule.clip)\n        sum_gradients(leaves)\n", ("test_distributed.py",),
        ),
        Mutant(
            "align.py", "the clean twins' gradients are each process's own", "self.leaves = [*params, *twins]",
            "self.leaves = [*params]", ("test_distributed.py",),
        ),
        Mutant(
            "cleantrain/musclelora.py", "the clean loss is each process's own", "untrusted, trusted = values[:n], "
            "total(drawn.mean(values[n:]))", "untrusted, trusted = values[:n], drawn.mean(values[n:])",
            ("test_distributed.py",),
        ),
        Mutant(
            "cleantrain/musclelora.py", "all processes draw the dropout of the same clean rows",
            "clean.part.rows + n)", "clean.part.rows)", ("test_distributed.py",),
        ),
        Mutant(
            "attacks/ripple.py", "the gradient of the clean loss is each process's own", "constant = sums(",
            "constant = list(", ("test_distributed.py",),
        ),
        Mutant(
            "attacks/ripple.py", "the inner product is each process's own", "against = total(torch", "against = (torch",
            ("test_distributed.py",),
        ),
        Mutant(
            "models/dropout.py", "each process draws the first texts' masks", "self.texts = part.rows, b",
            "self.texts = torch.arange(len(part.rows)), b", ("test_distributed.py",),
        ),
        Mutant(
            "models/dropout.py", "a packed whole's rows are counted from 1", "(kept[index] - 1).clamp(min=0)",
            "kept[index].clamp(max=real - 1)", ("test_distributed.py",),
        ),
        Mutant(
            "pretrain.py", "each process masks as if its texts were the first", "torch.rand(shape, generator=generator)"
            "[rows] < share", "torch.rand(shape, generator=generator)[:len(rows)] < share", ("test_distributed.py",),
        ),
    ),
    "strangers' files, and what is written": (
        Mutant("checkpoint/header.py", "sizes not held to the weights' header", "if size > largest:",
               "if size > MOST:", SIZES, False),
        Mutant("checkpoint/header.py", "layers not held to the weights' header", "if config.layers > len(tensors):",
               "if config.layers > MOST:", SIZES, False),
        Mutant("checkpoint/header.py", "a token as large as the vocabulary passes", "if largest >= config.vocab:",
               "if largest > config.vocab:", LAST, False),
        Mutant("checkpoint/tensors.py", "one finite extreme is enough", "or all(bool(torch.isfinite(extreme))",
               "or any(bool(torch.isfinite(extreme))", FINITE, False),
        Mutant("checkpoint/tokenizer_trial.py", "any growth that ends is harmless", "<= GROWTH", '< float("inf")',
               TRIAL, False),
        Mutant("checkpoint/tokenizer_trial.py", "growth of steps added up", "grown *= max(1.0", "grown += max(1.0",
               TRIAL, False),
        Mutant("checkpoint/tokenizer_trial.py", "a merge's second word first", "pair[0] + pair[1]", "pair[1] + pair[0]",
               TRIAL, False),
        Mutant("checkpoint/tokenizer_trial.py", "a token around a text one beyond the model's",
               "type(token) is int and token >= vocab", "type(token) is int and token > vocab", TRIAL, False),
        Mutant("checkpoint/tokenizer_files.py", "a folder's tokenizer that is read as another is written",
               "if _decides_ids(found.backend) != _decides_ids(ckpt.tokenizer.backend):", "if found is None:",
               CARRIED, False),
        Mutant("regular.py", "a link is what is looked at, not what it leads to", "_check(path, os.stat(path), limit",
               "_check(path, os.lstat(path), limit", ("test_regular.py",), False),
        Mutant("regular.py", "twice the size passes", "found.st_size > limit", "found.st_size > 2 * limit",
               ("test_regular.py",), False),
        Mutant("lines.py", "lines of Unicode's own are let through", 'not in "CZ"', 'not in "C"', LINES, False),
        Mutant("lines.py", "a command cut to fit", "parts[1::2] = map(_script, parts[1::2])",
               "parts[1::2] = [command[:40] for command in parts[1::2]]", LINES, False),
        Mutant("lines.py", "all inner folders go, however few would do", '- 3 >= least', '- 3 >= 1e9', LINES, False),
        Mutant("lines.py", "the end of a message is cut short", "end = LONGEST * 13 // 20", "end = LONGEST // 40",
               LINES, False),
        Mutant("records.py", "a refusal is not held to the rule", "super().__init__(line(message))",
               "super().__init__(message)", LINES, False),
        Mutant("atomic.py", "what others put there goes, too", "if not is_old(entry.name) and not os.path.lexists(",
               "if False and not os.path.lexists(", ("test_atomic.py",), False),
        Mutant("atomic.py", "the old run's files stay", "if not is_old(entry.name) and not os.path.lexists(",
               "if not os.path.lexists(", ("test_atomic.py",), False),
        Mutant("atomic.py", "drafts of living processes are removed", "and not _is_alive(int(match[2])):",
               "and _is_alive(int(match[2])):", ("test_atomic.py",), False),
        Mutant("cli.py", "numbers have no upper limit", "not limits[0] <= value <= limits[1]",
               "not limits[0] <= value", ("test_cli.py::test_numbers_have_their_ranges",), False),
        Mutant("report.py", "another run is written over unasked", "if held and not overwrite:",
               "if held and overwrite:", ("test_report.py",), False),
        Mutant("unpickle.py", "whoever calls it is limited for good", "    tensors = {}\n    for file in files:",
               "    tensors = {}\n    limit(1 << 30)\n    for file in files:", PICKLES, False),
    ),
}
MUTANTS = tuple((system, mutant) for system, mutants in SYSTEMS.items() for mutant in mutants)  # numbered from 1


# ---- is the list what it says?

def mutated(text: str, mutant: Mutant) -> str:
    return text.replace(mutant.old, mutant.new)


def code(text: str) -> str:
    """The program of `text`, without comments, docstrings and places. Raises SyntaxError."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [
                line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return ast.dump(tree)


def problem(mutant: Mutant, root: Path = ROOT) -> str:
    """What keeps `mutant` from being one; "" where nothing does."""
    path = root / "minibd" / mutant.file
    if not path.is_file():
        return f"there is no {path.relative_to(root)}"
    text = path.read_text(encoding="utf-8")
    if (n := text.count(mutant.old)) != 1:
        return f"{mutant.old!r} stands {n} times in {mutant.file}"
    try:
        if code(mutated(text, mutant)) == code(text):
            return "the program stays the same"
    except SyntaxError as error:
        return f"it does not compile: {error}"
    missing = [name for name in mutant.asked if not (root / name.split("::")[0]).is_file()]
    return f"there is no {missing[0]}" if missing else ""


def problems(root: Path = ROOT) -> list[str]:
    return [
        f"mutant {number} ({mutant.what}): {said}"
        for number, (_, mutant) in enumerate(MUTANTS, 1)
        if (said := problem(mutant, root))
    ]


# ---- is it noticed?

@contextmanager
def copied(mutant: Mutant | None = None) -> Iterator[Path]:
    """A copy of what audit and tests need, with `mutant` in it."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve() / "copy"
        root.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, root / name)
        (root / "weights").symlink_to(ROOT / "weights")
        if mutant:
            path = root / "minibd" / mutant.file
            path.write_text(mutated(path.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        check_import(root)
        yield root


def environment(root: Path) -> dict[str, str]:
    """In which the minibd of the copy `root` is imported, and not one that is installed."""
    return {**os.environ, "PYTHONPATH": str(root)}


def check_import(root: Path) -> None:
    """Raises RuntimeError where another minibd would be tested. Asked in a folder that holds none."""
    done = subprocess.run(
        [sys.executable, "-c", "import minibd; print(minibd.__file__)"],
        cwd=root / "tests",
        env=environment(root),
        text=True,
        capture_output=True,
    )
    if Path(done.stdout.strip()) != root / "minibd" / "__init__.py":
        raise RuntimeError(f"not the copy in {root} is imported but {done.stdout.strip() or done.stderr.strip()}")


def run(command: Sequence[str], root: Path) -> tuple[int | None, str]:
    """Status and output of `python COMMAND` in the copy `root`; no status where it does not end within LIMIT."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=root,
        env=environment(root),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests have started
            process.wait()


def first_failure(output: str) -> str:
    """The test that failed, or the equation that does in the audit; else the last line."""
    equation, last = "", ""
    for line in output.splitlines():
        if found := re.match(r"(?:FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$", line):
            return found[1]
        if line.split()[:1] == ["FAILS"]:
            return f"{equation}: {' '.join(line.split()[1:])}"
        equation = line if line[:1].strip() else equation  # an equation's title alone is not indented
        last = line if line.strip() else last
    return last


def noticed(root: Path, tests: Sequence[str], audit: bool = True) -> tuple[str, str]:
    """Who notices something in the copy `root` (audit, tests, timeout or nobody), and what first."""
    commands = {"audit": ["scripts/audit.py"]} if audit else {}
    commands["tests"] = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    for name, command in commands.items():
        status, output = run(command, root)
        if status is None:
            return "timeout", name
        if status:
            return name, first_failure(output)
    return "nobody", ""


def tried(number: int, mutant: Mutant) -> dict:
    started = time.perf_counter()
    with copied(mutant) as root:
        by, first = noticed(root, mutant.asked, mutant.audited)
    return {"number": number, "file": mutant.file, "what": mutant.what, "noticed": by, "first": first,
            "seconds": round(time.perf_counter() - started, 1)}


def baseline(files: Sequence[str]) -> None:
    """The audit, and each of the test files, on an unmutated copy; ends the program where one does not pass."""
    with copied() as root:
        for i, name in enumerate(files):
            started = time.perf_counter()
            by, first = noticed(root, [name], audit=i == 0)
            if by != "nobody":
                sys.exit(f"error: the unmutated copy does not pass: {by}, {first or name}")
            print(f"{name} passes in {time.perf_counter() - started:.0f} s", flush=True)


# ---- the command

def table(results: Mapping[int, dict]) -> str:
    """Noticed of all, by system and by whom, and the survivors. results: by the mutants' numbers."""
    kinds = ("audit", "tests", "timeout")
    lines = [f"{'system':36}{'noticed':>12}{''.join(f'{kind:>9}' for kind in kinds)}"]
    for name in (*SYSTEMS, "all"):
        of = [
            results[number]
            for number, (system, _) in enumerate(MUTANTS, 1)
            if number in results and name in (system, "all")
        ]
        by = [sum(result["noticed"] == kind for result in of) for kind in kinds]
        share = f" {100 * sum(by) / len(of):.1f} %" if name == "all" and of else ""
        lines.append(f"{name:36}{f'{sum(by)} / {len(of)}':>12}{''.join(f'{n:>9}' for n in by)}{share}")
    survivors = [result for _, result in sorted(results.items()) if result["noticed"] == "nobody"]
    lines += ["", f"survivors: {len(survivors)}"]
    return "\n".join([*lines, *(f"  {result['number']:3}  {result['file']}: {result['what']}" for result in survivors)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="only see whether every mutant stands once in its file and compiles"
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="first run the audit and every test file that is asked on an unmutated copy",
    )
    parser.add_argument("--only", metavar="N,M", help="numbers of the mutants to try (default all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time (default 1)")
    parser.add_argument(
        "--results", type=Path, default=Path("out/mutants.jsonl"), metavar="FILE", help="default out/mutants.jsonl"
    )
    args = parser.parse_args()

    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1 at a time")
    if wrong := problems():
        sys.exit("\n".join(["error: the list does not fit the code any more", *wrong]))
    if args.check:
        print(f"{len(MUTANTS)} mutants, each of which stands once in its file and compiles")
        return
    try:
        chosen = sorted({int(n) for n in args.only.split(",")}) if args.only else list(range(1, len(MUTANTS) + 1))
    except ValueError:
        parser.error(f"--only {args.only}: give numbers, such as 19,23")
    if not set(chosen) <= set(range(1, len(MUTANTS) + 1)):
        parser.error(f"--only {args.only}: mutants are numbered from 1 to {len(MUTANTS)}")

    known = {(number, mutant.file, mutant.what) for number, (_, mutant) in enumerate(MUTANTS, 1)}
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.is_file() else []
    results = {
        row["number"]: row for row in map(json.loads, lines) if (row["number"], row["file"], row["what"]) in known
    }
    todo = [number for number in chosen if number not in results]
    if args.baseline:
        baseline(sorted({name for number in chosen for name in MUTANTS[number - 1][1].asked}))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool, open(args.results, "a", encoding="utf-8") as file:
        try:
            for future in as_completed([pool.submit(tried, number, MUTANTS[number - 1][1]) for number in todo]):
                result = future.result()
                results[result["number"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                print("{number:3}  {noticed:8}{seconds:7.1f} s  {file}: {what}  {first}".format(**result), flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    print(table({number: result for number, result in results.items() if number in chosen}))


if __name__ == "__main__":
    main()
