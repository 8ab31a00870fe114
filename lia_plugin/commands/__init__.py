"""The commands, one module each. A module's click command carries its name: `lia_plugin.cli` finds it by that."""
