"""Writes tests/data/mds_zip with mosaicml-streaming==0.13.0: one set uncompressed and with each compression, every
hash of the package, and the index that its merge_index makes of them.

python tests/data/make_mds_zip_fixtures.py tests/data
"""

import os
import shutil
import sys

from streaming import MDSWriter
from streaming.base.hashing import get_hashes
from streaming.base.util import merge_index

root = os.path.join(sys.argv[1], "mds_zip")
shutil.rmtree(root, ignore_errors=True)
for name in ["none", "zstd", "zstd:7", "gz:5", "bz2", "br:4", "snappy"]:
    out = os.path.join(root, name.replace(":", "-"))
    compression = None if name == "none" else name
    with MDSWriter(
        out=out, columns={"id": "int", "text": "str"}, compression=compression, hashes=sorted(get_hashes()), size_limit=700
    ) as writer:
        for i in range(12):
            writer.write({"id": i, "text": f"sample {i} " * i})
merge_index(root, keep_local=True)
