from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from nacre.errors import Denied, HostError, InvalidArgument, Unauthorized
from nacre.images import config, credentials
from nacre.images.config import Limits, Registries, is_loopback
from nacre.model.reference import Reference


class Host:
    """A host's configuration below a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.system = root / "etc"
        self.home = root / "home"
        self.user = self.home / ".config/containers"
        self.environ = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(root / "run"), "PATH": str(root / "bin")}
        self.bin = root / "bin"

    def write(self, path: Path, text: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def load(self) -> Registries:
        return config.load(self.environ, system=str(self.system))

    def login(self, location: str, repository: str = "library/x") -> tuple[str, str] | None:
        found = credentials.find(location, repository, self.environ)
        return (found.username, found.password or found.identity_token) if found else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def registries(host: Host, text: str) -> Registries:
    host.write(host.system / "registries.conf", text)
    return host.load()


def places(found: Registries, text: str) -> list[str]:
    reference = found.candidates(text)[0]
    return [f"{source.location}/{source.repository}" for source in found.sources(reference)]


# -- registries.conf


def test_no_configuration_is_docker(host: Host) -> None:
    found = host.load()
    assert [str(item) for item in found.candidates("ubuntu")] == ["docker.io/library/ubuntu"]
    assert places(found, "ubuntu") == ["docker.io/library/ubuntu"]


def test_order_of_files(host: Host) -> None:
    host.write(host.system / "registries.conf", '[aliases]\na="q.io/main"\nb="q.io/main"\nc="q.io/main"\nd="q.io/main"')
    host.write(host.system / "registries.conf.d/2.conf", '[aliases]\nb="q.io/system2"\nc="q.io/system2"')
    host.write(host.system / "registries.conf.d/1.conf", '[aliases]\nb="q.io/system1"')
    host.write(host.system / "registries.conf.d/readme", "not read")
    host.write(host.user / "registries.conf.d/0.conf", '[aliases]\nc="q.io/user"\nd=""')
    assert host.load().aliases == {"a": "q.io/main", "b": "q.io/system2", "c": "q.io/user"}


def test_user_file_replaces_the_system(host: Host) -> None:
    host.write(host.system / "registries.conf", '[aliases]\na="q.io/system"')
    host.write(host.system / "registries.conf.d/1.conf", '[aliases]\nb="q.io/system"')
    host.write(host.user / "registries.conf", '[aliases]\nc="q.io/user"')
    assert host.load().aliases == {"c": "q.io/user"}


def test_environment_variable_replaces_the_main_file(host: Host) -> None:
    host.write(host.user / "registries.conf", '[aliases]\na="q.io/user"')
    host.write(host.system / "registries.conf.d/1.conf", '[aliases]\nb="q.io/system"')
    host.environ["CONTAINERS_REGISTRIES_CONF"] = host.write(host.home / "mine.conf", '[aliases]\nc="q.io/mine"')
    assert host.load().aliases == {"b": "q.io/system", "c": "q.io/mine"}
    host.environ["CONTAINERS_REGISTRIES_CONF"] = "/nowhere/x"
    with pytest.raises(InvalidArgument, match="no such file: /nowhere/x"):
        host.load()


def test_short_names(host: Host) -> None:
    found = registries(host, 'unqualified-search-registries=["a.io","b.io:5000"]\n[aliases]\nbox="q.io/tools/box"\n"x/y"="q.io/z"')
    assert [str(item) for item in found.candidates("ubuntu:1")] == ["a.io/ubuntu:1", "b.io:5000/ubuntu:1"]
    assert [str(item) for item in found.candidates("box:2")] == ["q.io/tools/box:2"]
    assert [str(item) for item in found.candidates("x/y")] == ["q.io/z"]
    assert [str(item) for item in found.candidates("c.io/box")] == ["c.io/box"]


def test_prefixes_and_locations(host: Host) -> None:
    found = registries(
        host,
        """
        [[registry]]
        location = "q.io"
        [[registry]]
        prefix = "q.io/team"
        location = "inner.example:5000/mirror/team"
        insecure = true
        [[registry]]
        prefix = "*.example.com"
        location = "one.example/all"
        [[registry]]
        prefix = "*.kept.com"
        insecure = true
        """,
    )
    assert places(found, "q.io/other/x") == ["q.io/other/x"]
    assert places(found, "q.io/team/x:1") == ["inner.example:5000/mirror/team/x"]
    assert places(found, "q.io/teamwork/x") == ["q.io/teamwork/x"]
    assert places(found, "a.b.example.com/x/y") == ["one.example/all/x/y"]
    assert places(found, "example.com/x") == ["example.com/x"]
    assert places(found, "q.io/sub.example.com/x") == ["q.io/sub.example.com/x"]
    (source,) = found.sources(Reference.parse("a.kept.com/x"))
    assert (source.location, source.insecure) == ("a.kept.com", True)


MIRRORS = """
[[registry]]
prefix = "docker.io"
location = "docker.io"
{extra}
[[registry.mirror]]
location = "a.io/hub"
[[registry.mirror]]
location = "b.io:5000"
insecure = true
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "c.io"
pull-from-mirror = "tag-only"
"""


def test_mirrors(host: Host) -> None:
    digest = "sha256:" + "a" * 64
    found = registries(host, MIRRORS.format(extra=""))
    assert places(found, "ubuntu:1") == ["a.io/hub/library/ubuntu", "c.io/library/ubuntu", "docker.io/library/ubuntu"]
    assert places(found, f"x/y@{digest}") == ["a.io/hub/x/y", "b.io:5000/x/y", "docker.io/x/y"]
    sources = found.sources(Reference.parse(f"x/y@{digest}"))
    assert [(source.mirror, source.insecure) for source in sources] == [(True, None), (True, True), (False, None)]
    assert {str(source.reference) for source in sources} == {f"docker.io/x/y@{digest}"}
    only = registries(host, MIRRORS.format(extra="mirror-by-digest-only = true"))
    assert places(only, "ubuntu:1") == ["docker.io/library/ubuntu"]


def test_blocked(host: Host) -> None:
    found = registries(host, '[[registry]]\nlocation = "q.io/bad"\nblocked = true')
    with pytest.raises(Denied, match=r"registry q\.io/bad is blocked") as caught:
        places(found, "q.io/bad/x")
    assert caught.value.hint == f"see {host.system}/registries.conf"
    assert places(found, "q.io/good/x") == ["q.io/good/x"]


def test_later_file_replaces_a_registry(host: Host) -> None:
    host.write(host.system / "registries.conf.d/1.conf", '[[registry]]\nlocation = "q.io"\nblocked = true')
    host.write(host.system / "registries.conf.d/2.conf", '[[registry]]\nlocation = "q.io"\n')
    assert places(host.load(), "q.io/x") == ["q.io/x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "registries.conf: "),
        ("[registries.search]", "[registries]: this is version 1"),
        ("unqualified-search-registries = 5", "unqualified-search-registries: expected a list of strings"),
        ('unqualified-search-registries = ["https://x.io"]', "a location has no scheme"),
        ('unqualified-search-registries = ["x"]', "does not start with a registry"),
        ("[registry]\n", "registry: expected [[registry]] tables"),
        ("[[registry]]\n", "registry[0]: neither prefix nor location is set"),
        ('[[registry]]\nprefix="q.io"', "registry[0]: location is not set"),
        ("[[registry]]\nlocation=5", "registry[0].location: expected a string"),
        ('[[registry]]\nlocation="q.io/UPPER"', "registry[0].prefix: 'q.io/UPPER' is not a registry location"),
        ('[[registry]]\nlocation="q.io"\nblocked="yes"', "registry[0].blocked: expected true or false"),
        ('[[registry]]\nlocation="q.io"\n[[registry.mirror]]\nlocation="m.io"\npull-from-mirror="x"', "mirror[0].pull-from-mirror"),
        ("aliases = 3", "aliases: expected a table"),
        ("[aliases]\na=1", "aliases.a: expected a string"),
        ('[aliases]\n"q.io/a"="q.io/b"', "is not a short name"),
        ('[aliases]\na="b"', "must be registry/repository"),
        ('[aliases]\na="q.io/b:1"', "must be registry/repository"),
    ],
)
def test_malformed_files_are_named(host: Host, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        registries(host, text)
    assert message in caught.value.message
    assert str(host.system / "registries.conf") in caught.value.message


def test_loopback() -> None:
    assert all(
        is_loopback(text) for text in ("localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:5", "[::1]", "[::1]:5000", "x.localhost:1")
    )
    assert not any(is_loopback(text) for text in ("127.0.0.1.nip.io", "127.0.0", "localhost.evil.io", "[::2]:5", "10.0.0.1", "127.0.0.x"))


def test_limits_from_the_environment() -> None:
    assert Limits.from_environment({"NACRE_LAYER_BYTES": "5"}).layer_bytes == 5
    assert Limits.from_environment({}).layer_ratio == Limits().layer_ratio
    for text in ("0", "-1", "x", "1e3", "²"):
        with pytest.raises(InvalidArgument, match="NACRE_LAYER_RATIO"):
            Limits.from_environment({"NACRE_LAYER_RATIO": text})


# -- credentials


def auths(**entries: str) -> str:
    return json.dumps({"auths": {key: {"auth": base64.b64encode(value.encode()).decode()} for key, value in entries.items()}})


def test_credential_files_in_order(host: Host) -> None:
    assert host.login("q.io") is None
    host.write(host.home / ".docker/config.json", auths(**{"q.io": "docker:p", "r.io": "docker:q"}))
    assert host.login("q.io") == ("docker", "p")
    host.write(host.user / "auth.json", auths(**{"q.io": "podman:p"}))
    assert host.login("q.io") == ("podman", "p")
    host.write(Path(host.environ["XDG_RUNTIME_DIR"]) / "containers/auth.json", auths(**{"q.io": "runtime:p:with:colons"}))
    assert host.login("q.io") == ("runtime", "p:with:colons")
    assert host.login("r.io") == ("docker", "q")
    host.environ["REGISTRY_AUTH_FILE"] = host.write(host.home / "mine.json", auths(**{"q.io": "mine:p"}))
    assert host.login("q.io") == ("mine", "p")
    assert host.login("r.io") is None
    host.environ["REGISTRY_AUTH_FILE"] = "/nowhere"
    with pytest.raises(InvalidArgument, match="no such file: /nowhere"):
        host.login("q.io")


def test_docker_config_variable(host: Host) -> None:
    host.write(host.home / "elsewhere/config.json", auths(**{"q.io": "me:p"}))
    host.environ["DOCKER_CONFIG"] = str(host.home / "elsewhere")
    assert host.login("q.io") == ("me", "p")


def test_keys_from_specific_to_general(host: Host) -> None:
    entries = {"q.io": "host:p", "q.io/team": "team:p", "q.io/team/x": "x:p", "https://old.io/v1/": "old:p"}
    host.write(host.user / "auth.json", auths(**entries))
    assert host.login("q.io", "other/x") == ("host", "p")
    assert host.login("q.io", "team/y") == ("team", "p")
    assert host.login("q.io", "team/x") == ("x", "p")
    assert host.login("old.io") == ("old", "p")
    assert host.login("q.io:5000") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_many_names(host: Host, key: str) -> None:
    host.write(host.home / ".docker/config.json", auths(**{key: "hub:p"}))
    assert host.login("docker.io") == ("hub", "p")


def test_identity_token_and_empty_entries(host: Host) -> None:
    entry = {"auth": base64.b64encode(b"00000000:").decode(), "identitytoken": "tok"}
    host.write(host.user / "auth.json", json.dumps({"auths": {"q.io": entry, "r.io": {}}}))
    assert host.login("q.io") == ("00000000", "tok")
    assert host.login("r.io") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected an object"),
        ('{"auths":[1]}', "auths: expected an object"),
        ('{"auths":{"q.io":5}}', "auths.q.io: expected an object"),
        ('{"auths":{"q.io":{"auth":5}}}', "auths.q.io.auth: expected a string"),
        ('{"auths":{"q.io":{"auth":"%%"}}}', "auths.q.io.auth: not base64"),
        ('{"auths":{"q.io":{"auth":"YWJj"}}}', "auths.q.io.auth: not base64 of user:password"),
        ('{"credHelpers":{"q.io":"../evil"}}', "is not the name of a credential helper"),
    ],
)
def test_malformed_credentials_are_named(host: Host, text: str, message: str) -> None:
    path = host.write(host.user / "auth.json", text)
    with pytest.raises(InvalidArgument) as caught:
        host.login("q.io")
    assert message in caught.value.message
    assert path in caught.value.message


HELPER = """#!/bin/sh
read -r server
case "$1 $server" in
"get q.io") echo '{"ServerURL":"q.io","Username":"helped","Secret":"s"}' ;;
"get https://index.docker.io/v1/") echo '{"Username":"<token>","Secret":"t"}' ;;
"get odd.io") echo '{}' ;;
"get broken.io") echo "keychain is locked"; exit 1 ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
"""


def install_helper(host: Host) -> None:
    path = host.write(host.bin / "docker-credential-box", HELPER)
    Path(path).chmod(0o755)


def test_credential_helpers(host: Host) -> None:
    install_helper(host)
    host.environ["PATH"] += ":/bin"
    host.write(host.home / ".docker/config.json", json.dumps({"credsStore": "box", "credHelpers": {"q.io": "box"}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", host.environ["PATH"])
        assert host.login("q.io") == ("helped", "s")
        assert host.login("docker.io") == ("", "t")
        assert host.login("unknown.io") is None
        with pytest.raises(Unauthorized, match="keychain is locked"):
            host.login("broken.io")
        with pytest.raises(Unauthorized, match="did not answer"):
            host.login("odd.io")


def test_missing_credential_helper(host: Host) -> None:
    host.write(host.home / ".docker/config.json", '{"credsStore":"nowhere-to-be-found"}')
    with pytest.raises(HostError, match="docker-credential-nowhere-to-be-found, which is not installed"):
        host.login("q.io")


def test_passwords_are_not_printed() -> None:
    assert "secret" not in repr(credentials.Credentials(username="u", password="secret", identity_token="secret"))
