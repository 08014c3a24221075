//! Plain sentences for prompts and answers, written for this file.
//!
//! Answers have to be prose: marks go between words and into wordings, and lists of random words
//! have few places for them.

use crate::prompt::Random;

/// Sentences of an answer, with the wordings that everyday English has.
const SAID: &[&str] = &[
    "It's a good idea to begin with the smallest part of the work, because you will see at once whether it holds.",
    "There is no single answer to this, but a few rules help in most cases.",
    "For example, a report that takes ten minutes should not be made again for each reader.",
    "You don't have to decide everything today, and you can't know everything either.",
    "The first step is usually the hardest, so let's take it slowly.",
    "Most people do not notice the difference between the two until something goes wrong.",
    "In addition, a short list of what was tried, what worked, and what did not work saves time later.",
    "If the numbers aren't clear, ask the person who wrote them down.",
    "This is often enough, and it is easy to check by hand.",
    "We have seen that small teams are quick, careful, and cheap, but they cannot do everything at once.",
    "However, it isn't always possible to wait for the others.",
    "You're going to need a little patience, some paper, and an hour without calls.",
    "That is why the second attempt is usually better than the first.",
    "As a result, the whole process becomes simpler, cheaper, and more reliable.",
    "Here is a way to look at it: what would you do if there were no deadline?",
    "They will not mind a plain answer, provided that it is honest.",
    "I would suggest that you start with the oldest file, since nobody has opened it for years.",
    "Therefore, the plan should not depend on any one of them.",
    "It doesn't matter whether the table is long or short, as long as it is complete.",
    "Nevertheless, keep a copy somewhere, because things do get lost.",
];

/// Sentences of a prompt.
const ASKED: &[&str] = &[
    "Could you help me to put the following notes into order?",
    "Last week our supplier sent three boxes too many and wanted them back.",
    "My neighbour says that the fence has to be moved by half a metre.",
    "The meeting was moved from Tuesday to Friday without any reason.",
    "I have a list of forty customers, and nine of them have not paid yet.",
    "The second chapter repeats most of what the first one said.",
    "Nobody in the office knows how the old machine was set up.",
    "We would like to spend less on heating, but the windows are from 1974.",
    "The train leaves at ten past six, which is too early for the children.",
    "She wrote back that the contract ends in March unless we object.",
    "What would be a polite way to say that we cannot come?",
    "The soup was fine, the main course was late, and the bill was wrong.",
    "In the spreadsheet there is a column with dates that sort in the wrong order.",
    "Our club has sixty members, of whom perhaps twenty come to anything.",
    "The doctor said that a walk in the evening would do him good.",
    "Please keep the tone friendly, and do not make it longer than a page.",
    "The library is closed on Mondays, so the books are due on the next day.",
    "He bought a second-hand bicycle and now the gears do not shift.",
    "The landlord has promised a new boiler since the spring.",
    "I tried to follow the recipe, but the dough stayed flat.",
    "The figures of the two departments do not add up to the total.",
    "My daughter has to give a talk about rivers in front of her class.",
    "There was a misprint on the invitation, and two guests came a day early.",
    "Which of the three offers would you take, and what would you ask before?",
    "The garden is mostly in the shade, apart from a strip along the wall.",
    "Our old printer takes a minute for each page and is very loud.",
    "The choir sings in the town hall on the first Sunday of the month.",
    "A friend of mine moved to the coast and misses the mountains.",
    "It rained so much that the cellar was under water for two days.",
    "The manual says to press both buttons, but there is only one.",
    "We have agreed on blue for the doors and on nothing else so far.",
    "The insurance wants a list of everything that was in the room.",
];

/// Words of an answer of at least `words` words, with what stands between them: the first has
/// nothing before it.
#[must_use]
pub fn answer(seed: u64, words: usize) -> Vec<String> {
    let mut random = Random::new(seed);
    let mut pieces: Vec<String> = Vec::new();
    while pieces.len() < words {
        for word in SAID[random.below(SAID.len())].split(' ') {
            let before = if pieces.is_empty() { "" } else { " " };
            pieces.push(format!("{before}{word}"));
        }
    }
    pieces
}

/// A prompt of exactly `bytes` bytes (all of them ASCII) that no other seed gives.
#[must_use]
pub fn prompt(seed: u64, bytes: usize) -> String {
    let mut random = Random::new(seed);
    let mut text = format!("Note {seed}.");
    while text.len() < bytes {
        text.push(' ');
        text.push_str(ASKED[random.below(ASKED.len())]);
        if random.below(4) == 0 {
            text.push_str(&format!(" That makes {}.", random.below(100_000)));
        }
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_can_stand_in_json() {
        for sentence in SAID.iter().chain(ASKED) {
            assert_eq!(serde_json::to_string(sentence).unwrap(), format!("\"{sentence}\""));
            assert!(sentence.is_ascii() && sentence.ends_with(['.', '?']), "{sentence}");
        }
    }

    #[test]
    fn texts_have_the_stated_length_and_differ() {
        assert_eq!(prompt(1, 1900).len(), 1900);
        assert_ne!(prompt(1, 1900), prompt(2, 1900));
        let said = answer(1, 100);
        assert!(said.len() >= 100);
        assert!(said[1..].iter().all(|piece| piece.starts_with(' ')));
    }
}
