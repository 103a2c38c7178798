//! A running server, as callers see it.

use std::path::{Path, PathBuf};

use crate::{
    error::Error,
    find::Search,
    initdb,
    launch::Launch,
    layout::{self, Layout},
    lock::Lock,
    log::Log,
    relocate,
    scratch::Scratch,
    strays,
    supervisor::Supervisor,
};

/// What kind of server to run, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory for the cluster and what belongs to it; made if it is missing. Other files may be in
    /// it: everything of ours is named `postgres` or `postgres.*`.
    pub data_dir: PathBuf,
    /// Settings of PostgreSQL, as `postgres -c name=value` takes them. They win over this crate's defaults,
    /// but not over `port`, `listen_addresses` and `unix_socket_directories`.
    pub settings: Vec<(String, String)>,
    /// Whether what was committed must survive a power cut. `false` turns `fsync` and `full_page_writes` off,
    /// for clusters that are thrown away; what was committed still survives a crash of the server.
    pub durable: bool,
    /// The port on 127.0.0.1. `None`: the last one of this data directory if it is free, else a free one.
    pub port: Option<u16>,
}

impl Options {
    /// A durable cluster in this directory, with this crate's settings, on whichever port is free.
    pub fn new(data_dir: impl Into<PathBuf>) -> Options {
        Options { data_dir: data_dir.into(), settings: Vec::new(), durable: true, port: None }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    // Declared, and so dropped, in this order: the server stops, then others may have the data directory,
    // and then it is removed if it was for this server alone.
    supervisor: Supervisor,
    lock: Option<Lock>,
    scratch: Option<Scratch>,
    layout: Layout,
    password: String,
    version: u32,
}

impl Server {
    /// Starts a server, making its cluster if there is none, and waits until it takes connections. A server
    /// that a dead process left running on the same data directory is stopped first.
    pub fn start(options: Options) -> Result<Server, Error> {
        let data_dir = layout::prepare(&options.data_dir)?;
        let lock = Lock::acquire(&data_dir)?;
        let (layout, identity) = relocate::settle(data_dir)?;
        let cluster = layout.cluster_version()?;
        let search = Search::from_env();
        let binaries = match cluster {
            Some(version) => search.of_version(&identity, version, &layout.data_dir)?,
            None => search.any(&identity)?,
        };
        strays::clear(&layout.pgdata())?;
        let password = layout.password(cluster.is_some())?;
        if cluster.is_none() {
            initdb::run(&layout, &binaries, &identity, &password, options.durable)?;
        }
        let log = Log::new(layout.log());
        log.rotate(&layout.old_log())?;
        let version = binaries.version();
        let launch = Launch {
            binaries,
            identity,
            pgdata: layout.pgdata(),
            log,
            settings: options.settings,
            durable: options.durable,
        };
        let supervisor = Supervisor::start(launch, layout.clone(), options.port)?;
        Ok(Server { supervisor, lock: Some(lock), scratch: None, layout, password, version })
    }

    /// Starts a server on a new, empty cluster of its own that is removed, with all its files, when the
    /// server is stopped or dropped. It is not durable.
    pub fn start_scratch(settings: Vec<(String, String)>) -> Result<Server, Error> {
        let scratch = Scratch::create()?;
        let options = Options { settings, durable: false, ..Options::new(scratch.path()) };
        let mut server = Server::start(options)?;
        server.scratch = Some(scratch);
        Ok(server)
    }

    /// The URL of a database, for the cluster's owner, who is a superuser. It holds the password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{}:{}@127.0.0.1:{}/{database}", initdb::OWNER, self.password, self.port())
    }

    /// The port on 127.0.0.1. It stays the same for the life of this value, whatever befalls the server.
    pub fn port(&self) -> u16 {
        self.supervisor.port()
    }

    /// The postmaster's process id. After a restart it is another.
    pub fn pid(&self) -> u32 {
        self.supervisor.pid()
    }

    /// The major version of PostgreSQL.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The data directory, absolute.
    pub fn data_dir(&self) -> &Path {
        &self.layout.data_dir
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.layout.log()
    }

    /// Stops the server as a crash would (`pg_ctl stop -m immediate`), starts it again on the same port, and
    /// waits until it has recovered: for tests that want to see what a crash does.
    pub fn restart_immediate(&self) -> Result<(), Error> {
        self.supervisor.restart_immediate()
    }

    /// Stops the server in good order (a fast shutdown), to be started again by [`up`](Self::up): for tests of an outage.
    pub fn down(&self) -> Result<(), Error> {
        self.supervisor.down()
    }

    /// Starts the server again after [`down`](Self::down), on the same port, and waits until it is ready.
    pub fn up(&self) -> Result<(), Error> {
        self.supervisor.up()
    }

    /// Stops the server in good order (a fast shutdown) and waits until it is gone.
    pub fn stop(mut self) -> Result<(), Error> {
        self.supervisor.stop()?;
        self.lock = None;
        self.scratch.take().map_or(Ok(()), Scratch::remove)
    }

    /// Stops the server and removes the cluster and everything else that this crate put into the data
    /// directory, or elsewhere because of it. The data directory itself stays.
    pub fn destroy(mut self) -> Result<(), Error> {
        self.supervisor.stop()?;
        initdb::undo(&self.layout)?;
        self.lock.take().map_or(Ok(()), Lock::remove)
    }
}
