"""How the tables of scripts/results/*.md are laid out: VIEWS, by the name of the table and that of its part.

A part stands in its page between `<!-- table: NAME: PART -->` (NAME alone where there is one) and `<!-- /table -->`;
`scripts/tables.py NAME --write` fills it. Papers' figures are those of minibd/tables/rows.py, and some that stand here.
"""
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from minibd.tables import devices, filtered, scans, step_two, undoing
from minibd.tables.pivot import (
    Computed,
    Entry,
    Found,
    Mean,
    Over,
    Pick,
    View,
    asr,
    both,
    both_spread,
    cacc,
    poisoned,
    rho_of,
    rho_then_both,
    seconds,
    seconds_in_all,
    strong,
    there,
    worded,
)
from minibd.tables.rows import (
    CHOICES,
    ENCODERS,
    MUSCLELORA,
    REPAIRED,
    RHOS,
    TABLE_II,
    TABLES,
    UNTRUSTED,
    Row,
    choice_row,
)


def row_of(table: str, name: str, script: str = "") -> Row:
    """The one row of that name whose method begins with `script`."""
    [row] = (row for row in TABLES[table] if row.name == name and row.method.startswith(script))
    return row


def pick(table: str, name: str, model: str, show: Callable = both, seed: int | None = None, script: str = "") -> Pick:
    """`model` in the cells of a row of TABLES."""
    row = row_of(table, name, script)
    where = {"attack": row.attack or None, "method": row.method or None, "after": row.after or None}
    return Pick(table, where, model, show, seed)


def paper(table: str, name: str, model: str, script: str = "") -> str:
    return row_of(table, name, script).paper.get(model, "")


# ---- MBTSAD

MBTSAD_MODELS = ("victim", "CFT", "TS-FT", "MBTSAD")
BUILTIN = {"clean": 2000, "attention_dropout": 0.5, "dtype": None}  # cells that name no type are of float32


def mbtsad() -> dict[str, View]:
    def other(label: str, name: str) -> tuple[Entry, ...]:
        return (label, *(pick("mbtsad", name, model) for model in ("victim", "TS-FT", "MBTSAD")))

    def in_each_type(seed: int) -> tuple[Entry, ...]:
        return (f"SST-2, seed {seed}", pick("mbtsad", "repaired in float32", "victim", seed=seed),
                *(pick("mbtsad", f"{done} in {dtype}", model, seed=seed)
                  for done, model in (("fine-tuned", "CFT"), ("repaired", "TS-FT"), ("repaired", "MBTSAD"))
                  for dtype in ("bfloat16", "float32")))

    def of_builtin(seed: int) -> tuple[Entry, ...]:
        types = (BUILTIN | {"dtype": "bfloat16"}, BUILTIN)
        return (f"built-in, seed {seed}", Pick("builtin", BUILTIN, "victim", seed=seed),
                *(Pick("builtin", where, model, seed=seed) for model in MBTSAD_MODELS[1:] for where in types))

    return {
        "": View(("model", "CACC", "ASR", "paper, BERT-base: CACC / ASR", "seconds"), tuple(
            (model, pick("mbtsad", "default", model, cacc), pick("mbtsad", "default", model, asr),
             paper("mbtsad", "default", model), pick("mbtsad", "default", model, seconds))
            for model in MBTSAD_MODELS) + (
            ("clean twin of seed 0's victim", *(pick("attacks", "badnets", "clean twin", show) for show in (cacc, asr)),
             "", ""),)),
        "other settings": View(("CACC / ASR", "victim", "TS-FT", "MBTSAD"), (
            other("default", "default"),
            other("attention dropout 0.9, lr2 1e-4", "attention dropout 0.9"),
            other("attention dropout 0.1, lr2 1e-4", "attention dropout 0.1"),
            other("lr2 5e-4", "lr2 5e-4"))),
        "type": View(("CACC / ASR", "victim", *(
            header for model in MBTSAD_MODELS[1:] for header in (f"{model} in bfloat16", "in float32"))), (
            *map(in_each_type, range(3)), *map(of_builtin, range(3)))),
    }


def builtin() -> dict[str, View]:
    return {"": View(("model", "CACC", "ASR"), tuple(
        (model, Pick("builtin", BUILTIN, model, cacc), Pick("builtin", BUILTIN, model, asr))
        for model in MBTSAD_MODELS))}


AUGMENTERS = ("split", "eda", "aeda", "contextual", "addtrigger")
BUDGETS = (("", "own budgets"), (", equal budget", "equal budgets"))


def augmenters(table: str, before: str, label: str) -> tuple[tuple[Entry, ...], ...]:
    """What is left after retraining with each augmenter: at their own budgets, at that of token splitting."""
    def entry(name: str, suffix: str) -> Entry:
        return "the same" if suffix and name == "split" else pick(table, f"{before}{name}{suffix}", "TS-FT")

    return tuple((f"{label}{held}", "" if suffix else pick(table, f"{before}split", "victim"),
                  *(entry(name, suffix) for name in AUGMENTERS)) for suffix, held in BUDGETS)


def mbtsad_3() -> View:
    rows = []
    for attack in ("badnets", "lwp", "ep"):
        rows += augmenters("mbtsad-3", f"{attack}, ", f"{attack}, ")
        rows.append(("*paper, BERT-base*", paper("mbtsad-3", f"{attack}, split", "victim"),
                     *(paper("mbtsad-3", f"{attack}, {name}", "TS-FT") for name in AUGMENTERS)))
    return View(("CACC / ASR", "victim", *AUGMENTERS), tuple(rows))


# ---- what choose.py tried: dev accuracy / ASR of a planted backdoor

def choose() -> dict[str, View]:
    teacher = {"teachers": True, "method": None}
    student = {"teachers": None, "method": None, "lr1": 2e-4, "attention_dropout": 0.5, "gamma": 1.0}
    steps = (("1 epoch", 1, None), ("2 epochs", 2, None), ("2 epochs, attention dropout 0.5 in step 2 too", 2, 0.5))
    rates = {"2e-5": 2e-5, "1e-4": 1e-4, "2e-4": 2e-4, "4e-4": 4e-4}
    dropouts = (0.1, 0.5, 0.8, 0.9)

    def of_teacher(lr1: float, dropout: float) -> Pick:
        show = strong(both) if (lr1, dropout) == (2e-4, 0.5) else both
        return Pick("choose", {**teacher, "lr1": lr1, "attention_dropout": dropout}, "TS-FT", show)

    def of_student(lr2: float, epochs: int, dropout: float | None) -> Entry:
        if (lr2, dropout) == (1e-4, 0.5):
            return ""  # not tried
        show = strong(both) if (lr2, epochs, dropout) == (2e-4, 2, None) else both
        return Pick("choose", {**student, "lr2": lr2, "epochs2": epochs, "attention_dropout2": dropout}, "MBTSAD", show)

    def with_rho(found: Sequence[Found]) -> str:
        return f"{both(found)}, rho {rho_of(found[0]):g}"

    def at_rates(label: str, method: str, show: Callable = both) -> tuple[Entry, ...]:
        return (label, *("" if method == "reinit" and name == "4e-4" else  # not tried
                         Pick("choose", {"method": method, "lr": lr}, method, show) for name, lr in rates.items()))

    any_teacher = {**teacher, "lr1": 2e-4, "attention_dropout": 0.5}  # every cell of one victim starts from the same
    return {
        "planted": View(("model", "dev accuracy / planted ASR"), (
            ("victims, before the planting", Pick("choose", any_teacher, "victim", both_spread)),
            ("planted victims", Pick("choose", any_teacher, "planted", both_spread)))),
        "teachers": View(("teacher: dev accuracy / planted ASR, attention dropout", *map(str, dropouts)), tuple(
            (f"lr1 {name}", *(of_teacher(rates[name], dropout) for dropout in dropouts)) for name in ("1e-4", "2e-4"))),
        "students": View(("student of the best teacher", *(label for label, _, _ in steps)), tuple(
            (f"lr2 {name}", *(of_student(rates[name], epochs, dropout) for _, epochs, dropout in steps))
            for name in ("1e-4", "2e-4")) + (
            ("lr2 2e-4, gamma 0.2, seed 0", "", "", Pick("choose", {
                **student, "lr2": 2e-4, "epochs2": 2, "attention_dropout2": 0.5, "gamma": 0.2}, "MBTSAD")),)),
        "rates": View(("dev accuracy / planted ASR", *rates), (
            *((label, Pick("choose", {"method": "cft", "lr": 2e-5}, model), *("the same",) * 3) for label, model in (
                ("victim, before the planting", "victim"), ("planted victim", "planted"))),
            at_rates("Fine-mixing without E-PUR", "finemix", with_rho), at_rates("CFT", "cft"),
            at_rates("Reinitialisation", "reinit"))),
    }


# ---- attacks

# ASR of the badnets row's clean twin on the rows of other attacks, measured by `evaluate.py --clean-ckpt`: no cells.
FLOORS = {name: f"{asr} †" for name, asr in {
    "addsent": 13.3, "lwp": 11.0, "hiddenkiller": 29.3, "stylebkd": 24.9, "ripple": 12.3}.items()}
THERE = "there"  # on the attacker's own rows, where they are not the user's


def attacks() -> View:
    def row(label: str, name: str, floor: Entry, after: Entry = "", show: Callable = cacc, its_asr: Callable = asr,
            seed: int | None = None, of: str = "") -> tuple[Entry, ...]:
        first, last = of or paper("attacks", name, "victim"), paper("attacks", name, "fine-tuned")
        return (label, pick("attacks", name, "victim", poisoned, seed), pick("attacks", name, "victim", show, seed),
                pick("attacks", name, "victim", its_asr, seed), floor, after, f"FT {last}" if last else first)

    def tuned(name: str, seed: int | None = None) -> Pick:
        return pick("attacks", name, "fine-tuned", both_spread, seed)

    def encoder(label: str, name: str, floor: Entry, seed: int | None = None) -> tuple[Entry, ...]:
        """A poisoned encoder that its user fine-tunes; of one from other rows the first scores are on those."""
        shifted = name.endswith("domain shift, encoder")
        shows = (worded(cacc, THERE), worded(asr, THERE)) if shifted else (cacc, asr)
        made = row(label, name, floor, tuned(name, seed), *shows, seed=seed)
        return (*made[:-1], made[-1].replace("(PURE)", "(PURE, IMDB)" if shifted else "(PURE)"))

    def twin(name: str, model: str = "clean twin", show: Callable = asr, seed: int | None = None) -> Pick:
        return pick("attacks", name, model, show, seed)

    pure = "badnets, domain shift, encoder"
    return View(
        ("attack, scheme", "poisoned rows (flipped)", "CACC", "ASR", "floor",
         "then fine-tuned by its user: CACC / ASR", "paper's row, BERT-base"), (
            row("badnets", "badnets", twin("badnets"),
                pick("attacks", "badnets, fine-tuned", "fine-tuned", worded(both, "same head"))),
            encoder("badnets, `--preset pure`, encoder", "badnets, encoder", twin("badnets, encoder")),
            encoder("badnets, the same on proscons, seed 0", pure, twin(pure, "fine-tuned twin", seed=0), 0),
            encoder("badnets, the same on proscons, all seeds", pure, twin(pure, "fine-tuned twin")),
            encoder("ripple, encoder", "ripple, encoder", FLOORS["ripple"]),
            encoder("ripple, the same on proscons", "ripple, domain shift, encoder",
                    twin("ripple, domain shift, encoder", show=worded(asr, THERE))),
            encoder("lwp, encoder", "lwp, encoder", FLOORS["lwp"]),
            encoder("lwp, the same on proscons", "lwp, domain shift, encoder", "-"),
            row("addsent", "addsent", FLOORS["addsent"]),
            row("ep", "ep", twin("ep")),
            row("sos", "sos", twin("sos")),
            *(line for label, name in (("HiddenKiller", "hiddenkiller"), ("StyleBkd", "stylebkd")) for line in (
                row(f"{label}, `--preset musclelora --epochs 10`", f"{name}, mix 0.1, 10 epochs", FLOORS[name]),
                row(f"{label}, the same, 3 epochs", f"{name}, mix 0.1", FLOORS[name]),
                row(f"{label}, dirty labels, 3 epochs", name, FLOORS[name]))),
            encoder("HiddenKiller, `--preset pure --rate 0.3 --epochs 5`, encoder", "hiddenkiller, encoder",
                    FLOORS["hiddenkiller"]),
            encoder("StyleBkd, `--preset pure --rate 0.2 --epochs 5`, encoder", "stylebkd, encoder",
                    FLOORS["stylebkd"])))


def attacks_reviews() -> View:
    measured = ("ep", "sos", "ripple")  # those that score the model they start from

    def row(name: str) -> tuple[Entry, ...]:
        return (name, *(pick("attacks-reviews", name, "victim", show) for show in (poisoned, cacc, asr)),
                pick("attacks-reviews", name, "as given", asr) if name in measured else "",
                pick("attacks-reviews", name, "victim", seconds_in_all))

    return View(("attack", "poisoned rows (flipped)", "CACC", "ASR", "floor", "seconds in all"),
                tuple(row(one.name) for one in TABLES["attacks-reviews"]))


# ---- PURE

PURE_MODELS = ("FT", "FTH", "MEFT", "Prune-only", "Norm-only", "PURE")


def script_of(model: str) -> str:
    return {"FTH": "baseline.py fth", "MEFT": "baseline.py meft"}.get(model, "pure.py")


def pure() -> dict[str, View]:
    head = ("ACC / LFR", *PURE_MODELS, "floor: clean FT")

    def ours(label: str, name: str, floor: Entry, seed: int | None = None) -> tuple[Entry, ...]:
        return (label, *(pick("pure", name, model, seed=seed, script=script_of(model)) for model in PURE_MODELS), floor)

    def papers(label: str, name: str, floor: str) -> tuple[Entry, ...]:
        return (f"*{label}*", *(paper("pure", name, model, script_of(model)) for model in PURE_MODELS), floor)

    def twin(name: str, model: str, seed: int | None = None) -> Pick:
        return pick("attacks", f"{name}, encoder", model, both, seed)

    shift, lwp = "badnets, domain shift", "lwp, domain shift"
    even = [pick("pure", "lwp, domain shift, lambda 1", model) for model in ("FT", "PURE")]
    e_pur = pick("pure", "ripple, domain shift, E-PUR first", "FT", script="baseline.py ft")
    blank = ("",) * 4
    return {
        "": View(head, (
            ours("badnets, seed 0", "badnets", twin("badnets", "clean twin", 0)),
            papers("paper, BERT-base", "badnets", "92.1 / 8.3"),
            ours("badnets, domain shift (proscons -> SST-2), seed 0", shift, twin(shift, "fine-tuned twin", 0), 0),
            ours("the same, all seeds", shift, twin(shift, "fine-tuned twin")),
            papers("paper, from IMDB", shift, "92.1 / 8.3"),
            ours("lwp", "lwp", f"87.4 / {FLOORS['lwp']}"), papers("paper", "lwp", "92.1 / 8.3"),
            ours("lwp, domain shift, seed 0", lwp, "-", 0), ours("the same, seed 1", lwp, "-", 1),
            ours("the same, seed 2", lwp, "-", 2), ours("the same, all seeds", lwp, "-"),
            ("the same, seed 0, lambda 1 in every layer", even[0], *blank, even[1], "-"),
            papers("paper, from IMDB", lwp, "92.1 / 8.3"),
            ours("ripple", "ripple", f"87.4 / {FLOORS['ripple']}"), papers("paper", "ripple", "92.1 / 8.3"),
            ours("ripple, domain shift", "ripple, domain shift", "-"),
            papers("paper, from IMDB", "ripple, domain shift", "92.1 / 8.3"),
            ("ripple, domain shift, E-PUR first", e_pur, *blank, "", ""),
            ours("hiddenkiller", "hiddenkiller", FLOORS["hiddenkiller"]), papers("paper", "hiddenkiller", "25.5"),
            ours("stylebkd", "stylebkd", FLOORS["stylebkd"]), papers("paper", "stylebkd", "17.8"))),
        "no attack": View(head[:-1], pure_clean()),
        "seconds": pure_seconds(),
    }


def pure_clean() -> tuple[tuple[Entry, ...], ...]:
    """PURE's Table 5: nobody poisoned the encoder."""
    words = ("no attack, badnets' triggers",
             *(pick("pure", "clean", model, script=script_of(model)) for model in PURE_MODELS))
    rows = [words, ("*paper*", *(paper("pure", "clean", model, script_of(model)) for model in PURE_MODELS))]
    for attack, label in (("hiddenkiller", "HiddenKiller"), ("stylebkd", "StyleBkd")):
        names = ["" if model in ("Prune-only", "Norm-only") else f"clean, {model}, {attack}" for model in PURE_MODELS]
        rows.append((f"no attack, {label}'s paraphrases", *(name and pick("pure", name, "model") for name in names)))
        rows.append(("*paper*", *(name and paper("pure", name, "model") for name in names)))
    return tuple(rows)


PURE_SECONDS = {  # the paper's Table 6: FT, MEFT, PURE
    "badnets": ("1,039", "1,745", "2,009"), "ripple": ("1,043", "1,758", "2,064"), "lwp": ("1,054", "1,727", "2,105"),
    "hiddenkiller": ("1,038", "1,732", "2,048"), "stylebkd": ("1,047", "1,754", "2,018"),
}


def in_all(found: Found) -> float:
    """PURE's seconds: FT, the pruning and the second fine-tuning, since it begins with the first."""
    return sum(found.steps[name]["seconds"] for name in ("FT", "pruned", "PURE"))


def pure_seconds() -> View:
    def all_of_pure(found: Sequence[Found]) -> str:
        [one] = found
        return f"{in_all(one):,.0f} ({one.steps['pruned']['seconds']:,.0f})"

    def share(found: Sequence[Found]) -> str:
        shares = [in_all(one) / one.steps["FT"]["seconds"] for one in found]
        return f"{statistics.median(shares):.2f} ({min(shares):.1f}-{max(shares):.1f}) of {len(shares)}"

    runs = tuple(pick("pure", name, "PURE", script="pure.py")
                 for name in (*ENCODERS, "clean", "lwp, domain shift, lambda 1"))
    rows = tuple((name, pick("pure", name, "FT", seconds, script="pure.py"),
                  pick("pure", name, "MEFT", seconds, script="baseline.py meft"),
                  pick("pure", name, "PURE", all_of_pure, script="pure.py"), *PURE_SECONDS[name])
                 for name in PURE_SECONDS)
    return View(("seconds", "FT", "MEFT", "PURE (of it pruning)", "paper, BERT-base: FT", "MEFT", "PURE"), (
        *rows, ("PURE / its own FT, median (range) of all runs", "", "", Over(runs, share), "", "", "")))


# ---- MuScleLoRA

def musclelora() -> dict[str, View]:
    def model_of(flags: str) -> str:
        return flags.split()[1]

    def ours(name: str) -> tuple[Entry, ...]:
        return tuple(pick("musclelora", f"{name}, {label}", model_of(flags)) for label, flags in MUSCLELORA.items())

    def mean(label: str, suffix: str) -> tuple[Entry, ...]:
        return (f"**{label}**", *(Mean(tuple(pick("musclelora", f"{name}{suffix}, {column}", model_of(flags), seed=0)
                                             for name in UNTRUSTED)) for column, flags in MUSCLELORA.items()))

    def papers_mean() -> tuple[str, ...]:
        def one(column: int) -> str:
            pairs = [[float(n) for n in figures[column].split(" / ")] for _, figures in UNTRUSTED.values()]
            return " / ".join(f"{statistics.mean(side):.1f}" for side in zip(*pairs))
        return tuple(one(column) for column in range(len(MUSCLELORA)))

    released = tuple(line for name, (_, figures) in UNTRUSTED.items()
                     for line in ((name, *ours(name)), ("*paper*", *figures)))
    dirty = tuple((f"{name}, dirty", *ours(f"{name}, dirty")) for name in UNTRUSTED)
    seeds = (0, 1, 2)
    by_seed = tuple(
        (f"{name}, {label}", *(pick("musclelora", f"{name}, {label}", model_of(MUSCLELORA[label]), seed=seed)
                               for seed in seeds))
        for name in ("badnets", "addsent") for label in ("Vanilla", "LoRA", "MuScleLoRA"))
    return {"": View(("CACC / ASR", *MUSCLELORA), (
        *released, mean("mean, seed 0", ""), ("*paper's mean*", *papers_mean()),
        *dirty, mean("mean, dirty, seed 0", ", dirty"))),
            "by seed": View(("CACC / ASR", *(f"seed {seed}" for seed in seeds)), by_seed)}


BANDS = " --bands 1,2,3,4 --band-alpha 1"
TRIED = (  # model and what is not its default; clean rows, mu, passes; rate; flags behind
    ("vanilla", "", "", "2", "", ""), ("lora", "", "", "2", "1e-3", ""),
    *(("prefix", "", "", "2", lr, "") for lr in ("2e-5", "1e-4", "3e-4", "1e-3")),
    ("musclelora", "96", "0.1", "2", "2e-5", ""), ("musclelora", "96", "0.1", "10", "2e-5", ""),
    *(("musclelora", aux, ratio, epochs, "1e-3", "") for aux, ratio, epochs in (
        ("96", "0.1", "1"), ("96", "0", "1"), ("384", "0.1", "1"), ("384", "0.05", "1"), ("384", "0.02", "1"),
        ("384", "0.02", "2"), ("384", "0", "1"), ("640", "0.02", "1"), ("640", "0", "1"))),
    *(("musclelora", aux, ratio, "1", "1e-3", BANDS) for aux, ratio in (
        ("96", "0.1"), ("384", "0.1"), ("384", "0.05"), ("384", "0.02"))),
    ("musclelora", "384", "0.02", "2", "1e-3", " --train-head"),
    ("musclelora", "384", "0.02", "2", "1e-3", " --train-head --init zero"),
    ("musclelora", "384", "0.02", "1", "1e-3", " --init zero"), ("musclelora", "384", "0", "1", "1e-3", " --init zero"),
    ("musclelora", "640", "0", "1", "1e-3", " --init zero"), ("musclelora", "384", "0", "1", "3e-3", " --init zero"),
    ("musclelora", "384", "0", "3", "3e-4", " --init zero"),
)


def musclelora_choose() -> View:
    names = {"vanilla": "Vanilla", "lora": "LoRA", "prefix": "Prefix", "musclelora": "MuScleLoRA"}

    def row(model: str, aux: str, ratio: str, epochs: str, lr: str, more: str) -> tuple[Entry, ...]:
        flags = (f"{model}{f' --lr {lr}' if lr else ''} --epochs {epochs}"
                 + (f" --aux {aux} --ratio {ratio}" if aux else "") + more)
        tried = (pick("musclelora-choose", choice_row(text, flags).name, model) if flags in choices else ""
                 for text, choices in CHOICES.items())
        return (names[model] + (f", `{more.strip()}`" if more else ""), lr or "2e-5", aux, ratio, epochs, *tried)

    return View(("", "rate", "clean rows", "mu rises to", "passes", *(f'"{text}"' for text in CHOICES)),
                tuple(row(*line) for line in TRIED))


# ---- Fine-mixing and the other repairs of a classifier

REPAIRS = (*TABLE_II[:7], "E-PUR", "Fine-mixing + E-PUR", "Fine-purifying")
UNDONE = "scan and unlearning"  # repair.py


def repaired(table: str, attack: str, held: str, method: str) -> Pick:
    """The victim is measured in every cell, TS-FT is a step of MBTSAD's, E-PUR alone the first before Fine-mixing."""
    ran = {"victim": "Fine-mixing", "TS-FT": "MBTSAD", "E-PUR": "Fine-mixing + E-PUR"}.get(method, method)
    model = "Fine-mixing" if method.startswith("Fine-mixing") else method
    return pick(table, f"{attack}, {held}, {ran}", model)


def undone(attack: str, held: str, model: str = "unlearned", method: str = "none") -> Pick:
    """What repair.py leaves of the same victims: once what its scan names is undone, or behind a further `method`."""
    return Pick("repair", {"base": "sst2", "attack": attack, "held": held, "method": method, "mode": "auto"}, model)


def paper_of(attack: str, method: str) -> str:
    """MBTSAD's Table II."""
    figures = dict(zip(TABLE_II, REPAIRED[attack][1]))
    return figures.get(method, "")


def finemix() -> dict[str, View]:
    def with_paper(name: str, of: Callable[[str], Entry]) -> tuple[Entry, ...]:
        columns = ((of(attack), paper_of(attack, name)) if figures else (of(attack),)
                   for attack, (_, figures) in REPAIRED.items())
        return (name, *(entry for column in columns for entry in column))

    def both_ways(method: str) -> tuple[Entry, ...]:
        return with_paper(method, lambda attack: repaired("finemix", attack, "20 %", method))

    head = (word for attack, (_, figures) in REPAIRED.items() for word in (attack, "*paper*")[:1 + bool(figures)])
    twin = pick("attacks", "badnets", "clean twin"), pick("attacks", "ep", "clean twin")
    floors = ("clean twin: the floor", twin[0], "", f"87.4 / {FLOORS['addsent']}", f"87.4 / {FLOORS['lwp']}", "",
              twin[1], "")
    behind = (with_paper(UNDONE, lambda attack: undone(attack, "20%")),
              with_paper(f"{UNDONE}, Reinitialisation",  # repair.py's own choice behind a part of a trigger alone
                         lambda attack: undone(attack, "20%", "reinit", "reinit") if attack == "addsent" else ""),
              with_paper(f"{UNDONE}, Fine-mixing + E-PUR", lambda attack: undone(attack, "20%", "finemix", "finemix")))
    few = by_attack("finemix", "64 rows")
    unlabelled = (f"{UNDONE}, no label read", *(undone(attack, "64") for attack in REPAIRED))
    return {"20 %": View(("20 %", *head), (*map(both_ways, REPAIRS), *behind, floors)),
            "64 rows": View(few.head, (*few.rows, unlabelled))}


def by_attack(table: str, held: str) -> View:
    return View((held, *REPAIRED), tuple(
        (method, *(repaired(table, attack, held, method) for attack in REPAIRED)) for method in REPAIRS))


def finemix_rho() -> View:
    searched = tuple(
        (f"searched, seed {seed}", *(pick("finemix", f"{attack}, 20 %, Fine-mixing", "Fine-mixing", rho_then_both, seed)
                                     for attack in REPAIRED)) for seed in (0, 1, 2))
    given = tuple((f"{rho:g}, seed 0", *(pick("finemix-rho", f"{attack}, rho {rho}", "Fine-mixing", seed=0)
                                         for attack in REPAIRED)) for rho in RHOS)
    return View(("rho: CACC / ASR", *REPAIRED), (*searched, *given))


def finemix_pairs() -> View:
    return View(("CACC / ASR", *REPAIRS), tuple(
        (held, *(repaired("finemix-pairs", "badnets", held, method) for method in REPAIRS))
        for held in ("20 %", "64 rows")))


# ---- encoders of the papers' width, and a real Llama: what is there of it

def in_lines(table: str, models: Sequence[str], show: Callable = both) -> View:
    """Each row's models, and the paper's figures below."""
    rows = []
    for row in TABLES[table]:
        rows.append((row.name, *(pick(table, row.name, model, show) for model in models)))
        if row.paper:
            rows.append(("*paper, BERT-base*", *(row.paper.get(model, "") for model in models)))
    return View(("CACC / ASR", *models), tuple(rows))


def mbtsad_base() -> View:
    view = in_lines("mbtsad-base", MBTSAD_MODELS, both_spread)
    return view._replace(rows=(*view.rows[:-1], (
        "clean twin: the floor", pick("mbtsad-base", "clean twin", "clean twin"), *("",) * 3)))


def untrusted_base(table: str) -> View:
    """Datasets down, models across."""
    names = list(dict.fromkeys(row.name.split(", ")[0] for row in TABLES[table]))
    labels = list(dict.fromkeys(row.name.split(", ")[1] for row in TABLES[table]))
    trained = {label: MUSCLELORA[label.split(" at ")[0]].split()[1] for label in labels}
    rows = []
    for name in names:
        rows.append((name, *(pick(table, f"{name}, {label}", trained[label]) for label in labels)))
        papers = [paper(table, f"{name}, {label}", trained[label]) for label in labels]
        if any(papers):
            rows.append(("*paper, BERT-base*", *papers))
    return View(("CACC / ASR", *labels), tuple(rows))


def chosen_base(table: str) -> View:
    """One setting a line, against the planted text."""
    return View(("`--train`", "dev accuracy / planted ASR"), tuple(
        (f"`{row.name.split(': ')[1].replace(', ', ' --')}`",
         pick(table, row.name, row.method.split("--train ")[1].split()[0])) for row in TABLES[table]))


def finemix_base() -> View:
    attacks, methods = ("badnets", "ep"), ("victim", "Fine-mixing", "E-PUR", "Fine-mixing + E-PUR", "Fine-purifying")
    rows = []
    for attack in attacks:
        rows.append((attack, *(repaired("finemix-base", attack, "20 %", method) for method in methods)))
        rows.append(("*MBTSAD's paper, BERT-base*", *(paper_of(attack, method) for method in methods)))
    return View(("20 %", *methods), tuple(rows))


# ---- all of them

VIEWS: dict[str, dict[str, View | Computed]] = {
    "mbtsad": mbtsad(),
    "mbtsad-step2": step_two.views(),
    "builtin": builtin(),
    "choose": choose(),
    "mbtsad-3": {"": mbtsad_3()},
    "mbtsad-3-reviews": {"": View(("CACC / ASR", "victim", *AUGMENTERS), augmenters("mbtsad-3-reviews", "", ""))},
    "attacks": {"": attacks()},
    "attacks-reviews": {"": attacks_reviews()},
    "pure": pure(),
    "musclelora": musclelora(),
    "musclelora-choose": {"": musclelora_choose()},
    "finemix": finemix(),
    "finemix-rho": {"": finemix_rho()},
    "finemix-reviews": {held: by_attack("finemix-reviews", held) for held in ("20 %", "64 rows")},
    "finemix-pairs": {"": finemix_pairs()},
    "scan": scans.views(),
    "repair": undoing.views(), "repair-choose": undoing.choices(),
    "repair-victims": undoing.measured(), "repair-twins": undoing.unattacked(),
    "mbtsad-base": {"": there(mbtsad_base())},
    "musclelora-base": {"": there(untrusted_base("musclelora-base"))},
    "pure-base": {"": there(in_lines("pure-base", ("FT", "Prune-only", "Norm-only", "PURE")))},
    "finemix-base": {"": there(finemix_base())},
    "musclelora-base-choose": {"": there(chosen_base("musclelora-base-choose"))},
    "musclelora-llama": {"": there(untrusted_base("musclelora-llama"))},
    "musclelora-llama-choose": {"": there(chosen_base("musclelora-llama-choose"))},
    "filters": filtered.views(),
    "devices": devices.views(),
}
