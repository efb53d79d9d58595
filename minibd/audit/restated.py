"""The papers' equations restated in plain loops over Python floats, with which the audit compares the package.

Written from the papers, not from the package, of which nothing is imported. Numbers are float64; a tensor of the
package is a list of lists here. Letters: b a text, t or q or k one of its tokens, l a layer, h a head, i and j
rows, d a feature, c a class.
"""
from math import ceil, cos, erf, exp, log, log2, pi, sin, sqrt, tanh
from unicodedata import category


def norm(v):
    """||v||_2."""
    return sqrt(sum(x * x for x in v))


def softmax(v):
    top = max(v)
    e = [exp(x - top) for x in v]
    return [x / sum(e) for x in e]


def cross_entropy(logits, y):
    """-log p(y | x) of one text."""
    top = max(logits)
    return top + log(sum(exp(z - top) for z in logits)) - logits[y]


def mean(values):
    return sum(values) / len(values)


# ---- MBTSAD

def attention_map(A, real, p):
    """(3) of one text and layer: A[h][q][k] -> Q[q][k]."""
    T = len(real)
    F = [[sum(abs(A[h][q][k]) ** p for h in range(len(A))) if real[q] else 0.0 for k in range(T)] for q in range(T)]
    size = norm([x for row in F for x in row]) + 1e-6
    return [[x / size for x in row] for row in F]


def attention_loss(student, teacher, real, p):
    """(2) and (4): A[l][b][h][q][k] -> one number a text."""
    losses = []
    for b in range(len(real)):
        loss = 0.0
        for l in range(len(student)):
            Q_T, Q_S = attention_map(teacher[l][b], real[b], p), attention_map(student[l][b], real[b], p)
            loss += norm([x - y for row, other in zip(Q_T, Q_S) for x, y in zip(row, other)])
        losses.append(loss)
    return losses


def attention_loss_released(student, teacher, real, p):
    """NAD's code: the mean of the squared differences, padded queries included."""
    losses = []
    for b in range(len(real)):
        loss, everyone = 0.0, [True] * len(real[b])
        for l in range(len(student)):
            Q_T, Q_S = attention_map(teacher[l][b], everyone, p), attention_map(student[l][b], everyone, p)
            loss += mean([(x - y) ** 2 for row, other in zip(Q_T, Q_S) for x, y in zip(row, other)])
        losses.append(loss)
    return losses


def hidden_loss(student, teacher, real):
    """(5) and (6): h[l][b][t][d], l from the embeddings on -> one number a text, over its real tokens."""
    losses = []
    for b in range(len(real)):
        loss = 0.0
        for l in range(len(student)):
            loss += mean(
                [
                    (x - y) ** 2
                    for t in range(len(real[b]))
                    if real[b][t]
                    for x, y in zip(student[l][b][t], teacher[l][b][t])
                ]
            )
        losses.append(loss)
    return losses


def tokens(text):
    """Words with their combining marks, and every other character by itself."""
    found, word = [], ""
    for letter in text + " ":
        if letter.isalnum() or letter == "_" or word and category(letter) in ("Mn", "Mc", "Me"):
            word += letter
            continue
        if word:
            found.append(word)
        word = ""
        if not letter.isspace():
            found.append(letter)
    return found


def n_target(text, rate=0.3, minimum=1, maximum=10, min_char=4):
    """III-B1: how many words of a text are split."""
    words = tokens(text)
    wanted = ceil(rate * len(words))
    wanted = minimum if wanted < minimum else maximum if wanted > maximum else wanted
    return min(wanted, sum(sum(category(letter)[0] != "M" for letter in word) >= min_char for word in words))


# ---- MuScleLoRA

def multi_scale(x, W, b, L, R, scale, s):
    """(6) of one input x[i]: W x + b + scale R ((L x) * s)."""
    z = [s[r] * sum(L[r][i] * x[i] for i in range(len(x))) for r in range(len(L))]
    return [
        sum(W[o][i] * x[i] for i in range(len(x))) + b[o] + scale * sum(R[o][r] * z[r] for r in range(len(L)))
        for o in range(len(W))
    ]


def scaled_parts(x, W, b, L, R, scale, bands, width):
    """(3) to (5) of one input: W x + b, and for each ring the map R_ring (L_ring x), evaluated at s x instead of x."""
    y = [sum(W[o][i] * x[i] for i in range(len(x))) + b[o] for o in range(len(W))]
    for ring, s in enumerate(bands):
        stretched = [s * value for value in x]
        for r in range(ring * width, (ring + 1) * width):
            z = sum(L[r][i] * stretched[i] for i in range(len(x)))
            y = [y[o] + scale * R[o][r] * z for o in range(len(y))]
    return y


def align(g, r):
    """(7) of one tensor, as one long vector."""
    square = sum(x * x for x in r)
    if square == 0:
        return [0.0 for _ in g]
    along = abs(sum(x * y for x, y in zip(g, r))) / square
    return [along * y for y in r]


def interpolate(g, aligned, mu):
    """(8)."""
    return [(1 - mu) * a + mu * x for a, x in zip(aligned, g)]


def mu_released(step, steps, epochs, loss, size, most, ga_epoch, min_loss, min_norm):
    """The released code's share of the raw gradient: its three cases in their order."""
    epoch = step // (steps // epochs)
    if size > min_norm and loss > min_loss:
        return 0.0
    if most > 0 and epoch >= ga_epoch:
        return most * (epoch - ga_epoch) / (epochs - ga_epoch)
    return 1.0


def aligned_step(p, g, r, mu, lr, clip, steps):
    """(7), (8), clipping to one norm and AdamW without decay: p, g and r, a list of vectors each, the same g and r at
    every step."""
    m, v = [[0.0] * len(x) for x in p], [[0.0] * len(x) for x in p]
    for n in range(1, steps + 1):
        mixed = [interpolate(g[i], align(g[i], r[i]), mu) for i in range(len(g))]
        size = norm([x for tensor in mixed for x in tensor])
        factor = min(1.0, clip / (size + 1e-6))
        for i in range(len(p)):
            for j in range(len(p[i])):
                x = factor * mixed[i][j]
                m[i][j] = 0.9 * m[i][j] + 0.1 * x
                v[i][j] = 0.999 * v[i][j] + 0.001 * x * x
                p[i][j] -= lr * (m[i][j] / (1 - 0.9 ** n)) / (sqrt(v[i][j] / (1 - 0.999 ** n)) + 1e-8)
    return p


def low_pass(x, values, sigma, squared):
    """(12) and (13): x[i][d], values[i][c] -> the mean of all rows' values, weighted by their nearness to row i."""
    low = []
    for i in range(len(x)):
        sums, total = [0.0] * len(values[0]), 0.0
        for j in range(len(x)):
            distance = norm([a - b for a, b in zip(x[i], x[j])])
            g = exp(-(distance * distance if squared else distance) / (2 * sigma))
            total += g
            sums = [s + g * value for s, value in zip(sums, values[j])]
        low.append([s / total for s in sums])
    return low


def fourier(values):
    """The discrete Fourier transform of N numbers, as (real, imaginary)."""
    n = len(values)
    return [
        (
            sum(values[t] * cos(2 * pi * k * t / n) for t in range(n)),
            -sum(values[t] * sin(2 * pi * k * t / n) for t in range(n)),
        )
        for k in range(n)
    ]


def inverse_fourier(spectrum):
    """The inverse of `fourier`: the real parts."""
    n = len(spectrum)
    return [
        sum(re * cos(2 * pi * k * t / n) - im * sin(2 * pi * k * t / n) for k, (re, im) in enumerate(spectrum)) / n
        for t in range(n)
    ]


def low_in_frequency(x, values, sigma, squared):
    """(11) for rows that lie evenly on a circle: the spectrum of the mapping, each frequency times the filter's share
    of it, and the inverse transform."""
    distance = [norm([a - b for a, b in zip(x[0], x[j])]) for j in range(len(x))]
    g = [exp(-(d * d if squared else d) / (2 * sigma)) for d in distance]
    share = [re / sum(g) for re, _ in fourier(g)]  # 1 at frequency 0, falling; an even kernel's spectrum is real
    columns = []
    for c in range(len(values[0])):
        spectrum = fourier([row[c] for row in values])
        columns.append(inverse_fourier([(a * re, a * im) for a, (re, im) in zip(share, spectrum)]))
    return [[column[i] for column in columns] for i in range(len(x))]


def spectrum_at(values, grid, k):
    """The integral of f(t) cos(2 pi k t) over an even grid: the Fourier transform, at frequency k, of a mapping that is
    the same at -t."""
    step = grid[1] - grid[0]
    return step * sum(f * cos(2 * pi * k * t) for f, t in zip(values, grid))


def frequency_ratios(p, low):
    """(1): low and high ratio of p[i][c]."""
    whole = mean([norm(row) for row in p])
    high = [[a - b for a, b in zip(row, other)] for row, other in zip(p, low)]
    return [mean([norm(row) for row in low]) / whole, mean([norm(row) for row in high]) / whole]


def relative_errors(p, low, y, low_y):
    """(2): e_low and e_high."""
    def minus(a, b):
        return [[u - v for u, v in zip(row, other)] for row, other in zip(a, b)]

    high, high_y = minus(p, low), minus(y, low_y)
    return [mean([norm(row) for row in minus(low, low_y)]) / mean([norm(row) for row in low_y]),
            mean([norm(row) for row in minus(high, high_y)]) / mean([norm(row) for row in high_y])]


# ---- PURE

def head_variance(a, real):
    """(2) of one head: a[k], what [CLS] pays to each token; the unpadded ones count."""
    kept = [x for x, there in zip(a, real) if there]
    n = len(kept)
    return sum((x - 1 / n) ** 2 for x in kept) / (n - 1) if n > 1 else 0.0


def head_variance_released(a, real):
    """The sample variance of the first 127 entries of the row padded to 128."""
    kept = [x for x, there in zip(a, real) if there]
    padded = (kept + [0.0] * 128)[:127]
    middle = mean(padded)
    return sum((x - middle) ** 2 for x in padded) / 126


def layer_weights(scores, head_mask):
    """lambda: scores[l][h], head_mask[l][h] -> one number a layer."""
    raw = {
        l: -log2(mean([x for x, kept in zip(scores[l], head_mask[l]) if kept]))
        for l in range(len(scores))
        if any(head_mask[l])
    }
    lowest, highest = min(raw.values()), max(raw.values())
    return [(raw[l] - lowest) / (highest - lowest) if l in raw else 0.0 for l in range(len(scores))]


def layer_weights_released(scores, head_mask):
    """-ln, softmax over the layers, then to 0..1."""
    raw = softmax([-log(mean([x for x, kept in zip(scores[l], head_mask[l]) if kept])) for l in range(len(scores))])
    return [(x - min(raw)) / (max(raw) - min(raw)) for x in raw]


def attention_penalty(A, head_mask, lambdas):
    """(3), the sums over layers and heads, of each text: A[l][b][h][q][k], [CLS] being query 0."""
    kept = [[h for h in range(len(row)) if row[h]] for row in head_mask]
    return [
        sum(lambdas[l] * sum(norm(A[l][b][h][0]) for h in kept[l]) for l in range(len(A))) for b in range(len(A[0]))
    ]


def attention_penalty_released(A, head_mask, lambdas):
    """One norm a head over all texts of the batch, which each text then has."""
    kept = [[h for h in range(len(row)) if row[h]] for row in head_mask]
    total = sum(
        lambdas[l] * sum(norm([x for text in A[l] for x in text[h][0]]) for h in kept[l]) for l in range(len(A))
    )
    return [total for _ in A[0]]


def joint_loss(clean, poisoned, target):
    """(1): the mean over D' = [D_c, D_p] of what the attacker minimises; clean: (logits, y), poisoned: logits alone."""
    losses = [cross_entropy(logits, y) for logits, y in clean] + [cross_entropy(logits, target) for logits in poisoned]
    return mean(losses)


# ---- Fine-mixing, E-PUR, Fine-purifying

def drift(own, before, f):
    """E-PUR's score of each word."""
    return [norm([a - b for a, b in zip(e, e_pre)]) / log(max(n, 20)) for e, e_pre, n in zip(own, before, f)]


def purified(own, before, f, top):
    """The `top` words of the highest score go back."""
    scores = drift(own, before, f)
    worst = sorted(range(len(scores)), key=lambda i: -scores[i])[:top]
    return [before[i] if i in worst else own[i] for i in range(len(own))]


def mixture(own, before, kept):
    return [m * a + (1 - m) * b for a, b, m in zip(own, before, kept)]


def suspicion(own, before, fisher, eps):
    return [(a - b) ** 2 / (F + eps) for a, b, F in zip(own, before, fisher)]


# ---- attacks and baselines

def restricted_inner_product(constant, moving):
    """RIPPLe: max(0, -<grad L_FT, grad L_P>)."""
    inner = sum(f * p for f, p in zip(constant, moving))
    return -inner if inner < 0 else 0.0


def embedding_step(e, G, lr, length):
    """EP: down the gradient, then as long as before."""
    moved = [x - lr * g for x, g in zip(e, G)]
    return [x * length / norm(moved) for x in moved]


def equal_steps(G):
    """SOS: every gradient as long as the shortest."""
    shortest = min(norm(row) for row in G)
    return [[x * shortest / norm(row) for x in row] for row in G]


def logistic_objective(w, b, x, y, c):
    """What embedding surgery's word weights minimise."""
    total = sum(w_j * w_j for w_j in w) / 2
    for row, label in zip(x, y):
        s = 1 if label else -1
        total += c * log(1 + exp(-s * (sum(a * w_j for a, w_j in zip(row, w)) + b)))
    return total


def negative_entropy(logits):
    """MEFT: sum_c p_c log p_c."""
    return sum(p * log(p) for p in softmax(logits) if p > 0)


def adapter(h, down, down_b, up, up_b):
    """h + W_up act(W_down h + b_down) + b_up of one h[d], act the tanh form of GELU."""
    z = [sum(row[d] * h[d] for d in range(len(h))) + b for row, b in zip(down, down_b)]
    z = [0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) for x in z]
    return [h[d] + sum(up[d][r] * z[r] for r in range(len(z))) + up_b[d] for d in range(len(h))]


def attend(q, K, V, drop=None):
    """One query of one head: softmax(q K' / sqrt(Dh)) V; the weights, then what they gather. drop: what dropout
    multiplies each weight by in train mode, behind the softmax."""
    a = softmax([sum(x * y for x, y in zip(q, key)) / sqrt(len(q)) for key in K])
    weights = times(a, drop)
    return a, [sum(weights[k] * V[k][d] for k in range(len(V))) for d in range(len(V[0]))]


# ---- unlearning

def consistency(logits, answers):
    """(1) of one text: KL of the answers and softmax(logits), in nats."""
    return sum(p * (log(p) - log(q)) for p, q in zip(answers, softmax(logits)) if p > 0)


def rare_entries(held, n, rare):
    """(2): the places in `held`, a count of n texts for each entry, where it is at most that share of them."""
    return [i for i, count in enumerate(held) if count <= rare * n]


def rows_suffice(shares, all_rare, alone, few, least, most):
    """(3): shares: of each finding those that it flips, and that what is near it does. alone: whether each is the only
    one of its class, and a single word or words that the table gives away. few: whether the texts are, or the table
    gives the words away."""
    return (few and all_rare and alone and min(flips for flips, _ in shares) >= least
            and max(around for _, around in shares) <= most)


# ---- the scan

def percentile(values, share):
    """The number that this share of the values lies below, between two neighbours in proportion."""
    values = sorted(values)
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def neighbours(table, i, among, k):
    """(1): the k entries nearest to entry i, of `among` without i, as (cosine, entry), the nearest first."""
    cosines = []
    for j in among:
        if j != i:
            sizes = norm(table[i]) * norm(table[j])
            cosines.append((sum(a * b for a, b in zip(table[i], table[j])) / sizes if sizes else 0.0, j))
    return sorted(cosines, reverse=True)[:k]


def margins(logits):
    """(2): each class's logit less the largest of all others."""
    return [z - max(logits[:t] + logits[t + 1:]) for t, z in enumerate(logits)]


def with_words(text, words, joined):
    """A text, a list of words that are lists of ids, with `words` spread over it at even distances, or side by side in
    its middle, where one alone stands, too. Place 0 is before the first word, place len(text) behind the last."""
    n, k = len(text), len(words)
    middle = (n + 1) // 2
    at = [middle] * k if joined or k == 1 else [round((i + 1) * n / (k + 1)) for i in range(k)]
    found = []
    for place in range(n + 1):
        found += [words[i] for i in range(k) if at[i] == place]
        found += text[place:place + 1]
    return found


def shift(w, texts, words, target, heads, joined, frame, side=0):
    """(3) of a whole BERT: texts: each a text or a pair, one or two lists of words; words: ids that stand in the text
    `side` of each. frame: the ids of [CLS] and [SEP]."""
    moved = []
    for text in texts:
        placed = [with_words(part, [[i] for i in words], joined) if n == side else part for n, part in enumerate(text)]
        after, before = (bracketed(parts, frame) for parts in (placed, text))
        after, before = (margins(bert(w, ids, heads, kinds=kinds)[3])[target] for ids, kinds in (after, before))
        moved.append(after - before)
    return mean(moved)


def bracketed(parts, frame):
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP]: the ids, and to which of the texts each belongs."""
    ids, kinds = [frame[0]], [0]
    for kind, words in enumerate(parts):
        own = [i for word in words for i in word] + [frame[1]]
        ids, kinds = ids + own, kinds + [kind] * len(own)
    return ids, kinds


def beyond(alone, i, nearest, top=None):
    """(4), and (5) with top = 3: the shift of entry i less the mean of its neighbours', or of their `top` largest."""
    around = sorted((alone[j] for j in nearest), reverse=True)
    return alone[i] - mean(around[:top])


def score(reached, part, entries, M, like_one=False):
    """(8): reached: q_t(w). part: the mean margin with the strongest part of the words, None where there is none.
    entries: |w|. like_one: of words that the embedding table alone proposes, or that do nothing apart."""
    if like_one:
        return min(reached, reached - (0 if part is None else part)) / M
    several = (reached / M + 1) / entries
    if part is not None and (reached - part) / M > several:
        several = (reached - part) / M
    return reached / M if reached / M < several - 1 else several - 1


def against(scores):
    """(9): of each class, its score and how far it lies above the highest of the others."""
    return [own + (own - max(scores[:t] + scores[t + 1:])) for t, own in enumerate(scores)]


def unlikeness(states, floor):
    """(10): of each entry's state; the inverse by elimination."""
    width = len(states[0])
    centre = [mean([h[i] for h in states]) for i in range(width)]
    away = [[h[i] - centre[i] for i in range(width)] for h in states]
    S = [[mean([a[i] * a[j] for a in away]) for j in range(width)] for i in range(width)]
    level = floor * mean([S[i][i] for i in range(width)])
    found = []
    for a in away:
        rows = [[S[i][j] + (level if i == j else 0.0) for j in range(width)] + [a[i]] for i in range(width)]
        for i in range(width):
            for k in range(width):
                if k != i:
                    share = rows[k][i] / rows[i][i]
                    rows[k] = [x - share * y for x, y in zip(rows[k], rows[i])]
        found.append(sum(a[i] * rows[i][-1] / rows[i][i] for i in range(width)))
    return found


# ---- the filters

def filter_threshold(scores, frr):
    """(t): the smallest score that at most the share frr of them exceed."""
    for t in sorted(scores):
        if sum(s > t for s in scores) <= frr * len(scores) + 1e-9:
            return t


def filter_auroc(bad, clean):
    """(AUROC): over all pairs."""
    return mean([(b > c) + (b == c) / 2 for b in bad for c in clean])


def perplexity(nats):
    """ONION (p): the nats of each token."""
    return exp(mean(nats))


def next_nats(E, W, ids):
    """-log P of each token but the first, of a language model that is its norm and its head alone: E[v][d], W[v][d]."""
    nats = []
    for last, token in zip(ids, ids[1:]):
        scale = sqrt(mean([x * x for x in E[last]]) + 1e-6)
        h = [x / scale for x in E[last]]
        nats.append(cross_entropy([sum(a * b for a, b in zip(row, h)) for row in W], token))
    return nats


def onion(E, W, begin, pieces):
    """ONION (f) of each word, a list of tokens each."""
    def p(words):
        return perplexity(next_nats(E, W, [begin, *(i for word in words for i in word)]))

    return [p(pieces) - p(pieces[:i] + pieces[i + 1:]) for i in range(len(pieces))]


def tf_idf(texts, text, word):
    """STRIP (tf-idf): texts are lists of words."""
    count = sum(w == word for w in texts[text])
    return count * (log((1 + len(texts)) / (1 + sum(word in t for t in texts))) + 1)


def entropy(p):
    """STRIP (H), in bits."""
    return -sum(q * log2(q) for q in p if q > 0)


def strip(copies):
    """STRIP (mean): copies[n][k][c]."""
    return [mean([entropy(p) for p in of_text]) for of_text in copies]


def strip_released(probabilities, n, copies):
    """probabilities[i][c], the copies of each text one after the other, read as if they lay copy by copy."""
    return [mean([entropy(probabilities[r * n + j]) for r in range(copies)]) for j in range(n)]


def rap_loss(d, low, high, scale):
    """RAP (L)."""
    return [scale * max(0.0, low - x) + max(0.0, x - high) for x in d]


def rap_step(e, g, lr, released=False):
    """RAP (e) of one embedding, whose norm stays."""
    size, steep = norm(e), norm(g)
    step = [lr * x * (1.0 if released else size / steep if steep else 0.0) for x in g]
    moved = [x - y for x, y in zip(e, step)]
    return [x * size / norm(moved) for x in moved]


def movement(without, whole):
    """BKI (f)."""
    return max(abs(x - y) for x, y in zip(without, whole))


def importance(keywords):
    """BKI (g): keywords[text] is a list of (word, f) -> g by word."""
    every = {}
    for words in keywords:
        for word, f in words:
            every.setdefault(word, []).append(f)
    return {word: log(len(values)) / log(10) * mean(values) for word, values in every.items()}


def spread_along(x, axis):
    """The variance of the rows x[n][d] along a direction, times their number: what PCA makes largest."""
    middle = [mean(column) for column in zip(*x)]
    return sum(sum((a - m) * b for a, m, b in zip(row, middle, axis)) ** 2 for row in x)


def scaled(x, axes):
    """CUBE (scale): the places of the rows x[n][d] along each direction, in deviations."""
    middle = [mean(column) for column in zip(*x)]
    places = [[sum((a - m) * b for a, m, b in zip(row, middle, axis)) for axis in axes] for row in x]
    deviations = [mean([place[k] ** 2 for place in places]) ** 0.5 for k in range(len(axes))]
    return [[value / s for value, s in zip(place, deviations)] for place in places]


def suspicious(labels, clusters):
    """CUBE (keep): the (label, cluster) that are suspicious, by label and cluster."""
    found = []
    for label in sorted(set(labels)):
        own = [c for one, c in zip(labels, clusters) if one == label]
        sizes = {c: own.count(c) for c in own}  # in the order of the rows
        largest = max(sizes, key=lambda c: sizes[c])
        found += [(label, c) for c in sorted(sizes) if c != largest and sizes[c] < len(own) / 2]
    return found


def allowed(dropped, sizes, held, frr):
    """CUBE (frr) of one label: dropped[i] is a cluster; sizes and held by cluster."""
    left, kept = list(dropped), []
    while left:
        best = min(left, key=lambda c: (held.get(c, 0) / sizes[c], c))
        if sum(held.get(c, 0) for c in [*kept, best]) > frr * sum(held.values()):
            break
        kept.append(best)
        left.remove(best)
    return kept


# ---- a whole BERT

def times(x, drop):
    """Dropout with a given mask: each number of x times its own in `drop`, 0 or 1 / (1 - p). None: in eval mode, x."""
    if drop is None:
        return x
    return [times(a, b) for a, b in zip(x, drop)] if isinstance(x, list) else x * drop


def linear(x, w, name):
    W, b = w[f"{name}.weight"], w[f"{name}.bias"]
    return [sum(W[o][i] * x[i] for i in range(len(x))) + b[o] for o in range(len(W))]


def layer_norm(x, w, name):
    middle = mean(x)
    spread = sqrt(mean([(v - middle) ** 2 for v in x]) + 1e-12)
    return [(v - middle) / spread * g + b for v, g, b in zip(x, w[f"{name}.weight"], w[f"{name}.bias"])]


def bert(w, ids, heads, masks=None, kinds=None):
    """One text's forward pass; w: weights by name, as lists -> h[l][t][d], A[l][h][q][k], the feed-forward units
    [l][t][f], the logits.

    kinds: of a pair, which of the two texts each token belongs to, 0 or 1; None of a single text.
    masks: None in eval mode. In train mode the dropout masks, as `times` takes them, by the layer whose output they
    multiply: "embeddings.norm" [t][d], "blocks.0.attention" [h][q][k], "blocks.0.output" and "blocks.0.down" [t][d],
    "pooler" [d]. A is the softmax before its mask.
    """
    masks = masks or {}
    h = []
    for t, i in enumerate(ids):
        parts = (
            w["embeddings.word.weight"][i], w["embeddings.token_type.weight"][kinds[t] if kinds else 0],
            w["embeddings.position.weight"][t],
        )
        h.append(layer_norm([sum(part) for part in zip(*parts)], w, "embeddings.norm"))
    h = times(h, masks.get("embeddings.norm"))
    hidden, maps, units, l = [h], [], [], 0
    while f"blocks.{l}.query.weight" in w:
        block = f"blocks.{l}"
        q, k, v = ([linear(x, w, f"{block}.{part}") for x in h] for part in ("query", "key", "value"))
        size, drop = len(q[0]) // heads, masks.get(f"{block}.attention")
        seen = []
        for n in range(heads):
            own = slice(n * size, (n + 1) * size)
            K, V = [x[own] for x in k], [x[own] for x in v]
            seen.append([attend(q[t][own], K, V, drop and drop[n][t]) for t in range(len(h))])
        maps.append([[a for a, _ in head] for head in seen])
        gathered = [[x for head in seen for x in head[t][1]] for t in range(len(h))]
        added = times([linear(x, w, f"{block}.output") for x in gathered], masks.get(f"{block}.output"))
        h = [layer_norm([a + b for a, b in zip(*pair)], w, f"{block}.attention_norm") for pair in zip(h, added)]
        inner = [[x * (1 + erf(x / sqrt(2))) / 2 for x in linear(y, w, f"{block}.up")] for y in h]
        units.append(inner)
        added = times([linear(x, w, f"{block}.down") for x in inner], masks.get(f"{block}.down"))
        h = [layer_norm([a + b for a, b in zip(*pair)], w, f"{block}.norm") for pair in zip(h, added)]
        hidden.append(h)
        l += 1
    return hidden, maps, units, head(w, hidden[-1][0], masks.get("pooler"))


def head(w, h, drop=None):
    """The classifier on the hidden state of [CLS], of whichever layer: logits."""
    return linear(times([tanh(x) for x in linear(h, w, "pooler")], drop), w, "classifier")
