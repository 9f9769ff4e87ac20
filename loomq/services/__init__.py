"""What a face may ask of loomq: submit, inspect, check the configuration, run nodes. No presentation in here."""
