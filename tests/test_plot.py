"""plot.py: each figure as a user draws it, the numbers beside it, and one clear line for what it cannot draw."""
from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from conftest import rows
from minibd import checkpoint, data, report
from minibd.analysis.fourier import Spectrum, one_class
from minibd.analysis.heads import cls_attention, variance_maps
from minibd.analysis.perturbation import perturbations
from minibd.attacks import registry
from minibd.attacks.poison import triggered
from minibd.mitigations.mbtsad import AUGMENTERS, MBTSAD, resources_of
from minibd.models.bert import Bert


@pytest.fixture
def plot(here, monkeypatch):
    """plot("pure-2", "--ckpt", ...) -> CompletedProcess with .figure, what was drawn."""
    drawn, run = [], here("plot.py")
    save = Figure.savefig

    def save_and_check(self, *args, **kwargs):
        drawn.append(self)
        save(self, *args, **kwargs)
        legible(self)
    monkeypatch.setattr(Figure, "savefig", save_and_check)

    def run_and_check(*args):
        drawn.clear()
        done = run(*args)
        done.figure = drawn[-1] if drawn else None
        return done
    return run_and_check


def legible(figure):
    """At a width of 420 pixels: no letter under 7.5 pixels, none cut off, and no two texts over one another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), figure.get_size_inches()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    drawn = {id(label) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in ticks(axis)}
    labels = {id(label) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)
              for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)}
    texts = [text for text in texts if id(text) not in labels or id(text) in drawn]
    boxes = []
    for text in texts:
        assert text.get_fontsize() * 420 / (72 * width) >= 7.5, f"{text.get_text()!r} is small"
        box = text.get_window_extent(renderer)
        edge = figure.dpi * width, figure.dpi * height
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edge[0] + 1
        assert box.y1 <= edge[1] + 1, f"{text.get_text()!r} is cut"
        boxes.append(box.padded(-0.5))
    for i, box in enumerate(boxes):
        over = [texts[j].get_text() for j in range(i) if box.overlaps(boxes[j])]
        assert not over, f"{texts[i].get_text()!r} is over {over}"


def ticks(axis):
    """The labels that are drawn: those of the ticks in view."""
    low, high = sorted(axis.get_view_interval())
    return [label for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) for label in (tick.label1, tick.label2)
            if low - 1e-9 <= tick.get_loc() <= high + 1e-9 and label.get_visible()]


def refused(run, *words):
    lines = run.stderr.splitlines()
    assert run.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def numbers(picture):
    return json.loads(picture.with_suffix(".json").read_text())


def panels(figure):
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def said(figure) -> str:
    words = [text for ax in figure.axes for text in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())]
    return " ".join(" | ".join([figure.get_suptitle(), *words]).split())


# ---- Figure 2

@pytest.fixture(scope="module")
def attacked(tiny, tmp_path_factory):
    """The tiny classifier with a history that names an attack, as attack.py leaves it; one of its heads is pruned."""
    ckpt = checkpoint.copy(tiny)
    ckpt.model.init_weights(torch.Generator().manual_seed(5), std=0.4).head_mask[1, 2] = 0
    ckpt.history.append(registry.entry("badnets", 1, triggers=("cf", "mn"), per_text=2, sentence=None))
    path = tmp_path_factory.mktemp("attacked") / "victim.safetensors"
    checkpoint.save(ckpt, path)
    return path


def maps_of(ckpt, folder, **settings):
    ckpt, test = checkpoint.load(ckpt), data.read(folder / "test.tsv", labels=("negative", "positive"))
    entry = registry.entry("badnets", 1, triggers=("cf", "mn"), per_text=2, sentence=None)
    return variance_maps(ckpt, test, triggered(test, registry.attack_of(entry), target=1, tokenizer=ckpt.tokenizer), 1,
                         **settings)


def test_the_variance_maps_of_a_checkpoint_whose_history_names_the_attack(plot, attacked, folder, tmp_path):
    out = tmp_path / "deeper" / "pure-2.png"
    run = plot("pure-2", "--ckpt", attacked, "--data", folder, "--out", out, "--device", "cpu")
    assert run.returncode == 0 and str(out) in run.stdout, run.stderr
    assert out.read_bytes().startswith(b"\x89PNG") and imread(out).std() > 0.05, "an empty picture"
    assert sorted(f.name for f in out.parent.iterdir()) == ["pure-2.json", "pure-2.png"]
    found, maps = numbers(out), maps_of(attacked, folder)
    assert (found["figure"], found["n"], found["target"], found["args"]["ckpt"]) == ("pure-2", 30, 1, str(attacked))
    assert found["head_mask"] == [[1, 1, 1, 1], [1, 1, 0, 1]] and found["versions"]["matplotlib"]
    for name in ("clean", "triggered", "difference"):
        torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), getattr(maps, name))

    axes = panels(run.figure)
    assert [ax.get_title() for ax in axes] == ["clean", "triggered", "triggered \u2212 clean"]
    images = [ax.images[0] for ax in axes]
    for image, values in zip(images, maps[:3]):  # what is drawn, in thousandths; the pruned head is blank
        shown = torch.tensor(image.get_array().filled(float("nan")), dtype=torch.float64) / 1000
        assert shown[1, 2].isnan()
        torch.testing.assert_close(shown.nan_to_num(0),
                                   values.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(0.0).double()))
    assert images[0].get_clim() == images[1].get_clim() and images[0].get_clim()[0] == 0, "one scale"
    low, high = images[2].get_clim()
    assert low == -high < 0
    assert "30 texts" in said(run.figure) and "badnets" in said(run.figure) and "layer" in said(run.figure)
    assert "pruned" in said(run.figure)
    assert [text.get_text() for text in axes[0].texts].count("x") == 1
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "2", "3", "4"]


def test_the_attack_by_flags_or_by_a_file_of_triggered_rows(plot, attacked, tiny_folder, folder, tmp_path):
    flags = ("--attack", "badnets", "--triggers", "cf,mn", "--triggers-per-text", 2)
    assert plot("pure-2", "--ckpt", attacked, "--data", folder, *flags, "--out", tmp_path / "a.svg").returncode == 0
    test, ckpt = data.read(folder / "test.tsv"), checkpoint.load(attacked)
    entry = registry.entry("badnets", 1, triggers=("cf", "mn"), per_text=2, sentence=None)
    made = triggered(test, registry.attack_of(entry), target=1, tokenizer=ckpt.tokenizer)
    data.write(made, tmp_path / "triggered.jsonl")
    run = plot("pure-2", "--ckpt", attacked, "--data", folder, "--triggered", tmp_path / "triggered.jsonl", "--out",
               tmp_path / "b.svg")
    assert run.returncode == 0, run.stderr
    first, second = numbers(tmp_path / "a.svg"), numbers(tmp_path / "b.svg")
    assert all(first[name] == second[name] for name in ("n", "clean", "triggered", "difference"))
    assert "triggered.jsonl" in said(run.figure)
    # Rows that none of the test rows was made into.
    data.write(made.like(replace(x, id=f"other-{x.id}") for x in made), tmp_path / "strangers.jsonl")
    out = ("--out", tmp_path / "c.svg")
    refused(plot("pure-2", "--ckpt", attacked, "--data", folder, "--triggered", tmp_path / "strangers.jsonl", *out),
            "none of the 30")
    refused(plot("pure-2", "--ckpt", tiny_folder, "--data", folder, *out), "not known", "--attack", "--triggered")
    refused(plot("pure-2", "--ckpt", attacked, *out), "--data")
    refused(plot("pure-2", "--ckpt", attacked, "--data", folder, "--texts", 1, *out), "at least 2")
    assert not list(tmp_path.glob("c.*"))


def test_an_encoder_and_a_few_texts(plot, attacked, folder, tmp_path):
    checkpoint.save(checkpoint.headless(checkpoint.load(attacked)), tmp_path / "encoder.safetensors")
    run = plot("pure-2", "--ckpt", tmp_path / "encoder.safetensors", "--data", folder, "--texts", 5, "--seed", 3,
               "--out", tmp_path / "p" / "x.png")
    assert run.returncode == 0, run.stderr
    found = numbers(tmp_path / "p" / "x.png")
    assert found["n"] == 5
    # The triggers are drawn by --seed as well, so that the clean side alone is that of maps_of.
    torch.testing.assert_close(torch.tensor(found["clean"]).double(), maps_of(attacked, folder, texts=5, seed=3).clean,
                               rtol=1e-5, atol=1e-9)


# ---- Figure 3

def test_the_attention_of_a_sentence(plot, attacked, tmp_path):
    text, dear = "Awful story", "awful cf $tory with $ $"
    run = plot("pure-3", "--ckpt", attacked, "--sentence", text, "--sentence", dear, "--out", tmp_path / "p" / "a.png",
               "--device", "cpu")
    assert run.returncode == 0, run.stderr
    found, ckpt = numbers(tmp_path / "p" / "a.png"), checkpoint.load(attacked)
    assert found["layer"] == 2 and found["head_mask"] == [1, 1, 0, 1]
    assert [s["text"] for s in found["sentences"]] == [text, dear]
    for sentence, ax in zip(found["sentences"], panels(run.figure), strict=True):
        tokens, attn = cls_attention(ckpt, sentence["text"])
        assert sentence["tokens"] == tokens == [label.get_text() for label in ax.get_yticklabels()]
        torch.testing.assert_close(torch.tensor(sentence["attention"]), attn[1])
        shown = torch.tensor(ax.images[0].get_array().filled(float("nan"))).T  # tokens are rows
        assert shown.shape == (4, len(tokens)) and shown[2].isnan().all()
        torch.testing.assert_close(shown[[0, 1, 3]].float(), attn[1, [0, 1, 3]])
    assert len({ax.images[0].get_clim() for ax in panels(run.figure)}) == 1
    assert "layer 2 of 2" in said(run.figure) and "head" in said(run.figure)

    run = plot("pure-3", "--ckpt", attacked, "--sentence", text, "--layer", 1, "--out", tmp_path / "p" / "b.svg")
    assert run.returncode == 0, run.stderr
    (sentence,) = numbers(tmp_path / "p" / "b.svg")["sentences"]
    torch.testing.assert_close(torch.tensor(sentence["attention"]), cls_attention(ckpt, text)[1][0])


@pytest.mark.parametrize("flags, words", [
    ((), ("--sentence",)),
    (("--sentence", " "), ("blank",)),
    (("--sentence", "awful", "--layer", 3), ("--layer 3", "1 to 2")),
    (("--sentence", "awful", "--layer", 0), ("--layer 0",)),
])
def test_what_a_sentence_cannot_be(plot, attacked, tmp_path, flags, words):
    refused(plot("pure-3", "--ckpt", attacked, *flags, "--out", tmp_path / "p" / "x.png"), *words)
    assert not list(tmp_path.glob("*/*"))


# ---- Figures 4 and 5

LWP, BADNETS = "--attack lwp --encoder-only --survive", "--attack=badnets --preset pure --encoder-only --survive"


def cell(attack, seed, acc, asr, name="Prune-only", **args):
    args = {"floor": None, "drop": None, "mu": 0.15, "prune_only": name == "Prune-only",
            "norm_only": name == "Norm-only", "seed": seed,
            "device": "cpu", "attack": "known", **args}
    steps = [{"name": "FT", "cacc": 91.0, "asr": 100.0}, {"name": name, "cacc": acc, "asr": asr}]
    return {"cell": {"base": "bert", "data": "sst2", "seed": seed, "attack": attack,
                     "method": f"pure.py --floor {args['floor']} --mu {args['mu']}"},
            "commit": "0", "result": {"args": args, "steps": steps, "after": {"cacc": acc, "asr": asr}}}


def cells(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SWEEP = [
    cell(LWP, 0, 90.0, 40.0, floor=0.95), cell(LWP, 1, 88.0, 60.0, floor=0.95),
    cell(LWP, 0, 80.0, 20.0),  # no floor is 0.85
    cell(BADNETS, 0, 70.0, 10.0, floor=0.55), cell(BADNETS, 0, 85.0, 30.0, floor=0.95, device="cuda"),
    cell(BADNETS, 1, 86.0, None, floor=0.95),
    cell(LWP, 0, 88.0, 55.0, "Norm-only", mu=0.15), cell(LWP, 0, 84.0, 65.0, "Norm-only", mu=1.35, floor=0.95),
    cell(LWP, 0, 86.0, 50.0, "Norm-only", mu=1.35), cell(LWP, 0, 60.0, 70.0, "Norm-only", mu=0.15, even=True),
    cell(LWP, 0, 50.0, 80.0, "Norm-only", mu=1.35, even=True),
    cell(LWP, 0, 89.0, 45.0, "PURE", floor=0.95), cell(LWP, 0, 1.0, 1.0, floor=None, drop=2.0),
    {"cell": {"attack": LWP, "seed": 0}, "commit": "0", "result": {"steps": []}}, {"cell": {"x": 1}, "n": 3},
]


def test_a_base_of_the_same_name_and_other_weights_makes_another_line(plot, tmp_path):
    sweep = []
    for weights, acc in (("a" * 64, 90.0), ("b" * 64, 60.0)):
        for row in (cell(LWP, 0, acc, 40.0, floor=0.95), cell(LWP, 0, acc, 20.0)):
            sweep.append(row | {"cell": row["cell"] | {"sha256": {"base": weights}}})
    # the newest line of a cell counts, the others do not
    again = cell(LWP, 0, 50.0, 30.0)
    sweep.append(again | {"cell": again["cell"] | {"sha256": {"base": "b" * 64}}})
    out = tmp_path / "pure-4.png"
    run = plot("pure-4", "--results", cells(tmp_path / "cells.jsonl", *sweep), "--out", out)
    assert run.returncode == 0, run.stderr
    first, second = numbers(out)["lines"]
    assert (first["label"], second["label"]) == ("lwp, base's aaaaaaaaaa", "lwp, base's bbbbbbbbbb")
    assert first["acc"]["mean"] == [90.0, 90.0] and second["acc"]["mean"] == [50.0, 60.0]
    assert first["seeds"] == second["seeds"] == [1, 1]


def test_acc_and_lfr_over_the_threshold(plot, tmp_path):
    out = tmp_path / "pure-4.png"  # beside its own input, which is no output
    run = plot("pure-4", "--results", cells(tmp_path / "cells.jsonl", *SWEEP), "--out", out)
    assert run.returncode == 0, run.stderr
    badnets, lwp = numbers(out)["lines"]
    assert numbers(out)["setting"] == "floor"
    assert (badnets["label"], badnets["attack"], lwp["label"]) == ("badnets", BADNETS, "lwp")
    assert lwp["floor"] == [0.85, 0.95] and lwp["seeds"] == [1, 2]
    assert lwp["acc"] == {"mean": [80.0, 89.0], "low": [80.0, 88.0], "high": [80.0, 90.0]}
    assert lwp["lfr"] == {"mean": [20.0, 50.0], "low": [20.0, 40.0], "high": [20.0, 60.0]}
    assert badnets["floor"] == [0.55, 0.95] and badnets["seeds"] == [1, 1] and badnets["lfr"]["mean"] == [10.0, 30.0]

    accuracy, flips = panels(run.figure)
    for ax, kind in ((accuracy, "acc"), (flips, "lfr")):
        drawn = [(bars.lines[0].get_xdata().tolist(), bars.lines[0].get_ydata().tolist()) for bars in ax.containers]
        assert drawn == [(line["floor"], line[kind]["mean"]) for line in (badnets, lwp)]
        low, high = (segment[1] for segment in ax.containers[1].lines[2][0].get_segments()[1])
        assert (low, high) == (lwp[kind]["low"][1], lwp[kind]["high"][1])
    assert accuracy.get_ylabel() == "ACC (%)" and flips.get_ylabel() == "LFR (%)"
    assert "threshold c" in accuracy.get_xlabel()
    assert [text.get_text() for text in run.figure.legends[0].get_texts()] == ["badnets", "lwp"]
    assert "Prune-only" in said(run.figure) and "1 or 2 seeds per point" in said(run.figure)


def test_acc_and_lfr_over_mu_with_and_without_something_else(plot, tmp_path):
    out = tmp_path / "pure-5.svg"
    run = plot("pure-5", "--results", cells(tmp_path / "cells.jsonl", *SWEEP), "--out", out)
    assert run.returncode == 0, run.stderr
    plain, even = numbers(out)["lines"]
    assert (plain["label"], even["label"]) == ("lwp", "lwp, even") and "Norm-only" in said(run.figure)
    assert plain["mu"] == even["mu"] == [0.15, 1.35] and plain["lfr"]["mean"] == [55.0, 50.0]
    assert even["acc"]["mean"] == [60.0, 50.0]
    solid, dashed = (bars.lines[0] for bars in panels(run.figure)[0].containers)
    assert solid.get_color() == dashed.get_color()
    assert solid.get_linestyle() != dashed.get_linestyle(), "one attack, one colour"
    assert "<svg" in out.read_text()[:600] and "one run per point" in said(run.figure)


def trained(attack, cacc, asr, **args):
    """A cell of musclelora.py; its args have no poison rate, which is the attack's."""
    args = {"aux": 96, "lr": 2e-5, "ratio": 0.1, "bands": ["1", "2"], "attack": "known", "seed": 0,
            "train": ["musclelora"], **args}
    steps = [{"name": "musclelora", "cacc": cacc, "asr": asr}]
    return {"cell": {"base": "bert", "seed": 0, "attack": attack, "method": f"musclelora.py --aux {args['aux']}"},
            "commit": "0",
            "result": {"args": args, "steps": steps}}


DATASETS = "--attack badnets --preset musclelora --dataset-only", "--attack addsent --preset musclelora --dataset-only"


@pytest.mark.parametrize("figure, name, values, places", [
    ("musclelora-7", "aux", (16, 32, 96), [16, 32, 96]), ("musclelora-8", "lr", (2e-6, 2e-5, 2e-3), [0, 1, 2]),
    ("musclelora-9", "ratio", (0, 0.1, 1), [0, 0.1, 1]),
    ("musclelora-10", "bands", (["1"], ["1", "2"], ["1", "10"]), [0, 1, 2]),
    ("musclelora-4", "rate", (0.01, 0.05, 0.1), [0.01, 0.05, 0.1])])
def test_cacc_and_asr_over_a_setting_of_musclelora(plot, tmp_path, figure, name, values, places):
    out, rows = tmp_path / f"{figure}.png", []
    for i, value in enumerate(values):
        for j, attack in enumerate(DATASETS):
            if name == "rate":
                varied, args = attack.replace("--preset", f"--rate {value} --preset"), {}
            else:
                varied, args = attack, {name: value}
            rows.append(trained(varied, 80.0 + i, 20.0 + i + 10 * j, **args))
    run = plot(figure, "--results", cells(tmp_path / "cells.jsonl", *rows), "--out", out)
    assert run.returncode == 0, run.stderr
    addsent, badnets = numbers(out)["lines"]
    assert (addsent["label"], badnets["label"]) == ("addsent", "badnets") and badnets["attack"] == DATASETS[0]
    assert badnets[name] == ([list(map(float, value)) for value in values] if name == "bands" else list(values))
    assert badnets["cacc"]["mean"] == [80.0, 81.0, 82.0] and addsent["asr"]["mean"] == [30.0, 31.0, 32.0]
    accuracy, success = panels(run.figure)
    assert accuracy.containers[0].lines[0].get_xdata().tolist() == places
    assert accuracy.get_ylabel() == "CACC (%)" and success.get_ylabel() == "ASR (%)"
    assert f"MuScleLoRA, Figure {figure.split('-')[1]}" in said(run.figure)
    if name == "bands":
        assert [tick.get_text() for tick in accuracy.get_xticklabels()] == ["1", "1,2", "1,10"]


def test_a_run_with_its_ablations_is_a_point_of_each(plot, tmp_path):
    rows = [cell(LWP, 0, 80.0 + i, 20.0, "PURE", floor=c, ablations=True) for i, c in enumerate((0.55, 0.95))]
    for row in rows:
        row["result"]["steps"][1:1] = [{"name": "Prune-only", "cacc": 70.0, "asr": 60.0},
                                       {"name": "Norm-only", "cacc": 60.0, "asr": 50.0}]
    run = plot("pure-4", "--results", cells(tmp_path / "cells.jsonl", *rows), "--out", tmp_path / "x.png")
    assert [(line["label"], line["acc"]["mean"]) for line in numbers(tmp_path / "x.png")["lines"]] == [
        ("lwp, PURE", [80.0, 81.0]), ("lwp, Prune-only", [70.0, 70.0])]
    assert "PURE and Prune-only" in said(run.figure)


def test_attacks_of_one_name_are_told_apart(plot, tmp_path):
    shift = LWP + " --user-data x"
    rows = [cell(attack, 0, 80.0, 20.0, floor=c) for attack in (LWP, shift) for c in (0.55, 0.95)]
    run = plot("pure-4", "--results", cells(tmp_path / "cells.jsonl", *rows), "--out", tmp_path / "x.png")
    assert run.returncode == 0
    assert [line["label"] for line in numbers(tmp_path / "x.png")["lines"]] == [f"lwp, {LWP}", f"lwp, {shift}"]


def test_cells_that_make_no_line(plot, tmp_path):
    few = cells(tmp_path / "few.jsonl", *[row for row in SWEEP if row["cell"].get("seed") == 1], *SWEEP[-2:])
    refused(plot("pure-4", "--results", few, "--out", tmp_path / "x.png"), "few.jsonl", "no two runs", "pure-4")
    refused(plot("pure-5", "--results", cells(tmp_path / "none.jsonl"), "--out", tmp_path / "x.png"), "none.jsonl",
            "pure-5")
    refused(plot("pure-5", "--results", tmp_path / "nowhere.jsonl", "--out", tmp_path / "x.png"), "nowhere.jsonl")
    refused(plot("pure-5", "--out", tmp_path / "x.png"), "--results", "not given")
    (tmp_path / "bad.jsonl").write_text("{")
    refused(plot("pure-5", "--results", tmp_path / "bad.jsonl", "--out", tmp_path / "x.png"), "not JSON")
    assert not list(tmp_path.glob("x.*"))


def test_the_numbers_are_not_written_over_the_cells(plot, tmp_path):
    results = cells(tmp_path / "sweep.json", *SWEEP)
    before = results.read_bytes()
    refused(plot("pure-4", "--results", results, "--out", tmp_path / "sweep.png"), "over", "sweep.json")
    assert results.read_bytes() == before and not (tmp_path / "sweep.png").exists()


# ---- Figures 1, 2 and 5 of MuScleLoRA

def curves(path, *, sets=("clean", "triggered", "control"), factor=1.0, only=None, **changed):
    """A file of curves of 3 steps and 2 filter widths; e_high is defined for the first set alone.

    only: the curves of "clean", the only set.
    """
    made = {"analysis": "fourier", "variant": "released", "outputs": "probabilities", "every": 5, "sigmas": [2.0, 4.0],
            "steps": [0, 5, 10],
            "sets": {}}
    for i, name in enumerate(sets):
        low = [[factor * (1 + i) * 10.0 ** -(s + k) / 4 for k in range(3)] for s in range(2)]
        made["sets"][name] = {"n": 20 - i, "low_ratio": [[1 - v for v in line] for line in low], "high_ratio": low,
                              "e_low": [[2 * v for v in line] for line in low],
                              "e_high": [[3 * v for v in line] if i == 0 else [None] * 3 for line in low]}
    path.parent.mkdir(exist_ok=True)
    made["sets"] = made["sets"] if only is None else {"clean": only}
    path.write_text(json.dumps(made | changed))
    return path


def test_the_ratios_over_the_steps(plot, tmp_path):
    run = plot("musclelora-1", "--curves", curves(tmp_path / "plain.json"), "--out", tmp_path / "a.png")
    assert run.returncode == 0 and not run.stderr, run.stderr
    found, given = numbers(tmp_path / "a.png"), json.loads((tmp_path / "plain.json").read_text())
    assert (found["figure"], found["name"], found["sigma"]) == ("musclelora-1", "plain", 4.0)
    assert found["steps"] == [0, 5, 10]
    assert found["sets"]["control"] == {"n": 18, "low_ratio": given["sets"]["control"]["low_ratio"][1],
                                        "high_ratio": given["sets"]["control"]["high_ratio"][1]}
    for ax, kind, scale in zip(panels(run.figure), ("low_ratio", "high_ratio"), ("linear", "log"), strict=True):
        assert ax.get_yscale() == scale and ax.get_ylabel() == kind.replace("_", " ")
        assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines] == [
            ([0, 5, 10], given["sets"][name][kind][1]) for name in ("clean", "triggered", "control")]
    for low, high in ((1e-5, 1), (0.02, 0.07)):  # decades are labelled, and within one of them what lies between
        panels(run.figure)[1].set_ylim(low, high)
        run.figure.draw_without_rendering()
        labels = [label.get_text() for label in panels(run.figure)[1].get_yticklabels(which="both")]
        assert any(labels) and not any("$" in label for label in labels), "a formula's source"
    assert [text.get_text() for text in run.figure.legends[0].get_texts()] == [
        "clean (20 rows)", "triggered (19 rows)", "control (18 rows)"]
    assert "plain" in said(run.figure) and "= 4" in said(run.figure) and "released" in said(run.figure)
    assert "probabilities" in said(run.figure)

    run = plot("musclelora-1", "--curves", tmp_path / "plain.json", "--sigma", 2, "--out", tmp_path / "b.svg")
    assert numbers(tmp_path / "b.svg")["sets"]["clean"]["high_ratio"] == given["sets"]["clean"]["high_ratio"][0]


def test_curves_of_an_older_version_are_drawn(plot, tmp_path):
    new = curves(tmp_path / "new.json")
    old = new.read_text().replace('"low_ratio"', '"lfr"').replace('"high_ratio"', '"hfr"')
    (tmp_path / "old.json").write_text(old)
    for name in ("new", "old"):
        assert plot("musclelora-1", "--curves", tmp_path / f"{name}.json", "--out", tmp_path / f"of-{name}.png"
                    ).returncode == 0
    assert "lfr" in old and numbers(tmp_path / "of-old.png")["sets"] == numbers(tmp_path / "of-new.png")["sets"]


def test_ratios_of_nothing(plot, tmp_path):
    """The high ratio is 0 if the filter is the identity, and nothing is defined if the outputs are 0: no log axis, no
    warning."""
    nothing = {"n": 2, "low_ratio": [[None], [1.0]], "high_ratio": [[None], [0.0]], "e_low": [[None], [0.5]],
               "e_high": [[None], [None]]}
    for sigma in (2, 4):
        file = curves(tmp_path / "x.json", steps=[0], only=nothing)
        run = plot("musclelora-1", "--curves", file, "--sigma", sigma, "--out", tmp_path / "a.png")
        assert run.returncode == 0 and not run.stderr and panels(run.figure)[1].get_yscale() == "linear"
    assert plot("musclelora-2", "--curves", tmp_path / "x.json", "--out", tmp_path / "b.png").returncode == 0


def shown(ax):
    return [[None if v != v else v for v in line] for line in ax.images[0].get_array().filled(float("nan")).tolist()]


def test_the_relative_errors_of_one_run(plot, tmp_path):
    run = plot("musclelora-2", "--curves", curves(tmp_path / "plain.json"), "--out", tmp_path / "a.png")
    assert run.returncode == 0 and not run.stderr, run.stderr
    given = json.loads((tmp_path / "plain.json").read_text())["sets"]
    axes = panels(run.figure)
    assert [ax.get_title().replace("\n", " ") for ax in axes] == [
        "clean (20 rows)", "triggered (19 rows)", "control (18 rows)", "", "", ""]
    for ax, (name, kind) in zip(axes, [(name, kind) for kind in ("e_low", "e_high") for name in given], strict=True):
        image = ax.images[0]
        assert shown(ax) == given[name][kind]
        assert image.origin == "lower" and image.get_clim() == (0, 1)
        colours = [image.cmap(image.norm(error / 10)) for error in range(11)]
        greys = [0.3 * r + 0.59 * g + 0.11 * b for r, g, b, _ in colours]
        assert colours[1][0] > 3 * colours[1][1]
        assert greys == sorted(greys), "a small error is red, and dark without colour"
        missing = ["not defined"] if given[name][kind][0][0] is None else []
        assert [text.get_text().split(":")[0] for text in ax.texts] == missing
    assert [label.get_text() for label in axes[3].get_xticklabels()] == ["0", "5", "10"], "the bottom row's"
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["2", "4"]
    (of,) = numbers(tmp_path / "a.png")["runs"]
    assert of["name"] == "plain" and of["sigmas"] == [2.0, 4.0]
    assert of["sets"]["clean"] == {key: given["clean"][key] for key in ("n", "e_low", "e_high")}
    assert "e_low" in said(run.figure) and "e_high" in said(run.figure) and "Figure 2" in said(run.figure)
    assert "plain" in said(run.figure)


def test_the_relative_errors_of_several_runs(plot, tmp_path):
    """Runs of one name are told apart by their folders; errors that no run has get no line."""
    files = [
        curves(tmp_path / "plain" / "curves.json"), curves(tmp_path / "lora" / "curves.json", factor=2.0),
        curves(tmp_path / "other.json", sets=("control", "clean", "triggered"))]
    run = plot("musclelora-5", "--curves", ",".join(map(str, files)), "--out", tmp_path / "a.png")
    assert run.returncode == 0 and not run.stderr, run.stderr
    names = ["plain/curves", "lora/curves", "other"]
    assert [of["name"] for of in numbers(tmp_path / "a.png")["runs"]] == names
    axes = panels(run.figure)
    lines = [("clean", "e_low"), ("clean", "e_high"), ("triggered", "e_low"), ("control", "e_low"),
             ("control", "e_high")]
    assert [ax.get_title().replace("\n", "") for ax in axes[:3]] == names and len(axes) == 3 * len(lines)
    for i, (name, kind) in enumerate(lines):
        assert axes[3 * i].get_ylabel().startswith(f"{name}\n{kind}")
        for ax, file in zip(axes[3 * i:], files):
            assert shown(ax) == json.loads(file.read_text())["sets"][name][kind]
    assert "Figure 5" in said(run.figure) and "plain" not in run.figure.get_suptitle()


def test_curves_that_cannot_be_drawn(plot, tmp_path):
    out = ("--out", tmp_path / "x.png")
    good, bad = curves(tmp_path / "good.json"), tmp_path / "bad.json"
    refused(plot("musclelora-1", *out), "--curves", "not given", "Spectrum")
    refused(plot("musclelora-2", "--curves", tmp_path / "nowhere.json", *out), "nowhere.json", "no file")
    bad.write_text("{")
    refused(plot("musclelora-5", "--curves", f"{good},{bad}", *out), "bad.json", "not JSON")
    for foreign in ([1], {"method": "pure"}, {"analysis": "fourier"},
                    json.loads(good.read_text()) | {"analysis": "heads"}):
        bad.write_text(json.dumps(foreign))
        refused(plot("musclelora-1", "--curves", bad, *out), "bad.json", "no curves")
    bad.write_bytes(b"\xff\xfe")
    refused(plot("musclelora-1", "--curves", bad, *out), "bad.json", "not JSON")
    for figure in ("musclelora-1", "musclelora-2"):
        refused(plot(figure, "--curves", f"{good},{good}", *out), figure, "one file", "musclelora-5")
    refused(plot("musclelora-1", "--curves", good, "--sigma", 3, *out), "--sigma 3", "2, 4")
    refused(plot("musclelora-5", "--curves", f"{good},{curves(bad, sets=('clean',))}", *out), "bad.json",
            "no set 'triggered'")
    refused(plot("musclelora-5", "--curves", f"{good},{curves(bad, outputs='logits')}", *out), "bad.json", "logits",
            "probabilities")
    before = good.read_bytes()
    refused(plot("musclelora-1", "--curves", good, "--out", tmp_path / "good.png"), "over", "good.json")
    assert good.read_bytes() == before and not list(tmp_path.glob("*.png"))


def test_what_spectrum_gives_can_be_drawn(plot, attacked, tmp_path):
    ckpt = checkpoint.load(attacked)
    texts = rows(8, 3, "dev")
    spectrum = Spectrum(ckpt.model, ckpt.tokenizer, {"clean": texts, "control": one_class(texts, 1)})
    spectrum.on_step(ckpt.model, 0)
    report.write_json(tmp_path / "curves.json", spectrum.finish())
    for figure in ("musclelora-1", "musclelora-2", "musclelora-5"):
        run = plot(figure, "--curves", tmp_path / "curves.json", "--out", tmp_path / f"{figure}.png")
        assert run.returncode == 0 and not run.stderr, run.stderr
    assert len(numbers(tmp_path / "musclelora-2.png")["runs"][0]["sigmas"]) == 25


# ---- Figure MBTSAD 3

@pytest.fixture
def flat(monkeypatch):
    """A t-SNE that takes no time: the first two numbers of each vector. What it was asked is kept."""
    import minibd.analysis.perturbation as module
    asked = []

    def first_two(clouds, seed):
        asked.append((clouds, seed))
        return [cloud[:, :2] for cloud in clouds]
    monkeypatch.setattr(module, "tsne", first_two)
    return asked


def test_the_clouds_of_every_augmenter(plot, flat, tiny_file, tiny, folder, tmp_path):
    mlm = Bert(replace(tiny.model.config, labels=0, mlm=True))
    mlm.init_weights(torch.Generator().manual_seed(1), std=0.3).eval()
    checkpoint.save(checkpoint.Checkpoint(mlm, tiny.tokenizer, (), []), tmp_path / "mlm.safetensors")
    out = tmp_path / "p" / "mbtsad-3.png"
    flags = ("--mlm", tmp_path / "mlm.safetensors", "--texts", 30, "--seed", 4)
    run = plot("mbtsad-3", "--ckpt", tiny_file, "--data", folder, *flags, "--out", out)
    assert run.returncode == 0, run.stderr
    settings = MBTSAD(budget="equal", mlm=str(tmp_path / "mlm.safetensors"))
    clean = data.sample(data.read_splits(folder, labels=tiny.labels, seed=4).train, 30, 4)
    wanted = perturbations(tiny, clean, settings, 4, resources_of(settings))
    found = numbers(out)
    assert found["n"] == 30 and list(found["sets"]) == list(wanted) == ["clean", *AUGMENTERS]
    assert found["args"]["budget"] == "equal"
    for name, of in wanted.items():
        assert (found["sets"][name]["loss"], found["sets"][name]["distance"]) == (of.loss, of.distance)
        assert torch.equal(torch.tensor(found["sets"][name]["points"]), of.cls[:, :2])
    losses = {name: of.loss for name, of in wanted.items() if name != "clean"}
    assert found["highest_loss"] == max(losses, key=losses.get)
    [(clouds, seed)] = flat
    assert seed == 4 and all(torch.equal(cloud, of.cls) for cloud, of in zip(clouds, wanted.values(), strict=True))

    for ax, name in zip(panels(run.figure), AUGMENTERS, strict=True):
        grey, over = (torch.tensor(drawn.get_offsets().filled(float("nan"))).float() for drawn in ax.collections)
        assert torch.equal(grey, wanted["clean"].cls[:, :2]) and torch.equal(over, wanted[name].cls[:, :2])
        assert ax.get_title().startswith(name) and f"{wanted[name].loss:.3f}" in ax.get_title()
        assert f"{wanted[name].distance:.3f}" in ax.get_title()
        assert ("(highest)" in ax.get_title()) == (name == found["highest_loss"])
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels(run.figure)}) == 1, "one map"
    assert "30 rows" in said(run.figure) and "Figure 3" in said(run.figure)


def test_the_clouds_without_a_language_model_at_stock_budgets(plot, flat, tiny_file, tiny, folder, tmp_path):
    out = tmp_path / "p" / "x.svg"
    run = plot("mbtsad-3", "--ckpt", tiny_file, "--data", folder, "--budget", "stock", "--out", out)  # all 200 rows
    assert run.returncode == 0, run.stderr
    wanted = perturbations(
        tiny, data.read_splits(folder, labels=tiny.labels).train, MBTSAD(), 0, resources_of(MBTSAD())
    )
    found = numbers(out)
    assert found["n"] == 200
    assert {name: of["loss"] for name, of in found["sets"].items()} == {name: of.loss for name, of in wanted.items()}
    assert [ax.get_title().split(":")[0] for ax in panels(run.figure)] == list(AUGMENTERS[:-1])


def test_clouds_that_cannot_be_drawn(plot, tiny_file, folder, tmp_path, monkeypatch):
    common = ("mbtsad-3", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "p" / "x.png")
    refused(plot(*common, "--texts", 1), "--texts 1", "at least 2")
    refused(plot(*common, "--mlm", tiny_file), "--mlm", "no language-model head")
    refused(plot(*common, "--wordnet", tmp_path), "lacks")
    refused(plot(*common, "--mlm", tmp_path / "p"), "--out", "beside the input")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    refused(plot(*common, "--texts", 4), "scikit-learn", "pip install -e '.[plots]'")
    assert not (tmp_path / "p").exists()


# ---- all figures

@pytest.fixture(scope="module")
def wide(tiny, tmp_path_factory):
    """A classifier with the 12 layers and 12 heads of BERT-base, and an attack in its history."""
    ckpt = checkpoint.copy(tiny)
    ckpt.model = Bert(replace(tiny.model.config, layers=12, hidden=48, heads=12)).init_weights(
        torch.Generator().manual_seed(5), std=0.4).eval()
    ckpt.history.append(registry.entry("badnets", 1, triggers=("cf", "mn"), per_text=2, sentence=None))
    path = tmp_path_factory.mktemp("wide") / "a-victim-with-a-name-of-some-length-as-they-have.safetensors"
    checkpoint.save(ckpt, path)
    return path


@pytest.mark.slow
def test_what_is_large_is_legible(plot, wide, folder, tmp_path):
    """plot checks every figure; these are as full as one may expect."""
    out = ("--out", tmp_path / "x.png")
    assert plot("pure-2", "--ckpt", wide, "--data", folder, "--texts", 5, *out).returncode == 0
    sentence = "the film with a great story and music was rather awful and " * 2
    run = plot("pure-3", "--ckpt", wide, "--sentence", sentence, "--sentence", sentence + "cf", *out)
    assert run.returncode == 0 and len({ax.get_position().x0 for ax in panels(run.figure)}) == 1, "one below the other"
    files = [curves(tmp_path / f"a-method-{i}" / "curves.json", steps=[0, 5000, 10000]) for i in range(6)]
    assert plot("musclelora-5", "--curves", ",".join(map(str, files)), *out).returncode == 0
    assert plot("musclelora-2", "--curves", files[0], *out).returncode == 0
    published = ["1", "4", "8", "12", "16", "20", "24", "28"]
    for figure, name, values in (
            ("musclelora-10", "bands", [published[:i] for i in range(1, 9)]),
            ("musclelora-9", "ratio", [0, 0.05, 0.1, 0.2, 0.5, 1]),
            ("musclelora-8", "lr", [1e-6, 2e-6, 1e-5, 2e-5, 1e-4, 2e-4, 1e-3])):
        rows = [trained(f"--attack {attack}", 80.0 + seed, 100.0, seed=seed, **{name: value})
                for value in values for seed in (0, 1)
                for attack in ("badnets", "addsent", "paraphrase", "ripple", "lwp", "ep", "sos")]
        run = plot(figure, "--results", cells(tmp_path / "cells.jsonl", *rows), *out)
        assert run.returncode == 0, run.stderr


def test_the_axes_of_ratios_are_in_full_numbers(plot, tmp_path):
    """A low ratio near 1 once had ticks such as 96 under a 1e-6+9.999e-1."""
    near = {"n": 150, "low_ratio": [[0.99989, 0.99995, 0.99998]], "high_ratio": [[4.5e-4, 3.3e-4, 1.2e-4]],
            "e_low": [[0.5] * 3], "e_high": [[None] * 3]}
    run = plot("musclelora-1", "--curves", curves(tmp_path / "x.json", sigmas=[4.0], only=near), "--out",
               tmp_path / "a.png")
    assert run.returncode == 0, run.stderr
    low, high = panels(run.figure)
    assert low.yaxis.get_offset_text().get_text() == "" and high.yaxis.get_offset_text().get_text() == ""
    shown = [[float(label.get_text()) for label in ticks(ax.yaxis) if label.get_text()] for ax in (low, high)]
    assert min(shown[0]) <= 0.92 and max(shown[0]) == 1 and len(shown[1]) >= 2
    for ax, numbers_shown in zip((low, high), shown):
        bottom, top = ax.get_ylim()
        assert all(bottom <= number <= top for number in numbers_shown)


def test_the_background_is_the_files_own(plot, attacked, tmp_path, monkeypatch):
    """Whatever a matplotlibrc or the page around it has: white and opaque."""
    monkeypatch.setitem(rcParams, "savefig.facecolor", "black")
    monkeypatch.setitem(rcParams, "text.color", "white")
    monkeypatch.setitem(rcParams, "axes.labelcolor", "white")
    monkeypatch.setitem(rcParams, "font.size", 4.0)
    for name in ("a.png", "a.svg"):
        run = plot("pure-3", "--ckpt", attacked, "--sentence", "awful story", "--out", tmp_path / name)
        assert run.returncode == 0, run.stderr
        (ax,) = panels(run.figure)
        titles = [text for text in run.figure.findobj(Text) if text.get_text().startswith("Attention from")]
        assert len(titles) == 1 and {text.get_color() for text in (ax.xaxis.label, *titles)} == {"black"}
    image = imread(tmp_path / "a.png")
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert image.shape[1] == 1200 and (corners == 1).all(), "6 inches of 200 dots"
    background = re.search(r'<g id="patch_1">\s*<path d="([^"]*)" style="fill: (#\w+)',
                           (tmp_path / "a.svg").read_text())
    assert background[2] == "#ffffff" and "M 0 " in background[1]


@pytest.mark.parametrize("name", ["x.pdf", "x", "x.json", "x.png.txt"])
def test_an_ending_that_is_no_picture(plot, attacked, tmp_path, name):
    for figure in (("pure-3", "--ckpt", attacked, "--sentence", "awful"),
                   ("pure-4", "--results", cells(tmp_path / "cells.jsonl", *SWEEP))):
        refused(plot(*figure, "--out", tmp_path / name), name, ".png or .svg")
    assert [f.name for f in tmp_path.iterdir()] == ["cells.jsonl"]


@pytest.mark.slow
def test_the_same_run_draws_the_same_file(plot, attacked, tmp_path):
    results = cells(tmp_path / "cells.jsonl", *SWEEP)
    several = ("musclelora-5", "--curves", f"{curves(tmp_path / 'a' / 'x.json')},{curves(tmp_path / 'b' / 'x.json')}")
    for figure in (("pure-3", "--ckpt", attacked, "--sentence", "awful story"), ("pure-4", "--results", results),
                   several):
        for name in ("a.png", "b.PNG", "a.svg", "b.svg"):
            assert plot(*figure, "--out", tmp_path / "p" / name).returncode == 0
        assert (tmp_path / "p" / "a.png").read_bytes() == (tmp_path / "p" / "b.PNG").read_bytes()
        assert (tmp_path / "p" / "a.svg").read_bytes() == (tmp_path / "p" / "b.svg").read_bytes()


def test_without_matplotlib_one_line_says_what_to_install(plot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(plot("pure-4", "--results", cells(tmp_path / "cells.jsonl", *SWEEP), "--out", tmp_path / "x.png"),
            "pip install -e '.[plots]'")


def test_each_figure_lists_its_own_flags(plot):
    for figure, here, elsewhere in (("pure-2", "--triggers", "--layer"), ("pure-3", "--layer", "--data"),
                                    ("pure-4", "--results", "--ckpt"),
                                    ("musclelora-1", "--sigma", "--results"), ("musclelora-5", "--curves", "--sigma"),
                                    ("mbtsad-3", "--wordnet", "--sentence")):
        run = plot(figure, "--help")
        assert run.returncode == 0 and here in run.stdout and f"{elsewhere} " not in run.stdout.split("options:")[1]
    figures = ("mbtsad-3", "pure-2", "pure-3", "pure-4", "pure-5", "musclelora-1", "musclelora-2", "musclelora-5",
               "musclelora-4", "musclelora-7", "musclelora-8", "musclelora-9", "musclelora-10")
    assert all(figure in plot("--help").stdout for figure in figures)
    assert plot("pure-9").returncode == 2 and plot().returncode == 2


def test_the_script_runs_on_the_checkpoint_that_comes_along(script, tmp_path):
    """No --data and no --attack: both are in its history. Its trigger draws [CLS] to itself."""
    run = script("plot.py", "pure-2", "--ckpt", "weights/bert.safetensors", "--texts", 200, "--out",
                 tmp_path / "pure-2.png")
    assert run.returncode == 0 and not run.stderr, run.stderr
    found = numbers(tmp_path / "pure-2.png")
    assert found["n"] == 200 and torch.tensor(found["difference"]).shape == (4, 4)
    assert torch.tensor(found["difference"]).max() > 3 * -torch.tensor(found["difference"]).min() > 0
