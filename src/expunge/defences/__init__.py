"""What makes recovery harder: inside training (latent, sharpness), and around a finished model (filters)."""
