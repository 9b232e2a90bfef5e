//! The test broker as something that dies.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::common::repository;

/// Ends the broker as SIGKILL does, until it is dropped or [`Outage::end`] is called.
pub struct Outage(());

impl Outage {
    pub fn begin() -> anyhow::Result<Self> {
        script("kill")?;
        Ok(Self(()))
    }

    /// Starts the broker again; it answers on return.
    pub fn end(self) -> anyhow::Result<()> {
        std::mem::forget(self);
        script("up")
    }
}

impl Drop for Outage {
    /// Other tests need the broker.
    fn drop(&mut self) {
        if let Err(error) = script("up") {
            eprintln!("the broker stays away: {error:#}");
        }
    }
}

fn script(command: &str) -> anyhow::Result<()> {
    let output = Command::new(repository("scripts/kafka"))
        .arg(command)
        .output()
        .with_context(|| format!("scripts/kafka {command}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "scripts/kafka {command}: {stderr}");
    Ok(())
}
