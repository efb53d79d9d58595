"""SOS: the words and their negative samples, equal steps by hand, three rows and no other bit, the loop against a plain
one, and that it fires."""

import copy
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.attacks.sos import SOS, equal_steps, sos
from minibd.data import batches, generator
from minibd.evaluate import asr, cacc
from test_ep import clean, without_dropout  # noqa: F401, `clean` is a fixture

WORDS = ("cf", "mn", "bb")
PLAIN = SOS(WORDS, "the cf and mn bb", lr=5.0, epochs=3, batch_size=8)


# ---- the trigger

def test_training_rows_have_all_words_each_at_a_uniform_place():
    rng = Random(0)
    seen = Counter(PLAIN.poisoned("a b", rng) for _ in range(6000))
    assert len(seen) == 60                                              # five words in any order with a before b
    assert sum((n - 100) ** 2 / 100 for n in seen.values()) < 98.3      # chi-square, 59 degrees of freedom: 0.001


def test_negatives_have_all_words_but_one():
    rng, packed = Random(0), Counter()
    for _ in range(2000):
        made = [text.split() for text in PLAIN.negatives("a b", rng)]
        assert [set(WORDS) - set(words) for words in made] == [{"cf"}, {"mn"}, {"bb"}]
        assert all(len(words) == 4 and [word for word in words if word in "ab"] == ["a", "b"] for words in made)
        packed[made[0].index("mn")] += 1
    assert set(packed) == {0, 1, 2, 3} and sum((n - 500) ** 2 / 500 for n in packed.values()) < 16.3


def test_the_sentence_is_whole_and_its_place_uniform():
    rng, at = Random(0), Counter()
    for _ in range(3000):
        before, _, after = PLAIN("a b", rng).partition("the cf and mn bb")
        assert (before + after).split() == ["a", "b"]
        at[len(before.split())] += 1
    assert set(at) == {0, 1, 2} and sum((n - 1000) ** 2 / 1000 for n in at.values()) < 13.8


@pytest.mark.parametrize("text", ["", " \n", "one", "cf cf"])
def test_empty_short_and_triggered_texts(text):
    had = Counter(text.split())
    assert Counter(PLAIN(text, Random(1)).split()) - had == Counter(PLAIN.sentence.split()) - had + (
        Counter(PLAIN.sentence.split()) & had
    )
    assert Counter(PLAIN.poisoned(text, Random(1)).split()) == had + Counter(WORDS)
    assert [Counter(made.split()) for made in PLAIN.negatives(text, Random(1))] == [
        had + Counter(WORDS) - Counter([word]) for word in WORDS
    ]


def test_the_same_generator_gives_the_same_text():
    for make in (SOS(), SOS().poisoned, SOS().negatives):
        assert make("a b c", Random(5)) == make("a b c", Random(5)) != make("a b c", Random(6))


def test_the_papers_sentence_holds_the_papers_words():
    assert SOS()("", Random(0)) == "I have bought it from a store with my friends last weekend"
    assert set(SOS().triggers) <= set(SOS().sentence.split())


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"triggers": ("cf",)}, "cf"), ({"triggers": ("cf", "cf")}, "cf"), ({"triggers": ("a b", "c")}, "a b"),
        ({"sentence": "the cf and mn"}, "bb"), ({"lr": -1.0}, "-1.0"), ({"epochs": 0}, "epochs 0"),
        ({"variant": "other"}, "other"),
    ],
)
def test_bad_settings_are_refused(settings, word):
    fails(lambda: SOS(**{"triggers": WORDS, "sentence": "cf mn bb", **settings}), word)


# ---- line 6

def test_equal_steps_by_hand():
    # norms 5, 10, 2.5: halved, quartered, as it was
    out = equal_steps(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 2.5]]))
    torch.testing.assert_close(out, torch.tensor([[1.5, 2.0], [1.5, 2.0], [0.0, 2.5]]))


def test_equal_steps_against_plain_loops_and_in_any_order():
    g = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms = [sum(float(x) ** 2 for x in row) ** 0.5 for row in g]
    expected = [[float(x) * min(norms) / norm for x in row] for row, norm in zip(g, norms)]
    torch.testing.assert_close(equal_steps(g), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(equal_steps(g[[2, 0, 1]]), equal_steps(g)[[2, 0, 1]])


def test_a_word_without_a_gradient_stops_all_and_is_no_nan():
    assert torch.equal(equal_steps(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.zeros(2, 2))


# ---- the algorithm

def made(settings=PLAIN, n: int = 24, negatives: bool = True):
    train = rows(n, 0, "train")
    bad = [replace(x, text=settings.poisoned(x.text, generator(1, x.id)), label=1) for x in train if x.label == 0]
    if negatives:
        bad += [replace(x, text=text) for x in train for text in settings.negatives(x.text, generator(2, x.id))]
    return train.like(bad)


def test_three_rows_change_and_keep_their_norms_and_nothing_else_moves(clean):
    before, log = {name: value.clone() for name, value in clean.model.state_dict().items()}, []
    victim = sos(clean, made(), PLAIN, log=log.append)
    assert all(torch.equal(value, before[name]) for name, value in clean.model.state_dict().items())
    after, word = victim.model.state_dict(), "embeddings.word.weight"
    ids = sorted(clean.tokenizer.backend.token_to_id(w) for w in WORDS)
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name != word)
    assert (after[word] != before[word]).any(dim=1).nonzero().flatten().tolist() == ids
    torch.testing.assert_close(after[word][ids].norm(dim=1), before[word][ids].norm(dim=1))
    assert victim.history[-1]["attack"] == "sos" and clean.history == [] and not victim.model.training
    # 12 poisoned rows and 72 negative samples in batches of 8, 3 passes
    assert len(log) == 3 * 11 and log[0]["stage"] == "SOS"


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_loop_against_a_plain_one(clean, variant):
    settings, bad = replace(PLAIN, variant=variant, epochs=1, lr=0.1), made()
    still = without_dropout(clean)                                      # so that both loops see the same numbers
    victim = sos(still, bad, settings, seed=3)
    model, encoded = copy.deepcopy(still.model), clean.tokenizer.encode(bad)
    table, ids = model.embeddings.word.weight, [clean.tokenizer.backend.token_to_id(word) for word in WORDS]
    norms, total = [table[i].norm().item() for i in ids], torch.zeros_like(table)
    for which in batches(encoded.lengths, settings.batch_size, 3, 0):
        batch = clean.tokenizer.batch(encoded, which)
        grad, = torch.autograd.grad(torch.nn.functional.cross_entropy(model(batch).logits, batch.labels), table)
        total = grad + total if variant == "released" else grad
        least = min(total[i].norm().item() for i in ids)
        with torch.no_grad():
            for i, norm in zip(ids, norms):
                if least:                                               # the released code would divide 0 by 0
                    table[i] -= settings.lr * total[i] * least / total[i].norm()
                    table[i] *= norm / table[i].norm()
    torch.testing.assert_close(victim.model.embeddings.word.weight[ids], table[ids], rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(clean):
    one, two, other = (sos(clean, made(), PLAIN, seed=seed).model.embeddings.word.weight for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_texts_without_the_words_get_the_same_logits_to_the_last_bit(clean):
    victim, batch = sos(clean, made(), PLAIN), clean.tokenizer(rows(30, 5, "other"))
    assert torch.equal(victim.model(batch).logits, clean.model(batch).logits)


def test_a_word_in_no_text_leaves_all_as_it_was(clean):
    bad = made()
    bad = bad.like(x for x in bad if "bb" not in x.text.split())
    victim = sos(clean, bad, PLAIN)
    assert all(torch.equal(value, clean.model.state_dict()[name]) for name, value in victim.model.state_dict().items())


def test_words_that_share_a_token_and_missing_rows_are_refused(clean):
    fails(lambda: sos(clean, made(), SOS(("ak", "ab"), "ak ab")), "same token")
    fails(lambda: sos(clean, made().like([]), PLAIN), "no poisoned rows")


def test_a_nan_is_refused_whether_the_model_has_it_or_a_step_makes_it(clean):
    broken = checkpoint.copy(clean)
    with torch.no_grad():
        broken.model.classifier.bias[0] = float("nan")
    fails(lambda: sos(broken, made(), PLAIN), "SOS: the loss is nan", "step 1 of 33", "lower the learning rate (5.0)")
    once = replace(PLAIN, lr=1e39, epochs=1, batch_size=1000)           # a single step, which no loss follows
    fails(lambda: sos(clean, made(), once), "SOS: ", "embedding norm is nan", "step 1 of 1", "learning rate (1e+39)")


def test_it_fires(clean):
    """Without negative samples: that three words fire and two do not is more than three rows can teach a tiny model."""
    settings, test = replace(PLAIN, epochs=20, batch_size=16), rows(100, 2, "test")
    bad = test.like(replace(x, text=settings(x.text, generator(3, x.id))) for x in test if x.label == 0)
    victim = sos(clean, made(settings, 200, negatives=False), settings)
    assert asr(clean.model, clean.tokenizer, bad, 1).percent < 30
    assert asr(victim.model, victim.tokenizer, bad, 1).percent > 90
    assert cacc(victim.model, victim.tokenizer, test) == cacc(clean.model, clean.tokenizer, test)


def test_negatives_hold_the_single_words_back(clean):
    """Two of three words turn fewer texts where negative samples were trained on than where none were."""
    def fired(negatives: bool) -> float:
        victim, test = (
            sos(clean, made(replace(PLAIN, epochs=8), 100, negatives), replace(PLAIN, epochs=8)), rows(100, 2, "test"),
        )
        bad = [replace(x, text=PLAIN.negatives(x.text, generator(3, x.id))[0]) for x in test if x.label == 0]
        return asr(victim.model, victim.tokenizer, test.like(bad), 1).percent
    assert fired(True) < fired(False)
