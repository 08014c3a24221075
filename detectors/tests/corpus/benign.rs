//! Honest populations: each has something that a careless detector takes for a campaign.

use std::sync::Arc;

use detectors::{NetworkKind, OrganisationId, Role, Sampling};

use super::clients::{BROWSERS, Client, Kind, PEOPLE, PRODUCTS};
use super::numbers::Numbers;
use super::{Ask, BEGIN_MS, Customer, DAY, HOUR, Label, MINUTE, World, daytime, host, hosting};
use super::{network, words};

pub(super) fn all(world: &mut World) {
    chat(world);
    web(world);
    corporate_nat(world);
    university_class(world);
    coding_agents(world);
    batch_jobs(world);
    support_products(world);
    agency(world);
    researchers(world);
    moderation(world);
    health_checks(world);
    aggregators(world);
    vpn_users(world);
    playground(world);
    grpc_products(world);
    reasoning_fans(world);
    translators(world);
}

/// People at home over an SDK or a desktop program: the bulk of all accounts.
fn chat(world: &mut World) {
    let mut numbers = world.numbers("chat");
    for _ in 0..200 {
        let kind = numbers.one(PEOPLE);
        let mut person = world.customer(Label::Benign("chat"), kind, &mut numbers);
        if numbers.chance(0.25) {
            person.system = format!("Be kind. {}", words::prose(&mut numbers, 2));
        }
        world.profile(&person);
        let exchanges = numbers.around(14.0, 0.7, 2, 70);
        world.person(&mut person, exchanges, &mut numbers, words::chat);
    }
}

/// People with their own key in a web page: genuine browsers.
fn web(world: &mut World) {
    let mut numbers = world.numbers("web");
    for _ in 0..60 {
        let kind = numbers.one(BROWSERS);
        let mut person = world.customer(Label::Benign("web"), kind, &mut numbers);
        world.profile(&person);
        let exchanges = numbers.around(14.0, 0.6, 2, 50);
        world.person(&mut person, exchanges, &mut numbers, words::chat);
    }
}

/// A company: fifty accounts, one declared organisation, one card, one /24, one system prompt, all
/// made on one day.
fn corporate_nat(world: &mut World) {
    let mut numbers = world.numbers("corporate_nat");
    let subnet = world.subnet();
    let software = Client::install(Kind::OpenaiPython, &mut numbers);
    let system = words::prose(&mut numbers, 3);
    for _ in 0..50 {
        let mut person =
            world.customer(Label::Benign("corporate_nat"), Kind::OpenaiPython, &mut numbers);
        person.organisation = Some(OrganisationId::new("org-harbour-works"));
        person.payment = Some("card-harbour-works".into());
        person.bin = Some(466_666);
        person.created_ms = BEGIN_MS - 40 * DAY + numbers.below(HOUR as usize) as u64;
        person.client = software.clone();
        person.ip = host([subnet[0], subnet[1], subnet[2]], &mut numbers);
        person.model = "meridian-large-2";
        person.sampling = Sampling { max_tokens: Some(2048), ..Sampling::default() };
        person.system.clone_from(&system);
        world.profile(&person);
        let exchanges = numbers.around(12.0, 0.5, 2, 40);
        world.person(&mut person, exchanges, &mut numbers, words::chat);
    }
}

/// A class with one assignment behind one address; most are declared to belong to the university.
fn university_class(world: &mut World) {
    let mut numbers = world.numbers("university_class");
    let subnet = world.subnet();
    let door = host(subnet, &mut numbers);
    let assignment: Vec<String> = (0..4).map(|_| words::any_task(&mut numbers)).collect();
    for student in 0..30 {
        let kind = numbers.one(&[Kind::OpenaiPython, Kind::OpenaiPython, Kind::Chrome]);
        let mut person = world.customer(Label::Benign("university_class"), kind, &mut numbers);
        person.created_ms = BEGIN_MS - DAY + numbers.below(DAY as usize) as u64;
        if student % 5 != 0 {
            person.organisation = Some(OrganisationId::new("org-university"));
        }
        let home = person.ip;
        world.profile(&person);
        for _ in 0..2 + numbers.below(3) {
            person.ip = if numbers.chance(0.7) { door } else { home };
            let question = numbers.pick(&assignment.iter().collect::<Vec<_>>()).clone();
            let turns = 2 + numbers.below(4);
            let at_ms = daytime(BEGIN_MS + 2 * DAY, &mut numbers);
            world.talk(&mut person, at_ms, question, turns, &mut numbers);
        }
    }
}

/// Public agents whose system prompt and software thousands share.
const AGENTS: [(&str, Kind, &[&str]); 3] = [
    (
        "You are Plover, an open coding agent in a terminal. Read before you write, keep changes \
         small, and run the tests of what you touched. Never leave a file half edited.",
        Kind::OpenaiNode,
        &["read_file", "edit_file", "run"],
    ),
    (
        "You are an engineer who works inside an editor. Use the tools on offer to look at the \
         code, propose a plan in a few lines, then carry it out.",
        Kind::OpenaiPython,
        &["open", "search", "patch", "terminal"],
    ),
    (
        "Act as a careful pair programmer. Work on one step after another and say what you did.",
        Kind::Axios,
        &["fs_read", "fs_write", "shell"],
    ),
];

/// Coding agents: no talk, many turns a minute, equal prompts, all over the world.
fn coding_agents(world: &mut World) {
    let mut numbers = world.numbers("coding_agent");
    for _ in 0..60 {
        let (system, kind, tools) = numbers.one(&AGENTS);
        let mut person = world.customer(Label::Benign("coding_agent"), kind, &mut numbers);
        person.system = system.to_owned();
        person.sampling = Sampling {
            max_tokens: numbers.one(&[Some(8192), Some(4096), Some(16_384), None]),
            temperature: numbers.one(&[None, Some(0.0)]),
            stream: true,
            ..Sampling::default()
        };
        if numbers.chance(0.2) {
            person.network = hosting(&mut numbers);
        }
        world.profile(&person);
        for _ in 0..1 + numbers.below(4) {
            let mut at_ms = daytime(person.created_ms, &mut numbers);
            let chore = words::chore(&mut numbers);
            let mut earlier: Vec<(Role, String)> = Vec::new();
            for step in 0..4 + numbers.below(12) {
                let mut ask = Ask { earlier: earlier.clone(), tools, ..Ask::of(chore.clone()) };
                if step > 0 {
                    ask.tool_result = true;
                    ask.text = words::prose(&mut numbers, 2);
                }
                at_ms = world.send(&person, at_ms, ask, &mut numbers);
                at_ms += (numbers.between(0.2, 6.0) * 1000.0) as u64;
                if step == 0 {
                    earlier.push((Role::User, chore.clone()));
                }
                earlier.push((Role::Assistant, words::prose(&mut numbers, 1)));
                earlier.truncate(8);
            }
        }
    }
}

/// Something that runs on servers of its own: a product or a job.
fn product(
    world: &mut World,
    population: &'static str,
    kind: Kind,
    numbers: &mut Numbers,
) -> Customer {
    let mut customer = world.customer(Label::Benign(population), kind, numbers);
    customer.network = hosting(numbers);
    customer.created_ms -= 5 * DAY;
    if numbers.chance(0.6) {
        customer.organisation = Some(OrganisationId::new(format!("org-{:08x}", numbers.next())));
    }
    customer.sampling = Sampling {
        max_tokens: numbers.one(&[None, Some(256), Some(500), Some(800), Some(1024), Some(3000)]),
        temperature: numbers.one(&[Some(0.0), Some(0.0), Some(0.1), Some(0.3), None]),
        ..Sampling::default()
    };
    customer
}

/// Nightly jobs: one template, one begin, as fast as answers come.
fn batch_jobs(world: &mut World) {
    let mut numbers = world.numbers("batch_job");
    for _ in 0..24 {
        let kind = numbers.one(PRODUCTS);
        let job = product(world, "batch_job", kind, &mut numbers);
        world.profile(&job);
        let template = format!("{} Answer as JSON.", words::prose(&mut numbers, 1));
        let begin = numbers.below(24) as u64 * HOUR + numbers.below(60) as u64 * MINUTE;
        let (nights, each) = (2 + numbers.below(5) as u64, numbers.around(20.0, 0.6, 6, 80));
        for night in 0..nights {
            let mut at_ms = BEGIN_MS + night * DAY + begin + numbers.below(1500) as u64;
            for _ in 0..each {
                let ask = Ask {
                    tokens: 60.0,
                    ..Ask::of(format!("{template}\n\n{}", words::prose(&mut numbers, 4)))
                };
                at_ms = world.send(&job, at_ms, ask, &mut numbers) + 20;
            }
        }
    }
}

/// Support and retrieval products: one system prompt, context and question, end users' hours.
fn support_products(world: &mut World) {
    let mut numbers = world.numbers("support_product");
    for _ in 0..25 {
        let kind = numbers.one(PRODUCTS);
        let mut shop = product(world, "support_product", kind, &mut numbers);
        shop.system = format!(
            "You help the customers of a {}. {}",
            words::fill(&mut numbers, "{job} in {place}"),
            words::prose(&mut numbers, 2)
        );
        world.profile(&shop);
        for _ in 0..numbers.around(60.0, 0.6, 15, 200) {
            let at_ms = daytime(BEGIN_MS, &mut numbers);
            let question = words::chat(&mut numbers);
            let text =
                format!("Context:\n{}\n\nQuestion: {question}", words::prose(&mut numbers, 3));
            let mut ask = Ask::of(text);
            if numbers.chance(0.3) {
                ask.earlier = vec![
                    (Role::User, words::chat(&mut numbers)),
                    (Role::Assistant, words::prose(&mut numbers, 2)),
                ];
            }
            world.send(&shop, at_ms, ask, &mut numbers);
        }
    }
}

/// An agency: ten customers' accounts on its card, in its /24, made by its software; nobody
/// declared that they belong together.
fn agency(world: &mut World) {
    let mut numbers = world.numbers("agency");
    let subnet = world.subnet();
    let software = Client::install(Kind::OpenaiPython, &mut numbers);
    let place = hosting(&mut numbers);
    for _ in 0..10 {
        let mut shop = product(world, "agency", Kind::OpenaiPython, &mut numbers);
        shop.organisation = None;
        shop.payment = Some("card-agency".into());
        shop.bin = Some(477_777);
        shop.created_ms = BEGIN_MS - 30 * DAY + numbers.below(20) as u64 * DAY;
        shop.client = software.clone();
        shop.connection = shop.client.connect(&mut numbers);
        shop.ip = host(subnet, &mut numbers);
        shop.network = place.clone();
        shop.model = "meridian-small-2";
        shop.sampling = Sampling { max_tokens: Some(1024), ..Sampling::default() };
        shop.system = format!("You speak for a shop. {}", words::prose(&mut numbers, 2));
        world.profile(&shop);
        for _ in 0..numbers.around(30.0, 0.4, 10, 80) {
            let at_ms = daytime(BEGIN_MS, &mut numbers);
            let ask = Ask::of(words::chat(&mut numbers));
            world.send(&shop, at_ms, ask, &mut numbers);
        }
    }
}

/// Researchers who run the same public questions, fast, and several times over.
fn researchers(world: &mut World) {
    let mut public = world.numbers("public benchmark");
    let questions: Vec<String> = (0..120).map(|_| words::any_task(&mut public)).collect();
    let mut numbers = world.numbers("researcher");
    for number in 0..12 {
        let kind = numbers.one(&[Kind::OpenaiPython, Kind::Requests, Kind::Httpx]);
        let mut lab = world.customer(Label::Benign("researcher"), kind, &mut numbers);
        lab.created_ms = lab.created_ms.min(BEGIN_MS - 9 * DAY);
        if number % 2 == 0 {
            lab.organisation = Some(OrganisationId::new(format!("org-lab-{number}")));
        }
        if numbers.chance(0.5) {
            lab.network = hosting(&mut numbers);
        }
        lab.sampling = Sampling {
            max_tokens: numbers.one(&[Some(512), Some(1024), Some(2048), Some(4096)]),
            temperature: numbers.one(&[Some(0.0), Some(0.0), Some(0.6), Some(0.7)]),
            ..Sampling::default()
        };
        world.profile(&lab);
        let suffix = numbers.pick(&["", "\n\nLet's think step by step.", "\nAnswer:", ""]);
        let mut at_ms = daytime(BEGIN_MS, &mut numbers);
        for question in &questions {
            let ask = Ask::of(format!("{question}{suffix}"));
            at_ms = world.send(&lab, at_ms, ask, &mut numbers) + 100;
        }
    }
}

/// Moderation products: nothing but rude comments, each under one template.
fn moderation(world: &mut World) {
    let mut numbers = world.numbers("moderation");
    let templates = [
        "Label this comment as SAFE or UNSAFE. One word only.\n\nComment: ",
        "Return JSON with the fields toxic and category for this message:\n\n",
        "Does the text break our house rules? Yes or no.\n\n",
    ];
    for number in 0..6 {
        let kind = numbers.one(PRODUCTS);
        let forum = product(world, "moderation", kind, &mut numbers);
        world.profile(&forum);
        for _ in 0..numbers.around(120.0, 0.4, 40, 300) {
            let at_ms = daytime(BEGIN_MS, &mut numbers);
            let comment = words::comment(&mut numbers);
            let refused = numbers.chance(0.02);
            let ask = Ask {
                refused,
                tokens: 4.0,
                ..Ask::of(format!("{}{comment}", templates[number % templates.len()]))
            };
            world.send(&forum, at_ms, ask, &mut numbers);
        }
    }
}

/// Health checks: one prompt, one clock, for ever.
fn health_checks(world: &mut World) {
    let mut numbers = world.numbers("health_check");
    for _ in 0..18 {
        let kind = numbers.one(PRODUCTS);
        let mut probe = product(world, "health_check", kind, &mut numbers);
        probe.sampling.max_tokens = numbers.one(&[Some(1), Some(5), Some(16)]);
        world.profile(&probe);
        let text = numbers.pick(&["ping", "Hello", "Say OK", "Reply with the single word pong"]);
        let every = numbers.one(&[2u64, 3, 6]) * HOUR;
        let mut at_ms = BEGIN_MS + numbers.below(every as usize) as u64;
        while at_ms < super::END_MS {
            let ask = Ask { tokens: 2.0, ..Ask::of(text) };
            world.send(&probe, at_ms + numbers.below(400) as u64, ask, &mut numbers);
            at_ms += every;
        }
    }
}

/// Aggregators: a Go client, many customers' system prompts and models behind one key.
fn aggregators(world: &mut World) {
    let mut numbers = world.numbers("aggregator");
    for _ in 0..3 {
        let mut gateway = product(world, "aggregator", Kind::Go, &mut numbers);
        world.profile(&gateway);
        let systems: Vec<String> = (0..14).map(|_| words::prose(&mut numbers, 2)).collect();
        let agents = AGENTS.map(|(system, ..)| system.to_owned());
        let systems: Vec<String> = systems.into_iter().chain(agents).collect();
        for _ in 0..200 {
            let at_ms = daytime(BEGIN_MS, &mut numbers);
            gateway.system.clone_from(&systems[numbers.below(systems.len())]);
            gateway.model = numbers.pick(super::MODELS);
            gateway.sampling.max_tokens = numbers.one(&[None, Some(512), Some(4096), Some(8192)]);
            let mut ask = Ask::of(words::chat(&mut numbers));
            if numbers.chance(0.5) {
                ask.earlier = vec![
                    (Role::User, words::chat(&mut numbers)),
                    (Role::Assistant, words::prose(&mut numbers, 2)),
                ];
            }
            world.send(&gateway, at_ms, ask, &mut numbers);
        }
    }
}

/// People behind a commercial VPN: strangers with one address.
fn vpn_users(world: &mut World) {
    let mut numbers = world.numbers("vpn");
    let subnets = [world.subnet(), world.subnet(), world.subnet()];
    let exits: Vec<_> = subnets.iter().flat_map(|subnet| [*subnet; 2]).collect();
    let exits: Vec<_> = exits.into_iter().map(|subnet| host(subnet, &mut numbers)).collect();
    for _ in 0..30 {
        let kind = if numbers.chance(0.4) { numbers.one(BROWSERS) } else { numbers.one(PEOPLE) };
        let mut person = world.customer(Label::Benign("vpn"), kind, &mut numbers);
        person.network = network(NetworkKind::Vpn, 64_700);
        world.profile(&person);
        for _ in 0..2 + numbers.below(4) {
            person.ip = numbers.one(&exits);
            let (at_ms, first) =
                (daytime(person.created_ms, &mut numbers), words::chat(&mut numbers));
            let turns = 1 + numbers.below(6);
            world.talk(&mut person, at_ms, first, turns, &mut numbers);
        }
    }
}

/// People who try out what the parameters do: sweeps of `max_tokens`, several answers at once.
fn playground(world: &mut World) {
    let mut numbers = world.numbers("playground");
    for _ in 0..12 {
        let kind = numbers.one(PEOPLE);
        let mut person = world.customer(Label::Benign("playground"), kind, &mut numbers);
        world.profile(&person);
        for _ in 0..1 + numbers.below(3) {
            let question = words::chat(&mut numbers);
            let mut at_ms = daytime(person.created_ms, &mut numbers);
            for _ in 0..4 + numbers.below(16) {
                person.sampling.max_tokens = Some(1 << numbers.below(14));
                person.sampling.temperature = numbers.one(&[None, Some(0.0), Some(0.5), Some(1.2)]);
                person.sampling.n = numbers.one(&[None, None, None, Some(3)]);
                at_ms = world.send(&person, at_ms, Ask::of(question.clone()), &mut numbers);
                at_ms += (numbers.between(5.0, 60.0) * 1000.0) as u64;
            }
        }
    }
}

/// Products over gRPC with the windows that their libraries open.
fn grpc_products(world: &mut World) {
    let mut numbers = world.numbers("grpc_product");
    for _ in 0..8 {
        let kind = numbers.one(&[Kind::GrpcPython, Kind::GrpcNode]);
        let app = product(world, "grpc_product", kind, &mut numbers);
        world.profile(&app);
        for _ in 0..numbers.around(70.0, 0.5, 20, 200) {
            let at_ms = daytime(BEGIN_MS, &mut numbers);
            world.send(&app, at_ms, Ask::of(""), &mut numbers);
        }
    }
}

/// People who have learnt that "step by step" helps.
fn reasoning_fans(world: &mut World) {
    let mut numbers = world.numbers("reasoning_fan");
    for _ in 0..15 {
        let kind = numbers.one(PEOPLE);
        let mut person = world.customer(Label::Benign("reasoning_fan"), kind, &mut numbers);
        world.profile(&person);
        let habit = numbers.pick(&["Think step by step.", "Show your work.", "Explain why."]);
        let exchanges = numbers.around(12.0, 0.5, 2, 30);
        world.person(&mut person, exchanges, &mut numbers, |numbers| {
            format!("{}\n\n{habit}", words::chat(numbers))
        });
    }
}

/// Translators: one instruction over many texts, some with stray invisible characters.
fn translators(world: &mut World) {
    let mut numbers = world.numbers("translator");
    for _ in 0..12 {
        let kind = numbers.one(PEOPLE);
        let mut person = world.customer(Label::Benign("translator"), kind, &mut numbers);
        world.profile(&person);
        let tongue: Arc<str> = words::fill(&mut numbers, "{tongue}").into();
        let exchanges = numbers.around(16.0, 0.5, 3, 50);
        world.person(&mut person, exchanges, &mut numbers, |numbers| {
            let stray = if numbers.chance(0.2) { "\u{feff}" } else { "" };
            format!("Translate to {tongue}:\n\n{stray}{}", words::prose(numbers, 4))
        });
    }
}
