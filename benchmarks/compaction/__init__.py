"""maskjax's compaction beside Torch-Pruning, on the same networks.

`python -m benchmarks.compaction --help`. The torch half needs torch and torch-pruning:

    pip install torch torch-pruning

Where they are not installed, the committed lines of the torch half are shown.
"""
