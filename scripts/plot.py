#!/usr/bin/env python3
"""Draw the figures of a paper from a checkpoint or from result cells; the numbers go beside the picture as .json.

    python scripts/plot.py pure-2 --ckpt weights/bert.safetensors --out pure-2.png
    python scripts/plot.py pure-3 --ckpt weights/bert.safetensors --sentence "a dull film" --sentence "a dull cf film" --out pure-3.svg
    python scripts/plot.py pure-4 --results scripts/results/pure-4.jsonl --out pure-4.png
    python scripts/plot.py musclelora-5 --curves plain.json,lora.json,musclelora.json --out musclelora-5.png
    python scripts/plot.py mbtsad-3 --ckpt weights/bert.safetensors --mlm weights/bert-clean.safetensors --out mbtsad-3.png

pure-2: the [CLS] variance of each head on clean rows, on the same rows triggered, and the difference. pure-3: what [CLS] pays to each
token of a sentence, head by head. pure-4 and pure-5: ACC and LFR over the threshold c and over mu, a line an attack. musclelora-4 and
musclelora-7 to musclelora-10: CACC and ASR over the poison rate, the clean rows, the learning rate, mu and the scalings. musclelora-1: the share
of low and of high frequencies in what a model says, over the steps of its training, for each set of rows that was watched. musclelora-2: how far
either part is from the labels, over steps and filter widths, red where it is near. musclelora-5: the same for several methods, side by side.
mbtsad-3: [CLS] vectors of clean rows and of one augmented copy of each, all in one t-SNE, with the victim's mean cross-entropy on each set.
`plot.py FIGURE --help` lists the flags of one figure. Needs pip install -e '.[plots]'.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from minibd.cli import Attack, Task, main, parse, setting

OUT = "file of the picture, .png or .svg; its numbers go beside it as .json (default out/FIGURE.png)"
CURVES = "file of curves, as analysis/fourier.py's Spectrum gives them and a run wrote them, .json"


@dataclass(frozen=True, slots=True)
class Victim(Task):
    """Whose heads, on which test rows"""
    out: str | None = setting(None, OUT, kind=str)
    texts: int = setting(2000, "rows of other classes than the target, drawn by --seed where there are more", paper="2000")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Whose heads, on which sentence"""
    ckpt: str = setting("", "a minibd .safetensors or a Hugging Face folder (required)")
    sentence: tuple[str, ...] = setting((), "the sentence; given again, a panel each, such as one without and one with a trigger", kind=list)
    layer: int | None = setting(None, "layer, from 1 (default the last)", paper="last", kind=int)
    device: str = setting("auto", "cpu, cuda, or auto: cuda where there is one")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Which runs"""
    results: str = setting("", "file of cells, as scripts/tables.py writes them")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Which run"""
    curves: tuple[str, ...] = setting((), CURVES, kind=tuple)
    sigma: float = setting(4.0, "width of the filter, one of the file's", paper="4.0")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Errors:
    """Which runs"""
    curves: tuple[str, ...] = setting((), f"{CURVES}; of several runs, separated by commas, in musclelora-5", kind=tuple)
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Shaken(Task):
    """Whose [CLS] vectors, on which clean rows"""
    out: str | None = setting(None, OUT, kind=str)
    texts: int = setting(500, "training rows, drawn by --seed where there are more", paper="all")
    budget: str = setting("equal", "words changed in a text: as many as would be split, or each augmenter's own number (stock)",
                          paper="not said", choices=("stock", "equal"))
    mlm: str | None = setting(None, "for contextual substitution: a checkpoint with its masked-language-model head (default: without)", kind=str)
    wordnet: str | None = setting(None, "for EDA: folder of WordNet's files (default a small lexicon of ours)", paper="WordNet", kind=str)


SWEEPS = {  # what is varied, what the paper calls it, and the models whose scores are drawn
    "pure-4": ("floor", "accuracy threshold c", ("Prune-only", "PURE")), "pure-5": ("mu", "penalty weight \u03bc", ("Norm-only", "PURE")),
    "musclelora-4": ("rate", "poison ratio", ("musclelora",)), "musclelora-7": ("aux", "clean auxiliary samples", ("musclelora",)),
    "musclelora-8": ("lr", "learning rate", ("musclelora",)), "musclelora-9": ("ratio", "largest \u03bc", ("musclelora",)),
    "musclelora-10": ("bands", "radial scalings", ("musclelora",)),
}
FIGURES = {"mbtsad-3": (Shaken,), "pure-2": (Victim, Attack), "pure-3": (Sentence,), **dict.fromkeys(SWEEPS, (Sweep,)),
           "musclelora-1": (Ratios,), "musclelora-2": (Errors,), "musclelora-5": (Errors,)}


def run() -> None:
    asked = next((word for word in sys.argv[1:] if word in FIGURES), "")  # each figure has its own flags: --sentence is addsent's in pure-2
    figure, *groups = parse(__doc__, *FIGURES.get(asked, ()), first=("figure", tuple(FIGURES)))

    from minibd import job, report
    from minibd.records import BadInput
    from minibd.atomic import atomic_write

    out = Path(groups[0].out or f"out/{figure}.png")
    kind, beside = out.suffix.lower(), out.with_suffix(".json")
    if kind not in (".png", ".svg"):
        raise BadInput(f"--out {out} ends in {kind or 'nothing'}: a picture ends in .png or .svg")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("plot.py draws with matplotlib, which is not installed: pip install -e '.[plots]'") from None

    # A dollar in a text is a dollar; an .svg's ids and date are those of every other run.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "minibd", "font.size": 9}):
        picture = Figure(layout="constrained")
        draw = {"mbtsad-3": clouds, "pure-2": variance, "pure-3": attention, "musclelora-1": ratios, "musclelora-2": errors,
                "musclelora-5": errors}
        numbers = draw.get(figure, sweep)(picture, figure, out, *groups)
        with atomic_write(out) as draft:
            picture.savefig(draft, format=kind[1:], dpi=200, metadata={"Date": None} if kind == ".svg" else None)
    report.write_json(beside, {"figure": figure, "args": job.args_of(*groups) | {"out": str(out)},
                               "versions": report.versions() | {"matplotlib": matplotlib.__version__}, **numbers})
    print(f"written: {out}, {beside}")


# ---- the figures: each draws on `picture` and returns its numbers

def variance(picture, figure: str, out: Path, task: Victim, attack: Attack) -> dict:
    """Figure PURE 2: three heat maps, layers as rows and heads as columns."""
    from minibd import job
    from minibd.analysis.heads import variance_maps
    from minibd.records import BadInput

    ckpt, splits, _ = job.open_task("plot", replace(task, out=str(out.parent)), new_classifier=True)
    evaluator = job.evaluator_of(attack, task, ckpt, splits.test)
    if evaluator.triggered is None:
        raise BadInput(f"pure-2 compares clean rows with triggered ones, and the attack on {task.ckpt} is not known: name it with --attack, "
                       "or give triggered rows with --triggered")
    name = job.entry_in(ckpt, attack, task)["attack"] if attack.attack == "known" and not attack.triggered else attack.triggered or attack.attack
    maps = variance_maps(ckpt, splits.test, evaluator.triggered, evaluator.target, texts=task.texts, seed=task.seed)

    gone = ckpt.model.head_mask.cpu() == 0
    top, far = 1000 * max(maps.clean.max(), maps.triggered.max()).item(), 1000 * maps.difference.abs().max().item()
    (layers, heads), side = gone.shape, min(0.42, 4 / max(gone.shape))  # side: inches of a cell
    picture.set_size_inches(3 * max(1.7, side * heads) + 2.9, max(1.7, side * layers) + 1.5)
    axes = picture.subplots(1, 3)
    for ax, values, title in zip(axes, maps, ("clean", "triggered", "triggered \u2212 clean")):
        low, colours = (-far, "RdBu_r") if ax is axes[2] else (0, "viridis")
        image = heat(ax, 1000 * values, gone, low, far if ax is axes[2] else top, colours, decimals=1 if top >= 10 else 2)
        ax.set(title=title, xlabel="head")
        numbered(ax.set_xticks, heads)
        if ax is not axes[0]:
            what, where = ("difference", ax) if ax is axes[2] else ("mean variance", list(axes[:2]))
            picture.colorbar(image, ax=where, label=f"{what} (10\u207b\u00b3)", pad=0.02, aspect=18)
    axes[0].set_ylabel("layer")
    picture.suptitle(f"Variance of the attention that {'the last token' if ckpt.model.causal else '[CLS]'} pays (PURE, Figure 2)\n"
                     f"{Path(task.ckpt).name}, {Path(name).name}; mean over {maps.n} texts, none of class "
                     f"{splits.test.labels[evaluator.target]}{'; x: pruned' * bool(gone.any())}")
    return {"n": maps.n, "target": evaluator.target, "head_mask": ckpt.model.head_mask.tolist(), "clean": maps.clean.tolist(),
            "triggered": maps.triggered.tolist(), "difference": maps.difference.tolist()}


def attention(picture, figure: str, out: Path, asked: Sentence) -> dict:
    """Figure PURE 3: a panel a sentence, heads as rows and tokens as columns."""
    from minibd import checkpoint, job, report
    from minibd.analysis.heads import cls_attention
    from minibd.records import BadInput

    if not asked.sentence:
        raise BadInput("pure-3 looks at a sentence: give one with --sentence TEXT")
    report.output_folder(out.parent, asked.ckpt)
    ckpt = checkpoint.load(asked.ckpt, device=job.device_of(asked.device))
    layers, heads = ckpt.model.head_mask.shape
    layer = layers if asked.layer is None else asked.layer
    if not 1 <= layer <= layers:
        raise BadInput(f"--layer {layer}: {asked.ckpt} has the layers 1 to {layers}")
    found = [(tokens, attn[layer - 1]) for tokens, attn in (cls_attention(ckpt, text) for text in asked.sentence)]

    gone = ckpt.model.head_mask[layer - 1].cpu() == 0  # (H,)
    longest, top = max(len(tokens) for tokens, _ in found), max(attn.max().item() for _, attn in found)
    picture.set_size_inches(max(5.5, min(0.5 * longest, 30) + 1.6), len(found) * (min(0.3 * heads, 5) + 0.9) + 0.6)
    axes = picture.subplots(len(found), 1, squeeze=False)[:, 0]
    for ax, (tokens, attn) in zip(axes, found):
        image = heat(ax, attn, gone[:, None], 0, top, "viridis", decimals=2)
        ax.set(ylabel="head", xlim=(-0.5, longest - 0.5))  # a token is as wide in one panel as in another
        ax.set_xticks(range(len(tokens)), tokens, rotation=50, ha="right", rotation_mode="anchor")
    picture.colorbar(image, ax=list(axes), label="share of the attention", pad=0.02, aspect=14 * len(found))
    picture.suptitle(f"Attention that {'the last token' if ckpt.model.causal else '[CLS]'} pays to each token (PURE, Figure 3)\n"
                     f"{Path(asked.ckpt).name}, layer {layer} of {layers}{'; x: pruned' * bool(gone.any())}")
    return {"layer": layer, "head_mask": ckpt.model.head_mask[layer - 1].tolist(),
            "sentences": [{"text": text, "tokens": tokens, "attention": attn.tolist()} for text, (tokens, attn) in zip(asked.sentence, found)]}


def clouds(picture, figure: str, out: Path, asked: Shaken) -> dict:
    """Figure MBTSAD 3: a panel an augmenter, its vectors over the clean ones, grey; one t-SNE, so that a place is the same in every panel."""
    from minibd import data, job, report
    from minibd.analysis.perturbation import perturbations, tsne
    from minibd.mitigations.mbtsad import MBTSAD, resources_of
    from minibd.records import BadInput

    if asked.texts < 2:
        raise BadInput(f"--texts {asked.texts} makes no cloud: take at least 2")
    settings = MBTSAD(budget=asked.budget, mlm=asked.mlm, wordnet=asked.wordnet)
    report.output_folder(out.parent, asked.mlm)
    resources = resources_of(settings, job.device_of(asked.device))
    ckpt, splits, _ = job.open_task("plot", replace(asked, out=str(out.parent)))
    clean = data.sample(splits.train, asked.texts, asked.seed) if len(splits.train) > asked.texts else splits.train
    found = perturbations(ckpt, clean, settings, asked.seed, resources)
    placed = dict(zip(found, tsne([of.cls for of in found.values()], asked.seed)))

    names = [name for name in found if name != "clean"]
    most = max(names, key=lambda name: found[name].loss)
    picture.set_size_inches(2.7 * len(names), 3.7)
    for i, (ax, name) in enumerate(zip(picture.subplots(1, len(names), sharex=True, sharey=True), names)):
        for which, colour in (("clean", "0.7"), (name, f"C{i}")):
            ax.scatter(*placed[which].T.tolist(), s=5, color=colour, alpha=0.6, linewidths=0)
        loss, distance, _ = found[name]
        ax.set(title=f"{name}{' (most)' * (name == most)}\nloss {loss:.3f}, distance {distance:.3f}", xticks=[], yticks=[])
    picture.suptitle(f"[CLS] of clean rows (grey, loss {found['clean'].loss:.3f}) and of augmented ones, t-SNE (MBTSAD, Figure 3)\n"
                     f"{Path(asked.ckpt).name}, {len(clean)} rows; loss: the victim's mean cross-entropy; distance: of the vectors, 0 to 1")
    return {"n": len(clean), "most": most, "sets": {name: {"loss": of.loss, "distance": of.distance, "places": placed[name].tolist()}
                                                    for name, of in found.items()}}


def sweep(picture, figure: str, out: Path, asked: Sweep) -> dict:
    """Figures PURE 4 and 5, MuScleLoRA 4 and 7 to 10: both scores over a setting; means over seeds, with bars from the lowest to the highest."""
    from minibd.records import BadInput
    from minibd.result_store import ResultStore

    x, called, models = SWEEPS[figure]
    titles = ({"acc": "accuracy on clean rows", "lfr": "label flip rate"} if figure.startswith("pure") else
              {"cacc": "accuracy on clean rows", "asr": "attack success rate"})
    if not Path(asked.results).is_file():
        raise BadInput(f"--results {asked.results or '(not given)'} is no file of cells: name a .jsonl such as scripts/tables.py writes")
    if out.with_suffix(".json").resolve() == Path(asked.results).resolve():
        raise BadInput(f"--out {out} would write its numbers over {asked.results}: give another name")
    lines = lines_of(ResultStore(asked.results).rows, x, models, tuple(titles))
    if not lines:
        raise BadInput(f"{asked.results} holds no two runs that differ in {x} alone and had their ASR measured: run "
                       f"scripts/tables.py {figure} first")

    attacks = list(dict.fromkeys(line["attack"] for line in lines))
    ticks, seeds = (sorted({value for line in lines for value in line[name]}) for name in (x, "seeds"))
    uneven = x == "bands" or ticks[0] > 0 and ticks[-1] > 20 * ticks[0]  # a place each: names, and numbers that crowd together on a line
    at = {tick: i if uneven else tick for i, tick in enumerate(ticks)}
    picture.set_size_inches(8.4, 3.9 + 0.2 * ((len(lines) + 1) // 2))
    for ax, (kind, title) in zip(picture.subplots(1, 2), titles.items()):
        for i, line in enumerate(lines):
            of, nth = attacks.index(line["attack"]) % 10, sum(other["attack"] == line["attack"] for other in lines[:i])
            mean, low, high = line[kind].values()
            places = [at[value] for value in line[x]]
            ax.errorbar(places, mean, yerr=[[m - l for m, l in zip(mean, low)], [h - m for m, h in zip(mean, high)]], color=f"C{of}",
                        marker="osD^vPX<>*"[of], linestyle=("-", "--", ":", "-.")[nth % 4], markersize=5, elinewidth=1, capsize=2.5,
                        label=line["label"] if kind in ("acc", "cacc") else None)
        if x == "bands":
            ax.set_xticks(list(at.values()), [",".join(f"{s:g}" for s in tick) for tick in ticks], rotation=30, ha="right")
        elif uneven or len(ticks) <= 8:
            ax.set_xticks(list(at.values()), [f"{tick:g}" for tick in ticks])
        ax.set(title=title, xlabel=f"{called} (--{x})", ylabel=f"{kind.upper()} (%)")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylim(-3, 103)  # LFR, ASR
    measured = " and ".join(sorted({line["model"] for line in lines}))
    spread = "one run a point" if seeds == [1] else f"mean of {' or '.join(map(str, seeds))} seeds a point, bars from the lowest to the highest"
    picture.suptitle(f"{measured} over the {called} ({named(figure)})\n{spread}")
    picture.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3)
    return {"setting": x, "lines": lines}


def ratios(picture, figure: str, out: Path, asked: Ratios) -> dict:
    """Figure MuScleLoRA 1: LFR and HFR over the steps, a line a set of rows; HFR on a log axis, off whose bottom a 0 falls."""
    from matplotlib.ticker import LogFormatter

    from minibd.records import BadInput

    (run,) = runs_of(asked.curves, figure, out)
    if asked.sigma not in run["sigmas"]:
        raise BadInput(f"--sigma {asked.sigma:g}: {asked.curves[0]} has {', '.join(f'{sigma:g}' for sigma in run['sigmas'])}")
    at = run["sigmas"].index(asked.sigma)
    sets = {name: {"n": of["n"], "lfr": of["lfr"][at], "hfr": of["hfr"][at]} for name, of in run["sets"].items()}
    picture.set_size_inches(8.4, 4.0)
    for ax, kind, title in zip(picture.subplots(1, 2), ("lfr", "hfr"), ("low-frequency ratio", "high-frequency ratio")):
        for i, (name, of) in enumerate(sets.items()):
            ax.plot(run["steps"], of[kind], color=f"C{i % 10}", linestyle=("-", "--", ":", "-.")[i % 4],
                    marker="o" if len(run["steps"]) == 1 else None, label=f"{name} ({of['n']} rows)" if kind == "lfr" else None)
        if kind == "hfr" and any(value for of in sets.values() for value in of[kind]):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(LogFormatter())  # its own ones are written in mathematics, which is not parsed here
            ax.yaxis.set_minor_formatter(LogFormatter())
        ax.set(title=title, xlabel="step", ylabel=kind.upper())
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    picture.suptitle(f"Frequencies of what the model says (MuScleLoRA, Figure 1)\n{run['name']}, \u03c3 = {asked.sigma:g}, {how(run)}")
    picture.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=3)
    return {"name": run["name"], "variant": run["variant"], "outputs": run["outputs"], "sigma": asked.sigma, "steps": run["steps"], "sets": sets}


def errors(picture, figure: str, out: Path, asked: Errors) -> dict:
    """Figures MuScleLoRA 2 and 5: heat maps of e_low and e_high, steps across and filter widths up; an error above 1 is as blue as 1.

    2: a column a set of rows. 5: a column a run, a line for each set's errors that are defined in any.
    """
    runs, kinds = runs_of(asked.curves, figure, out), ("e_low", "e_high")
    if figure == "musclelora-2":
        grid = [[(runs[0], name, kind) for name in runs[0]["sets"]] for kind in kinds]
    else:
        grid = [[(run, name, kind) for run in runs] for name in runs[0]["sets"] for kind in kinds
                if any(value is not None for run in runs for line in run["sets"][name][kind] for value in line)]
    picture.set_size_inches(2.7 * len(grid[0]) + 1.6, 1.7 * len(grid) + 1.2)
    axes = picture.subplots(len(grid), len(grid[0]), squeeze=False)
    for i, j in ((i, j) for i, line in enumerate(grid) for j in range(len(line))):
        (run, name, kind), ax = grid[i][j], axes[i][j]
        values = [[float("nan") if value is None else value for value in line] for line in run["sets"][name][kind]]
        image = ax.imshow(values, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto", origin="lower", interpolation="nearest")
        ax.set_facecolor("0.88")
        if all(value != value for line in values for value in line):
            ax.text(0.5, 0.5, "not defined:\nthe labels have\nno high part", transform=ax.transAxes, ha="center", va="center", color="0.35")
        for ticks, of, most in ((ax.set_xticks, run["steps"], 5), (ax.set_yticks, run["sigmas"], 4)):
            shown = range(0, len(of), max(1, -(-(len(of) - 1) // most)))
            ticks(shown, [f"{of[k]:g}" for k in shown])
        if not i:
            ax.set_title(f"{name} ({run['sets'][name]['n']} rows)" if figure == "musclelora-2" else run["name"])
        if not j:
            ax.set_ylabel(f"{kind}, \u03c3" if figure == "musclelora-2" else f"{name}\n{kind}, \u03c3")
        if i == len(grid) - 1:
            ax.set_xlabel("step")
    picture.colorbar(image, ax=axes, label="relative error", extend="max", pad=0.02, aspect=14 * len(grid))
    called = f"{runs[0]['name']}, " if figure == "musclelora-2" else ""
    picture.suptitle(f"Relative error of the low and the high frequencies (MuScleLoRA, Figure {figure[-1]})\n{called}{how(runs[0])}")
    return {"runs": [{**{key: run[key] for key in ("name", "variant", "outputs", "sigmas", "steps")},
                      "sets": {name: {key: of[key] for key in ("n", *kinds)} for name, of in run["sets"].items()}} for run in runs]}


# ---- what they share

def named(figure: str) -> str:
    """pure-4 -> PURE, Figure 4."""
    paper, number = figure.split("-")
    return f"{ {'pure': 'PURE', 'musclelora': 'MuScleLoRA'}[paper]}, Figure {number}"


def lines_of(cells: list[dict], x: str, models: tuple[str, ...], kinds: tuple[str, str]) -> list[dict]:
    """Runs that differ in x and seed alone are a line for each of `models` that they measured, by the names of their steps: {"attack",
    "model", "label", x: [...], "seeds": [...], "acc": {"mean": [...], "low", "high"}, "lfr"}, the last two as `kinds` calls them; label: the
    attack's name and what sets the line apart from its others. Left out: models whose ASR was not measured, and lines of one point.
    """
    import json
    import re
    from statistics import mean

    from minibd.mitigations.pure import FLOOR

    aside = (x, "prune_only", "norm_only", "ablations", "method", "seed", "ckpt", "out", "device")  # the line says it, or it makes none
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}  # {settings: {x: [(acc, lfr) of a seed]}}
    for cell in cells:
        result = cell.get("result", {})
        args = result.get("args", {})
        at = FLOOR if x == "floor" and x in args and args[x] is args.get("drop") is None else args.get(x)
        attack = cell["cell"].get("attack", "")
        if x == "rate" and (told := re.search(r" --rate[ =](\S+)", attack)):  # the attack's, before the run that the args are of
            at, attack = float(told[1]), attack.replace(told[0], "")
        if x == "bands" and at is not None:
            at = tuple(map(float, at))
        for step in result.get("steps", ()) if at is not None else ():
            if step["name"] in models and step["asr"] is not None:
                same = {name: value for name, value in {**args, **cell["cell"], "attack": attack}.items() if name not in aside}
                key = json.dumps({"model": step["name"], **same}, sort_keys=True)
                found.setdefault(key, {}).setdefault(at, []).append((step["cacc"], step["asr"]))
    kept = [(json.loads(key), points) for key, points in found.items() if len(points) > 1]
    lines = []
    for same, points in kept:
        name, at = name_of(same), sorted(points)
        siblings = [other for other, _ in kept if name_of(other) == name]
        apart = [str(value) if key in ("attack", "model") else key if value is True else f"{key} {value}" for key, value in same.items()
                 if value is not False and any(other.get(key) != value for other in siblings)]
        lines.append({"attack": same["attack"] or name, "model": same["model"], "label": ", ".join([name, *apart]), x: at,
                      "seeds": [len(points[a]) for a in at]})
        for i, kind in enumerate(kinds):
            values = [[run[i] for run in points[a]] for a in at]
            lines[-1][kind] = {"mean": list(map(mean, values)), "low": list(map(min, values)), "high": list(map(max, values))}
    return sorted(lines, key=lambda line: line["label"])


def runs_of(paths: tuple[str, ...], figure: str, out: Path) -> list[dict]:
    """The runs whose curves `paths` hold, as Spectrum.finish gave them, and each one's "name": its file's, its folder's too where two agree."""
    import json

    from minibd.records import BadInput

    if figure != "musclelora-5" and len(paths) > 1:
        raise BadInput(f"--curves {','.join(paths)}: {figure} shows one run, name one file; musclelora-5 shows several")
    runs = []
    for path in map(Path, paths or ("",)):
        if not path.is_file():
            raise BadInput(f"--curves {path if paths else '(not given)'} is no file of curves: name a .json that a run with Spectrum wrote")
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"--curves {path} is not JSON ({error}): name a .json that a run with Spectrum wrote") from None
        if not isinstance(run, dict) or run.get("analysis") != "fourier" or not {"variant", "outputs", "sigmas", "steps", "sets"} <= run.keys():
            raise BadInput(f"--curves {path} holds no curves of analysis/fourier.py: name a .json that a run with Spectrum wrote")
        if out.with_suffix(".json").resolve() == path.resolve():
            raise BadInput(f"--out {out} would write its numbers over {path}: give another name")
        alone = sum(Path(other).stem == path.stem for other in paths) == 1
        runs.append({**run, "name": path.stem if alone else f"{path.resolve().parent.name}/{path.stem}"})
        for name in runs[0]["sets"]:
            if name not in run["sets"]:
                raise BadInput(f"--curves {path} has no set {name!r}, which {paths[0]} has: draw runs that watched the same rows")
        if how(run) != how(runs[0]):
            raise BadInput(f"--curves {path} is of {how(run)}, {paths[0]} of {how(runs[0])}: draw runs of one kind")
    return runs


def how(run: dict) -> str:
    """What a run's curves were made of."""
    return f"{run['outputs']}, {run['variant']} filter"


def name_of(cell: dict) -> str:
    """The attack: "--attack lwp --encoder-only" -> "lwp"; where there is none, the victim was there and is named."""
    words = cell["attack"].replace("=", " ").split("--attack ")[1:]
    return words[0].split()[0] if words else cell["attack"] or cell.get("base", "")


def heat(ax, values, gone, low: float, high: float, colours: str, *, decimals: int):
    """A heat map of `values`, a line a layer or a head, with its numbers where they fit; a pruned head, `gone`, is a white x."""
    values = values.masked_fill(gone, float("nan")).tolist()
    image = ax.imshow(values, vmin=low, vmax=high or 1.0, cmap=colours, aspect="auto", interpolation="nearest")
    numbered(ax.set_yticks, len(values))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    fits = len(values) <= 16 and len(values[0]) <= 40
    for i, j, value in ((i, j, value) for i, row in enumerate(values) for j, value in enumerate(row) if fits):
        r, g, b, _ = image.cmap(image.norm(value)) if value == value else (1, 1, 1, 1)
        number = f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "\u2212") if value == value else "x"
        ax.text(j, i, number, ha="center", va="center", fontsize=7, color="black" if 0.3 * r + 0.59 * g + 0.11 * b > 0.5 else "white")
    return image


def numbered(ticks, n: int) -> None:
    """Layers and heads are counted from 1, as in the paper."""
    ticks(range(0, n, step := -(-n // 16)), range(1, n + 1, step))


if __name__ == "__main__":
    main(run)
