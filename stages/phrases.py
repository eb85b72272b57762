"""The wordings of questions and answers. The first of each list is the one evaluation asks in (reference 6, 7)."""

SEGMENT = (
    "Please segment {} here.",
    "Can you segment the {} here?",
    "What is {}? Respond with a mask.",
    "What is {}? Output a mask.",
    "Could you provide a mask for {}?",
    "Please identify and segment {}.",
    "Where is {} in this picture? Respond with a mask.",
    "Can you highlight {} with a mask?",
)
FOUND = (
    "It is [SEG].",
    "[SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
)
NO_TARGET = "No target [SEG]."
DETAIL = (
    "Describe {} in detail.",
    "What is in the region {}? Give the details.",
    "Please give a detailed description of {}.",
    "Tell me everything about {}.",
    "Explain exactly what {} shows.",
    "Analyse the region {}.",
    "Illustrate {} with a full description.",
    "Examine {} and say what you find.",
)
NEGATIVE = "{} is not in the image."
CHOICE = "Answer according to {}. {} Select the correct choice."
