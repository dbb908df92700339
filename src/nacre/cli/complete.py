"""What a shell offers when the user presses Tab: `nacre __complete WORD...`, the last word being the one under the cursor.

Answers with one candidate per line, followed by a tab and its explanation where there is one; the line ``:files`` asks the shell for
file names instead. Never fails loudly: a completion that does not know offers nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from nacre.cli import registry
from nacre.cli.context import Context, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.cli.flags import Command, Flag

FILES = ":files"


def main(words: list[str]) -> int:
    """Prints the candidates for a command line without its first word."""
    ctx = Context()
    try:
        for line in candidates(ctx, words or [""]):
            sys.stdout.write(printable(line) + "\n")
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt):
        # No room for a message: the user is typing.
        return 1
    finally:
        ctx.close()
    return 0


def candidates(ctx: Context, words: list[str]) -> Iterator[str]:
    """The lines to print."""
    from nacre.cli.help import GLOBAL_FLAGS

    current, before = words[-1], words[:-1]
    while before and before[0].startswith("-"):
        flag = _flag(GLOBAL_FLAGS, before[0])
        before = before[2:] if flag is not None and flag.kind != "bool" and "=" not in before[0] else before[1:]
    if not before:
        yield from _matching(current, _flag_lines(GLOBAL_FLAGS) if current.startswith("-") else _top_level())
        return
    name, rest = registry.resolve(before)
    if name in registry.GROUPS:
        yield from _matching(current, (f"{member}\t{text}" for member, text in registry.members(name).items()))
    elif name:
        yield from _arguments(ctx, registry.load(name), rest, current)


def _top_level() -> Iterator[str]:
    for name, (_, text) in registry.COMMANDS.items():
        if " " not in name:
            yield f"{name}\t{text}"
    for name, text in registry.GROUPS.items():
        yield f"{name}\t{text}"


def _matching(prefix: str, lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.startswith(prefix))


def _flag_lines(flags: Iterable[Flag]) -> Iterator[str]:
    for flag in flags:
        yield f"--{flag.name}\t{flag.help}"
    yield "--help\tPrint usage"


def _flag(flags: Iterable[Flag], word: str) -> Flag | None:
    """The flag whose value follows a word: ``--name``, ``-e``, ``-ite``."""
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        return next((flag for flag in flags if flag.name == name or name in flag.aliases), None)
    return next((flag for flag in flags if flag.short and word.endswith(flag.short)), None) if len(word) > 1 and word[0] == "-" else None


def _arguments(ctx: Context, command: Command, before: list[str], current: str) -> Iterator[str]:
    positional, index = 0, 0
    while index < len(before):
        word = before[index]
        index += 1
        if word.startswith("-") and word != "-" and (positional == 0 or command.interspersed):
            flag = _flag(command.flags, word)
            if flag is not None and flag.kind != "bool" and "=" not in word:
                if index == len(before):
                    yield from _values(ctx, flag.choices, flag.complete, current)
                    return
                index += 1
        else:
            positional += 1
    flags_end = positional > 0 and not command.interspersed
    if current.startswith("-") and not flags_end:
        yield from _flag_value_or_name(ctx, command, current)
    elif positional == 0 or (command.interspersed and (command.most is None or positional < command.most)):
        taken = set(before)
        yield from (line for line in _values(ctx, (), command.complete, current) if line.partition("\t")[0] not in taken)
    elif flags_end:
        yield FILES


def _flag_value_or_name(ctx: Context, command: Command, current: str) -> Iterator[str]:
    name, equals, value = current.partition("=")
    flag = _flag(command.flags, name)
    if equals and flag is not None:
        yield from (f"{name}={line}" for line in _values(ctx, flag.choices, flag.complete, value) if line != FILES)
    else:
        yield from _matching(current, _flag_lines(command.flags))


def _values(ctx: Context, choices: tuple[str, ...], kind: str, prefix: str) -> Iterator[str]:
    if choices:
        yield from _matching(prefix, filter(None, choices))
    elif kind == "files":
        yield FILES
    elif kind:
        yield from _matching(prefix, _OBJECTS[kind](ctx))
        if kind == "paths" and ":" not in prefix:
            yield FILES


def _containers(ctx: Context, *states: str) -> Iterator[str]:
    for container in ctx.engine.containers.list(all=states != ("running", "paused")):
        if not states or str(container.state) in states:
            yield f"{container.name}\t{container.record.image_name}, {container.state}"


def _images(ctx: Context) -> Iterator[str]:
    from nacre.model.reference import Reference

    for image in ctx.engine.images.list():
        for tag in image.tags:
            yield Reference.parse(tag).familiar()


def _objects(ctx: Context) -> Iterator[str]:
    yield from _containers(ctx)
    yield from _images(ctx)


_OBJECTS: dict[str, Callable[[Context], Iterable[str]]] = {
    "containers": lambda ctx: _containers(ctx),
    "running": lambda ctx: _containers(ctx, "running", "paused"),
    "stopped": lambda ctx: _containers(ctx, "created", "exited"),
    "images": _images,
    "objects": _objects,
    "volumes": lambda ctx: [volume["Name"] for volume in ctx.engine.volumes.list()],
    "networks": lambda ctx: [network.name for network in ctx.engine.networks.list()],
    "paths": lambda ctx: (f"{line.partition(chr(9))[0]}:" for line in _containers(ctx)),
    "shells": lambda ctx: ("bash", "fish", "zsh"),
}
