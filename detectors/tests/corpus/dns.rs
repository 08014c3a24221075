//! What DNS sensors tell: of honest networks that a careless reading accuses, and of a campaign that
//! is coordinated from an address which no plain DNS answer names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use detectors::{AccountId, DnsContact, DnsLookup, DnsTransport, Event};

use super::clients::{Kind, PEOPLE};
use super::numbers::Numbers;
use super::{Customer, DAY, HOUR, Label, World, host, words};

pub(super) fn all(world: &mut World) {
    let mut numbers = world.numbers("dns");
    let api = host(world.subnet(), &mut numbers);
    let popular: Vec<IpAddr> = (0..6).map(|_| host(world.subnet(), &mut numbers)).collect();
    covered_isp(world, api, &popular);
    office_nat(world, api);
    home_routers(world, api, &popular);
    super::campaigns::coordination(world, api);
}

/// A sensor at one provider of access, and nowhere else: everybody there uses one resolver, by its
/// many addresses, and scripts that find the API and popular services in ways that nobody sees.
fn covered_isp(world: &mut World, api: IpAddr, popular: &[IpAddr]) {
    let mut numbers = world.numbers("covered_isp");
    let mut people = people(world, "covered_isp", 80, &mut numbers);
    for person in &mut people {
        let exchanges = numbers.around(10.0, 0.6, 2, 30);
        world.person(person, exchanges, &mut numbers, words::chat);
    }
    let own: Vec<IpAddr> = people.iter().map(|_| numbers.one(popular)).collect();
    for (person, own) in people.iter().zip(own) {
        for at_ms in times(world, &person.id) {
            let server = IpAddr::from([8, 8, 8, numbers.below(16) as u8]);
            tell(world, person.ip, None, None, Told::Doh(server, "everybodys"), at_ms);
            tell(world, person.ip, None, None, Told::Contact(api), at_ms);
            tell(world, person.ip, None, None, Told::Contact(own), at_ms);
        }
    }
}

/// A building with one address and two hundred hosts, half of them on encrypted DNS; a few tenants
/// are customers.
fn office_nat(world: &mut World, api: IpAddr) {
    let mut numbers = world.numbers("office_nat");
    let mut tenants = people(world, "office_nat", 8, &mut numbers);
    let door = tenants[0].ip;
    for tenant in &mut tenants {
        tenant.ip = door;
        world.person(tenant, 20, &mut numbers, words::chat);
    }
    let rare = host(world.subnet(), &mut numbers);
    for day in 0..7 {
        for number in 0..200 {
            let at_ms = super::BEGIN_MS + day * DAY + 6 * HOUR + number * 1_000;
            let told = match number % 4 {
                0 | 2 => Told::Plain,
                1 => Told::Doh(IpAddr::from([8, 8, 8, 8]), "everybodys"),
                _ => Told::Dot(rare),
            };
            tell(world, door, Some(number), Some(number < 60), told, at_ms);
            tell(world, door, Some(number), Some(number < 60), Told::Contact(api), at_ms);
        }
    }
}

/// Households behind their routers: one asks the API and uses encrypted DNS, the other things in the
/// house do what they do, some with encrypted DNS of their makers.
fn home_routers(world: &mut World, api: IpAddr, popular: &[IpAddr]) {
    let mut numbers = world.numbers("home_router");
    let mut people = people(world, "home_router", 24, &mut numbers);
    for at in 0..people.len() {
        // Every fourth shares the house with the one before.
        if at % 4 == 3 {
            people[at].ip = people[at - 1].ip;
        }
        let exchanges = numbers.around(14.0, 0.6, 4, 40);
        world.person(&mut people[at], exchanges, &mut numbers, words::chat);
    }
    let maker = host(world.subnet(), &mut numbers);
    for (at, person) in people.iter().enumerate() {
        let house = at as u64 * 100;
        for at_ms in times(world, &person.id) {
            let (laptop, television) = (house, house + 1);
            let doh = Told::Doh(IpAddr::from([8, 8, 4, 4]), "everybodys");
            tell(world, person.ip, Some(laptop), Some(true), doh, at_ms);
            tell(world, person.ip, Some(laptop), Some(true), Told::Contact(api), at_ms);
            let video = Told::Contact(numbers.one(popular));
            tell(world, person.ip, Some(television), Some(false), Told::Dot(maker), at_ms);
            tell(world, person.ip, Some(television), Some(false), video, at_ms);
            tell(world, person.ip, Some(house + 2), None, Told::Plain, at_ms);
        }
    }
}

fn people(
    world: &mut World,
    name: &'static str,
    number: usize,
    numbers: &mut Numbers,
) -> Vec<Customer> {
    let mut people = Vec::new();
    for _ in 0..number {
        let kind: Kind = numbers.one(PEOPLE);
        let person = world.customer(Label::Benign(name), kind, numbers);
        world.profile(&person);
        people.push(person);
    }
    people
}

/// What a sensor tells of a host.
#[derive(Clone, Copy)]
pub(super) enum Told {
    Plain,
    Doh(IpAddr, &'static str),
    Dot(IpAddr),
    Contact(IpAddr),
}

/// Tells it of two seconds before.
pub(super) fn tell(
    world: &mut World,
    ip: IpAddr,
    host: Option<u64>,
    client: Option<bool>,
    told: Told,
    at_ms: u64,
) {
    let at_ms = at_ms - 2_000;
    let lookup = |transport, server, provider: Option<&str>| {
        let provider = provider.map(Arc::from);
        Event::Dns(DnsLookup { at_ms, ip, host, client, transport, server, provider, name: None })
    };
    world.events.push(match told {
        Told::Plain => lookup(DnsTransport::Udp, IpAddr::from([9, 9, 9, 9]), None),
        Told::Doh(server, provider) => lookup(DnsTransport::Doh, server, Some(provider)),
        Told::Dot(server) => lookup(DnsTransport::Dot, server, None),
        Told::Contact(destination) => {
            Event::Contact(DnsContact { at_ms, ip, host, client, destination, port: 443 })
        }
    });
}

/// When an account asks.
fn times(world: &World, id: &AccountId) -> Vec<u64> {
    let of = |event: &Event| match event {
        Event::Exchange(seen) if seen.account.as_ref() == Some(id) => Some((seen.at_ms, ())),
        _ => None,
    };
    world.events.iter().filter_map(of).collect::<BTreeMap<u64, ()>>().into_keys().collect()
}
