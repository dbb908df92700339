"""Flags are read by Docker's (pflag's) rules."""

from __future__ import annotations

from typing import Any

import pytest

from nacre.cli.flags import Arguments, Command, Flag, UsageError

FLAGS = (
    Flag("detach", "", short="d"),
    Flag("interactive", "", short="i"),
    Flag("tty", "", short="t"),
    Flag("sig-proxy", "", default=True),
    Flag("env", "", "list", short="e"),
    Flag("publish", "", "list", short="p"),
    Flag("network", "", "string", aliases=("net",)),
    Flag("pull", "", "string", choices=("always", "never"), default="never"),
    Flag("memory", "", "bytes", short="m"),
    Flag("cpus", "", "decimal"),
    Flag("last", "", "int", short="n", default=-1),
)


def parse(*argv: str, interspersed: bool = False, **options: Any) -> Arguments:
    arguments = command(interspersed=interspersed, **options).parse("run", list(argv))
    assert arguments is not None
    return arguments


def command(**options: Any) -> Command:
    options = {"least": 0, "most": None, **options}
    return Command(lambda _ctx, _args: 0, "IMAGE", FLAGS, **options)


def refused(*argv: str, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        command(**options).parse("run", list(argv))
    return caught.value


def test_clusters_and_attached_values() -> None:
    args = parse("-dite", "A=1", "-p80", "-p=81", "-m", "1g", "image", "-x", "--", "--rm")
    assert (args.detach, args.interactive, args.tty) == (True, True, True)
    assert args.env == ["A=1"]
    assert args.publish == ["80", "81"]
    assert args.memory == 1 << 30
    assert args.rest == ["image", "-x", "--", "--rm"]


def test_a_value_may_look_like_a_flag() -> None:
    assert parse("-e", "--not-a-flag", "x").env == ["--not-a-flag"]
    assert parse("--network", "-d", "x").network == "-d"


def test_booleans_take_values_only_after_an_equals_sign() -> None:
    args = parse("--tty=false", "-i=true", "--sig-proxy=0", "true")
    assert (args.tty, args.interactive, args.sig_proxy) == (False, True, False)
    assert args.rest == ["true"]


def test_defaults_and_what_was_given() -> None:
    args = parse("--last", "3", "x")
    assert (args.sig_proxy, args.env, args.network, args.cpus, args.last) == (True, [], "", 0.0, 3)
    assert args.given("last")
    assert not args.given("network")


def test_lists_are_not_shared_between_parses() -> None:
    parse("-e", "A=1", "x").env.append("B")
    assert parse("x").env == []


def test_flags_may_follow_only_where_they_may() -> None:
    assert parse("a", "-d", "b", interspersed=True).rest == ["a", "b"]
    assert parse("a", "-d", "b").rest == ["a", "-d", "b"]
    assert parse("a", "--", "-d", interspersed=True).rest == ["a", "-d"]
    assert parse("-", "x", interspersed=True).rest == ["-", "x"]


def test_aliases_and_choices() -> None:
    assert parse("--net", "host", "x").network == "host"
    assert parse("--pull=always", "x").pull == "always"
    error = refused("--pull", "sometimes", "x")
    assert error.message == 'invalid argument "sometimes" for "--pull" flag: expected one of always, never'


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["--foo=1"], "unknown flag: --foo"),
        (["-dx"], "unknown shorthand flag: 'x' in -dx"),
        (["--env"], "flag needs an argument: --env"),
        (["-de"], "flag needs an argument: 'e' in -de"),
        (["-n", "x"], 'invalid argument "x" for "-n, --last" flag: expected a whole number'),
        (["--tty=maybe"], 'invalid argument "maybe" for "-t, --tty" flag: expected true or false'),
        (["-m", "5q"], 'invalid argument "5q" for "-m, --memory" flag: invalid suffix: \'q\''),
        (["--cpus", "two"], 'invalid argument "two" for "--cpus" flag: failed to parse two as a number of processors'),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    error = refused(*argv)
    assert error.message == message
    assert error.hint.endswith("See 'nacre run --help'.")
    assert error.exit_code == 125


def test_near_misses_are_suggested() -> None:
    assert refused("--memroy", "1g").hint.startswith("Did you mean --memory?")


def test_docker_flags_without_meaning_here_are_told_from_misspelt_ones() -> None:
    error = refused("--gpus", "all", unsupported=frozenset(("gpus",)))
    assert "this version of Nacre does not have" in error.message


def test_numbers_of_arguments() -> None:
    assert refused(least=1, most=1).message == "'nacre run' requires 1 argument"
    assert refused(least=1).message == "'nacre run' requires at least 1 argument"
    assert refused("a", "b", "c", least=1, most=2).message == "'nacre run' requires at most 2 arguments"
    assert refused("a", most=0).message == "'nacre run' accepts no arguments"


def test_help_wins_over_everything_behind_it() -> None:
    assert command(least=3).parse("run", ["--help", "--nonsense"]) is None
    assert command().parse("run", ["-h"]) is None
    with_hostname = Command(lambda _ctx, _args: 0, "", (Flag("hostname", "", "string", short="h"),), most=None)
    arguments = with_hostname.parse("run", ["-h", "box"])
    assert arguments is not None
    assert arguments.hostname == "box"
