//! The store's file, as somebody with a SQL shell sees it.

use std::path::Path;

use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

/// A connection to the file.
pub struct Database {
    connection: SqliteConnection,
}

impl Database {
    pub async fn open(file: &Path) -> Database {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(false);
        Database { connection: options.connect().await.unwrap() }
    }

    /// Runs a statement: how many rows it changed.
    pub async fn execute(&mut self, sql: &str) -> u64 {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut self.connection).await.unwrap().rows_affected()
    }

    /// The first column of each row, as text.
    pub async fn texts(&mut self, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await.unwrap()
    }

    /// The body of each row of a kind.
    pub async fn bodies(&mut self, kind: &str) -> Vec<Value> {
        let texts = self.texts(&format!("SELECT body FROM row WHERE kind = '{kind}' ORDER BY id")).await;
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// CKA_IDs in hex of every object that belongs into the token: the three
    /// keys of the installation, and the resident keys.
    pub async fn token_ids(&mut self) -> Vec<String> {
        let system = self.bodies("system").await.remove(0);
        let cluster = &system["cluster"];
        let mut ids: Vec<String> =
            [&cluster["wrapping_key"], &cluster["mac_key"]["id"], &cluster["head_key"]["id"]]
                .map(|id| id.as_str().unwrap().to_owned())
                .to_vec();
        const RESIDENT: &str = "SELECT id FROM row WHERE kind = 'backing-key' AND json_extract(body, '$.home.resident') IS NOT NULL";
        ids.extend(self.texts(RESIDENT).await);
        ids.sort();
        ids
    }

    /// Writes everything into the one file, and closes it.
    pub async fn close(self) {
        self.connection.close().await.unwrap();
    }
}
