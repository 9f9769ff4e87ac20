"""Language models: one request and one reply, three wires behind them, and which model serves which tier."""
