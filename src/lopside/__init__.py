"""Asymmetric structured pruning of sequence-to-sequence summarisers, measured honestly.

The idea: Campos & Zhai 2023, *To Asymmetry and Beyond* (arXiv 2304.02721).
"""

__version__ = "0.1.0"
