#!/usr/bin/env python3
"""A model of 1 to 1000 nodes that start together with empty caches and OSS as the only source. NOT a measurement.

Compared: every node for itself (naive), cai's plan, and the bound that no plan can beat (ideal). In rounds in which a node's link
carries one piece each way; a piece stands for many chunks. cai's plan as `src/store/sharing.rs` and `src/peer/board.rs` have it:
what nobody has, the node of the highest rendezvous score fetches from OSS; the rest comes from whoever has it and has least to do,
rather from one that has a part than from one that has all, in an order that is no other node's; every node knows every other.
What links, OSS and CPU can is given; what is not modelled: latency, losses, disks, failures, and that links differ.

What a node costs and reaches is an argument here: CPU seconds per GB sent and received and the part of a link that is used, by
default as docs/peer-to-peer.md measured them (benches/peers.py measures them again); CPU seconds per attested connection, by default
assumed. They bound the rate, and the time until a node knows the others; until then it fetches what it would
have fetched alone. Prints Markdown, writes plots.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GB, CHUNK, LANES = 1e9, 8 << 20, 4


@dataclass
class World:
    """Bytes and seconds."""

    name: str
    size: float
    link: float
    origin: float
    cores: int
    cpu_per_byte: float
    cpu_per_connection: float
    in_flight: float
    efficiency: float

    @property
    def rate(self):
        """What a node can send and, at the same time, receive."""
        return min(self.link * self.efficiency, self.cores / self.cpu_per_byte)

    def joining(self, nodes):
        """Seconds until a node knows all others: it makes and takes LANES connections with each, on all its cores."""
        return 2 * LANES * (nodes - 1) * self.cpu_per_connection / self.cores


def naive(world, nodes):
    return max(world.size / world.link, nodes * world.size / world.origin), float(nodes)


def ideal(world, nodes):
    """Every byte leaves OSS once at least, comes in at every node, and is sent by somebody (Kumar and Ross, fluid)."""
    rate = world.link
    return max(world.size / rate, world.size / world.origin, nodes * world.size / (world.origin + nodes * rate)), 1.0


def planned(world, nodes, pieces, generator):
    """Rounds until the last has everything, and copies that left OSS, of cai's plan."""
    have = np.zeros((nodes, pieces), bool)
    owner = generator.random((nodes, pieces)).argmax(axis=0)
    order = generator.random((nodes, pieces))
    per_round, budget, fetched, rounds = world.origin / world.rate, 0.0, 0, 0
    while not have.all():
        rounds += 1
        # What could not be used in a round is lost, but for a part of a piece.
        budget = min(budget, 1.0) + per_round
        before = have.copy()
        held, full = before.any(axis=0), before.all(axis=1)
        sends, receives = np.ones(nodes, bool), np.ones(nodes, bool)
        for node in generator.permutation(nodes):
            mine = np.flatnonzero(~have[node] & ~held & (owner == node))
            if budget >= 1 and mine.size:
                have[node, mine[order[node, mine].argmin()]] = True
                receives[node], budget, fetched = False, budget - 1, fetched + 1
        on_offer = before.sum(axis=0)
        for node in generator.permutation(np.flatnonzero(receives & ~have.all(axis=1))):
            wanted = np.flatnonzero(~have[node] & (on_offer > 0))
            if not wanted.size:
                continue
            piece = wanted[order[node, wanted].argmin()]
            holders = np.flatnonzero(before[:, piece] & sends)
            partial = holders[~full[holders]]
            holder = generator.choice(partial if partial.size else holders)
            have[node, piece], sends[holder] = True, False
            on_offer -= before[holder]
    return rounds, fetched / pieces


def cai(world, nodes, pieces, generator):
    if nodes == 1:
        return naive(world, nodes)
    rounds, copies = planned(world, nodes, pieces, generator)
    joining = world.joining(nodes)
    # Meanwhile each fetches for itself what it may have on its way, and what falls to it is not lost.
    early = min(world.origin * joining, nodes * world.in_flight) * (1 - 1 / nodes)
    return joining + rounds * world.size / pieces / world.rate, copies + early / world.size


def table(world, counts, pieces):
    generator = np.random.default_rng(7)
    results = {"naive": [], "cai": [], "ideal": []}
    print(f"\n**{world.name}** (model, not measurement): {world.size / GB:.0f} GB, OSS {world.origin * 8 / GB:.0f} Gbit/s in all, links "
          f"{world.link * 8 / GB:.0f} Gbit/s, {world.cores} cores for cai at {world.cpu_per_byte * GB:.1f} CPU s per GB, so "
          f"{world.rate * 8 / GB:.1f} Gbit/s a node.\n")  # fmt: skip
    print("| nodes | naive: last node | cai: last node | ideal: last node | naive: from OSS | cai: from OSS | cai: connections of a node | verdicts asked of the Trustee, all nodes |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for nodes in counts:
        results["naive"].append(naive(world, nodes))
        results["ideal"].append(ideal(world, nodes))
        results["cai"].append(cai(world, nodes, pieces, generator))
        (alone, copies), (shared, few), (best, _) = (results[name][-1] for name in ("naive", "cai", "ideal"))
        print(f"| {nodes} | {alone / 60:.1f} min | {shared / 60:.1f} min | {best / 60:.1f} min | {copies:.0f}x | {few:.2f}x "
              f"| {2 * LANES * (nodes - 1)} | {nodes * (nodes - 1)} |", flush=True)  # fmt: skip
    return results


def plot(world, counts, results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=90)
    marks = {"naive": ("every node for itself", "o", "#b3443b"), "cai": ("cai", "s", "#2b6ca3"), "ideal": ("no plan can be faster", "", "#777777")}
    for name, (label, mark, color) in marks.items():
        style = {"marker": mark, "color": color, "label": label, "markersize": 4, "linestyle": "--" if name == "ideal" else "-"}
        left.plot(counts, [seconds / 60 for seconds, _ in results[name]], **style)
        right.plot(counts, [copies for _, copies in results[name]], **style)
    for axes, title in ((left, "last node, minutes"), (right, "sent by OSS, copies of the model")):
        axes.set(xscale="log", yscale="log", xlabel="nodes", title=title)
        axes.grid(True, which="major", color="#dddddd")
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Model, not measurement: {world.name}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu-per-gb", type=float, default=3.2, help="CPU seconds per GB received, its sender's included")
    parser.add_argument("--cpu-per-connection", type=float, default=0.01, help="CPU seconds per attested connection, of one end")
    parser.add_argument("--efficiency", type=float, default=0.85, help="part of its link that a node of the group uses")
    parser.add_argument("--cores", type=int, default=16, help="of a node that cai may use")
    parser.add_argument("--pieces", type=int, default=250)
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])
    parser.add_argument("--images", type=Path, help="directory for the plots; none are written without")
    options = parser.parse_args()
    gbit = lambda number: number * 1e9 / 8
    common = {
        "cores": options.cores,
        "cpu_per_byte": options.cpu_per_gb / GB,
        "cpu_per_connection": options.cpu_per_connection,
        "in_flight": 32 * CHUNK,
        "efficiency": options.efficiency,
    }
    worlds = {
        "large": World("700 GB, OSS 100 Gbit/s, links 25 Gbit/s", 700 * GB, gbit(25), gbit(100), **common),
        "small": World("140 GB, OSS 10 Gbit/s, links 10 Gbit/s", 140 * GB, gbit(10), gbit(10), **common),
    }
    for name, world in worlds.items():
        results = table(world, options.counts, options.pieces)
        gain = next((n for n in options.counts if n > world.origin / world.rate), math.inf)
        print(f"\nPeers cannot help before nodes x rate is more than OSS gives: from {gain} of these nodes on here.")
        if options.images:
            plot(world, options.counts, results, options.images / f"peers-model-{name}.png")


if __name__ == "__main__":
    main()
