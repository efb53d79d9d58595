"""The small table of visited rows against AdamW on the whole table: any method's loss, decay, clipping, best epoch,
readers from outside in between, a state that is saved and loaded."""
import copy
import itertools

import pytest
import torch

from conftest import distilling
from minibd.models.encoder import Encoder
from minibd.models.visited_rows import visited_rows
from minibd.predict import accuracy, predict
from minibd.records import Example
from minibd.resume import begin
from minibd.train import Schedule, StepLog, cross_entropy, dense_optimizer, each_batch, fit, usual_optimizer
from test_encoder import MODELS
from test_train import ROWS, TEXT, bert, state

FEW = [Example(str(i), " ".join("abc"[(i * j) % 3] for j in range(1, 2 + i % 5)), i % 2) for i in range(10)]
ELSEWHERE = [Example("0", "g h g", 0), Example("1", "h f", 1)]  # of rows that FEW does not visit
ENCODED = TEXT.encode(FEW)
IDS = {i for row in ENCODED.ids for i in row} | {0}
UNVISITED = [i for i in range(12) if i not in IDS]


def trained(dense: bool, loss=cross_entropy, decay: float = 0.3, clip: float = 0.06, model: Encoder | None = None,
            **more) -> Encoder:
    schedule = Schedule(1e-2, epochs=3, batch_size=4, weight_decay=decay, clip=clip)
    model = bert().double() if model is None else model
    optimizer = dense_optimizer(model, schedule) if dense else None
    return fit(model, TEXT, ENCODED, loss, schedule, seed=3, optimizer=optimizer, **more)


def alike(a: Encoder, b: Encoder) -> None:
    for (name, one), other in zip(state(a).items(), state(b).values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10), name


def distillation():
    return distilling(bert(seed=5).double().eval())


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("clip", [0.06, 100.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("loss", [lambda: cross_entropy, distillation], ids=["cross-entropy", "MBTSAD"])
def test_it_is_the_dense_step(loss, clip, decay):
    """Every weight, and the norm that clips: the log's terms would part after one step with another."""
    logs = [], []
    ours, theirs = (trained(dense, loss(), decay, clip, log=log.append) for dense, log in zip((False, True), logs))
    alike(ours, theirs)
    assert [step["total"] for step in logs[0]] == pytest.approx([step["total"] for step in logs[1]], abs=1e-10)
    word, before = ours.embeddings.word.weight, bert().double().embeddings.word.weight
    moved = (word != before).any(1)
    assert moved[UNVISITED].all() == (decay > 0) and moved[4:7].all() and len(UNVISITED) == 6


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_row_that_is_not_visited_has_the_bits_of_the_dense_step(decay):
    ours, theirs = (trained(dense, decay=decay, model=bert()) for dense in (False, True))
    assert torch.equal(*(model.embeddings.word.weight[UNVISITED] for model in (ours, theirs)))


@pytest.mark.parametrize("name", ["roberta", "distilbert", "electra", "gpt2", "llama"])
def test_on_every_kind_of_embedding(name):
    """With a padding row and without, of the hidden size and of another, packed and not."""
    ours, theirs = (MODELS[name]().init_weights(torch.Generator().manual_seed(0), std=0.2).double() for _ in range(2))
    alike(trained(False, model=ours), trained(True, model=theirs))


@pytest.mark.parametrize("scores", [(3.0, 2.0, 1.0), (1.0, 3.0, 2.0), (1.0, 2.0, 3.0)])
def test_the_best_epoch_and_its_scores(scores):
    """A score reads rows of other texts, which have decayed till then."""
    seen = [], []

    def score(into):
        rest = iter(scores)

        def read(model):
            into.append(model(TEXT(ELSEWHERE)).logits.detach())
            return next(rest)
        return read

    ours, theirs = (trained(dense, score=score(into)) for dense, into in zip((False, True), seen))
    alike(ours, theirs)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*seen, strict=True)) and len(seen[0]) == 3


def test_who_looks_at_any_step_sees_the_dense_weights():
    """state_dict, an evaluation and a pass without gradients; settling in between changes no bit of what follows."""
    seen = [], []

    def look(into):
        def on_step(model, step):
            if step % 3 == 1:
                into.append(state(model))
            if step % 3 == 2:
                into.append({"logits": model.eval()(TEXT(ELSEWHERE)).logits.detach()})
                model.train()
        return on_step

    ours, theirs = (trained(dense, on_step=look(into)) for dense, into in zip((False, True), seen))
    for one, other in zip(*seen, strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-10) for name in other)
    assert len(seen[0]) == 6
    alike(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(state(ours).values(), state(trained(False)).values(), strict=True))


def test_after_a_run_of_few_steps_and_after_an_error():
    alike(trained(False, max_steps=2), trained(True, max_steps=2))
    models, counts = [bert().double(), bert().double()], (itertools.count(), itertools.count())
    for dense, model, count in zip((False, True), models, counts):
        def loss(m, batch, count=count):
            if next(count) == 4:
                raise KeyboardInterrupt
            return cross_entropy(m, batch)
        with pytest.raises(KeyboardInterrupt):
            trained(dense, loss, model=model)
    alike(*models)
    assert "forward" not in vars(models[0].embeddings.word) and copy.deepcopy(models[0]) is not None


def steps_of(model: Encoder, optimizer, batches_: list, first: int) -> None:
    for step, *_, batch, _ in batches_[first:]:
        optimizer.zero_grad()
        cross_entropy(model, batch)["cls"].mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()


def test_the_state_of_model_and_optimizer_can_be_saved_and_gone_on_with():
    schedule = Schedule(1e-2, epochs=2, batch_size=4, weight_decay=0.3)

    def run(cut: int | None) -> Encoder:
        model = bert(dropout=0.0)
        plan = list(each_batch(model, TEXT, ENCODED, 2, 4, seed=0, name="x"))
        model.train()
        with usual_optimizer(model, TEXT, ENCODED, schedule) as optimizer:
            steps_of(model, optimizer, plan[:cut], 0)
            if cut is None:
                return model
            # in either order: the model's state is settled where it is taken
            kept = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
            steps_of(model, optimizer, plan, cut)  # and the old run goes on, elsewhere
        model = bert(dropout=0.0, seed=9).train()
        with usual_optimizer(model, TEXT, ENCODED, schedule) as optimizer:
            model.load_state_dict(kept[1])
            optimizer.load_state_dict(kept[0])
            steps_of(model, optimizer, plan, cut)
        return model

    whole, gone_on = run(None), run(3)
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(gone_on).values(), strict=True))


def test_parts_of_a_state_that_lack_the_table_leave_what_was_trained():
    ours, theirs = bert().double(), bert().double()
    pooler = {name: t + 1 for name, t in state(ours).items() if name.startswith("pooler")}

    def load(model, step):
        if step == 3:
            model.load_state_dict(pooler, strict=False)
    alike(trained(False, model=ours, on_step=load), trained(True, model=theirs, on_step=load))


@pytest.mark.parametrize("stopped", range(1, 9))
def test_a_run_that_is_resumed_at_any_step_has_the_bits_of_one_that_was_not(tmp_path, stopped):
    """minibd/resume.py keeps the table and the small moments; scores, so that the best epoch's table is kept, too."""
    def run(kept, at=None, after=0):
        scores = iter([1.0, 3.0, 2.0][after // 3:])

        def on_step(model, step):
            if step == at:
                raise KeyboardInterrupt
        log = StepLog(kept=kept)
        return trained(False, model=bert(), score=lambda model: next(scores), log=log, on_step=on_step)

    whole = state(run(None))
    with pytest.raises(KeyboardInterrupt):
        run(begin(tmp_path / "out", {}, 1, False), stopped)
    # the last step was not kept before the interrupt
    for name, t in state(run(begin(tmp_path / "out", {}, 1, True), after=stopped - 1)).items():
        assert torch.equal(t, whole[name]), name


def test_a_loss_that_reads_what_is_not_trained_is_an_error():
    def elsewhere(model, batch):
        model(TEXT(ELSEWHERE))
        return cross_entropy(model, batch)

    def whole_table(model, batch):
        return {"cls": cross_entropy(model, batch)["cls"] + model.embeddings.word.weight.sum()}

    for loss, words in ((elsewhere, "tokens that no row"), (whole_table, "whole word embedding")):
        with pytest.raises(RuntimeError, match=words):
            trained(False, loss)
        trained(True, loss)
    gone = bert().double()
    gone.embeddings.word.weight.grad = torch.ones(12, 8).double()  # of who used the model before
    alike(trained(False, model=gone), trained(True))


def test_a_frozen_table_and_a_model_of_another_kind_have_the_dense_optimizer():
    model, schedule = bert(), Schedule(1e-2, 1)
    model.embeddings.requires_grad_(False)
    with usual_optimizer(model, TEXT, ENCODED, schedule) as optimizer:
        assert optimizer.visited is None and len(optimizer.params) == len(list(model.parameters())) - 5
    with usual_optimizer(torch.nn.Linear(2, 2), TEXT, ENCODED, schedule) as optimizer:
        assert optimizer.visited is None and len(optimizer.params) == 2


def test_the_small_table_is_small_and_the_large_one_has_no_gradient():
    model = bert()
    with visited_rows(model.embeddings.word, [5, 6, 5]) as visited:
        assert visited.index.tolist() == [0, 5, 6] and visited.rows.shape == (3, 8)
        batch = TEXT([Example("0", "b c", 0)])
        batch.ids[:] = torch.tensor([5, 6, 6, 0])[:batch.ids.shape[1]]
        cross_entropy(model.train(), batch)["cls"].sum().backward()
        assert model.embeddings.word.weight.grad is None and visited.rows.grad[1:].abs().sum() > 0
        assert not visited.rows.grad[0].any()  # the padding row, as in nn.Embedding


def test_predictions_in_between_read_the_table_whole():
    """predict runs in inference mode, which no later gradient may trip over."""
    seen = []

    def on_step(model, step):
        seen.append((predict(model, TEXT, ELSEWHERE), accuracy(model, TEXT, ROWS)))
        model.train()
    trained(False, on_step=on_step)
    assert len(seen) == 9
