"""The pages say what the code is: what can be compared is compared."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_layering import HOUSE

DOCS = Path(__file__).parents[1] / "docs"


def picture_of_the_floors() -> dict[str, float]:
    """Return the rooms of the architecture page's picture, each with its floor."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    lines = page.partition("```text\n")[2].partition("```")[0].splitlines()
    rooms: dict[str, float] = {}
    floor = -1.0
    for line in lines:
        begins = re.match(r" (\d(?:\.\d)?)  ", line)
        floor = float(begins[1]) if begins else floor
        rooms |= dict.fromkeys(re.findall(r"[\w.*]+", line[6:42]), floor)
    return rooms


def test_the_picture_of_the_floors_is_the_house() -> None:
    """Every room but the private ones, each on its floor, and no other."""
    house = {name or "idempo": floor for floor, names in HOUSE for name in names.split(" ")}
    public = {
        name: floor for name, floor in house.items() if name == "__main__" or not name.split(".")[-1].startswith("_")
    }
    assert picture_of_the_floors() == public
