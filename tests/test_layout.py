"""A module's tests have its path and name."""

from pathlib import Path, PurePath

ROOT = Path(__file__).parents[1]
#: Declarations that Kedro reads; ``tests/test_conf.py`` tests what they declare.
DECLARATIONS = {"settings.py", "pipeline_registry.py"}


def path_of_tests(module: PurePath) -> PurePath:
    """The test module of a module; the modules of one pipeline have one."""
    if module.parts[0] == "pipelines":
        return PurePath("pipelines", f"test_{module.parts[1]}.py")
    return module.with_name(f"test_{module.stem.strip('_')}.py")


def test_each_module_has_a_test_module() -> None:
    files = [file.relative_to(ROOT / "src" / "rebase") for file in (ROOT / "src" / "rebase").rglob("*.py")]
    modules = [file for file in files if file.name != "__init__.py" and file.name not in DECLARATIONS]
    missing = sorted({str(path) for path in map(path_of_tests, modules) if not (ROOT / "tests" / path).exists()})
    assert missing == [], "write tests of the module there, or move those that are in other files"
