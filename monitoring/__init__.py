"""The monitor: drift, performance and alarms that can be believed, in pure functions of the log; label joins."""
