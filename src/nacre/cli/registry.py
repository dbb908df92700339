"""The table of commands: which module has each one, and its line in the overview. Nothing is imported before it is chosen."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.cli.flags import Command

# Common commands first, as the overview shows them; the order inside each block is the order on the screen.
COMMON: dict[str, tuple[str, str]] = {
    "run": ("run", "Create a container from an image and start it"),
    "exec": ("exec", "Run a command in a running container"),
    "ps": ("ps", "List containers"),
    "pull": ("pull", "Download an image from a registry"),
    "images": ("images", "List images"),
    "version": ("system", "Show version information"),
    "info": ("info", "Show what this installation consists of"),
    "doctor": ("doctor", "Check what this host offers and how to fix what is missing"),
}

PLAIN: dict[str, tuple[str, str]] = {
    "attach": ("attach", "Connect the terminal to a running container"),
    "completion": ("completion", "Print the completion script for a shell"),
    "cp": ("cp", "Copy files between a container and this host"),
    "create": ("run", "Create a container without starting it"),
    "diff": ("diff", "Show what a container has changed in its file system"),
    "enter": ("shell", "Run a program of this host in the namespaces of a container"),
    "events": ("events", "Show what happens, as it happens"),
    "explain": ("explain", "Show what run would do, without doing it"),
    "history": ("history", "Show how an image was made"),
    "inspect": ("inspect", "Show everything known about containers, images, volumes or networks"),
    "kill": ("lifecycle", "Send a signal to containers (KILL by default)"),
    "load": ("load", "Load images from a tar archive"),
    "logs": ("logs", "Show the output of a container"),
    "pause": ("lifecycle", "Freeze all processes of containers"),
    "port": ("port", "Show the published ports of a container"),
    "rename": ("lifecycle", "Give a container another name"),
    "restart": ("lifecycle", "Stop and start containers"),
    "rm": ("lifecycle", "Remove containers"),
    "rmi": ("images", "Remove images"),
    "start": ("start", "Start stopped containers"),
    "stats": ("stats", "Show the resource usage of containers, live"),
    "stop": ("lifecycle", "Stop running containers"),
    "tag": ("images", "Give an image another name"),
    "top": ("top", "Show the processes of a container"),
    "unpause": ("lifecycle", "Let paused containers continue"),
    "unshare": ("shell", "Run a program in new namespaces, without a container"),
    "update": ("update", "Change the limits of containers"),
    "wait": ("lifecycle", "Wait until containers stop, then print their exit codes"),
}

GROUPS: dict[str, str] = {
    "container": "Manage containers",
    "healthcheck": "Check the health of containers",
    "image": "Manage images",
    "network": "Manage networks",
    "system": "Manage this installation",
    "volume": "Manage volumes",
}

# "ls" and "prune" are not here: they have no short form of the same name.
_CONTAINER = "attach cp create diff exec inspect kill logs pause port rename restart rm run start stats stop top unpause update wait"

_NAMED: dict[str, tuple[str, str]] = {
    "container ls": ("ps", "List containers"),
    "container prune": ("prune", "Remove all stopped containers"),
    "container inspect": ("inspect", "Show everything known about containers"),
    "healthcheck run": ("healthcheck", "Carry out the health check of a container now"),
    "image history": PLAIN["history"],
    "image inspect": ("inspect", "Show everything known about images"),
    "image load": PLAIN["load"],
    "image ls": ("images", "List images"),
    "image prune": ("prune", "Remove unused images"),
    "image pull": COMMON["pull"],
    "image rm": ("images", "Remove images"),
    "image tag": PLAIN["tag"],
    "network inspect": ("inspect", "Show everything known about networks"),
    "network ls": ("network", "List networks"),
    "system df": ("df", "Show the disk space in use"),
    "system events": PLAIN["events"],
    "system info": COMMON["info"],
    "system migrate": ("migrate", "Stop the containers of an ordinary user, so that new subordinate ids are used"),
    "system prune": ("prune", "Remove what nothing uses"),
    "volume create": ("volume", "Create a volume"),
    "volume inspect": ("inspect", "Show everything known about volumes"),
    "volume ls": ("volume", "List volumes"),
    "volume prune": ("prune", "Remove unused volumes"),
    "volume rm": ("volume", "Remove volumes"),
}

# Every command by its full name, two words for the management form.
COMMANDS: dict[str, tuple[str, str]] = {
    **COMMON,
    **PLAIN,
    **{f"container {name}": (COMMON | PLAIN)[name] for name in _CONTAINER.split()},
    **_NAMED,
}

# Other names for the same thing -> the name in COMMANDS. Not shown in overviews.
ALIASES: dict[str, str] = {
    "container list": "container ls",
    "container ps": "container ls",
    "container remove": "container rm",
    "image list": "image ls",
    "image remove": "image rm",
    "network list": "network ls",
    "volume list": "volume ls",
    "volume remove": "volume rm",
}

# Management form -> the key in its module's COMMANDS, where the two differ.
_SAME: dict[str, str] = {"container ls": "ps", "image ls": "images", "image rm": "rmi"}


def load(name: str) -> Command:
    """The command of that name (a key of COMMANDS), its module imported."""
    module = __import__(f"nacre.cli.commands.{COMMANDS[name][0]}", fromlist=("COMMANDS",))
    table: dict[str, Command] = module.COMMANDS
    key = _SAME.get(name, name)
    return table[key] if key in table else table[name.partition(" ")[2]]


def members(group: str) -> dict[str, str]:
    """The commands of a management group: second word -> help, sorted."""
    found = {name.partition(" ")[2]: text for name, (_, text) in COMMANDS.items() if name.startswith(f"{group} ")}
    return dict(sorted(found.items()))


def resolve(words: list[str]) -> tuple[str, list[str]]:
    """Splits a command line into the command's full name and its arguments.

    The name is a key of COMMANDS, or of GROUPS when the second word is missing; "" when the command is not known.
    """
    first, rest = words[0], words[1:]
    if first in GROUPS:
        if not rest or rest[0].startswith("-"):
            return first, rest
        name = f"{first} {rest[0]}"
        name = ALIASES.get(name, name)
        return (name, rest[1:]) if name in COMMANDS else ("", words)
    return (first, rest) if first in COMMANDS and " " not in first else ("", words)
