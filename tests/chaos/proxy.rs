//! A network between the program and the broker that can be spoiled.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, watch};

/// Bytes that a direction of a connection carries at once.
const CHUNK: usize = 64 << 10;

/// What becomes of bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// They pass.
    Fair,
    /// Each piece of them is late by so much.
    Slow(Duration),
    /// They stay where they are, in both directions, and nobody is told: no reset, no answer. What
    /// was sent arrives when the weather is fair again.
    Dark,
}

/// Listens on one address, and carries every connection on to another.
pub struct Proxy {
    weather: watch::Sender<Weather>,
    resets: broadcast::Sender<()>,
    /// Connections end with it.
    _runtime: Runtime,
}

impl Proxy {
    pub fn start(listen: &str, target: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(listen))?;
        let (weather, resets) = (watch::Sender::new(Weather::Fair), broadcast::Sender::new(1));
        let (forecast, resetting, target) = (weather.clone(), resets.clone(), target.to_owned());
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (forecast, resets) = (forecast.subscribe(), resetting.subscribe());
                let target = target.clone();
                // A connection that breaks is no concern of ours: its client makes another.
                tokio::spawn(async move { drop(carry(client, &target, forecast, resets).await) });
            }
        });
        Ok(Self { weather, resets, _runtime: runtime })
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Ends every connection at once, with a reset to both sides.
    pub fn reset(&self) {
        // Without connections, there is nobody to tell.
        let _ = self.resets.send(());
    }
}

async fn carry(
    mut client: TcpStream,
    target: &str,
    mut weather: watch::Receiver<Weather>,
    mut resets: broadcast::Receiver<()>,
) -> io::Result<()> {
    let fair = async {
        light(&mut weather).await;
        TcpStream::connect(target).await
    };
    let mut server = tokio::select! {
        connected = fair => connected?,
        _ = resets.recv() => return client.set_zero_linger(),
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        ended = pump(from_client, to_server, weather.clone()) => return ended,
        ended = pump(from_server, to_client, weather) => return ended,
        _ = resets.recv() => {}
    }
    client.set_zero_linger()?;
    server.set_zero_linger()
}

/// Waits until it is not dark.
async fn light(weather: &mut watch::Receiver<Weather>) -> Weather {
    match weather.wait_for(|weather| *weather != Weather::Dark).await {
        Ok(weather) => *weather,
        // The proxy is gone, and its connections go with it.
        Err(_) => Weather::Fair,
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        if let Weather::Slow(late) = light(&mut weather).await {
            tokio::time::sleep(late).await;
        }
        to.write_all(&bytes[..count]).await?;
    }
}
