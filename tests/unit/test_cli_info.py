"""`nacre info` as a reader sees it."""

from __future__ import annotations

from nacre.cli.commands.info import text


def test_rows_in_dockers_order_then_the_rest() -> None:
    lines = text(
        {
            "NetworkUplink": "none",
            "Containers": 3,
            "ContainersRunning": 1,
            "Driver": "erofs",
            "StorageDriver": "erofs",
            "DriverStatus": [["Backing Filesystem", "ext4"], ["Driver btrfs", "no snapshots can be made"]],
            "IsolationLevels": ["process", "vm"],
            "Plugins": {"Volume": ["local"], "Network": ["bridge", "none"]},
            "Runtimes": {"stem": {"path": "/x"}},
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
            "MemTotal": 1 << 31,
            "Warnings": ["not shown here"],
        }
    )
    assert lines == [
        "Containers: 3",
        " Running: 1",
        "Storage Driver: erofs",
        " Backing Filesystem: ext4",
        " Driver btrfs: no snapshots can be made",
        "Isolation Levels: process vm",
        "Plugins:",
        " Volume: local",
        " Network: bridge none",
        "Runtimes: stem",
        "Security Options:",
        " seccomp",
        "  Profile: builtin",
        " cgroupns",
        "Total Memory: 2GiB",
        "Network Uplink: none",
    ]
