"""The serving container: its entry point, its settings, its readiness."""
