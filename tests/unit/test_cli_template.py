"""The template language against what Go's text/template prints (checked against Docker 28's own `--format`)."""

from __future__ import annotations

from typing import Any

import pytest

from nacre.cli.template import Struct, Template
from nacre.cli.template_functions import go_string
from nacre.errors import InvalidArgument

DATA = Struct(
    {
        "Name": "x",
        "Driver": "local",
        "Labels": {"l": "v"},
        "Ports": {"80/tcp": [Struct({"HostIp": "0.0.0.0", "HostPort": "8080"})], "90/udp": None},
        "Label": lambda key: f"label {key}",
        "Status": {
            "A": "x", "B": [1, 2], "S": ["p", "q"], "M": {"b": 1, "a": {"z": None}}, "F": 1.5, "E": {}, "T": True, "N": None, "U": 'é<&>"',
        },
    },
    kind="volume.Volume",
)  # fmt: skip


def render(text: str, data: Any = DATA) -> str:
    return Template(text).render(data)


@pytest.mark.parametrize(
    ("template", "output"),
    [
        # fields, maps, methods
        ("{{.Name}}", "x"),
        ("{{ .Name }}", "x"),
        ("{{.Status.A}}{{.Status.T}}", "xtrue"),
        ("{{.Status.M}}", "map[a:map[z:<nil>] b:1]"),
        ("{{.Status.S}} {{.Status.B}}", "[p q] [1 2]"),
        ("{{.Status.Foo}}", "<no value>"),
        ("{{.Status.Foo.Bar}}", "<no value>"),
        ("{{.Status.N}}", "<no value>"),
        ("{{.Ports}}", "map[80/tcp:[{0.0.0.0 8080}] 90/udp:<nil>]"),
        ('{{.Label "a"}}', "label a"),
        ('{{"a" | .Label}}', "label a"),
        ("{{$.Name}}{{range .Status.S}}{{$.Name}}{{end}}", "xxx"),
        # conditions
        ('{{if .Status.E}}a{{else if eq .Name "x"}}b{{else}}c{{end}}', "b"),
        ("{{if .Status.E}}a{{else if .Status.E}}b{{else}}c{{end}}", "c"),
        ("{{with .Status.E}}a{{else}}b{{end}}", "b"),
        ("{{with .Status.E}}a{{else with .Name}}{{.}}{{end}}", "x"),
        ("{{with $x := .Name}}{{$x}}{{.}}{{end}}", "xx"),
        ('{{if and (eq .Name "x") (ne .Driver "foo")}}yes{{end}}', "yes"),
        ('{{if not (index .Labels "q")}}none{{end}}', "none"),
        ("{{not .Status.T}} {{and .Status.T .Name}} {{or .Status.E .Name}}", "false x x"),
        ('{{and 1 0 2}} {{or 0 "" 3}} {{not 0}}', "0 3 true"),
        ("{{and .Status.E .Status.N.Boom}}", "map[]"),
        # loops
        ("{{range .Status.S}}{{.}},{{else}}none{{end}}", "p,q,"),
        ("{{range .Status.E}}{{.}},{{else}}none{{end}}", "none"),
        ("{{range $i := .Status.S}}{{$i}}{{end}} {{range $i, $e := .Status.S}}{{if $i}},{{end}}{{$e}}{{end}}", "pq p,q"),
        ("{{range $k, $v := .Status.M}}{{$k}}{{$v}} {{end}}", "amap[z:<nil>] b1 "),
        ("{{range $p, $c := .Ports}}{{$p}}{{with $c}} -> {{(index . 0).HostPort}}{{end}};{{end}}", "80/tcp -> 8080;90/udp;"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ('{{range .Status.S}}{{if eq . "p"}}{{continue}}{{end}}{{.}}{{end}}', "q"),
        ('{{range .Status.S}}{{if eq . "q"}}{{break}}{{end}}{{.}}{{end}}', "p"),
        # variables
        ("{{$y := 5}}{{$y = 6}}{{$y}}", "6"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{$x := 3}}{{end}}{{$x}}", "2"),
        # comparison
        ('{{eq .Status.A "x" "y"}} {{eq .Status.A "q" "x"}} {{ne .Name "x"}}', "true true false"),
        ('{{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge "b" "a"}}', "true true false true"),
        ("{{eq nil .Status.N}}", "true"),
        # literals
        ("{{true}} {{3.0}} {{1e3}} {{0x10}} {{'a'}} {{1_000}} {{017}} {{-5}} {{+5}}", "true 3 1000 16 97 1000 15 -5 5"),
        (r'{{"a\tb"}} {{"\u00e9\x41"}}', "a\tb éA"),
        ("{{`raw\\n\nx`}}", "raw\\n\nx"),
        ('{{.Name}}{{"}}"}}', "x}}"),
        # functions
        ('{{index .Labels "l"}} {{index .Labels "zz"}}| {{.Labels.zz}}', "v | <no value>"),
        ("{{(index .Status.S 0)}}", "p"),
        ('{{slice "hello" 1 3}} {{slice "hello" 2}}', "el llo"),
        ('{{len "héé"}} {{len .Labels}} {{len .Status.S}}', "5 1 2"),
        ('{{print "a" 1 2 "b" 3}} {{print 1 2}} {{1 | print 2}}', "a1 2b3 1 2 2 1"),
        ("{{println .Name 1}}", "x 1\n"),
        ('{{join .Status.S ","}} {{join (split "a b" " ") "-"}} {{split "a,b" ","}}', "p,q a-b [a b]"),
        ('{{title "hello world foo-bar"}} {{lower "ABC"}} {{upper "abc"}} {{trim "  a "}}', "Hello World Foo-Bar abc ABC a"),
        ('{{pad "x" 1 2}}|{{pad "" 1 2}}|{{truncate "abcdef" 3}}', " x  ||abc"),
        ("{{json .Labels}} {{json .Status.U}} {{json .Status.B}}", '{"l":"v"} "é<&>\\"" [1,2]'),
        ("{{.Status.M | json}}", '{"a":{"z":null},"b":1}'),
        ("{{html .Status.U}} {{urlquery .Status.U}}", "é&lt;&amp;&gt;&#34; %C3%A9%3C%26%3E%22"),
        ('{{.Name | upper | printf "%s-%s" "a"}}', "a-X"),
        # white space and comments
        ("a {{- .Name -}} b", "axb"),
        ("{{/* c */}}x{{/* c */ -}}   y", "xy"),
        ("a  {{- /* c */ -}} b", "ab"),
        ("{{- 3}} {{3 -}} x", "3 3x"),
        ("{{.Name}} }}", "x }}"),
        # named templates
        ('{{define "x"}}[{{.}}]{{end}}{{template "x" .Name}}', "[x]"),
        ('{{block "b" .Name}}<{{.}}>{{end}}', "<x>"),
    ],
)
def test_output(template: str, output: str) -> None:
    assert render(template) == output


@pytest.mark.parametrize(
    ("template", "output"),
    [
        ('{{printf "%05d %-5s| %.2f %x %v %%" 42 "a" 1.5 255 .Status.S}}', "00042 a    | 1.50 ff [p q] %"),
        ('{{printf "%d %s" "a" 5}}', "%!d(string=a) %!s(int=5)"),
        ('{{printf "%d"}}', "%!d(MISSING)"),
        ('{{printf "a" 1 "b"}}', "a%!(EXTRA int=1, string=b)"),
        (
            '{{printf "%t %q %+d %U %c %o %b %X %e %g %5t|%-6t|" true "x\\n\\"" 5 65 65 8 5 255 1234.5 1e30 true false}}',
            'true "x\\n\\"" +5 U+0041 A 10 101 FF 1.234500e+03 1e+30  true|false |',
        ),
        ('{{printf "%T %T %T %T" 1 "a" 1.5 true}}', "int string float64 bool"),
        ('{{printf "%6.2f|%-8.3f|%+.1f|%08.3f" 3.14159 2.5 1.25 3.5}}', "  3.14|2.500   |+1.2|0003.500"),
        ('{{printf "%.2s|%5.1s|%x|% d" "hello" "xyz" "hi" 7}}', "he|    x|6869| 7"),
        ('{{printf "%*d|%-*d|%.*f" 4 7 4 7 1 2.55}}', "   7|7   |2.5"),
        ('{{printf "%c%c" -5 99999999999}}', "\ufffd\ufffd"),
        ('{{printf "%v" .Status.N}} {{print .Status.N}}', "<nil> <nil>"),
    ],
)
def test_printf(template: str, output: str) -> None:
    assert render(template) == output


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # syntax
        ("{{.Foo", "template: :1: unclosed action"),
        ("{{foo}}", 'template: :1: function "foo" not defined'),
        ("{{if}}x{{end}}", "template: :1: missing value for if"),
        ("{{if .Name}}", "template: :1: unexpected EOF"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("{{else}}", "template: :1: unexpected {{else}}"),
        ("{{if .Name}}a{{else}}b{{else}}c{{end}}", "template: :1: expected end; found {{else}}"),
        ("{{ }}", "template: :1: missing value for command"),
        ("{{(.Name}}", "template: :1: unclosed left paren"),
        ("{{.Name)}}", "template: :1: unexpected right paren"),
        ("{{.Status.}}", "template: :1: unexpected <.> in operand"),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ("{{with $x := 1}}{{end}}{{$x}}", 'template: :1: undefined variable "$x"'),
        ("{{range .Status.S}}{{end}}{{break}}", "template: :1: {{break}} outside {{range}}"),
        ("{{range $i, $e, $z := .Status.S}}{{end}}", "template: :1: too many declarations in range"),
        ('{{define "x"}}a{{end}}{{define "x"}}b{{end}}', 'template: :1: template: multiple definition of template "x"'),
        ("{{template}}", 'template: :1: unexpected "}}" in template clause'),
        ('{{"abc}}', "template: :1: unterminated quoted string"),
        ("{{'ab'}}", "template: :1: malformed character constant: 'ab'"),
        ("{{/* c }}", "template: :1: unclosed comment"),
        ("{{!}}", 'template: :1: unexpected "!" in command'),
        ('{{.Name == "x"}}', 'template: :1: unexpected "=" in operand'),
        ('{{.Name."b"}}', "template: :1: bad character U+0022 '\"'"),
        ('{{"a" | 3}}', "template: :1: non executable command in pipeline stage 2"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply"),
        ("{{if 1}}" * 3000 + "{{end}}" * 3000, "nested too deeply"),
        ("a\nb {{foo}}", 'template: :2: function "foo" not defined'),
        # data
        ("{{.Foo}}", 'template: :1:2: executing "" at <.Foo>: can\'t evaluate field Foo in type volume.Volume'),
        ("{{.Name.Foo}}", 'template: :1:7: executing "" at <.Name.Foo>: can\'t evaluate field Foo in type string'),
        ("a\n {{.Foo}}", 'template: :2:3: executing "" at <.Foo>: can\'t evaluate field Foo in type volume.Volume'),
        ("{{.Status.N.Bar}}", 'template: :1:9: executing "" at <.Status.N.Bar>: nil pointer evaluating interface {}.Bar'),
        ("{{index .Status.S 5}}", 'template: :1:2: executing "" at <index .Status.S 5>: error calling index: index out of range: 5'),
        (
            '{{index .Status.S "a"}}',
            'executing "" at <index .Status.S "a">: error calling index: cannot index slice/array with type string',
        ),
        ('{{slice "hello" 9}}', 'executing "" at <slice "hello" 9>: error calling slice: index out of range: 9'),
        ("{{eq .Name 1}}", 'executing "" at <eq .Name 1>: error calling eq: incompatible types for comparison'),
        ("{{eq .Name}}", 'executing "" at <eq .Name>: error calling eq: missing argument for comparison'),
        ("{{len}}", 'template: :1:2: executing "" at <len>: wrong number of args for len: want 1 got 0'),
        ("{{len .Status.T}}", 'executing "" at <len .Status.T>: error calling len: len of type bool'),
        ("{{.Name .Driver}}", 'template: :1:2: executing "" at <.Name>: Name has arguments but cannot be invoked as function'),
        ("{{3 4}}", 'template: :1:2: executing "" at <3>: can\'t give argument to non-function 3'),
        ("{{nil}}", 'template: :1:2: executing "" at <nil>: nil is not a command'),
        ("{{range .Name}}{{end}}", 'template: :1:8: executing "" at <.Name>: range can\'t iterate over x'),
        ('{{template "nope"}}', 'template: :1:11: executing "" at <{{template "nope"}}>: template "nope" not defined'),
        ('{{define "r"}}{{template "r"}}{{end}}{{template "r"}}', "exceeded maximum template depth"),
        ("{{.Label}}", 'template: :1:2: executing "" at <.Label>: wrong number of args for Label: want 1 got 0'),
    ],
)
def test_errors(template: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        render(template)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.5, "1.5"),
        (100000.0, "100000"),
        (1e6, "1e+06"),
        (1234567.5, "1.2345675e+06"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1e100, "1e+100"),
        (float("inf"), "+Inf"),
        (float("nan"), "NaN"),
        ([None, True], "[<nil> true]"),
    ],
)
def test_values_as_go_prints_them(value: Any, text: str) -> None:
    assert go_string(value) == text


def test_a_template_can_be_used_again() -> None:
    template = Template("{{range $i, $e := .}}{{$e}}{{end}}")
    assert template.render(["a", "b"]) == "ab"
    assert template.render(["c"]) == "c"
