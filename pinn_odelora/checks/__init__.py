"""What can be wrong with a problem, found before anything is trained: in what it declares, and at a few points.

``names`` and ``declaration`` hold for every problem that is made, ``evaluation`` and ``ansatz`` for every one that is
solved: its functions are evaluated at a few points with a smooth function in the network's place, so that whatever is
found is not the network's. What takes longer is the problem's contract (``pinn_odelora.contract``).
"""
