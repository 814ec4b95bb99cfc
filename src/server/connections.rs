//! Connections: how many there may be, and how long a client may take to say what it wants.
//!
//! axum's own loop sets no timer for the head of a request, so that whoever sends a letter a minute keeps a connection for ever.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections at once; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 1_024;
/// How long the head of a request may take to come, the first as every next one of a connection.
const SLOWEST_HEAD: Duration = Duration::from_secs(30);
/// After a connection could not be accepted, for want of a file's number perhaps.
const BREATH: Duration = Duration::from_millis(50);

/// Serves connections until `stopped`, and then waits for those that are open.
pub(super) async fn serve(listener: TcpListener, router: Router, stopped: impl Future<Output = ()>) {
    let (closing, closed) = watch::channel(());
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut stopped = pin!(stopped);
    let accepted = async || {
        // A permit is had before anybody is let in.
        let permit = room.clone().acquire_owned().await.ok()?;
        match listener.accept().await {
            Ok((stream, _)) => Some((permit, stream)),
            Err(_) => {
                tokio::time::sleep(BREATH).await;
                None
            }
        }
    };
    loop {
        let next = tokio::select! {
            next = accepted() => next,
            () = &mut stopped => break,
        };
        let Some((permit, stream)) = next else { continue };
        // Events and looks at an image are small, and wanted now.
        let _ = stream.set_nodelay(true);
        let (service, mut closed) = (TowerToHyperService::new(router.clone()), closed.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(SLOWEST_HEAD);
            let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
            tokio::select! {
                // A client that breaks off is nothing to tell of.
                _ = connection.as_mut() => return,
                _ = closed.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop((listener, closed));
    let _ = closing.send(());
    closing.closed().await;
}
