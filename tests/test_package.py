"""The package as a whole: its public names, its version, and what importing it costs."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import s3t
from s3t import errors, version
from tests.conftest import Run

PUBLIC = [
    "S3T",
    "Config",
    "ConfigError",
    "DamagedNodeError",
    "DataError",
    "ExhaustedError",
    "InputError",
    "IntegrityError",
    "PublicSampleError",
    "RequestConflictError",
    "S3TError",
    "UnavailableError",
    "UnknownSampleError",
    "__version__",
    "load_config",
    "pipeline",
]
HEAVY = ["torch", "transformers", "peft", "accelerate", "datasets", "pydantic", "numpy"]

IMPORT = f"""
import json, sys, time
start = time.perf_counter()
import s3t
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(set({HEAVY}) & set(sys.modules))]))
"""


def test_public_names() -> None:
    assert s3t.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(s3t))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_exists(name: str) -> None:
    assert getattr(s3t, name) is getattr(s3t, name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = s3t.nothing


def test_every_error_is_public() -> None:
    tree = {name for name in errors.__all__ if name.endswith("Error")}
    assert tree <= set(s3t.__all__)


def test_import_is_light_and_fast(run_python: Callable[[str], str]) -> None:
    runs = [json.loads(run_python(IMPORT)) for _ in range(3)]
    assert [loaded for _, loaded in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 0.5


def test_version_is_that_of_setup_cfg(repo_root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(repo_root / "setup.cfg", encoding="utf-8")
    assert s3t.__version__ == setup["metadata"]["version"]


def test_is_typed(repo_root: Path) -> None:
    assert (repo_root / "s3t" / "py.typed").is_file()


def test_every_folder_is_a_package(repo_root: Path) -> None:
    folders = {path.parent for path in (repo_root / "s3t").rglob("*.py")}
    bare = sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file())
    assert not bare, f"a wheel would leave these out, for want of __init__.py: {bare}"


def test_configs_ship(repo_root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(repo_root / "setup.cfg", encoding="utf-8")
    globs = setup["options.package_data"]["s3t"].split(", ")
    shipped = {path for one in globs for path in (repo_root / "s3t").glob(one)}
    wanted = [repo_root / "s3t/configs" / name for name in ("digits.yaml", "hub/roberta_sst2.yaml")]
    assert shipped.issuperset(wanted)


def test_version_is_told(s3t: Run) -> None:
    assert s3t("--version").out == f"s3t {version.__version__}\n"
