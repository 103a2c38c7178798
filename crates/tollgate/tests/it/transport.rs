//! HTTPS, and what is not served without (SPEC K4): over real sockets, with certificates made for the test.

use std::path::{Path, PathBuf};

use reqwest::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN, STRICT_TRANSPORT_SECURITY};
use reqwest::{Certificate, Client, Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_domain::Role;
use tollgate_testkit::{Process, TestApp, Tune};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const HSTS: &str = "max-age=63072000; includeSubDomains; preload";
const LISTEN: [&str; 4] = ["--json", "api", "--listen", "127.0.0.1:0"];

/// A certificate for this machine, and its key, as files.
struct Pem {
    directory: TempDir,
    text: String,
}

impl Pem {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let pem = Self { directory: TempDir::new().unwrap(), text: made.cert.pem() };
        std::fs::write(pem.certificate(), &pem.text).unwrap();
        std::fs::write(pem.key(), made.signing_key.serialize_pem()).unwrap();
        pem
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Who trusts this certificate and no other.
    fn client(&self) -> Client {
        tollgate_outbound::install_crypto_provider();
        let certificate = Certificate::from_pem(self.text.as_bytes()).unwrap();
        Client::builder().no_proxy().tls_certs_only([certificate]).build().unwrap()
    }
}

fn plain() -> Client {
    tollgate_outbound::install_crypto_provider();
    Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

fn settings(app: &TestApp, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = [("DATABASE_URL", app.db.role_url(Role::Api)), ("LOG_LEVEL", "warn".to_owned())];
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    own.into_iter().chain(more).map(|(name, value)| (name.to_owned(), value)).collect()
}

async fn api(app: &TestApp, more: &[(&str, &str)]) -> Process {
    Process::start(Path::new(BINARY), &LISTEN, &settings(app, more)).await
}

fn hsts(reply: &Response) -> Option<&str> {
    reply.headers().get(STRICT_TRANSPORT_SECURITY).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn https_is_served_with_a_certificate_and_nothing_else_is() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let pem = Pem::new();
    let (certificate, key) = (pem.certificate(), pem.key());
    let tls = [("TLS_CERT", certificate.to_str().unwrap()), ("TLS_KEY", key.to_str().unwrap())];
    let api = api(&app, &tls).await;
    let url = api.url();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");

    let client = pem.client();
    let submit = client.post(format!("{url}/v1/jobs/generations")).bearer_auth(&app.key);
    let reply = submit.json(&json!({"prompt": "x".repeat(100_000)})).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), hsts(&reply)), (202, Some(HSTS)));
    for (path, status) in [("/healthz", 200), ("/v1/jobs", 401), ("/v1/none", 404)] {
        let reply = client.get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!((reply.status().as_u16(), hsts(&reply)), (status, Some(HSTS)), "{path}");
    }
    // Another certificate would have been believed by nobody.
    assert!(Pem::new().client().get(format!("{url}/healthz")).send().await.is_err());

    let unsafe_url = url.replace("https://", "http://");
    let reply = plain().get(format!("{unsafe_url}/v1/jobs")).bearer_auth(&app.key).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), hsts(&reply)), (400, None));
    assert!(reply.text().await.unwrap().contains("https://"));
    // Nor does anybody who says nothing keep others waiting.
    let _silent = tokio::net::TcpStream::connect(url.trim_start_matches("https://")).await.unwrap();
    assert_eq!(client.get(format!("{url}/healthz")).send().await.unwrap().status(), 200);
    assert_eq!(api.terminate().await, 0);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let (pem, other) = (Pem::new(), Pem::new());
    let (certificate, key) = (pem.certificate(), pem.key());
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let (other_key, empty) = (other.key(), pem.directory.path().join("empty.pem"));
    std::fs::write(&empty, "nothing").unwrap();
    let (other_key, empty) = (other_key.to_str().unwrap(), empty.to_str().unwrap());
    for (code, settings_of, said) in [
        (2, &[("TLS_CERT", certificate)][..], "`tls_cert` and `tls_key` go together"),
        (1, &[("TLS_CERT", "/nowhere/cert.pem"), ("TLS_KEY", key)], "TLS_CERT, `/nowhere/cert.pem`"),
        (1, &[("TLS_CERT", empty), ("TLS_KEY", key)], "there is no certificate in it"),
        (1, &[("TLS_CERT", certificate), ("TLS_KEY", empty)], "TLS_KEY, `"),
        (1, &[("TLS_CERT", certificate), ("TLS_KEY", other_key)], "does not go with the certificate"),
    ] {
        let (was, out, err) = Process::run(Path::new(BINARY), &LISTEN, &settings(&app, settings_of)).await;
        assert_eq!((was, out.as_str()), (code, ""), "{err}");
        assert!(err.contains(said), "{said}: {err}");
        assert!(!err.contains("PRIVATE KEY"), "{err}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_no_other() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let trusting = api(&app, &[("TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.1")]).await;
    let client = plain();
    for (api, path, said, status, secure, words) in [
        (&trusting, "/v1/jobs", Some("https"), 200, true, ""),
        (&trusting, "/v1/jobs", Some("http"), 400, false, "to the proxy over plain HTTP"),
        (&trusting, "/healthz", Some("http"), 200, false, ""),
        (&trusting, "/metrics", Some("http"), 200, false, ""),
        (&trusting, "/v1/jobs", None, 200, false, ""),
        // By default nobody is.
        (&app.api, "/v1/jobs", Some("https"), 400, false, "TRUSTED_PROXIES"),
        (&app.api, "/readyz", Some("https"), 200, false, ""),
        (&app.api, "/v1/jobs", None, 200, false, ""),
    ] {
        let mut request = client.get(format!("{}{path}", api.url())).bearer_auth(&app.key);
        if let Some(scheme) = said {
            request = request.header("x-forwarded-proto", scheme);
        }
        let reply = request.send().await.unwrap();
        let told = (reply.status().as_u16(), hsts(&reply).is_some());
        let text = reply.text().await.unwrap();
        assert_eq!(told, (status, secure), "{path} {said:?}: {text}");
        assert!(text.contains(words), "{text}");
        if status == 400 {
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(problem["code"], "invalid_request");
        }
    }
}

#[tokio::test]
async fn who_listens_to_others_without_tls_is_warned() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let directory = TempDir::new().unwrap();
    for (address, warned) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
        let log = directory.path().join(address);
        let arguments = ["--json", "api", "--listen", address];
        let api =
            Process::start_logged(Path::new(BINARY), &arguments, &settings(&app, &[]), Some(&log)).await;
        assert_eq!(api.terminate().await, 0);
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(
            said.contains("requests from other machines will be refused"),
            warned,
            "{address}: {said}"
        );
    }
}

/// The headers that would let a page of another origin in.
fn cors(reply: &Response) -> Vec<&str> {
    reply
        .headers()
        .keys()
        .map(reqwest::header::HeaderName::as_str)
        .filter(|name| name.starts_with("access-control-"))
        .collect()
}

#[tokio::test]
async fn pages_of_other_origins_are_let_in_only_by_name() {
    const PAGE: &str = "https://app.example.com";
    let app = TestApp::start(BINARY, Tune::default()).await;
    let named = api(&app, &[("CORS_ALLOWED_ORIGINS", PAGE)]).await;
    let client = plain();
    let ask = async |api: &Process, method: Method, origin: &str| {
        let request = client.request(method, format!("{}/v1/jobs", api.url())).header(ORIGIN, origin);
        let request = request.header("access-control-request-method", "GET");
        request.header("access-control-request-headers", "authorization").send().await.unwrap()
    };
    for method in [Method::GET, Method::OPTIONS] {
        let reply = ask(&app.api, method.clone(), PAGE).await;
        assert_eq!(cors(&reply), Vec::<&str>::new(), "{method}");
        assert_eq!(reply.status(), if method == Method::GET { 401 } else { 405 });
        let reply = ask(&named, method.clone(), PAGE).await;
        assert_eq!(reply.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], PAGE, "{method}");
        assert_eq!(reply.status(), if method == Method::GET { 401 } else { 200 });
        let reply = ask(&named, method.clone(), "https://evil.example.com").await;
        assert!(!reply.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "{method}");
    }
    // What a page may read of an answer, beyond what every page may.
    let reply = ask(&named, Method::GET, PAGE).await;
    let mut exposed: Vec<_> =
        reply.headers()["access-control-expose-headers"].to_str().unwrap().split(',').collect();
    exposed.sort_unstable();
    let expected = [
        "idempotency-replayed",
        "location",
        "ratelimit",
        "ratelimit-limit",
        "ratelimit-policy",
        "ratelimit-remaining",
        "ratelimit-reset",
        "retry-after",
        "x-request-id",
    ];
    assert_eq!(exposed, expected);
    let preflight = ask(&named, Method::OPTIONS, PAGE).await;
    let allowed = preflight.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("authorization") && !allowed.contains('*'), "{allowed}");
}
