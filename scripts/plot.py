#!/usr/bin/env python3
"""Draw a paper's figure from a checkpoint or from result files; its numbers are written next to the image as .json.

    python scripts/plot.py pure-2 --ckpt weights/bert.safetensors --out pure-2.png
    python scripts/plot.py pure-3 --ckpt weights/bert.safetensors --sentence "a dull film" --sentence "a cf film"
    python scripts/plot.py pure-4 --results scripts/results/pure-4.jsonl --out pure-4.png
    python scripts/plot.py musclelora-5 --curves plain.json,lora.json,musclelora.json --out musclelora-5.png
    python scripts/plot.py mbtsad-3 --ckpt weights/bert.safetensors --mlm weights/bert-clean.safetensors --out x.svg

mbtsad-3          t-SNE of the [CLS] vectors of clean rows and of their augmented copies, one panel per augmenter, with
                  the victim's mean cross-entropy on each set
pure-2            [CLS] variance of each head on clean rows, on the same rows with the trigger, and the difference
pure-3            attention from [CLS] to each token of a sentence, per head
pure-4, pure-5    ACC and LFR over the accuracy threshold c and over the penalty weight mu, one line per attack
musclelora-1      low- and high-frequency ratio of the outputs over the training steps, one line per set of rows
musclelora-2      relative errors of the low and high frequencies over steps and filter widths, dark red: small
musclelora-5      the same for several methods side by side
musclelora-4, -7  CACC and ASR over the poison ratio (4), the clean auxiliary rows (7), the learning rate (8), mu (9)
  to -10          and the radial scalings (10)

`plot.py FIGURE --help` lists the flags of one figure. A figure is 6 inches wide, legible at a width of 420 pixels, on a
white background. Needs pip install -e '.[plots]'.
"""
from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from minibd.cli import Attack, Idle, Task, main, parse, setting
from minibd.job.idle import ATTACK, MEMORY

OUT = "file of the image, .png or .svg; its numbers are written next to it as .json (default out/FIGURE.png)"
CURVES = "file of curves, .json, as musclelora.py --curves writes it (analysis/fourier.py's Spectrum)"
WIDTH = 6.0  # inches of every figure: at 420 pixels a letter of 8 pt, the smallest here, is 7.8 pixels high
SMALLEST = 8  # pt
# A dollar in a text is a dollar; the same run writes the same .svg.
STYLE = {"text.parse_math": False, "svg.hashsalt": "minibd",
         "font.size": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "axes.titlesize": 10,
         "figure.titlesize": 10, "figure.facecolor": "white", "savefig.facecolor": "white"}


@dataclass(frozen=True, slots=True)
class Variance(Task):
    """The model whose heads are measured, and the test rows"""
    out: str | None = setting(None, OUT, kind=str)
    texts: int = setting(2000, "rows of classes other than the target, sampled by --seed if there are more",
                         paper="2000")


@dataclass(frozen=True, slots=True)
class Attention:
    """The model and the sentences"""
    ckpt: str = setting("", "a minibd .safetensors or a Hugging Face folder (required)")
    sentence: tuple[str, ...] = setting((), "a sentence; repeat the flag for one panel each, such as without and with "
                                        "a trigger", kind=list)
    layer: int | None = setting(None, "layer, from 1 (default the last)", paper="last", kind=int)
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The runs"""
    results: str = setting("", "file of results, .jsonl, as scripts/tables.py writes it")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class FrequencyRatio:
    """The run"""
    curves: tuple[str, ...] = setting((), CURVES, kind=tuple)
    sigma: float = setting(4.0, "width of the filter, one of the file's", paper="4.0")
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class RelativeError:
    """The runs"""
    curves: tuple[str, ...] = setting((), f"{CURVES}; for musclelora-5 several, separated by commas", kind=tuple)
    out: str | None = setting(None, OUT, kind=str)


@dataclass(frozen=True, slots=True)
class Perturbation(Task):
    """The victim and the clean rows that are augmented"""
    out: str | None = setting(None, OUT, kind=str)
    texts: int = setting(500, "training rows, sampled by --seed if there are more", paper="all")
    budget: str = setting("equal", "words changed per text: equal, as many as token splitting splits, or stock, each "
                          "augmenter's own number", paper="not said", choices=("stock", "equal"))
    mlm: str | None = setting(None, "for contextual substitution: a checkpoint with its masked-language-model head "
                              "(default: without this augmenter)", kind=str)
    wordnet: str | None = setting(None, "for EDA: folder of WordNet's files (default the built-in lexicon)",
                                  paper="WordNet", kind=str)


SWEEPS = {  # figure: (the flag that varies, its name in the paper, the steps of result.json whose scores are drawn)
    "pure-4": ("floor", "accuracy threshold c", ("Prune-only", "PURE")),
    "pure-5": ("mu", "penalty weight \u03bc", ("Norm-only", "PURE")),
    "musclelora-4": ("rate", "poison ratio", ("musclelora",)),
    "musclelora-7": ("aux", "clean auxiliary samples", ("musclelora",)),
    "musclelora-8": ("lr", "learning rate", ("musclelora",)),
    "musclelora-9": ("ratio", "largest \u03bc", ("musclelora",)),
    "musclelora-10": ("bands", "radial scalings", ("musclelora",)),
}
FIGURES = {"mbtsad-3": (Perturbation,), "pure-2": (Variance, Attack), "pure-3": (Attention,),
           **dict.fromkeys(SWEEPS, (Sweep,)), "musclelora-1": (FrequencyRatio,), "musclelora-2": (RelativeError,),
           "musclelora-5": (RelativeError,)}
UNTRAINED = Idle(("dtype", *MEMORY), lambda v: True,
                 "nothing is trained here, and models are read in float32: leave it out")
REPLACED = Idle(("overwrite",), lambda v: True, "a figure always takes the place of the one of its name: leave it out")
RULES = {"mbtsad-3": (UNTRAINED, REPLACED), "pure-2": (UNTRAINED, REPLACED, *ATTACK)}
PAPERS = {"mbtsad": "MBTSAD", "pure": "PURE", "musclelora": "MuScleLoRA"}
AUGMENTERS = {"split": "token splitting", "eda": "edited words", "aeda": "inserted punctuation",
              "addtrigger": "inserted rare word", "contextual": "masked-LM substitution"}


def run() -> None:
    # Each figure has its own flags: --sentence belongs to addsent in pure-2.
    requested = next((word for word in sys.argv[1:] if word in FIGURES), "")
    figure, *groups = parse(__doc__, *FIGURES.get(requested, ()), first=("figure", tuple(FIGURES)),
                            rules=RULES.get(requested, ()), others=FIGURES)

    from minibd import report
    from minibd.atomic import atomic_write
    from minibd.job.task import args_of
    from minibd.records import BadInput

    out = Path(groups[0].out or f"out/{figure}.png")
    kind, beside = out.suffix.lower(), out.with_suffix(".json")
    if kind not in (".png", ".svg"):
        raise BadInput(f"--out {out} ends in {kind or 'nothing'}: an image ends in .png or .svg")
    try:
        import matplotlib
        import matplotlib.style
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("plot.py needs matplotlib, which is not installed: pip install -e '.[plots]'") from None

    draw = {"mbtsad-3": draw_tsne, "pure-2": draw_variance, "pure-3": draw_attention, "musclelora-1": draw_ratios,
            "musclelora-2": draw_errors, "musclelora-5": draw_errors}.get(figure, draw_sweep)
    with matplotlib.style.context("default"), matplotlib.rc_context(STYLE):  # whatever a matplotlibrc says
        picture = Figure(layout="constrained")
        numbers = draw(picture, figure, out, *groups)
        with atomic_write(out) as draft:
            picture.savefig(draft, format=kind[1:], dpi=200, metadata={"Date": None} if kind == ".svg" else None)
    report.write_json(beside, {"figure": figure, "args": args_of(*groups) | {"out": str(out)},
                               "versions": report.versions() | {"matplotlib": matplotlib.__version__}, **numbers})
    print(f"written: {out}, {beside}")


# ---- the figures: each function draws on `picture` and returns its numbers

def draw_variance(picture, figure: str, out: Path, task: Variance, attack: Attack) -> dict:
    """Figure PURE 2: three heat maps, layers as rows and heads as columns."""
    from minibd.analysis.heads import variance_maps
    from minibd.job.evaluation import check_attack, entry_in, evaluator_of
    from minibd.job.task import open_task
    from minibd.records import BadInput

    ckpt, splits, _ = open_task("plot", replace(task, out=str(out.parent), overwrite=True), new_classifier=True,
                                hold_out=False,
                                check=lambda header, splits: check_attack(attack, task, header, splits.test))
    evaluator = evaluator_of(attack, task, ckpt, splits.test)
    if evaluator.triggered is None:
        raise BadInput(f"pure-2 compares clean rows with triggered ones, and the attack on {task.ckpt} is not known: "
                       "name it with --attack, or give triggered rows with --triggered")
    known = attack.attack == "known" and not attack.triggered
    name = entry_in(ckpt, attack, task)["attack"] if known else attack.triggered or attack.attack
    maps = variance_maps(ckpt, splits.test, evaluator.triggered, evaluator.target, texts=task.texts, seed=task.seed)

    pruned = ckpt.model.head_mask.cpu() == 0
    heat_maps(picture, maps, pruned)
    heading(picture, f"Variance of the attention from {query_of(ckpt)} ({paper_figure(figure)})",
            f"{Path(task.ckpt).name}, {Path(name).name}; mean over {maps.n} texts, none of class "
            f"{splits.test.labels[evaluator.target]}{'; x: pruned' if pruned.any() else ''}")
    return {"n": maps.n, "target": evaluator.target, "head_mask": ckpt.model.head_mask.tolist(),
            "clean": maps.clean.tolist(), "triggered": maps.triggered.tolist(), "difference": maps.difference.tolist()}


def heat_maps(picture, maps, pruned) -> None:
    """Clean, triggered and their difference: side by side up to 6 heads, beyond that one below the other."""
    largest = 1000 * max(maps.clean.max(), maps.triggered.max()).item()
    change = 1000 * maps.difference.abs().max().item()
    layers, heads = pruned.shape
    across = heads <= 6
    height = min(0.3, 6 / layers) * layers  # inches of one map
    picture.set_size_inches(WIDTH, 2.2 + max(0.9, height) if across else 1.1 + 3 * (0.6 + max(0.9, height)))
    axes = picture.subplots(*((1, 3) if across else (3, 1)))
    for ax, values, title in zip(axes, maps, ("clean", "triggered", "triggered \u2212 clean")):
        signed = ax is axes[2]
        image = heat(ax, 1000 * values, pruned, -change if signed else 0, change if signed else largest,
                     "RdBu_r" if signed else "viridis", decimals=1 if largest >= 10 else 2,
                     inches=(1.7 if across else 4.6) / heads)
        ax.set(title=title, xlabel="head", ylabel="layer" if ax is axes[0] or not across else None)
        number_ticks(ax.set_xticks, heads)
        if ax is not axes[0]:
            what, where = ("difference", ax) if signed else ("mean variance", list(axes[:2]))
            picture.colorbar(image, ax=where, label=f"{what} (10\u207b\u00b3)",
                             location="bottom" if across else "right", aspect=12 if signed else 24)


def draw_attention(picture, figure: str, out: Path, options: Attention) -> dict:
    """Figure PURE 3, turned by a quarter so that a long sentence fits: a panel per sentence, tokens as rows, heads as
    columns."""
    from minibd import checkpoint, report
    from minibd.analysis.heads import cls_attention
    from minibd.job.task import device_of
    from minibd.records import BadInput

    if not options.sentence:
        raise BadInput("pure-3 shows a sentence: give one with --sentence TEXT")
    report.output_folder(out.parent, options.ckpt)
    ckpt = checkpoint.load(options.ckpt, device=device_of(options.device))
    layers, heads = ckpt.model.head_mask.shape
    layer = layers if options.layer is None else options.layer
    if not 1 <= layer <= layers:
        raise BadInput(f"--layer {layer}: {options.ckpt} has the layers 1 to {layers}")
    maps = [(tokens, attn[layer - 1]) for tokens, attn in (cls_attention(ckpt, text) for text in options.sentence)]

    pruned = ckpt.model.head_mask[layer - 1].cpu() == 0  # (H,)
    token_maps(picture, maps, pruned)
    heading(picture, f"Attention from {query_of(ckpt)} to each token ({paper_figure(figure)})",
            f"{Path(options.ckpt).name}, layer {layer} of {layers}{'; x: pruned' if pruned.any() else ''}")
    return {"layer": layer, "head_mask": ckpt.model.head_mask[layer - 1].tolist(),
            "sentences": [{"text": text, "tokens": tokens, "attention": attn.tolist()}
                          for text, (tokens, attn) in zip(options.sentence, maps)]}


def token_maps(picture, maps, pruned) -> None:
    """maps: (tokens, (H, T)) of each sentence, side by side while a head's column is wide enough for its numbers."""
    longest = max(len(tokens) for tokens, _ in maps)
    largest = max(attn.max().item() for _, attn in maps)
    across = len(maps) if 3.6 / (len(maps) * len(pruned)) >= 0.32 else 1
    rows = 1 if across > 1 else len(maps)
    lengths = [longest] if across > 1 else [len(tokens) for tokens, _ in maps]
    picture.set_size_inches(WIDTH, 1.2 + 0.26 * sum(lengths) + 0.5 * rows)
    axes = picture.subplots(rows, across, squeeze=False, height_ratios=lengths).flatten()
    for ax, (tokens, attn) in zip(axes, maps):
        shown = longest if across > 1 else len(tokens)  # rows of one height in all panels
        image = heat(ax, attn.T, pruned[None].expand(len(tokens), -1), 0, largest, "viridis", decimals=2,
                     inches=(4.6 - 0.9 * across) / across / len(pruned))
        ax.set(xlabel="head", ylim=(shown - 0.5, -0.5))
        number_ticks(ax.set_xticks, len(pruned))
        ax.set_yticks(range(len(tokens)), tokens)
    picture.colorbar(image, ax=list(axes), label="share of the attention", aspect=max(14, 1.6 * sum(lengths)))


def draw_tsne(picture, figure: str, out: Path, options: Perturbation) -> dict:
    """Figure MBTSAD 3: a panel per augmenter, its [CLS] vectors over the clean ones; one t-SNE for all panels."""
    from minibd import data, report
    from minibd.analysis.perturbation import perturbations, tsne
    from minibd.job.task import device_of, open_task
    from minibd.mitigations.mbtsad import MBTSAD, resources_of
    from minibd.records import BadInput

    if options.texts < 2:
        raise BadInput(f"--texts {options.texts} makes no cloud: take at least 2")
    settings = MBTSAD(budget=options.budget, mlm=options.mlm, wordnet=options.wordnet)
    report.output_folder(out.parent, options.mlm)
    resources = resources_of(settings, device_of(options.device))
    ckpt, splits, _ = open_task("plot", replace(options, out=str(out.parent), overwrite=True), hold_out=False)
    more = len(splits.train) > options.texts
    clean = data.sample(splits.train, options.texts, options.seed) if more else splits.train
    sets = perturbations(ckpt, clean, settings, options.seed, resources)
    points = dict(zip(sets, tsne([cloud.cls for cloud in sets.values()], options.seed)))

    worst = scatter_panels(picture, sets, points)
    heading(picture, f"[CLS] vectors of clean and of augmented rows, t-SNE ({paper_figure(figure)})",
            f"{Path(options.ckpt).name}, {len(clean)} rows. Loss: the victim's mean cross-entropy (nats). "
            "Distance: energy distance from the clean vectors, 0 to 1.")
    return {"n": len(clean), "highest_loss": worst,
            "sets": {name: {"loss": cloud.loss, "distance": cloud.distance, "points": points[name].tolist()}
                     for name, cloud in sets.items()}}


def scatter_panels(picture, sets: dict, points: dict) -> str:
    """The panels, two in a row; returns the augmenter with the highest loss."""
    names = [name for name in sets if name != "clean"]
    worst = max(names, key=lambda name: sets[name].loss)
    rows = -(-len(names) // 2)
    picture.set_size_inches(WIDTH, 2.35 * rows + 1.1)
    axes = picture.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flatten()
    for ax in axes[len(names):]:
        ax.remove()
    for i, (ax, name) in enumerate(zip(axes, names)):
        ax.scatter(*points["clean"].T.tolist(), s=9, color="0.7", linewidths=0,
                   label=f"clean rows (loss {sets['clean'].loss:.3f})" if ax is axes[0] else None)
        ax.scatter(*points[name].T.tolist(), s=11, color="C0", alpha=0.75, linewidths=0, marker="D",
                   label="the same rows, augmented" if ax is axes[0] else None)
        loss, distance, _ = sets[name]
        highest = " (highest)" if name == worst else ""
        ax.set_title(f"{name}: {AUGMENTERS[name]}\nloss {loss:.3f}{highest}, distance {distance:.3f}", fontsize=9,
                     fontweight="bold" if highest else "normal")
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("t-SNE dimension 1" if i + 2 >= len(names) else None, fontsize=9)
        ax.set_ylabel("t-SNE dimension 2" if i % 2 == 0 else None, fontsize=9)
    picture.legend(loc="outside lower center", ncols=2, frameon=False, markerscale=2)
    return worst


def draw_sweep(picture, figure: str, out: Path, options: Sweep) -> dict:
    """Figures PURE 4 and 5, MuScleLoRA 4 and 7 to 10: both scores over a setting, with the range over seeds as bars."""
    from minibd.records import BadInput
    from minibd.result_store import ResultStore

    x, setting_name, models = SWEEPS[figure]
    accuracy, success = ("acc", "lfr") if figure.startswith("pure") else ("cacc", "asr")
    titles = {accuracy: "accuracy on clean rows",
              success: "label flip rate" if success == "lfr" else "attack success rate"}
    if not Path(options.results).is_file():
        raise BadInput(f"--results {options.results or '(not given)'} is no file of results: name a .jsonl such as "
                       "scripts/tables.py writes")
    if os.path.realpath(out.with_suffix(".json")) == os.path.realpath(options.results):
        raise BadInput(f"--out {out} would write its numbers over {options.results}: give another name")
    lines = lines_of(ResultStore(options.results).rows, x, models, tuple(titles))
    if not lines:
        raise BadInput(f"{options.results} holds no two runs that differ in {x} alone and had their ASR measured: run "
                       f"scripts/tables.py {figure} first")

    position, labels = tick_labels(sorted({value for line in lines for value in line[x]}))
    stacked = x == "bands" or sum(len(label) + 2 for label in labels) > 34
    picture.set_size_inches(WIDTH, (5.5 if stacked else 3.3) + 0.2 * len(lines))
    axes = picture.subplots(2, 1) if stacked else picture.subplots(1, 2)
    for ax, (score, title) in zip(axes, titles.items()):
        draw_lines(ax, lines, x, score, position)
        if labels:
            ax.set_xticks(list(position.values()), labels)
        ax.set(title=title, xlabel=f"{setting_name} (--{x})", ylabel=f"{score.upper()} (%)")
        tidy(ax)
    axes[1].set_ylim(-3, 103)  # LFR, ASR
    seeds = sorted({n for line in lines for n in line["seeds"]})
    spread = "one run per point" if seeds == [1] else (f"mean of {' or '.join(map(str, seeds))} seeds per point, bars: "
                                                       "lowest to highest")
    methods = " and ".join(sorted({PAPERS.get(line["model"], line["model"]) for line in lines}))
    heading(picture, f"{methods} over the {setting_name} ({paper_figure(figure)})", spread)
    legend(picture, axes[0])
    return {"setting": x, "lines": lines}


def tick_labels(ticks: list) -> tuple[dict, list[str]]:
    """The place of each value on the x axis, and their labels, none for many values on a linear axis.

    Lists of scalings, and numbers that would crowd together on a linear axis, are evenly spaced.
    """
    if isinstance(ticks[0], tuple):
        return {tick: i for i, tick in enumerate(ticks)}, [break_list(tick, 60 // len(ticks)) for tick in ticks]
    even = ticks[0] > 0 and ticks[-1] > 20 * ticks[0] \
        or min(b - a for a, b in zip(ticks, ticks[1:])) < 0.099 * (ticks[-1] - ticks[0])
    position = {tick: i if even else tick for i, tick in enumerate(ticks)}
    return position, [f"{tick:g}" for tick in ticks] if even or len(ticks) <= 6 else []


def draw_lines(ax, lines: list[dict], x: str, score: str, position: dict) -> None:
    """A line per attack, its marker and colour the attack's; a second line of the same attack is dashed."""
    attacks = list(dict.fromkeys(line["attack"] for line in lines))
    for i, line in enumerate(lines):
        attack, nth = attacks.index(line["attack"]) % 10, sum(line["attack"] == other["attack"] for other in lines[:i])
        mean, low, high = line[score].values()
        errors = [[m - least for m, least in zip(mean, low)], [most - m for m, most in zip(mean, high)]]
        ax.errorbar([position[value] for value in line[x]], mean, yerr=errors, color=f"C{attack}",
                    marker="osD^vPX<>*"[attack], linestyle=("-", "--", ":", "-.")[nth % 4], markersize=5, elinewidth=1,
                    capsize=2.5, label=line["label"])


def draw_ratios(picture, figure: str, out: Path, options: FrequencyRatio) -> dict:
    """Figure MuScleLoRA 1: both frequency ratios over the steps, a line per set of rows; the high one on a log axis,
    which omits a 0."""
    from minibd.records import BadInput

    (run,) = runs_of(options.curves, figure, out)
    if options.sigma not in run["sigmas"]:
        available = ", ".join(f"{sigma:g}" for sigma in run["sigmas"])
        raise BadInput(f"--sigma {options.sigma:g}: {options.curves[0]} has {available}")
    at = run["sigmas"].index(options.sigma)
    sets = {name: {"n": rows["n"], "low_ratio": rows["low_ratio"][at], "high_ratio": rows["high_ratio"][at]}
            for name, rows in run["sets"].items()}
    picture.set_size_inches(WIDTH, 3.8)
    axes = picture.subplots(1, 2)
    for ax, ratio, title in zip(axes, ("low_ratio", "high_ratio"), ("low-frequency ratio", "high-frequency ratio")):
        for i, (name, rows) in enumerate(sets.items()):
            ax.plot(run["steps"], rows[ratio], color=f"C{i % 10}", linestyle=("-", "--", ":", "-.")[i % 4],
                    linewidth=1.8, marker="o" if len(run["steps"]) == 1 else None, label=f"{name} ({rows['n']} rows)")
        ratio_axis(ax, [value for rows in sets.values() for value in rows[ratio] if value], log=ratio == "high_ratio")
        ax.set(title=title, xlabel="step", ylabel=ratio.replace("_", " "))
        ax.locator_params(axis="x", nbins=5, integer=True)
        tidy(ax)
    heading(picture, f"Low and high frequencies of the model's outputs ({paper_figure(figure)})",
            f"{run['name']}, filter width \u03c3 = {options.sigma:g}, {outputs_of(run)}")
    legend(picture, axes[0])
    return {"name": run["name"], "variant": run["variant"], "outputs": run["outputs"], "sigma": options.sigma,
            "steps": run["steps"], "sets": sets}


def ratio_axis(ax, values: list[float], log: bool) -> None:
    """Ticks in full numbers. The low ratio's axis spans at least 0.9 to 1: smaller changes show in the high one, on its
    log axis."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):  # which of the minor ticks have a label is LogFormatter's choice
        def __call__(self, value, pos=None):
            return f"{value:g}" if super().__call__(value, pos) else ""

    if not log:
        ax.ticklabel_format(axis="y", useOffset=False, style="plain")
        low, high = min([0.9, *values]), max([1.0, *values])
        ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    elif values:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(Plain())
        ax.yaxis.set_minor_formatter(Plain())


def draw_errors(picture, figure: str, out: Path, options: RelativeError) -> dict:
    """Figures MuScleLoRA 2 and 5: heat maps of e_low and e_high, steps across, filter widths up; all above 1 is pale.

    2: a column per set of rows. 5: a column per run, a row for each set's errors that any run defines.
    """
    runs, errors = runs_of(options.curves, figure, out), ("e_low", "e_high")
    single = figure == "musclelora-2"
    if single:
        grid = [[(runs[0], name, error) for name in runs[0]["sets"]] for error in errors]
        titles = [f"{name}\n({rows['n']} rows)" for name, rows in runs[0]["sets"].items()]
        labels = [f"{error}\nfilter width \u03c3" for error in errors]
    else:
        defined = [(name, error) for name in runs[0]["sets"] for error in errors
                   if any(value is not None for run in runs for line in run["sets"][name][error] for value in line)]
        grid = [[(run, name, error) for run in runs] for name, error in defined]
        titles = [break_name(run["name"], 40 // len(runs)) for run in runs]
        labels = [f"{name}\n{error}, \u03c3" for name, error in defined]
    error_maps(picture, grid, titles, labels)
    heading(picture, f"Relative error of low and high frequencies ({paper_figure(figure)})",
            (f"{runs[0]['name']}, " if single else "") + outputs_of(runs[0]))
    return {"runs": [{**{key: run[key] for key in ("name", "variant", "outputs", "sigmas", "steps")},
                      "sets": {name: {key: rows[key] for key in ("n", *errors)} for name, rows in run["sets"].items()}}
                     for run in runs]}


def error_maps(picture, grid: list[list[tuple]], titles: list[str], labels: list[str]) -> None:
    """grid: (run, set, error) of each panel; a title per column, a label per row."""
    picture.set_size_inches(WIDTH, 1.45 * len(grid) + 1.2)
    axes = picture.subplots(len(grid), len(grid[0]), squeeze=False)
    for i, line in enumerate(grid):
        for j, (run, name, error) in enumerate(line):
            image = error_map(axes[i][j], run, name, error, ticks=max(1, 6 // len(line)))
            axes[i][j].tick_params(labelbottom=i == len(grid) - 1,
                                   labelleft=j == 0 or run["sigmas"] != line[0][0]["sigmas"])
        axes[i][0].set_ylabel(labels[i], fontsize=9)
    for top, bottom, title in zip(axes[0], axes[-1], titles):
        top.set_title(title, fontsize=9)
        bottom.set_xlabel("step", fontsize=9)
    picture.colorbar(image, ax=axes, label="relative error", extend="max", pad=0.02, aspect=12 * len(grid))


def error_map(ax, run: dict, name: str, error: str, ticks: int):
    """One set's errors over steps and filter widths; grey where they are not defined."""
    values = [[float("nan") if value is None else value for value in line] for line in run["sets"][name][error]]
    # Dark red for a small error, as in the paper; its lightness rises evenly, so that it can be read in grey.
    image = ax.imshow(values, vmin=0, vmax=1, cmap="YlOrRd_r", aspect="auto", origin="lower", interpolation="nearest")
    ax.set_facecolor("0.88")
    if all(value != value for line in values for value in line):
        ax.text(0.5, 0.5, "not defined:\none label,\nno high part", transform=ax.transAxes, ha="center", va="center",
                fontsize=SMALLEST, color="0.2")
    for set_ticks, labels, most in ((ax.set_xticks, run["steps"], ticks), (ax.set_yticks, run["sigmas"], 3)):
        shown = range(0, len(labels), max(1, -(-(len(labels) - 1) // most)))
        set_ticks(shown, [f"{labels[k]:g}" for k in shown])
    return image


# ---- reading the results

def lines_of(cells: list[dict], x: str, models: tuple[str, ...], scores: tuple[str, str]) -> list[dict]:
    """Groups runs that differ only in `x` and the seed into lines, one for each of `models`, the names of their steps.

    A line is {"attack", "model", "label", x: [...], "seeds": [...], "acc": {"mean": [...], "low", "high"}, "lfr"}, with
    the names `scores` for the last two. label: the attack's name and what distinguishes the line from its other lines.
    Steps without a measured ASR and lines of a single point are left out.
    """
    import json
    from statistics import mean

    kept = [(json.loads(key), points) for key, points in points_of(cells, x, models).items() if len(points) > 1]
    lines = []
    for same, points in kept:
        name, at = attack_name(same), sorted(points)
        siblings = [other for other, _ in kept if attack_name(other) == name]
        line = {"attack": same["attack"] or name, "model": same["model"], "label": label_of(same, siblings), x: at,
                "seeds": [len(points[a]) for a in at]}
        for i, score in enumerate(scores):
            values = [[run[i] for run in points[a]] for a in at]
            line[score] = {"mean": list(map(mean, values)), "low": list(map(min, values)),
                           "high": list(map(max, values))}
        lines.append(line)
    return sorted(lines, key=lambda line: line["label"])


def points_of(cells: list[dict], x: str, models: tuple[str, ...]) -> dict[str, dict]:
    """{the settings that a line shares, as JSON: {value of x: [(accuracy, success rate) of each seed]}}. Of several
    runs that differ in nothing the last counts."""
    import json
    import re

    from minibd.mitigations.pure import FLOOR
    from minibd.result_store import digests

    # Settings that the line states itself, or that make no line of their own.
    aside = (x, "prune_only", "norm_only", "ablations", "method", "seed", "ckpt", "out", "device", "sha256",
             "target_class")
    found: dict[str, dict] = {}
    for cell in cells:
        result = cell.get("result", {})
        args = result.get("args", {})
        at = FLOOR if x == "floor" and x in args and args[x] is args.get("drop") is None else args.get(x)
        attack = cell["cell"].get("attack", "")
        # The poison rate is the attack's, which ran before the run that the args are of.
        if x == "rate" and (rate := re.search(r" --rate[ =](\S+)", attack)):
            at, attack = float(rate[1]), attack.replace(rate[0], "")
        if x == "bands" and at is not None:
            at = tuple(map(float, at))
        for step in result.get("steps", ()) if at is not None else ():
            if step["name"] in models and step["asr"] is not None:
                settings = {**args, **cell["cell"], "attack": attack}
                same = {name: value for name, value in settings.items() if name not in aside}
                # a folder of the same name may hold other weights or rows, which make another line
                same |= {f"{place}'s": held[:10] for place, held in digests(cell).items()}
                key = json.dumps({"model": step["name"], **same}, sort_keys=True)
                seed = settings.get("seed")
                found.setdefault(key, {}).setdefault(at, {})[seed] = (step["cacc"], step["asr"])
    return {key: {at: list(runs.values()) for at, runs in points.items()} for key, points in found.items()}


def label_of(same: dict, siblings: list[dict]) -> str:
    """The attack's name and the settings in which its lines differ."""
    words = [attack_name(same)]
    for key, value in same.items():
        if value is not False and any(other.get(key) != value for other in siblings):
            words.append(str(value) if key in ("attack", "model") else key if value is True else f"{key} {value}")
    return ", ".join(words)


def attack_name(cell: dict) -> str:
    """"--attack lwp --encoder-only" -> "lwp"; without an attack, the name of the given victim."""
    words = cell["attack"].replace("=", " ").split("--attack ")[1:]
    return words[0].split()[0] if words else cell["attack"] or cell.get("base", "")


def runs_of(paths: tuple[str, ...], figure: str, out: Path) -> list[dict]:
    """The runs in the files `paths`, as Spectrum.finish gives them, each with a "name": its file's, or its folder's and
    its file's if two files agree."""
    from minibd.records import BadInput

    if figure != "musclelora-5" and len(paths) > 1:
        raise BadInput(f"--curves {','.join(paths)}: {figure} shows one run, name one file; musclelora-5 shows several")
    if not paths:
        raise BadInput("--curves (not given) is no file of curves: name a .json that a run with Spectrum wrote")
    runs = []
    for path in map(Path, paths):
        run = read_curves(path)
        if os.path.realpath(out.with_suffix(".json")) == os.path.realpath(path):
            raise BadInput(f"--out {out} would write its numbers over {path}: give another name")
        alone = sum(Path(other).stem == path.stem for other in paths) == 1
        runs.append({**run, "name": path.stem if alone else f"{Path(os.path.realpath(path)).parent.name}/{path.stem}"})
        for name in runs[0]["sets"]:
            if name not in run["sets"]:
                raise BadInput(f"--curves {path} has no set {name!r}, which {paths[0]} has: draw runs of the same sets")
        if outputs_of(run) != outputs_of(runs[0]):
            raise BadInput(f"--curves {path} is of {outputs_of(run)}, {paths[0]} of {outputs_of(runs[0])}: draw runs "
                           "of one kind")
    return runs


def read_curves(path: Path) -> dict:
    import json

    from minibd.records import BadInput

    if not path.is_file():
        raise BadInput(f"--curves {path} is no file of curves: name a .json that a run with Spectrum wrote")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"--curves {path} is not JSON ({error}): name a .json that a run with Spectrum wrote") from None
    keys = {"variant", "outputs", "sigmas", "steps", "sets"}
    if not isinstance(run, dict) or run.get("analysis") != "fourier" or not keys <= run.keys():
        raise BadInput(f"--curves {path} holds no curves of analysis/fourier.py: name a .json that a run with Spectrum "
                       "wrote")
    # before 0.3.0 the ratios had the paper's names, of which LFR is the label flip rate's, too
    names = {"lfr": "low_ratio", "hfr": "high_ratio"}
    run["sets"] = {name: {names.get(key, key): value for key, value in rows.items()}
                   for name, rows in run["sets"].items()}
    return run


def outputs_of(run: dict) -> str:
    """The outputs and the filter that a run's curves are made of."""
    return f"{run['outputs']}, {run['variant']} filter"


# ---- drawing

def paper_figure(figure: str) -> str:
    """pure-4 -> PURE, Figure 4."""
    paper, number = figure.split("-")
    return f"{PAPERS[paper]}, Figure {number}"


def query_of(ckpt) -> str:
    """The token whose attention is shown: [CLS], or the last token of a causal model."""
    return "the last token" if ckpt.model.causal else "[CLS]"


def heading(picture, *lines: str) -> None:
    """The figure's title, wrapped to its width."""
    from textwrap import fill
    picture.suptitle("\n".join(fill(line, 70) for line in lines))


def legend(picture, ax) -> None:
    """One legend below all panels, in two columns where the labels are short enough."""
    from textwrap import fill
    handles, labels = ax.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = 1 if longest > 30 else 2 if longest > 16 or len(labels) == 4 else 3
    picture.legend(handles, [fill(label, 66) for label in labels], loc="outside lower center", ncols=columns,
                   frameon=False, handlelength=3)


def tidy(ax) -> None:
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def heat(ax, values, pruned, low: float, high: float, colours: str, *, decimals: int, inches: float):
    """A heat map of `values`, with its numbers if they fit cells `inches` wide; a pruned head is a white x."""
    values = values.masked_fill(pruned, float("nan")).tolist()
    image = ax.imshow(values, vmin=low, vmax=high or 1.0, cmap=colours, aspect="auto", interpolation="nearest")
    number_ticks(ax.set_yticks, len(values))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    numbers = [["x" if value != value else f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "\u2212")
                for value in line] for line in values]
    fits = max(len(number) for line in numbers for number in line) * 0.6 * SMALLEST / 72 < inches
    for i, line in enumerate(numbers):
        for j, number in enumerate(line):
            if fits or number == "x":
                r, g, b, _ = image.cmap(image.norm(values[i][j])) if number != "x" else (1, 1, 1, 1)
                light = 0.3 * r + 0.59 * g + 0.11 * b > 0.5
                ax.text(j, i, number, ha="center", va="center", fontsize=SMALLEST, color="black" if light else "white")
    return image


def number_ticks(set_ticks, n: int) -> None:
    """Layers and heads are numbered from 1, as in the paper."""
    set_ticks(range(0, n, step := -(-n // 16)), range(1, n + 1, step))


def break_list(values: tuple[float, ...], width: int) -> str:
    """1,4,8,12,16 in lines of at most `width` characters, broken after a comma."""
    lines = [""]
    for word in ",".join(f"{value:g}" for value in values).replace(",", ", ").split():
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def break_name(name: str, width: int) -> str:
    from textwrap import fill
    return fill(name, max(8, width))


if __name__ == "__main__":
    main(run)
