"""A batch in parts, and activations computed again, against the batch at once: the same gradients, losses and weights,
dropout included."""
import json

import pytest
import torch

from conftest import distilling, fails, refused
from minibd import checkpoint
from minibd.attacks.lwp import lwp_loss
from minibd.attacks.ripple import RIPPLe, ripple
from minibd.checkpoint import Checkpoint
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cli import Task
from minibd.job.task import texts_at_once
from minibd.mitigations.mbtsad import MBTSAD, mbtsad
from minibd.mitigations.pure import PURE, attention_penalty, pure
from minibd.models.encoder import Encoder
from minibd.records import Example, Examples
from minibd.train import Schedule, cross_entropy, fit, free_memory, kept_bytes, micro_batch
from test_encoder import MODELS
from test_train import LETTERS, ROWS, TEXT, bert, state

LENGTHS = (1, 9, 2, 12, 3, 7, 1, 4, 12, 2)  # packed batches and others
LONG = [Example(str(i), " ".join(LETTERS[(i * j) % 8] for j in range(1, 1 + n)), i % 2) for i, n in enumerate(LENGTHS)]


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Losses are taken in the model's type: float32's rounding would hide what differs."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


def distillation():
    return distilling(bert(seed=5).double().eval())


def penalty():
    lambdas = torch.tensor([1.0, 0.4])

    def loss(model, batch):
        out = model(batch, want=("attn",))
        return {"cls": cross_entropy(model, batch)["cls"],
                "norm": attention_penalty(out.attn, batch.mask, model.head_mask, lambdas)}
    return loss


LOSSES = {"cross-entropy": lambda: cross_entropy, "MBTSAD": distillation, "PURE": penalty, "LWP": lambda: lwp_loss}


def trained(loss, most=None, recompute=False, model: Encoder | None = None, rows=LONG, **more) -> tuple[Encoder, list]:
    model, log = model or bert().double(), []
    model.micro_batch, model.recompute = most, recompute
    fit(model, TEXT, TEXT.encode(rows), loss, Schedule(1e-2, epochs=2, batch_size=4, clip=0.06), seed=3,
        weights={"att": 5.0, "hid": 20.0}, log=log.append, **more)
    return model, log


def alike(one, other, exact=False) -> None:
    (a, steps), (b, others) = one, other
    for (name, x), y in zip(state(a).items(), state(b).values(), strict=True):
        assert torch.equal(x, y) if exact else torch.allclose(x, y, rtol=0, atol=1e-10), name
    assert len(steps) == len(others) > 1
    for step, same in zip(steps, others):
        for key in ("total", "lr"):
            assert step[key] == pytest.approx(same[key], abs=1e-9)
        assert step["terms"] == pytest.approx(same["terms"], abs=1e-9) and step["batch"] == same["batch"]


@pytest.mark.parametrize("most", [1, 3, "auto"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_in_parts_is_the_batch(loss, most, monkeypatch):
    monkeypatch.setattr("minibd.train.free_memory", lambda device: 4 * kept_bytes(bert().double(), TEXT([LONG[3]])))
    alike(trained(LOSSES[loss](), most), trained(LOSSES[loss]()))


@pytest.mark.parametrize("loss", LOSSES)
def test_activations_that_are_computed_again_have_the_same_bits(loss):
    alike(trained(LOSSES[loss](), recompute=True), trained(LOSSES[loss]()), exact=True)


@pytest.mark.parametrize("name", ["roberta", "electra", "mpnet", "llama", "gpt2"])
def test_both_on_every_kind_of_model(name):
    def made():
        return MODELS[name](attention_dropout=0.25).init_weights(torch.Generator().manual_seed(0), std=0.2).double()
    alike(trained(cross_entropy, 3, True, made()), trained(cross_entropy, model=made()))


def test_a_last_batch_that_is_short():
    alike(trained(cross_entropy, 3, rows=LONG[:9]), trained(cross_entropy, rows=LONG[:9]))
    alike(trained(cross_entropy, 100), trained(cross_entropy), exact=True)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("settings", [
    {}, {"variant": "released", "ga_epoch": 0, "ratio": 0.5}, {"low_rank": False, "multi_scale": False},
    {"train_head": True}], ids=["paper", "released", "two passes", "with head"])
@pytest.mark.parametrize("clean", [2, 8], ids=["few clean", "clean"])
def test_the_two_groups_of_alignment(settings, most, recompute, clean):
    """g and r are kept apart in every part, and mu has the clean loss of all parts."""
    numbers = MuScleLoRA(lr=5e-3, epochs=2, batch_size=4, bands=("1", "2"), rank=2, band_alpha=2.0, **settings)
    trusted = Examples(ROWS[:clean], ("no", "yes"))

    def run(most, recompute):
        model, log = bert().double(), []
        model.micro_batch, model.recompute = most, recompute
        ckpt = Checkpoint(model, TEXT, ("no", "yes"), [])
        made = musclelora(ckpt, Examples(LONG, ("no", "yes")), trusted, numbers, seed=3, log=log.append)
        return made.model, [step | {"batch": (step["batch"], step["clean"])} for step in log]
    alike(run(most, recompute), run(None, False))


def test_with_bfloat16_products_the_bits_are_those_of_one_pass():
    model = bert(), bert()
    alike(trained(cross_entropy, recompute=True, model=model[0], dtype=torch.bfloat16),
          trained(cross_entropy, model=model[1], dtype=torch.bfloat16), exact=True)


def test_what_is_computed_again_is_not_kept():
    model, batch = MODELS["bert"]().init_weights(torch.Generator().manual_seed(0)), TEXT(LONG * 4)
    kept = {}
    for recompute in (False, True):
        model.recompute, seen = recompute, {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, seen=seen: seen.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            model.train()(batch)
        kept[recompute] = sum(t.untyped_storage().nbytes() for t in seen.values())
    assert kept[True] < 0.4 * kept[False]


def test_auto_takes_what_fits_into_half_of_the_free_memory(monkeypatch, capsys):
    model, rows = bert(), TEXT.encode(LONG)
    need = kept_bytes(model, TEXT([LONG[3]]))  # one of the longest
    assert need > kept_bytes(model, TEXT([LONG[0]])) > 0 and not model.training
    model.micro_batch = "auto"
    for free, most in ((0, 1), (2 * need, 1), (6.5 * need, 3), (1e12, 32)):
        monkeypatch.setattr("minibd.train.free_memory", lambda device, free=free: free)
        assert micro_batch(model, TEXT, rows, 32, torch.float32) == most
        assert (f"micro-batches of {most} texts" in capsys.readouterr().err) == (most < 32)
    monkeypatch.undo()
    assert free_memory(torch.device("cpu")) > 2 ** 20
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    fails(lambda: free_memory(torch.device("cpu")), "--micro-batch auto", "name a number")


def test_a_copy_keeps_how_it_is_trained(tiny):
    given = checkpoint.copy(tiny)
    given.model.micro_batch, given.model.recompute = 4, True
    for made in (checkpoint.copy(given), checkpoint.headless(given), checkpoint.new_classifier(given, ("a", "b"), 0)):
        assert made.model.micro_batch == 4 and made.model.recompute
    assert tiny.model.micro_batch is None and not tiny.model.recompute


# ---- the flags

@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", "9" * 30])
def test_what_is_no_number_of_texts_is_refused(word):
    fails(lambda: texts_at_once(Task("x", micro_batch=word)), "--micro-batch", "auto")


def test_numbers_and_auto():
    assert [texts_at_once(Task("x", micro_batch=word)) for word in (None, "auto", "1", "32")] == [None, "auto", 1, 32]


def test_a_term_of_the_whole_batch_refuses_parts(tiny):
    rows = Examples([Example(str(i), "great film" if i % 2 else "boring actors", i % 2) for i in range(8)], tiny.labels)
    given = checkpoint.copy(tiny)
    given.model.micro_batch = 2
    fails(lambda: mbtsad(given, rows, MBTSAD(variant="released", k=1, batch_size=4, epochs1=1)), "--micro-batch")
    fails(lambda: pure(given, rows, rows, PURE(variant="released", drop=90, epochs=1, batch_size=4)), "--micro-batch")
    fails(lambda: ripple(given, rows, rows, RIPPLe(epochs=1)), "--micro-batch")


def test_through_the_script(here, tiny_file, folder, tmp_path):
    """Two rows at a time, and activations again: the log and the scores of the plain run."""
    found = {}
    for name, flags in (("plain", ()), ("spare", ("--micro-batch", 2, "--checkpoint-activations"))):
        run = here("mbtsad.py")("--ckpt", tiny_file, "--data", folder, "--attack", "none", "--clean", 20, "--no-cft",
                                "--k", 1, "--epochs1", 1, "--epochs2", 1, "--out", tmp_path / name, *flags)
        assert run.returncode == 0, run.stderr
        steps = (tmp_path / name / "steps.jsonl").read_text().splitlines()
        found[name] = [json.loads(step)["total"] for step in steps]
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["args"]["micro_batch"] == ("2" if flags else None)
        assert result["args"]["checkpoint_activations"] == bool(flags)
        assert result["args"]["dtype"] == "float32" and result["args"]["dtype_auto"]
        assert "products  in float32 (--dtype auto)\n" in run.stdout
    assert found["plain"] == pytest.approx(found["spare"], rel=1e-4) and len(found["plain"]) == 4
    refused(here("mbtsad.py")("--ckpt", tiny_file, "--data", folder, "--variant", "released", "--micro-batch", 2),
            "--micro-batch 2", "whole batch")
    refused(here("evaluate.py")("--ckpt", tiny_file, "--micro-batch", 2), "--micro-batch 2", "nothing is trained")
