"""Writes the fixtures of tests/train/data with numpy and mosaicml-streaming==0.13.0.

python tests/data/make_mds_fixtures.py tests/data

Digests are FNV-1a (64 bit) over the little-endian int64 values.
"""

import decimal
import json
import os
import shutil
import sys
import warnings

import numpy as np
from streaming import MDSWriter, StreamingDataset
from streaming.base.partition import get_partitions
from streaming.base.shuffle import get_shuffle

warnings.simplefilter('ignore')
root = sys.argv[1]


def digest(values):
    h = 0xCBF29CE484222325
    for byte in np.asarray(values, '<i8').tobytes():
        h = ((h ^ byte) * 0x100000001B3) & (2**64 - 1)
    return f'{h:016x}'


def rng_cases():
    cases = []
    for seed in (0, 1, 17, 9176, 2**32 - 1, 2**32, 2**40 + 5, 2**63 + 1):
        rng = np.random.default_rng(seed)
        case = {'seed': str(seed)}
        case['next64'] = [str(int(rng.bit_generator.random_raw())) for _ in range(3)]
        case['integers'] = [int(rng.integers(0, n)) for n in (1, 2, 10, 2**31, 2**32, 2**33 + 1, 2**62)]
        case['mixed'] = []
        for _ in range(4):
            case['mixed'] += [int(rng.integers(5, 1000)), float(rng.uniform(-2.5, 3.0)).hex()]
        case['permutation'] = rng.permutation(37).tolist()
        shuffled = list(range(21))
        rng.shuffle(shuffled)
        case['shuffle'] = shuffled
        case['choice'] = [rng.choice(n, k, replace=False).tolist() for n, k in
                          ((1, 1), (10, 0), (10, 10), (1000, 7), (10001, 100))]
        case['choice_tail'] = digest(rng.choice(10001, 300, replace=False))
        cases.append(case)
    return cases


def partition_cases():
    rng = np.random.default_rng(5)
    cases = []
    while len(cases) < 150:
        nodes = int(rng.choice([1, 1, 2, 3, 4, 8]))
        canonical = nodes * int(rng.integers(1, 9)) if rng.random() < .6 else int(rng.integers(1, 9))
        samples = int(rng.integers(1, 40)) if rng.random() < .4 else int(rng.integers(40, 2000))
        ranks, workers, batch = (int(rng.integers(1, n)) for n in (6, 4, 9))
        drop = 0 if rng.random() < .4 else int(rng.integers(0, samples + 1))
        case = {'N': samples, 'C': canonical, 'P': nodes, 'R': ranks, 'W': workers, 'B': batch,
                'drop': drop}
        try:
            ids = get_partitions('orig', samples, canonical, nodes, ranks, workers, batch, drop)
            case['shape'] = list(ids.shape)
            case['digest'] = digest(ids.reshape(-1))
            if ids.size <= 24:
                case['ids'] = ids.reshape(-1).tolist()
        except ValueError:
            case['error'] = True
        cases.append(case)
    return cases


def shuffle_cases():
    rng = np.random.default_rng(6)
    cases = []
    for i in range(60):
        shards = rng.integers(1, 3 if i < 10 else 300, int(rng.integers(1, 30)))
        canonical = int(rng.integers(1, 9))
        seed, epoch = int(rng.integers(0, 10000)), int(rng.integers(0, 4))
        block = int(rng.choice([10, 100, 1000, 1 << 18]))
        case = {'sizes': shards.tolist(), 'C': canonical, 'seed': seed, 'epoch': epoch,
                'block': block}
        try:
            ids = get_shuffle('py1e', shards, canonical, seed, epoch, block)
            case['digest'] = digest(ids)
            if len(ids) <= 24:
                case['ids'] = ids.tolist()
        except ValueError:
            case['error'] = True
        cases.append(case)
    return cases


COLUMNS = {
    'bytes': 'bytes', 'str': 'str', 'int': 'int', 'str_int': 'str_int', 'str_float': 'str_float',
    'str_decimal': 'str_decimal', 'json': 'json', 'nd': 'ndarray', 'nd_i16': 'ndarray:int16',
    'nd_fixed': 'ndarray:float32:2,3', '\u00e4': 'str', '\u8a9e': 'bytes',
    'i8': 'int8', 'i16': 'int16', 'i32': 'int32', 'i64': 'int64',
    'u8': 'uint8', 'u16': 'uint16', 'u32': 'uint32', 'u64': 'uint64',
    'f16': 'float16', 'f32': 'float32', 'f64': 'float64',
}


def sample(i, rng):
    """(what the writer takes, the sample line that shows it)"""
    value, line = {}, {}

    def put(name, v, typed):
        value[name], line[name] = v, typed

    raw = rng.bytes(int(rng.integers(0, 9)))
    put('bytes', raw, {'t': 'bytes', 'hex': raw.hex()})
    put('\u8a9e', raw[::-1], {'t': 'bytes', 'hex': raw[::-1].hex()})
    text = ['', 'plain', 'quote " \\ \n\t\x01', '\u00e4\u8a9e\U0001f600'][i % 4]
    put('str', text, {'t': 'str', 'v': text})
    put('\u00e4', text[::-1], {'t': 'str', 'v': text[::-1]})
    n = int(rng.integers(-2**63, 2**63 - 1))
    put('int', n, {'t': 'int', 'v': str(n)})
    n = [0, -5, 10**30, -(7**50)][i % 4]
    put('str_int', n, {'t': 'int', 'v': str(n)})
    f = [0.1, 1e300, -0.0, float('inf'), 1e16, 123456.75, 1e-5, 5e-324][i % 8]
    put('str_float', f, {'t': 'float', 'v': str(f), 'hex': np.array(f, '<f8').tobytes().hex()})
    d = decimal.Decimal(['1.20', '-0.0', '1E+5', '12345678901234567890.5'][i % 4])
    put('str_decimal', d, {'t': 'decimal', 'v': str(d)})
    j = [{'b': 1, 'a': [1.5, None, True, '\u00e4"']}, 10**25, float('nan'), {'x': {}, 'y': []}][i % 4]
    put('json', j, {'t': 'json', 'v': j})
    for name, shape, dtype in (('nd', [(3,), (2, 300), (1, 1, 2)][i % 3], ['int32', 'float16', 'uint64'][i % 3]),
                               ('nd_i16', (i + 1,), 'int16'), ('nd_fixed', (2, 3), 'float32')):
        array = rng.integers(0, 50, shape).astype(dtype)
        put(name, array, {'t': 'ndarray', 'dtype': dtype, 'shape': list(shape), 'hex': array.tobytes().hex()})
    for name in ('i8', 'i16', 'i32', 'i64', 'u8', 'u16', 'u32', 'u64', 'f16', 'f32', 'f64'):
        dtype = np.dtype(COLUMNS[name])
        scalar = np.frombuffer(rng.bytes(dtype.itemsize), dtype)[0]
        if dtype.kind == 'f':
            scalar = dtype.type([0.1, 1e5, -2.5, 65504, 1e-4, 6e-8][i % 6])
        put(name, scalar, {'t': dtype.name, 'v': str(scalar), 'hex': scalar.tobytes().hex()})
    return value, line


def write_sets():
    out = os.path.join(root, 'mds_all_encodings')
    shutil.rmtree(out, ignore_errors=True)
    rng = np.random.default_rng(7)
    # The first sample passes the limit: an empty shard stands before it.
    with MDSWriter(out=out, columns=COLUMNS, size_limit=4000) as writer, \
            open(os.path.join(root, 'mds_all_encodings.jsonl'), 'w') as lines:
        for i in range(9):
            value, line = sample(i, rng)
            if i == 0:
                value['bytes'] = bytes(range(256)) * 16
                line['bytes']['hex'] = value['bytes'].hex()
            writer.write(value)
            ordered = {name: line[name] for name in sorted(line)}
            lines.write(json.dumps(ordered, ensure_ascii=False, separators=(',', ':')) + '\n')
    out = os.path.join(root, 'mds_tokens')
    shutil.rmtree(out, ignore_errors=True)
    with MDSWriter(out=out, columns={'tokens': 'ndarray:int32'}, size_limit=400) as writer:
        for i in range(50):
            writer.write({'tokens': np.arange(i, i + 8, dtype=np.int32)})


def epoch_cases():
    """What a training process alone sees: first token of each sample = the sample's id."""
    cases = []
    for shuffle in (False, True):
        for epoch in (0, 1, 3):
            for canonical in (None, 4, 7):
                for drop in (0, 13):
                    data = StreamingDataset(local=os.path.join(root, 'mds_tokens'), shuffle=shuffle,
                                            shuffle_algo='py1e', shuffle_seed=11,
                                            num_canonical_nodes=canonical, batch_size=4,
                                            shuffle_block_size=30)
                    for _ in range(epoch):
                        data.next_epoch += 1
                    if drop:
                        data.load_state_dict({'epoch': epoch, 'sample_in_epoch': drop,
                                              'num_canonical_nodes': canonical or 1,
                                              'shuffle_seed': 11, 'initial_physical_nodes': 1})
                    cases.append({'shuffle': shuffle, 'epoch': epoch, 'canonical': canonical,
                                  'drop': drop, 'ids': [int(s['tokens'][0]) for s in data]})
    return cases


write_sets()
with open(os.path.join(root, 'mds_order.json'), 'w') as f:
    def rows(name, cases):
        return f'"{name}": [\n' + ',\n'.join(json.dumps(c, separators=(',', ':')) for c in cases) + '\n]'
    f.write('{' + ',\n'.join([rows('rng', rng_cases()), rows('partition', partition_cases()),
                              rows('shuffle', shuffle_cases()), rows('epoch', epoch_cases())]) + '}\n')
