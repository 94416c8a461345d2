"""Wire models by themselves: nulls, strict types, and the first error as a sentence."""

import re
from typing import Any, get_args

import pytest

from serve_app import config, schema
from serve_app.engine import job
from serve_app.errors import InvalidType, InvalidValue, MissingParameter, RequestError
from serve_app.schema import ErrorDetail, ImageData, ImageRequest, parse_request


def test_a_request_needs_a_prompt_only() -> None:
    request = parse_request(ImageRequest, {"prompt": "x"})
    assert request.model_dump(exclude_none=True) == {"prompt": "x"}


def test_null_is_absent_and_unknown_fields_are_ignored() -> None:
    data = {"prompt": "x", "n": None, "size": None, "whatever": 1, "frames": None}
    assert parse_request(ImageRequest, data) == ImageRequest(prompt="x")


@pytest.mark.parametrize(
    ("data", "error_class", "param"),
    [
        ({}, MissingParameter, "prompt"),
        ({"prompt": None}, MissingParameter, "prompt"),
        ({"prompt": 1}, InvalidType, "prompt"),
        ({"prompt": ""}, InvalidValue, "prompt"),
        ({"prompt": "x", "n": 0}, InvalidValue, "n"),
        ({"prompt": "x", "n": "1"}, InvalidType, "n"),
        ({"n": 0}, MissingParameter, "prompt"),
    ],
)
def test_the_first_error_names_its_field(
    data: dict[str, Any], error_class: type[RequestError], param: str
) -> None:
    with pytest.raises(error_class) as caught:
        parse_request(ImageRequest, data)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message
    assert re.search(r"[^.]\.$", caught.value.message)


def test_a_message_never_repeats_what_was_sent() -> None:
    for field in ("prompt", "size", "quality", "user", "model", "output_format"):
        with pytest.raises(RequestError) as caught:
            parse_request(ImageRequest, {"prompt": "x", field: "hunter2" * 10_000})
        assert "hunter2" not in caught.value.message


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ImageRequest(prompt="x").prompt = "y"  # type: ignore[misc]


def test_the_url_of_an_image_is_always_a_string() -> None:
    assert ImageData.model_fields["url"].is_required()
    assert ImageData.model_fields["url"].annotation is str


def test_an_error_always_has_its_four_keys() -> None:
    found = ErrorDetail(message="m", type="t", param=None, code=None).model_dump()
    assert set(found) == {"message", "type", "param", "code"}


def test_layers_that_may_not_import_each_other_agree_on_their_words() -> None:
    assert get_args(schema.Quality) == get_args(config.Quality)
    assert get_args(schema.OutputFormat) == get_args(job.OutputFormat)
