"""The settings of each provider on a server, which load, and can be listed, where its driver is not installed."""
