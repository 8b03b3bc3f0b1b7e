"""The target side works on a board without torch; nothing heavy is imported before it is asked for."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

TARGET_SIDE = ["backends.base", "backends.null", "backends.onnxruntime", "backends.tensorrt.backend",
               "backends.tensorrt.checkup", "backends.tensorrt.trtexec", "timing.rounds", "profiling.compare_outputs",
               "latency.board", "latency.probes.measure", "latency.table.table", "profiling.profile", "quant.calibrate",
               "quant.qdq", "report", "planning.solve",
               "tasks.samples", "planning.choose_precision", "report.predictions", "data.named", "data.deployment",
               "cli.pytest_plugin", "profiling.beside"]  # fmt: skip


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=120)


def test_target_side_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'accelerate'): sys.modules[name] = None\n"
        "import importlib\n"
        f"for name in {TARGET_SIDE!r}: importlib.import_module('pydeploy.' + name)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


LIGHT = {"annotated_doc", "click", "markdown_it", "mdurl", "pydeploy", "pygments", "rich", "shellingham", "typer",
         "typing_extensions"}  # fmt: skip
"""All that the command line may import before it knows its verb. Seconds: ``bench/bench_startup.py``."""
OPTIONS = {"annotated_types", "pydantic", "pydantic_core", "typing_inspection"}
"""What typer itself imports, in some versions, when a verb's options are read."""

IMPORTED = (
    "foreign = {name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
    "print(sorted(name for name in foreign if not name.startswith(('_', 'editable'))))"
)


def foreign_modules(code: str) -> set[str]:
    """Packages outside the standard library that are loaded after `code` ran in a new process."""
    done = run_python(f"import sys\n{code}\n{IMPORTED}")
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    assert foreign_modules("import pydeploy") == {"pydeploy"}


@pytest.mark.parametrize("words", ["--help", "--version", "run --help", "prune --help", "table measure --help"])
def test_help_imports_nothing_heavy(words: str) -> None:
    code = f"sys.argv = ['pydeploy', *{words.split()!r}]\nfrom pydeploy.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert foreign_modules(code) <= (LIGHT if words[0] == "-" else LIGHT | OPTIONS)


def test_loading_a_model_imports_no_tracer() -> None:
    """A saved network is loaded where it is used: what finds structure and what scores channels stays out."""
    code = "import sys, pydeploy\npydeploy.load\npydeploy.save\nprint(sorted(m for m in sys.modules if m.startswith('pydeploy.')))"
    done = run_python(code)
    loaded = ast.literal_eval(done.stdout)
    assert "pydeploy.prune.surgery.save" in loaded
    assert not [
        m for m in loaded if m.startswith(("pydeploy.prune.structure", "pydeploy.prune.criteria", "pydeploy.quant"))
    ]


def test_no_public_name_is_that_of_a_module() -> None:
    """The rule that keeps `pd.solve` what it is: importing a module binds it to the package, over a name that is there."""
    import pydeploy

    modules = {module.name for module in pkgutil.iter_modules(pydeploy.__path__)}
    assert not modules & set(pydeploy.__all__), "rename the module, or the public name"
    assert set(pydeploy.__all__) == set(pydeploy._HOMES)


ANY_ORDER = """
import importlib, pkgutil, random, sys
import pydeploy
modules = sorted(m.name for m in pkgutil.walk_packages(pydeploy.__path__, "pydeploy.")
                 if m.name not in ("pydeploy._core", "pydeploy.__main__"))
first = {name: getattr(pydeploy, name) for name in pydeploy.__all__}
for seed in range(25):
    for name in [name for name in sys.modules if name.split(".")[0] == "pydeploy" and name != "pydeploy._core"]:
        del sys.modules[name]
    import pydeploy as pd
    steps = [("name", n) for n in 2 * pd.__all__] + [("module", m) for m in random.Random(seed).sample(modules, 30)]
    random.Random(seed).shuffle(steps)
    for kind, one in steps:
        if kind == "module":
            importlib.import_module(one)
            continue
        found, wanted = getattr(pd, one), first[one]
        assert type(found) is type(wanted), (seed, one, found)
        assert getattr(found, "__qualname__", found) == getattr(wanted, "__qualname__", wanted), (seed, one, found)
print(len(modules), "modules")
"""


def test_public_names_in_any_order_with_any_modules() -> None:
    """Every name twice and thirty modules, shuffled, in 25 fresh packages: always the same functions and classes."""
    done = run_python(ANY_ORDER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("modules\n")


@pytest.mark.parametrize("name", __import__("pydeploy").__all__)
def test_public_names_exist(name: str) -> None:
    import pydeploy

    assert getattr(pydeploy, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    import pydeploy

    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = pydeploy.prun


WITHOUT_CORE = {
    "missing": "import sys\nsys.modules['pydeploy._core'] = None\n",
    "broken": """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "pydeploy._core":
            raise ImportError("_core.so: invalid ELF header", name=name, path="_core.so")
sys.meta_path.insert(0, Broken())
""",
}


@pytest.mark.parametrize("how", WITHOUT_CORE)
def test_a_missing_compiled_part_explains_itself(how: str) -> None:
    """Each public name and each module either works without the compiled part or says what to do."""
    code = WITHOUT_CORE[how] + (
        "import importlib, pkgutil, pydeploy\n"
        "said = 0\n"
        "modules = [m.name for m in pkgutil.walk_packages(pydeploy.__path__, 'pydeploy.')\n"
        "           if m.name not in ('pydeploy._core', 'pydeploy.__main__')]\n"
        "asked = [lambda m=m: importlib.import_module(m) for m in modules]\n"
        "for ask in [*asked, *(lambda n=n: getattr(pydeploy, n) for n in pydeploy.__all__)]:\n"
        "    try: ask()\n"
        "    except ImportError as error:\n"
        "        assert 'make setup' in str(error) and error.name == 'pydeploy._core', error\n"
        "        said += 1\n"
        "print(said)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.parametrize("how", WITHOUT_CORE)
@pytest.mark.parametrize("verb", ["trace pydeploy:resnet8 --input 1x3x8x8", "run configs/smoke.yaml --out {}", "profile x",
                                  "prune pydeploy:resnet8 --input 1x3x8x8 --ratio 0.5 --out {}"])  # fmt: skip
def test_verbs_without_the_compiled_part_are_one_sentence(how: str, verb: str, tmp_path: Path) -> None:
    arguments = verb.format(tmp_path / "out").split()
    done = run_python(
        f"{WITHOUT_CORE[how]}sys.argv = ['pydeploy', *{arguments!r}]\nfrom pydeploy.cli import main\nmain()"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "make setup" in done.stderr or "does not exist" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", WITHOUT_CORE)
def test_doctor_tells_that_the_compiled_part_is_missing(how: str) -> None:
    done = run_python(f"{WITHOUT_CORE[how]}sys.argv = ['pydeploy', 'doctor']\nfrom pydeploy.cli import main\nmain()")
    assert done.returncode == 0, done.stderr
    assert re.search("compiled part +missing.*make setup", done.stdout)


@pytest.mark.parametrize("package", ["typer", "yaml", "pydantic", "onnx", "onnxruntime", "numpy", "torch"])
def test_a_missing_package_is_one_sentence(package: str, tmp_path: Path) -> None:
    code = f"import sys\nsys.modules['{package}'] = None\nsys.argv = ['pydeploy', 'run', 'configs/smoke.yaml', '--out', '{tmp_path}/r']"
    done = run_python(f"{code}\nfrom pydeploy.cli import main\nmain()")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert package in done.stderr


def test_a_typer_that_does_not_fit_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """typer 0.12 reads the flags of click 8.0 and 8.1 only (tried: 0.12.0 to 0.29.2 with 8.0.0 to 8.5.1)."""
    from pydeploy import cli

    for typer, click, fits in (("0.12.0", "8.5.1", False), ("0.16.1", "8.3.0", False), ("0.12.5", "8.1.8", True), ("0.12", "8.0", True),
                               ("0.19.2", "8.5.1", True), ("0.29.2", "8.5.1", True), ("1.0", "9.0", True)):  # fmt: skip
        monkeypatch.setattr("importlib.metadata.version", {"typer": typer, "click": click}.__getitem__)
        monkeypatch.setattr(sys, "argv", ["pydeploy", "--version"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        errors = capsys.readouterr().err
        assert ended.value.code == (0 if fits else 2)
        assert errors == (
            "" if fits else f"error: typer {typer} does not work with click {click}: pip install --upgrade typer\n"
        )


def test_core_version_is_the_package_version() -> None:
    from pydeploy import _core
    from pydeploy.version import __version__

    assert _core.__version__ == __version__


def test_a_missing_runtime_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['openvino'] = None\n"
        "from pydeploy.backends.base import open_backend\nopen_backend('openvino')"
    )
    done = run_python(code)
    assert "BackendUnavailable" in done.stderr
    assert "pip install 'pydeploy-hil[openvino]'" in done.stderr


def test_package_data_is_there() -> None:
    import pydeploy

    root = Path(pydeploy.__file__).parent
    assert (root / "py.typed").exists()
    assert (root / "_core.pyi").exists()
