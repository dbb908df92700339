"""The importer of the starter programs: modules from one file instead of a hundred (docs/decisions/module-bundle.md).

A bundle begins with FIRST bytes that hold the marshalled code of this page, filled up with zeros. Then come eight bytes with the length
of the head (little endian), the head, and the code objects of the modules one after the other, marshalled each. The head is a marshalled
pair: `owner()`, and {module: (path of its source, time of its change in ns, its size, offset of its code after the head, length)}.
`scripts/write-bundle` writes it; a starter (`scripts/write-launcher`) runs the code at its beginning and calls `install`.

A module whose source is not exactly the one that was compiled is left to the import system, and so is what cannot be read.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader
from marshal import loads
from posix import close, pread, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

FORMAT = 1
FIRST = 16384


class Loader(SourceFileLoader):
    """Has a module's code already. All else, such as the text that a traceback shows, comes from the source."""

    where = 0, 0, 0  # descriptor of the bundle, length and offset of the code in it

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code; from its source when the bundle is damaged."""
        try:
            code: CodeType = loads(pread(*self.where))
        except (OSError, EOFError, TypeError, ValueError):
            return super().get_code(fullname)
        return code


class Finder:
    """Finds the modules of one bundle (`importlib.abc.MetaPathFinder`). bundle: its descriptor; start: offset of the first code."""

    def __init__(self, bundle: int, start: int, entries: dict[str, tuple[str, int, int, int, int]]) -> None:
        self._bundle, self._start, self._entries = bundle, start, entries

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What to load for a name; None = ask the next finder."""
        if fullname not in self._entries:
            return None
        source, changed, size, offset, length = self._entries[fullname]
        try:
            status = stat(source)
        except OSError:
            return None
        if status.st_mtime_ns != changed or status.st_size != size:
            return None
        directory, _, file = source.rpartition("/")
        loader = Loader(fullname, source)
        loader.where = self._bundle, length, self._start + offset
        spec = ModuleSpec(fullname, loader, origin=source, is_package=file == "__init__.py")
        spec.has_location = True
        spec.cached = f"{directory}/__pycache__/{file[:-2]}{sys.implementation.cache_tag}.pyc"
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(directory)
        return spec


def owner() -> str:
    """What a bundle belongs to: its format, the interpreter and the search path."""
    return repr((FORMAT, sys.version, sys.path))


def install(bundle: int) -> None:
    """Import from the bundle with this descriptor what is in it, from now on; if it belongs to another interpreter, close it."""
    size = int.from_bytes(pread(bundle, 8, FIRST), "little")
    made_for, entries = loads(pread(bundle, size, FIRST + 8))
    if made_for == owner():
        sys.meta_path.insert(0, Finder(bundle, FIRST + 8 + size, entries))
    else:
        close(bundle)
