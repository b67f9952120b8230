"""Reading image-classification datasets: arrays, file formats, published sets, downloads."""
