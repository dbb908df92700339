"""Executes a parsed template (`nacre.cli.template`) over data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nacre.cli.template import Node, Struct, line_and_column
from nacre.cli.template_functions import NO_VALUE, FunctionError, go_string, kind_of, truth
from nacre.errors import InvalidArgument

if TYPE_CHECKING:
    from nacre.cli.template import Template

_DEPTH = 200  # nested {{template}} calls


class _Break(Exception):
    """{{break}}."""


class _Continue(Exception):
    """{{continue}}."""


class Run:
    """One execution."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.output: list[str] = []
        self.variables: list[tuple[str, Any]] = []
        self.depth = 0

    def text(self, data: Any) -> str:
        """The whole output."""
        self.variables = [("$", data)]
        self._walk(self.template.root, data)
        return "".join(self.output)

    def _error(self, node: Node, message: str) -> InvalidArgument:
        line, column = line_and_column(self.template.text, node.position)
        shown = node.source if len(node.source) <= 20 else node.source[:20] + "..."
        return InvalidArgument(f'template: :{line}:{column}: executing "" at <{shown}>: {message}')

    # ---- statements

    def _walk(self, node: Node, dot: Any) -> None:
        if node.kind == "text":
            self.output.append(node.parts[0])
        elif node.kind == "list":
            for part in node.parts:
                self._walk(part, dot)
        elif node.kind == "action":
            value = self._pipe(node.parts[0], dot)
            if not node.parts[0].parts[0]:
                self.output.append("<no value>" if value is None else go_string(value))
        elif node.kind in ("if", "with"):
            self._condition(node, dot)
        elif node.kind == "range":
            self._range(node, dot)
        elif node.kind == "template":
            self._call_template(node, dot)
        else:
            raise _Break if node.kind == "break" else _Continue

    def _condition(self, node: Node, dot: Any) -> None:
        known = len(self.variables)
        value = self._pipe(node.parts[0], dot)
        if truth(value):
            self._walk(node.parts[1], value if node.kind == "with" else dot)
        elif node.parts[2] is not None:
            self._walk(node.parts[2], dot)
        del self.variables[known:]

    def _range(self, node: Node, dot: Any) -> None:
        known = len(self.variables)
        pipe, body, other = node.parts
        names, assign, _ = pipe.parts
        value = self._pipe(Node(pipe.kind, pipe.position, pipe.source, ((), False, pipe.parts[2])), dot)
        inside = len(self.variables)
        empty = True
        for key, item in self._items(pipe, value):
            empty = False
            pairs = [(names[0], item)] if len(names) == 1 else list(zip(names, (key, item), strict=False))
            for name, bound in pairs:
                self._assign(name, bound) if assign else self.variables.append((name, bound))
            try:
                self._walk(body, item)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.variables[inside:]
        if empty and other is not None:
            self._walk(other, dot)
        del self.variables[known:]

    def _items(self, node: Node, value: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(value, dict) and not isinstance(value, Struct):
            return iter(sorted(value.items()))
        if isinstance(value, list | tuple):
            return iter(enumerate(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return ((number, number) for number in range(value))
        if value is None or value is NO_VALUE:
            return iter(())
        raise self._error(node, f"range can't iterate over {go_string(value)}")

    def _call_template(self, node: Node, dot: Any) -> None:
        name, pipe = node.parts
        body = self.template.named.get(name)
        if body is None:
            raise self._error(node, f'template "{name}" not defined')
        if self.depth >= _DEPTH:
            raise self._error(node, f"exceeded maximum template depth ({_DEPTH})")
        data = self._pipe(pipe, dot) if pipe is not None else None
        outer, self.variables = self.variables, [("$", data)]
        self.depth += 1
        self._walk(body, data)
        self.depth -= 1
        self.variables = outer

    # ---- values

    def _assign(self, name: str, value: Any) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return

    def _pipe(self, node: Node, dot: Any) -> Any:
        names, assign, commands = node.parts
        value: Any = None
        for index, command in enumerate(commands):
            value = self._command(command, dot, (value,) if index else ())
        for name in names:
            self._assign(name, value) if assign else self.variables.append((name, value))
        return value

    def _command(self, node: Node, dot: Any, piped: tuple[Any, ...]) -> Any:
        first, *operands = node.parts
        if first.kind == "function":
            return self._function(node, first, operands, dot, piped)
        arguments: Callable[[], list[Any]] = lambda: [*(self._value(operand, dot) for operand in operands), *piped]  # noqa: E731
        takes = bool(operands) or bool(piped)
        if first.kind == "field":
            return self._fields(first, dot, first.parts[0], arguments, takes)
        if first.kind == "variable":
            return self._fields(first, self._variable(first.parts[0]), first.parts[1], arguments, takes)
        if first.kind == "chain":
            return self._fields(first, self._value(first.parts[0], dot), first.parts[1], arguments, takes)
        if first.kind == "nil":
            raise self._error(first, "nil is not a command")
        if takes:
            raise self._error(first, f"can't give argument to non-function {first.source}")
        return self._value(first, dot)

    def _value(self, node: Node, dot: Any) -> Any:
        if node.kind == "literal":
            return node.parts[0]
        if node.kind == "dot":
            return dot
        if node.kind == "nil":
            return None
        if node.kind == "pipe":
            return self._pipe(node, dot)
        return self._command(Node("command", node.position, node.source, (node,)), dot, ())

    def _variable(self, name: str) -> Any:
        return next(value for known, value in reversed(self.variables) if known == name)

    def _fields(self, node: Node, value: Any, names: tuple[str, ...], arguments: Callable[[], list[Any]], takes: bool) -> Any:
        for index, name in enumerate(names):
            value = self._field(node, value, name)
            last = index == len(names) - 1
            if callable(value):
                value = self._method(node, value, name, arguments() if last else [])
            elif last and takes:
                raise self._error(node, f"{name} has arguments but cannot be invoked as function")
        if not names and takes:
            raise self._error(node, f"can't give argument to non-function {node.source}")
        return value

    def _field(self, node: Node, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            if name in value:
                return value[name]
            if isinstance(value, Struct):
                raise self._error(node, f"can't evaluate field {name} in type {value.kind}")
            return NO_VALUE
        if value is NO_VALUE:
            return value
        if value is None:
            raise self._error(node, f"nil pointer evaluating interface {{}}.{name}")
        raise self._error(node, f"can't evaluate field {name} in type {kind_of(value)}")

    def _method(self, node: Node, method: Callable[..., Any], name: str, arguments: list[Any]) -> Any:
        wanted = len(inspect.signature(method).parameters)
        if wanted != len(arguments):
            raise self._error(node, f"wrong number of args for {name}: want {wanted} got {len(arguments)}")
        return method(*arguments)

    def _function(self, command: Node, node: Node, operands: list[Node], dot: Any, piped: tuple[Any, ...]) -> Any:
        name = node.parts[0]
        if name in ("and", "or") and operands:
            # Both stop at the operand that decides, as Go's do.
            value: Any = None
            for operand in [*operands, *(Node("literal", node.position, "", (item,)) for item in piped)]:
                value = self._value(operand, dot)
                if truth(value) == (name == "or"):
                    break
            return value
        arguments = [*(self._value(operand, dot) for operand in operands), *piped]
        function = self.template.functions[name]
        low, high = _arity(function)
        if len(arguments) < low or (high is not None and len(arguments) > high):
            wanted = f"want {low}" if low == high else f"want at least {low}"
            raise self._error(node, f"wrong number of args for {name}: {wanted} got {len(arguments)}")
        try:
            return function(*arguments)
        except FunctionError as error:
            if error.plain:
                raise self._error(node, error.message) from error
            raise self._error(command, f"error calling {name}: {error.message}") from error


def _arity(function: Callable[..., Any]) -> tuple[int, int | None]:
    """Least and most number of arguments (None = any number)."""
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters)
    plain = [parameter for parameter in parameters if parameter.kind != parameter.VAR_POSITIONAL]
    least = sum(parameter.default is parameter.empty for parameter in plain)
    return least, None if open_ended else len(plain)
