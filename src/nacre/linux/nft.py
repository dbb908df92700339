"""Packet filter rules: one nftables transaction per call, through the program `nft` (nft(8)).

Not through libnftables, although that would save 3 ms: it reads every table of the network namespace, and versions before 1.0.7
crash on tables that a newer one wrote (a container on the host's network is enough). That must not take our process along.
"""

from __future__ import annotations

from nacre.errors import Denied, HostError
from nacre.linux import run
from nacre.model.value import Value


class Answer(Value):
    """What nftables said. ok: the whole transaction was applied; otherwise nothing was, and `error` says why."""

    ok: bool
    output: str = ""
    error: str = ""


def available() -> bool:
    """Whether rules can be set on this host."""
    return bool(run.find_program("nft"))


def execute(script: str) -> Answer:
    """Run a script in nft's own language as one transaction in the calling thread's network namespace.

    Raises HostError when nftables is not installed or does not survive. Errors of the script itself are in the answer.
    """
    if not available():
        raise HostError("nftables is not installed; networks and published ports need it", hint=_hint())
    result = run.run(["nft", "--numeric-protocol", "--file", "-"], stdin=script.encode())
    if result.code < 0:
        raise HostError(
            f"nft was killed by signal {-result.code}",
            hint="it cannot read a table that a newer nft has made: delete that table with the newer nft, or apt-get upgrade nftables",
            details=script,
        )
    return Answer(ok=result.code == 0, output=result.stdout.decode(errors="replace"), error=result.stderr.decode(errors="replace"))


def apply(script: str) -> str:
    """Like `execute`; returns the output. Raises HostError (Denied without CAP_NET_ADMIN) when the script is refused."""
    answer = execute(script)
    if answer.ok:
        return answer.output
    reason = next((line for line in answer.error.splitlines() if "Error" in line), answer.error.strip() or "it said nothing")
    if "Operation not permitted" in answer.error:
        raise Denied(f"nftables: {reason}", hint="run as root (sudo): this needs CAP_NET_ADMIN", details=answer.error)
    hint = "modprobe -a nf_tables nft_nat nft_masq nft_fib_ipv4" if "not supported" in reason or "No such file" in reason else ""
    raise HostError(f"nftables: {reason}", hint=hint, details=f"{answer.error}\n{script}")


def _hint() -> str:
    extra = " (iptables alone is not enough: rules are nftables maps)" if run.find_program("iptables") else ""
    return f"apt-get install nftables{extra}"
