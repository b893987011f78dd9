"""The race of ``race.py``: who runs (contenders), on what (cases), how a run is made, and what the runs say."""
