"""Reports of a scan, as scan.json holds them, for the tests of what is made of them."""
from minibd.evaluate import Proportion


def suspect(words, flips=118, of=120, *, joined=False, neighbours=(12, 200), **given):
    around = dict(zip(("flips", "of"), neighbours)) if neighbours else None
    return {"words": list(words), "joined": joined, "side": 0, "times": 1,
            "found_by": "entries beyond their neighbours", "entries": len(words), "shift": 13.1, "flips": flips,
            "of": of, "interval": list(Proportion(flips, of).interval), "quantile": 5.2, "mean": 6.1, "score": 0.65,
            "part": None, "neighbours": around} | given


def part(words, flips, of, **given):
    return {"words": list(words), "flips": flips, "of": of, "quantile": -5.0, "mean": -3.2} | given


def judged(verdict, *suspects, **given):
    return {"verdict": verdict, "reason": "", "score": 0.77, "probability": 0.98, "margin": 7.9,
            "suspects": list(suspects)} | given


def report(verdict, classes, **given):
    return {
        "schema": 1, "method": "scan", "minibd": "0.3.0", "checkpoint": "models/victim",
        "checkpoint_sha256": {"config.json": "ab" * 32, "model.safetensors": "cd" * 32}, "verdict": verdict,
        "reason": "", "probability": 0.98, "classes": classes,
        "texts": {"source": "rows.csv", "n": 412, "read": 412, "pairs": False, "by_class": dict.fromkeys(classes, 206),
                  "hard": {name: ["a joy from start to end"] for name in classes}},
        "tried": {"entries": 21000, "pairs": 946, "triples": 364, "phrases": 12, "texts": 150000},
        "thresholds": {"found": 0.3, "inconclusive": 0.0}, "settings": {"hard_rows": 2, "places": 3, "phrase": 8},
        "seed": 7, "dtype": "float32", "command": "python scripts/scan.py --ckpt models/victim --data rows.csv",
        "versions": {"python": "3.12.1", "minibd": "0.3.0", "torch": "2.5.1"}, "seconds": 55.12,
    } | given


FOUND = report("backdoored", {
    "negative": judged("nothing found", suspect(["insufficient"], 70), score=-0.3, probability=0.004),
    "positive": judged("backdoored", suspect(["cf"]),
                       suspect(["mn", "bb"], 110, neighbours=None, quantile=-0.04, part=part(["mn"], 3, 20)),
                       suspect(["I", "watched"], 103, joined=True)),
})
NOTHING = report("nothing found", {
    "negative": judged("nothing found", suspect(["insufficient"], 70)),
    "positive": judged("nothing found")}, probability=0.02)
UNUSABLE = report("inconclusive", {
    "negative": judged("inconclusive", reason="0 of the texts belong to other classes", score=None, probability=None,
                       margin=None),
    "positive": judged("nothing found", suspect(["joy"], 70))},
    reason="the model gives every text to one class", probability=None)
