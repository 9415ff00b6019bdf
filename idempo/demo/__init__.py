"""The main job: webhook deliveries, duplicates and all, booked once each. ``python -m idempo demo`` runs it."""
