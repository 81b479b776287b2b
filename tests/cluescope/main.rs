//! One integration binary; a file per stage.

mod architecture;
mod attend;
mod attention;
mod augment;
mod commands;
mod conditions;
mod contrast;
mod contrast_command;
mod corpus;
mod damage;
mod evaluate;
mod experiment;
mod families;
mod fuzzing;
mod hub;
#[cfg(all(unix, feature = "kernel"))]
mod kernel;
mod kill;
mod loading;
mod pictures;
mod quantised;
mod report;
mod second_opinion;
mod toys;
mod train;
mod train_peers;
mod traps;
