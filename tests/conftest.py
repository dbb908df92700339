"""What every test may use: the golden-file helper and the modules of scripts/."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "scripts"))

# A shell ignores these for what it starts in the background, and every child would inherit that: tests send them.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite the golden files with what the code produces now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is nothing to test in these directories."""
    if os.geteuid() == 0:
        return
    for item in items:
        for kind in ("integration", "conformance"):
            if ROOT / "tests" / kind in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"{kind} tests need root: sudo make {kind}"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: text equals tests/golden/<name>; --regenerate writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {name}; make it with: pytest --regenerate"
        assert text == path.read_text()

    return check


@contextmanager
def _no_descriptor_left() -> Iterator[None]:
    # Garbage of other tests may be collected, and their last threads end, at any time: what disappears says nothing.
    before = _descriptors()
    yield
    if _descriptors().items() - before.items():
        gc.collect()  # not always: it takes long among the objects of thousands of tests
    assert _descriptors().items() - before.items() == set()


def _descriptors() -> dict[str, str]:
    """Open descriptors and what they are open to."""
    found = {name: _target(name) for name in os.listdir("/proc/self/fd")}
    return {name: what for name, what in found.items() if what}


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""  # the listing's own


@pytest.fixture
def no_descriptor_left() -> Callable[[], AbstractContextManager[None]]:
    """`with no_descriptor_left():` fails when a file descriptor that was opened inside is open at the end."""
    return _no_descriptor_left
