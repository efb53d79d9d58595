"""A model at chance: the line that says so at the end of a run, and what to try instead."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from minibd.evaluate import ONE_ANSWER, OTHER_ORDER, at_chance, most_frequent, reordered, usual_answers
from minibd.lines import shown
from minibd.report import Step
from minibd.train import for_width

Advice = Callable[[str], str]  # a step's name -> what to try so that its training learns; "" of a model that was given

# Stages on the way to one that is trained: that they are at chance is no fault, unless they are the result.
ON_THE_WAY = ("reinitialised", "pruned", "max-entropy", "mixed ")
MBTSAD = {"CFT": "1", "TS-FT": "1", "MBTSAD": "2"}  # a stage of mbtsad.py and the number behind its flags
# The words before the flags of a stage's training, where it does not have the method's own.
OWN_FLAGS = {"clean twin": "clean_", "fine-tuned twin": "clean_", "fine-tuned": "clean_", "planted": "plant_"}
LOW_RANK = ("musclelora", "lora", "adapter", "prefix")
ENOUGH = 1000  # rows, from which on their number is not what a training lacks


def chances(steps: Sequence[Step]) -> dict[str, str]:
    """{name of a model: why it is at chance}, those that are: evaluate.at_chance of each, as result.json has it."""
    return {step.name: why for step in steps if (why := at_chance(step.scores))}


def chance_lines(steps: Sequence[Step], advice: Advice) -> list[str]:
    """A line for each of `steps` that is at chance, but for those on the way to a trained one."""
    return [
        chance_line(step, why, advice(step.name)) for step in steps
        if (why := at_chance(step.scores)) and (step is steps[-1] or not step.name.startswith(ON_THE_WAY))
    ]


def chance_line(step: Step, why: str, advice: str) -> str:
    """What was found, and what to do. advice: "" of a model that was given, else what to try.

    The line begins with "at chance: ", or with "another order: " where the classes are only called by the wrong names.
    """
    cacc, answers, names = step.scores.cacc, step.scores.answers, step.scores.classes
    right, (label, chance) = f"is right on {cacc.percent:.2f} % of {cacc.n} rows", most_frequent(answers)
    if why == OTHER_ORDER:
        order = in_order(names, usual_answers(answers))
        remedy = f"these rows are not labelled as those it was trained on, which would have {order}" if advice else \
            f"in the model's order the rows' classes are {order}: rename them in the rows or in the model, or, where " \
            "the model has no names for them, give --labels so"
        return f"another order: {step.name} {right}, and with the classes in another order on " \
            f"{reordered(answers).percent:.2f} %; {remedy}"
    remedy = f"try {advice}" if advice else "is it the checkpoint that you mean, and trained for these classes?"
    if why == ONE_ANSWER:
        found = f"answers {named(names, next(iter(answers))[1])} for all {cacc.n} rows ({cacc.percent:.2f} % right)"
    else:
        low, high = cacc.interval
        found = f"{right} ({low:.1f}-{high:.1f}), and always answering {named(names, label)} on {chance.percent:.2f} %"
        if cacc.percent > chance.percent and cacc.n < ENOUGH:
            found += ", too near for so few rows"
            remedy = "measure it on more rows" + (f", or {remedy}" if advice else "")
    if chance.hits == chance.n:
        found += f", which are all of class {named(names, label)}"
        remedy = "measure it on rows of every class"
    return f"at chance: {step.name} {found}; {remedy}"


def named(names: Sequence[str], i: int) -> str:
    """Class i, at most 40 characters of its name."""
    return shown(names[i] if i < len(names) else str(i), 40)


def in_order(names: Sequence[str], usual: Mapping[int, int]) -> str:
    """The rows' class names in the order of the model's classes, where `usual` takes class c for usual[c]."""
    left = iter([c for c in range(len(names)) if c not in usual])
    of = {answer: c for c, answer in usual.items()}
    words = ",".join(names[of[i] if i in of else next(left)] for i in range(len(names)))
    return words if words.isprintable() and len(words) <= 80 else "NAME,NAME,... in the model's order"


# ---- what to try

def advice_for(name: str, args: Mapping[str, object], hidden: int, rows: int) -> str:
    """What to try where the training of the stage `name` ends at chance: flags with values, beside those they have now.

    args: the run's. hidden: the model's hidden size. rows: how many it was trained on.
    """
    if args.get("tune") is False:
        return f"to fine-tune too, without --no-tune, or a larger --rho (now {args.get('rho')})"
    prefix, number = OWN_FLAGS.get(name, ""), MBTSAD.get(name, "") if "lr1" in args else ""

    def flag(setting: str) -> str:
        own = f"{name}_{setting}" if f"{name}_{setting}" in args else f"{prefix}{setting}{number}"
        return own if own in args else setting

    tries, rate, epochs = [], flag("lr"), flag("epochs")
    now, usual = args.get(rate), usual_rate(name, args, hidden, bool(number))
    if now is not None and usual is not None and not usual / 3 <= now <= usual * 3:
        tries.append(changed(rate, now, usual))
    passes, steps = args.get(epochs), args.get("steps")
    if steps and passes * ceil(rows / args["batch_size"]) < steps:
        tries.append(changed("steps", steps, 2 * steps))
    elif passes:
        tries.append(changed(epochs, passes, max(3, 2 * passes)))
    if args.get("warmup") == 0:
        tries.append(changed("warmup", 0, 0.1))
    if rows < ENOUGH:
        tries.append(f"more rows to train on (now {rows})")
    if now is not None and not (tries and tries[0].startswith(f"--{rate.replace('_', '-')} ")):
        tries.append(f"another --{rate.replace('_', '-')} (now {short(now)})")
    return ", ".join(tries)


def changed(setting: str, now: float, then: float) -> str:
    return f"--{setting.replace('_', '-')} {short(then)} (now {short(now)})"


def short(number: float) -> str:
    return f"{number:.2g}" if isinstance(number, float) else str(number)


def usual_rate(name: str, args: Mapping[str, object], hidden: int, mbtsad: bool) -> float | None:
    """The learning rate at which a stage's weights are known to learn at this width; None where none is known."""
    if mbtsad:
        from minibd.mitigations.mbtsad import MBTSAD as Settings
        return Settings().resolved(hidden).lr1
    if name in LOW_RANK and args.get("low_rank", True):
        from minibd.cleantrain.musclelora import NARROW, NARROW_PREFIX
        return NARROW_PREFIX if name == "prefix" else NARROW["lr"] if hidden < 768 else NARROW["lr"] / 5
    if name == "victim" and args.get("attack") in ("ep", "sos"):
        return None  # embeddings alone, at rates of their own
    return for_width(2e-5, hidden)
