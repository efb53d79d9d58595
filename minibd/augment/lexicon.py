"""A small thesaurus of our own, for where WordNet's files are not: common English words, those of film reviews among them.

A line is a set of words of one part of speech that can often stand for each other; a word may be in several. Inflected forms that are in
none are looked up under their base forms, as in WordNet (wordnet.py), with a few exceptions of ours.
"""
from __future__ import annotations

from functools import cache

from minibd.augment.wordnet import KINDS, base_forms, others

NOUN = """
film movie picture flick
cinema theater playhouse
actor performer player
actress performer
director filmmaker
writer author
screenwriter scriptwriter
viewer spectator watcher
audience crowd public
critic reviewer
fan admirer enthusiast
story tale narrative
plot storyline
script screenplay
scene sequence
ending conclusion finale
beginning start opening
dialogue conversation talk
joke gag jest
laugh chuckle giggle
humor wit comedy
thriller chiller
drama play
cartoon animation
sequel continuation
remake reworking
performance acting portrayal
role part
character figure persona
hero protagonist champion
villain scoundrel rogue
star celebrity
masterpiece gem jewel
classic standard
failure flop fiasco
success hit triumph
mess muddle shambles
waste squandering
bore drag
boredom tedium monotony
cliche platitude banality
nonsense rubbish drivel
trash garbage junk
piece bit fragment
work creation
art craft
style manner fashion
tone mood
mood atmosphere feel
feeling emotion sentiment
emotion passion
love affection devotion
hate hatred loathing
fear dread terror
joy delight happiness
sadness sorrow grief
anger rage fury
pain ache suffering
pleasure enjoyment delight
fun amusement enjoyment
entertainment amusement diversion
excitement thrill
suspense tension
surprise shock
mystery puzzle enigma
secret mystery
truth reality fact
lie falsehood untruth
idea notion concept
thought reflection
theme subject topic
message moral
meaning sense significance
purpose aim goal
reason cause motive
result outcome consequence
effect impact
problem trouble difficulty
mistake error blunder
flaw fault defect
weakness shortcoming failing
strength power force
energy vigor vitality
charm appeal allure
beauty loveliness
grace elegance
intelligence intellect brains
wisdom insight
talent gift flair
skill ability proficiency
experience adventure
journey trip voyage
adventure escapade
life existence
death demise
man guy fellow
woman lady
child kid youngster
boy lad
girl lass
baby infant
friend pal companion
enemy foe adversary
family household kin
father dad
mother mom
husband spouse
wife spouse
lover sweetheart
people folk
person individual human
teenager adolescent youth
leader chief head
boss chief employer
worker laborer employee
soldier warrior fighter
cop policeman
thief robber burglar
killer murderer assassin
murder killing
crime offense
war conflict
battle fight combat
violence brutality
blood gore
gun firearm weapon
money cash
job task
house home dwelling
town city
place spot location
country nation land
world earth globe
street road
car automobile
ship vessel
water liquid
fire blaze flame
light glow
darkness dark gloom
sky heaven
sea ocean
forest wood woodland
night evening
day daytime
moment instant minute
time period
age era epoch
history past
future tomorrow
music melody
song tune
sound noise
voice tone
image picture
photograph photo
color hue
shape form
size magnitude
amount quantity
lot bunch
number figure
group band
pair couple duo
part portion section
rest remainder
top peak summit
bottom base
side flank
edge border rim
center middle core
heart core
mind brain intellect
body frame
face countenance
hand fist
dream reverie
nightmare horror
wish desire longing
hope expectation
chance opportunity
luck fortune
risk danger hazard
attempt try effort
effort exertion
plan scheme
way path route
method approach technique
rule principle
game match
prize award
gift present
party celebration
food nourishment
drink beverage
school academy
teacher instructor
student pupil
book volume
page leaf
word term
question query
answer reply response
news tidings
letter note
opinion view
point argument
detail particular
example instance
kind sort type
quality caliber
value worth
price cost
length duration
speed pace rate
pace tempo
rhythm beat
trick ruse
gimmick stunt
spectacle display
vision imagination
imagination fantasy
fantasy daydream
ghost spirit phantom
monster beast creature
animal beast creature
dog hound
cat feline
romance courtship
marriage wedlock matrimony
relationship connection
honesty candor frankness
innocence naivety
cruelty brutality
stupidity foolishness silliness
depth profundity
debut premiere
crew team
studio workshop
screen display
"""

VERB = """
watch view
see behold
look gaze
show display exhibit
tell relate recount
say state
speak talk
explain clarify
describe depict portray
create make produce
make produce
build construct
write compose
direct guide
play perform
act perform
begin start commence
end finish conclude
stop halt cease
continue proceed
try attempt
succeed triumph
fail flop
win triumph
lose forfeit
love adore cherish
like enjoy
enjoy relish savor
hate detest loathe
want desire
need require
hope wish
think believe
believe trust
know understand
understand comprehend grasp
learn discover
find discover
feel sense
seem appear
become turn
remember recall
forget overlook
imagine envision
amuse entertain
bore tire
thrill excite
excite stir
move stir
touch move
shock stun
surprise astonish amaze
amaze astonish astound
scare frighten terrify
disturb upset trouble
annoy irritate
disappoint frustrate
please delight
charm enchant captivate
captivate fascinate enthrall
impress affect
inspire motivate
offer provide
give provide
get obtain
take seize
bring carry
send dispatch
keep retain
hold grip
leave depart
go proceed
come arrive
walk stroll
run dash
jump leap
fall drop
rise climb
grow develop
change alter
turn rotate
open unlock
close shut
help aid assist
save rescue
kill slay
hurt harm injure
fight battle
destroy ruin wreck
ruin spoil wreck
break shatter
fix repair mend
waste squander
use employ utilize
work function
choose select pick
prefer favor
avoid evade shun
ignore disregard
reveal disclose
hide conceal
laugh chuckle
smile grin
cry weep
shout yell
whisper murmur
praise commend
recommend suggest
suggest propose
ask inquire
answer reply respond
wait stay
live dwell reside
die perish expire
eat consume
drink sip
sleep slumber
wake awaken
buy purchase
spend expend
deserve merit
expect anticipate
allow permit
force compel
prevent hinder
deliver furnish
combine blend
mix blend
capture catch
catch seize
lack want
explore investigate
examine inspect
mock ridicule
steal rob
cheat deceive
deceive trick fool
drag trudge
suffer endure
survive outlast
celebrate commemorate
improve enhance
weaken undermine
"""

ADJ = """
good fine nice
great excellent superb
excellent outstanding superb
wonderful marvelous splendid
fantastic terrific fabulous
brilliant dazzling
amazing astonishing astounding
beautiful lovely gorgeous
pretty attractive
charming delightful enchanting
delightful enjoyable pleasant
enjoyable pleasurable
entertaining amusing diverting
funny comical humorous
hilarious uproarious
witty clever
clever smart ingenious
smart intelligent bright
wise sage
moving touching affecting
touching poignant
heartfelt sincere earnest
sincere genuine honest
honest truthful candid
powerful potent forceful
strong robust
compelling gripping engrossing
gripping riveting absorbing
fascinating intriguing captivating
interesting engaging
exciting thrilling stirring
suspenseful tense
fresh novel original
original inventive innovative
imaginative creative inventive
stylish elegant chic
elegant graceful refined
subtle delicate
gentle tender mild
sweet sugary
warm cordial
cold chilly frigid
hot torrid
cool chilly
happy glad cheerful
sad unhappy sorrowful
angry furious irate
afraid scared frightened
scary frightening chilling
creepy eerie spooky
bad poor lousy
awful terrible dreadful
horrible dreadful ghastly
terrible abysmal appalling
worthless useless
boring dull tedious
dull dreary drab
tedious tiresome wearisome
slow sluggish
fast quick rapid
lazy idle
weak feeble
flat lifeless
shallow superficial
deep profound
stupid dumb foolish
silly foolish absurd
ridiculous absurd ludicrous
pointless senseless meaningless
predictable foreseeable
familiar customary
trite banal hackneyed
stale musty
bland insipid
clumsy awkward
awkward ungainly
messy untidy
confusing puzzling baffling
strange odd peculiar
weird bizarre odd
unusual uncommon
rare scarce infrequent
common ordinary
normal usual
simple plain
easy effortless
hard difficult tough
complex complicated intricate
clear plain evident
obvious evident apparent
vague unclear
true real
real actual
false untrue
fake phony sham
big large
large huge
huge enormous gigantic
small little
tiny minute miniature
long lengthy
short brief
old aged
ancient antique
young youthful
new novel
modern contemporary
early premature
late tardy
rich wealthy affluent
poor needy
expensive costly
cheap inexpensive
free gratis
full filled
empty vacant
whole entire
complete total
perfect flawless faultless
broken shattered
dark gloomy
bright radiant
loud noisy
quiet silent still
violent brutal savage
cruel brutal merciless
bloody gory
dangerous perilous hazardous
safe secure
brave courageous bold
bold daring
shy timid
proud arrogant
kind generous
mean nasty
friendly amiable
lonely solitary lonesome
crazy mad insane
serious grave solemn
important significant
famous celebrated renowned
popular favored
unknown obscure
strange unfamiliar
human mortal
romantic amorous
sexy seductive
ugly hideous unsightly
disgusting revolting repulsive
offensive insulting
crude vulgar coarse
dirty filthy
clean spotless
certain sure
likely probable
possible feasible
impossible unachievable
different distinct
similar alike
equal identical
main chief principal
final last
first initial
recent latest
single sole
several various
many numerous
enough sufficient
extra additional
special particular
general broad
talented gifted
skilled expert
lively vivacious spirited
energetic vigorous
tired weary
bored uninterested
hopeful optimistic
hopeless desperate
tragic disastrous
comic comical
epic heroic
magnificent majestic splendid
spectacular striking
stunning breathtaking
memorable unforgettable
forgettable unmemorable
worthy deserving
solid firm
thin slender
thick dense
heavy weighty
light weightless
sharp keen
soft supple
rough coarse
smooth even
quirky eccentric
sentimental mawkish
pretentious affected
ambitious aspiring
convincing persuasive
believable credible plausible
disappointing unsatisfying
satisfying gratifying
annoying irritating
painful agonizing
pleasant agreeable
unpleasant disagreeable
"""

ADV = """
very extremely
really truly
truly genuinely
quite rather
almost nearly
always forever
often frequently
sometimes occasionally
rarely seldom
soon shortly
quickly rapidly swiftly
slowly gradually
suddenly abruptly
finally eventually
perhaps maybe possibly
probably likely
certainly surely definitely
clearly plainly
simply merely
only merely
completely totally entirely
perfectly flawlessly
beautifully gracefully
badly poorly
awfully terribly
easily effortlessly
hardly barely scarcely
together jointly
instead alternatively
however nevertheless
therefore consequently
well nicely
again anew
especially particularly
usually generally
exactly precisely
mostly mainly largely
partly partially
fairly moderately
constantly continually
sadly unfortunately
happily gladly
quietly silently
loudly noisily
apparently seemingly
deeply profoundly
"""

SETS = dict(zip(KINDS, (NOUN, VERB, ADJ, ADV)))
EXCEPTIONS = {
    "noun": {"men": ["man"], "women": ["woman"], "children": ["child"], "wives": ["wife"], "lives": ["life"], "thieves": ["thief"]},
    "verb": {
        "began": ["begin"], "begun": ["begin"], "bought": ["buy"], "broke": ["break"], "brought": ["bring"], "built": ["build"],
        "came": ["come"], "caught": ["catch"], "chose": ["choose"], "chosen": ["choose"], "fell": ["fall"], "felt": ["feel"],
        "forgot": ["forget"], "fought": ["fight"], "found": ["find"], "gave": ["give"], "given": ["give"], "got": ["get"],
        "grew": ["grow"], "held": ["hold"],
        "kept": ["keep"], "knew": ["know"], "known": ["know"], "left": ["leave"], "lost": ["lose"], "made": ["make"], "said": ["say"],
        "saw": ["see"], "seen": ["see"], "shown": ["show"], "spoke": ["speak"], "stole": ["steal"], "stopped": ["stop"],
        "thought": ["think"], "told": ["tell"], "took": ["take"], "understood": ["understand"],
        "went": ["go"], "won": ["win"], "written": ["write"], "wrote": ["write"],
    },
    "adj": {"better": ["good"], "best": ["good"], "worse": ["bad"], "worst": ["bad"], "funnier": ["funny"], "funniest": ["funny"],
            "bigger": ["big"], "biggest": ["big"], "happier": ["happy"], "happiest": ["happy"], "sillier": ["silly"], "silliest": ["silly"]},
    "adv": {"best": ["well"], "better": ["well"], "worse": ["badly"], "worst": ["badly"]},
}


@cache
def _sets_of(kind: str) -> dict[str, list[list[str]]]:
    """Each word of `kind` -> the sets that it is in."""
    of: dict[str, list[list[str]]] = {}
    for members in map(str.split, SETS[kind].strip().split("\n")):
        for member in members:
            of.setdefault(member, []).append(members)
    return of


@cache
def synonyms(word: str) -> tuple[str, ...]:
    """Every other word of all the sets that `word` is in, whatever its part of speech, each once.

    A word that is in none is looked up under its base forms; one that is in some is not: boring is dull, and is not to tire.
    """
    form = word.lower()
    sets = [members for kind in KINDS for members in _sets_of(kind).get(form, ())]
    if not sets:
        sets = [members for kind in KINDS for base in base_forms(form, kind, _sets_of(kind), EXCEPTIONS[kind])
                for members in _sets_of(kind)[base]]
    return others(word, sets)
