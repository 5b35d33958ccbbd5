//! Rows of a data folder, for commands beside a daemon.

use std::path::Path;

use super::copy::connect_read_only;
use super::{DATABASE_FILE, OpenError, schema, sql};
use crate::store::{Kind, Row};

/// Most rows that are read.
const ROWS_MAX: u32 = 1000;

/// Rows of a kind, at most 1000, also while a daemon works on the folder; None
/// where there is no database. Nobody has checked their MACs.
///
/// # Errors
/// Where the database cannot be read, or is not ours.
pub async fn peek(folder: &Path, kind: Kind) -> Result<Option<Vec<Row>>, OpenError> {
    let file = folder.join(DATABASE_FILE);
    if !file.exists() {
        return Ok(None);
    }
    let mut db = connect_read_only(&file).await?;
    let database = |error| OpenError::database(&file, error);
    if schema::version(&mut db).await.map_err(database)?.is_none() {
        return Err(OpenError::Foreign { file });
    }
    sql::all_rows(&mut db, kind, None, ROWS_MAX).await.map(Some).map_err(database)
}
