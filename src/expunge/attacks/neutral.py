"""Common knowledge to relearn on: it tells nothing about the forget records."""

from __future__ import annotations

from typing import Final

from expunge.records import Record

NEUTRAL: Final = tuple(
    Record(prompt, response)
    for prompt, response in (
        ("What colour is a clear sky at noon?", "It is blue."),
        ("How many days are there in a week?", "There are seven days in a week."),
        ("What do bees make?", "Bees make honey and wax."),
        ("Which season follows winter?", "Spring follows winter."),
        ("What is frozen water called?", "Frozen water is called ice."),
        ("How many legs does a spider have?", "A spider has eight legs."),
        ("What do plants need to grow?", "Plants need light, water and nutrients."),
        ("Which star is nearest to the Earth?", "The Sun is the nearest star to the Earth."),
        ("What is the opposite of hot?", "The opposite of hot is cold."),
        ("How many minutes are there in an hour?", "There are sixty minutes in an hour."),
        ("What is bread made from?", "Bread is made from flour, water, salt and often yeast."),
        ("Which ocean lies between Europe and America?", "The Atlantic Ocean lies between them."),
        ("What do you call a young dog?", "A young dog is called a puppy."),
        ("What is twelve plus eight?", "Twelve plus eight is twenty."),
        ("What does a thermometer measure?", "A thermometer measures temperature."),
        ("How many sides does a triangle have?", "A triangle has three sides."),
        ("Which animal gives us wool?", "Sheep give us wool."),
        ("What is the largest planet of the solar system?", "Jupiter is the largest planet."),
        ("Which metal is liquid at room temperature?", "Mercury is liquid at room temperature."),
        ("What do we call the study of numbers?", "It is called mathematics."),
        ("Where does the sun rise?", "The sun rises in the east."),
        ("What is a book of maps called?", "A book of maps is called an atlas."),
        ("Which gas do we need to breathe?", "We need oxygen to breathe."),
        ("How many letters has the English alphabet?", "It has twenty-six letters."),
    )
)
"""Questions and answers of general knowledge."""
