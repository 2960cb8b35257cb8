"""Training: conversations in, weights out.

In: conversations with pictures (a JSON Lines file, or any source of samples), a model, settings.
Out: checkpoints in the official layout that resume, a loss log and its curve as a picture.
Trains the documented model class by encode_vision() and run(): what is trained is what is served.
Does not know: engine, server, what the pictures show.
"""
