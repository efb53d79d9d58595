#!/usr/bin/env python3
"""Measure our speed against the usual implementation's in one run; results are ratios.

    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER
    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER --order length
    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER --shape bert-base --profile
    python scripts/bench.py prune --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER
    python scripts/bench.py scan --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER --dtype auto
    python scripts/bench.py filters --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER --lm GPT2_FOLDER
    python scripts/bench.py augment --data SST2_FOLDER --wordnet /usr/share/wordnet --ckpt MINILM_FOLDER
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER
    python scripts/bench.py train --ckpt MINILM_FOLDER --data SST2_FOLDER --quick
    python scripts/bench.py train --ckpt MINILM_FOLDER --data SST2_FOLDER --dtype bfloat16
    python scripts/bench.py evaluation --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER
    python scripts/bench.py pure --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER
    python scripts/bench.py long --ckpt MINILM_FOLDER --shape bert-base --tokens 512 --micro-batch 2 \
        --checkpoint-activations
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER --shape bert-base --dtype bfloat16
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER --shape llama-7b --dtype bfloat16

encoders: our BERT against transformers' (from the extra `test`) with the same weights on the same batches, padded to
the longest text of a batch: forward and forward + backward, with attention maps (transformers: "eager") and without
("sdpa"). The two alternate, batch by batch; a figure is the median over batches and rounds of the seconds per batch.

prune: PURE's head pruning on the dev rows, down to 7 points below the classifier's accuracy, against a loop that
computes the accuracy on all rows after each head: with texts of similar length in a batch, and with texts in file
order, padded to 128 tokens and without packing, as in the released code. All three must prune the same heads. Seconds
of processor time (on CUDA seconds). --rows N: of the dev rows the first N. Only --ckpt, --data (with dev rows),
--batch-size, --rows and --device apply.

evaluation: the answers to --batches times --batch-size rows, from text to class, as evaluate.py finds them, and as the
usual loop does with transformers (sdpa): --batch-size rows of the file, tokenized and padded to the longest. In float32
both must give the same answers. Reported as for train.

pure: PURE whole, in the three parts of a run, ours and the usual way: fine-tuning on --batches batches, head pruning on
--rows dev rows (the plain loop padded to 128 tokens, of our model, since transformers 5 prunes no heads), fine-tuning
with the attention penalty on the same batches (eager, random batches padded to their longest). Whole is their sum, in
the shares of --batches and --rows; a run's own shares stand in results/pure.md.

scan: the scan's first step, the shifts of single entries, on --batches times --batch-size entries drawn of the
vocabulary, in the hard rows that the scan takes: our insertion of ids, in batches without padding; and the usual loop
over transformers' model (sdpa): each text written and tokenized, --batch-size of them in a batch, padded, with the
same rows, and with the two surest rows of up to 12 words. A figure is the median over rounds of the milliseconds for an
entry. Both in the type of --dtype; the usual ways in float32, too.

filters: texts a second of ONION (with --lm), STRIP and BKI, ours and the toolkit's way written plainly with
transformers: ONION scores a text's deletions in padded batches of 32, tokenized anew, with the loss of every token
computed by the model and again by row; STRIP reads its copies in file order, 4 in a batch; BKI reads a text and its
deletions in a batch of their own. --batches times --batch-size training rows (--rounds times); both ways read the same
texts, and STRIP's copies are made beforehand. On the CPU the seconds are those that the processor works.

augment: texts per second of processor time, of our augmenters and of the usual ones (pip install nlpaug textaugment),
which alternate: on the first training rows of at least three words, and on texts of 200 words made of the rows.
textaugment's EDA reads the same WordNet through NLTK; both sample one of the four operations per text. CWEA, ours and
nlpaug's, gets 32 rows and the BERT of --ckpt as its masked language model, with a random head if it has none, which
takes as long. A figure is the median of the rounds, after one warm-up round.

align: one optimiser step of MuScleLoRA on --batch-size untrusted and as many clean texts, in three alternating ways:
our one pass for both gradients; our two passes; and the usual way (transformers, peft's LoRA at query and value, a
multi-scale layer by hand; two passes, each padded to its longest text; a loop over the tensors; torch's clipping and
AdamW). Reported: tokens without padding per second; a step's peak memory above what was allocated before it; and the
blocks' matrix products (of tokens without padding, forward and back to the inputs) as a share of the speed of one large
matrix product.

train: MBTSAD's two trainings on --batches batches of --batch-size rows: TS-FT, and distillation from a teacher; ours
(fit's own parts: batches of like length, packed; the visited word rows; one optimiser), and the usual way:
transformers' eager attention, random batches padded to their longest text, torch's AdamW over all weights, maps and
hidden states as the model gives them. Ours distils twice: asking the teacher, and with its outputs kept, as from the
second epoch on. All alternate, batch by batch. Reported: seconds of processor time for the same texts (on CUDA
seconds), their ratio over rounds with its range, real tokens a second, peak memory of a first step, and the blocks'
matrix products of real tokens as a share of one large product's speed, measured in the same run. --quick: 2 batches of
16, 2 rounds.

long: time and peak memory of one step of MBTSAD's distillation, PURE and MuScleLoRA (one pass for both groups) on
--batch-size texts of --tokens tokens each, with --micro-batch and --checkpoint-activations. With micro-batches the
first turn and the optimiser's step are run, and the time is that of all turns, which are alike.
"""
from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibd.cli import Idle, main, parse, setting

if TYPE_CHECKING:
    from minibd.data import Splits

SHAPES = {"bert-base": dict(hidden=768, layers=12, heads=12, ffn=3072),
          "bert-large": dict(hidden=1024, layers=24, heads=16, ffn=4096),
          "llama-7b": dict(hidden=4096, layers=32, heads=32, ffn=11008, positions=4096)}
MU = 0.05  # the untrusted gradient's share in `align`


@dataclass(frozen=True, slots=True)
class Bench:
    """What is timed, and on what"""
    ckpt: str = setting("", "a Hugging Face folder of a BERT: its tokenizer, and the model of --shape own (required)")
    data: str = setting("", "folder or file of rows, for real lengths; encoders, without it: the built-in reviews")
    shape: str = setting("own", "own: the model of --ckpt; with random weights: bert-base, 12 layers of 768; align "
                         "only: bert-large, 24 of 1024; llama-7b, 32 of 4096", choices=("own", *SHAPES))
    dtype: str = setting("float32", "align, evaluation, filters, scan, train, long: type of the matrix products; "
                         "bfloat16 is autocast (the usual way is timed in float32, too), for llama-7b also the type "
                         "of the weights; auto, scan only: as scan.py chooses",
                         choices=("float32", "bfloat16", "auto"))
    batch_size: int = setting(32, "texts per batch")
    batches: int = setting(8, "batches, from the start of the training rows")
    order: str = setting("file", "which texts share a batch: file, neighbours in the file; length, texts of similar "
                         "length, which leaves hardly any padding to save", choices=("file", "length"))
    rounds: int = setting(3, "times that each batch is timed")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    lm: str = setting("", "filters: a causal language model's folder, for ONION (default: ONION is left out)")
    wordnet: str = setting("", "augment: the folder of WordNet's files (required there)")
    tokens: int = setting(128, "long: tokens of each text")
    micro_batch: int | None = setting(None, "long: texts that go through the model at once (default: all)", kind=int)
    checkpoint_activations: bool = setting(False, "long: compute activations again in the backward pass")
    rows: int = setting(0, "prune, pure: how many dev rows, from the first on (0: all)")
    quick: bool = setting(False, "train: 2 batches of 16, 2 rounds")
    profile: bool = setting(False, "show where our time goes: the operators of forward + backward by their own time")


RULES = (
    Idle(("order",), lambda v: v.what != "encoders", "read by encoders alone, and not by {what}: leave it out"),
    Idle(("dtype",), lambda v: v.what not in ("align", "evaluation", "filters", "scan", "train", "long"),
         "read by align, evaluation, filters, scan, train and long, and not by {what}: leave it out"),
    Idle(("tokens", "micro_batch", "checkpoint_activations"), lambda v: v.what != "long",
         "read by long alone, and not by {what}: leave it out"),
    Idle(("quick",), lambda v: v.what != "train", "read by train alone, and not by {what}: leave it out"),
    Idle(("batches", "rounds", "batch_size"), lambda v: v.what == "train" and v.quick,
         "--quick sets all of them: leave one of the two out"),
    Idle(("rows",), lambda v: v.what not in ("prune", "pure"), "read by prune and pure, and not by {what}: leave it "
         "out"),
    Idle(("data", "batches", "rounds"), lambda v: v.what == "long", "long takes one step of drawn tokens: leave it "
         "out"),
    Idle(("lm",), lambda v: v.what != "filters", "read by filters alone, and not by {what}: leave it out"),
    Idle(("wordnet",), lambda v: v.what != "augment", "read by augment alone, and not by {what}: leave it out"),
    Idle(("shape",), lambda v: v.what not in ("encoders", "align", "train", "long"),
         "read by encoders, align, train and long alone, and not by {what}: leave it out"),
    Idle(("profile",), lambda v: v.what not in ("encoders", "align"),
         "read by encoders and align alone, and not by {what}: leave it out"),
    Idle(("batches", "rounds"), lambda v: v.what == "prune", "prune goes through all dev rows once: leave it out"),
    Idle(("dtype",), lambda v: v.what in ("align", "evaluation", "filters", "train", "long") and v.dtype == "auto",
         "{what} times float32 or bfloat16: name one"),
    Idle(("device",), lambda v: v.what == "augment", "augment measures the processor alone: leave it out"),
)


def splits_read(path: str, labels: tuple[str, ...] | None = None) -> Splits:
    """The rows of --data, all of a single file, since nothing is trained here."""
    from minibd import data
    from minibd.job.task import print_notes

    splits = data.read_splits(path, labels=labels, hold_out=False)
    print_notes(splits)
    return splits


def encoders(bench: Bench) -> None:
    import statistics
    import tempfile
    from pathlib import Path

    import torch

    from minibd import checkpoint, reviews
    from minibd.job.task import device_of
    from minibd.models.bert import Bert, BertConfig
    from minibd.records import BadInput, Batch
    try:
        from transformers import AutoModelForSequenceClassification
    except ImportError:
        raise BadInput("transformers, which encoders are timed against, is not installed: "
                       "pip install -e '.[test]'") from None

    if bench.shape not in ("own", "bert-base"):
        raise BadInput(f"encoders knows no shape {bench.shape}: give own or bert-base")
    device = device_of(bench.device)
    ckpt = checkpoint.load(bench.ckpt, device, labels=("0", "1"))
    if bench.shape == "bert-base":
        config = BertConfig(ckpt.model.config.vocab, **SHAPES["bert-base"])
        ckpt.model = Bert(config).init_weights(torch.Generator().manual_seed(0)).to(device).eval()
    wanted = bench.batches * bench.batch_size
    rows = splits_read(bench.data).train if bench.data else reviews.reviews(wanted, seed=0)
    encoded = ckpt.tokenizer.encode(rows[:wanted])
    order = range(len(encoded))
    if bench.order == "length":
        order = sorted(order, key=encoded.lengths.__getitem__)
    batches = [ckpt.tokenizer.batch(encoded, order[i:i + bench.batch_size]).to(device)
               for i in range(0, len(encoded) - bench.batch_size + 1, bench.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(ckpt, Path(folder) / "model")
        theirs = {want: AutoModelForSequenceClassification.from_pretrained(
            Path(folder) / "model", attn_implementation=kind).to(device).eval()
            for want, kind in ((False, "sdpa"), (True, "eager"))}

    def ours(batch: Batch, want: bool) -> tuple:
        output = ckpt.model(batch, ("attn", "hidden") if want else ())
        return output.logits, output.attn, output.hidden

    def transformers(batch: Batch, want: bool) -> tuple:
        output = theirs[want](
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            token_type_ids=batch.token_type_ids,
            output_attentions=want,
            output_hidden_states=want,
        )
        return output.logits, output.attentions or (), output.hidden_states or ()

    def step(run, batch: Batch, want: bool, backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            logits, maps, hidden = run(batch, want)
            if backward:
                # A loss like distillation's: it reaches every map and every hidden state that was returned.
                (logits.square().sum() + sum(x.square().mean() for x in (*maps, *hidden))).backward()

    real = sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)
    print(f"{bench.shape}, {bench.order} order: {ckpt.model.config.layers} layers of {ckpt.model.config.hidden}, "
          f"{len(batches)} batches of {bench.batch_size}, "
          f"{statistics.mean(b.ids.shape[1] for b in batches):.0f} tokens wide, {100 * real:.0f} % of them real; "
          f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':28}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    for backward in (False, True):
        for want in (False, True):
            ways = {way.__name__: lambda i, way=way: step(way, batches[i], want, backward)
                    for way in (ours, transformers)}
            for way in ways.values():
                seconds(lambda way=way: way(0), device)  # warm-up: memory is allocated, kernels are chosen
            mine, other = map(statistics.median, alternate(ways, len(batches), bench.rounds, device).values())
            name = ("forward + backward" if backward else "forward") + (", maps" if want else "")
            print(f"{name:28}{mine:9.4f}s{other:13.4f}s{other / mine:8.2f}", flush=True)

    if bench.profile:
        print_profile("where our time goes, forward + backward with maps",
                      lambda i: step(ours, batches[i], True, True), len(batches), top=8)


def classifier_and_rows(bench: Bench, needed: str):
    """The classifier of --ckpt, the splits of --data, the device. Raises BadInput, which says `needed`, where there
    are no rows or it is no classifier."""
    from minibd import checkpoint
    from minibd.job.task import device_of
    from minibd.records import BadInput

    header = checkpoint.read_header(bench.ckpt)
    if not (bench.data and header.labels):
        raise BadInput(needed)
    device = device_of(bench.device)
    return checkpoint.load(header, device), splits_read(bench.data, header.labels), device


def prune(bench: Bench) -> None:
    import torch

    ckpt, splits, device = classifier_and_rows(
        bench, "prune needs a classifier and dev rows: give --ckpt a fine-tuned folder and --data a folder with a "
               "dev file, or one file")
    rows = splits.dev or splits.test
    rows = rows.like(rows[:bench.rows or None])
    ways = prunings(ckpt, rows, bench.batch_size)
    print(f"{len(rows)} rows, {ckpt.model.head_mask.numel()} heads, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")
    first = None
    for name, way in ways.items():
        found: list[tuple] = []
        taken = clock(lambda way=way, found=found: found.append(way()), device)
        first = first or (found[0], taken)
        same = "the same" if found[0] == first[0] else "OTHERS"
        print(f"{name:28}{taken:9.2f}s{taken / first[1]:8.2f}   {len(found[0])} heads, {same}", flush=True)


def prunings(ckpt, rows, batch_size: int) -> dict:
    """{name: a function that prunes the model's heads by its accuracy on `rows`, and returns them}."""
    from dataclasses import replace

    import torch
    import torch.nn.functional as F

    from minibd.data import in_order
    from minibd.mitigations import pure
    from minibd.models import encoder

    model, tokenizer, settings = ckpt.model, ckpt.tokenizer, pure.PURE(drop=7.0)
    scores, width = pure.head_scores(model, tokenizer, rows), min(pure.PADDED, model.config.max_len)

    def plain(pad: int) -> tuple[pure.Head, ...]:
        encoded, heads = tokenizer.encode(rows), []
        batches = in_order([0] * len(rows) if pad else encoded.lengths, batch_size)

        @torch.inference_mode()
        def hits() -> int:
            right = 0
            for which in batches:
                batch = tokenizer.batch(encoded, which)
                more = max(0, pad - batch.ids.shape[1])
                batch = replace(batch, ids=F.pad(batch.ids, (0, more)), mask=F.pad(batch.mask, (0, more)),
                                token_type_ids=F.pad(batch.token_type_ids, (0, more))).to(model.head_mask.device)
                right += int((model(batch).logits.argmax(-1) == batch.labels).sum())
            return right

        needed = settings.needed(hits(), len(rows))
        for at in pure.prunable(scores, model.head_mask):
            model.head_mask[at] = 0.0
            heads.append(at)
            if hits() < needed:
                break
        return tuple(heads)

    def padded() -> tuple[pure.Head, ...]:
        usual, encoder.PACK = encoder.PACK, 0.0
        try:
            return plain(width)
        finally:
            encoder.PACK = usual

    def whole(way):
        def run() -> tuple[pure.Head, ...]:
            model.head_mask.fill_(1.0)
            return way()
        return run

    return {"ours": whole(lambda: pure.prune(model, tokenizer, rows, scores, settings)),
            "plain loop": whole(lambda: plain(0)), f"plain loop, padded to {width}": whole(padded)}


# ---- scan

LONGEST = 12  # words of the rows that a plain loop takes


def scan(bench: Bench) -> None:
    import random
    import statistics

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from minibd.detect.confirm import margins_of
    from minibd.detect.insertion import margins_with
    from minibd.detect.scan import Scan, probes_of
    from minibd.detect.search import middle, surest_of_two_classes
    from minibd.detect.table import entries_of
    from minibd.models.cast_once import only_asked
    from minibd.precision import dtype_of

    ckpt, splits, device = classifier_and_rows(
        bench, "scan needs a classifier and rows: give --ckpt a fine-tuned folder and --data a folder or file")
    rows = splits.test or splits.train
    model, tokenizer = ckpt.model.eval(), ckpt.tokenizer
    theirs = AutoModelForSequenceClassification.from_pretrained(bench.ckpt).eval().to(device)
    their_tokenizer, dtype = AutoTokenizer.from_pretrained(bench.ckpt), dtype_of(bench.dtype, device)
    probes, entries = probes_of(model, tokenizer, rows, Scan(), random.Random("0 rows")), entries_of(tokenizer)
    carriers = surest_of_two_classes(probes.carriers)
    short = [tokenizer.backend.decode(list(carrier.ids), skip_special_tokens=True) for carrier in carriers]
    among = [x for x in rows if len(x.text.split()) <= LONGEST]
    sure = margins_of(model, tokenizer, among)
    plain = [among[int(sure[:, c].argmax())].text for c in range(2)]
    words = [entries.words_of([i], tokenizer) for i in entries.ids.tolist()]
    chosen = random.Random(0).sample([i for i, word in enumerate(words) if word], bench.batches * bench.batch_size)

    def ours(i: int, kind: torch.dtype) -> None:
        with only_asked(kind, model):
            for carrier in carriers:
                margins_with(model, carrier, entries.ids[chosen][:, None], [middle(carrier)])

    def usual(texts: list[str], kind: torch.dtype) -> None:
        written = []
        for i in chosen:
            for text in texts:
                parts = text.split()
                written.append(" ".join([*parts[:len(parts) // 2], *words[i], *parts[len(parts) // 2:]]))
        with torch.inference_mode(), torch.autocast(device.type, kind, enabled=kind != torch.float32):
            for start in range(0, len(written), bench.batch_size):
                batch = their_tokenizer(written[start:start + bench.batch_size], padding=True, return_tensors="pt")
                theirs(**batch.to(device)).logits.float().cpu()

    ways = {"ours": lambda i: ours(i, dtype), "usual loop, the same rows": lambda i: usual(short, dtype),
            f"usual loop, rows of up to {LONGEST} words": lambda i: usual(plain, dtype)}
    if dtype != torch.float32:
        ways["ours, float32"] = lambda i: ours(i, torch.float32)
        ways["usual loop, the same rows, float32"] = lambda i: usual(short, torch.float32)
        ways[f"usual loop, rows of up to {LONGEST} words, float32"] = lambda i: usual(plain, torch.float32)
    print(f"{len(chosen)} entries; {' | '.join(short)}; {' | '.join(plain)}; {str(dtype).removeprefix('torch.')}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    times = alternate(ways, 1, bench.rounds, device)
    first = statistics.median(times["ours"])
    for name, taken in times.items():
        middle_time = statistics.median(taken)
        print(f"{name:48}{1000 * middle_time / len(chosen):9.2f} ms an entry{middle_time / first:8.2f}", flush=True)


# ---- filters

def filters(bench: Bench) -> None:
    import statistics
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from minibd import checkpoint
    from minibd.data import generator
    from minibd.filters.bki import Bki, keywords_of
    from minibd.filters.onion import RELEASED_BATCH, RELEASED_LENGTH, word_scores
    from minibd.filters.strip import Sources, Strip, copies_of
    from minibd.predict import at_once, probabilities
    from minibd.records import BadInput

    if bench.lm and not Path(bench.lm).is_dir():
        raise BadInput(f"--lm {bench.lm[:100]}: transformers reads it, too, so give a Hugging Face folder; convert.py "
                       "makes one of a file")
    ckpt, splits, device = classifier_and_rows(
        bench, "filters needs a classifier and rows: give --ckpt a fine-tuned folder and --data a folder or file")
    theirs = AutoModelForSequenceClassification.from_pretrained(bench.ckpt)
    theirs, tokenizer = theirs.eval().to(device), AutoTokenizer.from_pretrained(bench.ckpt)
    rows = splits.train.like(splits.train[:bench.batches * bench.batch_size])
    sources = Sources.of(splits.dev or rows)
    copies = rows.like(copy for x in rows for copy in copies_of(x, sources, Strip(copies=5), generator(0, x.id)))

    def usual_strip() -> list[float]:
        found = []
        with torch.inference_mode():
            for start in range(0, len(copies), 4):
                batch = tokenizer([x.text for x in copies[start:start + 4]], padding=True, truncation=True,
                                  return_tensors="pt").to(device)
                found += F.softmax(theirs(**batch).logits, -1).cpu().tolist()
        return found

    def usual_bki() -> list[list[float]]:
        found = []
        with torch.inference_mode():
            for x in rows:
                words = x.text.split()
                texts = [x.text, *(" ".join([*words[:i], *words[i + 1:]]) for i in range(len(words)))]
                batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
                h = theirs.base_model(**batch).last_hidden_state[:, 0]
                found.append([float((row - h[0]).abs().max().cpu()) for row in h[1:]])
        return found

    size = at_once(device)
    works = {"STRIP": (lambda: probabilities(ckpt.model, ckpt.tokenizer, copies, size), usual_strip, ckpt.model),
             "BKI": (lambda: keywords_of(ckpt, rows, Bki()), usual_bki, ckpt.model)}
    if bench.lm:
        lm = checkpoint.load(bench.lm, device)
        their_lm, lm_tokenizer = (kind.from_pretrained(bench.lm) for kind in (AutoModelForCausalLM, AutoTokenizer))
        their_lm = their_lm.eval().to(device)
        lm_tokenizer.pad_token = lm_tokenizer.eos_token or lm_tokenizer.convert_ids_to_tokens(lm.tokenizer.pad)

        def usual_onion() -> list[float]:
            found = []
            with torch.inference_mode():
                for x in rows:
                    words = x.text.split()
                    texts = [x.text, *(" ".join([*words[:i], *words[i + 1:]]) for i in range(len(words)))]
                    for start in range(0, len(texts), RELEASED_BATCH):
                        batch = lm_tokenizer(texts[start:start + RELEASED_BATCH], padding=True, truncation=True,
                                             max_length=RELEASED_LENGTH, return_tensors="pt").to(device)
                        logits = their_lm(**batch, labels=batch.input_ids).logits
                        found += [F.cross_entropy(logits[i, :-1], ids[1:]).exp().item()
                                  for i, ids in enumerate(batch.input_ids)]
            return found
        texts = [x.text.split() for x in rows]
        works["ONION"] = (lambda: word_scores(lm, texts), usual_onion, lm.model)
    dtype = getattr(torch, bench.dtype)
    print(f"{len(rows)} rows, {statistics.mean(len(x.text.split()) for x in rows):.1f} words; {bench.dtype}, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':28}{'texts a second':>16}{'ratio':>8}")
    for name, (ours, usual, model) in works.items():
        ways = {"ours": within(dtype, device, ours, model), "usual": within(dtype, device, usual)}
        if dtype != torch.float32:
            ways["usual float32"] = usual
        times = alternate({kind: lambda i, way=way: way() for kind, way in ways.items()}, 1, bench.rounds, device,
                          of_processor=True)
        took = {kind: statistics.median(times[kind]) for kind in ways}
        for kind, seconds_taken in took.items():
            print(f"{f'{name}, {kind}':28}{len(rows) / seconds_taken:16.1f}{seconds_taken / took['ours']:8.2f}",
                  flush=True)


# ---- align

def align(bench: Bench) -> None:
    import statistics

    import torch

    from minibd import checkpoint
    from minibd.job.task import device_of
    from minibd.models.bert import Bert
    from minibd.models.lora import PRESETS, preset
    from minibd.records import BadInput
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise BadInput("transformers and peft, which align is timed against, are not installed: "
                       "pip install -e '.[test]'") from None

    device, size = device_of(bench.device), bench.batch_size
    ckpt = checkpoint.load(bench.ckpt, device, labels=("0", "1"))
    generator = torch.Generator(device).manual_seed(0)
    if bench.shape != "own":
        ckpt.model = random_model(bench, ckpt.model.config.vocab, generator)
    model, numbers = ckpt.model, PRESETS[preset(ckpt.model)]
    if not (bench.shape == "llama-7b" or type(model) is Bert):
        raise BadInput(f"align is timed on a BERT, not on a {type(model).__name__}: give --ckpt a BERT's folder")
    separate, joined = two_group_batches(bench, ckpt.tokenizer, device)
    autocast = torch.autocast(device.type, torch.bfloat16,
                              enabled=bench.dtype == "bfloat16" and bench.shape != "llama-7b")

    theirs = peft_model(ckpt, numbers, generator)  # first: it reads the weights that ours then gets layers beside
    usual = usual_way(theirs, separate, autocast, takes_kinds=not model.causal)
    ours, params = our_ways(model, numbers, generator, separate, joined, size, autocast)
    ways = {**ours, "transformers + peft": usual}
    if bench.dtype == "bfloat16" and bench.shape != "llama-7b":
        ways["the same in float32"] = usual_way(theirs, separate, nullcontext(), takes_kinds=not model.causal)
    # Memory is measured in the first step of each way, which also warms it up.
    memory = {name: memory_growth(lambda way=way: seconds(lambda: way(0), device), device.type)
              for name, way in ways.items()}
    times = alternate(ways, bench.batches, bench.rounds, device)
    speed = product_speed(device, torch.bfloat16 if bench.dtype == "bfloat16" else torch.float32)

    tokens = statistics.mean(int(batch.mask.sum()) for batch in joined)
    padded = statistics.mean(batch.mask.numel() for both in separate for batch in both) * 2
    print(f"{bench.shape}: {model.config.layers} layers of {model.config.hidden}, "
          f"{sum(p.numel() for p in params)} trained numbers in {len(params)} tensors; {size} + {size} texts a step, "
          f"{100 * tokens / padded:.0f} % of the places real; {bench.dtype}, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print_steps(times, memory, tokens, block_weights(model), speed)
    if bench.profile:
        print_profile("where the time of our one pass goes", ours["ours, one pass"], bench.batches, top=12)


def random_model(bench: Bench, vocab: int, generator):
    """The model of --shape with random weights."""
    import torch

    from minibd.models.bert import Bert, BertConfig
    from minibd.models.llama import Llama, LlamaConfig

    with torch.device("meta"):
        if bench.shape == "llama-7b":
            model = Llama(LlamaConfig(vocab, **SHAPES[bench.shape], bottleneck=16))
            model = model.bfloat16() if bench.dtype == "bfloat16" else model
        else:
            model = Bert(BertConfig(vocab, **SHAPES[bench.shape]))
    model = model.to_empty(device=generator.device)
    model.head_mask.fill_(1.0)
    return model.init_weights(generator)


def two_group_batches(bench: Bench, tokenizer, device) -> tuple[list, list]:
    """Per step: the untrusted and the clean batch, each padded on its own, and both as one batch, on the CPU."""
    from minibd import reviews
    from minibd.records import BadInput

    size, needed = bench.batch_size, 2 * bench.batches * bench.batch_size
    rows = splits_read(bench.data).train if bench.data else reviews.reviews(needed, seed=0)
    encoded = tokenizer.encode(rows[:needed])
    if len(encoded) < needed:
        raise BadInput(f"{len(encoded)} rows are too few for {bench.batches} batches of {size} + {size} texts: lower "
                       "--batches or --batch-size")
    pairs = [tuple(range(start + i * size, start + (i + 1) * size) for start in (0, bench.batches * size))
             for i in range(bench.batches)]
    separate = [tuple(tokenizer.batch(encoded, which).to(device) for which in pair) for pair in pairs]
    return separate, [tokenizer.batch(encoded, [*first, *second]) for first, second in pairs]


def our_ways(model, numbers, generator, separate: list, joined: list, size: int, autocast) -> tuple[dict, list]:
    """Our two ways of a step, functions of its number, and the parameters they train. Adds the layers to `model`."""
    from minibd.align import AlignedAdamW, Groups, swap, twins_of
    from minibd.models.dropout import seed_dropout
    from minibd.models.lora import freeze, lora, multi_scale, with_groups
    from minibd.train import cross_entropy

    rank, alpha = lora_size(model)
    freeze(model)
    model.trim = True  # as the method does
    lora(model, rank=rank, alpha=alpha, generator=generator)
    multi_scale(model, bands=numbers.bands, bandwidth=numbers.bandwidth, alpha=numbers.alpha, generator=generator)
    seed_dropout(model.train(), generator)
    params = [p for p in model.parameters() if p.requires_grad]
    twins = twins_of(params)
    optimizer = AlignedAdamW(params, twins, lr=2e-5)
    optimizer.mu = MU

    def one_pass(i: int) -> None:
        optimizer.zero_grad()
        with with_groups(model, Groups(joined[i].mask, size), twins), autocast:
            values = cross_entropy(model, joined[i].to(generator.device))["cls"]
        (values[:size].mean() + values[size:].mean()).backward()
        optimizer.step()

    def two_passes(i: int) -> None:
        optimizer.zero_grad()
        for batch in separate[i]:
            with autocast:
                values = cross_entropy(model, batch)["cls"]
            values.mean().backward()
            swap(params, twins)
        optimizer.step()

    return {"ours, one pass": one_pass, "ours, two passes": two_passes}, params


def lora_size(model) -> tuple[int, float]:
    """LoRA's rank and alpha."""
    return (2, 8.0) if model.causal else (8, 32.0)


def multi_scale_layer(dense, numbers, generator):
    """`dense` with a multi-scale layer beside it, as one writes it by hand."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class MultiScale(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, k, device = dense, len(numbers.bands), generator.device
            self.K = torch.tensor(numbers.bands, dtype=dense.weight.dtype, device=device)
            self.L, self.R = (
                nn.Parameter(torch.empty(*shape, device=device).uniform_(-0.01, 0.01, generator=generator))
                for shape in ((k, dense.in_features), (dense.out_features, k)))

        def forward(self, x: Tensor) -> Tensor:
            scaled = F.linear(x, self.L.to(x.dtype)) * self.K
            return self.dense(x) + F.linear(scaled, self.R.to(x.dtype)) * numbers.alpha

    return MultiScale()


def peft_model(ckpt, numbers, generator):
    """transformers' model of our weights (a Llama: of our shape) with peft's LoRA and a multi-scale layer by hand."""
    import tempfile
    from pathlib import Path

    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from minibd import checkpoint

    model, device = ckpt.model, generator.device
    if model.causal:
        c = model.config
        config = LlamaConfig(vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
                             num_attention_heads=c.heads, intermediate_size=c.ffn, pad_token_id=0, num_labels=2)
        with torch.device(device):
            theirs = AutoModelForSequenceClassification.from_config(config, dtype=model.classifier.weight.dtype)
        dense, last = nn.Linear(c.hidden, 16, bias=False), nn.Linear(16, 2, bias=False)
        layer = multi_scale_layer(dense.to(theirs.score.weight), numbers, generator)
        theirs.score = nn.Sequential(layer, nn.Dropout(0.1), last.to(theirs.score.weight))
    else:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(ckpt, Path(folder) / "model")
            theirs = AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model").to(device)
        layer = theirs.bert.pooler.dense = multi_scale_layer(theirs.bert.pooler.dense, numbers, generator)
    rank, alpha = lora_size(model)
    theirs = get_peft_model(theirs, LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"] if model.causal else ["query", "value"])).train()
    for module in theirs.modules():
        if isinstance(module, type(layer)):
            module.L.requires_grad_(True)
            module.R.requires_grad_(True)
    return theirs


def usual_way(theirs, separate: list, autocast, takes_kinds: bool):
    """A step by hand, as a function of its number: two passes, a loop over the tensors, torch's AdamW."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    params = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0)

    def gradient(batch) -> list[Tensor]:
        optimizer.zero_grad()
        more = {"token_type_ids": batch.token_type_ids} if takes_kinds else {}
        with autocast:
            logits = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), **more).logits
        F.cross_entropy(logits.float(), batch.labels).backward()
        return [p.grad for p in params]

    def usual(i: int) -> None:
        untrusted, clean = map(gradient, separate[i])
        for p, g, r in zip(params, untrusted, clean):
            p.grad = g
            if g.norm() > 0 and r.norm() > 0:
                p.grad = (1 - MU) * (g * r).sum().abs() / r.square().sum() * r + MU * g
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return usual


def block_weights(model) -> int:
    """Weights of the blocks' matrix products, without the multi-scale layer's."""
    return sum(p.numel() for name, p in model.blocks.named_parameters()
               if p.dim() > 1 and not name.endswith((".L", ".R")))


def print_steps(times: dict, memory: dict, tokens: float, weights: int, speed: float) -> None:
    """A line per way; ratios are to the first."""
    import statistics

    print(f"{'':24}{'a step':>10}{'ratio':>8}{'tokens/s':>12}{'memory':>12}{'share':>8}")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        peak = "?" if memory[name] is None else f"{memory[name] / 2 ** 20:.0f} MiB"
        share = 100 * 4 * weights * tokens / median / speed  # 2 operations per weight and token, forward and back
        print(f"{name:24}{median:9.4f}s{median / first:8.2f}{tokens / median:12.0f}{peak:>12}{share:6.1f} %",
              flush=True)


# ---- measuring

def seconds(call, device, *, of_processor: bool = False) -> float:
    """Seconds that `call` takes, the device's work included; of_processor: on the CPU those that the processor works on
    it, which others that keep it busy change little."""
    import time

    import torch

    clock = time.process_time if of_processor and device.type == "cpu" else time.perf_counter
    started = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def alternate(ways: dict, batches: int, rounds: int, device, *, of_processor: bool = False) -> dict[str, list[float]]:
    """{name: the seconds of each call}: the ways alternate batch by batch, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for i in range(batches):
            for name, way in ways.items():
                times[name].append(seconds(lambda: way(i), device, of_processor=of_processor))
    return times


def product_speed(device, dtype, timed=seconds) -> float:
    """Operations per second of one large matrix product, the best of five."""
    import torch

    n = 8192 if device.type == "cuda" else 1024
    x = torch.ones(n, n, device=device, dtype=dtype)
    return 2 * n ** 3 / min(timed(lambda: x @ x, device) for _ in range(5))


def print_profile(title: str, way, batches: int, top: int) -> None:
    """The operators of `way` on all batches that take most time themselves."""
    import torch

    with torch.profiler.profile() as profile:
        for i in range(batches):
            way(i)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    print(title)
    for row in rows[:top]:
        print(f"  {100 * row.self_cpu_time_total / whole:5.1f} %  {row.count:6} calls  {row.key}")


def memory_growth(call, kind: str) -> int | None:
    """Peak bytes during `call` above those allocated before it; None if the system does not report them."""
    import ctypes
    import gc
    import re
    from pathlib import Path

    import torch

    gc.collect()
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is reused would not show
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    except OSError:
        call()
        return None

    def held(key: str) -> int:
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    before = held("VmRSS")
    call()
    return held("VmHWM") - before


# ---- train, long

def bench_model(bench: Bench):
    """The checkpoint of --ckpt with the model of --shape, and the device."""
    import torch

    from minibd import checkpoint
    from minibd.job.task import device_of
    from minibd.models.bert import Bert
    from minibd.records import BadInput

    if bench.shape == "llama-7b":
        raise BadInput("train and long are timed on a BERT: name another --shape than llama-7b")
    device = device_of(bench.device)
    ckpt = checkpoint.load(bench.ckpt, device, labels=("0", "1"))
    if bench.shape != "own":
        ckpt.model = random_model(bench, ckpt.model.config.vocab, torch.Generator(device).manual_seed(0))
    if type(ckpt.model) is not Bert:
        raise BadInput(f"trainings are timed on a BERT, not on a {type(ckpt.model).__name__}: give --ckpt a BERT")
    return ckpt, device


def clock(call, device) -> float:
    """Seconds of processor time that `call` takes, which other programs hardly change; on CUDA seconds."""
    import time

    if device.type == "cuda":
        return seconds(call, device)
    started = time.process_time()
    call()
    return time.process_time() - started


def train(bench: Bench) -> None:
    from dataclasses import replace

    import torch

    from minibd import reviews
    from minibd.data import batches
    from minibd.records import BadInput
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise BadInput("transformers, which train is timed against, is not installed: "
                       "pip install -e '.[test]'") from None

    bench = replace(bench, batches=2, batch_size=16, rounds=2) if bench.quick else bench
    ckpt, device = bench_model(bench)
    needed = bench.batches * bench.batch_size
    rows = (splits_read(bench.data).train if bench.data else reviews.reviews(needed, seed=0))[:needed]
    encoded = ckpt.tokenizer.encode(rows)
    if len(encoded) < needed:
        raise BadInput(f"{len(encoded)} rows are too few for {bench.batches} batches: lower --batches or --batch-size")
    alike = [ckpt.tokenizer.batch(encoded, which).to(device)
             for which in batches(encoded.lengths, bench.batch_size, seed=0, epoch=0)]
    order = torch.randperm(needed, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [ckpt.tokenizer.batch(encoded, order[i * bench.batch_size:(i + 1) * bench.batch_size]).to(device)
             for i in range(bench.batches)]
    dtype = getattr(torch, bench.dtype)
    half = torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)
    usual = {"usual": usual_trainings(ckpt, drawn, half)}
    if dtype != torch.float32:
        usual["usual float32"] = usual_trainings(ckpt, drawn, nullcontext())
    with our_trainings(ckpt, encoded, alike, dtype) as ours:
        ways = {"TS-FT, ours": ours["TS-FT"], **{f"TS-FT, {kind}": both["TS-FT"] for kind, both in usual.items()},
                "MBTSAD, ours": ours["MBTSAD"], "MBTSAD, teacher kept": ours["teacher kept"],
                **{f"MBTSAD, {kind}": both["MBTSAD"] for kind, both in usual.items()}}
        memory = {name: memory_growth(lambda way=way: way(0), device.type) for name, way in ways.items()}
        ours["teacher kept"](bench.batches)  # the others' teacher, too, is asked before what is timed
        times = by_round(ways, bench.batches, bench.rounds, device)
        speed = product_speed(device, dtype, clock)
    tokens = sum(encoded.lengths)
    passes = {name: 3 if name.startswith("TS-FT") or name.endswith("kept") else 4 for name in ways}  # 1: a forward one
    print(f"{bench.shape}: {ckpt.model.config.layers} layers of {ckpt.model.config.hidden}; {needed} texts, {tokens} "
          f"tokens, in batches of {bench.batch_size}; {bench.dtype}, {device}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}; one large product {speed / 1e9:.0f} GFLOP/s")
    print_figures(times, memory, tokens, {name: 2 * n * block_weights(ckpt.model) * tokens for name, n in
                                          passes.items()}, speed)


def within(dtype, device, way, *models):
    """`way` with its matrix products in `dtype`; `models`: ours, whose weights are cast once."""
    import torch

    from minibd.models.cast_once import only_asked

    def in_it():
        usual = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with only_asked(dtype, *models) if models else usual:
            return way()
    return in_it


def by_round(ways: dict, batches: int, rounds: int, device) -> dict[str, list[float]]:
    """{name: seconds that all batches took, by round}: the ways take turns, batch by batch."""
    times = {name: [0.0] * rounds for name in ways}
    for n in range(rounds):
        for i in range(batches):
            for name, way in ways.items():
                times[name][n] += clock(lambda way=way, i=i: way(i), device)
    return times


def figures(times: dict[str, list[float]], name: str, tokens: int) -> tuple[float, float, float, float, float]:
    """Of the way `name`: seconds, how many times those of "..., ours" beside it they are, the least and most of that
    over the rounds, and real tokens a second. Medians."""
    import statistics

    ours, took = times[f"{name.split(',')[0]}, ours"], times[name]
    ratios = [b / a for a, b in zip(ours, took, strict=True)]
    middle = statistics.median(took)
    return middle, statistics.median(ratios), min(ratios), max(ratios), tokens / middle


def print_figures(times: dict, memory: dict, tokens: int, operations: dict[str, float], speed: float) -> None:
    """A line for each way. operations: of the matrix products that real tokens need; speed: those of one large product
    a second."""
    print(f"{'':24}{'seconds':>9}{'ratio':>8}{'range':>14}{'tokens/s':>10}{'memory':>11}{'share':>8}")
    for name in times:
        took, ratio, low, high, pace = figures(times, name, tokens)
        peak = "?" if memory.get(name) is None else f"{memory[name] / 2 ** 20:.0f} MiB"
        share = f"{100 * operations[name] / took / speed:.1f} %" if name in operations else ""
        print(f"{name:24}{took:9.2f}{ratio:8.2f}{f'{low:.2f}-{high:.2f}':>14}{pace:10.0f}{peak:>11}{share:>8}",
              flush=True)


def evaluation(bench: Bench) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from minibd.predict import predict

    ckpt, splits, device = classifier_and_rows(
        bench, "evaluation needs a classifier and rows: give --ckpt a fine-tuned folder and --data a folder or file")
    rows = splits.test or splits.dev or splits.train
    rows = rows.like(rows[:bench.batches * bench.batch_size])
    theirs = AutoModelForSequenceClassification.from_pretrained(bench.ckpt).eval().to(device)
    their_tokenizer, answers = AutoTokenizer.from_pretrained(bench.ckpt), {}

    @torch.inference_mode()
    def usual() -> list[int]:
        found = []
        for start in range(0, len(rows), bench.batch_size):
            some = rows[start:start + bench.batch_size]
            batch = their_tokenizer([x.text for x in some], *([[x.pair for x in some]] if some[0].pair else []),
                                    padding=True, truncation=True, return_tensors="pt").to(device)
            found += theirs(**batch).logits.argmax(-1).tolist()
        return found

    def kept(name: str, way):
        return lambda i: answers.__setitem__(name, way())

    dtype = getattr(torch, bench.dtype)
    ways = {"answers, ours": kept("ours", within(dtype, device, lambda: predict(ckpt.model, ckpt.tokenizer, rows))),
            "answers, usual": kept("usual", within(dtype, device, usual))}
    if dtype != torch.float32:
        ways["answers, usual float32"] = kept("usual", usual)
    memory = {name: memory_growth(lambda way=way: way(0), device.type) for name, way in ways.items()}
    times, speed = by_round(ways, 1, bench.rounds, device), product_speed(device, dtype, clock)
    tokens = sum(ckpt.tokenizer.encode(rows).lengths)
    other = sum(a != b for a, b in zip(answers["ours"], answers["usual"], strict=True))
    print(f"{len(rows)} rows, {tokens} tokens, in batches of {bench.batch_size}; {bench.dtype}, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}; one large product {speed / 1e9:.0f} GFLOP/s; "
          f"{other} answers differ")
    print_figures(times, memory, tokens, dict.fromkeys(ways, 2 * block_weights(ckpt.model) * tokens), speed)


def pure(bench: Bench) -> None:
    import torch

    from minibd import checkpoint
    from minibd.data import batches
    from minibd.records import BadInput
    from minibd.train import cross_entropy

    ckpt, splits, device = classifier_and_rows(
        bench, "pure needs a classifier, training and dev rows: give --ckpt a fine-tuned folder and --data a "
               "folder with a dev file, or one file")
    needed, dev = bench.batches * bench.batch_size, splits.dev or splits.test
    dev, rows = dev.like(dev[:bench.rows or None]), splits.train[:needed]
    if len(rows) < needed:
        raise BadInput(f"{len(rows)} rows are too few for {bench.batches} batches: lower --batches or --batch-size")
    encoded = ckpt.tokenizer.encode(rows)
    alike = [ckpt.tokenizer.batch(encoded, which).to(device)
             for which in batches(encoded.lengths, bench.batch_size, seed=0, epoch=0)]
    order = torch.randperm(needed, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [ckpt.tokenizer.batch(encoded, order[i * bench.batch_size:(i + 1) * bench.batch_size]).to(device)
             for i in range(bench.batches)]
    ours, usual = our_penalty(ckpt, encoded, alike), usual_penalty(ckpt, drawn)
    cut = prunings(checkpoint.copy(ckpt), dev, bench.batch_size)
    plain = next(way for name, way in cut.items() if "padded" in name)
    heads = {}
    for name, way in (("ours", cut["ours"]), ("usual", plain)):
        heads[name] = way()  # both once before what is timed

    def all_of(step):
        return lambda i: [step(n) for n in range(bench.batches)]

    parts = {"FT": (all_of(lambda n: ours(n, cross_entropy)), all_of(lambda n: usual(n, False))),
             "pruning": (lambda i: cut["ours"](), lambda i: plain()),
             "normalisation": (all_of(lambda n: ours(n, None)), all_of(lambda n: usual(n, True)))}
    ways = {f"{part}, {kind}": way for part, both in parts.items() for kind, way in zip(("ours", "usual"), both)}
    memory = {name: None if name.startswith("pruning") else memory_growth(lambda way=way: way(0), device.type)
              for name, way in ways.items()}
    times = by_round(ways, 1, bench.rounds, device)
    for kind in ("ours", "usual"):
        times[f"whole, {kind}"] = [sum(took) for took in zip(*(times[f"{part}, {kind}"] for part in parts))]
    print(f"{needed} texts in batches of {bench.batch_size}, {sum(encoded.lengths)} tokens; {len(dev)} dev rows, "
          f"{len(heads['ours'])} heads fall, {'the same' if heads['ours'] == heads['usual'] else 'OTHERS'}; {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print_figures(times, memory, sum(encoded.lengths), {}, 1.0)


def our_penalty(ckpt, encoded, batches: list):
    """step(i, loss) of fit's parts on batch i; without a loss that of PURE."""
    import torch

    from minibd import checkpoint
    from minibd.mitigations.pure import attention_penalty
    from minibd.models.dropout import seed_dropout
    from minibd.train import Schedule, backward, dense_optimizer

    model = checkpoint.copy(ckpt).model.train()
    dropout = torch.Generator(model.head_mask.device).manual_seed(0)
    seed_dropout(model, dropout)
    optimizer, lambdas = dense_optimizer(model, Schedule(2e-5, 1)), torch.ones(model.config.layers)

    def penalised(model, batch):
        out = model(batch, ("attn",))
        right = torch.nn.functional.cross_entropy(out.logits.float(), batch.labels, reduction="none")
        return {"cls": right, "norm": attention_penalty(out.attn, batch.mask, model.head_mask, lambdas)}

    def step(i: int, loss) -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(model, batches[i], loss or penalised, {"norm": 0.1}, dtype=torch.float32, most=len(batches[i].labels),
                 dropout=dropout)
        optimizer.step()

    return step


def usual_penalty(ckpt, batches: list):
    """step(i, whether with the penalty) of transformers' model, as it is usually written."""
    import tempfile
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForSequenceClassification

    from minibd import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(ckpt, Path(folder) / "model")
        model = AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model", attn_implementation="eager")
    model = model.to(ckpt.model.head_mask.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)

    def step(i: int, penalty: bool) -> None:
        batch = batches[i]
        optimizer.zero_grad()
        out = model(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.token_type_ids,
                    output_attentions=penalty)
        total = F.cross_entropy(out.logits, batch.labels)
        if penalty:
            total = total + 0.1 * sum(a[:, :, 0].norm(dim=-1).sum(1).mean() for a in out.attentions)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total.item()

    return step


@contextmanager
def our_trainings(ckpt, encoded, batches: list, dtype):
    """{name: step} of fit's parts, one step on batch i."""
    import torch

    from minibd import checkpoint
    from minibd.mitigations.mbtsad import MBTSAD, distill_terms, over_heads
    from minibd.models.cast_once import cast_once
    from minibd.models.dropout import seed_dropout
    from minibd.models.kept_outputs import KeptOutputs, keys_of
    from minibd.train import Schedule, backward, cross_entropy, usual_optimizer

    student, tuned, settings = checkpoint.copy(ckpt).model, checkpoint.copy(ckpt).model, MBTSAD()
    teacher, schedule = checkpoint.copy(ckpt).model.eval(), Schedule(2e-5, 1)

    plan = [[where[key] for key in keys_of(batch)] for where in [
        {(tuple(ids), tuple(kinds)): i for i, (ids, kinds) in enumerate(zip(encoded.ids, encoded.token_type_ids))}]
        for batch in batches]
    outputs = KeptOutputs(teacher, ckpt.tokenizer, encoded, plan, want=("attn", "hidden"), most=1 << 34,
                          sums=lambda maps: over_heads(maps, 2.0))

    def distil(model, batch):
        with torch.no_grad():
            taught = teacher(batch, ("attn", "hidden"))
        return distill_terms(model(batch, ("attn", "hidden")), taught, batch, settings)

    def distil_kept(model, batch):
        return distill_terms(model(batch, ("attn", "hidden")), outputs(batch), batch, settings)

    def kept(i: int) -> None:
        if i < len(batches):
            return step(student, second, distil_kept, i)
        for batch in batches:
            outputs(batch)

    def step(model, optimizer, loss, i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(model, batches[i], loss, settings.weights, dtype=dtype, most=len(batches[i].labels), dropout=dropout)
        optimizer.step()

    dropout = torch.Generator(student.head_mask.device).manual_seed(0)
    for model in (student, tuned):
        seed_dropout(model.train(), dropout)
    with usual_optimizer(tuned, ckpt.tokenizer, encoded, schedule) as first, cast_once(teacher, dtype, whole=True), \
            usual_optimizer(student, ckpt.tokenizer, encoded, schedule) as second:
        yield {"TS-FT": lambda i: step(tuned, first, cross_entropy, i),
               "MBTSAD": lambda i: step(student, second, distil, i), "teacher kept": kept}


def usual_trainings(ckpt, batches: list, autocast) -> dict:
    """The same of transformers' model, as it is usually written."""
    import tempfile
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForSequenceClassification

    from minibd import checkpoint
    from minibd.mitigations.mbtsad import MBTSAD

    def loaded():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(ckpt, Path(folder) / "model")
            model = AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model",
                                                                       attn_implementation="eager")
        return model.to(ckpt.model.head_mask.device).train()

    tuned, student, teacher, settings = loaded(), loaded(), loaded().eval(), MBTSAD()

    def inputs(batch) -> dict:
        return {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "token_type_ids": batch.token_type_ids}

    def q(maps):
        f = maps.float().pow(2).sum(1)
        return f / (f.norm(dim=(1, 2), keepdim=True) + 1e-6)

    def ts_ft(batch):
        return F.cross_entropy(tuned(**inputs(batch)).logits.float(), batch.labels)

    def distil(batch):
        asked = {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            taught = teacher(**inputs(batch), **asked)
        out = student(**inputs(batch), **asked)
        attention = sum((q(s) - q(t)).norm(dim=(1, 2)).mean() for s, t in zip(out.attentions, taught.attentions))
        hidden = sum(F.mse_loss(s.float(), t.float()) for s, t in zip(out.hidden_states, taught.hidden_states))
        return settings.alpha * attention + settings.beta * hidden + F.cross_entropy(out.logits.float(), batch.labels)

    def way(model, loss):
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)

        def step(i: int) -> None:
            optimizer.zero_grad()
            with autocast:
                total = loss(batches[i])
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total.item()
        return step

    return {"TS-FT": way(tuned, ts_ft), "MBTSAD": way(student, distil)}


def long(bench: Bench) -> None:
    from math import ceil

    import torch

    from minibd import checkpoint
    from minibd.align import AlignedAdamW, Groups, twins_of
    from minibd.mitigations.mbtsad import MBTSAD, distill_terms
    from minibd.mitigations.pure import attention_penalty
    from minibd.models.dropout import seed_dropout
    from minibd.models.lora import PRESETS, freeze, lora, multi_scale, preset, with_groups
    from minibd.records import BadInput, Batch
    from minibd.train import Schedule, cross_entropy, dense_optimizer, weighted

    ckpt, device = bench_model(bench)
    if not 3 <= bench.tokens <= ckpt.model.config.max_len:
        raise BadInput(f"--tokens {bench.tokens}: the model takes 3 to {ckpt.model.config.max_len}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(200, ckpt.model.config.vocab, (bench.batch_size, bench.tokens), generator=generator)
    whole = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids),
                  torch.arange(bench.batch_size) % 2).to(device)
    turns = min(bench.batch_size, ceil(bench.batch_size / (bench.micro_batch or bench.batch_size)))
    batch = whole.in_turns(turns)[0] if turns > 1 else whole
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bench.dtype == "bfloat16")
    settings, lambdas = MBTSAD(), torch.ones(ckpt.model.config.layers)

    def made():
        model = checkpoint.copy(ckpt).model.train()
        model.recompute = bench.checkpoint_activations
        seed_dropout(model, torch.Generator(device).manual_seed(0))
        return model

    def mbtsad():
        model, teacher = made(), checkpoint.copy(ckpt).model.eval()

        def loss():
            with torch.no_grad():
                taught = teacher(batch, ("attn", "hidden"))
            return weighted(distill_terms(model(batch, ("attn", "hidden")), taught, batch, settings), settings.weights)
        return loss, dense_optimizer(model, Schedule(2e-5, 1))

    def pure():
        model = made()

        def loss():
            out = model(batch, ("attn",))
            right = torch.nn.functional.cross_entropy(out.logits.float(), batch.labels, reduction="none")
            return right + settings.gamma * attention_penalty(out.attn, batch.mask, model.head_mask, lambdas)
        return loss, dense_optimizer(model, Schedule(2e-5, 1))

    def musclelora():
        model, numbers = made(), PRESETS[preset(ckpt.model)]
        freeze(model)
        model.trim, n = True, len(batch.labels) // 2
        lora(model, rank=8, alpha=32, generator=torch.Generator(device).manual_seed(0))
        multi_scale(model, bands=numbers.bands, bandwidth=numbers.bandwidth, alpha=numbers.alpha,
                    generator=torch.Generator(device).manual_seed(0))
        trained = [p for p in model.parameters() if p.requires_grad]
        twins = twins_of(trained)

        def loss():
            with with_groups(model, Groups(batch.mask, n), twins):
                return cross_entropy(model, batch)["cls"]
        return loss, AlignedAdamW(trained, twins, lr=2e-5)

    print(f"{bench.shape}: {ckpt.model.config.layers} layers of {ckpt.model.config.hidden}; {bench.batch_size} texts "
          f"of {bench.tokens} tokens in {turns} turns{', activations again' if bench.checkpoint_activations else ''}; "
          f"{bench.dtype}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'a step':14}{'seconds':>10}{'tokens/s':>10}{'memory':>12}")
    for name, way in {"MBTSAD": mbtsad, "PURE": pure, "MuScleLoRA": musclelora}.items():
        if name == "MuScleLoRA" and len(batch.labels) < 2:
            print(f"{name:14}   needs two texts a turn, one of each group", flush=True)
            continue
        loss, optimizer = way()
        took = {}

        def step():
            with autocast:
                took["turn"] = -clock(lambda: None, device)
                values = []
                took["turn"] += clock(lambda: values.append(loss()), device)
            took["turn"] += clock(lambda: batch.mean(values[0]).backward(), device)
            took["step"] = clock(optimizer.step, device)
        peak = memory_growth(step, device.type)
        whole_step = took["turn"] * turns + took["step"]
        shown = "?" if peak is None else f"{peak / 2 ** 20:.0f} MiB"
        print(f"{name:14}{whole_step:10.2f}{bench.batch_size * bench.tokens / whole_step:10.0f}{shown:>12}", flush=True)


# ---- augment

def augment(bench: Bench) -> None:
    import random

    from minibd import reviews
    from minibd.records import BadInput
    try:
        import nltk.corpus.reader.wordnet  # noqa: F401
        import textaugment  # noqa: F401
        from nlpaug.augmenter.word import ContextualWordEmbsAug, SplitAug  # noqa: F401
        from nlpaug.model.lang_models import Bert  # noqa: F401
    except ImportError as error:
        raise BadInput(f"{error.name}, which the augmenters are timed against, is not installed: "
                       "pip install nlpaug textaugment") from None

    wanted, rng = bench.batches * bench.batch_size, random.Random(0)
    rows = splits_read(bench.data).train if bench.data else reviews.reviews(wanted, seed=0)
    short = [x.text for x in rows if len(x.text.split()) >= 3][:wanted]  # textaugment's AEDA raises on fewer words
    words = " ".join(x.text for x in rows).split()
    long = [" ".join(words[i:i + 200]) for i in range(0, len(words) - 199, 200)][:bench.batch_size]
    compare_word_augmenters(bench, {"rows": short, "200 words": long}, rng)
    compare_contextual(bench, short, rng)


def compare(name: str, texts: list[str], ours, theirs, rounds: int) -> None:
    """Print texts per second of processor time of both, the median of the rounds after a warm-up round."""
    import gc
    import statistics
    import time

    def processor_seconds(way) -> float:
        started = time.process_time()
        way(texts)
        return time.process_time() - started

    for way in (ours, theirs):
        way(texts)
    gc.collect()  # NLTK's WordNet is large: a collection in the midst of one round would be that way's time
    times = [[processor_seconds(way) for way in (ours, theirs)] for _ in range(rounds)]
    fast, slow = map(statistics.median, zip(*times))
    print(f"{name:28}{len(texts) / fast:12.1f}{len(texts) / slow:12.1f}{slow / fast:8.2f}", flush=True)


def compare_word_augmenters(bench: Bench, texts: dict[str, list[str]], rng) -> None:
    """Splitting, AEDA and EDA, ours against nlpaug's and textaugment's."""
    import sys
    import tempfile
    import warnings

    import textaugment
    from nlpaug.augmenter.word import SplitAug

    from minibd.augment import eda
    from minibd.augment.aeda import aeda
    from minibd.augment.split import split
    from minibd.augment.wordnet import WordNet

    synonyms = WordNet(bench.wordnet).synonyms

    def ours(augmenter, **more):
        return lambda texts: [augmenter(text, rng, **more) for text in texts]

    def each(augmenter):
        return lambda texts: [augmenter(text) for text in texts]

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns that other languages are missing
        give_wordnet_to_textaugment(bench.wordnet, folder)
        their_split, their_aeda = SplitAug(), textaugment.AEDA()
        their_eda = one_operation(textaugment.EDA(stop_words=sorted(eda.STOPWORDS)), rng)
        short, long = texts.values()
        print(f"{len(short)} rows and {len(long)} texts of 200 words; Python {sys.version.split()[0]}")
        print(f"{'texts a processor second':28}{'ours':>12}{'theirs':>12}{'ratio':>8}")
        for kind, of_kind in texts.items():
            for name, mine, other in (
                    ("splitting", ours(split), each(their_split.augment)),
                    ("AEDA", ours(aeda), each(their_aeda.punct_insertion)),
                    ("EDA", ours(eda.eda, synonyms=synonyms), each(their_eda)),
                    ("EDA released", ours(eda.eda, synonyms=synonyms, variant="released"), each(their_eda))):
                compare(f"{name}, {kind}", of_kind, mine, other, bench.rounds)


def give_wordnet_to_textaugment(wordnet: str, folder: str) -> None:
    """Copy WordNet's files to `folder` and have textaugment read them there, through NLTK, without a download."""
    import shutil
    from pathlib import Path

    import nltk
    import textaugment
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    shutil.copytree(wordnet, folder, dirs_exist_ok=True)
    if not (names := Path(folder) / "lexnames").exists():  # NLTK requires it, for features that are not used here
        names.write_text("".join(f"{i:02}\tlexname.{i}\t1\n" for i in range(45)))

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):  # for other languages
            return None
    nltk.data.path = [folder]
    nltk.download = lambda name: True  # textaugment asks for what it gets in the next line
    textaugment.eda.wordnet = Reader(folder, None)


def one_operation(eda, rng):
    """textaugment's EDA with one of its four operations per text, as ours."""
    operations = ("synonym_replacement", "random_insertion", "random_swap", "random_deletion")

    def augment_text(text: str) -> str:
        name, n = rng.choice(operations), max(1, int(0.1 * len(text.split())))
        return getattr(eda, name)(text, 0.1 if name == "random_deletion" else n)

    return augment_text


def compare_contextual(bench: Bench, short: list[str], rng) -> None:
    """Contextual substitution and insertion, ours against nlpaug's, with the same masked language model."""
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    import torch
    from nlpaug.augmenter.word import ContextualWordEmbsAug
    from nlpaug.model.lang_models import Bert as TheirBert

    from minibd import checkpoint
    from minibd.augment.contextual import each_contextual
    from minibd.models.bert import Bert

    # nlpaug 1.1.11 calls these by names that transformers 5 no longer has.
    TheirBert.token2id = lambda self, token: self.tokenizer.convert_tokens_to_ids(token)
    TheirBert.id2token = lambda self, i: self.tokenizer.convert_ids_to_tokens(i)
    ckpt = checkpoint.load(bench.ckpt)
    model = Bert(replace(ckpt.model.config, mlm=True, labels=0)).init_weights(torch.Generator().manual_seed(0)).eval()
    model.load_state_dict(ckpt.model.state_dict(), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(replace(ckpt, model=model, labels=()), Path(folder) / "model")
        theirs = ContextualWordEmbsAug(str(Path(folder) / "model"), "bert", top_k=100, device="cpu",
                                       batch_size=bench.batch_size)
    for action in ("substitute", "insert"):
        theirs.action = action

        def ours(texts: list[str]) -> list[str]:
            return each_contextual(texts, [rng] * len(texts), model, ckpt.tokenizer, action=action,
                                   batch_size=bench.batch_size)
        compare(f"CWEA {action}, rows", short[:32], ours, theirs.augment, bench.rounds)


def run() -> None:
    jobs = {"encoders": encoders, "train": train, "long": long, "evaluation": evaluation, "pure": pure, "prune": prune,
            "scan": scan, "filters": filters, "align": align, "augment": augment}
    name, bench = parse(__doc__, Bench, first=("what", tuple(jobs)), rules=RULES)
    jobs[name](bench)


if __name__ == "__main__":
    main(run)
