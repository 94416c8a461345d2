"""The graph's own rules, without a cluster: what it refuses and what it wires."""

import subprocess
import sys
from typing import Any

import pytest

from serve_app import graph
from serve_app.config import AppConfig, BatchingConfig, ModelConfig
from serve_app.errors import ConfigError


def config(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({"models": [{"id": "flux-mini"}], **changes})


DEVELOPMENT = config(development={"key": "sk-local-development"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.com", ""])
def test_a_development_key_is_refused_where_others_can_reach_it(host: str) -> None:
    with pytest.raises(ConfigError, match="development"):
        graph.refuse_development(DEVELOPMENT, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", None])
def test_a_development_key_is_fine_on_loopback_and_outside_serve(host: str | None) -> None:
    graph.refuse_development(DEVELOPMENT, host)


def test_without_a_development_key_any_host_will_do() -> None:
    graph.refuse_development(config(), "0.0.0.0")


SIMULATED = {"models": [{"id": "flux-mini", "source": "simulated:h200:schnell"}]}


def test_a_simulated_model_is_refused_where_others_can_reach_it_unless_allowed() -> None:
    with pytest.raises(ConfigError, match="allow_simulated"):
        graph.refuse_simulated(config(**SIMULATED), "0.0.0.0")
    graph.refuse_simulated(config(**SIMULATED, allow_simulated=True), "0.0.0.0")
    graph.refuse_simulated(config(**SIMULATED), "127.0.0.1")
    graph.refuse_simulated(config(**SIMULATED), None)
    graph.refuse_simulated(config(), "0.0.0.0")


def test_asking_where_serve_listens_starts_no_cluster() -> None:
    """In a process of its own: other tests may have a cluster in this one."""
    ask = "from serve_app import graph; print(graph.serving_host(), graph.ray.is_initialized())"
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "False"]


def test_a_model_gets_its_devices_its_name_and_a_queue_that_ends() -> None:
    model = ModelConfig.model_validate({"id": "black-forest-labs/FLUX.1-dev", "num_cpus": 3})
    deployment = graph._model(model, 320.0)._bound_deployment
    assert deployment.name == "FluxModel-FLUX.1-dev"
    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.max_queued_requests > 0
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 320.0


def test_a_model_goes_only_to_the_kind_of_node_that_it_names() -> None:
    model = ModelConfig.model_validate(
        {
            "id": "black-forest-labs/FLUX.1-dev",
            "accelerator_type": "H100",
            "resources": {"flux": 1},
        }
    )
    options = graph._model(model, 320.0)._bound_deployment.ray_actor_options
    assert options["accelerator_type"] == "H100"
    assert options["resources"] == {"flux": 1}


def test_a_model_that_names_no_node_asks_for_none() -> None:
    options = graph._model(ModelConfig(id="x", source="y"), 320.0)._bound_deployment
    assert set(options.ray_actor_options) == {"num_cpus", "num_gpus"}


def test_a_replica_holds_more_jobs_than_a_full_prompt_batch() -> None:
    """Else handles poll for a free replica instead of feeding its queue."""
    (limit,) = [
        rule.le
        for rule in BatchingConfig.model_fields["max_batch_size"].metadata
        if hasattr(rule, "le")
    ]
    assert 2 * limit <= graph.MODEL_MAX_ONGOING
