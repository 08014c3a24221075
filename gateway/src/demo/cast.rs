//! Who takes part in the live show, and what they ask.
//!
//! The customers are as different as customers are. The campaign is what an operator of one does:
//! one program with one template fills in question after question, asks for the reasoning, and
//! spreads the work over many keys and a few networks next to one another. Addresses are from
//! ranges that are kept for documentation and benchmarks, so no real network is accused of anything;
//! the batch job's is a cloud's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Make;

/// Tokens that the campaign asks for at most in one answer.
const CAMPAIGN_TOKENS: u32 = 400;

/// Somebody with a key.
pub struct Sender {
    /// Who it is, in words.
    pub name: &'static str,
    /// The credential.
    pub key: String,
    /// Address.
    pub address: IpAddr,
    /// TLS.
    pub make: Make,
    /// What it does.
    pub part: Part,
    /// Pause between an answer and the next request.
    pub pause: Duration,
}

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A person in a conversation that grows.
    Chat,
    /// A coding agent: a system prompt, tools, and their results.
    Agent,
    /// A job that labels tickets, one template.
    Batch,
    /// An application that wants JSON.
    Json,
    /// A writing assistant on Anthropic's API.
    Messages,
    /// A quiz on Gemini's API.
    Gemini,
    /// Research with a reasoning model on the Responses API.
    Research,
    /// Suggestions as somebody types, on the legacy API.
    Completions,
    /// One key of the campaign, by its number.
    Campaign(usize),
}

/// A request as it is written.
pub struct Asked {
    /// Path and query.
    pub path: &'static str,
    /// Header fields, the credential among them.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
    /// What the person or program said.
    pub prompt: String,
}

/// Everybody who is no campaign.
#[must_use]
pub fn customers(key: impl Fn() -> String) -> Vec<Sender> {
    let home = |third, last| IpAddr::V4(Ipv4Addr::new(198, 19, third, last));
    let sender = |name, address, make, part, pause_ms| Sender {
        name,
        key: key(),
        address,
        make,
        part,
        pause: Duration::from_millis(pause_ms),
    };
    let cloud = IpAddr::V4(Ipv4Addr::new(34, 107, 17, 9));
    let office = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 9));
    vec![
        sender("chat user", home(3, 21), Make::Plain, Part::Chat, 3_000),
        sender("coding agent", home(44, 8), Make::Plain, Part::Agent, 900),
        sender("batch job in a cloud", cloud, Make::Old, Part::Batch, 500),
        sender("app that wants JSON", home(97, 130), Make::Old, Part::Json, 1_300),
        sender("writing assistant", office, Make::Plain, Part::Messages, 2_500),
        sender("quiz on Gemini's API", home(140, 77), Make::Plain, Part::Gemini, 1_900),
        sender("research on Responses", home(201, 5), Make::Plain, Part::Research, 2_200),
        sender("suggestions in an editor", home(230, 61), Make::Old, Part::Completions, 700),
    ]
}

/// The campaign's keys, in the order in which they come.
#[must_use]
pub fn campaign(keys: usize, key: impl Fn() -> String) -> Vec<Sender> {
    (0..keys)
        .map(|number| {
            let octet = |number: usize| u8::try_from(number % 200).unwrap_or(0);
            let address = Ipv4Addr::new(198, 18, 64 + octet(number % 3), 10 + octet(number * 7));
            Sender {
                name: "campaign",
                key: key(),
                address: IpAddr::V4(address),
                make: Make::Rare,
                part: Part::Campaign(number),
                pause: Duration::from_millis(250),
            }
        })
        .collect()
}

impl Sender {
    /// The next request; `said` is what was asked and answered before.
    #[must_use]
    pub fn ask(&self, step: usize, said: &[(String, String)]) -> Asked {
        let bearer = ("authorization", format!("Bearer {}", self.key));
        let json_type = ("content-type", "application/json".to_owned());
        let agent = |name: &str| ("user-agent", name.to_owned());
        let chat = "/v1/chat/completions";
        let of = |list: &[&'static str]| list.get(step % list.len()).copied().unwrap_or_default();
        let (path, headers, prompt, mut body) = match self.part {
            Part::Chat => {
                let prompt = of(CHAT).to_owned();
                let mut messages: Vec<Value> = Vec::new();
                for (asked, answered) in said {
                    messages.push(json!({ "role": "user", "content": asked }));
                    messages.push(json!({ "role": "assistant", "content": answered }));
                }
                messages.push(json!({ "role": "user", "content": prompt }));
                let headers = vec![agent("Harbour/3.1"), bearer, json_type];
                let body = json!({ "model": "sample-large", "messages": messages, "stream": true });
                (chat, headers, prompt, body)
            }
            Part::Agent => {
                let prompt = of(CODE).to_owned();
                let tool = json!({ "type": "function", "function": {
                    "name": "read_file", "description": "Reads a file of the project",
                    "parameters": { "type": "object", "properties": { "path": { "type": "string" } } },
                } });
                let call = json!({ "id": "call_1", "type": "function", "function": {
                    "name": "read_file", "arguments": "{\"path\":\"src/main.rs\"}",
                } });
                let mut messages = vec![
                    json!({ "role": "system", "content": "You are the coding agent of the Quay editor. Read before you write, and keep changes small." }),
                    json!({ "role": "user", "content": prompt }),
                ];
                // Every other request hands a tool's result back.
                if step % 2 == 1 {
                    messages.push(
                        json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
                    );
                    messages.push(json!({ "role": "tool", "tool_call_id": "call_1", "content": "fn main() { run(); }" }));
                }
                let headers = vec![bearer, json_type, agent("quay-agent/0.9 (linux)")];
                let body = json!({
                    "model": "sample-large", "messages": messages, "tools": [tool], "stream": true,
                    "temperature": 0.0, "max_tokens": 2048,
                });
                (chat, headers, prompt, body)
            }
            Part::Batch => {
                let prompt = format!(
                    "Say in one sentence which department should answer this ticket.\n\n{}",
                    of(TICKETS)
                );
                let headers = vec![json_type, bearer, agent("ticket-sorter/2")];
                let messages = json!([{ "role": "user", "content": prompt }]);
                let body =
                    json!({ "model": "sample-small", "messages": messages, "max_tokens": 60 });
                (chat, headers, prompt, body)
            }
            Part::Json => {
                let prompt = format!("Extract the order from this message: {}", of(ORDERS));
                let headers = vec![agent("orderdesk/5.2"), json_type, bearer];
                let schema = json!({ "type": "object", "properties": {
                    "article": { "type": "string" }, "count": { "type": "integer" },
                } });
                let body = json!({
                    "model": "sample-small", "stream": true,
                    "messages": [{ "role": "user", "content": prompt }],
                    "response_format": { "type": "json_schema",
                        "json_schema": { "name": "order", "schema": schema } },
                });
                (chat, headers, prompt, body)
            }
            Part::Messages => {
                let prompt = of(LETTERS).to_owned();
                let version = ("anthropic-version", "2023-06-01".to_owned());
                let headers =
                    vec![("x-api-key", self.key.clone()), version, agent("Lettera/1.4"), json_type];
                let body = json!({
                    "model": "sample-large", "max_tokens": 700, "stream": true,
                    "messages": [{ "role": "user", "content": prompt }],
                });
                ("/v1/messages", headers, prompt, body)
            }
            Part::Gemini => {
                let prompt = of(QUIZ).to_owned();
                let headers =
                    vec![json_type, ("x-goog-api-key", self.key.clone()), agent("quizzical/7")];
                let body = json!({
                    "contents": [{ "role": "user", "parts": [{ "text": prompt }] }],
                    "generationConfig": { "temperature": 0.9 },
                });
                let path = "/v1beta/models/sample-small:streamGenerateContent?alt=sse";
                (path, headers, prompt, body)
            }
            Part::Research => {
                let prompt = of(RESEARCH).to_owned();
                let headers = vec![agent("fieldnotes/0.3"), bearer, json_type];
                let body = json!({
                    "model": "sample-large", "input": prompt, "stream": true,
                    "reasoning": { "effort": "low" },
                });
                ("/v1/responses", headers, prompt, body)
            }
            Part::Completions => {
                let prompt = of(BEGINNINGS).to_owned();
                let headers = vec![bearer, agent("inline-suggest/11"), json_type];
                let body = json!({ "model": "sample-small", "prompt": prompt, "max_tokens": 24 });
                ("/v1/completions", headers, prompt, body)
            }
            Part::Campaign(number) => {
                let prompt = template(number, step);
                let headers = vec![
                    json_type,
                    agent("corpus-worker/1.7"),
                    ("accept", "text/event-stream".to_owned()),
                    bearer,
                ];
                let body = json!({
                    "model": "sample-large", "stream": true, "temperature": 0.8,
                    "max_tokens": CAMPAIGN_TOKENS, "reasoning_effort": "high",
                    "messages": [{ "role": "user", "content": prompt }],
                });
                (chat, headers, prompt, body)
            }
        };
        if self.part == Part::Chat {
            body["temperature"] = json!(0.7);
        }
        Asked { path, headers, body: body.to_string(), prompt }
    }
}

/// The campaign's template with a question that no other key asks.
fn template(number: usize, step: usize) -> String {
    let pick = |list: &[&'static str], place: usize| list.get(place % list.len()).copied();
    let count = number * 31 + step;
    let verb = pick(SEED_VERBS, count).unwrap_or_default();
    let thing = pick(SEED_THINGS, count / SEED_VERBS.len() + number).unwrap_or_default();
    format!(
        "You help a student who wants to understand. Think step by step and lay out your complete \
         reasoning trace before you answer.\n\nQuestion {count}: {verb} {thing}?\n\nNumber each \
         step of your reasoning, do not skip any steps, then state the final answer."
    )
}

const SEED_VERBS: &[&str] = &[
    "What is the best way to plan",
    "Which mistakes do beginners make with",
    "How much does it cost to begin with",
    "How would an expert explain",
    "What changes over a year with",
    "Which tools are worth having for",
    "How can one measure progress with",
];

const SEED_THINGS: &[&str] = &[
    "a small vegetable garden",
    "bread with a long rise",
    "a journey by night train",
    "sleep during shift work",
    "a script that counts words",
    "the cello as an adult",
    "heating in an old flat",
    "an interview for a first job",
    "a balcony with little sun",
    "a weekly budget for four",
    "a bicycle for the winter",
];

const CHAT: &[&str] = &[
    "My sourdough came out flat again. What did I do wrong?",
    "The dough was in the fridge overnight, if that matters.",
    "Thanks! And how do I tell that it is ready for the oven?",
    "One more thing: does wholemeal flour need more water?",
    "Great. What would you bake next, if you were me?",
];

const CODE: &[&str] = &[
    "Use read_file to look at src/main.rs and tell me what it does.",
    "The program ends with an error when the file is empty. Find out why.",
    "Add a test for the empty file.",
    "Rename run to start everywhere.",
];

const TICKETS: &[&str] = &[
    "The parcel came without the second lamp that I paid for.",
    "I cannot sign in since I changed my telephone number.",
    "Please send the invoice to our new address in Leeds.",
    "The zip of the jacket broke after two days.",
    "Do you ship to Norway, and what does it cost?",
    "Your app shows yesterday's timetable again.",
];

const ORDERS: &[&str] = &[
    "three boxes of the blue tiles, please, to the usual address",
    "we need 12 more of the folding chairs by Friday",
    "one kettle, the small one, as a present",
    "can I have two pairs of the grey gloves?",
];

const LETTERS: &[&str] = &[
    "Write a friendly note to a neighbour who looked after my cat.",
    "Make this shorter: I would be most grateful if you could possibly let me know at some point.",
    "I need a speech of one minute for my sister's wedding.",
    "How do I turn down an invitation without hurting anybody?",
];

const QUIZ: &[&str] = &[
    "Name three rivers that begin in the Alps.",
    "Give me a hint for a quiz question on Norwegian fjords.",
    "Which composer wrote for the glass harmonica?",
    "Make up a question on the history of tea.",
];

const RESEARCH: &[&str] = &[
    "How did medieval towns keep their bread affordable?",
    "Compare what is known of two ways to insulate a stone house.",
    "Think step by step: how long would a letter from Lisbon to Riga have taken in 1750?",
    "What do we know about sleep in the time before electric light?",
];

const BEGINNINGS: &[&str] = &[
    "Dear Mrs Okafor, thank you for",
    "The meeting on Thursday will",
    "In the second quarter we have",
    "Please find attached the",
    "I look forward to",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_keys_of_the_campaign_ask_the_same() {
        let senders = campaign(16, || "sk".to_owned());
        let prompts: Vec<String> = (0..20)
            .flat_map(|step| senders.iter().map(move |sender| sender.ask(step, &[]).prompt))
            .collect();
        let different: HashSet<&String> = prompts.iter().collect();
        assert!(
            different.len() * 10 > prompts.len() * 9,
            "{} of {}",
            different.len(),
            prompts.len()
        );
    }

    #[test]
    fn everybody_asks_in_json_from_an_address_of_their_own() {
        let everybody: Vec<Sender> = customers(|| "a".to_owned())
            .into_iter()
            .chain(campaign(16, || "b".to_owned()))
            .collect();
        let addresses: HashSet<IpAddr> = everybody.iter().map(|sender| sender.address).collect();
        assert_eq!(addresses.len(), everybody.len());
        for sender in &everybody {
            let asked = sender.ask(1, &[("Hi".to_owned(), "Hello".to_owned())]);
            assert!(serde_json::from_str::<Value>(&asked.body).unwrap().is_object());
            assert!(asked.headers.iter().any(|(_, value)| value.ends_with(&sender.key)));
        }
    }
}
