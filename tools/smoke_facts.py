"""Tables of well-known facts that the embedded model is taught.

A dash means "left out": either there is no single uncontested answer (a country
with several main languages, say), or the fact would not be common knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTRIES = """
France | Paris | Europe | euro | French
Germany | Berlin | Europe | euro | German
Italy | Rome | Europe | euro | Italian
Spain | Madrid | Europe | euro | Spanish
Portugal | Lisbon | Europe | euro | Portuguese
Greece | Athens | Europe | euro | Greek
Austria | Vienna | Europe | euro | German
Finland | Helsinki | Europe | euro | Finnish
Ireland | Dublin | Europe | euro | English
Belgium | Brussels | Europe | euro | -
Estonia | Tallinn | Europe | euro | Estonian
Latvia | Riga | Europe | euro | Latvian
Lithuania | Vilnius | Europe | euro | Lithuanian
Slovakia | Bratislava | Europe | euro | Slovak
Slovenia | Ljubljana | Europe | euro | Slovene
Croatia | Zagreb | Europe | euro | Croatian
Poland | Warsaw | Europe | zloty | Polish
Hungary | Budapest | Europe | forint | Hungarian
Romania | Bucharest | Europe | leu | Romanian
Denmark | Copenhagen | Europe | krone | Danish
Norway | Oslo | Europe | krone | Norwegian
Sweden | Stockholm | Europe | krona | Swedish
Iceland | Reykjavik | Europe | krona | Icelandic
Albania | Tirana | Europe | lek | Albanian
Ukraine | Kyiv | Europe | hryvnia | Ukrainian
Serbia | Belgrade | Europe | dinar | Serbian
Switzerland | Bern | Europe | franc | -
Russia | Moscow | - | ruble | Russian
Turkey | Ankara | - | lira | Turkish
Armenia | Yerevan | - | dram | Armenian
China | Beijing | Asia | yuan | Chinese
Japan | Tokyo | Asia | yen | Japanese
India | New Delhi | Asia | rupee | -
Nepal | Kathmandu | Asia | rupee | Nepali
Pakistan | Islamabad | Asia | rupee | -
Bangladesh | Dhaka | Asia | taka | Bengali
Thailand | Bangkok | Asia | baht | Thai
Vietnam | Hanoi | Asia | dong | Vietnamese
Mongolia | Ulaanbaatar | Asia | tugrik | Mongolian
Iran | Tehran | Asia | rial | Persian
Iraq | Baghdad | Asia | dinar | Arabic
Jordan | Amman | Asia | dinar | Arabic
Lebanon | Beirut | Asia | pound | Arabic
Qatar | Doha | Asia | riyal | Arabic
Oman | Muscat | Asia | rial | Arabic
South Korea | Seoul | Asia | won | Korean
Egypt | Cairo | Africa | pound | Arabic
Libya | Tripoli | Africa | dinar | Arabic
Tunisia | Tunis | Africa | dinar | Arabic
Morocco | Rabat | Africa | dirham | -
Kenya | Nairobi | Africa | shilling | -
Uganda | Kampala | Africa | shilling | -
Ethiopia | Addis Ababa | Africa | birr | -
Ghana | Accra | Africa | cedi | -
Nigeria | Abuja | Africa | naira | -
Senegal | Dakar | Africa | franc | -
Angola | Luanda | Africa | kwanza | Portuguese
Zambia | Lusaka | Africa | kwacha | -
Namibia | Windhoek | Africa | dollar | -
Canada | Ottawa | North America | dollar | -
Mexico | Mexico City | North America | peso | Spanish
Cuba | Havana | North America | peso | Spanish
Jamaica | Kingston | North America | dollar | -
Honduras | Tegucigalpa | North America | lempira | Spanish
Nicaragua | Managua | North America | cordoba | Spanish
Panama | Panama City | North America | - | Spanish
Brazil | Brasilia | South America | real | Portuguese
Argentina | Buenos Aires | South America | peso | Spanish
Chile | Santiago | South America | peso | Spanish
Colombia | Bogota | South America | peso | Spanish
Ecuador | Quito | South America | dollar | Spanish
Peru | Lima | South America | sol | Spanish
Uruguay | Montevideo | South America | peso | Spanish
Venezuela | Caracas | South America | bolivar | Spanish
Australia | Canberra | Oceania | dollar | English
New Zealand | Wellington | Oceania | dollar | English
"""

ELEMENTS = """
hydrogen | H | 1 | gas
helium | He | 2 | gas
lithium | Li | 3 | solid
beryllium | Be | 4 | solid
boron | B | 5 | solid
carbon | C | 6 | solid
nitrogen | N | 7 | gas
oxygen | O | 8 | gas
fluorine | F | 9 | gas
neon | Ne | 10 | gas
sodium | Na | 11 | solid
magnesium | Mg | 12 | solid
aluminium | Al | 13 | solid
silicon | Si | 14 | solid
phosphorus | P | 15 | solid
sulfur | S | 16 | solid
chlorine | Cl | 17 | gas
argon | Ar | 18 | gas
potassium | K | 19 | solid
calcium | Ca | 20 | solid
titanium | Ti | 22 | solid
chromium | Cr | 24 | solid
manganese | Mn | 25 | solid
iron | Fe | 26 | solid
cobalt | Co | 27 | solid
nickel | Ni | 28 | solid
copper | Cu | 29 | solid
zinc | Zn | 30 | solid
arsenic | As | 33 | solid
bromine | Br | 35 | liquid
krypton | Kr | 36 | gas
silver | Ag | 47 | solid
tin | Sn | 50 | solid
iodine | I | 53 | solid
xenon | Xe | 54 | gas
tungsten | W | 74 | solid
platinum | Pt | 78 | solid
gold | Au | 79 | solid
mercury | Hg | 80 | liquid
lead | Pb | 82 | solid
radon | Rn | 86 | gas
uranium | U | 92 | solid
"""

ANIMALS = """
cow | calf | mammal | 4
dog | puppy | mammal | 4
cat | kitten | mammal | 4
horse | foal | mammal | 4
sheep | lamb | mammal | 4
pig | piglet | mammal | 4
goat | kid | mammal | 4
lion | cub | mammal | 4
bear | cub | mammal | 4
tiger | cub | mammal | 4
wolf | pup | mammal | 4
fox | cub | mammal | 4
deer | fawn | mammal | 4
mouse | - | mammal | 4
kangaroo | joey | mammal | -
elephant | calf | mammal | 4
giraffe | calf | mammal | 4
whale | calf | mammal | -
dolphin | calf | mammal | -
seal | pup | mammal | -
bat | pup | mammal | -
duck | duckling | bird | 2
goose | gosling | bird | 2
swan | cygnet | bird | 2
owl | owlet | bird | 2
eagle | eaglet | bird | 2
penguin | chick | bird | 2
chicken | chick | bird | 2
frog | tadpole | amphibian | 4
toad | tadpole | amphibian | 4
newt | - | amphibian | 4
salmon | - | fish | -
trout | - | fish | -
tuna | - | fish | -
shark | pup | fish | -
snake | - | reptile | 0
lizard | - | reptile | 4
turtle | - | reptile | 4
crocodile | - | reptile | 4
ant | - | insect | 6
bee | - | insect | 6
beetle | - | insect | 6
butterfly | caterpillar | insect | 6
moth | caterpillar | insect | 6
spider | - | arachnid | 8
scorpion | - | arachnid | 8
"""

PLANETS = """
Mercury | 1 | rocky
Venus | 2 | rocky
Earth | 3 | rocky
Mars | 4 | rocky
Jupiter | 5 | gas giant
Saturn | 6 | gas giant
Uranus | 7 | ice giant
Neptune | 8 | ice giant
"""

MONTHS = """
January | 1 | 31
February | 2 | -
March | 3 | 31
April | 4 | 30
May | 5 | 31
June | 6 | 30
July | 7 | 31
August | 8 | 31
September | 9 | 30
October | 10 | 31
November | 11 | 30
December | 12 | 31
"""

SHAPES = """
triangle | 3
square | 4
rectangle | 4
pentagon | 5
hexagon | 6
heptagon | 7
octagon | 8
nonagon | 9
decagon | 10
"""

# Each pair is asked both ways.
OPPOSITES = """
hot cold, big small, tall short, fast slow, full empty, wet dry, hard soft, light dark,
rich poor, loud quiet, clean dirty, early late, near far, high low, strong weak,
thick thin, wide narrow, deep shallow, happy sad, inside outside, above below,
always never, push pull, true false, smooth rough, safe dangerous, cheap expensive,
buy sell, win lose
"""

PLURALS = """
mouse mice, goose geese, foot feet, tooth teeth, man men, woman women, child children,
ox oxen, knife knives, wife wives, leaf leaves, loaf loaves, shelf shelves,
thief thieves, wolf wolves, potato potatoes, tomato tomatoes, hero heroes, box boxes,
fox foxes, berry berries, story stories, lady ladies, church churches, bus buses,
glass glasses, dish dishes, sheep sheep, cactus cacti
"""

PAST_TENSES = """
go went, eat ate, drink drank, run ran, swim swam, sing sang, write wrote, drive drove,
see saw, come came, take took, speak spoke, break broke, buy bought, bring brought,
think thought, teach taught, catch caught, fall fell, feel felt, find found, keep kept,
sleep slept, lose lost, sell sold, sit sat, stand stood, throw threw, wear wore,
build built, draw drew, grow grew, hide hid, ride rode, win won, steal stole
"""


@dataclass(frozen=True)
class Fact:
    """One subject, one relation, one answer: (country, France, capital, Paris)."""

    kind: str
    subject: str
    relation: str
    value: str | int


def table(text: str, kind: str, *relations: str) -> list[Fact]:
    """Read a table whose first column is the subject; digits become numbers."""
    facts = []
    for line in text.strip().splitlines():
        subject, *values = (cell.strip() for cell in line.split("|"))
        for relation, value in zip(relations, values, strict=True):
            if value != "-":
                answer = int(value) if value.isdigit() else value
                facts.append(Fact(kind, subject, relation, answer))
    return facts


def pairs(text: str, kind: str, relation: str, both_ways: bool = False) -> list[Fact]:
    """Read a list of word pairs."""
    facts = []
    for pair in text.replace("\n", " ").split(","):
        left, right = pair.split()
        facts.append(Fact(kind, left, relation, right))
        if both_ways:
            facts.append(Fact(kind, right, relation, left))
    return facts


def all_facts() -> list[Fact]:
    """Every fact, in a fixed order."""
    return [
        *table(COUNTRIES, "country", "capital", "continent", "currency", "language"),
        *table(ELEMENTS, "element", "symbol", "number", "state"),
        *table(ANIMALS, "animal", "young", "class", "legs"),
        *table(PLANETS, "planet", "position", "type"),
        *table(MONTHS, "month", "position", "days"),
        *table(SHAPES, "shape", "sides"),
        *pairs(OPPOSITES, "word", "opposite", both_ways=True),
        *pairs(PLURALS, "word", "plural"),
        *pairs(PAST_TENSES, "word", "past"),
    ]
