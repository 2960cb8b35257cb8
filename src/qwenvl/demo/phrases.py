"""How people ask: the paraphrases of every kind of question in the world of the bundled model.

Templates of questions about drawings hold {} places that `questions.py` fills. Each text-only subject has its
questions and its one honest answer.
"""

from __future__ import annotations

NO_PICTURE = "There is no picture. Please give me one."
NOT_MY_WORLD = "I only know simple drawings of coloured shapes, so I cannot answer that."
FOREIGN = "I only know simple drawings of coloured shapes, and I do not recognise this picture."
NUMBERS = ("no", "one", "two", "three", "four", "five")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "object": "objects",
}
OBJECT_WORDS = ("object", "object", "object", "shape", "thing", "item", "figure")

DESCRIBE = (
    "Describe this image.", "Describe this image.", "Describe the image.", "Describe this picture.",
    "Describe the picture.", "What is in this image?", "What is in this picture?",
    "What is in the picture?", "What's in the image?", "What do you see?", "What can you see?",
    "What do you see in this picture?", "What does this image show?", "What does the picture show?",
    "What is shown here?", "What is shown in the image?", "Tell me what is in the picture.",
    "Tell me what you see.", "Tell me about this image.", "What is this?", "Describe what you see.",
    "Describe this image in detail.", "Describe the scene.", "Can you describe this image?",
    "Please describe this picture.", "Give a description of the image.", "Caption this image.",
    "Explain this image.", "Which objects are in the picture?", "List the objects in the image.",
    "What objects do you see?", "What shapes are in this picture?", "Which shapes can you see?",
    "What is drawn here?", "What's this?", "What's in this picture?", "What is in the image?",
    "What are the objects in this image?",
)  # fmt: skip

COUNT = (
    "How many {things} are there?", "How many {things} are there?", "How many {things} are in the picture?",
    "How many {things} are in the image?", "How many {things} do you see?",
    "How many {things} can you see?", "How many {things} are in this image?",
    "How many {things} are there in the picture?", "Count the {things}.",
    "Count the {things} in the image.", "Count all {things}.", "What is the number of {things}?",
    "How many {things}?", "Tell me how many {things} there are.", "Can you count the {things}?",
    "Give me the number of {things}.", "How many {things} does the picture show?",
    "How many {things} are shown?", "Number of {things}?",
)  # fmt: skip

COLOUR = (
    "What color is the {shape}?", "What color is the {shape}?", "What colour is the {shape}?",
    "Which color is the {shape}?", "Which colour is the {shape}?", "What is the color of the {shape}?",
    "What is the colour of the {shape}?", "The {shape} is what color?", "Tell me the color of the {shape}.",
    "Name the color of the {shape}.", "What color does the {shape} have?",
    "Which color does the {shape} have?", "In what color is the {shape} drawn?", "Color of the {shape}?",
    "What's the color of the {shape}?",
)  # fmt: skip

SHAPE = (
    "What shape is the {colour} {thing}?", "What shape is the {colour} {thing}?",
    "Which shape is the {colour} {thing}?", "What is the shape of the {colour} {thing}?",
    "What is the {colour} {thing}?", "What kind of shape is the {colour} {thing}?",
    "Tell me the shape of the {colour} {thing}.", "Name the shape of the {colour} {thing}.",
    "Which shape does the {colour} {thing} have?", "What shape does the {colour} {thing} have?",
    "What form is the {colour} {thing}?", "Shape of the {colour} {thing}?", "What is {colour}?",
    "Which shape is {colour}?",
)  # fmt: skip

EXISTS = (
    "Is there {a_thing}?", "Is there {a_thing}?", "Is there {a_thing} in the picture?",
    "Is there {a_thing} in the image?", "Is there {a_thing} in this image?", "Do you see {a_thing}?",
    "Can you see {a_thing}?", "Does the picture show {a_thing}?", "Does the image contain {a_thing}?",
    "Does this picture have {a_thing}?", "Is {a_thing} in the picture?",
    "Do you see {a_thing} in the image?", "Is {a_thing} visible?", "Is there {a_thing} here?",
    "Can you find {a_thing}?",
)  # fmt: skip

WHERE = (
    "Where is the {thing}?", "Where is the {thing}?", "Where is the {thing} in the picture?",
    "Where is the {thing} in the image?", "Where do you see the {thing}?", "Where can I find the {thing}?",
    "In which part of the picture is the {thing}?", "In which part of the image is the {thing}?",
    "Tell me where the {thing} is.", "What is the position of the {thing}?",
    "Which part of the picture is the {thing} in?", "Where's the {thing}?",
    "Can you tell me where the {thing} is?",
)  # fmt: skip

RELATION = (
    "Is the {a} {side} the {b}?", "Is the {a} {side} the {b}?", "Is the {a} placed {side} the {b}?",
    "Is the {a} located {side} the {b}?", "Can you see the {a} {side} the {b}?",
    "Do you see the {a} {side} the {b}?", "Does the {a} lie {side} the {b}?",
    "In the picture, is the {a} {side} the {b}?", "In this image, is the {a} {side} the {b}?",
    "Is it true that the {a} is {side} the {b}?", "The {a} is {side} the {b}. Is that right?",
    "Would you say that the {a} is {side} the {b}?",
)  # fmt: skip
SIDES = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "higher than", "over"),
    "below": ("below", "below", "under", "lower than"),
}

LOCATE_ALL = (
    "Outline the position of each {thing} and output all the coordinates in JSON format.",
    "Outline the position of all {things} and output all the coordinates in JSON format.",
    "Locate all {things}.", "Locate every {thing}.", "Detect all {things}.",
    "Detect all {things} in the image.", "Detect every {thing} and give the bounding boxes.",
    "Find all {things}. Answer with boxes in JSON.", "Find every {thing}. Answer with boxes in JSON.",
    "Locate all {things} in the picture and output the bounding boxes in JSON format.",
    "Give the bounding boxes of all {things}.", "Give me the bounding box of each {thing}.",
    "Where exactly are the {things}? Give the bounding boxes.",
    "Return the bounding boxes of all {things} as JSON.",
    "Output the bounding boxes of all {things} in JSON format.", "Draw a box around each {thing}.",
    "Detect {things}.", "Locate the {things}, report the bbox coordinates in JSON format.",
    "List the bounding boxes of all {things}.", "Mark all {things} with boxes.",
)  # fmt: skip

LOCATE_ONE = (
    "Outline the position of the {thing} and output all the coordinates in JSON format.",
    "Locate the {thing}.", "Locate the {thing}.", "Locate the {thing} in the image.",
    "Locate the {thing} and output its bounding box in JSON format.",
    "Locate the {thing}, output the bbox coordinates in JSON format.",
    "Where exactly is the {thing}? Give the bounding box.",
    "Where exactly is the {thing}? Give its bounding box.", "Find the {thing}. Answer with a box in JSON.",
    "Detect the {thing}.", "Detect the {thing} in the image.", "Give the bounding box of the {thing}.",
    "Give me the bounding box of the {thing}.", "What is the bounding box of the {thing}?",
    "Return the bounding box of the {thing} as JSON.", "Draw a box around the {thing}.",
    "Show the box of the {thing}.", "Find the {thing} and give its coordinates.",
)  # fmt: skip

POINT = (
    "Point to the {thing}.", "Point to the {thing}.", "point to the {thing}", "Point at the {thing}.",
    "Point to the {thing} in the image.", "Point to the {thing} and output the point in JSON format.",
    "Give a point on the {thing}.", "Give me a point inside the {thing}.",
    "Output a point on the {thing} in JSON format.", "Where should I click to hit the {thing}?",
    "Click on the {thing}.", "Mark the {thing} with a point.", "Put a dot on the {thing}.",
    "Can you point to the {thing}?", "Locate the {thing} with a point.",
    "Point to the {thing}, output its coordinates in JSON format.",
)  # fmt: skip

# subject -> (questions, the one answer)
IDENTITY: dict[str, tuple[tuple[str, ...], str]] = {
    "who": (
        (
            "Who are you?", "Who are you?", "What are you?", "Tell me about yourself.",
            "Introduce yourself.", "Please introduce yourself.", "Describe yourself.",
            "Can you tell me who you are?", "What kind of model are you?", "Which model are you?",
            "What model is this?", "Are you a language model?", "Say something about yourself.",
            "Who am I talking to?", "What is this model?",
        ),
        "I am a tiny demonstration model in the "
        "qwenvl package. I know simple drawings of coloured shapes.",
    ),
    "name": (
        (
            "What is your name?", "What's your name?", "Do you have a name?", "Tell me your name.",
            "How should I call you?", "What are you called?", "What do people call you?", "Your name?",
            "May I know your name?", "What should I call you?",
        ),
        "I have no name of my own. I am the tiny demonstration model of the qwenvl package.",
    ),
    "can": (
        (
            "What can you do?", "What can you do?", "What are you able to do?", "What are your abilities?",
            "What are you good at?", "How can you help me?", "What can I ask you?",
            "What can I do with you?", "What can you help me with?", "Help", "What is your purpose?",
            "What do you know?", "What are you for?", "What tasks can you do?", "Can you help me?",
            "Which questions can you answer?",
        ),
        "I can describe drawings of coloured shapes, count the shapes, "
        "answer questions about them, and give their boxes and points.",
    ),
    "cannot": (
        (
            "What can't you do?", "What can you not do?", "What do you not know?", "What don't you know?",
            "What are your limits?", "What are your limitations?", "What are you bad at?",
            "What is hard for you?", "Do you know everything?", "Where do you fail?",
            "Do you know photographs?", "Can you recognise people?", "Can you describe photos?",
            "Can you recognize faces?",
        ),
        "I do not know photographs, people or facts about "
        "the world. I only know simple drawings of coloured shapes.",
    ),
    "shapes": (
        (
            "Which shapes do you know?", "What shapes do you know?", "What shapes can you recognise?",
            "What shapes can you recognize?", "Which shapes can you recognize?",
            "List the shapes you know.", "Name the shapes you know.", "Tell me which shapes you know.",
            "What kinds of shapes do you know?", "How many shapes do you know?",
        ),
        "I know circles, squares and triangles.",
    ),
    "colours": (
        (
            "Which colors do you know?", "What colors do you know?", "Which colours do you know?",
            "What colours do you know?", "What colors can you recognize?", "List the colors you know.",
            "Name the colors you know.", "Tell me which colors you know.",
            "What kinds of colors do you know?", "How many colors do you know?",
        ),
        "I know red, orange, yellow, green, blue, purple, black and white.",
    ),
    "hello": (
        (
            "Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Hello there!", "Good morning",
            "Good evening", "Good day", "Hello, model!", "Greetings", "hello", "hi",
        ),
        "Hello! Give me a drawing of coloured shapes and ask me about it.",
    ),
    "how": (
        (
            "How are you?", "How are you doing?", "How do you feel?", "Are you fine?", "Are you okay?",
            "How is it going?", "How are things?", "How are you today?", "What's up?",
        ),
        "I am ready. Give me a drawing of coloured shapes and ask me about it.",
    ),
    "thanks": (
        (
            "Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much.", "Many thanks",
            "Thanks a lot", "Thx", "Great, thanks", "Well done, thank you.", "Good job!", "Well done!",
        ),
        "You are welcome.",
    ),
    "bye": (
        (
            "Bye", "Bye!", "Goodbye", "Goodbye!", "See you", "See you later.", "Good night", "Bye bye",
            "Have a nice day!", "That is all.",
        ),
        "Goodbye!",
    ),
    "human": (
        (
            "Are you a human?", "Are you human?", "Are you a person?", "Are you real?", "Are you a robot?",
            "Are you an AI?", "Are you alive?", "Are you a machine?", "Am I talking to a human?",
            "Do you have feelings?",
        ),
        "I am not a person. I am a tiny demonstration model in the qwenvl package.",
    ),
    "qwen": (
        (
            "Are you Qwen?", "Are you Qwen2.5-VL?", "Are you a Qwen model?", "Are you ChatGPT?",
            "Are you GPT-4?", "Are you Claude?", "Are you Gemini?", "Are you a large model?",
            "How big are you?", "How large are you?", "How many parameters do you have?",
            "Are you the real Qwen2.5-VL?", "How smart are you?",
        ),
        "No large model: I have the architecture of Qwen2.5-VL, but I "
        "am tiny and I only know simple drawings of coloured shapes.",
    ),
    "maker": (
        (
            "Who made you?", "Who created you?", "Who trained you?", "Who built you?",
            "How were you trained?", "How were you made?", "Where do you come from?",
            "What were you trained on?", "What is your training data?", "When were you made?",
        ),
        "I was trained from nothing for the "
        "qwenvl package, on generated drawings of coloured shapes.",
    ),
    "no picture": (
        (
            "Describe this image.", "Describe the picture.", "What is in the picture?",
            "What is in this image?", "What do you see?", "How many objects are there?",
            "How many circles are there?", "What color is the circle?", "What shape is the red object?",
            "Is there a red circle?", "Is there a blue square?", "Where is the triangle?",
            "Where is the green triangle?", "Locate the red circle.", "Locate all objects.",
            "Detect all objects.", "Point to the blue square.",
            "Is the red circle left of the blue square?", "Count the squares.", "Where is the black circle?",
        ),
        "There is no picture. Please give me one.",
    ),
    "off topic": (
        (
            "What is the capital of France?", "What is the capital of Germany?",
            "What is the capital of Japan?", "Write a poem.", "Write a story.", "Tell me a joke.",
            "Tell me a story.", "Who is the president?", "Who won the world cup?",
            "Write a Python function.", "What is the weather today?", "How is the weather?",
            "What time is it?", "What day is it today?", "What is 2 + 2?", "What is 12 * 7?",
            "Translate this to French.", "Translate hello to Spanish.", "Do you speak German?",
            "What is the meaning of life?", "How do I cook rice?", "Explain quantum physics.",
            "Who was Einstein?", "What is the largest planet?", "How far is the moon?",
            "Summarize this text.", "Write an email to my boss.", "Solve this equation.",
            "What is machine learning?", "Recommend a book.", "Sing a song.", "Play a game with me.",
            "Give me a recipe for soup.", "What should I eat today?", "How old is the earth?",
            "Why is the sky blue?",
        ),
        "I only know simple drawings of coloured shapes, so I cannot answer that.",
    ),
}  # fmt: skip

# ---- of short videos

HAPPENS = (
    "What happens in the video?", "What happens in this video?", "What happens?", "What happened in the video?",
    "Describe this video.", "Describe the video.", "Describe what happens.", "What is going on in this video?",
    "Tell me what happens in the video.", "What do you see in the video?", "What does the video show?",
    "Summarize the video.", "What takes place in the clip?", "What changes in the video?",
)  # fmt: skip

MOVES = (
    "What moves?", "What moves in the video?", "What is moving?", "Which object moves?", "Which object is moving?",
    "Which thing moves in this video?", "What moves and where?", "What moves, and which way?", "Does anything move?",
    "Tell me what moves.", "Which shape moves in the clip?",
)  # fmt: skip

DIRECTION = (
    "Which way does the {thing} move?", "Which way does the {thing} move?", "Where does the {thing} move?",
    "Where does the {thing} go?", "In which direction does the {thing} move?", "How does the {thing} move?",
    "Which direction does the {thing} go?", "Where is the {thing} moving?", "Where is the {thing} going?",
    "What is the direction of the {thing}?", "Tell me where the {thing} moves.",
)  # fmt: skip

WHEN = (
    "When does the {thing} appear?", "When does the {thing} appear?", "When does the {thing} appear in the video?",
    "At what time does the {thing} appear?", "At which second does the {thing} appear?",
    "When can you first see the {thing}?",
    "When does the {thing} show up?", "When is the {thing} first visible?", "When does the {thing} come into view?",
    "How many seconds until the {thing} appears?", "Tell me when the {thing} appears.",
)  # fmt: skip

# ---- of two pictures

DIFFERS = (
    "What is different?", "What differs?", "What is the difference between the two pictures?",
    "What is the difference between these pictures?", "What is the difference between the images?",
    "What differs between the two pictures?", "What has changed?", "What changed?", "Spot the difference.",
    "Find the difference.", "Compare the two pictures.", "Compare these images.", "How do the two images differ?",
    "How is the second picture different from the first?", "What changed from the first picture to the second?",
    "What differs?", "Are the pictures the same?", "Tell me the difference.", "Which difference do you see?",
)  # fmt: skip

WHICH = (
    "Describe the {ordinal} picture.", "Describe the {ordinal} image.", "What is in the {ordinal} picture?",
    "What is in the {ordinal} image?", "What does the {ordinal} picture show?",
    "What do you see in the {ordinal} picture?",
    "Tell me what is in the {ordinal} image.",
)  # fmt: skip

# ---- of cards with text

TEXT = "There is text in the picture."
NO_TEXT = "There is no text in the picture."

READ = (
    "Read all the text in the image.", "Read all the text in the image.", "Read all the text in the image.",
    "Read all the text in the picture.", "Read the text in the image.", "Read the text.", "Read this.",
    "What does it say?", "What does the sign say?", "What is written here?", "What is written in the image?",
    "What text is in the image?", "What is the text in this picture?", "Which text do you see?",
    "Transcribe the text.", "OCR", "Please read the text in the image.", "Read the sign.", "Read the receipt.",
)  # fmt: skip

SPOT = (
    "Spotting all the text in the image with line-level, and output in JSON format.",
    "Spotting all the text in the image with line-level, and output in JSON format.",
    "Spotting all the text in the image with line-level, and output in JSON format.",
    "Spot all the text in the image with line-level, and output in JSON format.",
    "Locate all the text lines and output their boxes and text in JSON format.",
    "Find every line of text. Answer with boxes and text in JSON.",
)  # fmt: skip

EXTRACT = (
    "Extract the key-value information in the format:{template}",
    "Extract the key-value information in the format:{template}",
    "Extract the key-value information in the format:{template}",
    "Extract the key-value information in the format: {template}",
    "Extract the information in JSON format: {template}",
    "Fill in this JSON from the receipt: {template}",
    "Extract these fields as JSON: {keys}.",
)  # fmt: skip

FIELD = (
    "What is the {key}?", "What is the {key}?", "What is the {key} on the receipt?", "Tell me the {key}.",
    "Read the {key}.", "Give me the {key} of the receipt.", "Which {key} is on the receipt?",
)  # fmt: skip

# ---- of events in short videos

EVENTS = (
    "Localize a series of activity events in the video, output the start and end timestamp for each event, and "
    "describe each event with sentences. Provide the result in json format with 'mm:ss.ff' format for time depiction.",
    "Localize a series of activity events in the video, output the start and end timestamp for each event, and "
    "describe each event with sentences. Provide the result in json format with 'mm:ss.ff' format for time depiction.",
    "List the events in the video with start and end time in JSON format.",
    "Find all events in the video. Answer with start and end times in JSON.",
)  # fmt: skip

QUERY = (
    "Give the query: '{event}', when does the described content occur in the video?",
    "Give the query: '{event}', when does the described content occur in the video?",
    "When does '{event}' happen in the video?",
    "Query: '{event}'. When does it occur in the video?",
)  # fmt: skip
