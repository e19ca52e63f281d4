"""Pruned and tuned, or reduced and trained from scratch: what `nip_it_in_the_bud.py` is made of."""
