"""The bundled small checkpoint: its world of drawn shapes, its questions, vocabulary and evaluation."""
