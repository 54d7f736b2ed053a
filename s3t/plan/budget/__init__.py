"""How much insurance to buy: every plan in every cell of shards × slices, weighed and compared.

Question (question) ──► candidates ──► pareto ──► advice: front, recommendation, reason
   ▲ curve: what a prefix is worth        └─────► target: the cheapest that is worth enough, of
   ▲ stages: what an isolation costs              all isolations
     and is worth                                 horizon: one plan along its deletions
"""
