# %% [markdown]
# # Document parsing
#
# Pages in, structure out: headings, paragraphs, tables, formulas, figures, each with its place on the page; then
# Markdown, JSON, clean HTML, and a PDF that can be searched. Checkpoints write a page down as "QwenVL HTML";
# broken or cut-off HTML is repaired, and nothing of it is lost.
#
#     python cookbooks/document_parsing.py --model Qwen/Qwen2.5-VL-7B-Instruct report.pdf
#
# The bundled model knows no documents. Without `--model` the answers are written by hand for two pages that are
# drawn here, to show everything behind the answer at work.

# %%
from by_hand import Asked
from drawing import report
from qwenvl.tasks.documents import to_markdown
from qwenvl.tasks.parsing import ParseSettings, open_pages, parse, write_files
from setting import start, title

here = start("document-parsing", "Pages in, Markdown, JSON, HTML and searchable PDF out.")

# %% [markdown]
# ## A document
# Two pages as a PDF of pictures, as a scanner makes them.

# %%
pages = report()
if here.inputs:
    source = here.inputs[0]
else:
    source = str(here.path("report.pdf"))
    first, *others = [page.picture for page in pages]
    first.save(source, save_all=True, append_images=others, resolution=150)
    title(f"Drew {source}")


# %% [markdown]
# ## Parsing
# Pages are drawn at the size that suits the model, answered together, and kept in a folder as they are done: a
# run that was stopped goes on where it was. `on_page` is told of each.


# %%
def written(asked: Asked) -> str:
    """The page as a checkpoint would write it down."""
    return pages[asked.number % len(pages)].html(asked.sizes[0].resized_width, asked.sizes[0].resized_height)


title("Parsing")
settings = ParseSettings()
assistant = here.assistant_or(written, "documents")
with open_pages(source) as file:
    document = parse(
        assistant, file, settings=settings, together=1 if here.is_demo else 8,
        on_page=lambda page, kept: print(f"page {page.number}: {len(page.blocks)} blocks"),
    )  # fmt: skip
    names = write_files(
        document,
        here.path("parsed"),
        formats=("md", "json", "html", "text", "pdf"),
        file=file,
        overlays=True,
        crops=True,
    )

# %% [markdown]
# ## What came out
# Every block has its kind, its text and its place in pixels of the page.

# %%
title("Blocks of page 1")
for block in document.pages[0].blocks:
    print(f"{block.kind:<12}{[round(n) for n in block.box] if block.box else '-'}  {block.text[:60]!r}")

title("As Markdown")
print(to_markdown(document))

title("Files")
for name in names:
    print(name)
