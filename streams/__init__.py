"""The streaming side: logs, the Faust block transport, stages, pipelines and the command line."""
