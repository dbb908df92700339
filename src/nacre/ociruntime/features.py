"""features: what this runtime supports, on this host (OCI runtime specification, features.md and features-linux.md)."""

from __future__ import annotations

import json
import os
import sys

from nacre.errors import InvalidArgument
from nacre.model.bundle import VERSION as SPECIFICATION
from nacre.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nacre.ociruntime.main import Call
    from nacre.ociruntime.options import Flags

TABLE_FEATURES: dict[str, str] = {}


def do_features(call: Call, flags: Flags, operands: list[str]) -> int:
    """Print the object of features.md."""
    if operands:
        raise InvalidArgument('nacre-oci: "features" takes no arguments')
    from nacre.engine import bundles
    from nacre.ociruntime import config

    linux = bundles.host_features()
    architectures = linux.pop("seccompArchitectures")
    linux["seccomp"] = {
        "enabled": os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        "actions": list(config.ACTIONS),
        "operators": list(config.OPERATORS),
        "archs": architectures,
        "knownFlags": list(config.FILTER_FLAGS),
        "supportedFlags": list(config.FILTER_FLAGS),
    }
    found = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPECIFICATION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": bundles.mount_options(),
        "linux": linux,
        "annotations": {"io.nacre.version": VERSION},
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0
