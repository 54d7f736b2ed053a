"""Strategies: which sequences of slices a shard trains.

Brief (brief) ──► registry ──► rotations   cyclic, iterated, even
                          ├──► sampling    random, conditional
                          ├──► matching    the paper's bipartite matching
                          ├──► greedy      best chains, one after another
                          └──► settree     the set tree    both over lattice, or scenarios if large
"""
