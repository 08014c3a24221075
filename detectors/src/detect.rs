//! One behaviour, one file. The list of them is [`crate::list`].

pub mod asn_classifier;
pub mod biometric;
pub mod cot;
pub mod dns_transport;
pub mod embed;
pub mod fingerprint;
pub mod h2_grpc;
pub mod hydra;
pub mod pivot;
pub mod refusal_probe;
pub mod role_preamble;
pub mod sequence_model;
pub mod session_gap;
pub mod timing_cluster;
pub mod token_budget;
pub mod velocity;
pub mod watermark;
