"""Records as the JSON objects that Docker's users know (Docker Engine API, ContainerInspect and ImageInspect)."""

from __future__ import annotations

from nacre.engine import logdrivers
from nacre.isolation import devices
from nacre.isolation.security import visibility
from nacre.model.container import BoundMount, Container, DeviceLimit, Resources, State
from nacre.model.image import Image
from nacre.model.network import Endpoint, PortMapping
from nacre.model.reference import Reference
from nacre.store import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_MODES = ("z", "Z", *_PROPAGATION)
NEVER = "0001-01-01T00:00:00Z"


def container_json(record: Container, state: State, layout: Layout, isolation: dict[str, object]) -> dict[str, Any]:
    """One container. ``Isolation`` is ours: level, kernel, assurance, and at level vm the monitor and accelerator."""
    spec, process = record.spec, record.process
    running = state in (State.RUNNING, State.PAUSED)
    return {
        "Id": record.id,
        "Created": record.created,
        "Path": process.args[0] if process.args else "",
        "Args": list(process.args[1:]),
        "State": {
            "Status": str(state),
            "Running": running or state is State.RESTARTING,
            "Paused": state is State.PAUSED,
            "Restarting": state is State.RESTARTING,
            "OOMKilled": record.oom_killed,
            "Dead": state is State.DEAD,
            "Pid": record.pid if running else 0,
            "ExitCode": 0 if running else record.exit_code,
            "Error": record.error,
            "StartedAt": record.started or NEVER,
            "FinishedAt": record.finished or NEVER,
        },
        "Image": record.image_id,
        "Name": f"/{record.name}",
        "RestartCount": record.restarts,
        "Driver": record.rootfs.driver if record.rootfs else "",
        "Platform": "linux",
        "LogPath": logdrivers.path(layout, record),
        "HostnamePath": f"{layout.container(record.id)}/etc/hostname",
        "HostsPath": f"{layout.container(record.id)}/etc/hosts",
        "ResolvConfPath": f"{layout.container(record.id)}/etc/resolv.conf",
        "Isolation": {"Level": str(spec.isolation), **isolation},
        "HostConfig": _host_config(record) | _rights(record),
        "Mounts": [_mount(mount) for mount in record.mounts],
        "Config": {
            "Hostname": spec.hostname or record.id[:12],
            "Domainname": spec.domainname,
            "User": process.user,
            "Tty": spec.tty,
            "OpenStdin": spec.open_stdin,
            "Env": list(process.env),
            "Cmd": list(spec.command or (record.image_config.cmd if spec.entrypoint is None else ())),
            "Image": record.image_name,
            "WorkingDir": process.working_dir,
            "Entrypoint": list(record.image_config.entrypoint if spec.entrypoint is None else spec.entrypoint) or None,
            "Labels": {**record.image_config.labels, **spec.labels},
            "ExposedPorts": {port: {} for port in record.image_config.exposed_ports},
            "StopSignal": spec.stop_signal or record.image_config.stop_signal or "SIGTERM",
            "StopTimeout": spec.stop_timeout,
            **_healthcheck(record),
        },
        "NetworkSettings": network_json(record.endpoint if running else None, spec.network),
    }


def _healthcheck(record: Container) -> dict[str, Any]:
    """Healthcheck, as merged from image and request; nothing when neither has one."""
    if not (record.spec.health or record.image_config.healthcheck):
        return {}
    from nacre.engine import health

    names = {"test": "Test", "interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod"}
    names |= {"start_interval": "StartInterval", "retries": "Retries"}
    merged = {shown: getattr(health.merged(record), name) for name, shown in names.items()}
    return {"Healthcheck": {name: list(value) if isinstance(value, tuple) else value for name, value in merged.items() if value}}


def _host_config(record: Container) -> dict[str, Any]:
    spec = record.spec
    return {
        "Binds": [":".join(filter(None, (m.source, m.target, _mode(m)))) for m in record.mounts if m.kind == "bind"],
        "NetworkMode": spec.network,
        "PortBindings": _bindings(spec.ports),
        "LogConfig": {"Type": logdrivers.driver_of(spec.log), "Config": spec.log.options},
        "RestartPolicy": {"Name": spec.restart.name, "MaximumRetryCount": spec.restart.maximum},
        "AutoRemove": spec.auto_remove,
        "Isolation": str(spec.isolation),
        "Kernel": spec.kernel,
        "CapAdd": list(spec.cap_add) or None,
        "CapDrop": list(spec.cap_drop) or None,
        "Dns": list(spec.dns),
        "DnsSearch": list(spec.dns_search),
        "ExtraHosts": list(spec.extra_hosts) or None,
        "Devices": [_device(text) for text in spec.devices if text.startswith("/")],
        "Privileged": spec.privileged,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": list(spec.security_opt) or None,
        "UsernsMode": spec.userns,
        "ShmSize": spec.shm_size,
        "Sysctls": spec.sysctls,
        "CgroupParent": spec.cgroup_parent,
        **_limits(spec.resources),
        "OomScoreAdj": spec.oom_score_adj,
        "StorageOpt": {"size": str(spec.storage_size)} if spec.storage_size else None,
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in spec.ulimits],
    }


def _limits(limits: Resources) -> dict[str, Any]:
    def devices(entries: tuple[DeviceLimit, ...], key: str = "Rate") -> list[dict[str, Any]]:
        return [{"Path": entry.path, key: entry.value} for entry in entries]

    return {
        "Memory": limits.memory,
        "MemorySwap": limits.memory_swap or 2 * limits.memory,
        "MemoryReservation": limits.memory_reservation,
        "MemorySwappiness": None if limits.memory_swappiness == -1 else limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "NanoCpus": round(limits.cpus * 1e9),
        "CpuShares": limits.cpu_shares,
        "CpuPeriod": limits.cpu_period,
        "CpuQuota": limits.cpu_quota,
        "CpuRealtimePeriod": limits.cpu_rt_period,
        "CpuRealtimeRuntime": limits.cpu_rt_runtime,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "PidsLimit": limits.pids or None,
        "BlkioWeight": limits.blkio_weight,
        "BlkioWeightDevice": devices(limits.blkio_weight_device, "Weight"),
        "BlkioDeviceReadBps": devices(limits.device_read_bps),
        "BlkioDeviceWriteBps": devices(limits.device_write_bps),
        "BlkioDeviceReadIOps": devices(limits.device_read_iops),
        "BlkioDeviceWriteIOps": devices(limits.device_write_iops),
        "CgroupConf": limits.unified or None,
    }


def _rights(record: Container) -> dict[str, Any]:
    """Namespaces, devices and what is hidden, with Docker's words for what is not said."""
    spec = record.spec
    named = [text for text in spec.devices if not text.startswith("/")]
    requests = [{"Driver": "cdi", "Count": 0, "DeviceIDs": named}] if named else []
    requests += [_gpus(text) for text in spec.gpus]
    hidden, read_only = visibility(spec)
    return {
        "PidMode": spec.pid,
        "IpcMode": spec.ipc or "private",
        "UTSMode": spec.uts,
        "CgroupnsMode": spec.cgroupns or "private",
        "GroupAdd": list(spec.groups) or None,
        "Init": spec.init,
        "DnsOptions": list(spec.dns_options),
        "DeviceCgroupRules": list(spec.device_rules) or None,
        "DeviceRequests": requests or None,
        "VolumesFrom": list(spec.volumes_from) or None,
        "Tmpfs": {
            mount.target: ",".join((*mount.options, *(["ro"] if mount.read_only else []))) for mount in spec.mounts if mount.kind == "tmpfs"
        },
        "Annotations": spec.annotations,
        "PublishAllPorts": spec.publish_all,
        "MaskedPaths": list(hidden),
        "ReadonlyPaths": list(read_only),
        "Rootfs": spec.rootfs,
    }


def _gpus(text: str) -> dict[str, Any]:
    """One request of --gpus: all, a number, or device=NAME,..."""
    names = text.removeprefix("device=").split(",") if text.startswith("device=") else []
    count = 0 if names else -1 if text == "all" else int(text)
    return {"Driver": "", "Count": count, "DeviceIDs": names or None, "Capabilities": [["gpu"]]}


def _mode(mount: BoundMount) -> str:
    """What stands behind the second colon of -v."""
    return ",".join((*(["ro"] if mount.read_only else []), *(word for word in mount.options if word in _MODES)))


def _mount(mount: BoundMount) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "Type": mount.kind, "Source": mount.source, "Destination": mount.target, "Mode": _mode(mount), "RW": not mount.read_only,
        "Propagation": "",
    }  # fmt: skip
    if mount.kind == "bind":
        shown["Propagation"] = next((word for word in mount.options if word in _PROPAGATION), "rprivate")
    if mount.kind == "volume":
        shown |= {"Name": mount.options[0].removeprefix("name=") if mount.options else "", "Driver": "local"}
    if mount.kind == "tmpfs":
        shown["Mode"] = ",".join(mount.options)
    return shown


def _device(text: str) -> dict[str, str]:
    source, target, access = devices.parse(text)
    return {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": access}


def _bindings(ports: tuple[PortMapping, ...]) -> dict[str, list[dict[str, str]]]:
    shown: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        entry = {"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.host_port) if port.host_port else ""}
        shown.setdefault(f"{port.container_port}/{port.protocol}", []).append(entry)
    return shown


def network_json(endpoint: Endpoint | None, network: str) -> dict[str, Any]:
    """NetworkSettings of a container; empty addresses when it is not running."""
    address, _, prefix = (endpoint.address if endpoint else "").partition("/")
    one = {
        "MacAddress": endpoint.mac if endpoint else "",
        "Gateway": endpoint.gateway if endpoint else "",
        "IPAddress": address,
        "IPPrefixLen": int(prefix) if prefix else 0,
    }
    return {
        "SandboxKey": endpoint.netns if endpoint else "",
        "Ports": _bindings(endpoint.ports) if endpoint else {},
        **one,
        # A container that shares the network of another one is on none itself.
        "Networks": {} if network.startswith("container:") else {network: one},
    }


def image_json(image: Image) -> dict[str, Any]:
    """One image."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": [Reference.parse(name).familiar() for name in image.tags],
        "RepoDigests": [Reference.parse(name).familiar() for name in image.repo_digests],
        "Created": image.created,
        "Author": image.author,
        "Architecture": image.platform.architecture,
        "Variant": image.platform.variant,
        "Os": image.platform.os,
        "Size": image.size,
        "Config": {
            "User": config.user,
            "Env": list(config.env),
            "Cmd": list(config.cmd) or None,
            "Entrypoint": list(config.entrypoint) or None,
            "WorkingDir": config.working_dir,
            "Labels": config.labels or None,
            "ExposedPorts": {port: {} for port in config.exposed_ports} or None,
            "Volumes": {path: {} for path in config.volumes} or None,
            "StopSignal": config.stop_signal,
            "Shell": list(config.shell) or None,
            "Healthcheck": config.healthcheck,
        },
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
    }
