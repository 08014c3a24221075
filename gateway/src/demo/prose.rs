//! What the sample model says: plain paragraphs on everyday topics, put together by a number.
//!
//! The same number gives the same text. Texts differ in topic, opening, length and order of
//! paragraphs; some hold a list, one topic holds code. They are written for this file.

/// A text of one to five paragraphs.
#[must_use]
pub fn answer(seed: u64) -> String {
    let mut draw = Draw(seed);
    let topic = draw.of(TOPICS);
    let mut paragraphs: Vec<&str> = topic.paragraphs.to_vec();
    draw.shuffle(&mut paragraphs);
    paragraphs.truncate(1 + draw.below(paragraphs.len()));
    let mut text = (*draw.of(topic.openings)).to_owned();
    for paragraph in paragraphs {
        text.push_str("\n\n");
        text.push_str(paragraph);
    }
    if draw.below(2) == 0 {
        text.push_str("\n\n");
        let closing: &&str = draw.of(CLOSINGS);
        text.push_str(closing);
    }
    text
}

/// What a reasoning model thinks before it says [`answer`] of the same number.
#[must_use]
pub fn reasoning(seed: u64) -> String {
    let mut draw = Draw(seed);
    let topic = draw.of(TOPICS);
    let mut thoughts: Vec<&str> = THOUGHTS.to_vec();
    draw.shuffle(&mut thoughts);
    thoughts.truncate(2 + draw.below(3));
    format!("The question seems to be about {}. {}", topic.name, thoughts.join(" "))
}

/// What is said once a tool has answered.
#[must_use]
pub fn after_tool(seed: u64) -> String {
    (*Draw(seed).of(AFTER_TOOL)).to_owned()
}

/// A chain of numbers from one (SplitMix64, Steele, Lea and Flood, 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is a small one: the bias of the remainder is nothing here.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or_default()
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

struct Topic {
    name: &'static str,
    openings: &'static [&'static str],
    paragraphs: &'static [&'static str],
}

const CLOSINGS: &[&str] = &[
    "If you tell me a bit more about your situation, I can make this more specific.",
    "I'd start small, see what works for you, and change one thing at a time.",
    "Does that help? I'm happy to go into any of these points in more detail.",
    "None of this has to be perfect; a simple plan that you keep is better than a clever one that you don't.",
];

const THOUGHTS: &[&str] = &[
    "I should give a direct answer first and the reasons after it.",
    "There are a few common mistakes here, so it's worth naming them.",
    "I don't know how much experience they have, so I will avoid special terms.",
    "A short example would probably make this clearer than a long explanation.",
    "Let me check that the steps are in the right order before I write them down.",
    "It could be useful to mention what to do when the first attempt fails.",
];

const AFTER_TOOL: &[&str] = &[
    "I looked that up for you: the result came back without a problem, and it's what you'd expect at this time of the year. Bring a light jacket just in case.",
    "Here is what I found. Nothing in the result stands out, so you can go ahead as planned. If it changes, I'll tell you what to look at next.",
    "The lookup has finished. In short, it's fine, there's no reason to wait, and the details are in the result above.",
];

const TOPICS: &[Topic] = &[
    Topic {
        name: "keeping a small vegetable garden",
        openings: &[
            "A small garden doesn't need much time, but it does need regular attention.",
            "You can grow a surprising amount of food on a few square metres.",
            "Good question. Most problems in a vegetable bed start with the soil.",
        ],
        paragraphs: &[
            "Begin with the light. Tomatoes, peppers, and beans need at least six hours of direct sun, while lettuce, spinach, and most herbs are happy with less. Watch the bed for a day before you plant anything, because the shadow of a fence is often longer than you'd think.",
            "Water early in the morning and water the ground, not the leaves. It's better to soak the soil twice a week than to sprinkle it every evening. Push a finger into the earth: if it's dry down to the second joint, it is time to water, and if it isn't, you can wait.",
            "Compost is the cheapest help there is. Spread a layer about as thick as your thumb in spring and let the worms do the digging. If you don't have a heap of your own yet, many towns give it away or sell it for very little.",
            "Here's a simple order for the first year:\n\n1. Radishes and spinach as soon as the ground can be worked.\n2. Beans and courgettes once the nights are mild.\n3. Kale in late summer, so that there's something left to pick in winter.",
            "Slugs will find you sooner or later. A ring of grit helps for a while, but the best remedy is to go out after dark with a torch and collect them. You'll need to do it for a week, and after that there won't be many left.",
        ],
    },
    Topic {
        name: "baking bread at home",
        openings: &[
            "Bread needs only flour, water, salt, and time, and the time does most of the work.",
            "The loaf you describe is probably underproofed, which is easy to put right.",
            "Let's go through it step by step, since small changes make a big difference here.",
        ],
        paragraphs: &[
            "Weigh everything. A cup of flour can differ by a fifth depending on how you fill it, and that's the difference between a dough that holds its shape and one that doesn't. For a first loaf, use 500 grams of flour, 350 grams of water, 10 grams of salt, and a little yeast.",
            "You don't have to knead for long. Mix until no dry flour is left, wait half an hour, then stretch and fold the dough a few times. Do that three times over the next two hours and it'll become smooth by itself.",
            "The second rise is where most people lose patience. Press the dough gently with a wet finger: if the dent fills at once, it is not ready; if it comes back slowly, it's time for the oven; if it stays, you have waited too long and should bake it right away.",
            "Bake hot and with steam. A heavy pot with a lid works well because the water in the dough cannot escape. Take the lid off after twenty minutes, and let the crust become darker than you'd normally dare.",
            "Let the bread cool completely before you cut it. It's hard to wait, but the crumb is still setting, and a warm loaf will be gummy inside. An hour is enough for a small one.",
        ],
    },
    Topic {
        name: "planning a short train journey",
        openings: &[
            "A trip by train is easiest when you leave a little slack in the plan.",
            "It's quite doable in a weekend, and you will see more than you'd see from a plane.",
            "I'd plan this from the longest leg outwards, not from the first one.",
        ],
        paragraphs: &[
            "Book the part with a seat reservation first, because that's the one that sells out. Regional trains usually cost the same on the day, so there is no hurry with those. If two connections differ by only a few minutes, choose the one with the longer change.",
            "Travel light. One bag that fits over your seat means you can change platforms quickly, and you won't have to watch a rack at every stop. Put the ticket, some water, and a book in a pocket that you can reach.",
            "Sit on the side with the view. On lines that follow a river or a coast it makes a real difference, and it's worth asking at the counter or looking at a map the evening before.",
            "If a train is late, don't rush. Your ticket normally remains valid on the next one when you miss a connection through no fault of your own, but you should ask the staff to confirm it. They are far more helpful to people who aren't shouting.",
            "Leave an afternoon free at the far end. The best part of a short journey is often a street you hadn't planned to walk down, and it can't happen if every hour is taken.",
        ],
    },
    Topic {
        name: "sleeping better",
        openings: &[
            "Most advice on sleep comes down to rhythm, light, and temperature.",
            "You're not alone with this; many people sleep badly for a few weeks every year.",
            "There isn't one trick, but a few habits together usually help.",
        ],
        paragraphs: &[
            "Get up at the same time every day, also at the weekend. It is more important than when you go to bed, since the morning sets the clock for the following night. After about two weeks you'll notice that you become tired at a regular hour.",
            "Go outside in the morning, even when it's cloudy. Daylight is many times brighter than a lamp, and your body needs that signal. Ten minutes on the way to work are a good start.",
            "Keep the bedroom cool and dark. Around eighteen degrees is comfortable for most people. If you can't darken the window, a simple mask does the job and doesn't cost much.",
            "Coffee stays in the blood longer than it feels. If you drink a cup at four, roughly half of it is still there at ten. Try to have the last one at lunch for a week, and see whether it makes a difference for you.",
            "When you can't fall asleep, don't stay in bed and fight. Get up, read something dull in another room, and go back when you're tired. If it lasts longer than a month, it's worth talking to a doctor.",
        ],
    },
    Topic {
        name: "counting words with a short program",
        openings: &[
            "You can do this with the standard library alone.",
            "Here's a small program that does it, followed by a few notes.",
            "The idea is simple: split the text, count the pieces, and show the largest counts.",
        ],
        paragraphs: &[
            "```python\nfrom collections import Counter\nimport re\n\ndef top_words(text, count=10):\n    words = re.findall(r\"[a-z']+\", text.lower())\n    return Counter(words).most_common(count)\n\nprint(top_words(open(\"notes.txt\").read()))\n```",
            "The pattern keeps apostrophes, so that `don't` is counted as one word. If your text isn't English, use `\\w+` instead, because it also matches letters with accents.",
            "For a very large file you shouldn't read everything at once. Go through it line by line and call `update` on the counter; it'll need only as much memory as there are different words.",
            "Common words such as *the*, *and*, or *of* will be at the top of the list. You can leave them out with a small set, but keep in mind that what counts as common depends on the text.",
            "It's worth writing one test with a sentence of your own. Choose a sentence in which a word occurs twice, once in capitals, so that you know the case is handled.",
        ],
    },
    Topic {
        name: "learning an instrument as an adult",
        openings: &[
            "It's never too late, and adults have one advantage: they know why they're doing it.",
            "Twenty minutes a day is enough to make steady progress.",
            "The first three months are the hard part, so let's make them easy.",
        ],
        paragraphs: &[
            "Practise a little every day instead of a lot on Sunday. Your hands learn while you rest, so five short sessions are worth more than one long one. Leave the instrument out of its case, where you can see it.",
            "Play slowly. If you can't play a passage without a mistake, you are playing it too fast. Use a metronome, begin at half the speed, and only go up when you have played it correctly three times in a row.",
            "Choose one piece that you really want to play, and one that is good for you. The first keeps you going, and the second gives you what you need for it. It doesn't matter if the first takes half a year.",
            "A teacher is a great help at the beginning, even if it's only once a month. Bad habits are easy to learn and hard to lose, and you won't see most of them yourself.",
            "Record yourself now and then. It isn't pleasant to listen to, but you'll hear things that you don't notice while you play. Keep the recordings: in a year you will be surprised.",
        ],
    },
    Topic {
        name: "saving energy in an old flat",
        openings: &[
            "Even in a rented flat there's quite a lot that you can do.",
            "Heating is by far the largest part, so it makes sense to begin there.",
            "I'd look at this in the order of what costs nothing, what costs little, and what needs the landlord.",
        ],
        paragraphs: &[
            "Find the draughts first. On a windy day, hold a candle near the window frames and the door, and watch the flame. A roll of sealing tape is cheap, it takes an hour to fit, and it often makes the biggest difference of all.",
            "Lower the temperature by one degree and see whether you notice. Each degree saves about six per cent of the heating. In rooms you don't use you can go lower, but don't let them become so cold that the walls get damp.",
            "Open the windows wide for five minutes, several times a day, instead of leaving one tilted. The air is changed while the walls stay warm, and you'll have less trouble with mould.",
            "Washing at thirty degrees is fine for almost everything that isn't very dirty. Fill the machine, use the slow programme, and let the laundry dry on a line when the weather allows it.",
            "Measure before you replace anything. A plug-in meter shows within a day which device uses power when you think it's off. Old fridges, aquariums, and game consoles are the usual suspects.",
        ],
    },
    Topic {
        name: "preparing for a job interview",
        openings: &[
            "Preparation is mostly a matter of having a few good stories ready.",
            "It's normal to be nervous, and a bit of structure helps a lot.",
            "An interview is a conversation with two sides, so prepare for both of them.",
        ],
        paragraphs: &[
            "Read the advertisement line by line and write down, for each requirement, one thing you have done that shows it. You'll need perhaps eight of these stories. Keep each of them short: what the problem was, what you did, and how it ended.",
            "Think about the question you'd rather not be asked, and prepare an honest answer to it. If there's a gap or a project that went wrong, say so in two sentences and then say what you've learnt.",
            "Prepare questions of your own. Ask what a normal week looks like, how decisions are made, and what the last person in the role went on to do. The answers tell you a lot, and they show that you're serious.",
            "Practise aloud, with a friend if possible. What sounds clear in your head is often too long when it is spoken. Two minutes is a good length for most answers, and a pause before you begin is fine.",
            "Afterwards, write down what was asked while you still remember it. Whatever the result, it will make the next one easier, and it's a good basis for a short note of thanks.",
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_number_says_the_same() {
        for seed in [0, 1, u64::MAX] {
            assert_eq!(answer(seed), answer(seed));
            assert_eq!(reasoning(seed), reasoning(seed));
            assert_eq!(after_tool(seed), after_tool(seed));
        }
    }

    #[test]
    fn texts_vary_in_content_and_length() {
        let texts: Vec<String> = (0..500).map(answer).collect();
        let different: HashSet<&String> = texts.iter().collect();
        assert!(different.len() > 400, "{}", different.len());
        let lengths = texts.iter().map(String::len);
        assert!(lengths.clone().min().unwrap() < 500 && lengths.max().unwrap() > 1200);
        for topic in TOPICS {
            let opened =
                texts.iter().filter(|text| topic.openings.iter().any(|o| text.starts_with(o)));
            assert!(opened.count() > 20, "{} is hardly ever chosen", topic.name);
        }
    }

    #[test]
    fn thoughts_are_about_the_answers_topic() {
        for seed in 0..50 {
            let (said, thought) = (answer(seed), reasoning(seed));
            let topic = TOPICS.iter().find(|topic| thought.contains(topic.name)).unwrap();
            assert!(topic.openings.iter().any(|opening| said.starts_with(opening)));
        }
    }
}
