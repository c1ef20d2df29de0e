"""The tasks beside translation: language, labelling, classification, denoising."""
