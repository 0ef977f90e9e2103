"""Small real training tasks: a LightningModule and a LightningDataModule for each setting."""
