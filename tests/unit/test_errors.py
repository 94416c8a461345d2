"""The error tree: each class carries its whole HTTP mapping and survives the way between actors."""

import json
import pickle
import re
from collections import Counter

import pytest

from serve_app import errors
from serve_app.errors import AppError, ConfigError, RequestError, Unavailable, all_error_classes

CLASSES = all_error_classes()
each_class = pytest.mark.parametrize("error_class", CLASSES, ids=lambda cls: cls.__name__)


@each_class
def test_an_error_survives_pickling_with_its_details(error_class: type[AppError]) -> None:
    error = error_class("Because of 'this'.").at("size").after(7)
    error.allow = "GET"
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is error_class
    assert found.message == "Because of 'this'."
    assert (found.param, found.retry_after_s, found.allow) == ("size", 7, "GET")


@each_class
def test_details_of_one_error_do_not_leak_into_its_class(error_class: type[AppError]) -> None:
    default = error_class("x").retry_after_s
    error_class("x").at("size").after(99)
    assert error_class("x").param is None
    assert error_class("x").retry_after_s == default


@each_class
def test_a_class_has_a_status_a_type_and_a_plausible_retry(error_class: type[AppError]) -> None:
    assert 400 <= error_class.status <= 504
    assert re.fullmatch(r"[a-z_]+", error_class.type)
    assert error_class.code is None or re.fullmatch(r"[a-z_]+", error_class.code)
    if error_class.status < 500 and error_class.status not in {408, 409, 429}:
        assert not error_class.retryable
    json.dumps([error_class.status, error_class.type, error_class.code, error_class.retryable])


def test_a_request_error_is_the_clients_and_the_others_are_ours() -> None:
    for error_class in CLASSES:
        if issubclass(error_class, RequestError):
            assert 400 <= error_class.status < 500
        elif error_class.status != 429:
            assert error_class.status >= 500


def test_codes_are_unique_but_for_those_without_one() -> None:
    codes = Counter(cls.code for cls in CLASSES)
    assert codes.pop(None) == 3  # RequestError, MalformedBody and MissingKey: OpenAI gives none
    assert set(codes.values()) == {1}


def test_an_outage_always_says_when_to_come_back() -> None:
    for error_class in CLASSES:
        if issubclass(error_class, Unavailable):
            assert error_class.status == 503
            assert 0 < (error_class("x").retry_after_s or 0) <= 120


def test_the_root_has_a_message_of_its_own() -> None:
    assert AppError().message == "The server had an error."


def test_a_bad_configuration_is_no_reply() -> None:
    assert not issubclass(ConfigError, AppError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """`Name status [code]`, each below its parent; a child that has no code inherits it."""
    drawn: list[tuple[str, str, int, str | None]] = []
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"    ([│├└─ ]*)(\w+) +(\d{3})(?: (\w+))?", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth] = found[2]
            drawn.append((found[2], parents.get(depth - 1, ""), int(found[3]), found[4]))
    real = [
        (cls.__name__, "" if cls is AppError else cls.__bases__[0].__name__, cls.status)
        for cls in CLASSES
    ]
    assert sorted(entry[:3] for entry in drawn) == sorted(real)
    by_name = {cls.__name__: cls for cls in CLASSES}
    for name, _, _, code in drawn:
        known = {by_name[name].code, by_name[name].type}
        assert code in known or (code is None and by_name[name].code is None), name
