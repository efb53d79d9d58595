"""A teacher's outputs that are kept over epochs: the bits of a teacher that is asked at every step."""
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from conftest import fails, refused
from minibd import checkpoint
from minibd.data import batches
from minibd.job.task import bytes_kept
from minibd.mitigations import mbtsad as module
from minibd.mitigations.mbtsad import MBTSAD, attention_loss, distil, over_heads
from minibd.models import kept_outputs
from minibd.models.encoder import Encoder
from minibd.models.kept_outputs import SMALL, KeptOutputs, memory, room
from minibd.records import Example
from minibd.resume import Kept
from minibd.train import StepLog
from test_resume import Killed, killed_after
from test_train import LETTERS

SETTINGS = MBTSAD(lr2=1e-3, epochs2=2, batch_size=4)
LENGTHS = (19, 25, 2, 17, 30, 7, 22, 22, 18, 40, 3, 16)  # texts in wide batches and narrow ones
LONG = [Example(str(i), " ".join(LETTERS[(i * j) % 8] for j in range(1, 1 + n)), i % 2) for i, n in enumerate(LENGTHS)]
ROWS = [*LONG, *LONG[:2]]  # two of them twice


@pytest.fixture(autouse=True)
def other_neighbours(monkeypatch):
    """In each epoch; else few rows have the same batches in all."""
    monkeypatch.setattr("minibd.data.batching.POOL", 1)


@pytest.fixture
def pair(tiny):
    """A victim, and a teacher that says otherwise."""
    victim, teacher = checkpoint.copy(tiny), checkpoint.copy(tiny)
    teacher.model.init_weights(torch.Generator().manual_seed(3), std=0.2)
    return victim, teacher


def trained(pair, cache, settings=SETTINGS, rows=ROWS, **more) -> tuple[Encoder, list]:
    victim, teacher = pair
    teacher.model.cache, log = cache, more.pop("log", StepLog())
    made = distil(victim, teacher, victim.tokenizer.encode(rows), settings, log=log, **more)
    return made.model, log.steps


def same(one, other, within: float = 0.0) -> None:
    assert len(one[1]) == len(other[1]) > 3
    for step, known in zip(one[1], other[1]):
        if not within:
            assert step == known
        assert step["total"] == pytest.approx(known["total"], abs=within) and step["batch"] == known["batch"]
    for (name, a), b in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=within), name


def outputs_of(teacher, rows=ROWS, most=1 << 30, size=4, **more) -> tuple[KeptOutputs, object]:
    encoded = teacher.tokenizer.encode(rows)
    return KeptOutputs(teacher.model, teacher.tokenizer, encoded, batches(encoded.lengths, size, 1, 0), most=most,
                       **{"want": ("attn", "hidden"), "sums": partial(over_heads, p=2.0), **more}), encoded


@pytest.fixture
def asked(pair, monkeypatch):
    """The texts of each call of the teacher."""
    calls, teacher = [], pair[1].model
    forward = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda batch, want: (calls.append(len(batch.labels)),
                                                                 forward(batch, want))[1])
    return calls


@pytest.mark.parametrize("most", [None, 3], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("settings", [{}, {"p": 3.0}, {"ablate": "no-hid"}], ids=str)
def test_losses_and_weights_are_those_of_a_teacher_that_is_always_asked(pair, settings, most):
    pair[0].model.micro_batch = most
    settings = replace(SETTINGS, **settings)
    same(trained(pair, "auto", settings), trained(pair, None, settings))


def test_under_bfloat16(pair):
    same(trained(pair, "auto", dtype=torch.bfloat16), trained(pair, None, dtype=torch.bfloat16))


def test_the_teacher_is_asked_once_for_each_text_of_a_wide_batch(pair, asked, capsys):
    rows = [x for x in LONG if len(x.text.split()) >= SMALL]
    trained(pair, None, rows=rows)
    assert sorted(asked) == [1] * 2 + [4] * 4
    assert "MBTSAD: of" not in capsys.readouterr().err
    asked.clear()
    trained(pair, 1 << 30, rows=rows)
    assert sorted(asked) == [1, 4, 4]
    assert "of 9 of 9 texts the teacher's outputs are kept over 2 epochs: 0 MiB of 0 (--cache up to 1024)" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("settings, cache", [
    ({"epochs2": 1}, "auto"), ({"variant": "released"}, "auto"), ({"ablate": "cls-only"}, "auto"),
    ({"ablate": "no-att"}, "auto"), ({}, None), ({}, 1)], ids=str)
def test_where_nothing_is_kept(pair, monkeypatch, settings, cache):
    monkeypatch.setattr(KeptOutputs, "__call__", lambda *_: pytest.fail("kept"))
    trained(pair, cache, replace(SETTINGS, **settings))


def test_of_several_processes_none_keeps_anything(pair, monkeypatch, capsys):
    victim, teacher = pair
    ask = partial(module.taught_by, teacher, victim.tokenizer.encode(ROWS), ["attn"], SETTINGS, SETTINGS.schedule(2), 1)
    assert isinstance(ask(), KeptOutputs)
    monkeypatch.setattr(module, "size", lambda: 2)
    capsys.readouterr()
    assert not isinstance(ask(), KeptOutputs) and not capsys.readouterr().err
    teacher.model.cache = 1 << 20  # who names a size is told
    assert not isinstance(ask(), KeptOutputs) and "of 2 processes none keeps" in capsys.readouterr().err


def test_what_does_not_fit_is_asked_for_again(pair, asked):
    _, teacher = pair
    all_of_it, encoded = outputs_of(teacher)
    c = teacher.model.config
    distinct = {tuple(ids) for ids in encoded.ids}
    assert all_of_it.texts == len(distinct) == len(all_of_it.number) == 12
    assert all_of_it.bytes == all_of_it.needed == 4 * sum(
        (c.layers + 1) * len(ids) * c.hidden + c.layers * len(ids) ** 2 for ids in distinct)
    half, _ = outputs_of(teacher, most=all_of_it.needed // 2)
    assert 0 < half.bytes <= all_of_it.needed // 2 < half.needed == all_of_it.needed and len(half.number) < half.texts
    # fewer texts than a batch has: their bits are the processor's matter, and AdamW makes 1e-7 more of them
    same(trained(pair, all_of_it.needed // 2), trained(pair, None), within=2e-5)
    asked.clear()
    trained(pair, all_of_it.needed // 2)
    some = sum(asked)
    asked.clear()
    trained(pair, all_of_it.needed)
    assert sum(asked) < some < 2 * len(ROWS)


def test_auto_keeps_all_or_nothing(pair, asked, monkeypatch):
    """So that no bit hangs on how much memory there is."""
    all_of_it, _ = outputs_of(pair[1])
    for most, kept in ((all_of_it.needed, True), (all_of_it.needed - 4, False)):
        monkeypatch.setattr(module, "room", lambda *_, most=most: most)
        asked.clear()
        trained(pair, "auto")
        assert (sum(asked) < 2 * len(ROWS)) == kept


def test_a_batch_gets_its_texts_own_outputs(pair):
    """Other neighbours, another order and width; against the model asked for the batch itself."""
    _, teacher = pair
    outputs, encoded = outputs_of(teacher)
    for which in ([9, 0, 4, 11], [3], [2, 5, 10], [1, 2, 9], [13, 0, 1]):
        batch = teacher.tokenizer.batch(encoded, which)
        for _ in range(2):
            found = outputs(batch)
            with torch.no_grad():
                expected = teacher.model(batch, ("attn", "hidden"))
            assert len(found.hidden) == 3 and len(found.attn) == 2
            for h, own in zip(found.hidden, expected.hidden, strict=True):
                assert torch.equal(h[batch.mask], own[batch.mask]) and h.shape == own.shape
            for f, own in zip(found.attn, expected.attn, strict=True):
                sums = (own * own).sum(1) * batch.mask[:, :, None]
                assert torch.equal(f, sums)
            one, other = (attention_loss(expected.attn, maps, batch.mask) for maps in (found.attn, expected.attn))
            assert torch.equal(one, other) and float(one.abs().max()) == 0


def test_texts_that_are_others_are_never_taken_for_known_ones(pair, asked):
    """Fresh copies in a second epoch: the same numbers and lengths, other words; or another segment."""
    _, teacher = pair
    outputs, encoded = outputs_of(teacher)
    first = teacher.tokenizer.batch(encoded, range(4))
    outputs(first)
    asked.clear()
    ids = first.ids.clone()
    ids[0, 5] += 1
    for batch in (replace(first, ids=ids), replace(first, token_type_ids=torch.ones_like(ids) * first.mask)):
        found, before = outputs(batch), len(asked)
        with torch.no_grad():
            expected = teacher.model(batch, ("attn", "hidden"))
        assert before and torch.allclose(found.hidden[-1][first.mask], expected.hidden[-1][first.mask], atol=1e-6)
        assert not torch.allclose(found.hidden[-1][0], outputs(first).hidden[-1][0], atol=1e-2)


def test_a_run_that_goes_on_has_the_bits_even_where_neighbours_matter(pair, tmp_path, monkeypatch):
    """A teacher whose texts change one another: what is kept is of the first epoch's batches, in both runs."""
    teacher = pair[1].model
    forward = teacher.forward

    def among_neighbours(batch, want):
        out = forward(batch, want)
        return replace(out, hidden=tuple(h + 1e-3 * batch.ids.sum() for h in out.hidden))
    monkeypatch.setattr(teacher, "forward", among_neighbours)
    whole = trained(pair, "auto")
    assert whole[1] != trained(pair, None)[1]
    for killed in (3, 6):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(module, "distill_terms", killed_after(module.distill_terms, killed))
            trained(pair, "auto", log=StepLog(kept=Kept(tmp_path / str(killed), {}, every=1)))
        again, taken, terms = StepLog(kept=Kept(tmp_path / str(killed), {}, every=1, going_on=True)), [], (
            module.distill_terms)
        with monkeypatch.context() as patched:
            patched.setattr(module, "distill_terms", lambda *args: (taken.append(args), terms(*args))[1])
            same(trained(pair, "auto", log=again), whole)
        assert len(taken) == 8 - killed


def test_the_bits_that_do_not_hang_on_neighbours(tiny_file):
    """What exactness stands on: a text's outputs in batches of other widths and sizes, from SMALL tokens on. Where a
    processor's kernels have it otherwise, kept outputs are equal to rounding."""
    ckpt = checkpoint.load(tiny_file)
    rows = ckpt.tokenizer.encode([x for x in LONG if len(x.text.split()) >= SMALL])
    seen = {}
    with torch.no_grad():
        for size in (1, 2, 5, 9):
            for which in batches(rows.lengths, size, size, 0):
                out = ckpt.model(ckpt.tokenizer.batch(rows, which), ("attn", "hidden"))
                for b, i in enumerate(which):
                    n = rows.lengths[i]
                    own = [*(h[b, :n] for h in out.hidden), *(a[b, :, :n, :n] for a in out.attn)]
                    for x, y in zip(seen.setdefault(i, own), own):
                        assert torch.allclose(x, y, rtol=0, atol=1e-6)


def test_the_room(monkeypatch):
    cpu = torch.device("cpu")
    free, whole = memory(cpu)
    assert 0 < free < whole
    for has, most in (((9 << 30, 16 << 30), 2 << 30), ((99 << 30, 200 << 30), 4 << 30), ((3 << 30, 16 << 30), 0),
                      ((0, 0), 0)):
        monkeypatch.setattr(kept_outputs, "memory", lambda device, has=has: has)
        assert room("auto", cpu) == most
    assert (room(None, cpu), room(5 << 20, cpu)) == (0, 5 << 20)


@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", "9" * 30, "on"])
def test_what_is_no_size_is_refused(word):
    fails(lambda: bytes_kept(word), "--cache", "auto or off")


def test_sizes_auto_and_off():
    assert [bytes_kept(word) for word in ("auto", "off", "3")] == ["auto", None, 3 << 20]


def test_a_copy_keeps_how_much_is_kept(tiny):
    given = checkpoint.copy(tiny)
    assert given.model.cache == "auto"
    given.model.cache = 7
    for made in (checkpoint.copy(given), checkpoint.headless(given), checkpoint.new_classifier(given, ("a", "b"), 0)):
        assert made.model.cache == 7


def test_through_the_script(here, tiny_file, folder, tmp_path):
    found = {}
    for flags in (("--cache", "off"), ("--cache", 1), ()):
        run = here("mbtsad.py")("--ckpt", tiny_file, "--data", folder, "--attack", "none", "--clean", 20, "--no-cft",
                                "--k", 1, "--epochs1", 1, "--epochs2", 2, "--out", tmp_path / "out", "--overwrite",
                                *flags)
        assert run.returncode == 0, run.stderr
        assert ("the teacher's outputs are kept over 2 epochs" in run.stderr) == (flags != ("--cache", "off"))
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["args"]["cache"] == (str(flags[1]) if flags else "auto")
        found[flags] = (tmp_path / "out" / "steps.jsonl").read_bytes(), result["sha256"]
    assert len({steps for steps, _ in found.values()}) == 1
    for flags, why in ((("--no-distil",), "distillation"), (("--epochs2", 1), "once"),
                       (("--variant", "released"), "padding"), (("--alpha", 0), "attention"), (("--pick",), "--pick")):
        refused(here("mbtsad.py")("--ckpt", tiny_file, "--data", folder, "--cache", "auto", *flags), "--cache", why)
    refused(here("mbtsad.py")("--ckpt", tiny_file, "--data", folder, "--cache", "much"), "--cache 'much'")
