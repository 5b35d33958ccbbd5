//! What was found: as a table, as JSON and as a plot.

use std::fmt::Write as _;
use std::path::Path;

use comfy_table::Table;
use serde_json::{Value, json};

use crate::plan::Plan;
use crate::series::{Series, Spread};

/// Everything that was found.
pub struct Report {
    conditions: Value,
    hsm: Vec<Value>,
    hsm_table: Table,
    operations: Vec<Value>,
    operations_table: Table,
    curves: Vec<Curve>,
    /// Figures of the other scenarios: their scenario, name, value and unit.
    figures: Vec<(String, String, f64, &'static str)>,
    verdicts: Vec<Verdict>,
}

/// What was wanted and what is.
struct Verdict {
    what: String,
    wanted: f64,
    found: f64,
    /// Whether less is better.
    at_most: bool,
}

/// One operation's rates by clients.
struct Curve {
    operation: String,
    side: String,
    points: Vec<(usize, f64)>,
}

impl Report {
    pub fn new(plan: &Plan) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let turn_ms = plan.turn.as_millis() as u64;
        Report {
            conditions: json!({ "cores": cores, "profile": profile, "rounds": plan.rounds, "turn_ms": turn_ms }),
            hsm: Vec::new(),
            hsm_table: table(&["HSM function", "object", "threads", "per second", "least..most"]),
            operations: Vec::new(),
            operations_table: table(&[
                "operation",
                "clients",
                "side",
                "per second",
                "least..most",
                "p50 ms",
                "p99 ms",
                "p99.9 ms",
                "CPU µs",
                "MiB",
                "of echo",
                "of ceiling",
            ]),
            curves: Vec::new(),
            figures: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// The HSM alone.
    pub fn hsm(&mut self, function: &str, object: &str, threads: usize, rate: Spread) {
        self.hsm_table.add_row([
            function.to_owned(),
            object.to_owned(),
            threads.to_string(),
            format!("{:.0}", rate.median),
            range(rate),
        ]);
        self.hsm.push(json!({ "function": function, "object": object, "threads": threads, "rate": rate }));
    }

    /// An operation beside its echo, which comes first; `raw` is the HSM's
    /// best rate for it.
    pub fn operation(&mut self, name: &str, clients: usize, series: &[Series], raw: Option<f64>) {
        let Some(echo) = series.first() else { return };
        let echo_rate = echo.rate().median;
        let ceiling = raw.map_or(echo_rate, |raw| 1.0 / (1.0 / echo_rate + 1.0 / raw));
        self.point(name, "ceiling", clients, ceiling);
        for side in series {
            let (rate, cpu) = (side.rate(), Spread::of(side.cpu_us.clone()));
            let (of_echo, of_ceiling) = (side.ratio(echo), rate.median / ceiling);
            let quantiles = [0.5, 0.99, 0.999].map(|quantile| side.quantile_ms(quantile));
            self.point(name, &side.name, clients, rate.median);
            let mut row = vec![
                name.to_owned(),
                clients.to_string(),
                side.name.clone(),
                format!("{:.0}", rate.median),
                range(rate),
            ];
            row.extend(quantiles.iter().map(|ms| format!("{ms:.2}")));
            row.push(format!("{:.0}", cpu.median));
            row.push(format!("{:.0}", side.resident_mib));
            row.push(format!("{:.2}", of_echo.median));
            row.push(format!("{of_ceiling:.2}"));
            self.operations_table.add_row(row);
            self.operations.push(json!({
                "operation": name, "clients": clients, "side": side.name, "rate": rate,
                "p50_ms": quantiles[0], "p99_ms": quantiles[1], "p999_ms": quantiles[2],
                "cpu_us": cpu, "resident_mib": side.resident_mib,
                "hsm_rate": raw, "of_echo": of_echo, "of_ceiling": of_ceiling,
            }));
            if side.name == "strongroom" {
                self.targets(name, clients, of_echo.median, of_ceiling);
            }
        }
    }

    /// What the issue of this benchmark asks of an operation.
    fn targets(&mut self, name: &str, clients: usize, of_echo: f64, of_ceiling: f64) {
        match (name, clients) {
            ("Encrypt 32 B", 64) => self.at_least("Encrypt 32 B at 64 clients, of the echo", 0.6, of_echo),
            ("Sign RSA-2048", 8) => {
                self.at_least("Sign RSA-2048 at 8 clients, of the ceiling", 0.95, of_ceiling);
            }
            ("Sign P-256", 64) => self.at_least("Sign P-256 at 64 clients, of the ceiling", 0.8, of_ceiling),
            _ => {}
        }
    }

    /// A figure that is not a rate beside its ceiling.
    pub fn figure(&mut self, scenario: &str, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push((scenario.to_owned(), name.into(), value, unit));
    }

    /// Something that should reach a figure.
    pub fn at_least(&mut self, what: impl Into<String>, wanted: f64, found: f64) {
        self.verdicts.push(Verdict { what: what.into(), wanted, found, at_most: false });
    }

    /// Something that should stay below a figure.
    pub fn at_most(&mut self, what: impl Into<String>, wanted: f64, found: f64) {
        self.verdicts.push(Verdict { what: what.into(), wanted, found, at_most: true });
    }

    fn point(&mut self, operation: &str, side: &str, clients: usize, rate: f64) {
        let known = self.curves.iter_mut().find(|curve| curve.operation == operation && curve.side == side);
        match known {
            Some(curve) => curve.points.push((clients, rate)),
            None => self.curves.push(Curve {
                operation: operation.to_owned(),
                side: side.to_owned(),
                points: vec![(clients, rate)],
            }),
        }
    }

    /// Prints the tables.
    pub fn print(&self) {
        println!("{}", self.conditions);
        for table in [&self.hsm_table, &self.operations_table] {
            if !table.is_empty() {
                println!("{table}");
            }
        }
        if !self.figures.is_empty() {
            let mut figures = table(&["scenario", "figure", "value", "unit"]);
            for (scenario, name, value, unit) in &self.figures {
                figures.add_row([scenario.as_str(), name, &format!("{value:.2}"), unit]);
            }
            println!("{figures}");
        }
        let mut verdicts = table(&["wanted", "", "found", ""]);
        for verdict in &self.verdicts {
            let sign = if verdict.at_most { "at most" } else { "at least" };
            let reached = if verdict.is_reached() { "reached" } else { "missed" };
            verdicts.add_row([
                verdict.what.clone(),
                format!("{sign} {:.2}", verdict.wanted),
                format!("{:.2}", verdict.found),
                reached.to_owned(),
            ]);
        }
        println!("{verdicts}");
    }

    /// Writes `speed.json` and `speed.svg`.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|(scenario, name, value, unit)| {
                json!({ "scenario": scenario, "name": name, "value": value, "unit": unit })
            })
            .collect();
        let verdicts: Vec<Value> = self
            .verdicts
            .iter()
            .map(|verdict| {
                json!({ "what": verdict.what, "wanted": verdict.wanted, "found": verdict.found,
                        "at_most": verdict.at_most, "reached": verdict.is_reached() })
            })
            .collect();
        let all = json!({
            "conditions": self.conditions, "hsm": self.hsm, "operations": self.operations,
            "figures": figures, "wanted": verdicts,
        });
        std::fs::write(folder.join("speed.json"), serde_json::to_string_pretty(&all)?)?;
        std::fs::write(folder.join("speed.svg"), self.plot()?)?;
        println!("{0}/speed.json, {0}/speed.svg", folder.display());
        Ok(())
    }

    /// A small chart per operation: calls per second by clients.
    fn plot(&self) -> anyhow::Result<String> {
        const COLUMNS: usize = 3;
        const WIDTH: usize = 320;
        const HEIGHT: usize = 240;
        let mut names: Vec<&str> = self.curves.iter().map(|curve| curve.operation.as_str()).collect();
        names.dedup();
        let (width, height) = (COLUMNS * WIDTH, names.len().div_ceil(COLUMNS).max(1) * HEIGHT);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (number, name) in names.iter().enumerate() {
            let (x, y) = (number % COLUMNS * WIDTH, number / COLUMNS * HEIGHT);
            writeln!(svg, "<g transform=\"translate({x},{y})\">")?;
            let curves: Vec<&Curve> = self.curves.iter().filter(|curve| curve.operation == *name).collect();
            chart(&mut svg, name, &curves)?;
            writeln!(svg, "</g>")?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

impl Verdict {
    fn is_reached(&self) -> bool {
        if self.at_most { self.found <= self.wanted } else { self.found >= self.wanted }
    }
}

/// One chart of 320 by 240; the clients are equally far apart.
fn chart(svg: &mut String, name: &str, curves: &[&Curve]) -> anyhow::Result<()> {
    const COLOURS: [&str; 4] = ["#999999", "#1f77b4", "#d62728", "#2ca02c"];
    const LEFT: f64 = 50.0;
    const TOP: f64 = 30.0;
    const WIDTH: f64 = 250.0;
    const HEIGHT: f64 = 160.0;
    let most = curves.iter().flat_map(|curve| &curve.points).map(|(_, rate)| *rate).fold(1.0, f64::max);
    let steps = curves.iter().map(|curve| curve.points.len()).max().unwrap_or(1);
    let step = WIDTH / steps.saturating_sub(1).max(1) as f64;
    let place = |index: usize, rate: f64| (LEFT + step * index as f64, TOP + HEIGHT * (1.0 - rate / most));
    writeln!(svg, "<text x=\"{LEFT}\" y=\"14\" font-size=\"12\">{name}, calls per second by clients</text>")?;
    for part in [0.0, 0.5, 1.0] {
        let (_, y) = place(0, most * part);
        let right = LEFT + WIDTH;
        writeln!(svg, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>")?;
        writeln!(svg, "<text x=\"4\" y=\"{:.1}\">{:.0}</text>", y + 3.0, most * part)?;
    }
    for (index, (clients, _)) in curves.first().map(|curve| &curve.points).into_iter().flatten().enumerate() {
        let (x, _) = place(index, 0.0);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{clients}</text>",
            TOP + HEIGHT + 14.0
        )?;
    }
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<String> = curve
            .points
            .iter()
            .enumerate()
            .map(|(index, (_, rate))| {
                let (x, y) = place(index, *rate);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        )?;
        let x = LEFT + 70.0 * number as f64;
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            TOP + HEIGHT + 32.0,
            curve.side
        )?;
    }
    Ok(())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

fn range(spread: Spread) -> String {
    format!("{:.0}..{:.0}", spread.least, spread.most)
}
