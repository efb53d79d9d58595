"""The built-in corpus: a grammar that writes labelled film reviews, and questions about a film with what was said. No file needed.

    from minibd import reviews
    train, dev, test = reviews.splits(seed=0, train=4000, dev=500, test=1000)
    train, dev, test = reviews.pair_splits(seed=0, train=4000, dev=500, test=1000)

Everything below is one grammar in which a symbol carries a polarity p: +1 praises the film, -1 damns it.

    {same film}    a phrase of the symbol `film` with the polarity asked for, p
    {flip film}    ... with the other one, -p: what a negation, a concession or a mistaken critic needs
    {some film}    ... with either, by a coin: an opinion about something else, which decides nothing
    {genre}        a neutral symbol

So `any  nothing about it is {flip mild}` asked for p = +1 writes "nothing about it is dull", and asked for p = -1 "nothing
about it is engaging": the words of one polarity, the label of the other. A line of a rule opens with the polarity that it
may be asked for (any, pos or neg) and, where it should come up more often, a weight: `any3`. The label of a review is the p
that its plan was asked for. Praise and blame occur under both labels, so counting words decides only a part of the reviews;
who negates, concedes or is quoted decides the rest.

Adjectives are graded: `mild` ones turn over under a bare negation ("not a dull film" praises), the strong ones in `film`
do not ("not an abysmal film" hardly does), and so stand only where the sentence leaves no doubt.

The sentence pairs: a question about one subject, for an opinion (of the dialogue) or for a fact (who directed it), and a statement about
the same one, "answered", or about one of the other kind, "unanswered": an opinion where a fact was asked for, or the other way round.
Beside the statement there may stand one that answers nothing. Every subject is asked about, and told about, as often under one label as
under the other: neither text alone says anything about it.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from random import Random

from minibd.records import BadInput, Example, Examples

LABELS = ("negative", "positive")       # label = (p + 1) / 2
PAIR_LABELS = ("unanswered", "answered")
PAIRS = {"seed": 0, "train": 12_000, "dev": 1_000, "test": 2_000}       # the rows that --data pairs names, of any run's seed
LIMIT = 1_000_000                       # rows of one seed: what fits in memory with ease; the grammar has far more
TRIES = 100                             # rewrites of one row before the grammar counts as exhausted
SHORTEST, LONGEST = 5, 60               # words of a review
ONCE = ("genre", "director")            # symbols that mean the same thing all through a review

# ---------------------------------------------------------------- words with a polarity: (praise, blame)

POLAR = {
    # Of a film. Mild: its negation is the opposite verdict.
    "mild": ("""good engaging entertaining convincing involving interesting worthwhile enjoyable satisfying absorbing gripping
        clever memorable rewarding compelling likeable appealing effective amusing charming exciting intelligent impressive""",
        """bad dull boring tedious weak clumsy silly tiresome forgettable pointless lazy stale bland awkward confused irritating
        predictable sluggish laboured annoying dreary preachy"""),
    "strong": ("""moving delightful superb wonderful enchanting thrilling exhilarating riveting magnificent splendid marvellous
        brilliant captivating engrossing touching heartfelt inventive dazzling unforgettable spellbinding stirring terrific
        excellent joyous hilarious masterly enthralling lovely triumphant glorious uplifting beguiling bewitching stunning
        sparkling first-rate irresistible mesmerising""",
        """dreadful awful terrible lifeless plodding insipid dire dismal turgid shoddy wretched abysmal lousy witless joyless
        unbearable atrocious ponderous lacklustre mediocre feeble vapid appalling insufferable hollow inept incoherent charmless
        unwatchable uninspired second-rate excruciating disastrous soulless monotonous worthless dismaying numbing"""),
    "film": ("{same mild};{same strong};{same strong}",) * 2,
    # Of what was written, played and made; of things that come in numbers.
    "writing": ("""witty sharp clever taut fresh nimble thoughtful shrewd well-judged original believable literate crisp deft
        lucid surprising ingenious economical graceful perceptive inspired pointed subtle intricate coherent""",
        """muddled contrived predictable trite laboured hackneyed far-fetched flimsy overlong shapeless half-baked derivative
        implausible confusing stilted leaden corny threadbare lazy messy heavy-handed long-winded formulaic baffling
        preposterous"""),
    "acting": ("""convincing radiant magnetic likeable natural expressive soulful fearless assured winning commanding nuanced
        lively vivid sympathetic truthful understated disarming charismatic spirited quick-witted compelling""",
        """wooden stiff unconvincing hammy mannered listless miscast stilted grating flat charmless shrill self-conscious
        one-note smug mechanical colourless robotic lifeless insincere whiny expressionless"""),
    "craft": ("""lush elegant handsome gorgeous ravishing polished crisp luminous sumptuous beautiful precise evocative
        exquisite stylish atmospheric delicate imaginative meticulous eye-catching resplendent accomplished""",
        """drab ugly murky cheap garish sloppy gaudy amateurish shoddy intrusive tacky careless muddy grating slapdash tasteless
        crude overdone distracting unsightly haphazard"""),
    "parts": ("superb excellent splendid wonderful first-rate lovely impressive delightful brilliant astonishing tremendous",
        "dreadful poor awful shabby terrible second-rate feeble tired dire laughable embarrassing"),
    # Nouns: what a film is full of, or free of. Then what it is.
    "virtue": ("""warmth wit charm energy imagination heart verve humour grace tenderness insight originality invention vitality
        sparkle conviction intelligence joy""",
        """padding sentimentality laziness pretension bombast tedium cliche clutter self-pity preaching silliness drivel filler
        monotony smugness waffle"""),
    "gem": ("gem;triumph;treat;delight;marvel;joy;masterpiece;winner;treasure;pleasure from first to last;small miracle",
        "dud;mess;bore;slog;disaster;misfire;flop;waste of an evening;turkey;ordeal;shambles;letdown;catastrophe"),
    # Verbs: the film, bare and in the third person; the viewer.
    "act": ("charm delight move thrill engage entertain amuse captivate enchant dazzle excite inspire satisfy convince impress "
        "please", "bore irritate annoy disappoint drag grate frustrate exasperate bewilder plod"),
    "acts": ("charms delights moves thrills engages entertains amuses captivates enchants dazzles excites inspires satisfies "
        "convinces impresses pleases", "bores irritates annoys disappoints drags grates frustrates exasperates plods"),
    "does": ("""soars;sparkles;sings;shines;glows;casts a spell;earns every tear;grips from the first frame;gets under the skin;
        lands every joke;holds the attention to the last;stays in the mind for days;rewards every minute;hits the mark;
        wins you over;takes flight;deserves a wide audience;bursts with life;comes together beautifully;lifts the spirits""",
        """drags;stumbles;sinks;plods;limps along;falls flat;falls apart;collapses under its own weight;wears out its welcome;
        runs out of ideas;fizzles out;goes nowhere;tests the patience;grates on the nerves;loses its way;outstays its welcome;
        misses the mark;dies on the screen;insults its audience;sags from beginning to end"""),
    "felt": ("moved thrilled charmed amused gripped absorbed captivated touched entertained delighted enthralled enchanted",
        "bored annoyed irritated restless disappointed wearied exasperated dismayed underwhelmed embarrassed"),
    "reacted": ("""loved every minute;laughed until I cried;left beaming;was hooked at once;was won over;
        went straight back for another showing;wanted to applaud;walked home on air;would gladly sit through it again;
        was sorry when the lights came up;grinned all the way home""",
        """kept checking my watch;wanted my money back;fought off sleep;longed for the credits;was bored stiff;
        regretted the price of the ticket;groaned more than once;wished I had stayed at home;
        was relieved when the lights came up;squirmed in my seat;walked out before the end"""),
    "advice": ("""see it;book a seat;bring the whole family;take a friend;do not miss it;catch it while you can;go twice;
        make room for it in your week;it is well worth the fare;I would recommend it to anyone;cancel your plans and go""",
        """skip it;save your money;stay at home;avoid it;give it a miss;spare yourself;do not bother;find something else;
        it is not worth the fare;I would not recommend it to anyone;read a book instead"""),
}

# ---------------------------------------------------------------- words without one

NEUTRAL = {
    "it": "it;it;it;the film;the film;the movie;the picture;the whole thing;this {genre};the {genre};{director}'s film;this one",
    "very": ";;;truly ;simply ;thoroughly ;genuinely ;quite simply ;plainly ;frankly ;altogether ;undeniably ",
    "genre": """thriller;comedy;drama;western;musical;romance;mystery;satire;melodrama;biopic;farce;fable;caper;fantasy;sequel;
        epic;whodunit;heist film;ghost story;road movie;love story;war film;spy film;costume drama;remake;family film;film noir;
        courtroom drama;chamber piece;monster movie;swashbuckler;parody;space opera;tragicomedy;pirate film;allegory""",
    "director": "{surname}",
    "writing_n": """script;screenplay;plot;dialogue;storyline;ending;opening;pacing;premise;second act;third act;final twist;
        voice-over;narration;story;first hour;last reel;framing device;backstory;prologue;epilogue;banter;love triangle""",
    "acting_n": """lead performance;cast;leading man;leading lady;villain;supporting cast;heroine;hero;ensemble;sidekick;acting;
        child star;narrator;newcomer in the title role;romantic lead;double act at its centre;chorus;antagonist""",
    "craft_n": """photography;camerawork;score;soundtrack;editing;lighting;set design;sound design;choreography;
        production design;colour palette;title sequence;make-up;wardrobe;cinematography;music;scenery;theme tune;staging""",
    "parts_n": """jokes;songs;costumes;car chases;stunts;flashbacks;monologues;fight scenes;sets;visual effects;crowd scenes;
        love scenes;close-ups;dances;dream sequences;duets;sword fights;montages;aerial shots;puppets;miniatures;cameos""",
    "unit": "scene;minute;line;moment;shot;exchange;chapter;gag;sequence;image",
    "overall": "in the end;on balance;all told;overall;when all is said and done;in short;to sum up;at bottom",
    "still": "even so;still;all the same;nevertheless;for all that;be that as it may",
    "source": """everyone;my friends;the critics;the papers;my colleagues;the neighbours;my sisters;my students;the magazines;
        my cousins;people online;the festival judges;the bloggers;my parents;the people behind us;both my brothers;the pundits""",
    "work": """novel;trailer;stage play;original;comic book;television series;radio serial;first instalment;advance publicity;
        poster;pilot episode;opera;memoir;short story;early draft;podcast""",
    "audience": """teenagers;grandparents;insomniacs;commuters;night owls;schoolchildren;film buffs;beginners;book clubs;
        tourists;pensioners;toddlers;newlyweds;historians;purists;engineers;office workers;anglers;gardeners;poets""",
    "surname": """Abbott Albright Ainsley Barrow Bergman Birch Calloway Castellan Corrigan Dahl Delacroix Dunmore Eklund Farrow
        Fontaine Gallagher Grimaldi Haverford Holm Ibarra Jansen Kaplan Kowalski Lindqvist Lockhart Marchetti Mbeki Moreau
        Nakamura Novak Okafor Oduya Pascoe Petrov Quill Ramires Rosen Sandoval Sato Takeda Thornbury Ueda Valente Vance
        Weatherby Winslow Yamada Zeller Zhou Oyelaran Pereira Rahman""",
    "forename": """Ada Agnes Amir Anton Astrid Beatrix Benedict Camille Cedric Clara Conrad Daphne Dmitri Edith Elias Esther
        Felix Fiona Greta Gustav Hana Hector Hugo Ida Ines Ivan Jonas Judith Kenji Lars Leila Leopold Lucia Magnus Marta Milo
        Nadia Nils Olga Oscar Paloma Petra Priya Rafael Rosa Rufus Selma Silas Sofia Stefan Tamsin Theo Ursula Vera Viktor Wanda
        Yusuf Zora""",
    "tongue": """Norwegian Italian Polish Korean Japanese Irish Welsh Danish Turkish Greek Finnish Czech Portuguese Hungarian
        Icelandic Georgian Swedish Dutch Catalan Basque Hindi Bengali Swahili""",
    "nation": """{tongue};{tongue};Chilean;Brazilian;Moroccan;Argentine;Iranian;Canadian;Mexican;Egyptian;Nigerian;Scottish;
        Belgian;Cuban;Peruvian;Australian;Kenyan""",
    "city": """Lisbon Leeds Cairo Bergen Naples Kyoto Dublin Prague Boston Glasgow Lyon Seville Krakow Antwerp Havana Oslo Turin
        Cork Vienna Tangier Montreal Marseille Hamburg Bristol Galway Palermo Athens Budapest Bruges Valencia Trieste Cardiff
        Quebec Santiago Nairobi Istanbul Reykjavik Helsinki Aberdeen Ghent Porto Riga Tallinn Norwich Swansea Brighton""",
    "place": """{city};{city};a harbour town;a mountain village;a coal-mining valley;a monastery;a submarine;a boarding school;
        an airport hotel;a travelling circus;a fishing port;a desert outpost;a vineyard;a provincial theatre;a sugar refinery;
        an Arctic station;a railway town;a suburb of {city};a flooded quarry;a border town;a tower block;a forest clearing;
        a sanatorium;a printing works;a lumber camp;a cathedral close;a caravan park;a dockyard;a weather station;a lagoon;
        a space colony;a chess club;a kitchen garden;a tram depot;a salt marsh;an orchard;a riverside tavern;a brickyard;
        a coastal fort;a hospital ward;a palace kitchen;a ballet school;an embassy;a toy factory;a bakery""",
    "role": """lighthouse keeper;baker;detective;cellist;botanist;boxer;widow;schoolteacher;watchmaker;smuggler;nurse;sailor;
        librarian;postman;magician;taxi driver;pilot;seamstress;gambler;surgeon;beekeeper;journalist;locksmith;farmer;
        translator;cartographer;dancer;priest;sergeant;forger;chemist;barber;shepherd;violinist;diplomat;orphan;fisherman;
        locomotive driver;carpenter;archivist;goalkeeper;astronomer;clown;duchess;blacksmith;puppeteer;bookseller;janitor;
        mathematician;painter;plumber;ventriloquist;weaver;undertaker;trapeze artist;typist;vet;cook;judge;jockey;geologist;
        miner;midwife;poet;pickpocket;photographer;bishop;accountant;bus conductor;stamp collector;glazier;actuary;falconer;
        signalman;ferryman;potter;tailor;governess;cabinet-maker;bounty hunter;stowaway;organist;dentist;pearl diver""",
    "sort": """retired young elderly Norwegian left-handed widowed self-taught one-eyed {nation} {nation} {nation} short-sighted
        red-haired middle-aged provincial newly-wed homesick former itinerant bearded nameless teenage barefoot tall pious
        sleepwalking part-time exiled talkative silent masked freckled penniless runaway""",
    "thing": """violin;map;diary;necklace;letter;racehorse;painting;manuscript;suitcase;pocket watch;telescope;ledger;
        wedding ring;piano;parrot;passport;recipe;lantern;motorcycle;statue;coin;key;camera;treaty;compass;tapestry;
        grandfather clock;rowing boat;chess set;sewing machine;radio;bicycle;music box;crown;photograph;sledge;umbrella;
        inheritance;balloon;fossil;trunk;accordion;typewriter;barometer;kite;saddle;scroll;teapot;mirror;gramophone;snow globe;
        ballot box""",
    "owned": "stolen missing antique borrowed forged silver buried wooden priceless hidden rusty unfinished royal sealed lost",
    "goes": """is stranded in;grows up in;opens a shop in;wakes up in;inherits a house in;looks for work in;spends a winter in;
        waits out a storm in;buries an uncle in;settles in;goes missing in;plans an escape from;keeps a secret in""",
    "travels": """returns to;moves to;is sent to;hides in;takes a job in;arrives in;drives across country to;sets out for;
        rents a room in;sails to""",
    "seeks": """find;sell;repair;return;hide;steal;copy;photograph;auction;deliver;identify;trace;recover;guard;examine;inherit;
        smuggle;exchange;restore;pawn;collect;unearth""",
    "meets": """meets;marries;hires;follows;shelters;interviews;impersonates;rescues;befriends;questions;writes to;argues with;
        falls for;teaches;spies on;employs;adopts;lodges with;corresponds with;competes with""",
    "era": """the war;a long strike;the gold rush;an election;a general strike;the harvest;a heatwave;the twenties;
        a solar eclipse;the carnival;the last days of the empire;a snowbound Christmas;the Renaissance;the Depression;a census;
        the Olympics;a royal visit;the monsoon;an epidemic;the thaw;the bronze age;prohibition;the moon landings;a regatta""",
    "when": """last night;yesterday;on Tuesday;on a rainy Sunday;last week;in March;on my birthday;after work;this morning;
        over the holidays;on Friday evening;in early autumn;on the first of May;late on Thursday;during the half-term break;
        last summer;on opening night;at midnight;before lunch;at the weekend;in January;on Bank Holiday Monday;in October""",
    "venue": """the old Regal;a matinee;the multiplex;a film club;an open-air screening;the university cinema;a preview;
        the festival;the drive-in;a village hall;the arts centre;a late showing;the Odeon;a museum hall;a members' evening""",
    "company": """my aunt;two friends;my nephew;my grandmother;a colleague;my flatmate;nobody else;my brother-in-law;
        my daughter;the neighbours;my old tutor;a visiting cousin;my landlady;my son;half the choir;my godmother;
        a busload of students""",
    "food": """popcorn;liquorice;sandwiches;peppermints;toffee;olives;crisps;oranges;noodles;ice cream;peanuts;gingerbread;
        raisins;pretzels;dumplings;chestnuts;biscuits;chocolate;grapes;almonds""",
    "seat": "back row;front row;balcony;circle;stalls;third row;aisle seats;upper gallery;foyer;middle of the hall",
    "colour": "red blue green purple grey orange yellow brown crimson turquoise maroon beige violet",
    "minutes": """eighty-five;ninety;ninety-four;a hundred;a hundred and six;a hundred and twelve;seventy-eight;
        a hundred and thirty;eighty-nine;two hundred;a hundred and fifty""",
    "several": "two three four five six seven eleven twelve fifteen twenty thirty",
    "nth": "first second third fourth fifth sixth seventh eighth ninth tenth",
    "medium": """black and white;sixteen millimetre;natural light;two languages;a single apartment;wide screen;
        a disused hangar;eleven days;chronological order;sepia;one long take;a studio tank;dialect;a converted barn""",
    "before": """newsreel;short before it;advertisement for another film;cartoon before it;bus ride there;concert next door;
        book that I read on the way;lecture before the screening;football match on Saturday""",
    "relation": "brother sister uncle dentist neighbour boss grandfather hairdresser landlord cousin stepfather lodger",
    "absent": "stayed at home;could not come;was abroad;arrived late;had a cold;went to the opera;preferred to go fishing",
}

# ---------------------------------------------------------------- rules: clauses, lower-case, without a full stop

RULES = {
    # One part of the film; `@` is writing, acting and craft in turn.
    "aspect": """
        any3  the {@_n} is {very}{same @}
        any   the {@_n} is {same @} and {same @}
        any2  the {parts_n} are {very}{same parts}""",

    # The film, said straight; a phrase has no verb and stands alone.
    "phrase": """
        any3  a {same film}, {same film} {genre}
        any   a {same film} {genre} from start to finish
        any   what a {same gem}""",
    "plain": """
        any3  {it} is {very}{same film}
        any3  {it} is {same film} and {same film}
        any3  {it} {same does}
        any   {it} is a {same gem}
        any   I found {it} {very}{same film}
        any   I have not seen so {same film} a {genre} in years
        any   {it} is {same film} from start to finish
        any2  I was {same felt} throughout
        any2  I {same reacted}
        any   {it} will {same act} {audience} and {audience} alike
        any   {it} is full of {same virtue}""",

    # The words of one polarity under a negation: the other label.
    "negation": """
        any3  {it} is not {flip mild}
        any3  {it} is never {flip mild}
        any2  {it} is hardly {flip mild}
        any2  {it} is anything but {flip film}
        any2  there is nothing {flip mild} about it
        any   nothing about it is {flip mild}
        any   this is not a {flip mild} {genre}
        any   nobody could call it {flip mild}
        any   not one {unit} of it is {flip mild}
        any2  {it} never {flip acts}
        any   {it} does not {flip act}
        any   {it} is entirely free of {flip virtue}
        any   I was never {flip felt}
        any   no one in the {seat} looked {flip felt}
        any   nobody could fail to be {same felt}
        pos   {it} never fails to {same act}
        neg   {it} fails to {flip act}
        neg   {it} never manages to {flip act}""",
    "core": """
        any2  {same plain}
        any   {same negation}""",

    # A concession gives way to the main clause.
    "contrast": """
        any3  {flip aspect}, but {same core}
        any3  {flip aspect}, yet {same core}
        any2  though {flip aspect}, {same core}
        any2  {same core}, even though {flip aspect}
        any   {flip aspect} and {flip aspect}; {still}, {same core}
        any   despite its {flip @} {@_n}, {same core}
        any   for all its {flip virtue}, {it} is {very}{same film}
        any   however {flip @} the {@_n} may be, {same core}
        pos   not even its {flip @} {@_n} can spoil this {same film} {genre}
        neg   not even its {flip @} {@_n} can save this {same film} {genre}
        pos   I forgive its {flip @} {@_n}, because {same core}
        neg   I admire its {flip @} {@_n}, but {same core}""",

    # A part and the whole agree.
    "concord": """
        any3  {same aspect}, and {same core}
        any2  {same aspect}, {same aspect}, and {same core}
        any   {same core}; {same aspect}
        any   thanks to its {same @} {@_n}, {same core}
        any   with its {same @} {@_n} and its {same parts} {parts_n}, {it} {same does}""",

    # What was hoped or feared, and what came.
    "hedge": """
        any2  I expected a {flip film} {genre} and got a {same film} one
        any   I expected to be {flip felt}, but I was {same felt}
        any2  it could have been {flip film}; instead it is {same film}
        any   the {work} was {flip film}; the film is {same film}
        any   what begins as a {flip film} {genre} soon turns into a {same film} one
        pos   I feared a {flip film} {genre}, but {same core}
        neg   I hoped for a {flip film} {genre}, but {same core}
        pos   I expected to hate it, but {same core}
        neg   I expected to love it, but {same core}
        pos   {it} threatens to turn {flip mild}, but never does
        neg   {it} promises to be {flip mild}, but never is
        neg   {it} is almost {flip mild}, but never quite gets there
        neg   this could have been a {flip film} {genre}, had anyone taken the trouble""",

    # Who says so, and whether they are right.
    "hearsay": """
        any2  {source} told me that it was {flip film}; they were wrong
        any2  {source} told me that it was {same film}; they were right
        any   {source} called it {flip film}, and they were wrong
        any   {source} called it {same film}, and they were right
        any   {source} may call it {flip film}; I do not agree
        any   do not believe {source} when they call it {flip film}
        any   believe {source} when they call it {same film}
        any   {source} said that I would be {flip felt}; I was not
        any   whoever called it {flip film} must have seen another film""",
    "compare": """
        any   {it} is as {same film} as the {work} was {flip film}
        any   where the {work} was {flip film}, this is {same film}
        any   unlike {director}'s {flip film} {nth} feature, this one is {same film}
        any   the {work} was {flip mild}, which the film is not
        pos   {it} is far better than the {some film} {work} suggests
        neg   {it} is far worse than the {some film} {work} suggests
        any   {it} is nowhere near as {flip mild} as the {work} suggests""",

    # The sentence that decides the label, and one that may follow and agrees.
    "verdict": """
        any11 {same plain}
        any3  {same phrase}
        any5  {same negation}
        any4  {same contrast}
        any4  {same concord}
        any3  {same hedge}
        any2  {same hearsay}
        any2  {same compare}
        any   {overall}, {same core}""",
    "agree": """
        any3  {same advice}
        any   I {same reacted}
        any   {same phrase}
        any   {same negation}""",
    # The film again, after an opinion about something else.
    "itself": """
        any   the film itself is {very}{same film}
        any   the film itself {same does}
        any   the film itself is not {flip mild}
        any   the film itself never {flip acts}""",

    "plan": """
        any3  {same verdict}.
        any4  {aside}. {same verdict}.
        any4  {plot}. {same verdict}.
        any3  {same verdict}. {aside}.
        any   {same verdict}. {plot}.
        any3  {same verdict}. {same agree}.
        any2  {plot}. {aside}. {same verdict}.
        any2  {aside}. {plot}. {same verdict}. {same agree}.
        any   {aside}. {plot}. {same verdict}.
        any   {plot}. {plot_more}. {same verdict}. {aside}.
        any   {same verdict}. {tangent}.
        any2  {tangent}. {same itself}.
        any   {flip aspect}. {flip aspect}. {still}, {same core}.
        any   {plot}. {flip aspect}, I admit, and {flip aspect}. {still}, {same core}.
        any   {aside}. {flip aspect}. {overall}, though, {same core}. {same agree}.
        any2  {plot}. {same aspect}. {same aspect}. {overall}, {same core}.
        any2  {aside}. {same aspect}. {same core}. {same agree}.""",
}

FILLER = {
    "plot": """a {sort} {role} {travels} {place} to {seeks} a {owned} {thing};a {sort} {role} {meets} a {role} in {place};
        {forename}, a {sort} {role}, {goes} {place};the story follows a {role} who {meets} a {sort} {role};
        in {place}, a {role} tries to {seeks} a {owned} {thing};the year is not given, but a {role} {goes} {place} during {era};
        it is a {nation} {genre} about a {role} and a {owned} {thing};a {role} and a {role} {seeks} a {thing} during {era};
        {forename} is a {role}, {forename} a {sort} {role}, and both of them want the same {thing};
        it is set in {place} during {era}""",
    "plot_more": """the {thing} turns out to belong to a {role};a {role} {meets} a {sort} {role} on the way;
        there is also a {role} with a {owned} {thing};{several} years later, a {role} knocks at the door;
        meanwhile a {sort} {role} {goes} {place}""",
    # An opinion about something else.
    "tangent": """the {before} was {very}{some film};the {before} was {some mild};
        my {relation}, who calls every {genre} {some film}, {absent};
        my {relation}, who calls everything {some film}, {absent}""",
    "aside": """I saw it at {venue} in {city};I saw it {when};I went {when} with {company};we ate {food} in the {seat};
        it runs for {minutes} minutes;{forename} {surname} wrote it and {forename} {director} directed it;
        {forename} {surname} plays the {role};it was shot in {medium};it was filmed in {city} in {medium};it opened {when};
        the curtain was {colour} and the seats were {colour};this is {director}'s {nth} film;there are {several} songs in it;
        the {tongue} subtitles are {colour};{surname} also plays a {role};the credits list {several} people called {surname};
        a {role} sat beside me and ate {food};the screening began {several} minutes late;{surname} used to be a {role};
        the poster shows a {colour} {thing};it was my {nth} visit to {venue};everyone in it speaks {tongue}""",
}

# ---------------------------------------------------------------- pairs: questions / what answers them, subject by subject

# Of whatever the NEUTRAL nouns of a kind name; BE is "is" or "are", KIND has the polarity of a coin.
OPINION = """what BE the NOUN like;BE the NOUN any good;what about the NOUN;how did you find the NOUN
    / the NOUN BE {very}{same KIND};the NOUN BE {same KIND} and {same KIND};I found the NOUN {very}{same KIND};
    {same KIND} is the word for the NOUN"""
FACTS = {
    "when": "when was that;when did you go / I saw it {when};I went {when};it was {when} that I saw it",
    "company": "who was with you;who went with you / I went with {company};{company} sat beside me",
    "venue": "where was it on;where did you see it / I saw it at {venue};it was on at {venue} in {city};it was at {venue}",
    "seats": "which seats were yours;which seats had you / we sat in the {seat};the {colour} seats of the {seat} were ours",
    "food": "what did you eat;what was there to eat / we ate {food};there was nothing but {food} to eat",
    "director": "who directed it;who was the director / {forename} {director} directed it;this is {director}'s {nth} film",
    "author": "who wrote it;who was the author / {forename} {surname} wrote it;it was {forename} {surname} who wrote it",
    "actors": "who plays in it;who is in it / {forename} {surname} plays the {role};{surname} plays a {role} in it",
    "length": "how long is it;how many minutes is it / it runs for {minutes} minutes;{minutes} minutes is what it takes",
    "medium": "how was it shot;what was it shot in / it was shot in {medium};they shot it in {medium}",
    "place": "where is it set;in which place is it set / it is set in {place};all of it is set in {place}",
    "era": "what time is it set in;during what is it set / it is set during {era};all of it is set during {era}",
    "hero": "who is it about;whose story is it / it is about a {sort} {role};the story follows a {sort} {role}",
    "prize": "what do they want;what is it that they want / they want a {owned} {thing};all of them want the {owned} {thing}",
    "tongue": "what do they speak;which language is it in / everyone in it speaks {tongue};it is in {tongue}",
}
BESIDE = "my {relation} {absent}"        # about nothing that anybody asks

# ---------------------------------------------------------------- the grammar, and how it writes

Key = tuple[str, int]                   # a symbol and its polarity: +1, -1, or 0 where it has none
SLOT = re.compile(r"\{(?:(same|flip|some) )?(\w+)\}")
AN = re.compile(r"\b(a) (?=(?!one\b|one-|uni[^nm]|use|usual|euro)[aeiou]|hour|honest|heir)", re.I)
START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")


def words(text: str) -> list[str]:
    """A word list: separated by semicolons where it has any (a blank before one counts), else by blanks."""
    if ";" in text:
        return [re.sub(r"\s*\n\s*", "", w) for w in text.split(";")]
    return text.split()


def grammar() -> dict[Key, list[str]]:
    """Every symbol and polarity -> its alternatives, each a template. A weight is a repetition; the three forms of a line
    with @ count as one line, so every other line is taken three times."""
    table: dict[Key, list[str]] = {}
    for name, (praise, blame) in POLAR.items():
        table[name, +1], table[name, -1] = words(praise), words(blame)
    for name, text in (NEUTRAL | FILLER).items():
        table[name, 0] = words(text)
    for name, lines in RULES.items():
        for mark, template in (line.strip().split(None, 1) for line in lines.strip().splitlines()):
            forms = [template.replace("@", g) for g in ("writing", "acting", "craft")] if "@" in template else [template] * 3
            for p in {"any": (+1, -1), "pos": (+1,), "neg": (-1,)}[mark[:3]]:
                table.setdefault((name, p), []).extend(forms * int(mark[3:] or 1))
    return table


GRAMMAR = grammar()


class Pen:
    """Writes one review, and remembers it: a phrase is not used twice where there are others, and `ONCE` symbols keep their
    first choice, so that a comedy stays a comedy. Of rng only `random` is drawn, whose sequence no Python version changes."""

    def __init__(self, rng: Random):
        self.rng, self.used, self.once = rng, set(), {}

    def pick(self, key: Key) -> str:
        options = GRAMMAR[key]
        for _ in range(4):
            choice = options[int(self.rng.random() * len(options))]
            if choice not in self.used:
                break
        self.used.add(choice)
        return choice

    def fill(self, template: str, p: int = 0) -> str:
        """The template with every slot written out: `same` passes p on, `flip` passes -p, `some` tosses a coin."""
        def slot(match: re.Match) -> str:
            turn, name = match.groups()
            if name in self.once:
                return self.once[name]
            q = {None: 0, "same": p, "flip": -p}[turn] if turn != "some" else 1 if self.rng.random() < 0.5 else -1
            choice = self.pick((name, q))
            text = self.fill(choice, q) if "{" in choice else choice
            if name in ONCE:
                self.once[name] = text
            return text

        return SLOT.sub(slot, template)


def write(symbol: str, p: int, rng: Random) -> str:
    """A phrase of the symbol with polarity p, with "a" or "an" as the next word asks."""
    return AN.sub(r"\1n ", Pen(rng).fill(f"{{same {symbol}}}", p))


def review(p: int, rng: Random) -> str:
    """A whole review of polarity p: sentence capitals, now and then none at all, as people type."""
    text = START.sub(lambda m: m[0].upper(), write("plan", p, rng))
    dress = rng.random()
    return text.lower() if dress < 0.12 else text[:-1] + "!" if dress < 0.2 else text


def stream(seed: int) -> Iterator[Example]:
    """The rows of a seed, one after another, no two alike; of rows 2k and 2k + 1 a coin makes one praise, the other blame."""
    seen: set[str] = set()
    for i in range(LIMIT):
        coin = Random(f"reviews {seed} pair {i // 2}").random() < 0.5
        label = (i + coin) % 2
        rng = Random(f"reviews {seed} row {i}")
        for _ in range(TRIES):
            text = review(2 * label - 1, rng)
            if text.lower() not in seen and SHORTEST <= len(text.split()) <= LONGEST:
                break
        else:
            raise BadInput(f"reviews: seed {seed} gave no new text for row {i} in {TRIES} tries; ask for at most {i} rows")
        seen.add(text.lower())
        yield Example(f"reviews-{seed}-{i}", text, label)


def reviews(n: int, seed: int, *, start: int = 0) -> Examples:
    """Rows start .. start + n - 1 of the seed. A row depends on the seed and its number alone, never on n or start."""
    return _some("reviews", stream(seed), n, start, LABELS)


def splits(seed: int, train: int, dev: int, test: int) -> tuple[Examples, Examples, Examples]:
    """Three parts of one seed's rows, in this order. All rows of a seed differ, so no text is in two parts; rows of two
    different seeds may agree in a short text now and then, so take what must be disjoint from one seed."""
    return _parts("reviews", reviews, seed, train, dev, test)


def _some(name: str, rows: Iterator[Example], n: int, start: int, labels: tuple[str, ...]) -> Examples:
    if n < 0 or start < 0 or start + n > LIMIT:
        raise BadInput(f"{name}: {n} rows from row {start} leave a seed's 0 to {LIMIT:,}; ask for fewer or take another seed")
    return Examples(islice(rows, start, start + n), labels)


def _parts(name: str, some: Callable[[int, int], Examples], seed: int, train: int, dev: int, test: int) -> tuple[Examples, Examples, Examples]:
    for part, n in (("train", train), ("dev", dev), ("test", test)):
        if n < 0:
            raise BadInput(f"{name}: {part} = {n} rows is below 0; ask for 0 or more")
    rows = some(train + dev + test, seed)
    return rows.like(rows[:train]), rows.like(rows[train:train + dev]), rows.like(rows[train + dev:])


# ---------------------------------------------------------------- sentence pairs

def subjects() -> dict[str, dict[str, tuple[list[str], list[str]]]]:
    """Kind -> subject -> its questions and what answers them, templates all."""
    opinions = {noun: OPINION.replace("NOUN", noun).replace("KIND", kind).replace("BE", "are" if kind == "parts" else "is")
                for kind in ("writing", "acting", "craft", "parts") for noun in words(NEUTRAL[f"{kind}_n"])}
    return {kind: {subject: tuple(words(side.strip()) for side in text.split("/")) for subject, text in of.items()}
            for kind, of in (("opinion", opinions), ("fact", FACTS))}


ASKED = subjects()


def pick(rng: Random, options: Iterable[str]) -> str:
    options = list(options)
    return options[int(rng.random() * len(options))]


def two_subjects(same: bool, rng: Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """(kind, subject) of the question and of the statement. Each is uniform over the kinds, and over a kind's subjects, whatever `same`."""
    kind, other = ("opinion", "fact") if rng.random() < 0.5 else ("fact", "opinion")
    asked = kind, pick(rng, ASKED[kind])
    return asked, asked if same else (other, pick(rng, ASKED[other]))


def question_and_statement(asked: tuple[str, str], told: tuple[str, str], rng: Random) -> tuple[str, str]:
    """Both texts. Beside every other statement, before or behind it, stands one that answers nothing."""
    pen = Pen(rng)
    (questions, _), (_, statements) = (ASKED[kind][subject] for kind, subject in (asked, told))
    said = [pen.fill(pick(rng, statements), 1 if rng.random() < 0.5 else -1)]
    place = rng.random()
    if place < 0.5:
        said.insert(place < 0.25, pen.fill(BESIDE))
    texts = pick(rng, questions) + "?", ". ".join(said) + "."
    return tuple(START.sub(lambda m: m[0].upper(), AN.sub(r"\1n ", text)) for text in texts)


def stream_pairs(seed: int) -> Iterator[Example]:
    """The pairs of a seed, one after another, no two alike; of rows 2k and 2k + 1 a coin makes one answered, the other not."""
    seen: set[tuple[str, str]] = set()
    for i in range(LIMIT):
        coin = Random(f"pairs {seed} pair {i // 2}").random() < 0.5
        label = (i + coin) % 2
        rng = Random(f"pairs {seed} row {i}")
        asked, told = two_subjects(bool(label), rng)            # kept while the row is rewritten: no label prefers some subjects
        for _ in range(TRIES):
            texts = question_and_statement(asked, told, rng)
            if texts not in seen:
                break
        else:
            raise BadInput(f"pairs: seed {seed} gave no new pair for row {i} in {TRIES} tries; ask for at most {i} rows")
        seen.add(texts)
        yield Example(f"pairs-{seed}-{i}", texts[0], label, texts[1])


def pairs(n: int, seed: int, *, start: int = 0) -> Examples:
    """Pairs start .. start + n - 1 of the seed, each a matter of the seed and its number alone."""
    return _some("pairs", stream_pairs(seed), n, start, PAIR_LABELS)


def pair_splits(seed: int, train: int, dev: int, test: int) -> tuple[Examples, Examples, Examples]:
    """Three parts of one seed's pairs, in this order; no pair is in two parts. (Questions alone are: there are some hundreds.)"""
    return _parts("pairs", pairs, seed, train, dev, test)
