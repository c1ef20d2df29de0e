"""Tasks beside translation: language, labelling, classification, denoising, on one engine."""
