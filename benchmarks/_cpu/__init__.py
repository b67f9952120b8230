"""The parts of ``benchmarks/cpu.py``: cases, contestants, duels between processes, reports."""
