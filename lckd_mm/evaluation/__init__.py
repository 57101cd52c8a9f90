"""What a trained net is worth: metrics, dumps of predictions, Lipschitz constants, pictures."""
