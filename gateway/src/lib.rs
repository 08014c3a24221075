//! The gateway: everything of Stillgate that does IO.
//!
//! `ARCHITECTURE.md` at the top of the repository draws the map.

pub mod account;
pub mod admin;
pub mod audit;
pub mod capture;
pub mod cli;
pub mod config;
pub mod connection;
pub mod demo;
pub mod enforce;
pub mod exchanges;
pub mod fleet;
pub mod gateway;
pub mod ioc;
pub mod judge;
pub mod limits;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod network;
pub mod outgoing;
pub mod policy;
pub mod proxy;
pub mod route;
pub mod sensor;
pub mod store;
pub mod trace;
pub mod upstream;
pub mod webhook;
pub mod wire;
