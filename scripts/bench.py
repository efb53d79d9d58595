#!/usr/bin/env python3
"""Our speed beside the usual implementation's, measured in one run, as ratios.

    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER
    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER --order length
    python scripts/bench.py encoders --ckpt MINILM_FOLDER --data SST2_FOLDER --shape bert-base --profile
    python scripts/bench.py prune --ckpt CLASSIFIER_FOLDER --data SST2_FOLDER
    python scripts/bench.py augment --data SST2_FOLDER --wordnet /usr/share/wordnet --ckpt MINILM_FOLDER
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER --shape bert-base --dtype bfloat16
    python scripts/bench.py align --ckpt MINILM_FOLDER --data SST2_FOLDER --shape llama-7b --dtype bfloat16 --device cuda

encoders: our BERT against transformers' (from the extra `test`) with the same weights on the same batches, padded to the longest text
of a batch: forward and forward + backward, attention maps wanted (transformers: "eager") and not ("sdpa"). The two take turns, batch
by batch; a figure is the median over batches and rounds of one batch's seconds.

prune: PURE's head pruning on the dev rows, down to 7 points under the classifier's accuracy, against a loop that asks for the accuracy on
all rows after each head: with texts of like length in a batch, and with texts in file order, padded to 128 tokens and nothing packed, as the
released code has it. All three must prune the same heads. Of the flags only --ckpt, --data (with dev rows), --batch-size and --device count.

augment: texts a second of processor time, of our augmenters and of the usual ones (pip install nlpaug textaugment), which take turns: on the
first training rows of three words and more, and on texts of 200 words made of the rows. textaugment's EDA reads the same WordNet through
NLTK; either draws one of the four operations a text. CWEA, ours and nlpaug's, gets 32 rows and the BERT of --ckpt as its masked language
model, a random head where it has none, which takes as long. A figure is the median of the rounds, after one that is not counted.

align: one optimiser step of MuScleLoRA on --batch-size untrusted and as many clean texts, three ways that take turns: our one pass for both
gradients; our two passes; and the usual way (transformers, peft's LoRA at query and value, a multi-scale layer by hand; two passes, each
padded to its longest text; a loop over the tensors; torch's clipping and AdamW). Real tokens a second; a step's peak memory above what was
held before it; the blocks' matrix products (of real tokens, forward and back to the inputs) as a share of what one large product reaches.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import main, parse, setting


@dataclass(frozen=True, slots=True)
class Bench:
    """What is timed, and on what"""
    ckpt: str = setting("", "a Hugging Face folder of a BERT: its tokenizer, and the model that --shape own times (required)")
    data: str = setting("", "folder or file of rows, for real lengths; encoders, without it: the built-in reviews")
    shape: str = setting("own", "own: the model of --ckpt; with random weights: bert-base, 12 layers of 768; align alone: bert-large, 24 of "
                         "1024; llama-7b, 32 of 4096", choices=("own", "bert-base", "bert-large", "llama-7b"))
    dtype: str = setting("float32", "align: type of the matrix products; bfloat16 is autocast, for llama-7b the weights' type, too",
                         choices=("float32", "bfloat16"))
    batch_size: int = setting(32, "texts a batch")
    batches: int = setting(8, "batches, taken from the start of the training rows")
    order: str = setting("file", "which texts share a batch: file, neighbours in the file; length, texts of like length, so that hardly any "
                         "padding is left to save", choices=("file", "length"))
    rounds: int = setting(3, "times that each batch is timed")
    device: str = setting("auto", "cpu, cuda, or auto: cuda where there is one")
    wordnet: str = setting("", "augment: the folder of WordNet's files (required there)")
    profile: bool = setting(False, "show where our time goes: the operators of forward + backward by their own time")


def encoders(bench: Bench) -> None:
    import statistics
    import tempfile
    import time
    from pathlib import Path

    import torch

    from minibd import checkpoint, data, reviews
    from minibd.job import device_of
    from minibd.models.bert import Bert, BertConfig
    from minibd.records import BadInput, Batch
    try:
        from transformers import AutoModelForSequenceClassification
    except ImportError:
        raise BadInput("transformers, which encoders are timed against, is not installed: pip install -e '.[test]'") from None

    if bench.shape not in ("own", "bert-base"):
        raise BadInput(f"encoders knows no shape {bench.shape}: give own or bert-base")
    device = device_of(bench.device)
    ckpt = checkpoint.load(bench.ckpt, device, labels=("0", "1"))
    if bench.shape == "bert-base":
        config = BertConfig(ckpt.model.config.vocab, hidden=768, layers=12, heads=12, ffn=3072)
        ckpt.model = Bert(config).init_weights(torch.Generator().manual_seed(0)).to(device).eval()
    rows = data.read_splits(bench.data).train if bench.data else reviews.reviews(bench.batches * bench.batch_size, seed=0)
    encoded = ckpt.tokenizer.encode(rows[:bench.batches * bench.batch_size])
    order = sorted(range(len(encoded)), key=encoded.lengths.__getitem__) if bench.order == "length" else range(len(encoded))
    batches = [ckpt.tokenizer.batch(encoded, order[i:i + bench.batch_size]).to(device)
               for i in range(0, len(encoded) - bench.batch_size + 1, bench.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(ckpt, Path(folder) / "model")
        theirs = {want: AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model", attn_implementation=kind).to(device).eval()
                  for want, kind in ((False, "sdpa"), (True, "eager"))}

    def ours(batch: Batch, want: bool) -> tuple:
        output = ckpt.model(batch, ("attn", "hidden") if want else ())
        return output.logits, output.attn, output.hidden

    def transformers(batch: Batch, want: bool) -> tuple:
        output = theirs[want](input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.token_type_ids,
                              output_attentions=want, output_hidden_states=want)
        return output.logits, output.attentions or (), output.hidden_states or ()

    def seconds(run, batch: Batch, want: bool, backward: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(backward):
            logits, maps, hidden = run(batch, want)
            if backward:
                # A loss of the kind that distillation has: it reaches every map and every hidden state that was asked for.
                (logits.square().sum() + sum(x.square().mean() for x in (*maps, *hidden))).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    real = sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)
    print(f"{bench.shape}, {bench.order} order: {ckpt.model.config.layers} layers of {ckpt.model.config.hidden}, {len(batches)} batches of {bench.batch_size}, "
          f"{statistics.mean(b.ids.shape[1] for b in batches):.0f} tokens wide, {100 * real:.0f} % of them real; {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':28}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    for backward in (False, True):
        for want in (False, True):
            times: dict = {ours: [], transformers: []}
            for run in times:
                seconds(run, batches[0], want, backward)  # warm: memory is allotted, kernels are chosen
            for _ in range(bench.rounds):
                for batch in batches:
                    for run, taken in times.items():
                        taken.append(seconds(run, batch, want, backward))
            mine, other = map(statistics.median, times.values())
            name = ("forward + backward" if backward else "forward") + (", maps" if want else "")
            print(f"{name:28}{mine:9.4f}s{other:13.4f}s{other / mine:8.2f}", flush=True)

    if bench.profile:
        with torch.profiler.profile() as profile:
            for batch in batches:
                seconds(ours, batch, True, True)
        rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
        whole = sum(row.self_cpu_time_total for row in rows)
        print("where our time goes, forward + backward with maps")
        for row in rows[:8]:
            print(f"  {100 * row.self_cpu_time_total / whole:5.1f} %  {row.count:6} calls  {row.key}")


def prune(bench: Bench) -> None:
    import time
    from dataclasses import replace

    import torch
    import torch.nn.functional as F

    from minibd import checkpoint, data
    from minibd.data import in_order
    from minibd.job import device_of
    from minibd.mitigations import pure
    from minibd.models import encoder
    from minibd.records import BadInput

    ckpt = checkpoint.load(bench.ckpt, device_of(bench.device))
    rows = data.read_splits(bench.data, labels=ckpt.labels or None).dev if bench.data else ()
    if not (rows and ckpt.labels):
        raise BadInput("prune needs a classifier and dev rows: give --ckpt a fine-tuned folder and --data a folder with a dev file")
    model, tokenizer, settings = ckpt.model, ckpt.tokenizer, pure.PURE(drop=7.0)
    scores, width = pure.head_scores(model, tokenizer, rows), min(pure.PADDED, model.config.max_len)

    def plain(pad: int) -> tuple[pure.Head, ...]:
        encoded, heads = tokenizer.encode(rows), []
        batches = in_order([0] * len(rows) if pad else encoded.lengths, bench.batch_size)

        @torch.inference_mode()
        def hits() -> int:
            right = 0
            for which in batches:
                batch = tokenizer.batch(encoded, which)
                more = max(0, pad - batch.ids.shape[1])
                batch = replace(batch, ids=F.pad(batch.ids, (0, more)), mask=F.pad(batch.mask, (0, more)), token_type_ids=F.pad(batch.token_type_ids, (0, more)))
                right += int((model(batch.to(model.head_mask.device)).logits.argmax(-1) == batch.labels.to(model.head_mask.device)).sum())
            return right

        needed = settings.needed(hits(), len(rows))
        for at in pure.may_fall(scores, model.head_mask):
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

    ways = {"ours": lambda: pure.prune(model, tokenizer, rows, scores, settings), "plain loop": lambda: plain(0), f"plain loop, padded to {width}": padded}
    print(f"{len(rows)} rows, {model.head_mask.numel()} heads, {torch.get_num_threads()} threads, torch {torch.__version__}")
    first = None
    for name, way in ways.items():
        model.head_mask.fill_(1.0)
        started = time.perf_counter()
        heads = way()
        seconds = time.perf_counter() - started
        first = first or (heads, seconds)
        print(f"{name:28}{seconds:9.2f}s{seconds / first[1]:8.2f}   {len(heads)} heads, {'the same' if heads == first[0] else 'OTHERS'}", flush=True)


def align(bench: Bench) -> None:
    import statistics
    import tempfile
    import time
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from minibd import checkpoint, data, reviews
    from minibd.align import AlignedAdamW, Groups, swap, twins_of
    from minibd.job import device_of
    from minibd.models.bert import Bert, BertConfig
    from minibd.models.dropout import seed_dropout
    from minibd.models.llama import Llama, LlamaConfig
    from minibd.models.lora import PRESETS, freeze, lora, multi_scale, preset, with_groups
    from minibd.records import BadInput, Batch
    from minibd.train import cross_entropy
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification
        from transformers import LlamaConfig as TheirLlamaConfig
    except ImportError:
        raise BadInput("transformers and peft, which align is timed against, are not installed: pip install -e '.[test]'") from None

    device, half = device_of(bench.device), bench.dtype == "bfloat16"
    ckpt = checkpoint.load(bench.ckpt, device, labels=("0", "1"))
    generator = torch.Generator(device).manual_seed(0)
    mu = 0.05
    shapes = {"bert-base": dict(hidden=768, layers=12, heads=12, ffn=3072), "bert-large": dict(hidden=1024, layers=24, heads=16, ffn=4096),
              "llama-7b": dict(hidden=4096, layers=32, heads=32, ffn=11008, positions=4096)}
    big = bench.shape == "llama-7b"
    if bench.shape != "own":
        vocab = ckpt.model.config.vocab
        with torch.device("meta"):
            model = Llama(LlamaConfig(vocab, **shapes[bench.shape], bottleneck=16)) if big else Bert(BertConfig(vocab, **shapes[bench.shape]))
        model = (model.bfloat16() if big and half else model).to_empty(device=device)
        model.head_mask.fill_(1.0)
        ckpt.model = model.init_weights(generator)
    model, numbers, size = ckpt.model, PRESETS[preset(ckpt.model)], bench.batch_size
    if not (big or type(model) is Bert):
        raise BadInput(f"align is timed on a BERT, not on a {type(model).__name__}: give --ckpt a BERT's folder")
    rank, scaling = (2, 8.0) if model.causal else (8, 32.0)

    rows = data.read_splits(bench.data).train if bench.data else reviews.reviews(2 * bench.batches * size, seed=0)
    encoded = ckpt.tokenizer.encode(rows[:2 * bench.batches * size])
    if len(encoded) < 2 * bench.batches * size:
        raise BadInput(f"{len(encoded)} rows are too few for {bench.batches} batches of {size} + {size} texts: lower --batches or --batch-size")
    pairs = [tuple(range(at + i * size, at + (i + 1) * size) for at in (0, bench.batches * size)) for i in range(bench.batches)]
    apart = [tuple(ckpt.tokenizer.batch(encoded, which).to(device) for which in pair) for pair in pairs]
    joined = [ckpt.tokenizer.batch(encoded, [*first, *others]) for first, others in pairs]

    # theirs, with the same weights where they fit through a folder
    class MultiScale(nn.Module):
        def __init__(self, dense: nn.Linear):
            super().__init__()
            self.dense, k = dense, len(numbers.bands)
            self.K = torch.tensor(numbers.bands, dtype=dense.weight.dtype, device=device)
            self.L = nn.Parameter(torch.empty(k, dense.in_features, device=device).uniform_(-0.01, 0.01, generator=generator))
            self.R = nn.Parameter(torch.empty(dense.out_features, k, device=device).uniform_(-0.01, 0.01, generator=generator))

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(x) + F.linear(F.linear(x, self.L.to(x.dtype)) * self.K, self.R.to(x.dtype)) * numbers.alpha

    if big:
        c = model.config
        shape = TheirLlamaConfig(vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers, num_attention_heads=c.heads,
                                 intermediate_size=c.ffn, pad_token_id=0, num_labels=2)
        with torch.device(device):
            theirs = AutoModelForSequenceClassification.from_config(shape, dtype=model.classifier.weight.dtype)
        dense, last = nn.Linear(c.hidden, 16, bias=False), nn.Linear(16, 2, bias=False)
        theirs.score = nn.Sequential(MultiScale(dense.to(theirs.score.weight)), nn.Dropout(0.1), last.to(theirs.score.weight))
    else:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(ckpt, Path(folder) / "model")
            theirs = AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model").to(device)
        theirs.bert.pooler.dense = MultiScale(theirs.bert.pooler.dense)
    theirs = get_peft_model(theirs, LoraConfig(r=rank, lora_alpha=scaling, lora_dropout=0.0,
                                               target_modules=["q_proj", "v_proj"] if big else ["query", "value"])).train()
    for module in theirs.modules():
        if isinstance(module, MultiScale):
            module.L.requires_grad_(True)
            module.R.requires_grad_(True)
    their_params = [p for p in theirs.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(their_params, lr=2e-5, weight_decay=0.0)

    freeze(model)
    model.trim = True  # as the method does
    lora(model, rank=rank, alpha=scaling, generator=generator)
    multi_scale(model, bands=numbers.bands, bandwidth=numbers.bandwidth, alpha=numbers.alpha, generator=generator)
    seed_dropout(model.train(), generator)
    params = [p for p in model.parameters() if p.requires_grad]
    twins = twins_of(params)
    ours = AlignedAdamW(params, twins, lr=2e-5)
    ours.mu = mu
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half and not big)

    def one_pass(i: int) -> None:
        ours.zero_grad()
        with with_groups(model, Groups(joined[i].mask, size), twins), autocast:
            values = cross_entropy(model, joined[i].to(device))["cls"]
        (values[:size].mean() + values[size:].mean()).backward()
        ours.step()

    def two_passes(i: int) -> None:
        ours.zero_grad()
        for batch in apart[i]:
            with autocast:
                values = cross_entropy(model, batch)["cls"]
            values.mean().backward()
            swap(params, twins)
        ours.step()

    def their_gradient(batch: Batch) -> list[Tensor]:
        adam.zero_grad()
        with autocast:
            logits = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), **({} if big else {"token_type_ids": batch.token_type_ids})).logits
        F.cross_entropy(logits.float(), batch.labels).backward()
        return [p.grad for p in their_params]

    def usual(i: int) -> None:
        raw, clean = map(their_gradient, apart[i])
        for p, g, r in zip(their_params, raw, clean):
            p.grad = g
            if g.norm() > 0 and r.norm() > 0:
                p.grad = (1 - mu) * (g * r).sum().abs() / r.square().sum() * r + mu * g
        nn.utils.clip_grad_norm_(their_params, 1.0)
        adam.step()

    def seconds(way, i: int) -> float:
        started = time.perf_counter()
        way(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def product_speed() -> float:
        """Operations a second of one large matrix product, the best of five."""
        n = 8192 if device.type == "cuda" else 1024
        x, taken = torch.ones(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32), []
        for _ in range(5):
            taken.append(seconds(lambda i: x @ x, 0))
        return 2 * n ** 3 / min(taken)

    tokens = statistics.mean(int(batch.mask.sum()) for batch in joined)
    wide = statistics.mean(batch.mask.numel() for both in apart for batch in both) * 2
    weights = sum(p.numel() for name, p in model.blocks.named_parameters() if p.dim() > 1 and not name.endswith((".L", ".R")))
    ways = {"ours, one pass": one_pass, "ours, two passes": two_passes, "transformers + peft": usual}
    times: dict[str, list[float]] = {name: [] for name in ways}
    grown = {name: _grown(lambda way=way: seconds(way, 0), device.type) for name, way in ways.items()}  # and warm
    for _ in range(bench.rounds):
        for i in range(bench.batches):
            for name, way in ways.items():
                times[name].append(seconds(way, i))
    speed = product_speed()
    print(f"{bench.shape}: {model.config.layers} layers of {model.config.hidden}, {sum(p.numel() for p in params)} trained numbers in "
          f"{len(params)} tensors; {size} + {size} texts a step, {100 * tokens / wide:.0f} % of the places real; {bench.dtype}, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':24}{'a step':>10}{'ratio':>8}{'tokens/s':>12}{'memory':>12}{'share':>8}")
    first = statistics.median(times["ours, one pass"])
    for name, taken in times.items():
        mid = statistics.median(taken)
        memory = "?" if grown[name] is None else f"{grown[name] / 2 ** 20:.0f} MiB"
        share = 100 * 4 * weights * tokens / mid / speed  # 2 operations a weight and token, forward and back
        print(f"{name:24}{mid:9.4f}s{mid / first:8.2f}{tokens / mid:12.0f}{memory:>12}{share:6.1f} %", flush=True)

    if bench.profile:
        with torch.profiler.profile() as profile:
            for i in range(bench.batches):
                one_pass(i)
        found = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
        whole = sum(row.self_cpu_time_total for row in found)
        print("where the time of our one pass goes")
        for row in found[:12]:
            print(f"  {100 * row.self_cpu_time_total / whole:5.1f} %  {row.count:6} calls  {row.key}")


def _grown(call, kind: str) -> int | None:
    """Bytes by which memory stood higher while `call` ran than before it; None where the system does not tell."""
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
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would be taken again, and not show
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    except OSError:
        call()
        return None

    def held(key: str) -> int:
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    before = held("VmRSS")
    call()
    return held("VmHWM") - before


def augment(bench: Bench) -> None:
    import random
    import shutil
    import statistics
    import sys
    import tempfile
    import time
    import warnings
    from dataclasses import replace
    from pathlib import Path

    import torch

    from minibd import checkpoint, data, reviews
    from minibd.augment import eda
    from minibd.augment.aeda import aeda
    from minibd.augment.contextual import each_contextual
    from minibd.augment.split import split
    from minibd.augment.wordnet import WordNet
    from minibd.models.bert import Bert
    from minibd.records import BadInput
    try:
        import nltk
        import textaugment
        from nlpaug.augmenter.word import ContextualWordEmbsAug, SplitAug
        from nlpaug.model.lang_models import Bert as TheirBert
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise BadInput(f"{error.name}, which the augmenters are timed against, is not installed: pip install nlpaug textaugment") from None

    synonyms = WordNet(bench.wordnet).synonyms
    rows = data.read_splits(bench.data).train if bench.data else reviews.reviews(bench.batches * bench.batch_size, seed=0)
    short = [x.text for x in rows if len(x.text.split()) >= 3][:bench.batches * bench.batch_size]  # textaugment's AEDA raises on fewer words
    words = " ".join(x.text for x in rows).split()
    long = [" ".join(words[i:i + 200]) for i in range(0, len(words) - 199, 200)][:bench.batch_size]
    chance, operations = random.Random(0), ("synonym_replacement", "random_insertion", "random_swap", "random_deletion")

    def ours(augmenter, **more):
        return lambda texts: [augmenter(text, chance, **more) for text in texts]

    def seconds(way, texts: list[str]) -> float:
        started = time.process_time()
        way(texts)
        return time.process_time() - started

    def compare(name: str, texts: list[str], mine, other) -> None:
        times = [[seconds(way, texts) for way in (mine, other)] for _ in range(bench.rounds + 1)][1:]
        fast, slow = map(statistics.median, zip(*times))
        print(f"{name:28}{len(texts) / fast:12.1f}{len(texts) / slow:12.1f}{slow / fast:8.2f}", flush=True)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK's, that other languages are not here
        shutil.copytree(bench.wordnet, folder, dirs_exist_ok=True)
        if not (names := Path(folder) / "lexnames").exists():  # NLTK wants it, for what is not asked here
            names.write_text("".join(f"{i:02}\tlexname.{i}\t1\n" for i in range(45)))

        class Reader(WordNetCorpusReader):
            def map_wn(self, version="wordnet"):  # for other languages
                return None
        nltk.data.path = [folder]
        nltk.download = lambda name: True  # textaugment asks for what it is given below
        textaugment.eda.wordnet = Reader(folder, None)
        their_eda, their_aeda, their_split = textaugment.EDA(stop_words=sorted(eda.STOPWORDS)), textaugment.AEDA(), SplitAug()

        def textaugments_eda(texts: list[str]) -> None:
            for text in texts:
                name, n = chance.choice(operations), max(1, int(0.1 * len(text.split())))
                getattr(their_eda, name)(text, 0.1 if name == "random_deletion" else n)

        print(f"{len(short)} rows and {len(long)} texts of 200 words; Python {sys.version.split()[0]}")
        print(f"{'texts a processor second':28}{'ours':>12}{'theirs':>12}{'ratio':>8}")
        for kind, texts in (("rows", short), ("200 words", long)):
            compare(f"splitting, {kind}", texts, ours(split), lambda texts: [their_split.augment(text) for text in texts])
            compare(f"AEDA, {kind}", texts, ours(aeda), lambda texts: [their_aeda.punct_insertion(text) for text in texts])
            compare(f"EDA, {kind}", texts, ours(eda.eda, synonyms=synonyms), textaugments_eda)
            compare(f"EDA released, {kind}", texts, ours(eda.eda, synonyms=synonyms, variant="released"), textaugments_eda)

    # nlpaug 1.1.11 calls these by names that transformers 5 no longer has.
    TheirBert.token2id = lambda self, token: self.tokenizer.convert_tokens_to_ids(token)
    TheirBert.id2token = lambda self, i: self.tokenizer.convert_ids_to_tokens(i)
    ckpt = checkpoint.load(bench.ckpt)
    model = Bert(replace(ckpt.model.config, mlm=True, labels=0)).init_weights(torch.Generator().manual_seed(0)).eval()
    model.load_state_dict(ckpt.model.state_dict(), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(replace(ckpt, model=model, labels=()), Path(folder) / "model")
        theirs = ContextualWordEmbsAug(str(Path(folder) / "model"), "bert", top_k=100, device="cpu", batch_size=bench.batch_size)
    for action in ("substitute", "insert"):
        theirs.action = action
        compare(f"CWEA {action}, rows", short[:32],
                lambda texts: each_contextual(texts, [chance] * len(texts), model, ckpt.tokenizer, action=action, batch_size=bench.batch_size),
                theirs.augment)


def run() -> None:
    jobs = {"encoders": encoders, "prune": prune, "align": align, "augment": augment}
    name, bench = parse(__doc__, Bench, first=("what", tuple(jobs)))
    jobs[name](bench)


if __name__ == "__main__":
    main(run)
