"""Keys: what a key may be, what stores call it, how templates make one."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiocheckpoint import Checkpointer, Runtime
from aiocheckpoint._keys import Template, check_key, key_of, store_name

GOOD = ["a", "a" * 200, "é" * 100, "👩‍🚀", " ", "..", "/", "a/b", "%", "~", "ﬁ", "\u200b", "K"]
BAD = [
    "",
    "a" * 201,
    "é" * 100 + "a",
    "a\0b",
    "a\nb",
    "\t",
    "\x7f",
    "\x80",
    "\x9f",
    "\ud800",
    "a\udfff",
]

keys = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200).filter(
    lambda key: len(key.encode()) <= 200
)
# what file systems confuse most: long s, sharp s, Kelvin, ligatures, Turkish i, combining marks
ALIKE = "aAbBs\u017f\u00df\u1e9ekK\u212aéÉe\u0301\ufb01fi\u0130\u0131./%~-_\\ :"
tricky = st.text(ALIKE, min_size=1, max_size=8)


@pytest.mark.parametrize("key", GOOD)
def test_a_key_is_1_to_200_bytes_without_control_characters(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", BAD)
def test_any_other_text_is_refused_and_the_reason_named(key: str) -> None:
    with pytest.raises(ValueError, match=r"1 to 200 bytes|control character|lone surrogate"):
        check_key(key)


@pytest.mark.parametrize("key", [None, 5, b"k", ["k"]])
def test_what_is_no_text_is_no_key(key: Any) -> None:
    with pytest.raises(TypeError, match="a key is a str"):
        check_key(key)


@pytest.mark.parametrize("key", BAD)
async def test_a_bad_key_is_refused_wherever_one_is_given(key: str) -> None:
    async def task(cp: Checkpointer[bytes]) -> None:
        raise AssertionError

    async with Runtime("memory:") as rt:
        with pytest.raises(ValueError, match="key"):
            rt.open(key)
        with pytest.raises(ValueError, match="key"):
            await rt.latest(key)
        with pytest.raises(ValueError, match="key"):
            await rt.delete(key)
        with pytest.raises(ValueError, match="key"):
            await rt.run(task, key=key)


def folded(name: str) -> set[str]:
    """What file systems may take a name for."""
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    return {form.casefold() for form in forms} | {form.upper() for form in forms}


@settings(max_examples=300)
@given(a=keys | tricky, b=keys | tricky)
@example("a", "A")
@example("K", "k")
@example("é", "e\u0301")
@example("ﬁ", "fi")
@example("a.", "a")
@example("%41", "A")
@example("a" * 200, "a" * 199)
@example("A" * 66, "A" * 67)
def test_different_keys_have_names_that_no_file_system_confuses(a: str, b: str) -> None:
    if a != b:
        assert not folded(store_name(a)) & folded(store_name(b))


@settings(max_examples=300)
@given(key=keys | tricky)
def test_a_name_is_short_and_plain(key: str) -> None:
    name = store_name(key)
    assert 1 <= len(name) <= 140
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.%~")
    assert name[0] != "."
    assert name[-1] != "."
    assert name.lower() not in ("nul", "con") or key == name


@settings(max_examples=300)
@given(key=keys | tricky)
def test_a_name_that_is_not_a_digest_gives_the_key_back(key: str) -> None:
    name = store_name(key)
    assert key_of(name) == (None if "%~" in name else key)
    if len(key) <= 40 and key.isascii():
        assert key_of(name) == key


def test_plain_keys_are_their_own_names() -> None:
    for key in ("train-42", "a.b", "x_y", "0"):
        assert store_name(key) == key
    assert store_name("a/b") == "a%2fb"
    assert store_name("..") == "%2e%2e"


def test_a_key_that_looks_like_another_ones_digest_is_told_from_it() -> None:
    long = "x" * 200
    assert key_of(store_name(long)) is None
    assert store_name(store_name(long)) != store_name(long)
    assert key_of(store_name(store_name(long))) in (None, store_name(long))


# Templates.


async def train(cp: object, run_id: str, steps: int = 3, *more: int, flag: bool = False) -> None:
    """A task."""


@pytest.mark.parametrize(
    ("template", "args", "key"),
    [
        ("fixed", ("r",), "fixed"),
        ("train/{run_id}", ("r1",), "train/r1"),
        ("{run_id}-{steps}", ("r1",), "r1-3"),
        ("{run_id}-{steps}", ("r1", 5), "r1-5"),
        ("{{{run_id}}}", ("r1",), "{r1}"),
        ("{{run_id}}", ("r1",), "{run_id}"),
        ("{run_id}", ("{steps}",), "{steps}"),
        ("{run_id}", ("../../etc/passwd",), "../../etc/passwd"),
        ("{flag}", ("r1",), "False"),
    ],
)
def test_a_template_takes_arguments_by_name(template: str, args: tuple[Any, ...], key: str) -> None:
    assert Template(template, train).fill(args) == key


@pytest.mark.parametrize(
    "template",
    [
        "{run_id.__class__}",
        "{run_id[0]}",
        "{0}",
        "{}",
        "{missing}",
        "{run_id!r}",
        "{run_id:>10}",
        "{run_id.__init__.__globals__}",
        "{cp}",
    ],
)
def test_fields_are_names_of_parameters_and_nothing_else(template: str) -> None:
    with pytest.raises(ValueError, match=r"not a plain parameter name.*run_id, steps"):
        Template(template, train).fill(("r1",))


@pytest.mark.parametrize("template", ["{", "}", "{run_id", "a{b", "{{}"])
def test_a_broken_template_is_an_error_that_shows_it(template: str) -> None:
    with pytest.raises(ValueError, match="template") as caught:
        Template(template, train).fill(("r1",))
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize("value", ["", "x" * 201, "a\nb", "\ud800"])
def test_arguments_that_make_no_key_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="key"):
        Template("{run_id}", train).fill((value,))


def test_arguments_that_do_not_fit_the_function_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="run_id"):
        Template("{run_id}", train).fill(())


def test_bound_keywords_count_as_arguments() -> None:
    bound = functools.partial(train, steps=9)
    assert Template("{run_id}-{steps}", bound).fill(("r1",)) == "r1-9"


@given(value=st.text(max_size=30))
def test_an_argument_is_never_taken_for_a_template(value: str) -> None:
    try:
        expected = check_key(f"a{value}")
    except ValueError:
        return
    assert Template("a{run_id}", train).fill((value,)) == expected
