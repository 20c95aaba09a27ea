//! The endpoints a server listens on, and changing them while it serves.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use tessera_nbd::{ListenError, Server};

use super::settings::Endpoint;

/// What the server listens on.
pub(crate) struct Endpoints {
    server: Arc<Server>,
    /// What was asked for, and the URI each has.
    listening: Vec<(Endpoint, String)>,
    /// URIs of the sockets that were handed on; they stay for good.
    handed_on: Vec<String>,
    told: Arc<Mutex<Vec<String>>>,
}

/// What a change did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// URIs that clients can connect to now.
    pub(crate) opened: Vec<String>,
    /// URIs that they cannot connect to any more.
    pub(crate) closed: Vec<String>,
}

impl Endpoints {
    /// Listens on all of them, or on none.
    ///
    /// # Errors
    /// What the first that failed says.
    pub(crate) fn open(
        server: &Arc<Server>,
        handed_on: Vec<OwnedFd>,
        wanted: &[Endpoint],
    ) -> Result<Self, ListenError> {
        let mut endpoints = Self {
            server: Arc::clone(server),
            listening: Vec::new(),
            handed_on: Vec::new(),
            told: Arc::default(),
        };
        for socket in handed_on {
            endpoints.handed_on.push(server.listen_socket(socket)?);
        }
        endpoints.change(wanted)?;
        Ok(endpoints)
    }

    /// Every URI, now and after later changes.
    pub(crate) fn uris(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let told = Arc::clone(&self.told);
        move || {
            let told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.clone()
        }
    }

    /// Listens on what is new among `wanted` and stops listening on what is
    /// not among them. Connected clients stay. Either all of it happens, or
    /// none: what is new comes first.
    ///
    /// # Errors
    /// What the first that failed says.
    pub(crate) fn change(&mut self, wanted: &[Endpoint]) -> Result<Changed, ListenError> {
        let mut opened = Vec::new();
        for endpoint in wanted {
            if self.listening.iter().any(|(old, _)| old == endpoint) {
                continue;
            }
            let bound = match endpoint {
                Endpoint::Socket(path) => self.server.listen_unix(path),
                Endpoint::Listen(address) => self.server.listen_tcp(address),
            };
            match bound {
                Ok(uri) => opened.push((endpoint.clone(), uri)),
                Err(error) => {
                    for (_, uri) in opened {
                        self.server.stop_listening(&uri);
                    }
                    return Err(error);
                }
            }
        }
        let mut changed = Changed {
            opened: opened.iter().map(|(_, uri)| uri.clone()).collect(),
            closed: Vec::new(),
        };
        self.listening.retain(|(endpoint, uri)| {
            let stays = wanted.contains(endpoint);
            if !stays {
                self.server.stop_listening(uri);
                changed.closed.push(uri.clone());
            }
            stays
        });
        self.listening.extend(opened);
        let all = self.listening.iter().map(|(_, uri)| uri);
        let all = self.handed_on.iter().chain(all).cloned().collect();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(changed)
    }
}
