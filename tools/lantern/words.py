# ruff: noqa: SIM905 - word lists read better as running text
"""Word lists shared by the story openings and the chat prompts."""

NAMES = (
    "Tom Lily Ben Anna Max Mia Sam Lucy Tim Sara Jack Emma Leo Zoe Bob Amy Dan Kate Sue Mark Rose Finn Ella Jim "
    "Molly Nick Daisy Joe Lola Pete Grace Bill Ruby Roy Nina Fred Jane Mike Lisa Ned May Carl Polly Hugo Tina Billy "
    "Ada Owen"
).split()
HEROES = (
    "boy girl cat dog bird bear rabbit fish fox frog lion mouse duck dragon princess king queen farmer monkey "
    "elephant pig horse turtle owl bee ant squirrel cow sheep tiger whale wolf crab puppy kitten fairy robot car "
    "truck train boat tree man woman lady prince knight witch pirate doctor spider snail deer goat hen butterfly "
    "penguin"
).split()
THINGS = (
    "ball box hat book toy kite cake apple flower stone key bell drum coat shoe cup bag rope map ring star lamp "
    "doll bike swing boat leaf shell egg nest tree bridge castle cave garden park lake river beach house farm "
    "school shop store kitchen bed chair table picture puzzle balloon cookie banana carrot pie soup candy ice snow "
    "rain sun moon"
).split()
ADJECTIVES = (
    "little big small happy sad brave kind smart funny silly old young red blue green shiny pretty nice good quiet "
    "lazy clever strong tiny curious hungry friendly lonely gentle playful"
).split()
