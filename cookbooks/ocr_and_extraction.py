# %% [markdown]
# # Reading text and extracting key information
#
# The whole text, lines with their boxes, and fields as an object that always parses: decoding is constrained by
# the schema. The bundled model has not been taught to read yet (its card says how well it does): what is really
# there stands beside every answer, and only the form of the answers is right. A real checkpoint reads.
#
#     python cookbooks/ocr_and_extraction.py
#     python cookbooks/ocr_and_extraction.py --model Qwen/Qwen2.5-VL-7B-Instruct invoice.jpg --fields company,date,total

# %%
import json
from typing import Any

from PIL.Image import Image

from drawing import RECEIPT, RECEIPT_LINES, SIGN_LINES, receipt, sign
from qwenvl import draw_boxes, load_image
from qwenvl.tasks.extraction import extract
from qwenvl.tasks.reading import read_text, spot_text
from setting import start, title

here = start("ocr-and-extraction", "Reading text and extracting fields.", fields="Names of fields, commas between.")
pages: list[tuple[Image, str | None]] = [(load_image(name), None) for name in here.inputs]
if not pages:
    lines = [" ".join(part for part in line if part) for line in RECEIPT_LINES]
    pages = [(sign(), "\n".join(SIGN_LINES)), (receipt(), "\n".join(lines))]
    for number, (picture, _) in enumerate(pages):
        picture.save(here.path(f"page-{number}.png"))

# %% [markdown]
# ## The whole text

# %%
title("Reading")
for picture, truth in pages:
    print(f"read:     {read_text(here.assistant, picture)!r}")
    if truth is not None:
        print(f"in truth: {truth!r}")

# %% [markdown]
# ## Lines and where they are

# %%
title("Spotting, line by line")
for number, (picture, _) in enumerate(pages):
    boxes = spot_text(here.assistant, picture)
    for box in boxes:
        print(f"{[round(n) for n in box.corners]}  {box.label}")
    draw_boxes(picture, boxes).save(here.path(f"spotted-{number}.png"))

# %% [markdown]
# ## Fields
# The schema decides which tokens may come next: whatever the model thinks of the picture, the result has these
# fields and these types. It can be a pydantic class as well.

# %%
title("Key information")
names = here.more["fields"].split(",") if here.more["fields"] else list(RECEIPT)
schema: dict[str, Any] = {
    "type": "object",
    "properties": {name.strip(): {"type": "string", "maxLength": 40} for name in names},
}
schema |= {"required": list(schema["properties"]), "additionalProperties": False}
extraction = extract(here.assistant, pages[-1][0], schema)
print(f"extracted: {json.dumps(extraction.data, ensure_ascii=False)}")
if not here.inputs:
    print(f"in truth:  {json.dumps(RECEIPT)}")
