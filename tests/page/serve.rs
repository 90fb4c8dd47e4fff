//! Runs the shaders in a browser. This program builds optimizers on a device of this machine and writes down their parts (composed WGSL, override
//! constants, buffers and their contents, dispatches), the gradients, and the results of the CPU path. It serves them to the page beside it, which
//! runs them on `navigator.gpu` and compares the results. The page can only dispatch, and has no code for optimizers.
//!
//! `cargo run --release --example conformance_page` serves on <http://127.0.0.1:8031/>. `-- --browser chromium` starts a headless browser, waits for
//! its report, and exits with 1 where anything differs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;
use wgpu_optim_conformance::vectors::{self, Outcome};

#[derive(Debug, Parser)]
struct Args {
    /// Start this browser without a window, wait for its report, and exit with 1 where anything differs
    #[arg(long, value_name = "PROGRAM")]
    browser: Option<String>,
    /// With --browser: save a picture of the page once it is done
    #[arg(long, value_name = "FILE.png")]
    picture: Option<std::path::PathBuf>,
    /// With --browser: falsify a parameter in the page, to see that it tells
    #[arg(long)]
    seed_fault: bool,
    /// Seconds to wait for the report
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Write what the page is given to this file, and do nothing else; for `integrations/js/test`
    #[arg(long, value_name = "FILE.json")]
    write: Option<std::path::PathBuf>,
    /// The port; 0 for any
    #[arg(long, default_value_t = 8031)]
    port: u16,
}

/// The place in the page for a report that is to be shown.
const REPORT: &str = "<!-- report -->";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Outcome<bool> {
    let start = Instant::now();
    let vectors = vectors::vectors()?.to_string();
    eprintln!("{:.1} MB of vectors in {:.1} s", vectors.len() as f64 / 1e6, start.elapsed().as_secs_f64());
    if let Some(path) = &args.write {
        std::fs::write(path, vectors)?;
        return Ok(true);
    }
    let listener = TcpListener::bind(("127.0.0.1", args.port))?;
    let address = format!("http://{}/", listener.local_addr()?);
    let Some(program) = &args.browser else {
        println!("serving {address}");
        for stream in listener.incoming() {
            // A browser that disconnects does not stop the server.
            let _ = answer(stream?, include_str!("index.html"), &vectors);
        }
        return Ok(true);
    };
    let query = if args.seed_fault { "?fault" } else { "" };
    let mut browser = Browser::start(program, &format!("{address}{query}"), None)?;
    let report = wait_for_report(&listener, &vectors, args.timeout, &mut browser);
    drop(browser);
    let report: Value = serde_json::from_slice(&report?)?;
    println!("{}", report["text"].as_str().unwrap_or_default());
    if let Some(path) = &args.picture {
        // The page shows a report that it contains.
        let shown = report.to_string().replace('<', "\\u003c");
        let given = format!(r#"<script type="application/json" id="report">{shown}</script>"#);
        let page = include_str!("index.html").replace(REPORT, &given);
        let mut browser = Browser::start(program, &address, Some(path))?;
        let start = Instant::now();
        while browser.0.try_wait()?.is_none() && start.elapsed() < Duration::from_secs(60) {
            match listener.accept() {
                Ok((stream, _)) => drop(answer(stream, &page, &vectors)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
    Ok(report["failed"] == 0 && report["values"].as_u64() > Some(1000))
}

/// A browser and its profile folder, which both end when this value is dropped.
struct Browser(Child, #[expect(dead_code, reason = "kept until it is dropped")] tempfile::TempDir);

impl Browser {
    fn start(program: &str, url: &str, picture: Option<&std::path::Path>) -> Outcome<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--hide-scrollbars",
                "--enable-unsafe-webgpu",
                "--use-webgpu-adapter=swiftshader",
                "--window-size=1100,1500",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(picture) = picture {
            command.arg(format!("--screenshot={}", picture.display()));
        }
        let child = command.arg(url).spawn();
        Ok(Browser(child.map_err(|error| format!("{program}: {error}"))?, profile))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves until the page has sent its report.
fn wait_for_report(listener: &TcpListener, vectors: &str, timeout: u64, browser: &mut Browser) -> Outcome<Vec<u8>> {
    let start = Instant::now();
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok(Some(report)) = answer(stream, include_str!("index.html"), vectors) {
                    return Ok(report);
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = browser.0.try_wait()? {
            return Err(format!("the browser ended without a report: {status}").into());
        }
        if start.elapsed() > Duration::from_secs(timeout) {
            return Err(format!("no report within {timeout} s").into());
        }
    }
}

/// Answers one request with the page, its script or the vectors, or accepts the report.
fn answer(mut stream: TcpStream, page: &str, vectors: &str) -> Outcome<Option<Vec<u8>>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0usize;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let target = request.split_whitespace().nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let (status, kind, content) = match path {
        "/" => ("200 OK", "text/html", page),
        "/host.js" => ("200 OK", "text/javascript", include_str!("host.js")),
        "/vectors.json" => ("200 OK", "application/json", vectors),
        "/report" => ("200 OK", "text/plain", "thank you"),
        _ => ("404 Not Found", "text/plain", "there is no such thing"),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    )?;
    stream.write_all(content.as_bytes())?;
    Ok((path == "/report").then_some(body))
}
