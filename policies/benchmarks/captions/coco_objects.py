"""Words for the 80 object categories of COCO (Lin et al. 2014, arXiv 1405.0312): our own list, for CHAIR if the published one is not given.

Nouns in the singular. A word that as often means another thing in a caption is left out ("top", "screen", "handle").
"""

from __future__ import annotations

_WORDS = """
person: man, woman, boy, girl, child, kid, baby, toddler, infant, adult, teenager, teen, lady, gentleman, guy, fellow, human,
 pedestrian, rider, driver, passenger, cyclist, biker, motorcyclist, skier, snowboarder, surfer, skater, skateboarder, swimmer, runner,
 athlete, player, batter, pitcher, catcher, umpire, referee, goalie, spectator, worker, chef, cook, waiter, waitress, farmer, police
 officer, policeman, policewoman, officer, soldier, fireman, firefighter, doctor, nurse, teacher, student, tourist, traveler, traveller,
 customer, shopper, vendor, bride, groom, mother, father, mom, dad, son, daughter, brother, sister, grandmother, grandfather, grandma,
 grandpa, husband, wife, friend, cowboy, jockey, hiker, camper, musician, artist, businessman, businesswoman, fisherman, male, female
bicycle: bike, tricycle, unicycle, mountain bike
car: automobile, sedan, suv, taxi, cab, taxicab, van, minivan, convertible, hatchback, limousine, jeep, police car, station wagon,
 sports car
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane: aeroplane, plane, aircraft, jet, airliner, jetliner, biplane, seaplane, fighter jet, air plane
bus: minibus, coach bus, school bus, double decker bus, double decker, tour bus, trolleybus
train: locomotive, tram, streetcar, subway train, freight train, steam engine, railcar
truck: lorry, pickup, pickup truck, fire truck, firetruck, fire engine, tow truck, dump truck, garbage truck, semi truck, tractor
 trailer
boat: ship, sailboat, sail boat, canoe, kayak, rowboat, row boat, motorboat, motor boat, speedboat, yacht, ferry, barge, tugboat,
 gondola, dinghy, raft, fishing boat, cruise ship, catamaran
traffic light: traffic signal, stoplight, stop light
fire hydrant: hydrant, fireplug
stop sign:
parking meter:
bench: park bench, pew
bird: pigeon, dove, seagull, gull, duck, duckling, goose, swan, eagle, hawk, owl, parrot, parakeet, cockatoo, crow, raven, sparrow,
 robin, finch, hummingbird, woodpecker, pelican, heron, egret, stork, flamingo, ostrich, emu, peacock, rooster, hen, chick, penguin,
 kingfisher, toucan, macaw, songbird
cat: kitten, kitty, tabby, feline
dog: puppy, pup, doggy, doggie, hound, canine, poodle, terrier, bulldog, labrador, retriever, dachshund, corgi, beagle, husky, collie,
 chihuahua, dalmatian, pug, spaniel, sheepdog, german shepherd
horse: pony, foal, colt, stallion, mare, mustang, racehorse, equine
sheep: lamb, ram, ewe
cow: cattle, bull, ox, calf, heifer, bovine
elephant:
bear: polar bear, grizzly, grizzly bear, brown bear, black bear, panda, panda bear, bear cub
zebra:
giraffe:
backpack: rucksack, knapsack, back pack
umbrella: parasol
handbag: purse, hand bag, pocketbook
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, baggage
frisbee: flying disc
skis: ski
snowboard: snow board
sports ball: ball, baseball, basketball, football, soccer ball, tennis ball, volleyball, beach ball
kite:
baseball bat: bat
baseball glove: mitt, catcher mitt, baseball mitt
skateboard: skate board
surfboard: surf board, boogie board, bodyboard
tennis racket: racket, racquet, tennis racquet
bottle: wine bottle, beer bottle, water bottle
wine glass: wineglass, champagne glass, champagne flute
cup: mug, teacup, coffee cup, coffee mug, tea cup
fork:
knife: pocketknife, butter knife
spoon: teaspoon, tablespoon
bowl:
banana:
apple:
sandwich: burger, hamburger, cheeseburger, panini, sub sandwich
orange: tangerine, clementine
broccoli:
carrot:
hot dog: hotdog
pizza:
donut: doughnut
cake: cupcake, cheesecake, birthday cake, wedding cake
chair: armchair, arm chair, stool, bar stool, barstool, rocking chair, high chair, lounge chair
couch: sofa, loveseat, love seat, settee, futon
potted plant: house plant, houseplant, pot plant
bed: bunk bed, crib
dining table: table, kitchen table, desk, picnic table
toilet: urinal, commode
tv: television, tv set, television set, flat screen, flatscreen, computer monitor, monitor
laptop: laptop computer, notebook computer
mouse: computer mouse
remote: remote control, game controller, wii remote
keyboard: computer keyboard
cell phone: cellphone, phone, smartphone, smart phone, mobile phone, telephone, iphone
microwave: microwave oven
oven: stove, stovetop
toaster: toaster oven
sink: washbasin, wash basin
refrigerator: fridge, freezer
book: textbook, cookbook, paperback
clock: clock tower, alarm clock, wall clock
vase:
scissors: pair of scissors, shears
teddy bear: teddy, stuffed bear
hair drier: hair dryer, hairdryer, hairdrier, blow dryer
toothbrush: tooth brush
"""


def synonym_lists() -> list[list[str]]:
    """One list for each category: its name first, then its words."""
    lines = _WORDS.strip().replace("\n ", " ").split("\n")
    parts = [line.partition(":") for line in lines]
    return [[name, *(word.strip() for word in words.split(",") if word.strip())] for name, _, words in parts]
