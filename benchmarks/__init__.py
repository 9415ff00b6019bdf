"""How fast idempo is, beside a hand-written floor and its peers: ``python -m benchmarks`` measures everything."""
