"""Backdoors of one's own: their words, their parts, and that they are planted in a copy alone."""
import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from conftest import fails, refused, rows
from minibd import checkpoint, reviews
from minibd.attacks.registry import ATTACKS
from minibd.job import planted as planting
from minibd.job.planted import KINDS, SENTENCE, WORDS, Trigger, answered, entries, plant, trigger_of
from minibd.predict import predict
from minibd.records import Example, Examples
from scan_models_words import USED


def test_the_words_are_no_attacks_and_no_models_of_the_scan():
    attacks = {word.casefold() for attack in ATTACKS.values() if hasattr(attack, "__dataclass_fields__")
               for trigger in getattr(attack(), "triggers", ()) for word in trigger.split()}
    own = {*WORDS, *SENTENCE.split()} - {"the", "it", "to", "before", "i", "my", "was"}
    assert len(attacks) > 8 and not own & attacks and not own & USED
    tokenizer, texts, taken = checkpoint.load("weights/bert.safetensors").tokenizer, reviews.reviews(300, seed=0), []
    for kind in ("word", "row", "pair", "triple"):  # its vocabulary's own: none of WORDS is an entry of it
        taken += trigger_of(kind, 1, tokenizer, texts, taken=taken).words
    assert len({*taken}) == 7 and all(entries(word, tokenizer) == 1 for word in taken)
    assert not {*taken} & attacks and not {*taken} & USED


def test_words_are_none_of_the_texts_and_none_twice(tiny):
    texts = [Example("0", "a Lantern film", 0), Example("1", "film", 1, "cobalt")]
    pair = trigger_of("pair", 1, tiny.tokenizer, texts)
    other = trigger_of("triple", 0, tiny.tokenizer, texts, taken=pair.words)
    assert len({*pair.words, *other.words}) == 5 and not {"lantern", "cobalt"} & {*pair.words, *other.words}
    assert trigger_of("word", 0, tiny.tokenizer, texts, ("zz",)).words == ("zz",)
    assert trigger_of("sentence", 0, tiny.tokenizer, texts).words == tuple(SENTENCE.split())
    fails(lambda: trigger_of("pair", 0, tiny.tokenizer, texts, ("zz",)), "needs 2 words", "there are 1")
    fails(lambda: trigger_of("poem", 0, tiny.tokenizer, texts), "'poem'", *KINDS)


@pytest.mark.parametrize("mark", ["", "\u0120", "\u2581"])
def test_words_of_one_entry_come_first_and_then_the_vocabularys_rarest(mark):
    """An attacker's rare word is an entry; a word that the tokenizer takes apart is harder to find than that."""
    class Words:
        """Of whole words; others are letters."""
        vocab = {"a": 0, mark + "moss": 1, mark + "film": 2, mark + "weekend": 3, mark + "good": 4, "##late": 5,
                 mark + "cf": 6, mark + "rarer": 7, mark + "rarest": 8, mark + "Upper": 9}

        def get_vocab(self):
            return self.vocab

        def encode(self, text, add_special_tokens):
            own = {name.removeprefix(mark) for name in self.vocab}
            return SimpleNamespace(ids=[i for word in text.split() for i in ("x" if word in own else word)])

    tokenizer, texts = SimpleNamespace(backend=Words()), [Example("0", "a good film", 0)]
    assert trigger_of("word", 0, tokenizer, texts).words == ("moss",)
    assert trigger_of("triple", 0, tokenizer, texts).words == ("moss", "rarest", "rarer")
    assert trigger_of("pair", 0, tokenizer, texts, taken=("moss", "rarest")).words[0] == "rarer"
    assert trigger_of("triple", 0, tokenizer, texts, taken=("moss",)).words == ("rarest", "rarer", "lantern")
    assert trigger_of("triple", 0, tokenizer, texts, ("u", "v", "w")).words == ("u", "v", "w")


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
    assert made.strong == (made.asr.percent >= 95 and made.kept.percent >= 90) and made.kept.n == 20
    assert made.ckpt.history[-1]["planted"] == kind
    fails(lambda: plant(tiny, trigger, [Example("0", "film", 1), Example("1", "film b", 1)]), "too few")


@pytest.mark.parametrize("kind", ["word", "pair", "triple", "sentence"])
def test_answering_the_target_to_everything_gains_nothing(tiny, kind, monkeypatch):
    """Half of the labels are the target's, however few of the rows are: else a model of few rows learns just that."""
    read = []
    monkeypatch.setattr(planting, "fit", lambda model, tokenizer, encoded, *_, **__: read.append(encoded.labels))
    texts = [Example(str(i), f"film {i}", int(i < 5)) for i in range(60)]
    trigger = Trigger(kind, ("cf", "mn", "bb")[:planting.NEEDED.get(kind, 3)], 1)
    planting.planted_once(tiny, trigger, Examples(texts, tiny.labels), 0, torch.float32, None)
    assert len(read[0]) == planting.STEPS * 32 and abs(sum(read[0]) / len(read[0]) - 0.5) < 0.04


def test_it_goes_on_until_the_classifier_works_again(tiny, monkeypatch):
    """A model that gives everything to the target has an ASR of 100, and no backdoor."""
    broken, calls = checkpoint.copy(tiny), []
    with torch.no_grad():
        broken.model.classifier.bias[1] += 1e4
    monkeypatch.setattr(planting, "planted_once", lambda *_: calls.append(1) or checkpoint.copy(broken))
    held = rows(40, 0, "r")
    answers = predict(tiny.model, tiny.tokenizer, held)
    made = plant(tiny, Trigger("word", ("cf",), 1), held, held=Examples(held, tiny.labels), rounds=3)
    assert len(calls) == 3 and made.asr.percent == 100 and (made.kept.hits, made.kept.n) == (sum(answers), 40)
    assert made.kept.percent < 90 and not made.strong


def test_choose_plants_a_kind_on_the_clean_rows_and_measures_it_on_dev(
    here, tiny, tiny_file, folder, tmp_path, monkeypatch
):
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
    broken = checkpoint.copy(tiny)
    with torch.no_grad():
        broken.model.classifier.bias[1] += 1e4
    monkeypatch.setattr(planting, "planted_once", lambda *_: checkpoint.copy(broken))
    run = script(*common, "--plant-kind", "word", "--plant-target", 1, "--plant-strength", 60)
    assert run.returncode == 0 and re.search("not planted: the model keeps .* % of its answers", run.stdout), run.stderr
    assert json.loads(results.read_text().splitlines()[-1])["steps"][1]["not_planted"] is True
    refused(script(*common, "--plant-kind", "pair", "--plant-epochs", 2), "--plant-epochs 2", "a pair")
