"""Into NavSim's own world: a trained model as its agent (``agent``), and its submission file (``submission``)."""
