# %% [markdown]
# # Universal recognition
#
# What is in a picture: everything at once, one property, how many, and how two pictures differ. Checkpoints know
# animals, plants, people, buildings, cars and goods; the bundled model knows circles, squares and triangles in
# eight colours, and says so when it is shown something else.
#
#     python cookbooks/universal_recognition.py
#     python cookbooks/universal_recognition.py --model Qwen/Qwen2.5-VL-7B-Instruct garden.jpg market.jpg

# %%
from qwenvl import draw_boxes, load_image, locate
from qwenvl.demo.samples import PICTURES
from qwenvl.tasks.chat import Chat
from setting import start, title

here = start("universal-recognition", "What is in a picture.")
inputs = here.inputs or [str(PICTURES / name) for name in ("three-shapes.png", "two-circles.png", "tall-note.png")]

# %% [markdown]
# ## One question, several pictures
# `ask_many` computes all of them together; each answer is as if it had been asked alone.

# %%
title("What is in each picture?")
answers = here.assistant.ask_many([([name], "Describe this image.") for name in inputs])
for name, answer in zip(inputs, answers, strict=True):
    print(f"{name.rsplit('/', 1)[-1]}: {answer.text}")

# %% [markdown]
# ## Follow-up questions
# A chat keeps what was computed: the picture is encoded once, however much is asked about it.

# %%
title("A conversation about the first picture")
chat = Chat.of(here.assistant)
chat.attach("image", inputs[0], load_image(inputs[0]))
for question in ("How many objects are there?", "What color is the circle?", "Is there a yellow square?"):
    print(f"- {question}\n  {''.join(chat.stream(question))}")
stats = here.assistant.engine.stats
print(f"(pictures encoded for these questions and the ones above: {stats.vision_misses})")

# %% [markdown]
# ## Several objects, named where they are
# The names come with boxes in pixels of the file, and go onto a copy of the picture.

# %%
title("Everything, named and outlined")
for name in inputs:
    picture = load_image(name)
    places = locate(here.assistant, picture, "object")
    drawn = here.path(f"{name.rsplit('/', 1)[-1].rsplit('.', 1)[0]}-objects.png")
    draw_boxes(picture, places).save(drawn)
    print(f"{drawn}: {', '.join(place.label for place in places) or 'nothing found'}")

# %% [markdown]
# ## Two pictures

# %%
if not here.inputs:
    title("What is different?")
    pair = [PICTURES / "three-shapes.png", PICTURES / "one-missing.png"]
    print(here.assistant.ask(pair, "What is different between the two pictures?").text)
    print("(in truth: the second one has no circle)")
