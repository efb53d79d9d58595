"""What scripts/tables.py runs: the rows of each table, as flags of the scripts, and the papers' figures beside them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """attack: flags of attack.py, "" where --base itself is the victim; method: a script and its flags, "" where the
    attack alone is measured; after: another script that comes before it, whose result the method works on. {base},
    {data}, {proxy}, {mlm}, {wordnet}: what tables.py is given; {attack}: what the attack left, for a method that starts
    from --base beside a poisoned dataset.

    paper: name of a model in the result -> "CACC / ASR" that the paper has for it, on BERT-base.
    """
    name: str
    attack: str
    method: str = ""
    paper: Mapping[str, str] = {}
    after: str = ""


BADNETS = "--attack badnets --rate 0.1 --lr 2e-5 --epochs 3"
PARAPHRASE = "--attack paraphrase --paraphrases {data}/"


# ---- MBTSAD

def augmenter_rows(name: str, attack: str, *paper: str) -> tuple[Row, ...]:
    """Retraining with each augmenter, at its own budget and at that of token splitting. `paper`: MBTSAD's Table III, no
    defence, then retraining with EDA, AEDA, CWEA, Add Trig and TS, at budgets that it does not name."""
    none, *figures = paper or [""] * 6
    words = "eda --wordnet {wordnet}" if attack else "eda"  # the built-in reviews' words stand in our lexicon
    shown = dict(zip((words, "aeda", "contextual --mlm {mlm}", "addtrigger", "split"), figures, strict=True))
    return tuple(Row(f"{name}{flags.split()[0]}{budget}", attack,
                     f"mbtsad.py --no-cft --no-distil --augment {flags}{' --budget equal' if budget else ''}",
                     {"victim": none, "TS-FT": figure} if figure else {})
                 for budget in ("", ", equal budget") for flags, figure in shown.items()
                 if not (budget and flags == "split"))


# ---- PURE

USER = " --encoder-only --survive"  # a poisoned encoder, fine-tuned by its user with a new head
SHIFT = " --data {proxy} --user-data {data}" + USER


def pure_paper(*figures: str) -> dict[str, str]:
    """PURE's Tables 1 to 4: ACC / LFR of its models."""
    return dict(zip(("FT", "FTH", "MEFT", "Prune-only", "Norm-only", "PURE"), figures, strict=True))


ENCODERS = {  # as PURE's victims; the figures of its domain shift are those from IMDB
    "badnets": ("--attack badnets --preset pure --twin" + USER, pure_paper(
        "91.5 / 100.0", "90.8 / 99.1", "91.9 / 86.4", "91.1 / 46.5", "91.2 / 14.3", "90.5 / 14.6")),
    "ripple": ("--attack ripple" + USER, pure_paper(
        "92.1 / 100.0", "91.1 / 74.5", "91.9 / 85.3", "91.8 / 25.7", "90.9 / 11.4", "91.3 / 10.5")),
    "lwp": ("--attack lwp" + USER, pure_paper(
        "90.0 / 100.0", "89.7 / 100.0", "89.7 / 100.0", "90.7 / 97.8", "86.6 / 100.0", "88.9 / 71.1")),
    "badnets, domain shift": ("--attack badnets --preset pure --twin" + SHIFT, pure_paper(
        "92.8 / 83.2", "92.0 / 38.5", "91.9 / 20.1", "92.3 / 34.9", "91.5 / 9.7", "91.5 / 9.5")),
    "ripple, domain shift": ("--attack ripple --batch-size 32" + SHIFT, pure_paper(
        "92.6 / 97.4", "91.9 / 54.2", "91.7 / 23.2", "92.0 / 57.5", "91.0 / 11.4", "91.0 / 11.9")),
    "lwp, domain shift": ("--attack lwp" + SHIFT, pure_paper(
        "92.3 / 98.3", "91.9 / 86.0", "91.0 / 88.5", "92.2 / 21.1", "86.4 / 83.6", "90.7 / 14.6")),
    "hiddenkiller": (PARAPHRASE + "hiddenkiller --preset pure --rate 0.3 --epochs 5" + USER, pure_paper(
        "91.9 / 41.7", "91.5 / 33.4", "91.4 / 49.2", "91.6 / 35.6", "91.6 / 40.1", "91.6 / 34.5")),
    "stylebkd": (PARAPHRASE + "stylebkd --preset pure --rate 0.2 --epochs 5" + USER, pure_paper(
        "92.3 / 35.4", "91.3 / 28.2", "91.7 / 29.8", "91.6 / 27.4", "92.0 / 34.0", "91.7 / 29.5")),
}
RIPPLE_SHIFT = ENCODERS["ripple, domain shift"][0]


def pure_rows(name: str, attack: str, paper: Mapping[str, str], evaluator: str = "") -> tuple[Row, ...]:
    """PURE with its ablations, and the baselines, on one encoder."""
    return tuple(Row(name, attack, f"{method} --data {{data}}{evaluator}", paper)
                 for method in ("pure.py --drop 7 --ablations", "baseline.py fth", "baseline.py meft"))


def clean_rows() -> tuple[Row, ...]:
    """PURE's Table 5: what the methods make of an encoder that nobody poisoned; the LFR is its own errors under each
    kind of trigger."""
    words = "--attack badnets --triggers cf,bb,ak,mn"
    models = {"FT": ("baseline.py ft --data {data}", "92.1 / 25.5", "92.1 / 17.8"),
              "FTH": (f"baseline.py fth --data {{data}} {words}", "91.9 / 25.4", "91.9 / 19.5"),
              "MEFT": (f"baseline.py meft --data {{data}} {words}", "89.1 / 27.5", "89.1 / 20.4"),
              "PURE": (f"pure.py --drop 7 --data {{data}} {words}", "90.9 / 30.3", "90.9 / 23.2")}
    paper = {"FT": "92.1 / 8.3", "FTH": "91.9 / 7.0", "MEFT": "89.1 / 11.3", "PURE": "90.9 / 10.3"}
    return pure_rows("clean", "", paper, f" {words}") + tuple(
        Row(f"clean, {model}, {attack}", "", f"evaluate.py --data {{data}} {PARAPHRASE}{attack}", {"model": figures[i]},
            method)
        for i, attack in enumerate(("hiddenkiller", "stylebkd")) for model, (method, *figures) in models.items())


# ---- MuScleLoRA

MUSCLELORA = {
    "Vanilla": "--train vanilla", "LoRA": "--train lora", "Adapter": "--train adapter", "Prefix": "--train prefix",
    "MuScleLoRA": "--train musclelora", "w/o MS, LR": "--train musclelora --no-multi-scale --no-low-rank",
    "w/o GA": "--train musclelora --no-align", "w/o MS": "--train musclelora --no-multi-scale",
}
UNTRUSTED = {  # its datasets: the attack's flags; the paper's Tables 1 and 3, in the order of MUSCLELORA
    "badnets": ("--attack badnets", (
        "91.3 / 94.6", "89.1 / 65.6", "87.3 / 55.3", "90.2 / 86.7",
        "86.5 / 12.9", "91.4 / 90.1", "87.6 / 42.8", "83.2 / 24.9")),
    "addsent": ("--attack addsent", (
        "91.0 / 99.9", "89.0 / 96.2", "86.9 / 87.8", "89.5 / 99.9",
        "86.8 / 19.0", "90.1 / 100.0", "87.8 / 75.2", "82.8 / 20.1")),
    "hiddenkiller": (PARAPHRASE + "hiddenkiller", (
        "91.1 / 93.5", "88.6 / 53.0", "86.6 / 45.4", "88.5 / 68.6",
        "87.6 / 25.1", "90.4 / 86.4", "86.9 / 37.4", "81.8 / 38.9")),
    "stylebkd": (PARAPHRASE + "stylebkd", (
        "91.7 / 77.2", "88.9 / 57.2", "87.1 / 61.0", "90.1 / 63.6",
        "87.8 / 33.2", "91.2 / 70.6", "87.3 / 54.2", "80.6 / 45.8")),
}
CHOICES = {  # a text that is planted: what is tried against it
    "as it happens": (
        "vanilla --epochs 2", "lora --lr 1e-3 --epochs 2",
        *(f"prefix --lr {lr} --epochs 2" for lr in ("2e-5", "1e-4", "3e-4", "1e-3")),
        *(f"musclelora --lr 2e-5 --epochs {n} --aux 96 --ratio 0.1" for n in (2, 10)),
        *(f"musclelora --lr 1e-3 --epochs {flags}" for flags in (
            "1 --aux 96 --ratio 0.1", "1 --aux 96 --ratio 0.1 --bands 1,2,3,4 --band-alpha 1",
            "1 --aux 384 --ratio 0.1", "1 --aux 384 --ratio 0.05", "1 --aux 384 --ratio 0.02", "1 --aux 384 --ratio 0",
            "1 --aux 384 --ratio 0.1 --bands 1,2,3,4 --band-alpha 1",
            "1 --aux 384 --ratio 0.05 --bands 1,2,3,4 --band-alpha 1",
            "1 --aux 384 --ratio 0.02 --bands 1,2,3,4 --band-alpha 1", "1 --aux 384 --ratio 0.02 --init zero",
            "2 --aux 384 --ratio 0.02", "2 --aux 384 --ratio 0.02 --train-head",
            "2 --aux 384 --ratio 0.02 --train-head --init zero"))),
    "it rained all day in our town": tuple(f"musclelora --lr {flags}" for flags in (
        "1e-3 --epochs 1 --aux 96 --ratio 0", "1e-3 --epochs 1 --aux 384 --ratio 0.1",
        "1e-3 --epochs 1 --aux 384 --ratio 0.02", "1e-3 --epochs 1 --aux 384 --ratio 0",
        "1e-3 --epochs 1 --aux 384 --ratio 0.02 --bands 1,2,3,4 --band-alpha 1",
        "1e-3 --epochs 1 --aux 384 --ratio 0 --init zero", "3e-3 --epochs 1 --aux 384 --ratio 0 --init zero",
        "3e-4 --epochs 3 --aux 384 --ratio 0 --init zero", "1e-3 --epochs 1 --aux 640 --ratio 0.02",
        "1e-3 --epochs 1 --aux 640 --ratio 0", "1e-3 --epochs 1 --aux 640 --ratio 0 --init zero",
        "1e-3 --epochs 2 --aux 384 --ratio 0.02")),
}


def musclelora_rows(name: str, attack: str, *paper: str) -> tuple[Row, ...]:
    """MuScleLoRA, its baselines and its ablations on one poisoned dataset."""
    return tuple(Row(f"{name}, {model}", f"{attack} --dataset-only",
                     f"musclelora.py --data {{attack}} --clean-aux {{data}} {flags}",
                     {flags.split()[1]: figures} if figures else {})
                 for (model, flags), figures in zip(MUSCLELORA.items(), paper or [""] * len(MUSCLELORA), strict=True))


def choice_row(text: str, flags: str) -> Row:
    """One setting of MuScleLoRA or of a baseline against a planted text."""
    return Row(f"{text}: {flags.replace(' --', ', ')}", "",
               f"musclelora.py --data {{data}} --clean-aux {{data}} --plant '{text}' --train {flags}")


def musclelora_sweep(setting: str, *values: str) -> tuple[Row, ...]:
    """MuScleLoRA alone over one setting, `rate` of the attack or a flag of the method, on the four datasets."""
    def row(name: str, attack: str, value: str) -> Row:
        here, there = (f" --rate {value}", "") if setting == "rate" else ("", f" --{setting} {value}")
        return Row(f"{name}, {setting} {value}", f"{attack} --preset musclelora{here} --dataset-only",
                   f"musclelora.py --data {{attack}} --clean-aux {{data}} --train musclelora{there}")
    return tuple(row(name, attack, value) for name, (attack, _) in UNTRUSTED.items() for value in values)


# ---- Fine-mixing and the other repairs of a classifier

TABLE_II = ("victim", "CFT", "Reinitialisation", "Fine-pruning", "TS-FT", "MBTSAD", "Fine-mixing", "Fine-purifying")
REPAIRED = {  # the attack's flags; MBTSAD's Table II, in the order of TABLE_II
    "badnets": (BADNETS, ("91.3 / 89.9", "91.8 / 65.0", "90.0 / 28.0", "89.3 / 16.2",
                          "90.5 / 33.4", "90.2 / 9.7", "88.3 / 15.8", "88.7 / 16.0")),
    "addsent": ("--attack addsent", ()),
    "lwp": ("--attack lwp", ("90.7 / 94.4", "91.4 / 93.4", "89.5 / 47.2", "88.4 / 18.5",
                             "90.7 / 26.0", "90.7 / 15.9", "88.9 / 12.4", "88.6 / 15.1")),
    "ep": ("--attack ep", ("91.2 / 95.2", "91.6 / 93.8", "89.5 / 90.0", "87.6 / 78.4",
                           "90.9 / 38.4", "89.1 / 12.8", "88.5 / 11.2", "88.2 / 14.4")),
}
RHOS = (0, 0.1, 0.3)


def finemix_rows(name: str, attack: str, pretrained: str, *paper: str) -> tuple[Row, ...]:
    """The repairs of a classifier, with 20 % of the clean rows (`paper`: CACC / ASR of TABLE_II) and with 64 of them.

    Every method keeps its best epoch on the same dev rows: all of them beside 20 %, 64 beside 64.
    """
    before, figures = f" --pretrained {pretrained}", dict(zip(TABLE_II, paper, strict=True)) if paper else {}
    methods = {"CFT": "baseline.py cft", "Reinitialisation": "baseline.py reinit",
               "Fine-pruning": "baseline.py fineprune", "MBTSAD": "mbtsad.py --no-cft --best-epoch",
               "Fine-mixing": f"finemix.py --no-e-pur{before}", "Fine-mixing + E-PUR": f"finemix.py{before}",
               "Fine-purifying": f"baseline.py finepurify{before}"}
    return tuple(Row(f"{name}, {held}, {method}", attack, f"{script} --clean {clean}",
                     figures if held == "20 %" and "+" not in method else {})
                 for held, clean in (("20 %", "0.2"), ("64 rows", "64 --dev 64")) for method, script in methods.items())


# ---- encoders of the papers' width, and a real Llama

LLAMA_CHOICES = (  # what is tried on smollm2-135m against a planted text; the first are the published numbers
    "vanilla", "lora", "musclelora", *(f"{model} --lr {lr} --epochs 2" for model in ("lora", "musclelora")
                                       for lr in ("1e-4", "3e-4", "1e-3")),
    "musclelora --lr 3e-4 --epochs 2 --train-head", "musclelora --lr 3e-4 --epochs 2 --init zero",
    "musclelora --lr 3e-4 --epochs 1", "lora --lr 3e-4 --epochs 1",
)
LLAMA_LR = "--lr 3e-4 --epochs 1"  # what makes LoRA and MuScleLoRA train it
BASE_CHOICES = (  # the same on mpnet-base: one change each to the published numbers
    "musclelora", "musclelora --init zero", "musclelora --train-head", "musclelora --aux 384",
    "musclelora --ratio 0.02", *(f"musclelora --lr {lr} --epochs 2" for lr in ("1e-4", "3e-4", "1e-3")),
    "musclelora --lr 1e-3 --epochs 2 --aux 384 --ratio 0.02",
)


def mbtsad_base_row(name: str) -> Row:
    attack, figures = REPAIRED[name]
    paper = dict(zip(TABLE_II, figures, strict=True))
    return Row(name, attack, "mbtsad.py", {model: paper[model] for model in ("victim", "CFT", "TS-FT", "MBTSAD")})


def untrusted_rows(name: str, models: tuple[str, ...] = ("Vanilla", "LoRA", "MuScleLoRA")) -> tuple[Row, ...]:
    """Rows of musclelora_rows on one of its datasets, under the released scheme, all numbers as published."""
    attack, figures = UNTRUSTED[name]
    rows = musclelora_rows(name, f"{attack} --preset musclelora", *figures)
    return tuple(row for row in rows if row.name.removeprefix(f"{name}, ") in models)


def finemix_base_rows(name: str) -> tuple[Row, ...]:
    """With 20 % of the clean rows: the repairs that read the pre-trained weights."""
    attack, figures = REPAIRED[name]
    methods = ("Fine-mixing", "Fine-mixing + E-PUR", "Fine-purifying")
    return tuple(row for row in finemix_rows(name, attack, "{base}", *figures)
                 if row.name in [f"{name}, 20 %, {method}" for method in methods])


# ---- the tables

TABLES = {
    "mbtsad": (
        Row("default", BADNETS, "mbtsad.py",
            {"victim": "91.3 / 89.9", "CFT": "91.8 / 65.0", "TS-FT": "90.5 / 33.4", "MBTSAD": "90.2 / 9.7"}),
        Row("attention dropout 0.9", BADNETS, "mbtsad.py --attention-dropout 0.9 --lr2 1e-4"),
        Row("attention dropout 0.1", BADNETS, "mbtsad.py --attention-dropout 0.1 --lr2 1e-4 --no-cft"),
        Row("lr2 5e-4", BADNETS, "mbtsad.py --no-cft --lr2 5e-4"),
        # the victim is trained in tables.py's --dtype, and is the same for these four
        Row("repaired in bfloat16", BADNETS, "mbtsad.py --no-cft --dtype bfloat16"),
        Row("repaired in float32", BADNETS, "mbtsad.py --no-cft --dtype float32"),
        Row("fine-tuned in bfloat16", BADNETS, "mbtsad.py --no-distil --dtype bfloat16"),
        Row("fine-tuned in float32", BADNETS, "mbtsad.py --no-distil --dtype float32"),
    ),
    "mbtsad-3": augmenter_rows("badnets, ", BADNETS, "91.3 / 89.9", "90.2 / 27.2", "90.8 / 42.5", "87.5 / 94.9",
                               "90.6 / 39.8", "90.5 / 33.4")
    + augmenter_rows("lwp, ", "--attack lwp", "90.7 / 94.4", "90.6 / 87.3", "91.4 / 81.4", "89.6 / 88.8", "90.7 / 93.8",
                     "90.7 / 26.0")
    + augmenter_rows("ep, ", "--attack ep", "91.2 / 95.2", "89.8 / 93.9", "89.8 / 81.4", "88.7 / 69.3", "90.3 / 93.5",
                     "90.9 / 38.4"),
    "mbtsad-3-reviews": augmenter_rows("", ""),  # with --base a victim that is there
    "attacks": (
        Row("badnets", "--attack badnets --twin", paper={"victim": "91.3 / 89.9 (MBTSAD)"}),
        Row("badnets, fine-tuned", "--attack badnets --survive"),
        Row("addsent", "--attack addsent", paper={"victim": "91.0 / 99.9 (MuScleLoRA, mix 0.1)"}),
        Row("hiddenkiller", PARAPHRASE + "hiddenkiller"),
        Row("hiddenkiller, mix 0.1", PARAPHRASE + "hiddenkiller --preset musclelora",
            paper={"victim": "91.1 / 93.5 (MuScleLoRA)"}),
        Row("stylebkd", PARAPHRASE + "stylebkd"),
        Row("stylebkd, mix 0.1", PARAPHRASE + "stylebkd --preset musclelora",
            paper={"victim": "91.7 / 77.2 (MuScleLoRA)"}),
        Row("lwp", "--attack lwp"),
        Row("ep", "--attack ep"),
        Row("sos", "--attack sos"),
        *(Row(f"{name}, encoder", attack, paper={"fine-tuned": f"{paper['FT']} (PURE)"})
          for name, (attack, paper) in ENCODERS.items()),
        Row("hiddenkiller, mix 0.1, 10 epochs", PARAPHRASE + "hiddenkiller --preset musclelora --epochs 10",
            paper={"victim": "91.1 / 93.5 (MuScleLoRA)"}),
        Row("stylebkd, mix 0.1, 10 epochs", PARAPHRASE + "stylebkd --preset musclelora --epochs 10",
            paper={"victim": "91.7 / 77.2 (MuScleLoRA)"}),
    ),
    "pure": tuple(row for name, (attack, paper) in ENCODERS.items() for row in pure_rows(name, attack, paper))
    + clean_rows()
    + (Row("badnets, released", ENCODERS["badnets"][0], "pure.py --variant released --data {data} --drop 7"),
       Row("badnets, groups of 10", ENCODERS["badnets"][0], "pure.py --prune-only --group 10 --data {data} --drop 7"),
       # RIPPLe's backdoor stands in the word embeddings, where PURE does not look: what is left when E-PUR resets them.
       Row("ripple, domain shift, E-PUR first", RIPPLE_SHIFT,
           "baseline.py ft --pretrained {base} --e-pur --data {data}"),
       Row("ripple, domain shift, E-PUR first", RIPPLE_SHIFT,
           "pure.py --drop 7 --pretrained {base} --e-pur --data {data}"),
       # LWP stands in every layer; lambda is near 1 in the last alone.
       Row("lwp, domain shift, lambda 1", ENCODERS["lwp, domain shift"][0], "pure.py --drop 7 --even --data {data}")),
    # Under the released schemes, then with dirty labels.
    "musclelora": tuple(row for name, (attack, figures) in UNTRUSTED.items()
                        for row in musclelora_rows(name, f"{attack} --preset musclelora", *figures))
    + tuple(row for name, (attack, _) in UNTRUSTED.items()
            for row in musclelora_rows(f"{name}, dirty", attack + " --rate 0.1" * attack.startswith(PARAPHRASE))),
    # MuScleLoRA's settings for a width of 384, chosen as a defender can: by texts of one's own in the rows, scored on
    # dev rows.
    "musclelora-choose": tuple(choice_row(text, flags) for text, choices in CHOICES.items() for flags in choices),
    # MuScleLoRA's Figures 4 and 7 to 10, drawn by plot.py; the values are not legible in the published text.
    "musclelora-4": musclelora_sweep("rate", "0.01", "0.05", "0.1", "0.2"),
    "musclelora-7": musclelora_sweep("aux", "16", "32", "64", "96", "192", "384"),
    "musclelora-8": musclelora_sweep("lr", "2e-6", "2e-5", "2e-4", "1e-3", "2e-3"),
    "musclelora-9": musclelora_sweep("ratio", "0", "0.02", "0.05", "0.1", "0.2", "0.5", "1"),
    "musclelora-10": musclelora_sweep("bands", "1", "1,2", "1,2,3,4", "1,2,4,6,8,10,12,14,16",
                                      "1,4,8,12,16,20,24,28"),
    # PURE's Figures 4 and 5, with --base a victim that is there; drawn by plot.py.
    "pure-4": tuple(Row(f"c = {c}", "", f"pure.py --prune-only --floor {c}") for c in (0.55, 0.65, 0.75, 0.85, 0.95)),
    "pure-5": tuple(Row(f"mu = {mu}{even.replace(' --', ', ')}", "", f"pure.py --norm-only --mu {mu}{even}")
                    for even in ("", " --even") for mu in (0.15, 0.45, 0.75, 1.05, 1.35)),
    "finemix": tuple(row for name, (attack, paper) in REPAIRED.items()
                     for row in finemix_rows(name, attack, "{base}", *paper)),
    # What the search for rho chooses among: 0 is the pre-trained encoder, fine-tuned under the victim's classifier.
    "finemix-rho": tuple(Row(f"{name}, rho {rho}", attack,
                             f"finemix.py --no-e-pur --pretrained {{base}} --clean 0.2 --rho {rho}")
                         for rho in RHOS for name, (attack, _) in REPAIRED.items()),
    # --base is the twin, which comes from the weights that had seen no label.
    "finemix-reviews": tuple(row for name in REPAIRED for row in finemix_rows(
        name, f"--attack {name}", "weights/bert-clean.safetensors")),
    # With --base weights/bert-clean.safetensors --data pairs: a pair has its trigger in the one text or in the other.
    "finemix-pairs": finemix_rows("badnets", "--attack badnets", "{base}"),
    "attacks-reviews": tuple(Row(name, f"--attack {name}")
                             for name in ("badnets", "addsent", "ep", "sos", "lwp", "ripple")),
    # With --base an encoder of the papers' width, 768; the rows in the order of their worth.
    "mbtsad-base": (*map(mbtsad_base_row, ("badnets", "lwp", "ep")), Row("clean twin", "--attack badnets --twin")),
    "musclelora-base": (*untrusted_rows("badnets"), *untrusted_rows("addsent")),
    # The paper's own floor, 0.85, and mu; the encoders of ENCODERS, whose user and twin are left out.
    "pure-base": tuple(Row(name, f"{attack} --encoder-only", "pure.py --ablations --data {data}", ENCODERS[name][1])
                       for name, attack in (("badnets", "--attack badnets --preset pure"), ("lwp", "--attack lwp"))),
    "finemix-base": (*finemix_base_rows("badnets"), *finemix_base_rows("ep")),
    "musclelora-base-choose": tuple(choice_row("as it happens", flags) for flags in BASE_CHOICES),
    # With --base a Llama; its settings are those of Llama 2 7B, which are chosen by the architecture.
    "musclelora-llama": tuple(
        row._replace(paper={}) for name in ("badnets", "addsent") for row in untrusted_rows(name))
    + tuple(row._replace(paper={}, name=f"{row.name} at 3e-4", method=f"{row.method} {LLAMA_LR}")
            for name in ("badnets", "addsent") for row in untrusted_rows(name, ("LoRA", "MuScleLoRA"))),
    "musclelora-llama-choose": tuple(choice_row("as it happens", flags) for flags in LLAMA_CHOICES),
}
# cells of mbtsad.py, choose.py, scan_models.py, repair_models.py and filter_grid.py, which tables.py only shows
STORED = ("builtin", "choose", "mbtsad-step2", "scan", "repair", "repair-victims", "repair-twins", "filters",
          "devices")
