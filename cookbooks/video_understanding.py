# %% [markdown]
# # Video understanding
#
# What happens and when, in seconds of the FILE, also where only a part of it is looked at. Checkpoints caption,
# read text in videos and find moments in hours of them; the bundled model knows short clips in which one shape
# moves or appears.
#
#     python cookbooks/video_understanding.py
#     python cookbooks/video_understanding.py --model Qwen/Qwen2.5-VL-7B-Instruct match.mp4 --query "a player falls"

# %%
from qwenvl import VideoOptions, read_video
from qwenvl.demo.samples import CLIP, PICTURES
from qwenvl.tasks.events import events
from qwenvl.tasks.events.cut import cut_clips
from qwenvl.tasks.events.sheet import contact_sheet
from qwenvl.tasks.events.subtitles import to_srt
from setting import start, title

here = start("video-understanding", "What happens in a video, and when.", query="What to look for.")
source = here.inputs[0] if here.inputs else str(PICTURES / CLIP)
query = here.more["query"] or "blue square appears"

# %% [markdown]
# ## Questions

# %%
title(f"Questions about {source}")
questions = ["What happens in the video?", *([] if here.inputs else ["When does the blue square appear?"])]
for question in questions:
    answer = here.assistant.ask([source], question)
    print(f"- {question}\n  {answer.text}")
print(f"(frames at {[round(time, 2) for time in answer.video_times[0]]} s)")
if not here.inputs:
    print("(in truth: a red circle moves to the right; a blue square appears at 3 s)")

# %% [markdown]
# ## A part of the file, more closely
# The frames keep their times in the file.

# %%
title("Two seconds, at 4 frames a second")
part = read_video(source, VideoOptions(video_start=2.0, video_end=4.0, fps=4.0))
print(f"{len(part.frames)} frames from {part.times[0]:.2f} to {part.times[-1]:.2f} s of {part.duration:.2f} s")

# %% [markdown]
# ## Finding a moment
# Long files are searched coarse to fine; the times are seconds of the file.

# %%
title(f"When: {query}")
found = events(here.assistant, source, query)
for event in found:
    sure = "" if event.confidence is None else f"  confidence {event.confidence:.2f}"
    print(f"{event.start:6.2f} - {event.end:6.2f}  {event.text}{sure}")
if not found:
    print("nothing found")

# %% [markdown]
# ## Everything that happens
# Subtitles, clips and a sheet with a frame of each event.

# %%
title("Everything that happens")
told = events(here.assistant, source)
for event in told:
    print(f"{event.start:6.2f} - {event.end:6.2f}  {event.text}")
if not told:
    print("no events were told")
else:
    here.path("events.srt").write_text(to_srt(told), "utf-8")
    contact_sheet(source, told).save(here.path("sheet.png"))
    clips = cut_clips(source, told, here.path("clips"))
    print(f"wrote {here.path('events.srt')}, {here.path('sheet.png')} and {len(clips)} clips")
