"""What a tree of processes uses, and what the rest of the machine does meanwhile. Linux's /proc only."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that are used; times in seconds, those of reaped children included."""

    parent: int
    cpu_s: float


def read_stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_stat(text)


def parse_stat(text: str) -> Stat:
    # The name stands in parentheses and may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return Stat(parent=int(fields[1]), cpu_s=sum(int(field) for field in fields[11:15]) / TICKS_PER_S)


def tree(root: int) -> list[int]:
    """A process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))):
            children.setdefault(stat.parent, []).append(int(entry))
    found, open_ends = [], [root]
    while open_ends:
        pid = open_ends.pop()
        found.append(pid)
        open_ends += children.get(pid, [])
    return found


def tree_cpu_s(root: int) -> float:
    return sum(stat.cpu_s for pid in tree(root) if (stat := read_stat(pid)))


@dataclass(frozen=True)
class Memory:
    """Of a whole tree, in MiB: resident, proportional (shared pages counted once), and the resident part not backed by files."""

    rss_mib: float
    pss_mib: float
    anonymous_mib: float


def tree_memory(root: int) -> dict[str, float]:
    sums = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            name = line.partition(":")[0]
            if name in sums:
                sums[name] += int(line.split()[1])
    memory = Memory(*(round(sums[name] / 1024, 1) for name in ("Rss", "Pss", "Anonymous")))
    return asdict(memory)


@dataclass(frozen=True)
class MachineCpu:
    """CPU seconds since boot: used by anyone here, and taken by the hypervisor for other guests."""

    busy_s: float
    steal_s: float


def machine_cpu() -> MachineCpu:
    return parse_machine_cpu(Path("/proc/stat").read_text(encoding="utf-8"))


def parse_machine_cpu(text: str) -> MachineCpu:
    # user nice system idle iowait irq softirq steal; guests' time is part of user's.
    user, nice, system, _, _, irq, softirq, steal = (int(field) / TICKS_PER_S for field in text.split()[1:9])
    return MachineCpu(busy_s=user + nice + system + irq + softirq, steal_s=steal)


class Watch:
    """Takes the CPU time of a server's tree, of this harness with its finished clients, and of everything else, over a while."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._began = time.monotonic()
        self._machine = machine_cpu()
        self._server_cpu_s = tree_cpu_s(server)
        self._harness_cpu_s = harness_cpu_s()

    def end(self) -> dict[str, float]:
        wall_s = time.monotonic() - self._began
        server_s = tree_cpu_s(self._server) - self._server_cpu_s
        harness_s = harness_cpu_s() - self._harness_cpu_s
        machine = machine_cpu()
        # Ticks are coarse: a difference below zero is nothing.
        others_s = max(0.0, machine.busy_s - self._machine.busy_s - server_s - harness_s)
        steal_s = machine.steal_s - self._machine.steal_s
        return {
            "wall_s": round(wall_s, 3),
            "server_cpu_s": round(server_s, 2),
            "client_cpu_s": round(harness_s, 2),
            "others_cpu_s": round(others_s, 2),
            "steal_s": round(steal_s, 2),
        }


def harness_cpu_s() -> float:
    """This process and its reaped children, so the clients; a server counts only once it is reaped, after its watch."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# A stage counts as disturbed when others took more than this share of all CPUs over it, and more than a few ticks.
OTHERS_SHARE_MAX = 0.03
OTHERS_TICKS_MAX = 5


def disturbed(watch: dict[str, float]) -> bool:
    taken_s = watch["others_cpu_s"] + watch["steal_s"]
    return taken_s > OTHERS_TICKS_MAX / TICKS_PER_S and taken_s / (watch["wall_s"] * CPUS) > OTHERS_SHARE_MAX
