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
SHORT = ("Describe {} in a few words.",)
DESCRIBED = (
    "Please segment what this describes: {}",
    "Can you segment the object that fits this description: {}",
    "Which object is meant here? Respond with a mask. {}",
    "Find what is described, and output its mask: {}",
)
GROUNDED = (
    "Describe this image in short. Mark each phrase that names something with its mask.",
    "What is in this picture? Answer briefly, with segmentation masks between the phrases.",
    "Please give a brief description of the image, and a mask after each part of it that can be seen.",
    "Sum up this image in a sentence whose phrases come with masks.",
    "Can you describe the picture briefly and segment what you name?",
    "Say in short what the image shows, and respond with a mask for every phrase.",
)
REASON = "{} Output a segmentation mask."
REASON_WHAT = "What is {} in this image? Output a segmentation mask."
IN_A_WORD = "Answer with a word or a short phrase."
WITH_MASKS = "Respond with segmentation masks."
EACH = ("{name} is {mask}", "the segmentation result of {name} is {mask}", "{mask}")
TOGETHER = (
    "{names} {are} {masks}",
    "Sure, {names} {are} {masks}",
    "{names} can be seen at {masks}",
    "The masks of {names} are {masks}",
    "Sure, here is what you asked for, {names}: {masks}",
    "{masks}",
    "It is about {masks}",
    "Sure, {masks}",
)
SEMANTIC = "Mark all of it as one."
INSTANCES = "Mark each of them by itself."
OTHERS = "others"
CLASSIFY = (
    "What is {}? Choose among: {}.",
    "To which class does {} belong? It is one of: {}.",
)
NEGATIVE = "{} is not in the image."
CHOICE = "Answer according to {}. {} Select the correct choice."
CHOICE_OF_RELEASE = "Answer according to {}. {}Select the correct choice."
