"""The bars, and whether they are met."""

from dataclasses import dataclass

from summary import LEVELS, Row

RSS_MARGIN_MIB = 120.0
START_S_MAX = 0.5
CONTEXT_SLOWDOWN_MAX = 1.6
IDLE_PERCENT_MAX = 0.5


@dataclass(frozen=True)
class Bar:
    what: str
    ours: str
    against: str
    ratio: str
    bar: str
    met: bool | None
    """None where something was not measured."""


def best(peers: list[Row], quantity: str, largest: bool = True) -> tuple[str, float] | None:
    known = [(row.name, value) for row in peers if (value := row.median(quantity)) is not None]
    if not known:
        return None
    return (max if largest else min)(known, key=lambda pair: pair[1])


def at_least(what: str, quantity: str, factor: float, ours: Row, peers: list[Row], unit: str = "tok/s") -> Bar:
    """Ours is so many times the best peer's."""
    own, peer = ours.median(quantity), best(peers, quantity)
    if own is None or peer is None:
        shown = "not measured" if own is None else f"{own:.0f} {unit}"
        return Bar(what, shown, "not measured" if peer is None else f"{peer[1]:.0f} {unit} ({peer[0]})", "", f"{factor}x", None)
    ratio = own / peer[1]
    return Bar(what, f"{own:.0f} {unit}", f"{peer[1]:.0f} {unit} ({peer[0]})", f"{ratio:.2f}x", f"{factor}x", ratio >= factor)


def below_all(what: str, quantity: str, ours: Row, peers: list[Row]) -> Bar:
    """Ours is less than every peer's."""
    own, peer = ours.median(quantity), best(peers, quantity, largest=False)
    if own is None or peer is None:
        return Bar(what, "not measured" if own is None else f"{own:.0f} ms", "not measured", "", "below all", None)
    ratio = own / peer[1]
    return Bar(what, f"{own:.0f} ms", f"{peer[1]:.0f} ms ({peer[0]})", f"{ratio:.2f}x", "below all", ratio < 1)


def at_most(what: str, value: float | None, limit: float, unit: str, digits: int = 0) -> Bar:
    if value is None:
        return Bar(what, "not measured", "", "", f"{limit:.{digits}f} {unit}", None)
    return Bar(what, f"{value:.{digits}f} {unit}", "", "", f"under {limit:.{digits}f} {unit}", value < limit)


def speed_bars(ours: Row, peers: list[Row], same_file: Row | None, best_format: list[Row]) -> list[Bar]:
    """`peers` are all who serve this model, `same_file` is llama.cpp on ours, `best_format` llama.cpp on any."""
    found = []
    if same_file is not None:
        found.append(at_least("decode, 1 stream, against llama.cpp on the same file", "decode", 1.6, ours, [same_file]))
    if best_format:
        found.append(at_least("decode, 1 stream, against llama.cpp's best format", "decode", 1.2, ours, best_format))
    found.append(at_least("prefill of 512, against the best of all", "prefill", 2.0, ours, peers))
    for clients in LEVELS:
        factor = 2.5 if clients == 32 else 1.8
        found.append(at_least(f"{named(clients)}, output", f"output_{clients}", factor, ours, peers))
    for clients in LEVELS:
        found.append(below_all(f"{named(clients)}, TTFT p50", f"ttft_p50_{clients}", ours, peers))
        found.append(below_all(f"{named(clients)}, TTFT p95", f"ttft_p95_{clients}", ours, peers))
    return found


def own_bars(ours: Row, kv_cache_mib: float) -> list[Bar]:
    """What is asked of ours whatever the peers do."""
    slowdown, start, idle = ours.median("context_slowdown"), ours.median("start_s"), ours.median("idle_percent")
    weights = ours.median("model_mib")
    limit_mib = (weights or 0) + kv_cache_mib + RSS_MARGIN_MIB
    return [
        at_most("decode at 4,096 tokens of context, times slower than at 128", slowdown, CONTEXT_SLOWDOWN_MAX, "x", 2),
        at_most("start to first answer", start, START_S_MAX, "s", 2),
        at_most("RSS after load", ours.median("rss_mib_after_load"), limit_mib, "MiB"),
        at_most("RSS after all the work", ours.median("rss_mib_after_work"), limit_mib, "MiB"),
        at_most("idle CPU", idle, IDLE_PERCENT_MAX, "%", 1),
    ]


def named(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"
