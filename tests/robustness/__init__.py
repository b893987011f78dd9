"""A campaign of faults: whatever happens to a run, nothing is lost, nothing foreign is called, nothing is silent.

    python -m tests.robustness --full           all trials of all kinds, on with those that are left
    python -m tests.robustness --quick          a few of each, as in the test suite

    __main__         which trials are made, their table, and what is short
    records          finished trials as lines of a file
    child            a program in a process of its own, with a limit of time
    runs             small runs, and what is compared of them
    materials        their folders and files, from which trials begin
    disk             writes that fail, or that a process does not survive
    kills            SIGKILL at random moments and at writes, then ``resume``
    signals          SIGTERM, SIGINT, SIGHUP; output that nobody takes
    mutations        files that have changed
    oddities         files that are well-formed and wrong
    archives         pickles and archives that call something
    configurations   run folders whose files name something to call
    overrides        hostile words on the command line
    writers          several processes and one folder or cache
    full_disk        a disk that becomes full
    servers          trackers that do not answer, or nonsense
    user_code        faulty problems and networks, from the slips in ``slips``

A kind is a module with ``prepare(materials)``, which gives what its trials share, and ``trial(setting, folder, rng,
number)``, which makes one in a new folder and returns a ``Verdict``. The generator is that of the seed, the kind and
the number, so that each trial can be repeated by itself: ``--full --kinds kills --numbers 17``.
"""
