"""Commands of ``python -m pinn_odelora`` that have files of their own."""
