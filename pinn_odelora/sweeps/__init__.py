"""Jobs of a sweep side by side: in processes of this machine, or on a cluster.

The engines are Python's ``ProcessPoolExecutor`` and ``submitit``. Hydra's own launcher plug-ins, both of May 2022, run
with the present Hydra, but that for joblib kills the jobs that run when one is refused, and that for submitit starts
all local jobs at once, a process each, and loses the sentence of one that fails. ``executorlib`` unpickles whatever
reaches a port that it opens to the network.
"""
