"""User names and passwords for registries, as podman, skopeo and Docker keep them.

Files (containers-auth.json(5), docker login), the first that knows the registry wins: the one named by ``REGISTRY_AUTH_FILE``
and no other; else ``$XDG_RUNTIME_DIR/containers/auth.json`` (``/run/containers/<uid>/auth.json``),
``~/.config/containers/auth.json`` and Docker's ``config.json`` in ``$DOCKER_CONFIG`` or ``~/.docker``.

In a file, a credential helper named for the host in ``credHelpers`` comes first, then ``auths`` (from the most specific key,
``host/namespace/repository``, to the host), then the helper of ``credsStore``. A helper is the program
``docker-credential-<name>``, which speaks JSON over its standard input and output.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from nacre.errors import HostError, InvalidArgument, Unauthorized
from nacre.images.config import is_docker_hub, user_directory
from nacre.linux import userns
from nacre.linux.run import find_program, run, search_path
from nacre.model.value import Value

_HUB_KEY = "https://index.docker.io/v1/"
_NOT_FOUND = "credentials not found in native keychain"
_MAX_FILE = 4 << 20


class Credentials(Value):
    """A login. identity_token replaces the password when it is set (OAuth2 refresh token)."""

    username: str
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, ...)"


def find(location: str, repository: str, environ: Mapping[str, str] | None = None) -> Credentials | None:
    """The login for a repository of a registry; None for an anonymous request.

    Raises InvalidArgument naming the file and the key when one is malformed, HostError when a helper is not installed,
    Unauthorized when a helper fails.
    """
    environ = os.environ if environ is None else environ
    for path in _files(environ):
        found = _search(path, location, repository, environ)
        if found is not None:
            return found
    return None


def _files(environ: Mapping[str, str]) -> list[str]:
    chosen = environ.get("REGISTRY_AUTH_FILE", "")
    if chosen:
        if not os.path.exists(chosen):
            raise InvalidArgument(f"REGISTRY_AUTH_FILE: no such file: {chosen}")
        return [chosen]
    runtime = environ.get("XDG_RUNTIME_DIR")
    home = environ.get("HOME") or os.path.expanduser("~")
    paths = [
        f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{userns.outer_uid()}/auth.json",
        f"{user_directory(environ)}/auth.json",
        f"{environ.get('DOCKER_CONFIG') or os.path.join(home, '.docker')}/config.json",
    ]
    return [path for path in paths if os.path.exists(path)]


def _search(path: str, location: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    document = _read(path)
    helper = _table(document, "credHelpers", path).get(location)
    if helper:
        return _ask_helper(helper, location, path, environ)
    auths = {_normalise(key): value for key, value in _table(document, "auths", path).items()}
    for key in _keys(location, repository):
        entry = auths.get(key)
        if entry:
            found = _decode(entry, f"{path}: auths.{key}")
            if found is not None:
                return found
    store = document.get("credsStore")
    return _ask_helper(store, location, path, environ) if store else None


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_MAX_FILE) or b"{}")
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{path}: expected an object")
    return document


def _table(document: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    table = document.get(key) or {}
    if not isinstance(table, dict):
        raise InvalidArgument(f"{path}: {key}: expected an object")
    return table


def _normalise(key: str) -> str:
    """A key of `auths` as host[/path]; Docker writes old ones as URLs (``https://index.docker.io/v1/``)."""
    plain = key.partition("://")[2] or key
    if plain != key:
        plain = plain.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    host, slash, path = plain.rstrip("/").partition("/")
    return ("docker.io" if is_docker_hub(host) else host) + slash + path


def _keys(location: str, repository: str) -> list[str]:
    """host/a/b, host/a, host."""
    host = "docker.io" if is_docker_hub(location) else location
    parts = repository.split("/")
    return ["/".join((host, *parts[:count])) for count in range(len(parts), -1, -1)]


def _decode(entry: Any, where: str) -> Credentials | None:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where}: expected an object")
    values = {name: entry.get(name, "") for name in ("auth", "identitytoken", "username", "password")}
    for name, value in values.items():
        if not isinstance(value, str):
            raise InvalidArgument(f"{where}.{name}: expected a string")
    username, password = values["username"], values["password"]
    if values["auth"]:
        try:
            username, colon, password = base64.b64decode(values["auth"], validate=True).decode().partition(":")
        except ValueError as error:
            raise InvalidArgument(f"{where}.auth: not base64 of user:password", hint="log in again") from error
        if not colon:
            raise InvalidArgument(f"{where}.auth: not base64 of user:password", hint="log in again")
        password = password.rstrip("\0")
    if not username and not values["identitytoken"]:
        return None
    return Credentials(username=username, password=password, identity_token=values["identitytoken"])


def _ask_helper(name: Any, location: str, path: str, environ: Mapping[str, str]) -> Credentials | None:
    """Run ``docker-credential-<name> get`` (docker/docker-credential-helpers, README, "Development")."""
    program = f"docker-credential-{name}"
    if not isinstance(name, str) or not name or "/" in name:
        raise InvalidArgument(f"{path}: {name!r} is not the name of a credential helper")
    if not find_program(program):
        raise HostError(f"{path} names the credential helper {program}, which is not installed", hint=f"install it, or correct {path}")
    asked = _HUB_KEY if is_docker_hub(location) else location
    result = run([program, "get"], stdin=asked.encode(), env={**environ, "PATH": search_path()})
    answer = result.stdout.decode(errors="replace").strip()
    if result.code != 0:
        if _NOT_FOUND in answer:
            return None
        raise Unauthorized(f"{program} failed for {asked}: {answer[:200] or result.stderr.decode(errors='replace').strip()[:200]}")
    try:
        document = json.loads(answer)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, TypeError, KeyError) as error:
        raise Unauthorized(f"{program} did not answer with a user name and a secret for {asked}") from error
    if username == "<token>":
        return Credentials(username="", identity_token=str(secret))
    return Credentials(username=str(username), password=str(secret))
