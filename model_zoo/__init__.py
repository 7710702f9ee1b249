"""model_zoo: recipes, trainer and builder of zoos. It meets netspace at the HDF5 file (`netspace.zoo`)."""
