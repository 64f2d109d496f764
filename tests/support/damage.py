"""Random damage to data and to text, as a careless or a hostile hand does it. Seeded: equal seeds give equal damage."""

import copy
import datetime
import random

NAMES = ["free", "fixed", "gauss_newton", "perceptual", "gits", "dmn", "best", "ddim", "none", "all", "s4s",
         "edm", "logsnr", "ve", "vp_discrete", "vp_cosine", "flow", "scaled_linear", "meta", "digits"]  # fmt: skip
WORDS = ["", " ", "a b", "../up", "/etc/passwd", "-x", ".hidden", "nul\0byte", "two\nlines", "\t", "é", "x" * 300, "5",
         "nan", "y" * 20_000, "'", "${item}", "\ud800", "\x1b[31m"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 5, 10**6, 10**12, 2**63, 10**400, -(10**400), 0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e300,
           5e-324, float("nan"), float("inf"), -float("inf")]  # fmt: skip


def value(rng: random.Random, depth: int = 0):
    """Anything that JSON can hold."""
    kinds = ["null", "bool", "number", "name", "word", "list", "mapping", "empty", "deep"]
    match rng.choice(kinds[:5] if depth > 2 else kinds):
        case "null":
            return None
        case "bool":
            return rng.random() < 0.5
        case "number":
            return rng.choice([*NUMBERS, rng.randint(-20, 20), rng.gauss(0, 10)])
        case "name":
            return rng.choice(NAMES)
        case "word":
            return rng.choice(WORDS)
        case "list":
            return [value(rng, depth + 1) for _ in range(rng.choice([1, 2, 3, 60]) if depth == 0 else 2)]
        case "mapping":
            return {rng.choice(NAMES + WORDS): value(rng, depth + 1) for _ in range(2)}
        case "empty":
            return rng.choice([[], {}])
    inner = 1
    for _ in range(rng.choice([5, 70, 300])):
        inner = [inner] if rng.random() < 0.5 else {"a": inner}
    return inner


def yaml_value(rng: random.Random):
    """Anything that YAML can hold: other keys than strings, dates, bytes, sets, loops, huge numbers."""
    if rng.random() < 0.75:
        return value(rng)
    loop: list = [1]
    loop.append(rng.choice([loop, {"a": loop}]))
    date, huge = datetime.date(2020, 1, 1), 16**5000
    return rng.choice(
        [date, datetime.datetime(2020, 1, 1), b"x", {1, 2}, huge, [huge], loop, {"a": loop}, {5: 1}, {None: 1},
         {(1, 2): 1}, {2.5: 1, "a": 1}, {True: 1}, {huge: 1}, {date: 1}]
    )  # fmt: skip


def places(whole) -> list[tuple]:
    """Every mapping and list in `whole`, itself too, with each of its keys or indices."""
    found, waiting, seen = [], [whole], set()
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list) and id(inner) not in seen:
            seen.add(id(inner))
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            found += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    return found


def data(rng: random.Random, whole, make=value):
    """A damaged copy of `whole`, a mapping or a list: one edit to three, each at any depth."""
    whole = copy.deepcopy(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        there = places(whole)
        if not there or rng.random() < 0.01:
            return make(rng)
        shallow = [place for place in there if place[0] is whole]
        inner, key = rng.choice(shallow if rng.random() < 0.2 else there)
        is_mapping = isinstance(inner, dict)
        edit = rng.choice(["replace", "replace", "replace", "delete", "rename", "add", "swap"])
        if edit == "delete":
            del inner[key]
        elif edit == "rename" and is_mapping:
            inner[rng.choice([rng.choice(WORDS), rng.choice(NAMES), f"{key}s" if isinstance(key, str) else "s"])] = (
                inner.pop(key)
            )
        elif edit == "add" and is_mapping:
            inner[rng.choice(NAMES + WORDS)] = make(rng)
        elif edit == "add":
            inner.insert(key, rng.choice([inner[key], make(rng)]))
        elif edit == "swap":
            other, place = rng.choice(there)
            ours, theirs = inner[key], other[place]
            inside = [id(mapping) for entry in (ours, theirs) for mapping, _ in places(entry)]
            if id(inner) not in inside and id(other) not in inside:  # it would hold itself
                inner[key], other[place] = theirs, ours
        else:
            inner[key] = make(rng)
    return whole


TEXTS = ["&a [*a]", "&a {b: *a}", "*nobody", "<<: *nobody", "<<: {a: 1}", "<<: [1]", "!!python/object:os.system x",
         "!!binary x", "!!set {a}", "!!int x", "!!float 1e9999", "!mine {a: 1}", "2020-02-30", "2020-01-01", "1:30",
         "0o9", "0x" + "f" * 5000, "9" * 5000, "|", ">-", "- ", "? ", ": ", "{", "[" * 3000, "]", "\t", "\0", "\x85",
         "\ufeff", "---", "...", "%YAML 9.9", "%TAG", "'", '"', "#", "~", "NaN", ".nan", "1e999"]  # fmt: skip


def text(rng: random.Random, whole: bytes) -> bytes:
    """A damaged copy of a file: flipped bytes, a cut, a piece of syntax anywhere, a line twice, elsewhere or gone."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, end = sorted((rng.randint(0, len(whole)), rng.randint(0, len(whole))))
        lines = whole.splitlines(keepends=True) or [b""]
        edit = rng.choice(["flip", "cut", "piece", "piece", "value", "value", "lines", "take"])
        if edit == "flip":
            whole = whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
        elif edit == "cut":
            whole = whole[: rng.choice([at, end])]
        elif edit == "piece":
            whole = whole[:at] + rng.choice(TEXTS).encode() + whole[at:]
        elif edit == "take":
            whole = whole[:at] + whole[min(end, at + 200) :]
        else:
            number, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            if edit == "value":
                key = lines[number].partition(b":")[0]
                lines[number] = key + b": " + rng.choice(TEXTS).encode() + rng.choice([b"\n", b",\n", b""])
            else:
                lines.insert(other, rng.choice([lines[number], b"", lines.pop(number)]))
            whole = b"".join(lines)
    return whole
