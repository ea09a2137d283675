"""Each public name has exactly one home, and the package hands it out without pulling in Ray."""

import subprocess
import sys

import pytest

import rayobjects
from rayobjects import _HOMES


def test_all_names_are_handed_out() -> None:
    assert sorted(rayobjects.__all__) == rayobjects.__all__ or set(rayobjects.__all__) == set(
        dir(rayobjects)
    )
    assert set(_HOMES) == set(rayobjects.__all__)


@pytest.mark.parametrize("name", sorted(_HOMES))
def test_home(name: str) -> None:
    value = getattr(rayobjects, name)
    assert value.__module__ == _HOMES[name], f"{name} is defined in {value.__module__}"
    assert value.__name__ == name
    assert value.__doc__


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cuonter'"):
        _ = rayobjects.Cuonter  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["rayobjects", "rayobjects.storage", "rayobjects.objects.model"])
def test_lower_layers_do_without_ray(module: str) -> None:
    code = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
