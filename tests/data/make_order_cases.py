"""Writes tests/data/order_cases.jsonl: random specs of `dropless data order` and what mosaicml-streaming==0.13.0 makes of
them, as its own functions give it: the SHA-256 of the flat order as little-endian int64, or "error".

python tests/data/make_order_cases.py tests/data 1000
"""

import hashlib
import json
import os
import sys
import types
import warnings

import numpy as np
from streaming.base.batching import generate_work
from streaming.base.dataset import StreamingDataset
from streaming.base.stream import Stream
from streaming.base.util import number_abbrev_to_int
from streaming.base.world import World

warnings.simplefilter("ignore")
np.seterr(all="ignore")
# numpy's default sort places equal keys as the CPU's vector width has it: `stratified` then gives its left-over samples
# to other streams on other machines. Ours, and the cases, keep equal keys in their order.
unstable_argsort = np.argsort
np.argsort = lambda keys: unstable_argsort(keys, kind="stable")


def answer(spec):
    """What StreamingDataset does between its index and its workers, without files and processes."""
    algo = spec.get("shuffle_algo")
    world = World(
        num_nodes=spec["nodes"], ranks_per_node=spec["ranks_per_node"], workers_per_rank=spec["workers_per_rank"], worker=0
    )
    if spec.get("replication") is not None:
        world = world.replicate(spec["replication"])
    data = types.SimpleNamespace(
        shuffle=algo not in (None, "none"),
        shuffle_algo=algo if algo not in (None, "none") else "py1e",
        shuffle_seed=spec.get("shuffle_seed", 9176),
        num_canonical_nodes=spec.get("num_canonical_nodes"),
        shuffle_block_size=spec.get("shuffle_block_size"),
        partition_algo=spec.get("partition_algo", "relaxed"),
        batching_method=spec.get("batching_method", "random"),
        sampling_method=spec.get("sampling_method", "balanced"),
        sampling_granularity=spec.get("sampling_granularity", 1),
        initial_physical_nodes=spec.get("initial_physical_nodes"),
        batch_size=spec["batch_size"],
        replication=spec.get("replication"),
    )
    data.epoch_seed_change = data.shuffle and data.sampling_method == "balanced"
    if not data.num_canonical_nodes:
        data.num_canonical_nodes = world.num_nodes * (64 if data.shuffle and data.shuffle_algo in ("py1s", "py2s") else 1)
    if data.shuffle_block_size is None:
        data.shuffle_block_size = max(4_000_000 // data.num_canonical_nodes, 1 << 18)
    data.streams = [
        Stream(local="/nowhere", **{k: s[k] for k in ("proportion", "repeat", "choose") if k in s}) for s in spec["streams"]
    ]
    Stream.validate_weights(data.streams)
    sizes = [np.array(s["shard_sizes"], np.int64) for s in spec["streams"]]
    if not all(s.sum() for s in sizes):
        raise ValueError("Stream contains no samples")  # as StreamingDataset does when it reads the index
    data.num_streams = len(sizes)
    data.shards_per_stream = np.array([len(s) for s in sizes], np.int64)
    data.shard_offset_per_stream = data.shards_per_stream.cumsum() - data.shards_per_stream
    data.samples_per_stream = np.array([s.sum() for s in sizes], np.int64)
    data.samples_per_shard = np.concatenate(sizes)
    data.sample_offset_per_shard = data.samples_per_shard.cumsum() - data.samples_per_shard
    size = spec.get("epoch_size")
    data.epoch_size = Stream.apply_weights(
        data.streams, data.samples_per_stream, number_abbrev_to_int(size) if size else None, data.shuffle_seed
    )
    data.resample_streams = types.MethodType(StreamingDataset.resample_streams, data)
    return generate_work(data.batching_method, data, world, spec["epoch"], spec["sample_in_epoch"])


def random_spec(rng, number):
    def pick(*values):
        return values[int(rng.integers(len(values)))]

    nodes = pick(1, 1, 2, 3, 4, 6)
    spec = {"id": number, "nodes": nodes, "ranks_per_node": pick(1, 2, 3, 4), "workers_per_rank": pick(1, 2, 3)}
    spec.update(batch_size=pick(1, 2, 3, 5, 8), epoch=pick(0, 1, 4), sample_in_epoch=pick(0, 0, 0, 12, 24, 37))
    spec["shuffle_algo"] = pick("none", "naive", "py1s", "py2s", "py1br", "py1e", "py1e")
    options = {
        "shuffle_seed": pick(0, 17, 12345),
        "shuffle_block_size": pick(7, 50, 1000),
        "num_canonical_nodes": pick(nodes, 2 * nodes, 4 * nodes, 12, 2),
        "partition_algo": pick("orig", "relaxed"),
        "batching_method": pick("random", "stratified", "per_stream", "device_per_stream"),
        "sampling_method": pick("balanced", "fixed"),
        "sampling_granularity": pick(1, 4, 33),
        "initial_physical_nodes": pick(1, 2, 4, 8),
        "replication": pick(1, 2, 3),
    }
    chances = {"num_canonical_nodes": 0.7, "replication": 0.15, "batching_method": 0.75, "shuffle_block_size": 0.8}
    spec.update({key: value for key, value in options.items() if rng.random() < chances.get(key, 0.5)})
    weight = pick(None, None, "proportion", "repeat", "choose", "mixed")
    spec["streams"] = []
    for _ in range(pick(1, 2, 3, 3, 10)):
        shards = rng.integers(1, pick(4, 40, 300), int(rng.integers(1, 9)))
        if rng.random() < 0.1:
            shards[int(rng.integers(len(shards)))] = 0
        stream = {"shard_sizes": shards.tolist()}
        kind = pick(None, "repeat", "choose") if weight == "mixed" else weight
        if kind == "proportion":
            stream[kind] = pick(1.0, 0.1, 0.3333, 2.5)
        elif kind == "repeat":
            stream[kind] = pick(1.0, 0.5, 2.25, 3.0)
        elif kind == "choose":
            stream[kind] = pick(1, 20, 77, 400)
        spec["streams"].append(stream)
    if rng.random() < (0.5 if weight in (None, "proportion") else 0.05):
        spec["epoch_size"] = pick(200, 1000, "1.5k")
    return spec


def main():
    rng = np.random.default_rng(20)
    with open(os.path.join(sys.argv[1], "order_cases.jsonl"), "w") as out:
        for number in range(int(sys.argv[2])):
            spec = random_spec(rng, number)
            try:
                ids = answer(spec)
                want = {"shape": list(ids.shape)}
                flat = np.ascontiguousarray(ids, "<i8").reshape(-1)
                want["sha256"] = hashlib.sha256(flat.tobytes()).hexdigest()
            except (ValueError, IndexError, ZeroDivisionError):
                want = {"error": True}
            out.write(json.dumps([spec, want], separators=(",", ":")) + "\n")


main()
