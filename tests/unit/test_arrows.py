# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, what a bare import costs, and how long files and functions may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "shplb"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "sglang", "triton", "flashinfer")

# Package or module (path prefix below shplb) -> what it may import at any depth of its code.
_ALLOWED = {
    "sglang": ("sglang/",),
    "torch": ("kernels/", "sglang/", "hf/"),
    "triton": ("kernels/",),
    "flashinfer": ("kernels/",),
    "transformers": ("hf/", "calibration.py", "quickstart/"),
}
# These may import it inside functions only, so that they load without it.
_LAZY = {"transformers": ("calibration.py", "quickstart/")}

# Arrows among our own modules: a key may not reach the values. Prefixes, as above.
_FORBIDDEN = {
    "budget.py": ("placement", "plan", "profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report"),
    "balance_aware.py": ("plan", "profile", "sglang", "kernels", "hf", "cli", "commands", "show", "report"),
    "placement.py": ("budget", "plan", "profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report"),
    "container.py": ("plan", "profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report"),
    "model.py": ("plan", "profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report"),
    "sparsity.py": ("plan", "profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report"),
    "plan.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "profile.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "planning.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "allocation.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "allocation_together.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "balance_gain.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "steps.py": ("plan", "planning", "profile", "sglang", "kernels", "hf", "cli", "commands", "show", "report"),
    "prediction.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "rank_loads.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "rank_speeds.py": ("plan", "profile", "sglang", "kernels", "hf", "cli", "commands", "show", "report"),
    "targets.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "planner.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "policies.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "recovered_mass.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "weighing.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "needed_density.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "agreement.py": ("profile", "sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "row_sampling.py": ("profile", "sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "recording.py": ("sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "assembly.py": ("sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "importance.py": ("sglang", "cli", "show", "report", "calibration"),
    "stability.py": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "show_stability.py": ("sglang", "kernels", "hf", "cli", "calibration"),
    "report/": ("sglang", "kernels", "hf", "cli", "calibration"),
    "traces.py": ("sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "scheduling.py": ("sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "simulation.py": ("sglang", "kernels", "hf", "cli", "show", "report", "calibration"),
    "device.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "crossover.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "kv_cost.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "step_memory.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "step_fit.py": ("sglang", "kernels", "hf", "cli", "commands", "show", "report", "calibration"),
    "quality/": ("kernels", "hf", "cli", "commands", "show", "report"),
    "diagnosis/": ("kernels", "hf", "cli", "show", "report", "commands"),
    "show_gain.py": ("sglang", "kernels", "hf", "cli", "commands", "calibration", "report"),
    "show_prediction.py": ("sglang", "kernels", "hf", "cli", "commands", "calibration", "report"),
    "show.py": ("sglang", "kernels", "hf", "cli", "calibration"),
    "kernels/": ("sglang", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "texts/": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "patching/": ("sglang", "kernels", "hf", "cli", "show", "show_stability", "report", "calibration"),
    "hf/": ("sglang", "kernels", "cli", "show", "show_stability", "report", "calibration"),
    "sglang/": ("cli", "show", "show_stability", "report", "hf", "quickstart"),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module name, at module level) of every import in a file."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parent = ("shplb", *path.relative_to(PACKAGE).parts)[: -child.level] if child.level else ()
                module = ".".join([*parent, *filter(None, [child.module])])
                yield module, top
                yield from ((f"{module}.{alias.name}", top) for alias in child.names)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, top and not inside)

    yield from visit(ast.parse(path.read_text()), True)


def below(path: Path, prefixes: tuple[str, ...]) -> bool:
    return any(name_of(path).startswith(prefix) for prefix in prefixes)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    for module, top in imports(path):
        package = module.split(".")[0]
        if package in _ALLOWED:
            assert below(path, _ALLOWED[package]), f"{name_of(path)} imports {module}"
            lazy = below(path, _LAZY.get(package, ()))
            assert not (top and lazy), f"{name_of(path)} imports {module} at module level"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_among_our_modules(path: Path) -> None:
    rules = [targets for prefix, targets in _FORBIDDEN.items() if name_of(path).startswith(prefix)]
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "shplb" and len(parts) > 1:
            assert not any(parts[1] in targets for targets in rules), f"{name_of(path)} imports {module}"


def test_only_budget_and_placement_and_planning_modules_touch_the_core() -> None:
    users = {name_of(path) for path in MODULES if any(module == "shplb._core" for module, _ in imports(path))}
    assert users <= {
        "__init__.py",
        "balance_aware.py",
        "budget.py",
        "placement.py",
        "planner.py",
        "simulator.py",
        "replicas.py",
    }


def test_the_rules_name_what_exists() -> None:
    prefixes = {p for table in (_ALLOWED, _LAZY) for group in table.values() for p in group} | set(_FORBIDDEN)
    for prefix in prefixes:
        assert (PACKAGE / prefix).exists(), prefix


@pytest.mark.parametrize(
    "code",
    [
        "import shplb",
        "import shplb.plan, shplb.profile, shplb.planning, shplb.show, shplb.calibration, shplb.quickstart.run",
        "import shplb.importance, shplb.assembly, shplb.commands.profile",
        "import shplb.commands.simulate, shplb.commands.doctor, shplb.commands.report, shplb.diagnosis",
        "import shplb.sglang.server_args, shplb.sglang.features, shplb.sglang.active_plan, shplb.sglang.plugin",
        "import sys; sys.argv = ['shplb', '--help']\nfrom shplb.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_light_imports(code: str) -> None:
    check = f"\nimport sys\nsys.exit(', '.join(sorted(set({HEAVY!r}) & set(sys.modules))) or None)"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_file_lengths() -> None:
    limits = {".py": 300, ".cc": 400, ".h": 200}
    folders = [ROOT / name for name in ("python", "cpp", "tests", "bench", "patches")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in limits]
    assert len(files) > len(MODULES)
    assert not {str(path): _lines(path) for path in files if _lines(path) > limits[path.suffix]}


def test_function_lengths() -> None:
    long = []
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = node.body[0] if ast.get_docstring(node) else None  # what a caller reads is not counted
                described = (text.end_lineno or 0) - text.lineno + 1 if text else 0
                length = (node.end_lineno or 0) - node.lineno + 1 - described
                if length > 50:
                    long.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    assert not long


def test_licence_headers() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "cpp").rglob("*.cc"), *(ROOT / "cpp").rglob("*.h")]
    marks = ("# SPDX-License-Identifier: Apache-2.0", "// SPDX-License-Identifier: Apache-2.0")
    assert not [str(path) for path in files if not path.read_text().startswith(marks)]


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by name alone, and refuses the second of two."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
