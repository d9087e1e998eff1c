"""The parts of device_suite.py: each measures one thing on a device and returns rows."""
