"""Flags that would do nothing are refused, in every script, before anything is opened; those that are read are not."""
from __future__ import annotations

import importlib.util
import shlex
import sys
from functools import cache
from types import ModuleType

import pytest

from conftest import ROOT
from minibd import cli
from minibd.tables.rows import TABLES
from test_pages import PAGES, commands, text_of

CKPT = "--ckpt M"


class Parsed(Exception):
    """The flags were taken: the script would go on."""


@cache
def module_of(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{script.removesuffix('.py')}_flags", ROOT / "scripts" / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said(monkeypatch, capsys):
    """said("bench.py", "prune --order length") -> the line that refuses the flags, "" if they are taken."""
    def run(script: str, words: str) -> str:
        module = module_of(script)

        def parsed(*groups, **more):
            cli.parse(*groups, **more)
            raise Parsed

        monkeypatch.setattr(module, "parse", parsed)
        monkeypatch.setattr(sys, "argv", [script, *shlex.split(words)])
        try:
            module.run()
        except Parsed:
            return ""
        except SystemExit as end:
            assert end.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) <= 300, lines
        return lines[0]
    return run


@pytest.mark.parametrize("script, words, named", [
    # the attack: without --attack, with one that reads others, beside --triggered
    *(("evaluate.py", f"{CKPT} {flags}", [flags, "--attack badnets"]) for flags in (
        "--triggers zz", "--target 0", "--target 1", "--triggers-per-text 2", "--sentence x")),
    ("evaluate.py", f"{CKPT} --attack none --target 1", ["--target 1", "--attack none"]),
    ("evaluate.py", f"{CKPT} --attack known --triggers zz", ["--triggers zz", "--attack badnets"]),
    ("evaluate.py", f"{CKPT} --attack none --triggers cf --side first", ["--triggers cf, --side first", "none"]),
    ("evaluate.py", f"{CKPT} --attack none --paraphrases F", ["--paraphrases F", "none"]),
    ("evaluate.py", f"{CKPT} --attack addsent --triggers cf", ["--triggers cf", "--sentence"]),
    ("evaluate.py", f"{CKPT} --attack badnets --sentence x", ["--sentence x", "addsent"]),
    ("evaluate.py", f"{CKPT} --attack ep --triggers-per-text 1", ["--triggers-per-text 1", "badnets"]),
    ("evaluate.py", f"{CKPT} --attack badnets --paraphrases F", ["--paraphrases F", "--attack paraphrase"]),
    ("evaluate.py", f"{CKPT} --attack paraphrase --paraphrases F --triggers a", ["--triggers a", "paraphrase"]),
    ("evaluate.py", f"{CKPT} --triggered F --attack badnets", ["--attack badnets", "--triggered"]),
    ("evaluate.py", f"{CKPT} --triggered F --attack known", ["--attack known", "--triggered"]),
    ("evaluate.py", f"{CKPT} --triggered F --triggers cf", ["--triggers cf", "--target"]),
    ("evaluate.py", f"{CKPT} --triggered F --side second", ["--side second"]),
    ("evaluate.py", f"{CKPT} --dtype auto", ["--dtype auto", "float32"]),
    *((script, f"{CKPT} --target 0", ["--target 0", "--attack"]) for script in (
        "mbtsad.py", "pure.py", "finemix.py", "musclelora.py")),
    ("baseline.py", f"cft {CKPT} --target 0", ["--target 0", "--attack"]),
    ("plot.py", f"pure-2 {CKPT} --triggers zz", ["--triggers zz", "--attack"]),
    # attack.py
    ("attack.py", f"{CKPT} --triggered F", ["--triggered F"]), ("attack.py", f"{CKPT} --attack known", ["'known'"]),
    ("attack.py", f"{CKPT} --paraphrases F", ["--paraphrases F", "--attack paraphrase"]),
    ("attack.py", f"{CKPT} --sentence x", ["--sentence x", "badnets"]),
    ("attack.py", f"{CKPT} --dataset-only --lr 1 --dtype float32", ["--lr 1.0, --dtype float32", "--dataset-only"]),
    ("attack.py", f"{CKPT} --dataset-only --twin", ["--twin", "--dataset-only"]),
    ("attack.py", f"{CKPT} --clean-lr 1", ["--clean-lr 1.0", "--twin"]),
    ("attack.py", f"{CKPT} --user-data F", ["--user-data F", "--survive"]),
    ("attack.py", f"{CKPT} --variant paper", ["--variant paper", "badnets has no variants"]),
    # mbtsad.py
    ("mbtsad.py", f"{CKPT} --mlm F", ["--mlm F", "contextual"]), ("mbtsad.py", f"{CKPT} --wordnet F", ["eda"]),
    ("mbtsad.py", f"{CKPT} --budget equal", ["--budget equal"]),
    ("mbtsad.py", f"{CKPT} --augment aeda --rate 0.3", ["--rate 0.3", "--budget equal"]),
    ("mbtsad.py", f"{CKPT} --no-distil --lr2 1 --gamma 1", ["--lr2 1.0, --gamma 1.0", "--no-distil"]),
    ("mbtsad.py", f"{CKPT} --ablate cls-only --beta 1", ["--beta 1.0", "--ablate cls-only"]),
    ("mbtsad.py", f"{CKPT} --ablate no-att --p 2", ["--p 2.0", "no-att"]),
    ("mbtsad.py", f"{CKPT} --dev 6", ["--dev 6.0", "--best-epoch"]),
    ("mbtsad.py", f"{CKPT} --pick --no-cft --k 4 --out F", ["--no-cft, --k 4, --out F", "--pick"]),
    ("mbtsad.py", f"{CKPT} --pick --attack badnets", ["--attack badnets", "--pick"]),
    # the others
    ("pure.py", f"{CKPT} --prune-only --mu 0.15", ["--mu 0.15", "--prune-only"]),
    ("pure.py", f"{CKPT} --norm-only --floor 0.5", ["--floor 0.5", "--norm-only"]),
    ("finemix.py", f"{CKPT} --rho 0.3 --drop 2", ["--drop 2.0", "--rho 0.3"]),
    ("finemix.py", f"{CKPT} --no-tune --lr 1", ["--lr 1.0", "--no-tune"]),
    ("finemix.py", f"{CKPT} --rho 0.3 --no-tune --dev 4", ["--dev 4.0"]),
    ("baseline.py", f"finepurify {CKPT} --rho 0.3 --drop 2", ["--drop 2.0", "--rho 0.3"]),
    ("baseline.py", f"fineprune {CKPT} --share 0.3 --drop 2", ["--drop 2.0", "--share 0.3"]),
    ("baseline.py", f"ft {CKPT} --rho 0.3", ["--rho", "finepurify"]),
    ("musclelora.py", f"{CKPT} --train lora --bands 1,2", ["--bands 1,2", "--train"]),
    ("musclelora.py", f"{CKPT} --train lora --vanilla-lr 1", ["--vanilla-lr 1.0"]),
    ("musclelora.py", f"{CKPT} --train vanilla --rank 4", ["--rank 4"]),
    ("musclelora.py", f"{CKPT} --train vanilla --lr 1 --vanilla-lr 2", ["--lr 1.0"]),
    ("musclelora.py", f"{CKPT} --no-align --ratio 0.1", ["--ratio 0.1", "--no-align"]),
    ("musclelora.py", f"{CKPT} --ga-epoch 1", ["--ga-epoch 1", "--variant released"]),
    ("musclelora.py", f"{CKPT} --no-multi-scale --bands 1", ["--bands 1"]),
    ("musclelora.py", f"{CKPT} --search-bands 1,2 --bands 1", ["--bands 1", "--search-bands"]),
    ("musclelora.py", f"{CKPT} --curve-rows 9", ["--curve-rows 9", "--curves"]),
    ("musclelora.py", f"{CKPT} --plant-target 1", ["--plant-target 1", "--plant:"]),
    ("musclelora.py", f"{CKPT} --plant x --attack badnets --triggers a", ["--attack badnets, --triggers a", "--plant"]),
    ("audit.py", "--steps 20", ["--steps 20", "--run"]), ("audit.py", "--run F --seed 0", ["--seed 0"]),
    ("audit.py", "--ckpt M", ["--ckpt M", "--effects"]), ("audit.py", "--readme --json F", ["--json F"]),
    ("bench.py", f"prune {CKPT} --rounds 3 --batches 8", ["--batches 8, --rounds 3", "prune"]),
    ("bench.py", f"prune {CKPT} --order file", ["--order file", "encoders"]),
    ("bench.py", f"encoders {CKPT} --dtype float32", ["--dtype", "align"]),
    ("bench.py", f"align {CKPT} --wordnet F", ["--wordnet F", "augment"]),
    ("bench.py", f"augment {CKPT} --shape own", ["--shape own", "encoders, align, train and long"]),
    ("bench.py", f"augment {CKPT} --no-profile", ["--no-profile", "encoders and align"]),
    ("bench.py", f"train {CKPT} --tokens 9", ["--tokens 9", "long"]),
    ("bench.py", f"train {CKPT} --quick --rounds 9", ["--rounds 9", "--quick"]),
    ("bench.py", f"train {CKPT} --quick --batch-size 9", ["--batch-size 9", "--quick"]),
    ("bench.py", f"evaluation {CKPT} --rows 9", ["--rows 9", "prune and pure"]),
    ("evaluate.py", f"{CKPT} --micro-batch 2", ["--micro-batch 2", "nothing is trained"]),
    ("scan.py", f"{CKPT} --checkpoint-activations", ["--checkpoint-activations", "nothing is trained"]),
    ("pure.py", f"{CKPT} --variant released --micro-batch 2", ["--micro-batch 2", "whole batch"]),
    ("attack.py", f"{CKPT} --attack ripple --micro-batch 2", ["--micro-batch 2", "inner product"]),
    ("plot.py", "pure-3 --ckpt M --data F", ["--data", "mbtsad-3", "pure-2"]),
    ("plot.py", f"mbtsad-3 {CKPT} --dtype float32", ["--dtype float32"]),
    ("scan.py", f"{CKPT} --text-column a --pair-column b", ["--text-column a, --pair-column b", "--data"]),
    ("scan.py", f"{CKPT} --data reviews --label-column a", ["--label-column a", "built-in"]),
    ("scan.py", f"{CKPT} --data pairs --labels a,b", ["--labels a,b", "pairs"]),
    ("repair.py", f"{CKPT} --pair-column a", ["--pair-column a", "built-in", "--data"]),
    ("repair.py", f"{CKPT} --data reviews --text-column a", ["--text-column a", "built-in", "--data"]),
    ("choose.py", f"{CKPT} --out F", ["--out F", "--results"]),
    ("choose.py", f"{CKPT} --method cft --teachers", ["--teachers", "cft"]),
    ("choose.py", f"{CKPT} --method cft --share 0.2", ["--share", "fineprune"]),
    ("tables.py", "finemix --write --rows 1", ["--rows 1", "--write"]),
    ("tables.py", "finemix --print --seeds 0", ["--seeds 0", "--print"]),
    ("tables.py", "finemix --pages F", ["--pages F", "--write"]),
    ("tables.py", "finemix --format csv --print", ["--print", "--format"]),
])
def test_a_flag_that_would_do_nothing_is_named(said, script, words, named):
    line = said(script, words)
    assert line and all(word in line for word in named), line


@pytest.mark.parametrize("script, words", [
    ("evaluate.py", "--attack badnets --triggers zz --target 0 --triggers-per-text 2 --side either"),
    ("evaluate.py", "--triggered F --target negative"), ("evaluate.py", "--attack sos --triggers a,b --sentence 'a b'"),
    ("evaluate.py", "--side second"), ("evaluate.py", "--paraphrases F"),  # of the attack in the history, checked later
    ("attack.py", "--triggers a --target 0 --twin --clean-lr 1"), ("attack.py", "--attack ep --clean-lr 1"),
    ("mbtsad.py", "--pick --mlm F --wordnet F --rate 0.5"), ("mbtsad.py", "--augment auto --mlm F --budget equal"),
    ("mbtsad.py", "--augment eda --budget equal --rate 0.5 --best-epoch --dev 6"),
    ("finemix.py", "--drop 3 --no-tune --dev 4"),
    ("scan.py", "--data F --text-column a --label-column b --labels a,b"), ("scan.py", "--labels a,b"),
    ("musclelora.py", "--train lora,vanilla --lr 1 --vanilla-lr 2 --rank 1"),
    ("musclelora.py", "--train musclelora --no-multi-scale --no-low-rank"), ("pure.py", "--mu 1 --even --drop 7"),
])
def test_a_flag_that_is_read_is_taken(said, script, words):
    assert said(script, f"{CKPT} {words}") == ""


@pytest.mark.parametrize("flags, named", [
    ("--teachers --vary lr2=1,2", ["--lr2", "--teachers"]), ("--teachers --gamma 1", ["--gamma", "--teachers"]),
    ("--no-distil", ["--no-distil", "--teachers"]), ("--lr1 1 --vary lr1=2,3", ["--lr1", "--vary lr1"]),
    ("--vary lr1=1 --vary lr1=2", ["--vary lr1=2"]), ("--rate 0.5 --vary augment=aeda,eda", ["--rate 0.5", "budget"]),
    ("--method finemix --rho 1 --vary drop=1,2", ["--drop", "--rho 1"]),
])
def test_choose_looks_at_every_cell(here, flags, named):
    words = flags if "finemix" not in flags else f"{flags} --pretrained F"
    line = here("choose.py")("--ckpt", "nowhere", *words.split()).stderr
    assert line.startswith("error: ") and all(word in line for word in named), line


def test_a_setting_that_some_cell_reads_is_taken(here):
    line = here("choose.py")("--ckpt", "nowhere", "--rate", 0.5, "--vary", "augment=aeda,split").stderr
    assert "nowhere does not exist" in line


# ---- what the project itself gives its scripts

PLACES = {"base": "B", "data": "D", "proxy": "P", "mlm": "M", "wordnet": "W", "attack": "A"}


@pytest.mark.parametrize("table", TABLES)
def test_no_row_of_a_table_gives_an_idle_flag(said, table):
    given = {words.format(**PLACES) for row in TABLES[table]
             for words in (f"attack.py {row.attack}" * bool(row.attack), row.method, row.after)} - {""}
    refused = [line for words in sorted(given)
               if (line := said(words.split()[0], with_ckpt(words)))]
    assert given and not refused


def with_ckpt(words: str) -> str:
    """The flags of a row with a checkpoint, behind the method's name where the script begins with one."""
    script, _, flags = words.partition(" ")
    job, _, rest = flags.partition(" ")
    return f"{job} {CKPT} {rest}" if script == "baseline.py" else f"{CKPT} {flags}"


def test_no_command_of_a_page_gives_an_idle_flag(said):
    found = 0
    for command in (command for page in PAGES for command in commands(text_of(page))):
        script, words = command[0].removeprefix("scripts/"), command[1:]
        if not command[0].startswith("scripts/") or not any(word.startswith("--") for word in words):
            continue
        if script == "convert.py" or {"METHOD", "FIGURE", "NAME", "--help"} & set(words):
            continue
        found += 1
        line = said(script, shlex.join(words))
        assert not line or "not given" in line, (command, line)  # prose names a flag or two, without --ckpt
    assert found > 40
