"""A fixed sample of what ``python -m tests.fuzz.readers`` tries for an hour."""

from __future__ import annotations

from itertools import cycle

from tests.damage import READERS
from tests.fuzz.readers import Fuzzed, first_line

CASES = 500


def test_sample(tmp_path, record_property):
    tried = []
    for number, reader in enumerate(READERS):
        (tmp_path / str(number)).mkdir()
        tried.append(Fuzzed(reader, tmp_path / str(number)))
    faults = []
    for number, each in zip(range(CASES), cycle(tried), strict=False):
        how, found = each.case(number)
        if how == "fault":
            faults.append(f"{each.reader.name}:{number}: {first_line(found)}")
    record_property("cases", CASES)
    record_property("lost", len(faults))
    assert not faults
