"""Threads, timers, deadlines, child processes: what every process of an engine is built on."""
