"""Backdoors of one's own: their words, their parts, and that they are planted in a copy alone."""
import json
import random
import re
from collections import Counter

import pytest
import torch

from conftest import fails, refused, rows
from minibd.attacks.registry import ATTACKS
from minibd.job import planted as planting
from minibd.job.planted import KINDS, SENTENCE, WORDS, Trigger, answered, plant, trigger_of
from minibd.records import Example
from scan_models_words import USED


def test_the_words_are_no_attacks_and_no_models_of_the_scan():
    attacks = {word.casefold() for attack in ATTACKS.values() if hasattr(attack, "__dataclass_fields__")
               for trigger in getattr(attack(), "triggers", ()) for word in trigger.split()}
    own = {*WORDS, *SENTENCE.split()} - {"the", "it", "to", "before", "i", "my", "was"}
    assert len(attacks) > 8 and not own & attacks and not own & USED


def test_words_are_none_of_the_texts_and_none_twice(tiny):
    texts = [Example("0", "a Lantern film", 0), Example("1", "film", 1, "cobalt")]
    pair = trigger_of("pair", 1, tiny.tokenizer, texts)
    other = trigger_of("triple", 0, tiny.tokenizer, texts, taken=pair.words)
    assert len({*pair.words, *other.words}) == 5 and not {"lantern", "cobalt"} & {*pair.words, *other.words}
    assert trigger_of("word", 0, tiny.tokenizer, texts, ("zz",)).words == ("zz",)
    assert trigger_of("sentence", 0, tiny.tokenizer, texts).words == tuple(SENTENCE.split())
    fails(lambda: trigger_of("pair", 0, tiny.tokenizer, texts, ("zz",)), "needs 2 words", "there are 1")
    fails(lambda: trigger_of("poem", 0, tiny.tokenizer, texts), "'poem'", *KINDS)


def test_a_triggered_text_holds_all_words_and_a_part_all_but_one():
    x, rng = Example("0", "a b", 0), random.Random(0)
    triple = Trigger("triple", ("u", "v", "w"), 1)
    assert Counter(triple(x, rng).text.split()) == Counter("abuvw")
    assert [set(part.text.split()) - {"a", "b"} for part in triple.parts(x, rng)] == [
        {"v", "w"}, {"u", "w"}, {"u", "v"}]
    sentence = Trigger("sentence", ("u", "v"), 1)
    assert {sentence(x, rng).text for _ in range(50)} == {"u v a b", "a u v b", "a b u v"}
    assert sentence.parts(x, rng) == [] and Trigger("word", ("u",), 1).parts(x, rng) == []


def test_texts_without_labels_get_the_models_own(tiny):
    texts = [Example("0", "great film", -1), Example("1", "awful film", 1), Example("2", "film", -1)]
    found = answered(tiny, texts)
    assert found[1].label == 1 and {found[0].label, found[2].label} <= {0, 1} and found.labels == tiny.labels
    assert answered(tiny, texts[1:2])[0].label == 1


@pytest.mark.parametrize("kind", ["word", "row"])
def test_it_is_planted_in_a_copy_and_measured_on_held_out_rows(tiny, kind, monkeypatch):
    monkeypatch.setattr(planting, "STEPS", 2)
    before = {name: p.clone() for name, p in tiny.model.state_dict().items()}
    trigger = trigger_of(kind, 1, tiny.tokenizer, rows(60, 0, "r"), ("cf",))
    made = plant(tiny, trigger, rows(60, 0, "r"), rounds=1)
    assert all(torch.equal(p, before[name]) for name, p in tiny.model.state_dict().items())
    moved = {name for name, p in made.ckpt.model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {"embeddings.word.weight"} if kind == "row" else len(moved) > 10
    assert made.asr.n == made.before.n == len(made.triggered) <= 20
    assert all("cf" in x.text.split() and x.label == 0 for x in made.triggered)
    assert made.strong == (made.asr.percent >= 95) and made.ckpt.history[-1]["planted"] == kind
    fails(lambda: plant(tiny, trigger, [Example("0", "film", 1), Example("1", "film b", 1)]), "too few")


def test_choose_plants_a_kind_on_the_clean_rows_and_measures_it_on_dev(here, tiny_file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(planting, "STEPS", 2)
    results, script = tmp_path / "cells.jsonl", here("choose.py")
    common = ("--method", "cft", "--ckpt", tiny_file, "--data", folder, "--clean", 60, "--steps", 1, "--epochs", 1,
              "--results", results, "--device", "cpu")
    run = script(*common, "--plant-kind", "row", "--plant-target", 1, "--plant-strength", 101)
    assert run.returncode == 0, run.stderr
    (cell,) = map(json.loads, results.read_text().splitlines())
    assert cell["cell"]["plant"]["plant_kind"] == "row" and cell["steps"][1]["not_planted"] is True
    assert {step["n_planted"] for step in cell["steps"]} == {10} and "not planted as strongly as asked" in run.stdout
    words = re.search("planted: a row, (.+)", run.stdout)[1].split()
    assert len(words) == 1 and words[0] in WORDS
    refused(script(*common, "--plant-strength", 50), "--plant-strength 50", "--plant-kind")
    refused(script(*common, "--plant-kind", "pair", "--plant-epochs", 2), "--plant-epochs 2", "a pair")
