"""`nacre unshare` and `nacre enter`."""

from __future__ import annotations

import os

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, Flag, UsageError

_KINDS = {"cgroup": "C", "ipc": "i", "mount": "m", "net": "n", "pid": "p", "time": "T", "user": "U", "uts": "u"}
_WORDS = {"mount": "mnt"}


def run_unshare(ctx: Context, args: Arguments) -> int:
    """`nacre unshare`."""
    from nacre.engine import unshare

    if args.map_root_user and args.map_current_user:
        raise UsageError("--map-root-user and --map-current-user exclude each other")
    if os.geteuid() and not (args.user or args.map_root_user or args.map_current_user):
        from nacre.engine import enter

        # What runs there finds this user's engine, as root that it is.
        os.environ["NACRE_ROOT"], os.environ["NACRE_RUN"] = (path or "" for path in enter(*ctx.directories))
    return unshare(
        args.rest,
        [_WORDS.get(name, name) for name in _KINDS if getattr(args, name)],
        mapping="root" if args.map_root_user else "current" if args.map_current_user else "",
        propagation=args.propagation,
        mount_proc=args.mount_proc,
        root=args.root,
        directory=args.wd,
        uid=args.setuid,
        gid=args.setgid,
        fork=args.fork,
        kill_child=args.kill_child,
    )


def run_enter(ctx: Context, args: Arguments) -> int:
    """`nacre enter`."""
    from nacre.engine import parse_namespaces

    kinds = parse_namespaces(args.namespaces)
    return ctx.engine.containers.get(args.rest[0]).enter(args.rest[1:], kinds, directory=args.wd)


COMMANDS = {
    "unshare": Command(
        run_unshare,
        "[PROGRAM] [ARG...]",
        (
            *(Flag(name, f"In a new {name} namespace", short=letter) for name, letter in _KINDS.items()),
            Flag("fork", "Run the program as a child (always with --pid)", short="f"),
            Flag("kill-child", "Kill the child when this process dies"),
            Flag("map-current-user", "Map this user to itself in a new user namespace", short="c"),
            Flag("map-root-user", "Map this user to root in a new user namespace", short="r"),
            Flag("mount-proc", "Mount a new /proc, in a new mount namespace"),
            Flag("propagation", "Of mounts in a new mount namespace: private, slave, shared or unchanged", "string", default="private"),
            Flag("root", "Run with this root directory", "string", short="R", value="dir", complete="files"),
            Flag("setgid", "Become this group, without others", "int", short="G", default=-1, value="gid"),
            Flag("setuid", "Become this user", "int", short="S", default=-1, value="uid"),
            Flag("wd", "Run in this working directory", "string", short="w", value="dir"),
        ),
        most=None,
        interspersed=False,
        about="Without flags root's program just runs; an ordinary user's runs in the namespaces of the user's containers, as their root. "
        "The program is $SHELL when none is named. The flags are those of unshare(1).",
        examples=(
            ("unshare -p --mount-proc ps aux", "A process list with one process"),
            ("unshare -r -n ip link", "A network of one's own, without being root"),
        ),
    ),
    "enter": Command(
        run_enter,
        "CONTAINER [-- PROGRAM [ARG...]]",
        (
            Flag(
                "namespaces",
                "Which to enter: cgroup, ipc, mnt, net, pid, user, uts, or all (default net,ipc,uts,pid,cgroup)",
                "string",
                value="list",
            ),
            Flag("wd", "Run in this working directory", "string", short="w", value="dir"),
        ),
        least=1,
        most=None,
        complete="containers",
        about="Runs a program of this host in a container's namespaces, with this host's files unless mnt is among them, and with all "
        "privileges of its caller: a tool for looking into containers that have none of their own. Programs of the container run with: "
        "nacre exec.",
        examples=(
            ("enter web -- ss -ltn", "Who listens in the container, told by the host's ss"),
            ("enter --namespaces net web -- tcpdump -i eth0", "Watch its network"),
        ),
    ),
}
