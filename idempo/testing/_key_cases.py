"""Contract cases: keys of any text stay distinct."""

from __future__ import annotations

from typing import Final

import pytest

from idempo.protocols import Store
from idempo.records import Key, State
from idempo.testing._case import LONG, Case

TEXTS: Final = (
    *("a", "A", "b", "aa", "a ", " a", "  a", "a\t", "a\n", "a\r\n", "\n", " ", "\t", "\0", "a\0", "\0a", "a\0b"),
    *("a:b", "a::b", "a/b", "a\\b", "a|b", "a,b", "a;b", "a.b", "a-b", "a_b", "a%b", "a*b", "a?b", "[a]", "{a}"),
    *("a'b", 'a"b', "a`b", "a--b", "$a", "#a", "%", "_", "*", "?", "%61", "&amp;", "a'; DROP TABLE records; --"),
    *("1", "01", "1.0", "0", "-0", "None", "null", "True", "nan", "[]", "\x7f", "\x1f"),
    *("straße", "strasse", "STRASSE", "ä", "Ä", "ae", "a\u0308", "e\u0301", "\u00e9", "\u0130", "i", "\u0131"),
    *("\u03c3", "\u03c2", "\u03a3", "\ufb01", "fi", "\uff41", "\u200b", "a\u200b", "\u00a0", "\ufeffa", "\u2028"),
    *("ключ", "مفتاح", "鍵", "鍵 ", "ก", "키", "🔑", "🔑🔑", "👩\u200d🔧", "\U0010ffff", "\ufffd"),
    *("x" * 254, "x" * 255, "x" * 254 + "y", "y" + "x" * 254, "é" * 255, "鍵" * 255, "🔑" * 255, "🔑" * 254 + "🗝"),
)
"""Texts of 1 to 255 characters of which some store or other takes two for one."""


class KeyCases(Case):
    """Behaviour 44: NUL, newlines, spaces, case, any script, normal forms, 255 characters."""

    def test_values_of_any_text_stay_distinct(self, subject: Store) -> None:
        """Behaviour 44: each of them is claimed, and keeps its own outcome."""
        self._assert_distinct(subject, [self.key(text) for text in TEXTS])

    def test_namespaces_of_any_text_stay_distinct(self, subject: Store) -> None:
        """Behaviour 44: two tenants never share a record."""
        self._assert_distinct(subject, [Key(self.namespace + text, "order-42") for text in TEXTS if len(text) < 200])

    def test_namespace_and_value_are_not_run_together(self, subject: Store) -> None:
        """Behaviour 5: ("a:b", "c") is not ("a", "b:c"), whatever joins them."""
        keys = []
        for separator in (":", "::", "/", "|", "\0", "\n", " ", ".", "-", "_", ",", "\x1f", "a"):
            keys.append(Key(f"{self.namespace}{separator}b", "c"))
            keys.append(Key(self.namespace, f"b{separator}c"))
            keys.append(Key(self.namespace, f"{separator}b{separator}c"))
        self._assert_distinct(subject, keys)

    def _assert_distinct(self, subject: Store, keys: list[Key]) -> None:
        assert len(set(keys)) == len(keys)
        for number, key in enumerate(keys):
            claim = self.claim(subject, key, f"owner-{number}")
            if not claim.acquired:
                other = keys[int(claim.record.owner.removeprefix("owner-"))]
                pytest.fail(f"{key!r} and {other!r} share a record")
        for number, key in enumerate(keys):
            assert subject.complete(key, owner=f"owner-{number}", outcome=b"%d" % number, ttl=LONG)
        for number, key in enumerate(keys):
            assert self.stands(subject, key, State.COMPLETED).outcome == b"%d" % number
        for key in keys[::2]:
            assert subject.delete(key)
        assert [subject.get(key) is None for key in keys] == [number % 2 == 0 for number in range(len(keys))]
