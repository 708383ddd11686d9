"""Fuzz every reader with seeded mutations of its valid file: ``python -m tests.fuzz.readers --minutes 60``.

A case is a name and a number, and ``--case "JSON:17"`` runs one again. After a crash of the process, the file that the
first line of output names holds the last case.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.damage import READERS, Reader, outcome, put

ANSWER = 30  # seconds for one case
MEMORY = 8 * 2**30  # bytes beyond which memory is refused, so that a wrong size is an error and not the machine's end

NUMBERS = [struct.pack(f"<{kind}", n) for kind, bits in (("i", 31), ("q", 63)) for n in (-1, 0, 2**bits - 1, 2**20)]
WORDS = [b"\x00" * 8, b"\xff" * 8, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"1e999", b"9" * 400, b"-1", b"null", b"true"]
JSON = [b"{", b"}", b"[", b"]", b'"', b":", b",", b'"\\ud800"', b"NaN", b"[" * 2000, b'{"a":' * 2000, b'"id"', b"[]"]
YAML = [
    b"&a ",
    b"*a",
    b"- ",
    b"? ",
    b": ",
    b"!!python/object ",
    b"---\n",
    b"<<: ",
    b"|\n",
    b"\t",
    b"#",
    b"[" * 200,
    b"no",
]
NPY = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY", b"'|O'", b"'<f8'", b"(1099511627776, 3)", b"(-1, 3)"]
ARROW = [b"PAR1", b"F32", b"I64", b'"shape":[1099511627776,3]', b'"data_offsets":[0,0]', b"features", b"labels"]
PICKLE = [b"c__builtin__\nexec\n", b"r\xff\xff\xff\x7f", b"\x96" + b"\xff" * 8, b"2\x86" * 60, b"}", b"]", b"(", b"R"]
TABS = [b"\t", b"\n", b"\r", b"# ", b"A\tA\n", b"D\troot\n"]
TOKENS = {
    ".json": JSON,
    ".yaml": YAML,
    ".npz": NPY,
    ".safetensors": ARROW + JSON,
    ".parquet": ARROW,
    "": PICKLE,
    ".meta": PICKLE,
    ".tsv": TABS,
    ".jsonl": JSON,
}


def mutated(content: bytes, rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Return the content after one to four changes."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(content) + 1)
        size = rng.choice([1, 2, 4, 8, 40, 400])
        kind = rng.randrange(7)
        if kind == 0 and content:
            changed = bytearray(content)
            for _ in range(rng.choice([1, 1, 3, 9])):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            content = bytes(changed)
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + content[at + size :]
        elif kind == 3:
            start = rng.randrange(len(content) + 1)
            content = content[:at] + content[start : start + size] * rng.choice([1, 1, 50]) + content[at:]
        elif kind == 4:
            content = content[:at] + rng.choice(tokens) + content[at:]
        elif kind == 5:
            token = rng.choice(tokens)
            content = content[:at] + token + content[at + len(token) :]
        else:
            content = content[:at] + rng.randbytes(size) + content[at + size :]
    return content


class Fuzzed:
    """A reader with its valid file in a folder.

    Args:
        reader: Reader to try.
        folder: Empty folder.
    """

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.path = reader.write(folder)
        self.content = self.path.read_bytes()
        self.tokens = [*TOKENS.get(self.path.suffix, []), *NUMBERS, *WORDS]

    def case(self, number: int) -> tuple[str, object]:
        """Run the case of a number."""
        rng = random.Random(f"{self.reader.name}:{number}")
        put(self.path, mutated(self.content, rng, self.tokens))
        return outcome(self.reader, self.path)


def first_line(fault: object) -> str:
    """Return what went wrong and the innermost line of ours that it passed through."""
    if not isinstance(fault, BaseException):
        return str(fault)
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if "tightframe" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(fault).__name__}: {str(fault)[:150]!r} at {where}"


def late(*_: object) -> None:
    raise RuntimeError(f"no answer in {ANSWER} seconds")


def main() -> int:
    """Run, print the table of the readers and the faults, and return whether there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    parser.add_argument("--case", help="one case to run again, with its traceback")
    options = parser.parse_args()
    faulthandler.enable()
    logging.disable()  # Pillow's words about damaged images
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, late)
    name, _, number = (options.case or "").rpartition(":")
    chosen = [r for r in READERS if (r.name == name if options.case else options.only in r.name)]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults: dict[tuple[str, str], list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w", suffix=".case") as last:
        print(f"the last case: {last.name}", flush=True)
        tried = [Fuzzed(reader, Path(tempfile.mkdtemp(dir=folder))) for reader in chosen]
        if options.case:
            how, found = tried[0].case(int(number))
            print(how, found)
            if isinstance(found, BaseException):
                traceback.print_exception(found)
            return int(how == "fault")
        end, case = time.monotonic() + 60 * options.minutes, options.first
        while time.monotonic() < end:
            for each in tried:
                last.seek(0)
                last.write(f"{each.reader.name}:{case}\n")
                last.flush()
                signal.alarm(ANSWER)
                how, found = each.case(case)
                signal.alarm(0)
                counts[each.reader.name][how] += 1
                if how == "fault":
                    faults[each.reader.name, first_line(found)].append(case)
            case += 1
    print(f"{'reader':<34}{'cases':>9}{'read':>9}{'refused':>9}{'faults':>9}")
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{name:<34}{found.total():>9}{found['read']:>9}{found['refused']:>9}{found['fault']:>9}")
    for (name, said), cases in faults.items():
        print(f"{name}: {said}; {len(cases)} times, such as --case {f'{name}:{cases[0]}'!r}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
