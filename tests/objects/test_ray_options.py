"""What a class may ask of its objects' actors."""

from __future__ import annotations

import re
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.objects.catalog import describe

GOOD: list[dict[str, Any]] = [
    {},
    {"num_cpus": 0},
    {"num_cpus": 1.5, "num_gpus": 0.25, "memory": 2**30},
    {"num_gpus": 4, "resources": {"disk": 1, "slots": 0.1}},
    {"label_selector": {"region": "eu", "zone": "!a"}},
    {"label_selector": {"a": "in(x,y)"}, "fallback_strategy": [{"label_selector": {"a": "z"}}]},
    {"runtime_env": {"env_vars": {"A": "1"}}},
]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_cpu": 1}, "unknown ray_option 'num_cpu'; there are num_cpus, num_gpus, memory"),
    ({"max_restarts": 0}, "unknown ray_option 'max_restarts'"),
    ({"num_cpus": -1}, "num_cpus of Model is a number of CPUs, 0 or more, not -1"),
    ({"num_cpus": "1"}, "num_cpus of Model is a number"),
    ({"num_cpus": True}, "num_cpus of Model is a number"),
    ({"num_gpus": 1.5}, "num_gpus of Model is a whole number of GPUs, or a part of one"),
    ({"memory": 0}, "memory of Model is a number of bytes"),
    ({"memory": "1 GB"}, "memory of Model is a number of bytes"),
    ({"resources": ["disk"]}, "resources of Model is a dict"),
    ({"resources": {"GPU": 1}}, "has 'GPU', which has an option of its own: num_gpus"),
    ({"resources": {"disk": "much"}}, "for each resource; 'disk' has none"),
    ({"label_selector": "eu"}, "label_selector of Model is a dict"),
    ({"label_selector": {"region": 1}}, "label_selector of Model is a dict"),
    ({"fallback_strategy": {"region": "us"}}, "fallback_strategy of Model is a list"),
    ({"fallback_strategy": [{"num_cpus": 1}]}, "fallback_strategy of Model is a list"),
    ({"fallback_strategy": [{"label_selector": 1}]}, "fallback_strategy of Model is a dict"),
    ({"runtime_env": "torch"}, "runtime_env of Model is a dict"),
]


def model(options: dict[str, Any]) -> type[ro.DurableObject]:
    class Model(ro.DurableObject, hosting="dedicated", ray_options=options):
        pass

    return Model


@pytest.mark.parametrize("options", GOOD)
def test_options_that_there_are(options: dict[str, Any]) -> None:
    assert describe(model(options)).ray_options == options


@pytest.mark.parametrize(("options", "problem"), BAD)
def test_options_that_there_are_not(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ro.InvalidCall, match=re.escape(problem)):
        describe(model(options))
