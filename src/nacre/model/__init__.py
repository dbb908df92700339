"""Frozen values and transition tables. No I/O happens here; everything else in Nacre meets in these values."""
