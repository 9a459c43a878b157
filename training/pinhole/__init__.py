"""How pinhole, the model that ships with the package, is made: pictures, captions, stages, evaluation."""
