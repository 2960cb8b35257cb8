# %% [markdown]
# # Precise object grounding
#
# Where things are: boxes and points in pixels of YOUR picture, upright as you see it. A model answers in pixels
# of the resized picture that it saw (Qwen2.5-VL) or in thousandths of its sides (Qwen2-VL); both are turned back
# here.
#
#     python cookbooks/object_grounding.py
#     python cookbooks/object_grounding.py --model Qwen/Qwen2.5-VL-7B-Instruct street.jpg --what "traffic light"

# %%
import json

from qwenvl import Box, ImageSize, Point, draw_boxes, load_image, locate, parse_boxes
from qwenvl.demo.samples import PICTURES
from qwenvl.tasks.exports import to_coco, to_yolo
from setting import start, title

here = start("object-grounding", "Boxes and points in pixels of the picture.", what="What to find.")
source = here.inputs[0] if here.inputs else str(PICTURES / "three-shapes.png")
picture = load_image(source)
print(f"{source}: {picture.width} x {picture.height}")

# %% [markdown]
# ## Boxes

# %%
title("Every one of a kind")
for what in [here.more["what"]] if here.more["what"] else ["red circle", "blue square"]:
    for place in locate(here.assistant, picture, what):
        assert isinstance(place, Box)
        sure = "" if place.confidence is None else f"  confidence {place.confidence:.2f}"
        print(f"{place.label}: {[round(number) for number in place.corners]}{sure}")

title("Several kinds at once, drawn")
kinds = [here.more["what"]] if here.more["what"] else ["red circle", "blue square", "green triangle"]
places = locate(here.assistant, picture, kinds)
draw_boxes(picture, places).save(here.path("boxes.png"))
print(f"{len(places)} boxes drawn in {here.path('boxes.png')}")

# %% [markdown]
# ## Points

# %%
title("Points")
for point in locate(here.assistant, picture, kinds[0], as_points=True):
    assert isinstance(point, Point)
    print(f"{point.label}: {point.x:.0f}, {point.y:.0f}")

# %% [markdown]
# ## The same picture, four times as large
# The model sees it smaller; the boxes are those of the large file.

# %%
title("In a larger file")
large = picture.resize((picture.width * 4, picture.height * 4))
for place in locate(here.assistant, large, kinds[0]):
    assert isinstance(place, Box)
    print(f"{large.width} x {large.height}: {[round(number) for number in place.corners]}")

# %% [markdown]
# ## Answers as text
# What other programs or servers answered can be read too, in every form that the models write; also where the
# token limit cut it off. These three were written by hand, in those forms.

# %%
title("Reading answers in other forms")
size = ImageSize(1000, 500, 1008, 504)  # as it is on disk, and as the model saw it
for text in (
    '```json\n[{"bbox_2d": [101, 50, 202, 151], "label": "cup"}, {"bbox_2d": [300, 50, 40',
    '<points x1="504" y1="252" alt="handle">the handle</points>',
    "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(100,100),(200,300)<|box_end|>",
):
    (place,) = parse_boxes(text, size)
    numbers = place.corners if isinstance(place, Box) else (place.x, place.y)
    print(f"{text!r}\n  -> {place.label}: {[round(number) for number in numbers]}")

# %% [markdown]
# ## For other tools
# COCO for one, YOLO for another; `to_detections` is there for supervision.

# %%
title("COCO and YOLO")
sides = (picture.width, picture.height)
here.path("coco.json").write_text(json.dumps(to_coco([(source, sides, places)]), indent=1), "utf-8")
labels = list(dict.fromkeys(place.label for place in places))
here.path("yolo.txt").write_text("\n".join([*to_yolo(places, sides, labels), ""]), "utf-8")
print(f"{here.path('coco.json')}, {here.path('yolo.txt')}: {', '.join(labels)}")
