"""The benchmark: our times beside the peers' and the machine's own limits, one run at a time, interleaved.

In: a checkpoint's folder (checkpoint.py makes one of the real shapes with random weights) and the peers to run. Out:
medians, ratios and shares as a table, JSON and a picture. Every row is a process of its own, which `runner.py` turns
into a loop over commands (bench/peers/PROTOCOL.md); of the rest of the package only `ours.py` knows the inside.
"""
