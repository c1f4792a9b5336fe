"""What must hold, each in an environment of its own: ``nox --list``.

Arguments after ``--`` go to the session's command: ``nox -s tests -- tests/jobs -x``.
"""

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "tests", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTEST = ("python", "-m", "pytest", "-q")
PARALLEL = ("--numprocesses", "auto")
FIELD = ("tests/field", "docs/earth-observation.md")
# Each module, the command, files that tests and pages read: what a wheel or an sdist may lack.
PACKAGED = ("tests/test_imports.py", "tests/test_tensorflow.py", "tests/cli", "docs", "README.md")
UPSTREAM = ("pydata/xarray", "dask/dask", "dask/distributed", "zarr-developers/zarr-python")


@nox.session
def lint(session: nox.Session) -> None:
    """Run what pre-commit runs at each commit, on all files."""
    install(session, "--editable", ".[examples,test]", *groups("dev"))
    hooks = session.posargs or ["--all-files"]
    session.run("pre-commit", "run", "--show-diff-on-failure", *hooks)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the doctests, as many at once as there are cores."""
    install(session, "--editable", ".[test]")
    run_tests(session)


@nox.session
def field(session: nox.Session) -> None:
    """Run the tests with files and objects of other libraries of the field."""
    install(session, "--editable", ".[test,test-field]")
    run_tests(session, *FIELD)


@nox.session
def floors(session: nox.Session) -> None:
    """Run the tests with the oldest of all that xpatches needs."""
    install(session, "--editable", ".[test]", *oldest())
    run_tests(session)


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests, those of the field too; the newest Python there is goes to --force-python."""
    install(session, "--editable", ".[test,test-field]")
    run_tests(session)


@nox.session
def upstream(session: nox.Session) -> None:
    """Run the tests with what xarray, dask and zarr will release next, and NumPy's candidates."""
    install(session, "--editable", ".[test]")
    install(session, "--upgrade", "--pre", "numpy")
    sources = [f"git+https://github.com/{repository}" for repository in UPSTREAM]
    install(session, "--upgrade", "--no-deps", *sources)
    run_tests(session)


@nox.session
def queryplanning(session: nox.Session) -> None:
    """Run the tests of dask arrays with dask's query planning on."""
    install(session, "--editable", ".[test]")
    session.env["DASK_ARRAY__QUERY_PLANNING"] = "True"
    run_tests(session, "tests/test_query_planning.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning fails."""
    install(session, "--editable", ".", *groups("docs"))
    command = ("sphinx-build", "--quiet", "--fail-on-warning", "--fresh-env")
    session.run(*command, "docs", *(session.posargs or ["docs/_build"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Compare the benchmarks of two commits: main and HEAD, or those that are given."""
    install(session, "asv>=0.6.4", "virtualenv")
    commits, config = session.posargs or ["main", "HEAD"], ("--config", "benchmarks/asv.conf.json")
    session.run("asv", "machine", "--yes", *config)
    session.run("asv", "continuous", *config, *commits)


@nox.session
def build(session: nox.Session) -> None:
    """Build an sdist and of that a wheel, into a folder; test the wheel with the sdist's tests."""
    install(session, "build")
    scratch = Path(session.create_tmp()).resolve()
    dist = Path(session.posargs[0]).resolve() if session.posargs else scratch / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    install(session, f"{wheel}[test]")
    shutil.unpack_archive(sdist, scratch)
    with session.chdir(scratch / sdist.name.removesuffix(".tar.gz")):
        shutil.rmtree("xpatches")  # the installed one is tested
        session.run(*PYTEST, *PARALLEL, *PACKAGED)


def install(session: nox.Session, *requirements: str) -> None:
    """Install with pip, without a word unless it fails, and compile what is imported only."""
    session.install("--quiet", "--no-compile", *requirements)


def groups(*names: str) -> tuple[str, ...]:
    """List the requirements of dependency groups."""
    return nox.project.dependency_groups(PROJECT, *names)


def oldest() -> list[str]:
    """List the oldest version that is allowed of each dependency and of distributed, for pip."""
    project, pins = PROJECT["project"], []
    for requirement in project["dependencies"] + project["optional-dependencies"]["distributed"]:
        pinned, replaced = re.subn(">=", "==", requirement)
        if replaced != 1 or "," in requirement:
            message = f"pyproject.toml: {requirement!r} has no floor of the form name>=version"
            raise ValueError(message)
        pins.append(pinned)
    return pins


def run_tests(session: nox.Session, *paths: str) -> None:
    """Run pytest with the arguments that the session got, else on these paths, else on all."""
    session.run(*PYTEST, *(session.posargs or (*PARALLEL, *paths)))
