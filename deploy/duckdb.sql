-- The files of a trail, read where they are: a folder or a bucket (with DuckDB's
-- httpfs, s3://BUCKET/…). Set the variables, then ask. A question per statement.
--
--   SET VARIABLE files = 's3://my-bucket/AWSLogs/*/CloudTrail/*/*/*/*/*.json.gz';
--   SET VARIABLE key = 'arn:aws:kms:us-east-1:111122223333:key/…';
--   SET VARIABLE since = TIMESTAMP '2026-01-30 00:00:00'; SET VARIABLE until = TIMESTAMP '2026-01-31 00:00:00';

CREATE OR REPLACE VIEW cloudtrail AS
SELECT record,
       (record ->> '$.eventTime')::TIMESTAMPTZ AT TIME ZONE 'UTC' AS eventtime,
       record ->> '$.eventID' AS eventid,
       record ->> '$.eventSource' AS eventsource,
       record ->> '$.eventName' AS eventname,
       record ->> '$.errorCode' AS errorcode,
       record ->> '$.sourceIPAddress' AS sourceipaddress,
       record ->> '$.userIdentity.arn' AS useridentity_arn,
       record ->> '$.recipientAccountId' AS recipientaccountid,
       record ->> '$.resources[*].ARN' AS resource_arns
FROM (SELECT unnest(Records) AS record
      FROM read_json(getvariable('files'), columns = {Records: 'JSON[]'}, maximum_object_size = 1073741824));

-- Who used this key?
SELECT useridentity_arn, eventname, errorcode, count(*) AS calls
FROM cloudtrail
WHERE list_contains(resource_arns, getvariable('key'))
  -- A call across accounts is on both records.
  AND recipientaccountid = split_part(getvariable('key'), ':', 5)
  AND eventtime >= getvariable('since') AND eventtime < getvariable('until')
GROUP BY ALL ORDER BY ALL;

-- Who was denied, and how often?
SELECT useridentity_arn, eventname, count(*) AS denials
FROM cloudtrail
WHERE errorcode = 'AccessDenied' AND eventtime >= getvariable('since') AND eventtime < getvariable('until')
GROUP BY ALL ORDER BY denials DESC, useridentity_arn, eventname;

-- What was done to keys that cannot be taken back?
SELECT eventtime, useridentity_arn, eventname, resource_arns[1] AS key
FROM cloudtrail
WHERE eventname IN ('ScheduleKeyDeletion', 'DeleteKey', 'DeleteImportedKeyMaterial') AND errorcode IS NULL
ORDER BY eventtime;
