//! The live show in words: a line for each thing that happens, and what became of it all.
//!
//! Everything here is made from numbers; nothing looks at the gateway. A hundred columns hold it.

use std::fmt::Write as _;
use std::time::Duration;

use detectors::tier::Tier;

/// Accounts that are named in one line.
const NAMED_MAX: usize = 3;

/// Whether there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ink {
    /// They go to a terminal.
    pub colours: bool,
}

impl Ink {
    /// A heading.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.dye("1", text)
    }

    fn tier(self, tier: Tier, text: &str) -> String {
        self.dye(
            match tier {
                Tier::None => "32",
                Tier::Low => "36",
                Tier::Medium => "33",
                Tier::High => "35",
                Tier::Critical => "1;31",
            },
            text,
        )
    }

    fn dye(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Moment {
    /// The first account of a tier.
    Reached {
        /// The tier.
        tier: Tier,
        /// Whose.
        account: String,
        /// Which of its requests it was, from 1.
        request: u32,
        /// Suspicion, 0..1.
        suspicion: f64,
        /// Detectors with the largest part.
        because: Vec<String>,
    },
    /// How fast answers come at a tier, and came before: tokens a second.
    Pace {
        /// The tier.
        tier: Tier,
        /// Now.
        now: f64,
        /// At no tier.
        before: f64,
    },
    /// The first marked answer: whose.
    Marked(String),
    /// The first answer without the reasoning that was asked for.
    Withheld,
    /// The first request at a limit.
    Limited,
    /// The first answer that was ended in its middle.
    Ended,
    /// The cluster was taken down.
    TakenDown {
        /// Its name.
        cluster: String,
        /// Accounts suspended.
        suspended: usize,
        /// Members left alone.
        left_out: usize,
    },
    /// A key that came after the takedown was refused.
    Fresh {
        /// Its account.
        account: String,
        /// Its tier by then.
        tier: Tier,
        /// The request at which it came to that tier, from 1.
        request: u32,
    },
    /// How everybody stands.
    Count {
        /// The campaign's accounts, by tier.
        tiers: [usize; 5],
        /// How many of them are suspended.
        suspended: usize,
        /// The highest tier of a customer.
        customers: Tier,
    },
}

/// A moment's line.
#[must_use]
pub fn line(at: Duration, moment: &Moment, ink: Ink) -> String {
    let (label, tier, text) = match moment {
        Moment::Reached { tier, account, request, suspicion, because } => {
            let because = because.join(", ");
            let text =
                format!("{account}, request {request}: suspicion {suspicion:.2} by {because}");
            (tier.name(), Some(*tier), text)
        }
        Moment::Pace { tier, now, before } => (
            tier.name(),
            Some(*tier),
            format!("answers come at {now:.0} tokens a second, {before:.0} before"),
        ),
        Moment::Marked(account) => (
            "marks",
            Some(Tier::High),
            format!("an answer to {account} carries marks that nobody sees"),
        ),
        Moment::Withheld => {
            ("withheld", Some(Tier::High), "an answer comes without its reasoning".to_owned())
        }
        Moment::Limited => (
            "limits",
            Some(Tier::Medium),
            "a request was told to come again later (429)".to_owned(),
        ),
        Moment::Ended => (
            "ended",
            Some(Tier::Critical),
            "an answer under way was ended in its middle".to_owned(),
        ),
        Moment::TakenDown { cluster, suspended, left_out } => {
            let spared = if *left_out == 0 {
                String::new()
            } else {
                format!(", {left_out} left alone for now")
            };
            let text = format!("cluster {cluster}: {suspended} accounts suspended at once{spared}");
            ("takedown", Some(Tier::Critical), text)
        }
        Moment::Fresh { account, tier, request } => (
            "fresh key",
            Some(*tier),
            format!("{account} is new, and refused: {} at its request {request}", tier.name()),
        ),
        Moment::Count { tiers, suspended, customers } => {
            let counts = Tier::ALL.iter().zip(tiers).rev().filter(|(_, count)| **count > 0);
            let mut counts: Vec<_> =
                counts.map(|(tier, count)| format!("{count} at {}", tier.name())).collect();
            if *suspended > 0 {
                counts.push(format!("{suspended} suspended"));
            }
            let text = format!("{}; customers: {}", counts.join(", "), standing(*customers));
            ("campaign", None, text)
        }
    };
    let label = format!("{label:<9}");
    let label = tier.map_or(label.clone(), |tier| ink.tier(tier, &label));
    format!("  +{:>3} s  {label}  {text}\n", at.as_secs())
}

fn standing(highest: Tier) -> String {
    match highest {
        Tier::None => "all at none".to_owned(),
        tier => format!("one at {}", tier.name()),
    }
}

/// What became of somebody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Who.
    pub who: String,
    /// Keys.
    pub keys: usize,
    /// Requests sent.
    pub requests: usize,
    /// Highest tier reached.
    pub tier: Tier,
    /// Answers slowed.
    pub slowed: u64,
    /// Answers received with marks.
    pub marked: usize,
    /// Invisible characters in them.
    pub invisible: usize,
    /// Answers without the reasoning that was asked for.
    pub withheld: usize,
    /// Answers ended in their middle.
    pub ended: usize,
    /// Requests told to come again later.
    pub limited: usize,
    /// Requests refused.
    pub refused: usize,
    /// Requests that failed otherwise.
    pub failed: usize,
    /// Keys suspended.
    pub suspended: usize,
}

/// The cluster that went.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    /// Its name.
    pub cluster: String,
    /// Accounts suspended, those that followed later among them.
    pub suspended: usize,
    /// Hours until it ends by itself.
    pub hours: f64,
    /// The account that set it off.
    pub trigger: String,
}

/// What the campaign's collection tells of its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// Answers.
    pub answers: usize,
    /// Those that carry marks.
    pub marked: usize,
    /// Accounts that their zero-width frames name, with the frames of each.
    pub named: Vec<(String, u32)>,
    /// Choices of words that agree with the cluster's key, of how many, and the decimal logarithm of
    /// the chance of as many.
    pub words: Option<(u64, u64, f64)>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// One for each customer.
    pub customers: Vec<Row>,
    /// The campaign's.
    pub campaign: Vec<Row>,
    /// Tokens a second that the campaign was served at each tier.
    pub paces: [Option<f64>; 5],
    /// Tokens a second that the customers were served.
    pub customers_pace: Option<f64>,
    /// The takedown.
    pub gone: Option<Gone>,
    /// What the collection tells.
    pub collected: Option<Collected>,
    /// How long it took.
    pub took: Duration,
    /// Address of the admin endpoint.
    pub admin: String,
    /// Its token.
    pub token: String,
}

/// The summary's text.
#[must_use]
pub fn summary(of: &Summary, ink: Ink) -> String {
    let mut text = format!("\n{}\n\n", ink.bold("What became of it"));
    table(&mut text, of, ink);
    text.push('\n');
    let mut point = |label: &str, said: &str| {
        let _ = writeln!(text, "  {}  {said}", ink.bold(&format!("{label:<9}")));
    };
    point("customers", &ink.tier(Tier::None, &customers(of)));
    point("pace", &paces(of));
    point("answers", &answers(of));
    point("takedown", &takedown(of));
    for (number, line) in of.collected.iter().flat_map(collection).enumerate() {
        point(if number == 0 { "collected" } else { "" }, &line);
    }
    if let Some(gone) = &of.gone {
        let auth = format!("curl -H 'authorization: Bearer {}'", of.token);
        let base = format!("http://{}/v1", of.admin);
        let _ = write!(
            text,
            "\n# undo the takedown; see who is to be looked at, and why this account\n\
             {auth} -X DELETE '{base}/clusters/{}/takedown?reason=demo'\n\
             {auth} {base}/review\n\
             {auth} {base}/accounts/{}\n",
            gone.cluster, gone.trigger
        );
    }
    text
}

fn table(text: &mut String, of: &Summary, ink: Ink) {
    const HEAD: [&str; 9] =
        ["who", "keys", "requests", "tier", "slowed", "marked", "limited", "refused", "suspended"];
    let cells = |row: &Row| {
        [
            row.who.clone(),
            row.keys.to_string(),
            row.requests.to_string(),
            row.tier.name().to_owned(),
            row.slowed.to_string(),
            row.marked.to_string(),
            row.limited.to_string(),
            row.refused.to_string(),
            row.suspended.to_string(),
        ]
    };
    let rows: Vec<_> =
        of.customers.iter().chain(&of.campaign).map(|row| (row, cells(row))).collect();
    let width = |place: usize| {
        let widths = rows.iter().map(|(_, cells)| cells[place].chars().count());
        widths.chain([HEAD[place].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let words = |place: usize| place == 0 || place == 3;
    let fit = |place: usize, cell: &str| {
        let width = widths[place];
        if words(place) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    };
    let head: Vec<_> = HEAD.iter().enumerate().map(|(place, cell)| fit(place, cell)).collect();
    let _ = writeln!(text, "  {}", head.join("  "));
    for (row, cells) in &rows {
        let fitted = cells.iter().enumerate().map(|(place, cell)| {
            let cell = fit(place, cell);
            if place == 3 { ink.tier(row.tier, &cell) } else { cell }
        });
        let _ = writeln!(text, "  {}", fitted.collect::<Vec<_>>().join("  "));
    }
}

fn customers(of: &Summary) -> String {
    let sum = |read: fn(&Row) -> u64| of.customers.iter().map(read).sum::<u64>();
    let pace = of
        .customers_pace
        .map_or_else(String::new, |pace| format!("; served {pace:.0} tokens a second"));
    let failed = match sum(|row| row.failed as u64) {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!(
        "{} customers: {} slowed, {} marked, {} refused{failed}{pace}",
        of.customers.len(),
        sum(|row| row.slowed),
        sum(|row| row.marked as u64),
        sum(|row| (row.limited + row.refused) as u64),
    )
}

fn paces(of: &Summary) -> String {
    let paces: Vec<_> = Tier::ALL
        .iter()
        .zip(of.paces)
        .filter_map(|(tier, pace)| Some(format!("{:.0} at {}", pace?, tier.name())))
        .collect();
    format!("the campaign, in tokens a second: {}", paces.join(", "))
}

fn answers(of: &Summary) -> String {
    let sum = |read: fn(&Row) -> usize| of.campaign.iter().map(read).sum::<usize>();
    format!(
        "{} with {} invisible characters, {} without their reasoning, {} ended in the middle",
        sum(|row| row.marked),
        sum(|row| row.invisible),
        sum(|row| row.withheld),
        sum(|row| row.ended),
    )
}

fn takedown(of: &Summary) -> String {
    match &of.gone {
        Some(gone) => format!(
            "{} accounts of cluster {} suspended for {:.0} hours",
            gone.suspended, gone.cluster, gone.hours
        ),
        None => format!("none in {} seconds", of.took.as_secs()),
    }
}

fn collection(of: &Collected) -> Vec<String> {
    let mut lines = Vec::new();
    if of.named.is_empty() {
        let (marked, all) = (of.marked, of.answers);
        lines.push(format!("{marked} of {all} answers carry marks, too few to name anybody"));
    } else {
        let named = of.named.iter().take(NAMED_MAX);
        let mut named: Vec<String> =
            named.map(|(account, frames)| format!("{account} ({frames})")).collect();
        if of.named.len() > NAMED_MAX {
            named.push(format!("{} more", of.named.len() - NAMED_MAX));
        }
        lines.push(format!(
            "{} of {} answers carry marks; their frames name whom they were served to:",
            of.marked, of.answers
        ));
        lines.push(named.join(", "));
    }
    if let Some((agreeing, among, p_log10)) = of.words {
        lines.push(format!(
            "{agreeing} of {among} choices of words are by the cluster's key; by chance p {}",
            power(p_log10)
        ));
    }
    lines
}

/// A probability from its decimal logarithm.
fn power(log10: f64) -> String {
    if log10 >= -2.0 {
        return format!("= {:.2}", 10_f64.powf(log10));
    }
    format!("< 10^{:.0}", log10.ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Ink = Ink { colours: false };

    fn told() -> Summary {
        let customer =
            |who: &str| Row { who: who.to_owned(), keys: 1, requests: 9, ..Row::default() };
        Summary {
            customers: vec![customer("chat user"), customer("research on Responses")],
            campaign: vec![Row {
                who: "the campaign".to_owned(),
                keys: 12,
                requests: 140,
                tier: Tier::Critical,
                slowed: 40,
                marked: 20,
                invisible: 810,
                withheld: 18,
                ended: 5,
                limited: 11,
                refused: 50,
                failed: 0,
                suspended: 12,
            }],
            paces: [Some(180.2), None, Some(40.4), Some(20.1), None],
            customers_pace: Some(181.0),
            gone: Some(Gone {
                cluster: "00c0ffee00c0ffee".to_owned(),
                suspended: 14,
                hours: 72.0,
                trigger: "acct-0123456789abcdef01234567".to_owned(),
            }),
            collected: Some(Collected {
                answers: 60,
                marked: 30,
                named: ["a", "b", "c", "d"].map(|name| (format!("acct-{name}"), 3)).to_vec(),
                words: Some((40, 44, -8.3)),
            }),
            took: Duration::from_secs(34),
            admin: "127.0.0.1:9443".to_owned(),
            token: "t0ken".to_owned(),
        }
    }

    #[test]
    fn the_summary_tells_it_all() {
        let text = summary(&told(), PLAIN);
        for expected in [
            "  chat user                 1         9  none           0       0        0        0          0\n",
            "  the campaign             12       140  critical      40      20       11       50         12\n",
            "  customers  2 customers: 0 slowed, 0 marked, 0 refused; served 181 tokens a second\n",
            "  pace       the campaign, in tokens a second: 180 at none, 40 at medium, 20 at high\n",
            "  answers    20 with 810 invisible characters, 18 without their reasoning, 5 ended in the middle\n",
            "  takedown   14 accounts of cluster 00c0ffee00c0ffee suspended for 72 hours\n",
            "  collected  30 of 60 answers carry marks; their frames name whom they were served to:\n",
            "             acct-a (3), acct-b (3), acct-c (3), 1 more\n",
            "             40 of 44 choices of words are by the cluster's key; by chance p < 10^-8\n",
            "curl -H 'authorization: Bearer t0ken' -X DELETE \
             'http://127.0.0.1:9443/v1/clusters/00c0ffee00c0ffee/takedown?reason=demo'\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'), "no colours: {text:?}");
        // Lines to paste are as long as they are.
        let prose = text.lines().filter(|line| !line.starts_with("curl"));
        assert!(prose.clone().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn harm_is_not_hidden() {
        let mut harmed = told();
        harmed.customers[0] = Row {
            slowed: 2,
            marked: 1,
            limited: 3,
            refused: 4,
            failed: 5,
            ..harmed.customers[0].clone()
        };
        harmed.gone = None;
        harmed.collected = Some(Collected { answers: 9, marked: 1, named: vec![], words: None });
        let text = summary(&harmed, PLAIN);
        assert!(text.contains("2 customers: 2 slowed, 1 marked, 7 refused, 5 failed"), "{text}");
        assert!(text.contains("takedown   none in 34 seconds"), "{text}");
        assert!(
            text.contains("collected  1 of 9 answers carry marks, too few to name anybody"),
            "{text}"
        );
    }

    #[test]
    fn each_moment_is_a_line() {
        let account = || "acct-0123456789abcdef01234567".to_owned();
        let at = Duration::from_millis(7_900);
        for (moment, expected) in [
            (
                Moment::Reached {
                    tier: Tier::Medium,
                    account: account(),
                    request: 3,
                    suspicion: 0.581,
                    because: vec!["hydra".to_owned(), "cot".to_owned()],
                },
                "  +  7 s  medium     acct-0123456789abcdef01234567, request 3: \
                 suspicion 0.58 by hydra, cot\n",
            ),
            (
                Moment::Pace { tier: Tier::High, now: 20.3, before: 181.0 },
                "  +  7 s  high       answers come at 20 tokens a second, 181 before\n",
            ),
            (
                Moment::Fresh { account: "acct-1".to_owned(), tier: Tier::Critical, request: 2 },
                "  +  7 s  fresh key  acct-1 is new, and refused: critical at its request 2\n",
            ),
            (
                Moment::TakenDown { cluster: "c1".to_owned(), suspended: 9, left_out: 2 },
                "  +  7 s  takedown   cluster c1: 9 accounts suspended at once, 2 left alone for now\n",
            ),
            (
                Moment::Count { tiers: [1, 0, 2, 3, 0], suspended: 4, customers: Tier::None },
                "  +  7 s  campaign   3 at high, 2 at medium, 1 at none, 4 suspended; \
                 customers: all at none\n",
            ),
        ] {
            assert_eq!(line(at, &moment, PLAIN), expected);
            let coloured = line(at, &moment, Ink { colours: true });
            assert_eq!(coloured.contains('\x1b'), !matches!(moment, Moment::Count { .. }));
        }
    }
}
