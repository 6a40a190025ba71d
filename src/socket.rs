//! A connection to a server, plain or by TLS.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

/// How long one address of a host may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a server listens.
#[derive(Clone)]
pub struct Address {
    /// Name or number, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether it speaks TLS.
    pub is_encrypted: bool,
}

/// A connection.
pub enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted, with a server whose certificate this machine trusts.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    /// Connects to the first of a host's addresses that answers.
    ///
    /// # Errors
    /// There is no such host, nobody listens, or its certificate is not trusted.
    pub fn connect(address: &Address) -> anyhow::Result<Socket> {
        let Address { host, port, is_encrypted } = address;
        let resolved = (host.as_str(), *port).to_socket_addrs();
        let resolved = resolved.with_context(|| format!("there is no host {host}"))?;
        let mut outcome = Err(std::io::Error::other("it has no address"));
        for one in resolved {
            outcome = TcpStream::connect_timeout(&one, CONNECT);
            if outcome.is_ok() {
                break;
            }
        }
        let tcp = outcome.with_context(|| format!("cannot connect to {host}:{port}"))?;
        tcp.set_nodelay(true)?;
        if !is_encrypted {
            return Ok(Socket::Plain(tcp));
        }
        let config = octet_server::tls_client().map_err(anyhow::Error::msg)?;
        let name = ServerName::try_from(host.clone()).with_context(|| format!("{host} is no name of a host"))?;
        let mut stream = StreamOwned::new(ClientConnection::new(config, name)?, tcp);
        // The handshake here, so that a certificate that is not trusted is told as such.
        stream.conn.complete_io(&mut stream.sock).with_context(|| format!("no TLS with {host}:{port}"))?;
        Ok(Socket::Tls(Box::new(stream)))
    }

    /// How long a read may wait; it fails with `WouldBlock` or `TimedOut` then, and may be tried again.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_read_timeout(&self, wait: Duration) -> std::io::Result<()> {
        let tcp = match self {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(stream) => &stream.sock,
        };
        tcp.set_read_timeout(Some(wait))
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Plain(tcp) => tcp.read(out),
            Socket::Tls(stream) => stream.read(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Socket::Plain(tcp) => tcp.write(bytes),
            Socket::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Socket::Plain(tcp) => tcp.flush(),
            Socket::Tls(stream) => stream.flush(),
        }
    }
}
