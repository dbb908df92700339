"""Go's text/template language over Python data: what `--format` takes.

The grammar is that of the package documentation of text/template (Go 1.23), with Docker's additional functions; see
`nacre.cli.template_functions` for both. Data maps to Go's kinds like this: dict = map, `Struct` = struct, list and tuple = slice,
str, bool, int, float and None = themselves, a callable found in a field = method. Errors read as Go's do
(``template: :1:2: executing "" at <.Foo>: ...``), so that what people find about them elsewhere applies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from nacre.errors import InvalidArgument


class Struct(dict[str, Any]):
    """A map whose keys are fixed: an unknown one is an error, and it prints as ``{a b}``, both as Go structs do. kind: the type's name."""

    def __init__(self, *args: Any, kind: str = "struct") -> None:
        super().__init__(*args)
        self.kind = kind


class Row(Struct):
    """A struct whose fields are computed when they are asked for: `fields` maps names to objects with `value(item)` and `in_json`."""

    def __init__(self, fields: Any, item: Any, kind: str) -> None:
        super().__init__(kind=kind)
        self.fields = fields
        self.item = item

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name].value(self.item)

    def items(self) -> Any:
        """The fields that JSON shows, sorted by name."""
        return [(name, field.value(self.item)) for name, field in sorted(self.fields.items()) if field.in_json]

    def values(self) -> Any:
        """Their values."""
        return [value for _, value in self.items()]


class Token(NamedTuple):
    """kind: text, left, right, field, dot, variable, word, number, string, char, space or a punctuation mark; position in characters."""

    kind: str
    value: Any
    position: int


class Node(NamedTuple):
    """One node of the syntax tree. parts depends on the kind; see `Parser`."""

    kind: str
    position: int
    source: str
    parts: tuple[Any, ...] = ()


class Template:
    """A parsed template. Raises InvalidArgument from the constructor (syntax) and from `render` (data)."""

    def __init__(self, text: str, functions: dict[str, Callable[..., Any]] | None = None) -> None:
        from nacre.cli.template_functions import FUNCTIONS

        self.text = text
        self.functions = FUNCTIONS | (functions or {})
        self.named: dict[str, Node] = {}
        try:
            self.root = _Parser(self).parse()
        except RecursionError:
            raise InvalidArgument("template: :1: nested too deeply") from None

    def render(self, data: Any) -> str:
        """The template filled with data."""
        from nacre.cli.template_run import Run

        try:
            return Run(self).text(data)
        except RecursionError:
            raise InvalidArgument("template: :1: nested too deeply") from None


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Line from 1; column as Go counts it: the bytes before the node on its line."""
    before = text[:position]
    column = len(before[before.rfind("\n") + 1 :].encode("utf-8", "surrogateescape"))
    return before.count("\n") + 1, column


_SPACE = " \t\r\n"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


class _Lexer:
    """Text to tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def error(self, message: str, position: int | None = None) -> InvalidArgument:
        line, _ = line_and_column(self.text, self.at if position is None else position)
        return InvalidArgument(f"template: :{line}: {message}")

    def tokens(self) -> Iterator[Token]:
        trim = False
        while self.at < len(self.text):
            start = self.text.find("{{", self.at)
            end = len(self.text) if start < 0 else start
            literal = self.text[self.at : end]
            if trim:
                literal = literal.lstrip(_SPACE)
            left_trim = start >= 0 and self.text.startswith("{{-", start) and self.text[start + 3 : start + 4] in tuple(_SPACE)
            if left_trim:
                literal = literal.rstrip(_SPACE)
            if literal:
                yield Token("text", literal, self.at)
            if start < 0:
                return
            self.at = start + (3 if left_trim else 2)
            trim = yield from self._action(start)

    def _action(self, start: int) -> Generator[Token, None, bool]:
        """The tokens between {{ and }}; returns whether the text behind is trimmed. Comments vanish."""
        skipped = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip(_SPACE))
        if self.text.startswith("/*", self.at) or (self.text.startswith("/*", skipped) and self.text[start + 2] == "-"):
            return self._comment(start)
        yield Token("left", "{{", start)
        while True:
            if self.at >= len(self.text):
                raise self.error("unclosed action", start)
            if self.text.startswith("}}", self.at):
                if self.depth:
                    raise self.error("unclosed left paren")
                yield Token("right", "}}", self.at)
                self.at += 2
                return False
            char = self.text[self.at]
            if char in _SPACE:
                after = self.at + 1
                if self.text.startswith("-}}", after) and not self.depth:
                    yield Token("right", "}}", self.at)
                    self.at = after + 3
                    return True
                while after < len(self.text) and self.text[after] in _SPACE and not self.text.startswith("-}}", after + 1):
                    after += 1
                yield Token("space", " ", self.at)
                self.at = after
                continue
            yield self._inside(char)

    def _comment(self, start: int) -> bool:
        end = self.text.find("*/", self.at)
        if end < 0:
            raise self.error("unclosed comment", start)
        rest = self.text[end + 2 :]
        if rest.startswith("}}"):
            self.at = end + 4
            return False
        if rest[:1] in tuple(_SPACE) and rest[1:4] == "-}}":
            self.at = end + 6
            return True
        raise self.error("comment ends before closing delimiter", start)

    def _inside(self, char: str) -> Token:
        start = self.at
        if char in "|(),=":
            self.at += 1
            self.depth += (char == "(") - (char == ")")
            if self.depth < 0:
                raise self.error("unexpected right paren", start)
            return Token(char, char, start)
        if char == ":":
            if not self.text.startswith(":=", start):
                raise self.error("expected :=")
            self.at += 2
            return Token(":=", ":=", start)
        if char in "\"`'":
            return self._quoted(char)
        if char in "+-0123456789" or (char == "." and self.text[start + 1 : start + 2].isdigit()):
            return self._number()
        if char in ".$" or char.isalpha() or char == "_":
            self.at += 1
            while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "_"):
                self.at += 1
            word = self.text[start : self.at]
            following = self.text[self.at : self.at + 1]
            if following and following not in " \t\r\n.,|:()=}":
                raise self.error(f"bad character {_unicode(following)}")
            kind = ("field" if len(word) > 1 else "dot") if char == "." else "variable" if char == "$" else "word"
            return Token(kind, word, start)
        if not char.isascii() or not char.isprintable():
            raise self.error(f"unrecognized character in action: {_unicode(char)}")
        self.at += 1
        return Token("char", char, start)

    def _number(self) -> Token:
        start = self.at
        self.at += 1
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "._" or self._signed_exponent(start)):
            self.at += 1
        text = self.text[start : self.at]
        number = _number(text)
        if number is None:
            raise self.error(f'bad number syntax: "{text}"')
        return Token("number", number, start)

    def _signed_exponent(self, start: int) -> bool:
        text = self.text
        return text[self.at] in "+-" and text[self.at - 1] in "eE" and not text[start : self.at].lower().startswith(("0x", "+0x", "-0x"))

    def _quoted(self, quote: str) -> Token:
        start, value = self.at, ""
        self.at += 1
        while True:
            char = self.text[self.at : self.at + 1]
            if not char or (char == "\n" and quote != "`"):
                names = {'"': "unterminated quoted string", "`": "unterminated raw quoted string", "'": "unterminated character constant"}
                raise self.error(names[quote], start)
            self.at += 1
            if char == quote:
                break
            value += self._escape(start) if char == "\\" and quote != "`" else char
        if quote == "'":
            if len(value) != 1:
                raise self.error(f"malformed character constant: {self.text[start : self.at]}", start)
            return Token("number", ord(value), start)
        return Token("string", value, start)

    def _escape(self, start: int) -> str:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        if char in _ESCAPES:
            return _ESCAPES[char]
        for letter, digits, base in (("x", 2, 16), ("u", 4, 16), ("U", 8, 16)):
            if char == letter:
                text = self.text[self.at : self.at + digits]
                self.at += digits
                try:
                    return chr(int(text, base))
                except (ValueError, OverflowError):
                    break
        raise self.error(f"invalid syntax in {self.text[start : self.at]}", start)


def _unicode(char: str) -> str:
    return f"U+{ord(char):04X} '{char}'" if char.isprintable() else f"U+{ord(char):04X}"


def _number(text: str) -> int | float | None:
    try:
        return int(text, 0) if not (text.lstrip("+-").startswith("0") and text.lstrip("+-").isdigit()) else int(text, 8)
    except ValueError:
        try:
            return float(text) if text[-1:].lower() not in "infa" else None
        except ValueError:
            return None


_BLOCKS = ("if", "range", "with")
_KEYWORDS = frozenset(("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"))


class _Parser:
    """Tokens to a tree.

    Nodes: list(nodes) text(str) action(pipe) if/with/range(pipe, list, else-list) break continue template(name, pipe)
    pipe(declared names, is assignment, commands) command(operands) dot nil literal(value) function(name)
    variable(name, fields) field(names) chain(node, names).
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.lexer = _Lexer(template.text)
        self.stream = self.lexer.tokens()
        self.pushed: list[Token] = []
        self.variables = ["$"]
        self.loops = 0

    def parse(self) -> Node:
        root, end = self._list()
        if end:
            raise self._error(f"unexpected {{{{{end[0]}}}}}", end[1])
        return root

    # ---- tokens

    def _next(self, *, spaces: bool = False) -> Token:
        while True:
            token = self.pushed.pop() if self.pushed else next(self.stream, Token("end", "", len(self.template.text)))
            if spaces or token.kind != "space":
                return token

    def _peek(self, *, spaces: bool = False) -> Token:
        skipped = [self._next(spaces=True)]
        while skipped[-1].kind == "space" and not spaces:
            skipped.append(self._next(spaces=True))
        self.pushed += reversed(skipped)
        return skipped[-1]

    def _error(self, message: str, position: int) -> InvalidArgument:
        return self.lexer.error(message, position)

    def _unexpected(self, token: Token, where: str) -> InvalidArgument:
        keyword = token.kind == "dot" or token.value in _KEYWORDS
        end = self._end_of(token) if token.kind in ("string", "number") else token.position + len(str(token.value))
        source = self.template.text[token.position : end].strip()
        shown = "EOF" if token.kind == "end" else f"<{source}>" if keyword else f'"{source}"'
        return self._error(f"unexpected {shown} in {where}", token.position)

    def _expect_right(self, where: str) -> None:
        token = self._next()
        if token.kind != "right":
            raise self._unexpected(token, where)

    # ---- structure

    def _list(self) -> tuple[Node, tuple[str, int] | None]:
        """Nodes up to {{end}}, {{else}} or the end of the text; (list, (which, position) or None)."""
        start = self._peek().position
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "end":
                return Node("list", start, "", tuple(nodes)), None
            if token.kind == "text":
                nodes.append(Node("text", token.position, token.value, (token.value,)))
                continue
            word = self._peek()
            if word.kind == "word" and word.value in ("end", "else"):
                self._next()
                if word.value == "end":
                    self._expect_right("end")
                return Node("list", start, "", tuple(nodes)), (word.value, word.position)
            node = self._action()
            if node is not None:
                nodes.append(node)

    def _action(self) -> Node | None:
        token = self._peek()
        if token.kind == "word":
            if token.value in _BLOCKS:
                self._next()
                return self._block(token)
            if token.value in ("break", "continue"):
                self._next()
                if not self.loops:
                    raise self._error(f"{{{{{token.value}}}}} outside {{{{range}}}}", token.position)
                self._expect_right(f"{{{{{token.value}}}}}")
                return Node(token.value, token.position, token.value)
            if token.value in ("define", "block", "template"):
                self._next()
                return self._named(token)
        pipe = self._pipe("command")
        return Node("action", pipe.position, pipe.source, (pipe,))

    def _block(self, word: Token) -> Node:
        """{{if}}, {{range}} and {{with}}, with their {{else}} and {{else if}}."""
        known = len(self.variables)
        pipe = self._pipe(word.value)
        self.loops += word.value == "range"
        body, end = self._list()
        self.loops -= word.value == "range"
        other = None
        if end and end[0] == "else":
            after = self._next()
            if after.kind == "word" and after.value in ("if", "with") and after.value == word.value:
                node = self._block(after)
                other = Node("list", node.position, "", (node,))
                del self.variables[known:]
                return Node(word.value, pipe.position, word.value, (pipe, body, other))
            if after.kind != "right":
                raise self._unexpected(after, "{{else}}")
            other, end = self._list()
            if end and end[0] == "else":
                raise self._error("expected end; found {{else}}", end[1])
        if end is None:
            raise self._error("unexpected EOF", len(self.template.text))
        del self.variables[known:]
        return Node(word.value, pipe.position, word.value, (pipe, body, other))

    def _named(self, word: Token) -> Node | None:
        """{{define "x"}}, {{block "x" pipe}} and {{template "x" pipe}}."""
        name = self._next()
        if name.kind != "string":
            raise self._unexpected(name, f"{word.value} clause")
        pipe = None
        if word.value != "define" and self._peek().kind != "right":
            pipe = self._pipe(f"{word.value} clause")
        else:
            self._expect_right(f"{word.value} clause")
        if word.value != "template":
            if name.value in self.template.named:
                raise self._error(f'template: multiple definition of template "{name.value}"', name.position)
            outer, self.variables = self.variables, ["$"]
            body, end = self._list()
            self.variables = outer
            if not end or end[0] != "end":
                raise self._error(f"unexpected {'{{else}}' if end else 'EOF'} in {word.value} clause", name.position)
            self.template.named[name.value] = body
            if word.value == "define":
                return None
        return Node("template", name.position, f'{{{{template "{name.value}"}}}}', (name.value, pipe))

    # ---- pipelines

    def _pipe(self, where: str, closing: str = "right") -> Node:
        start = self._peek().position
        names, assign = self._declarations(where)
        commands: list[Node] = []
        while True:
            token = self._peek()
            if token.kind == closing:
                self._next()
                if not commands:
                    raise self._error(f"missing value for {where}", token.position)
                break
            if token.kind in ("right", "end", ")", "|", ",", "=", ":="):
                raise self._unexpected(token, where)
            commands.append(self._command(closing))
        for command in commands[1:]:
            if command.parts[0].kind in ("literal", "dot", "nil"):
                raise self._error(f"non executable command in pipeline stage {commands.index(command) + 1}", command.position)
        self.variables += [] if assign else names
        source = self.template.text[start : token.position].rstrip(_SPACE)
        return Node("pipe", start, source, (tuple(names), assign, tuple(commands)))

    def _declarations(self, where: str) -> tuple[list[str], bool]:
        """``$x :=``, ``$x =`` or, in range, ``$i, $x :=`` at the start of a pipeline."""
        first = self._peek()
        if first.kind != "variable":
            return [], False
        taken = [self._next()]
        spacing = self._next(spaces=True)
        operator = self._next() if spacing.kind == "space" else spacing
        if operator.kind in (":=", "="):
            if operator.kind == "=" and first.value not in self.variables:
                raise self._error(f'undefined variable "{first.value}"', first.position)
            return [first.value], operator.kind == "="
        if operator.kind == "," and where == "range":
            second = self._next()
            if second.kind != "variable":
                raise self._error("range can only initialize variables", second.position)
            operator = self._next()
            if operator.kind == ",":
                raise self._error("too many declarations in range", operator.position)
            if operator.kind not in (":=", "="):
                raise self._unexpected(operator, "range")
            return [first.value, second.value], operator.kind == "="
        if operator.kind == ",":
            raise self._error(f"too many declarations in {where}", operator.position)
        self.pushed += [operator, spacing] if operator is not spacing else [spacing]
        self.pushed += taken
        return [], False

    def _command(self, closing: str) -> Node:
        start = self._peek().position
        operands: list[Node] = []
        while True:
            if self._peek().kind in ("right", ")", "|", "end") or (operands and self._peek(spaces=True).kind != "space"):
                break
            operands.append(self._operand(first=not operands))
        token = self._peek()
        if token.kind == "|":
            self._next()
            if self._peek().kind in ("|", closing):
                raise self._error("missing value for command", self._peek().position)
        elif token.kind != closing:
            raise self._unexpected(token, "operand" if operands else "command")
        if not operands:
            raise self._error("empty command", start)
        return Node("command", start, self.template.text[start : token.position].rstrip(_SPACE), tuple(operands))

    def _operand(self, *, first: bool) -> Node:
        token = self._next()
        node = self._term(token, first=first)
        names = []
        # The position of such a chain is that of its second link: Go's errors point there.
        place = self._peek(spaces=True).position
        while self._peek(spaces=True).kind == "field":
            names.append(self._next().value[1:])
        if not names:
            return node
        source = f"{node.source}{''.join('.' + name for name in names)}"
        if node.kind in ("field", "variable"):
            head, fields = (node.parts[0], node.parts[1]) if node.kind == "variable" else ("", node.parts[0])
            joined = (*fields, *names)
            return Node(node.kind, place, source, (head, joined) if head else (joined,))
        if node.kind in ("literal", "nil", "dot"):
            raise self._error(
                f"unexpected . after term {self.template.text[token.position : self._peek().position].strip()!r}".replace("'", '"'),
                token.position,
            )
        return Node("chain", place, source, (node, tuple(names)))

    def _term(self, token: Token, *, first: bool) -> Node:
        place, value = token.position, token.value
        if token.kind == "dot":
            return Node("dot", place, ".")
        if token.kind == "field":
            return Node("field", place, value, ((value[1:],),))
        if token.kind == "variable":
            if value not in self.variables:
                raise self._error(f'undefined variable "{value}"', place)
            return Node("variable", place, value, (value, ()))
        if token.kind in ("string", "number"):
            return Node("literal", place, self.template.text[place : self._end_of(token)], (value,))
        if token.kind == "(":
            pipe = self._pipe("parenthesized pipeline", ")")
            return Node("pipe", pipe.position, f"({pipe.source})", pipe.parts)
        if token.kind == "word":
            return self._word(token)
        raise self._unexpected(token, "operand" if not first else "command")

    def _word(self, token: Token) -> Node:
        if token.value in ("true", "false"):
            return Node("literal", token.position, token.value, (token.value == "true",))
        if token.value == "nil":
            return Node("nil", token.position, "nil")
        if token.value not in self.template.functions:
            raise self._error(f'function "{token.value}" not defined', token.position)
        return Node("function", token.position, token.value, (token.value,))

    def _end_of(self, token: Token) -> int:
        following = self._peek(spaces=True)
        return following.position if following.position > token.position else token.position
