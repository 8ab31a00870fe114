"""Quality metrics of generators: a registry, feature statistics, FID and KID."""
