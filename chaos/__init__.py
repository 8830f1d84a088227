"""Simulation and chaos: the programs that break ZephyrCache on purpose."""
