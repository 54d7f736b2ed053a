"""How much insurance to buy: every plan in every cell of shards × slices, weighed and compared.

Question (question) ──► candidates ──► pareto ──► advice: front, recommendation, reason
   ▲ curve: what a prefix is worth                horizon: one plan along its deletions
"""
