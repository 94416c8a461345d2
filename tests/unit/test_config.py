"""The configuration tree: frozen, with units in its names, and refused when it cannot work."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serve_app.config import AppConfig, ModelConfig, Section
from serve_app.registry import MODEL_DEFAULTS

MINI = {"id": "flux-mini"}
QUANTITY = re.compile(
    r"(max|min|n|num)_|_(max|min)$|timeout|ttl|interval|size|threads|edge|pixels|wait|age\b|limit"
)
UNIT = re.compile(
    r"_(s|px|bytes|chars|tokens|samples|threads|steps|images|units|entries|pixels|cpus|gpus|gib)(_max)?$"
)
WITHOUT_UNIT = {
    "default_size",  # WIDTHxHEIGHT, as in the API
    "text_tokens_max",
    "guidance_scale",
    "max_batch_size",  # Ray Serve's own name
    "pool_size",  # SQLAlchemy's own name
}


def app(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({"models": [MINI], **changes})


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its path, the root first."""
    yield path, model
    for name, field in model.model_fields.items():
        text = repr(field.annotation)
        for candidate in Section.__subclasses__():
            if f".{candidate.__name__}" in text:
                yield from sections(candidate, f"{path}.{name}".lstrip("."))


SECTIONS = list(sections(AppConfig))
each_section = pytest.mark.parametrize(
    ("path", "section"), SECTIONS, ids=[path or "root" for path, _ in SECTIONS]
)


def test_the_walk_finds_every_section() -> None:
    assert {section for _, section in SECTIONS} == set(Section.__subclasses__())


@each_section
def test_an_unknown_key_is_refused(path: str, section: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({"no_such_key": 1})
    assert any(
        error["type"] == "extra_forbidden" and error["loc"] == ("no_such_key",)
        for error in caught.value.errors()
    )


@each_section
def test_every_field_says_what_it_is(path: str, section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{path}.{name}"


@each_section
def test_a_quantity_has_its_unit_in_its_name(path: str, section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        numeric = field.annotation in (int, float) or "int" in repr(field.annotation)
        if numeric and QUANTITY.search(name) and name not in WITHOUT_UNIT:
            assert UNIT.search(name), f"{path}.{name}"


def test_a_configuration_cannot_be_changed() -> None:
    config = app()
    for target, name in [(config, "public_url"), (config.models[0], "id"), (config.ledger, "url")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, "x")


@pytest.mark.parametrize("model_id", sorted(MODEL_DEFAULTS))
def test_a_known_model_needs_its_id_only(model_id: str) -> None:
    model = ModelConfig.model_validate({"id": model_id})
    for name, value in MODEL_DEFAULTS[model_id].items():
        assert getattr(model, name) == value


def test_what_is_written_wins_over_what_is_known() -> None:
    model = ModelConfig.model_validate({"id": "flux-mini", "source": "/models/mine", "num_cpus": 3})
    assert (model.source, model.num_cpus) == ("/models/mine", 3)


def test_an_unknown_model_needs_a_source() -> None:
    with pytest.raises(ValidationError, match="source"):
        ModelConfig.model_validate({"id": "mine"})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"models": []}, "models"),
    ({"models": [MINI, MINI]}, "model names used twice"),
    ({"models": [{**MINI, "aliases": ["flux-mini"]}]}, "model names used twice"),
    ({"models": [{**MINI, "aliases": ["a", "a"]}]}, "model names used twice"),
    (
        {"models": [{"id": "a/x", "source": "s"}, {"id": "b/x", "source": "s"}]},
        "would share a name",
    ),
    ({"ledger": {"hold_ttl_s": 300}, "limits": {"request_timeout_s": 300}}, "hold_ttl_s"),
    ({"ledger": {"hold_ttl_s": 299}}, "hold_ttl_s"),
    ({"limits": {"request_timeout_s": 900}}, "hold_ttl_s"),
    ({"limits": {"request_timeout_s": 0}}, "request_timeout_s"),
    ({"limits": {"body_max_bytes": 0}}, "body_max_bytes"),
    ({"models": [{**MINI, "min_edge_px": 2048}]}, "min_edge_px is larger"),
    ({"models": [{**MINI, "max_steps": 4}]}, "quality_steps exceeds max_steps"),
    ({"models": [{**MINI, "quality_steps": {"low": 1}}]}, "quality_steps lacks"),
    ({"models": [{**MINI, "max_images": 11}]}, "max_images"),
    ({"models": [{**MINI, "default_size": "big"}]}, "default_size"),
    ({"models": [{**MINI, "default_size": "2048x2048"}]}, "size 2048x2048 is outside"),
    ({"models": [{**MINI, "max_edge_px": 512}]}, "size 1024x1024 is outside"),
    ({"models": [{**MINI, "max_pixels": 512 * 512}]}, "has more than max_pixels"),
    ({"models": [{**MINI, "default_size": "64x64"}]}, "size 64x64 is outside"),
    ({"models": [{**MINI, "id": "модель", "source": "s"}]}, "id"),
    ({"models": [{**MINI, "id": "a b", "source": "s"}]}, "id"),
    ({"models": [{**MINI, "id": "a\n", "source": "s"}]}, "id"),
    ({"models": [{**MINI, "id": "org/", "source": "s"}]}, "id"),
    ({"models": [{**MINI, "id": "", "source": "s"}]}, "id"),
    ({"models": [{**MINI, "aliases": [""]}]}, "aliases"),
    ({"models": [{**MINI, "aliases": ["x" * 201]}]}, "aliases"),
    ({"models": [{**MINI, "engine": {"precision": "fp7"}}]}, "precision"),
    ({"models": [{**MINI, "batching": {"max_batch_size": 0}}]}, "max_batch_size"),
    ({"public_url": "images.example"}, "public_url"),
    ({"public_url": "ftp://images.example"}, "public_url"),
    ({"public_url": "http://x/?q"}, "public_url"),
    ({"development": {"key": "short"}}, "key"),
    ({"development": {}}, "key"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[str(case[1]) for case in REFUSED])
def test_what_could_not_work_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        app(**changes)


def test_a_deployment_is_named_after_its_model() -> None:
    model = ModelConfig.model_validate({"id": "black-forest-labs/FLUX.1-schnell"})
    assert model.deployment_name == "FluxModel-FLUX.1-schnell"


def test_the_development_account_is_off_unless_configured() -> None:
    assert app().development is None


def test_no_store_is_a_choice_and_not_a_slip() -> None:
    assert app().store is not None
    assert app(store=None).store is None


def test_compiling_without_sizes_to_compile_is_refused() -> None:
    optimize = {"compile_transformer": "dynamic"}
    model = {"id": "flux-mini", "default_size": "256x256", "engine": {"optimize": optimize}}
    with pytest.raises(ValueError, match="warm_up_sizes"):
        ModelConfig.model_validate(model)
    model["engine"] = {"optimize": optimize, "warm_up_sizes": ["256x256"]}
    assert ModelConfig.model_validate(model).engine.optimize.compile_transformer == "dynamic"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"accelerator_type": "H100"}, "num_gpus is 0"),
        ({"num_gpus": 1, "accelerator_type": "nvidia h100"}, "accelerator_type"),
        ({"resources": {"GPU": 1}}, "num_gpus"),
        ({"resources": {"memory": 1}}, "Ray's own"),
        ({"resources": {"fast": 0}}, "resources.fast"),
    ],
)
def test_where_a_model_runs_must_make_sense(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        ModelConfig.model_validate({"id": "x", "source": "y", **changes})
