"""A small web page and a JSON endpoint, on this machine: `flaxattn serve`."""
