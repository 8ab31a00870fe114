"""The host's layer between torch and the networks: pickles that carry their source, statistics, sampling, ops."""
